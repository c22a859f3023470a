//! Checks writers: certificates, logs, checkpoints, and what checkpoints say of each other's writers.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;
use uuid::Uuid;

use super::links::{Flaw, Links};
use super::report::{WriterFinding, WriterReport};
use super::signed_by;
use crate::chain::{CheckpointRow, Hash, LogRow, NO_HASH, Named, WriterRow};
use crate::log::hash;

pub(super) struct Writers {
    root: [u8; 32],
    writers: BTreeMap<Uuid, Writer>,
}

struct Writer {
    row: Option<WriterRow>,
    log: Links,
    checkpoints: Vec<Checked>,
    findings: Vec<WriterFinding>,
}

/// A checkpoint that its writer signed.
struct Checked {
    number: i64,
    seq: i64,
    head: Hash,
    hash: Hash,
    prev: Hash,
    named: Vec<Named>,
}

impl Writer {
    fn new(row: Option<WriterRow>) -> Self {
        Self {
            row,
            log: Links::default(),
            checkpoints: Vec::new(),
            findings: Vec::new(),
        }
    }
}

impl Writers {
    pub fn new(root: &[u8; 32]) -> Self {
        Self {
            root: *root,
            writers: BTreeMap::new(),
        }
    }

    pub fn take_writer(&mut self, row: WriterRow) {
        let certified = signed_by(&self.root, &row.computed(), &row.certificate);
        let id = row.id;
        let mut writer = Writer::new(certified.then_some(row));
        if !certified {
            writer.findings.push(WriterFinding::CertificateNotByRoot);
        }
        self.writers.insert(id, writer);
    }

    pub fn take_checkpoint(&mut self, row: CheckpointRow) {
        let writer = self.entry(row.writer);
        if writer.row.is_none() {
            return;
        }
        match check(writer, &row) {
            Some(checked) => writer.checkpoints.push(checked),
            None => writer
                .findings
                .push(WriterFinding::CheckpointChanged { number: row.number }),
        }
    }

    /// Answers whether the row's writer is one to be believed.
    pub fn take_log(&mut self, row: &LogRow) -> bool {
        let writer = self.entry(row.writer);
        if writer.row.is_none() {
            return false;
        }
        writer
            .log
            .take(row.seq, row.computed(), hash(&row.hash), hash(&row.prev_hash));
        if row.kind == "journal_damaged" {
            let payload: Value = serde_json::from_str(&row.payload).unwrap_or_default();
            let text = |name| payload.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            writer.findings.push(WriterFinding::JournalDamaged {
                seq: row.seq,
                file: text("file"),
                why: text("why"),
            });
        }
        true
    }

    /// A log or checkpoint of a writer that is not in the data any more.
    fn entry(&mut self, writer: Uuid) -> &mut Writer {
        self.writers.entry(writer).or_insert_with(|| {
            let mut missing = Writer::new(None);
            missing.findings.push(WriterFinding::WriterMissing { named_by: None });
            missing
        })
    }

    /// Writers whose replica held a lease when the evidence was read.
    pub fn live(&self) -> HashSet<Uuid> {
        let live = |writer: &&Writer| writer.row.as_ref().is_some_and(|row| row.live);
        self.writers
            .values()
            .filter(live)
            .filter_map(|writer| writer.row.as_ref())
            .map(|row| row.id)
            .collect()
    }

    pub fn finish(mut self, kept: &[CheckpointRow]) -> (String, Vec<WriterReport>) {
        for row in kept {
            self.take_kept(row);
        }
        let named: Vec<(Uuid, Named)> = self
            .writers
            .iter()
            .flat_map(|(by, writer)| {
                writer
                    .checkpoints
                    .iter()
                    .flat_map(|checked| checked.named.clone())
                    .map(|n| (*by, n))
            })
            .collect();
        for (by, named) in named {
            self.expect(Some(by), &named);
        }
        let reports = self.writers.into_iter().map(|(id, writer)| writer.finish(id)).collect();
        (hex::encode(self.root), reports)
    }

