//! What a name (of a prepared statement, of a portal) stands for at the target, although definitions may still be on
//! their way there and may still fail.
//!
//! A definition counts once the target has confirmed it. Until then it counts only within its own *segment* (the
//! messages up to a `Sync`): if it fails, the target skips the rest of the segment anyway. Across segments a name with
//! two possible meanings is `Ambiguous`: guessing would let a statement run under another one's text.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

/// Candidates of one name that are compared, at most; a name with more unconfirmed definitions is ambiguous.
const MAX_CANDIDATES: usize = 64;

/// Something that a name stands for.
pub(crate) trait Definition: PartialEq {
    /// Bytes that it keeps in memory.
    fn bytes(&self) -> usize;
}

/// What a name stands for in a given segment.
#[derive(Debug, PartialEq)]
pub(crate) enum Found<'a, D> {
    /// This under this name, or nothing: the target then answers with an error. The number is its definition's, as long
    /// as the target has not confirmed it.
    Known(&'a D, &'a Bytes, Option<u64>),
    /// Nothing that was defined by the protocol.
    Absent,
    /// One of several.
    Ambiguous,
}

struct Entry<D> {
    name: Bytes,
    confirmed: Option<D>,
    /// In the client's order, which is that of their numbers.
    pending: VecDeque<Pending<D>>,
}

struct Pending<D> {
    number: u64,
    segment: u64,
    /// `None`: a Close.
    definition: Option<D>,
}

impl<D> Entry<D> {
    fn new(name: Bytes) -> Self {
        Self {
            name,
            confirmed: None,
            pending: VecDeque::new(),
        }
    }
}

pub(crate) struct Names<D> {
    unnamed: Entry<D>,
    named: HashMap<Bytes, Entry<D>>,
    /// The names of pending definitions by number, from `first` on; `None`: settled out of order.
    order: VecDeque<Option<Bytes>>,
    first: u64,
    bytes: usize,
}

impl<D: Definition> Names<D> {
    pub(crate) fn new() -> Self {
        Self {
            unnamed: Entry::new(Bytes::new()),
            named: HashMap::new(),
            order: VecDeque::new(),
            first: 0,
            bytes: 0,
        }
    }

    /// Names that are kept, the unnamed one not counted.
    pub(crate) fn count(&self) -> usize {
        self.named.len()
    }

    /// Bytes that all definitions keep.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The client defines a name (`None`: closes it). Gives the definition's number, to settle it by.
    pub(crate) fn define(&mut self, name: &[u8], segment: u64, definition: Option<D>) -> u64 {
        let number = self.first + self.order.len() as u64;
        self.bytes += size(definition.as_ref());
        let entry = if name.is_empty() {
            &mut self.unnamed
        } else {
            // Two look-ups, but the name is copied once only.
            if !self.named.contains_key(name) {
                let name = Bytes::copy_from_slice(name);
                self.bytes += name.len();
                self.named.insert(name.clone(), Entry::new(name));
            }
            let Some(entry) = self.named.get_mut(name) else {
                return number;
            };
            entry
        };
        self.order.push_back(Some(entry.name.clone()));
        entry.pending.push_back(Pending {
            number,
            segment,
            definition,
        });
        number
    }

    /// The target has confirmed this definition.
    pub(crate) fn confirm(&mut self, number: u64) {
        self.settle(number, true);
    }

    /// This definition has failed, was skipped, or never went out.
    pub(crate) fn discard(&mut self, number: u64) {
        self.settle(number, false);
    }

    fn settle(&mut self, number: u64, confirmed: bool) {
        let index = usize::try_from(number.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        let Some(name) = self.order.get_mut(index).and_then(Option::take) else {
            return;
        };
        while let Some(None) = self.order.front() {
            self.order.pop_front();
            self.first += 1;
        }
        let entry = if name.is_empty() {
            Some(&mut self.unnamed)
        } else {
            self.named.get_mut(&name)
        };
        let Some(entry) = entry else { return };
        // Answers settle the first; what is dropped before it went out is among the last.
        let index = match entry.pending.front() {
            Some(front) if front.number == number => Some(0),
            _ => entry.pending.iter().rposition(|pending| pending.number == number),
        };
        let Some(Pending { definition, .. }) = index.and_then(|index| entry.pending.remove(index)) else {
            return;
        };
        let dropped = if confirmed {
            std::mem::replace(&mut entry.confirmed, definition)
        } else {
            definition
        };
        self.bytes -= size(dropped.as_ref());
        if !name.is_empty() && entry.confirmed.is_none() && entry.pending.is_empty() {
            self.named.remove(&name);
            self.bytes -= name.len();
        }
    }

    /// What `name` stands for in a message of this segment.
    pub(crate) fn find(&self, name: &[u8], segment: u64) -> Found<'_, D> {
        let Some(entry) = self.entry(name) else {
            return Found::Absent;
        };
        if let Some(Pending {
            number,
            segment: last,
            definition,
        }) = entry.pending.back()
            && *last == segment
        {
            return definition.as_ref().map_or(Found::Absent, |definition| {
                Found::Known(definition, &entry.name, Some(*number))
            });
        }
        if entry.pending.len() >= MAX_CANDIDATES {
            return Found::Ambiguous;
        }
        let pending = entry.pending.iter().filter_map(|pending| pending.definition.as_ref());
        let mut candidates = entry.confirmed.iter().chain(pending);
        let Some(first) = candidates.next() else {
            return Found::Absent;
        };
        if candidates.all(|other| other == first) {
            let newest = entry.pending.iter().rfind(|pending| pending.definition.is_some());
            Found::Known(first, &entry.name, newest.map(|pending| pending.number))
        } else {
            Found::Ambiguous
        }
    }

