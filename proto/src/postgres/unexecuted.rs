//! Which Parse and Bind messages of the batch being scanned no Execute of the same batch tells of.
//!
//! Usually there are none: a client sends Parse, Bind and Execute together, and the Execute's event has the text and the
//! parameters. What is left gets an event of its own, for the target receives it too.

use smallvec::SmallVec;

/// A Parse or Bind of the batch. Offsets are those at the time when it was scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Untold {
    /// Its definition's number in `Names`.
    pub(crate) number: u64,
    /// Where its item is in `Session::staged`.
    pub(crate) item: usize,
    /// Where its event belongs among the batch's.
    pub(crate) event: usize,
    pub(crate) is_bind: bool,
}

struct Entry {
    untold: Untold,
    /// Of a Bind: the definition of its statement, where the target has not confirmed that yet.
    parse: Option<u64>,
    told: bool,
}

/// `INVARIANT:` both lists ascend by number, for definitions are numbered in the client's order.
#[derive(Default)]
pub(crate) struct Unexecuted {
    parses: SmallVec<[Entry; 2]>,
    binds: SmallVec<[Entry; 2]>,
    untold: usize,
}

impl Unexecuted {
    #[inline]
    pub(crate) fn parse(&mut self, number: u64, item: usize, event: usize) {
        self.untold += 1;
        self.parses.push(Entry {
            untold: Untold {
                number,
                item,
                event,
                is_bind: false,
            },
            parse: None,
            told: false,
        });
    }

    #[inline]
    pub(crate) fn bind(&mut self, number: u64, parse: Option<u64>, item: usize, event: usize) {
        self.untold += 1;
        self.binds.push(Entry {
            untold: Untold {
                number,
                item,
                event,
                is_bind: true,
            },
            parse,
            told: false,
        });
    }

    /// An Execute of this portal's definition has an event: it tells of the Bind and of its Parse.
    #[inline]
    pub(crate) fn executed(&mut self, portal: u64) {
        let Some(bind) = find(&mut self.binds, portal) else {
            return;
        };
        if std::mem::replace(&mut bind.told, true) {
            return;
        }
        self.untold -= 1;
        if let Some(number) = bind.parse {
            self.told_parse(number);
        }
    }

    #[inline]
    fn told_parse(&mut self, number: u64) {
        if let Some(parse) = find(&mut self.parses, number)
            && !std::mem::replace(&mut parse.told, true)
        {
            self.untold -= 1;
        }
    }

    /// The batch is scanned: what is left to tell, in the client's order. A Bind tells of its Parse.
    #[inline]
    pub(crate) fn take(&mut self) -> SmallVec<[Untold; 2]> {
        let untold = if self.untold == 0 { SmallVec::new() } else { self.left() };
        self.untold = 0;
        // A list that has spilled is not kept for one large batch's sake.
        if self.parses.spilled() || self.binds.spilled() {
            *self = Self::default();
        } else {
            self.parses.clear();
            self.binds.clear();
        }
        untold
    }

    #[cold]
    fn left(&mut self) -> SmallVec<[Untold; 2]> {
        let mut left = SmallVec::new();
        for at in 0..self.binds.len() {
            let Some(&Entry {
                untold,
                parse,
                told: false,
            }) = self.binds.get(at)
            else {
                continue;
            };
            left.push(untold);
            if let Some(number) = parse {
                self.told_parse(number);
            }
        }
        let parses = self.parses.iter().filter(|parse| !parse.told);
        left.extend(parses.map(|parse| parse.untold));
        left.sort_unstable_by_key(|untold: &Untold| untold.item);
        left
    }
}

#[inline]
fn find(entries: &mut [Entry], number: u64) -> Option<&mut Entry> {
    let at = entries
        .binary_search_by_key(&number, |entry| entry.untold.number)
        .ok()?;
    entries.get_mut(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(unexecuted: &mut Unexecuted) -> Vec<usize> {
        unexecuted.take().iter().map(|untold| untold.item).collect()
    }

    #[test]
    fn an_execute_tells_of_its_bind_and_of_its_parse() {
        let mut unexecuted = Unexecuted::default();
        unexecuted.parse(7, 0, 0);
        unexecuted.bind(3, Some(7), 1, 0);
        unexecuted.executed(3);
        unexecuted.executed(3);
        assert_eq!(left(&mut unexecuted), [0; 0]);
    }

    #[test]
    fn a_bind_tells_of_its_parse_and_of_no_other() {
        let mut unexecuted = Unexecuted::default();
        unexecuted.parse(7, 0, 0);
        unexecuted.parse(8, 1, 0);
        unexecuted.bind(3, Some(8), 2, 0);
        unexecuted.bind(4, Some(6), 3, 0);
        unexecuted.executed(9);
        assert_eq!(left(&mut unexecuted), [0, 2, 3]);
        assert_eq!(left(&mut unexecuted), [0; 0], "the next batch begins with nothing");
    }
}
