//! From the journal into PostgreSQL and back out: nothing lost, nothing doubled, nothing in clear.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod home;

use std::time::Duration;

use hoop_actors::recorder::{Commit, Recorder};
use hoop_evidence::verify::SessionFinding;
use hoop_evidence::writer::{GiveUp, Log};
use hoop_evidence::{AuditMode, import, read};
use hoop_proto::evidence::event::Body;
use serde_json::json;
use uuid::Uuid;

use home::{Home, attempt, commit, ended, expected_texts, files, outcome, statements, texts, until, verify};

#[test]
fn a_session_is_read_back_as_it_was_recorded_and_verifies() {
    let home = Home::new();
    home.life(async |life| {
        let (session, mut recorder) = life.begin(AuditMode::Journalled);
        statements(&mut recorder, 1, 3).await;
        recorder.end(ended()).unwrap();
        life.flush().await;
        let events = read::events(&life.store, session).await.unwrap();
        assert_eq!(texts(&events), expected_texts(3));
        assert_eq!(events.len(), 1 + 3 * 3 + 1);
        let row = life.store.find_session(session).await.unwrap().unwrap();
        assert_eq!((row.user.as_str(), row.connection.as_str()), ("ada", "orders"));
        assert_eq!(row.end_code.as_deref(), Some("client_closed"));
        assert_eq!((row.statements, row.client_bytes, row.target_bytes), (2, 10, 20));
        let report = verify(&life.store).await;
        assert!(report.ok(), "{report}");
        assert_eq!(report.sessions_checked, 1);
        assert!(report.to_string().contains("not yet anchored"), "{report}");
        life.finish().await;
        let report = verify(&life.store).await;
        assert!(report.ok() && !report.to_string().contains("anchored"), "{report}");
    });
}

