//! Whatever somebody with full access to the database does to the evidence, `verify` names it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod home;

use std::io::Write;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use hoop_evidence::chain::{CheckpointRow, LogRow, WriterRow};
use hoop_evidence::export::export;
use hoop_evidence::verify::{self, Report, SessionFinding, Source, WriterFinding};
use hoop_evidence::{AuditMode, EvidenceError};
use uuid::Uuid;

use home::{Home, ended, statements};

/// Two writers, one after the other, each with two sessions of three chunks; both ended well.
struct Past {
    home: Home,
    writers: [Uuid; 2],
    sessions: [Uuid; 2],
}

fn past() -> Past {
    let home = Home::new();
    let life = || {
        home.life(async |life| {
            let mut first = None;
            for _ in 0..2 {
                let (session, mut recorder) = life.begin(AuditMode::Journalled);
                for part in 0..2 {
                    statements(&mut recorder, part * 2 + 1, 2).await;
                    life.flush().await;
                }
                recorder.end(ended()).unwrap();
                life.flush().await;
                first.get_or_insert(session);
            }
            life.finish().await;
            (life.journal.writer(), first.unwrap())
        })
    };
    let (first, second) = (life(), life());
    let past = Past {
        home,
        writers: [first.0, second.0],
        sessions: [first.1, second.1],
    };
    let report = past.home.verify();
    assert!(report.ok(), "{report}");
    past
}

impl Past {
    /// Does `sql` (`$w` the first writer, `$s` its first session) to the evidence, and verifies.
    fn after(&self, sql: &str) -> Report {
        let [writer, ..] = self.writers;
        let [session, ..] = self.sessions;
        self.home.sql(
            &sql.replace("$w", &format!("'{writer}'"))
                .replace("$s", &format!("'{session}'")),
        );
        let report = self.home.verify();
        assert!(!report.ok(), "nothing was noticed\n{report}");
        report
    }

    fn of_writer(&self, report: &Report) -> Vec<WriterFinding> {
        let found = report.writers.iter().find(|writer| writer.writer == self.writers[0]);
        found.map(|writer| writer.findings.clone()).unwrap_or_default()
    }

    fn of_session(&self, report: &Report) -> Vec<SessionFinding> {
        let found = report
            .sessions
            .iter()
            .find(|session| session.session == self.sessions[0]);
        found.map(|session| session.findings.clone()).unwrap_or_default()
    }
}

#[test]
fn a_changed_record_of_a_log_is_named() {
    let past = past();
    let report =
        past.after("update writer_log set payload = replace(payload, 'ada', 'bob') where writer = $w and seq = 2");
    assert_eq!(past.of_writer(&report), [WriterFinding::Changed { seq: 2 }]);
    assert!(report.to_string().contains("changed at 2"), "{report}");
    assert!(report.to_string().contains("intact to 1"), "{report}");
}

#[test]
fn a_record_taken_out_of_a_log_is_named() {
    let past = past();
    let report = past.after("delete from writer_log where writer = $w and seq in (3, 4)");
    assert_eq!(past.of_writer(&report), [WriterFinding::Missing { from: 3, to: 4 }]);
}

#[test]
fn swapped_records_of_a_log_are_named() {
    let past = past();
    let report = past.after(
        "update writer_log set seq = -seq where writer = $w and seq in (2, 4); \
         update writer_log set seq = 6 + seq where writer = $w and seq < 0",
    );
    let findings = past.of_writer(&report);
    assert_eq!(
        findings,
        [
            WriterFinding::Reordered { seq: 2, belongs_at: 4 },
            WriterFinding::Reordered { seq: 4, belongs_at: 2 }
        ]
    );
}

#[test]
fn a_log_whose_tail_is_cut_before_its_checkpoint_is_named() {
    let past = past();
    let last: i64 = past.home.look(async |store| {
        let client = store.client().await.unwrap();
        let sql = "select max(seq) from writer_log where writer = $1";
        client.query_one(sql, &[&past.writers[0]]).await.unwrap().get(0)
    });
    let report = past.after("delete from writer_log where writer = $w and seq > 4");
    let findings = past.of_writer(&report);
    assert!(
        findings.contains(&WriterFinding::Missing { from: 5, to: last }),
        "{report}"
    );
    assert_eq!(findings.iter().filter(|finding| finding.is_flaw()).count(), 1);
}