    /// The newest definition under this name, pending or confirmed.
    pub(crate) fn newest(&self, name: &[u8]) -> Option<&D> {
        let entry = self.entry(name)?;
        entry
            .pending
            .back()
            .map_or(entry.confirmed.as_ref(), |pending| pending.definition.as_ref())
    }

    /// A definition that is not yet settled, and its name.
    pub(crate) fn pending(&self, number: u64) -> Option<(&D, &Bytes)> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let entry = self.entry(self.order.get(index)?.as_ref()?)?;
        let at = entry
            .pending
            .binary_search_by_key(&number, |pending| pending.number)
            .ok()?;
        Some((entry.pending.get(at)?.definition.as_ref()?, &entry.name))
    }

    /// The target has dropped what this name stood for.
    pub(crate) fn forget(&mut self, name: &[u8]) {
        if let Some(entry) = self.named.get_mut(name) {
            self.bytes -= size(entry.confirmed.take().as_ref());
            if entry.pending.is_empty() {
                self.named.remove(name);
                self.bytes -= name.len();
            }
        }
    }

    /// The target has dropped all that was confirmed under a name.
    pub(crate) fn forget_named(&mut self) {
        if self.named.is_empty() {
            return;
        }
        let mut bytes = self.bytes;
        self.named.retain(|name, entry| {
            bytes -= size(entry.confirmed.take().as_ref());
            let stays = !entry.pending.is_empty();
            bytes -= if stays { 0 } else { name.len() };
            stays
        });
        self.bytes = bytes;
    }

    /// The target has dropped all that was confirmed.
    pub(crate) fn forget_all(&mut self) {
        self.bytes -= size(self.unnamed.confirmed.take().as_ref());
        self.forget_named();
    }

    fn entry(&self, name: &[u8]) -> Option<&Entry<D>> {
        if name.is_empty() {
            Some(&self.unnamed)
        } else {
            self.named.get(name)
        }
    }
}

fn size<D: Definition>(definition: Option<&D>) -> usize {
    definition.map_or(0, Definition::bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Definition for &'static str {
        fn bytes(&self) -> usize {
            self.len()
        }
    }

    fn known<'a>(found: Found<'a, &'static str>) -> Option<&'static str> {
        match found {
            Found::Known(text, ..) => Some(*text),
            Found::Absent => None,
            Found::Ambiguous => Some("?"),
        }
    }

    #[test]
    fn a_definition_counts_at_once_within_its_segment() {
        let mut names = Names::new();
        names.define(b"s", 1, Some("one"));
        assert_eq!(known(names.find(b"s", 1)), Some("one"));
        names.define(b"s", 1, None);
        assert_eq!(known(names.find(b"s", 1)), None);
        names.define(b"s", 1, Some("two"));
        assert_eq!(known(names.find(b"s", 1)), Some("two"));
    }

    #[test]
    fn across_segments_two_possible_meanings_are_ambiguous_until_confirmed() {
        for name in [&b""[..], b"s"] {
            let mut names = Names::new();
            let first = names.define(name, 1, Some("drop"));
            assert_eq!(known(names.find(name, 2)), Some("drop"));
            let second = names.define(name, 2, Some("select"));
            assert_eq!(known(names.find(name, 3)), Some("?"));
            names.confirm(first);
            assert_eq!(known(names.find(name, 3)), Some("?"));
            names.discard(second);
            assert_eq!(known(names.find(name, 3)), Some("drop"));
            let third = names.define(name, 3, Some("select"));
            names.confirm(third);
            assert_eq!(known(names.find(name, 4)), Some("select"));
        }
    }

    #[test]
    fn what_never_went_out_leaves_what_did() {
        for name in [&b""[..], b"s"] {
            let mut names = Names::new();
            let sent = names.define(name, 1, Some("drop"));
            let kept = names.define(name, 1, Some("select"));
            names.discard(kept);
            assert_eq!(known(names.find(name, 1)), Some("drop"));
            names.confirm(sent);
            assert_eq!(known(names.find(name, 2)), Some("drop"));
            assert_eq!((names.order.len(), names.first), (0, 2));
        }
    }

    #[test]
    fn what_is_forgotten_leaves_no_bytes() {
        let mut names = Names::new();
        let numbers = [&b""[..], b"s", b"t"].map(|name| names.define(name, 1, Some("text")));
        assert_eq!((names.bytes(), names.count()), (14, 2));
        names.confirm(numbers[0]);
        names.confirm(numbers[1]);
        names.forget(b"s");
        assert_eq!((names.bytes(), names.count()), (9, 1));
        names.discard(numbers[2]);
        assert_eq!((names.bytes(), names.count()), (4, 0));
        names.forget_all();
        assert_eq!(names.bytes(), 0);
        let close = names.define(b"u", 1, None);
        names.confirm(close);
        assert_eq!((names.bytes(), names.count()), (0, 0));
    }
}