#[test]
fn a_live_session_is_listed_promptly_and_its_statements_soon() {
    let home = Home::new();
    home.life(async |life| {
        let (session, mut recorder) = life.begin(AuditMode::Journalled);
        statements(&mut recorder, 1, 5).await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            assert!(tokio::time::Instant::now() < deadline);
            let row = life.store.find_session(session).await.unwrap();
            if row.is_some_and(|row| row.ended_at.is_none() && row.statements == 5) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn nothing_that_was_typed_or_seen_is_in_the_database_or_the_folder_in_clear() {
    let home = Home::new();
    home.life(async |life| {
        let (_, mut recorder) = life.begin(AuditMode::Journalled);
        statements(&mut recorder, 1, 50).await;
        life.flush().await;
        let client = life.store.client().await.unwrap();
        for table in ["writers", "writer_log", "checkpoints", "sessions", "chunks"] {
            let rows = client
                .query(&format!("select t::text from {table} t"), &[])
                .await
                .unwrap();
            assert!(!rows.is_empty(), "{table} is empty");
            for row in rows {
                let text: String = row.get(0);
                for needle in ["secret_", "result_"] {
                    assert!(!text.contains(needle), "{needle} is in {table}");
                    assert!(!text.contains(&hex::encode(needle)), "{needle} is in {table}");
                }
            }
        }
        for file in files(&home.journal_dir()) {
            let bytes = std::fs::read(file).unwrap();
            assert!(
                !bytes
                    .windows(7)
                    .any(|window| window == b"secret_" || window == b"result_")
            );
        }
    });
}

#[test]
fn after_a_crash_what_was_journalled_is_replayed_once_and_what_was_open_is_unknown() {
    let home = Home::new();
    let (first, second, third) = home.life(async |life| {
        // One session half committed, one journalled only, one over before the crash.
        let (first, mut one) = life.begin(AuditMode::Journalled);
        let (third, mut three) = life.begin(AuditMode::Journalled);
        statements(&mut one, 1, 2).await;
        statements(&mut three, 1, 1).await;
        three.end(ended()).unwrap();
        life.flush().await;
        let (second, mut two) = life.begin(AuditMode::Journalled);
        for statement in 3..=4 {
            one.append(attempt(statement, &format!("select secret_{statement}")))
                .unwrap();
        }
        let Body::Attempt(prepared) = attempt(5, "select secret_5") else {
            panic!()
        };
        one.append(Body::Prepared(prepared)).unwrap();
        two.append(attempt(1, "select secret_1")).unwrap();
        let Commit::Done = two.commit().unwrap() else { panic!() };
        drop((one, two));
        (first, second, third)
    });
    assert!(!files(&home.journal_dir()).is_empty());
    home.life(async |life| {
        life.replayed().await;
        for (session, count) in [(first, 4), (second, 1), (third, 1)] {
            let events = read::events(&life.store, session).await.unwrap();
            assert_eq!(texts(&events), expected_texts(count));
        }
        let events = read::events(&life.store, first).await.unwrap();
        let unknown: Vec<u64> = events
            .iter()
            .filter_map(|event| match &event.body {
                Some(Body::Outcome(outcome)) if outcome.status == "unknown" => Some(outcome.statement),
                _ => None,
            })
            .collect();
        assert_eq!(unknown, [3, 4, 5], "what was only prepared too");
        let row = life.store.find_session(first).await.unwrap().unwrap();
        assert_eq!(
            (row.end_code.as_deref(), row.statements),
            (Some("replica_lost"), 4),
            "it counts as no statement"
        );
        let row = life.store.find_session(third).await.unwrap().unwrap();
        assert_eq!(row.end_code.as_deref(), Some("client_closed"));
        assert!(files(&home.journal_dir()).is_empty(), "replayed segments are deleted");
        assert_eq!(life.journal.used_bytes(), 0);
        let report = verify(&life.store).await;
        assert!(report.ok() && report.not_replayed().is_empty(), "{report}");
        assert_eq!(report.writers.len(), 2);
    });
}

#[test]
fn a_crash_in_the_middle_of_a_replay_is_replayed_too() {
    let home = Home::new();
    let sessions: Vec<Uuid> = home.life(async |life| {
        let mut sessions = Vec::new();
        for _ in 0..20 {
            let (session, mut recorder) = life.begin(AuditMode::Journalled);
            statements(&mut recorder, 1, 20).await;
            recorder.append(outcome(20)).unwrap();
            sessions.push(session);
            drop(recorder);
        }
        life.arbiter.flush().unwrap();
        sessions
    });
    for wait_ms in [0, 20, 60, 120] {
        home.life(async |_| tokio::time::sleep(Duration::from_millis(wait_ms)).await);
    }
    home.life(async |life| {
        life.replayed().await;
        for session in sessions {
            assert_eq!(
                texts(&read::events(&life.store, session).await.unwrap()),
                expected_texts(20)
            );
        }
        let report = verify(&life.store).await;
        assert!(report.ok(), "{report}");
    });
}

#[test]
fn a_session_of_a_dead_writer_is_told_as_not_replayed_until_its_folder_is_imported() {
    let home = Home::new();
    let session = home.life(async |life| {
        let (session, mut recorder) = life.begin(AuditMode::Journalled);
        statements(&mut recorder, 1, 2).await;
        life.flush().await;
        statements(&mut recorder, 3, 1).await;
        life.arbiter.flush().unwrap();
        drop(recorder);
        session
    });
    let report = home.verify();
    assert!(report.ok(), "{report}");
    assert_eq!(report.not_replayed(), [session]);
    let imported = home.look(async |store| {
        let root = store.installation().audit_root.clone();
        import::import(&home.journal_dir(), store, &root, None).await.unwrap()
    });
    assert_eq!(
        (imported.writers.len(), imported.writers[0].ended, imported.damage),
        (1, 1, 0)
    );
    let events = home.look(async |store| read::events(store, session).await.unwrap());
    assert_eq!(texts(&events), expected_texts(3));
    let report = home.verify();
    assert!(report.ok() && report.not_replayed().is_empty(), "{report}");
    assert!(files(&home.journal_dir()).is_empty());
}

#[test]
fn a_provisional_end_is_superseded_by_the_replayed_journal() {
    let home = Home::new();
    let (session, replica) = home.life(async |life| {
        let (session, mut recorder) = life.begin(AuditMode::Journalled);
        statements(&mut recorder, 1, 1).await;
        life.flush().await;
        let replica = life.store.find_session(session).await.unwrap().unwrap().replica;
        recorder.end(ended()).unwrap();
        life.arbiter.flush().unwrap();
        (session, replica)
    });
    // Another replica, with a folder of its own, gives the lost one's sessions up.
    let other = home.twin();
    other.life(async |life| {
        assert_eq!(life.writer.send(GiveUp { replica }).await.unwrap().unwrap(), 1);
        let row = life.store.find_session(session).await.unwrap().unwrap();
        assert_eq!(
            (row.end_code.as_deref(), row.end_provisional),
            (Some("replica_lost"), true)
        );
        life.finish().await;
    });
    home.life(async |life| {
        life.replayed().await;
        let row = life.store.find_session(session).await.unwrap().unwrap();
        assert_eq!(
            (row.end_code.as_deref(), row.end_provisional),
            (Some("client_closed"), false)
        );
        assert!(verify(&life.store).await.ok());
    });
}

#[test]
fn strict_waits_for_the_store_and_no_longer() {
    let home = Home::new();
    home.life(async |life| {
        let (session, mut recorder) = life.begin(AuditMode::Strict);
        for statement in 1..=20 {
            recorder
                .append(attempt(statement, &format!("select secret_{statement}")))
                .unwrap();
            commit(&mut recorder).await;
            let events = read::events(&life.store, session).await.unwrap();
            assert_eq!(texts(&events), expected_texts(statement));
        }
    });
}

#[test]
fn strict_fails_closed_while_the_store_is_away() {
    let home = Home::new();
    home.life(async |life| {
        let (_, mut recorder) = life.begin(AuditMode::Strict);
        life.flush().await;
        home.lock_out();
        recorder.append(attempt(1, "select 1")).unwrap();
        let Commit::Wait(safe) = recorder.commit().unwrap() else {
            panic!("strict did not wait")
        };
        assert!(safe.await.is_err());
        home.let_in();
    });
}

#[test]
fn a_store_that_goes_away_and_comes_back_loses_and_doubles_nothing() {
    let home = Home::new();
    home.life(async |life| {
        let mut sessions = Vec::new();
        for round in 0..6 {
            let (session, mut recorder) = life.begin(AuditMode::Journalled);
            for part in 0..10 {
                statements(&mut recorder, part * 10 + 1, 10).await;
                tokio::time::sleep(Duration::from_millis(13)).await;
                // In the middle of whatever the writer does.
                home.cut_connections();
            }
            recorder.end(ended()).unwrap();
            sessions.push(session);
            if round == 2 {
                home.lock_out();
            }
            if round == 4 {
                until(|| !life.setup.status().connected).await;
                home.let_in();
            }
        }
        life.flush().await;
        for session in sessions {
            assert_eq!(
                texts(&read::events(&life.store, session).await.unwrap()),
                expected_texts(100)
            );
        }
        let report = verify(&life.store).await;
        assert!(report.ok(), "{report}");
    });
}

#[test]
fn a_used_up_budget_waits_and_fails_closed_and_opens_again() {
    let home = Home {
        budget_bytes: 20_000,
        ..Home::new()
    };
    home.life(async |life| {
        let (session, mut recorder) = life.begin(AuditMode::Journalled);
        life.flush().await;
        home.lock_out();
        let mut statement = 0;
        let refused = loop {
            statement += 1;
            recorder
                .append(attempt(statement, &format!("select secret_{statement}")))
                .unwrap();
            match recorder.commit().unwrap() {
                Commit::Done => assert!(statement < 10_000),
                Commit::Wait(waiting) => break waiting.await.unwrap_err(),
            }
        };
        assert!(refused.0.contains("budget"), "{refused}");
        recorder.end(ended()).unwrap();
        home.let_in();
        until(|| life.setup.status().journal_bytes < 10_000).await;
        life.flush().await;
        // The refused attempt was not forwarded, and is recorded all the same.
        let events = read::events(&life.store, session).await.unwrap();
        assert_eq!(texts(&events), expected_texts(statement));
        let (_, mut next) = life.begin(AuditMode::Journalled);
        next.append(attempt(1, "select 1")).unwrap();
        assert!(matches!(next.commit().unwrap(), Commit::Done));
    });
}

#[test]
fn large_results_become_many_chunks_and_segments_that_are_given_up() {
    let home = Home {
        segment_bytes: 100_000,
        ..Home::new()
    };
    home.life(async |life| {
        let (session, mut recorder) = life.begin(AuditMode::Journalled);
        let mut noise = 1u64;
        let mut data = Vec::new();
        for _ in 0..25_000 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            data.extend_from_slice(&noise.to_le_bytes());
        }
        for statement in 1..=20 {
            recorder
                .append(attempt(statement, &format!("select secret_{statement}")))
                .unwrap();
            commit(&mut recorder).await;
            recorder.append(home::output(statement, &data)).unwrap();
            recorder.append(outcome(statement)).unwrap();
        }
        recorder.end(ended()).unwrap();
        life.flush().await;
        let events = read::events(&life.store, session).await.unwrap();
        assert_eq!(texts(&events), expected_texts(20));
        let report = verify(&life.store).await;
        assert!(report.ok() && report.chunks_checked >= 10, "{report}");
        assert!(files(&home.journal_dir()).len() <= 1, "committed segments are deleted");
    });
}

#[test]
fn an_administrative_record_is_answered_when_it_is_committed() {
    let home = Home::new();
    home.life(async |life| {
        let log = |kind: &str| Log {
            kind: kind.to_owned(),
            payload: json!({"subject": "orders"}),
        };
        life.writer.send(log("connection.create")).await.unwrap().unwrap();
        let client = life.store.client().await.unwrap();
        let found = client
            .query_one("select count(*) from writer_log where kind = 'connection.create'", &[])
            .await;
        assert_eq!(found.unwrap().get::<_, i64>(0), 1);
        assert!(
            life.writer.send(log("session_ended")).await.unwrap().is_err(),
            "only the writer makes these"
        );
        assert!(verify(&life.store).await.ok());
    });
}

#[test]
fn a_damaged_segment_is_told_kept_aside_and_what_is_whole_in_it_is_carried_over() {
    let home = Home::new();
    let session = home.life(async |life| {
        let (session, mut recorder) = life.begin(AuditMode::Journalled);
        for statement in 1..=10 {
            recorder.append(attempt(statement, "select 1")).unwrap();
            commit(&mut recorder).await;
        }
        drop(recorder);
        session
    });
    let file = files(&home.journal_dir()).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    home.life(async |life| {
        life.replayed().await;
        let events = read::events(&life.store, session).await.unwrap();
        assert!(events.len() >= 11, "{} events", events.len());
        let report = verify(&life.store).await;
        assert!(!report.ok());
        let findings = &report.sessions[0].findings;
        assert!(
            matches!(findings.as_slice(), [SessionFinding::EventsMissing { .. }]),
            "{report}"
        );
        assert!(report.to_string().contains("journal was damaged"), "{report}");
        assert!(files(&home.journal_dir()).is_empty());
        let aside = std::fs::read_dir(home.journal_dir()).unwrap().filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .ends_with(".damaged")
        });
        assert_eq!(aside.count(), 1);
    });
}