#[test]
fn a_tail_cut_together_with_its_checkpoint_shows_in_the_next_writer() {
    let past = past();
    let report = past.after(
        "delete from writer_log where writer = $w and seq > 4; \
         delete from checkpoints where writer = $w and number > 1",
    );
    let findings = past.of_writer(&report);
    assert!(
        matches!(
            findings.as_slice(),
            [WriterFinding::CheckpointsMissing { from: 2, .. }, ..]
        ),
        "{report}"
    );
    assert!(
        findings
            .iter()
            .any(|finding| matches!(finding, WriterFinding::Missing { from: 5, .. })),
        "{report}"
    );
}

#[test]
fn a_whole_writer_taken_out_is_named_by_the_next_one() {
    let past = past();
    let report = past.after(
        "delete from writers where id = $w; delete from writer_log where writer = $w; \
         delete from checkpoints where writer = $w; delete from chunks where session in \
         (select id from sessions where writer = $w); delete from sessions where writer = $w",
    );
    assert_eq!(
        past.of_writer(&report),
        [WriterFinding::WriterMissing {
            named_by: Some(past.writers[1])
        }]
    );
    assert!(report.to_string().contains("writer missing"), "{report}");
}

#[test]
fn the_only_writer_taken_out_shows_in_the_checkpoint_file() {
    let past = past();
    past.home.sql(
        "delete from writers; delete from writer_log; delete from checkpoints; delete from chunks; delete from sessions",
    );
    assert!(past.home.verify().ok(), "the database alone cannot know");
    let kept = verify::checkpoints(&past.home.checkpoints()).unwrap();
    let report = past.home.look(async |store| {
        let root = store.installation().audit_root_public();
        verify::verify_with(Source::Database(store.clone()), &root, None, &kept)
            .await
            .unwrap()
    });
    let missing = [WriterFinding::WriterMissing { named_by: None }];
    assert!(!report.ok());
    assert_eq!(
        report
            .writers
            .iter()
            .filter(|writer| writer.findings == missing)
            .count(),
        2,
        "{report}"
    );
}

#[test]
fn an_untouched_past_agrees_with_its_checkpoint_file() {
    let past = past();
    let kept = verify::checkpoints(&past.home.checkpoints()).unwrap();
    assert!(kept.len() >= 4);
    let report = past.home.look(async |store| {
        let root = store.installation().audit_root_public();
        verify::verify_with(Source::Database(store.clone()), &root, None, &kept)
            .await
            .unwrap()
    });
    assert!(report.ok(), "{report}");
}

#[test]
fn changed_missing_and_swapped_chunks_are_named() {
    let past = past();
    let report = past.after(
        "update chunks set stored = set_byte(stored, 20, get_byte(stored, 20) # 1) where session = $s and seq = 2",
    );
    assert_eq!(past.of_session(&report), [SessionFinding::ChunkChanged { seq: 2 }]);
    let past = self::past();
    let report = past.after("delete from chunks where session = $s and seq = 2");
    let findings = past.of_session(&report);
    assert!(
        findings.contains(&SessionFinding::ChunksMissing { from: 2, to: 2 }),
        "{report}"
    );
    let past = self::past();
    let report = past.after(
        "update chunks set seq = -seq where session = $s and seq in (1, 2); \
         update chunks set seq = 3 + seq where session = $s and seq < 0",
    );
    let findings = past.of_session(&report);
    assert!(
        findings.contains(&SessionFinding::ChunkReordered { seq: 1, belongs_at: 2 }),
        "{report}"
    );
    assert!(
        findings.contains(&SessionFinding::ChunkReordered { seq: 2, belongs_at: 1 }),
        "{report}"
    );
}

#[test]
fn the_last_chunk_taken_out_is_named() {
    let past = past();
    let report =
        past.after("delete from chunks where session = $s and seq = (select max(seq) from chunks where session = $s)");
    assert!(
        matches!(
            past.of_session(&report).as_slice(),
            [SessionFinding::ChunksMissing { .. }]
        ),
        "{report}"
    );
}

