//! Follows one hash chain: are its rows all there, in order, and what they were?

use std::collections::HashMap;

use crate::chain::{Hash, NO_HASH};

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flaw {
    Changed {
        seq: i64,
    },
    /// The row at `seq` was at `belongs_at`.
    Reordered {
        seq: i64,
        belongs_at: i64,
    },
    Missing {
        from: i64,
        to: i64,
    },
}

/// One chain, fed row by row in the order of its numbers.
pub(super) struct Links {
    last: i64,
    /// The last row's own word for its hash; `None` where it cannot be believed.
    last_hash: Option<Hash>,
    /// Every row's own word for its hash: tells where a displaced row belongs.
    seq_of: HashMap<Hash, i64>,
    hash_of: HashMap<i64, Hash>,
    doubtful: Vec<(i64, Hash)>,
    flaws: Vec<Flaw>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            last: 0,
            last_hash: Some(NO_HASH),
            seq_of: HashMap::from([(NO_HASH, 0)]),
            hash_of: HashMap::new(),
            doubtful: Vec::new(),
            flaws: Vec::new(),
        }
    }
}

impl Links {
    /// `computed`: the hash of the row's content; `stored` and `prev`: what its columns say. Answers whether the row is
    /// what it says.
    pub fn take(&mut self, seq: i64, computed: Hash, stored: Hash, prev: Hash) -> bool {
        if seq <= self.last {
            self.flaws.push(Flaw::Reordered { seq, belongs_at: seq });
            return false;
        }
        let gap = seq > self.last + 1;
        if gap {
            self.flaws.push(Flaw::Missing {
                from: self.last + 1,
                to: seq - 1,
            });
        }
        let own = computed == stored;
        if !own {
            self.doubtful.push((seq, prev));
        } else if !gap && self.last_hash.is_some_and(|last| last != prev) {
            // This row is what it says, so the one before it is not the one that it followed.
            self.flaws.push(Flaw::Changed { seq: self.last.max(1) });
        }
        self.seq_of.insert(stored, seq);
        self.hash_of.insert(seq, stored);
        self.last = seq;
        self.last_hash = own.then_some(stored);
        own
    }

    /// Number of the last row.
    pub const fn last(&self) -> i64 {
        self.last
    }

    /// A row's own word for its hash.
    pub fn hash_at(&self, seq: i64) -> Option<Hash> {
        if seq == 0 {
            Some(NO_HASH)
        } else {
            self.hash_of.get(&seq).copied()
        }
    }

    /// Somebody else knows the chain's hash at `seq`: a checkpoint, or the log.
    pub fn expect(&mut self, seq: i64, hash: Hash) -> bool {
        if seq > self.last {
            self.flaws.push(Flaw::Missing {
                from: self.last + 1,
                to: seq,
            });
            return false;
        }
        let agrees = self.hash_at(seq).is_none_or(|stored| stored == hash);
        if !agrees {
            self.flaws.push(Flaw::Changed { seq });
        }
        agrees
    }

    pub fn finish(self) -> Vec<Flaw> {
        let doubtful: HashMap<i64, Hash> = self.doubtful.iter().copied().collect();
        let mut flaws = self.flaws;
        for (seq, prev) in self.doubtful {
            flaws.push(match belongs_at(prev, &self.seq_of, &doubtful) {
                Some(belongs_at) if belongs_at != seq => Flaw::Reordered { seq, belongs_at },
                _ => Flaw::Changed { seq },
            });
        }
        // One missing tail may be told by many.
        let widest = |flaws: &[Flaw], from| {
            flaws
                .iter()
                .filter_map(|flaw| match flaw {
                    Flaw::Missing { from: other, to } if *other == from => Some(*to),
                    _ => None,
                })
                .max()
        };
        let all = flaws.clone();
        for flaw in &mut flaws {
            if let Flaw::Missing { from, to } = flaw {
                *to = widest(&all, *from).unwrap_or(*to);
            }
        }
        flaws.sort_unstable_by_key(|flaw| match flaw {
            Flaw::Changed { seq } | Flaw::Reordered { seq, .. } => *seq,
            Flaw::Missing { from, .. } => *from,
        });
        flaws.dedup();
        flaws
    }
}

/// Where a row that follows `prev` belongs. The row before it may be displaced as well: then it is followed to where it
/// belongs itself.
fn belongs_at(mut prev: Hash, seq_of: &HashMap<Hash, i64>, doubtful: &HashMap<i64, Hash>) -> Option<i64> {
    for steps in 1..=doubtful.len() + 1 {
        let before = *seq_of.get(&prev)?;
        match doubtful.get(&before) {
            Some(further) => prev = *further,
            None => return Some(before + i64::try_from(steps).ok()?),
        }
    }
    None
}