    /// A checkpoint that was kept outside of the data.
    fn take_kept(&mut self, row: &CheckpointRow) {
        if let Some(writer) = self.writers.get_mut(&row.writer)
            && writer.row.is_some()
            && check(writer, row).is_none()
        {
            let number = row.number;
            writer
                .findings
                .push(WriterFinding::KeptCheckpointOfAnotherKey { number });
            return;
        }
        let named = Named {
            writer: row.writer,
            number: row.number,
            seq: row.seq,
            hash: hex::encode(row.computed()),
        };
        self.expect(None, &named);
    }

    /// `by` (or a kept file) knows this checkpoint: it and what it signed must be there.
    fn expect(&mut self, by: Option<Uuid>, named: &Named) {
        let Some(writer) = self.writers.get_mut(&named.writer) else {
            let mut missing = Writer::new(None);
            missing.findings.push(WriterFinding::WriterMissing { named_by: by });
            self.writers.insert(named.writer, missing);
            return;
        };
        if writer.row.is_none() {
            return;
        }
        match writer.checkpoints.iter().find(|checked| checked.number == named.number) {
            Some(checked) if hex::encode(checked.hash) == named.hash => {}
            Some(_) => writer
                .findings
                .push(WriterFinding::CheckpointChanged { number: named.number }),
            None => {
                writer.findings.push(WriterFinding::CheckpointsMissing {
                    from: named.number,
                    to: named.number,
                });
                if named.seq > writer.log.last() {
                    // Only its length is known, which is enough to know that the tail is gone.
                    writer.log.expect(named.seq, NO_HASH);
                }
            }
        }
    }
}

/// The checkpoint, if its writer signed it.
fn check(writer: &Writer, row: &CheckpointRow) -> Option<Checked> {
    let hash_of_row = row.computed();
    let public_key = &writer.row.as_ref()?.public_key;
    signed_by(public_key, &hash_of_row, &row.signature).then(|| Checked {
        number: row.number,
        seq: row.seq,
        head: hash(&row.head_hash),
        hash: hash_of_row,
        prev: hash(&row.prev_hash),
        named: serde_json::from_str(&row.others).unwrap_or_default(),
    })
}

impl Writer {
    fn finish(mut self, id: Uuid) -> WriterReport {
        let last = self.log.last();
        let mut anchored = 0;
        if self.row.is_some() {
            let (mut number, mut prev) = (0, NO_HASH);
            for checked in &self.checkpoints {
                if checked.number > number + 1 {
                    self.findings.push(WriterFinding::CheckpointsMissing {
                        from: number + 1,
                        to: checked.number - 1,
                    });
                } else if checked.prev != prev {
                    self.findings
                        .push(WriterFinding::CheckpointChanged { number: number.max(1) });
                }
                (number, prev) = (checked.number, checked.hash);
                if self.log.expect(checked.seq, checked.head) {
                    anchored = anchored.max(checked.seq);
                }
            }
            if self.checkpoints.is_empty() {
                self.findings.push(WriterFinding::CheckpointsMissing { from: 1, to: 1 });
            }
            if last > anchored {
                self.findings.push(WriterFinding::NotAnchored {
                    from: anchored + 1,
                    to: last,
                });
            }
        }
        let flaws = self.log.finish();
        let first_flaw = flaws.iter().map(|flaw| match flaw {
            Flaw::Changed { seq } | Flaw::Reordered { seq, .. } => *seq,
            Flaw::Missing { from, .. } => *from,
        });
        let intact_to = first_flaw.min().map_or(last, |first| (first - 1).min(last));
        self.findings.extend(flaws.into_iter().map(|flaw| match flaw {
            Flaw::Changed { seq } => WriterFinding::Changed { seq },
            Flaw::Reordered { seq, belongs_at } => WriterFinding::Reordered { seq, belongs_at },
            Flaw::Missing { from, to } => WriterFinding::Missing { from, to },
        }));
        let mut findings = Vec::new();
        for finding in self.findings {
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        WriterReport {
            writer: id,
            intact_to: if self.row.is_some() { intact_to } else { 0 },
            findings,
        }
    }
}