#[test]
fn a_session_taken_out_with_all_its_rows_is_named() {
    let past = past();
    let report = past.after("delete from chunks where session = $s; delete from sessions where id = $s");
    assert_eq!(past.of_session(&report), [SessionFinding::SessionMissing]);
    assert!(report.to_string().contains("session missing"), "{report}");
}

#[test]
fn a_session_that_no_log_knows_is_named() {
    let past = past();
    let report = past.after(
        "insert into chunks (session, seq, first_event, last_event, stored, prev_hash, hash) \
         select gen_random_uuid(), seq, first_event, last_event, stored, prev_hash, hash from chunks \
         where session = $s and seq = 1",
    );
    let findings: Vec<_> = report.sessions.iter().flat_map(|session| &session.findings).collect();
    assert!(findings.contains(&&SessionFinding::NotInAnyLog), "{report}");
}

/// Rewrites the first writer's past (a record changed, every hash after it made anew) and signs its head with `key`.
async fn forge(store: &hoop_store::Store, writer: Uuid, key: &Ed25519KeyPair) {
    let client = store.client().await.unwrap();
    let sql = "select seq, at_us, kind, payload from writer_log where writer = $1 order by seq";
    let mut prev = vec![0; 32];
    let mut heads = vec![];
    for row in client.query(sql, &[&writer]).await.unwrap() {
        let payload: String = row.get(3);
        let mut forged = LogRow {
            writer,
            seq: row.get(0),
            at_us: row.get(1),
            kind: row.get(2),
            payload: payload.replace("ada", "bob"),
            prev_hash: prev,
            hash: vec![],
        };
        forged.hash = forged.computed().to_vec();
        client
            .execute(
                "update writer_log set payload = $3, prev_hash = $4, hash = $5 where writer = $1 and seq = $2",
                &[&writer, &forged.seq, &forged.payload, &forged.prev_hash, &forged.hash],
            )
            .await
            .unwrap();
        heads.push(forged.hash.clone());
        prev = forged.hash;
    }
    let sql = "select number, seq, at_us, others from checkpoints where writer = $1 order by number";
    let mut prev = vec![0; 32];
    for row in client.query(sql, &[&writer]).await.unwrap() {
        let seq: i64 = row.get(1);
        let mut forged = CheckpointRow {
            writer,
            number: row.get(0),
            seq,
            head_hash: heads[usize::try_from(seq).unwrap() - 1].clone(),
            at_us: row.get(2),
            others: row.get(3),
            prev_hash: prev,
            signature: vec![],
        };
        forged.signature = key.sign(&forged.computed()).as_ref().to_vec();
        prev = forged.computed().to_vec();
        client
            .execute(
                "update checkpoints set head_hash = $3, prev_hash = $4, signature = $5 where writer = $1 and number = $2",
                &[&writer, &forged.number, &forged.head_hash, &forged.prev_hash, &forged.signature],
            )
            .await
            .unwrap();
    }
}

#[test]
fn a_log_signed_anew_with_another_key_is_named() {
    let past = past();
    let key = Ed25519KeyPair::generate().unwrap();
    past.home.look(async |store| forge(store, past.writers[0], &key).await);
    let report = past.home.verify();
    assert!(!report.ok());
    let findings = past.of_writer(&report);
    assert!(
        findings.contains(&WriterFinding::CheckpointChanged { number: 1 }),
        "{report}"
    );
}

/// Gives `writer` this key, certified by `root`.
async fn certify(store: &hoop_store::Store, writer: Uuid, key: &Ed25519KeyPair, root: &Ed25519KeyPair) {
    let client = store.client().await.unwrap();
    let sql = "select replica, started_at_us from writers where id = $1";
    let row = client.query_one(sql, &[&writer]).await.unwrap();
    let mut forged = WriterRow {
        id: writer,
        replica: row.get(0),
        public_key: key.public_key().as_ref().to_vec(),
        certificate: vec![],
        started_at_us: row.get(1),
        live: false,
    };
    forged.certificate = root.sign(&forged.computed()).as_ref().to_vec();
    let sql = "update writers set public_key = $2, certificate = $3 where id = $1";
    client
        .execute(sql, &[&forged.id, &forged.public_key, &forged.certificate])
        .await
        .unwrap();
}

