//! What `verify` found, for people and for programs.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The whole result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The audit root's public key that was given, in hexadecimal.
    pub root: String,
    pub writers: Vec<WriterReport>,
    pub sessions_checked: u64,
    pub chunks_checked: u64,
    /// Sessions of which there is something to say (and the one that was asked for).
    pub sessions: Vec<SessionReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterReport {
    pub writer: Uuid,
    /// Every record up to this number is what was written.
    pub intact_to: i64,
    pub findings: Vec<WriterFinding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReport {
    pub session: Uuid,
    pub chunks: i64,
    pub findings: Vec<SessionFinding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum WriterFinding {
    /// Its key is not certified by the given root: nothing it says is believed.
    CertificateNotByRoot,
    /// Another writer's checkpoint (or, without one, a kept checkpoint or its own leftovers) names it, and it is gone.
    WriterMissing {
        named_by: Option<Uuid>,
    },
    Changed {
        seq: i64,
    },
    Reordered {
        seq: i64,
        belongs_at: i64,
    },
    Missing {
        from: i64,
        to: i64,
    },
    CheckpointChanged {
        number: i64,
    },
    CheckpointsMissing {
        from: i64,
        to: i64,
    },
    /// A checkpoint that was kept elsewhere is not by the key that the writer has now: somebody who holds the audit
    /// root's private key has certified another, and signed the log anew; or what was kept was changed.
    KeptCheckpointOfAnotherKey {
        number: i64,
    },
    /// The writer met a journal file that was not what had been written.
    JournalDamaged {
        seq: i64,
        file: String,
        why: String,
    },
    /// No flaw: these came after the last checkpoint.
    NotAnchored {
        from: i64,
        to: i64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum SessionFinding {
    /// No log, list or chunk speaks of it.
    Unknown,
    /// A log tells its start, and none of its chunks is there.
    SessionMissing,
    /// Its chunks are there, and it is gone from the list of sessions.
    NotListed,
    /// It is there, and no log of a writer to be believed tells its start.
    NotInAnyLog,
    ChunkChanged {
        seq: i64,
    },
    ChunkReordered {
        seq: i64,
        belongs_at: i64,
    },
    ChunksMissing {
        from: i64,
        to: i64,
    },
    /// Chunks behind the end of a session.
    ChunksUnexpected {
        from: i64,
        to: i64,
    },
    /// Events that never arrived from the journal.
    EventsMissing {
        from: i64,
        to: i64,
    },
    /// No flaw: its writer is gone, and the rest of it may lie in a journal that is not replayed.
    NotReplayed {
        writer: Uuid,
    },
}

impl WriterFinding {
    /// Whether evidence is not what it was, or not all there.
    #[must_use]
    pub const fn is_flaw(&self) -> bool {
        !matches!(self, Self::NotAnchored { .. })
    }
}

impl SessionFinding {
    /// Whether evidence is not what it was, or not all there.
    #[must_use]
    pub const fn is_flaw(&self) -> bool {
        !matches!(self, Self::NotReplayed { .. })
    }
}

impl Report {
    /// Whether all evidence is there and is what was written, as far as it is anchored.
    #[must_use]
    pub fn ok(&self) -> bool {
        !self
            .writers
            .iter()
            .flat_map(|writer| &writer.findings)
            .any(WriterFinding::is_flaw)
            && !self
                .sessions
                .iter()
                .flat_map(|session| &session.findings)
                .any(SessionFinding::is_flaw)
    }

    /// Sessions whose end may still lie in the journal of a lost replica.
    #[must_use]
    pub fn not_replayed(&self) -> Vec<Uuid> {
        let not_replayed = |report: &&SessionReport| {
            report
                .findings
                .iter()
                .any(|finding| matches!(finding, SessionFinding::NotReplayed { .. }))
        };
        self.sessions
            .iter()
            .filter(not_replayed)
            .map(|report| report.session)
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in &self.writers {
            writeln!(f, "writer {}: intact to {}", report.writer, report.intact_to)?;
            for finding in &report.findings {
                writeln!(f, "  {}{finding}", if finding.is_flaw() { "FLAW " } else { "" })?;
            }
        }
        for report in &self.sessions {
            if report.findings.is_empty() {
                writeln!(f, "session {}: intact, {} chunks", report.session, report.chunks)?;
            }
            for finding in &report.findings {
                let flaw = if finding.is_flaw() { "FLAW " } else { "" };
                writeln!(f, "session {}: {flaw}{finding}", report.session)?;
            }
        }
        let verdict = if self.ok() { "intact" } else { "NOT INTACT" };
        write!(
            f,
            "{verdict}: {} writers, {} sessions, {} chunks checked against root {}",
            self.writers.len(),
            self.sessions_checked,
            self.chunks_checked,
            self.root
        )
    }
}

impl fmt::Display for WriterFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CertificateNotByRoot => f.write_str("its certificate is not by this root; its log is not believed"),
            Self::WriterMissing { named_by: Some(by) } => write!(f, "writer missing, but writer {by} names it"),
            Self::WriterMissing { named_by: None } => f.write_str("writer missing, but what it signed is there"),
            Self::Changed { seq } => write!(f, "changed at {seq}"),
            Self::Reordered { seq, belongs_at } => write!(f, "reordered: the record at {seq} belongs at {belongs_at}"),
            Self::Missing { from, to } => write!(f, "missing {from}–{to}"),
            Self::CheckpointChanged { number } => {
                write!(f, "checkpoint {number} changed, or not signed by this writer")
            }
            Self::CheckpointsMissing { from, to } => write!(f, "checkpoints missing {from}–{to}"),
            Self::KeptCheckpointOfAnotherKey { number } => write!(
                f,
                "signed anew: the kept checkpoint {number} is not by the key that this writer has now"
            ),
            Self::JournalDamaged { seq, file, why } => {
                write!(f, "record {seq} tells that the journal was damaged: {file}: {why}")
            }
            Self::NotAnchored { from, to } => write!(f, "not yet anchored {from}–{to}"),
        }
    }
}

impl fmt::Display for SessionFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("session unknown"),
            Self::SessionMissing => f.write_str("session missing: a log tells its start, its chunks are gone"),
            Self::NotListed => f.write_str("gone from the list of sessions"),
            Self::NotInAnyLog => f.write_str("no believed log tells its start"),
            Self::ChunkChanged { seq } => write!(f, "chunk {seq} changed"),
            Self::ChunkReordered { seq, belongs_at } => {
                write!(f, "chunk reordered: the one at {seq} belongs at {belongs_at}")
            }
            Self::ChunksMissing { from, to } => write!(f, "chunks missing {from}–{to}"),
            Self::ChunksUnexpected { from, to } => write!(f, "chunks {from}–{to} behind the session's end"),
            Self::EventsMissing { from, to } => write!(f, "events missing {from}–{to}"),
            Self::NotReplayed { writer } => {
                write!(
                    f,
                    "not replayed: it has no end, and its writer {writer} is gone; replay or import its journal"
                )
            }
        }
    }
}