#[test]
fn a_log_signed_anew_under_a_key_that_another_root_certifies_is_named() {
    let past = past();
    let (key, other_root) = (Ed25519KeyPair::generate().unwrap(), Ed25519KeyPair::generate().unwrap());
    past.home.look(async |store| {
        forge(store, past.writers[0], &key).await;
        certify(store, past.writers[0], &key, &other_root).await;
    });
    let report = past.home.verify();
    assert_eq!(
        past.of_writer(&report),
        [WriterFinding::CertificateNotByRoot],
        "{report}"
    );
    assert_eq!(past.of_session(&report), [SessionFinding::NotInAnyLog]);
}

#[test]
fn a_log_signed_anew_under_the_real_root_is_named_by_kept_checkpoints_alone() {
    let past = past();
    let kept = verify::checkpoints(&past.home.checkpoints()).unwrap();
    // The last writer: no other has named its checkpoints.
    let last = past.writers[1];
    let key = Ed25519KeyPair::generate().unwrap();
    past.home.look(async |store| {
        forge(store, last, &key).await;
        // who holds the master key holds the root
        certify(store, last, &key, &store.installation().audit_root).await;
    });
    let report = past.home.verify();
    assert!(report.ok(), "the database alone cannot know: {report}");
    let report = past.home.look(async |store| {
        let root = store.installation().audit_root_public();
        verify::verify_with(Source::Database(store.clone()), &root, None, &kept)
            .await
            .unwrap()
    });
    let findings = &report
        .writers
        .iter()
        .find(|writer| writer.writer == last)
        .unwrap()
        .findings;
    assert!(!report.ok());
    assert!(
        findings.contains(&WriterFinding::KeptCheckpointOfAnotherKey { number: 1 }),
        "{report}"
    );
    assert!(report.to_string().contains("signed anew"), "{report}");
}

#[test]
fn another_root_key_believes_no_writer() {
    let past = past();
    let report = past.home.look(async |store| {
        verify::verify(Source::Database(store.clone()), &[9; 32], None)
            .await
            .unwrap()
    });
    assert!(
        report
            .writers
            .iter()
            .all(|writer| writer.findings == [WriterFinding::CertificateNotByRoot]),
        "{report}"
    );
}

#[test]
fn one_session_can_be_asked_for() {
    let past = past();
    let report = past.home.look(async |store| {
        let root = store.installation().audit_root_public();
        verify::verify(Source::Database(store.clone()), &root, Some(past.sessions[1]))
            .await
            .unwrap()
    });
    assert!(report.ok(), "{report}");
    assert_eq!(report.sessions.len(), 1);
    assert!(report.to_string().contains("intact, "), "{report}");
    let report = past.home.look(async |store| {
        let root = store.installation().audit_root_public();
        verify::verify(Source::Database(store.clone()), &root, Some(Uuid::nil()))
            .await
            .unwrap()
    });
    assert_eq!(report.sessions[0].findings, [SessionFinding::Unknown]);
    assert!(!report.ok());
}

#[test]
fn an_export_file_verifies_as_the_database_does_and_without_a_secret() {
    let past = past();
    let file = past.home.dir.join("export.ndjson");
    let (root, from_database) = past.home.look(async |store| {
        let exported = export(store, &file).await.unwrap();
        assert_eq!((exported.writers, exported.sessions), (2, 4), "{exported}");
        (store.installation().audit_root_public(), home::verify(store).await)
    });
    let from_file = |path: &std::path::Path| {
        let source = Source::File(path.to_owned());
        actix::System::new().block_on(verify::verify(source, &root, None))
    };
    assert_eq!(from_file(&file).unwrap(), from_database);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("secret_"));

    let without_a_chunk: Vec<&str> = {
        let mut skipped = false;
        text.lines()
            .filter(|line| skipped || !line.starts_with("{\"chunk\"") || std::mem::replace(&mut skipped, true))
            .collect()
    };
    assert_eq!(without_a_chunk.len() + 1, text.lines().count());
    let mut out = std::fs::File::create(&file).unwrap();
    out.write_all(without_a_chunk.join("\n").as_bytes()).unwrap();
    assert!(!from_file(&file).unwrap().ok());

    out.write_all(b"\nnonsense").unwrap();
    assert!(matches!(from_file(&file), Err(EvidenceError::Export { .. })));
}
