//! The journal alone, without a store: what is written, when, and what a reader makes of it afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hoop_actors::recorder::{Commit, FLUSH_INTERVAL_MS, Recorder};
use hoop_evidence::segment::{self, ITEM_BEGIN, ITEM_EVENT, Met, SegmentName, SegmentReader};
use hoop_evidence::{AuditMode, Journal, JournalConfig, JournalError};
use hoop_proto::evidence::event::Body;
use hoop_proto::evidence::{Attempt, Ended, Event, Outcome, Output, Started};
use hoop_store::seal::MasterKey;
use prost::Message;
use tokio::task::LocalSet;
use uuid::Uuid;

fn master() -> MasterKey {
    MasterKey::new(&[7; 32]).unwrap()
}

fn config(dir: &Path) -> JournalConfig {
    JournalConfig {
        reserve_wait_ms: 200,
        ..JournalConfig::new(dir, 1)
    }
}

fn started() -> (Uuid, Started) {
    let session = Uuid::now_v7();
    let session_bytes = Bytes::copy_from_slice(session.as_bytes());
    (
        session,
        Started {
            session: session_bytes,
            user: "ada".to_owned(),
            ..Started::default()
        },
    )
}

fn attempt(statement: u64, text: &str) -> Body {
    Body::Attempt(Attempt {
        statement,
        text: Bytes::copy_from_slice(text.as_bytes()),
        ..Attempt::default()
    })
}

fn output(statement: u64, data: Vec<u8>) -> Body {
    Body::Output(Output {
        statement,
        data: data.into(),
    })
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| SegmentName::parse(path.file_name().unwrap().to_str().unwrap()).is_some())
        .collect();
    found.sort_by_key(|path| SegmentName::parse(path.file_name().unwrap().to_str().unwrap()));
    found
}

/// Every event of a folder, and what else was met.
fn read(dir: &Path) -> (Vec<(Uuid, Event)>, Vec<Met>) {
    let (mut events, mut met) = (Vec::new(), Vec::new());
    let paths = segments(dir);
    for (index, path) in paths.iter().enumerate() {
        let mut reader = SegmentReader::open(path, &master()).unwrap().unwrap();
        let limit = std::fs::metadata(path).unwrap().len();
        let mut payload = Vec::new();
        loop {
            match reader.next(limit, index + 1 == paths.len(), &mut payload).unwrap() {
                Met::Frame => {
                    for item in segment::items(&payload).filter(|item| item.kind == ITEM_EVENT) {
                        let event = Event::decode(item.body).unwrap();
                        assert_eq!(segment::event_seq(item.body), Some(event.seq));
                        events.push((item.session, event));
                    }
                }
                Met::End => break,
                other => {
                    let torn = other == Met::Torn;
                    met.push(other);
                    if torn {
                        break;
                    }
                }
            }
        }
    }
    (events, met)
}

fn local<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, future)
}

fn done(commit: Commit) {
    assert!(matches!(commit, Commit::Done));
}

#[test]
fn what_was_committed_is_in_the_file_at_once_in_order_and_numbered() {
    let dir = tempfile::tempdir().unwrap();
    let session = local(async {
        let journal = Journal::open(config(dir.path()), master()).unwrap();
        let arbiter = journal.arbiter(0);
        let (session, started) = started();
        let mut recorder = arbiter.begin(started, AuditMode::Journalled).unwrap();
        recorder.append(attempt(1, "select 1")).unwrap();
        done(recorder.commit().unwrap());
        let (events, met) = read(dir.path());
        assert_eq!(events.len(), 2);
        assert!(met.is_empty());
        recorder
            .append(Body::Outcome(Outcome {
                statement: 1,
                ..Outcome::default()
            }))
            .unwrap();
        recorder
            .end(Ended {
                code: "client_closed".to_owned(),
                ..Ended::default()
            })
            .unwrap();
        session
    });
    let (events, _) = read(dir.path());
    assert_eq!(
        events.iter().map(|(_, event)| event.seq).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    assert!(events.iter().all(|(of, _)| *of == session));
    assert!(events.windows(2).all(|pair| pair[0].1.offset_us <= pair[1].1.offset_us));
    assert!(matches!(events[0].1.body, Some(Body::Started(ref started)) if started.audit_mode == "journalled"));
    assert!(matches!(events[3].1.body, Some(Body::Ended(_))));
}

#[test]
fn what_was_appended_without_a_commit_is_written_behind() {
    let dir = tempfile::tempdir().unwrap();
    local(async {
        let journal = Journal::open(config(dir.path()), master()).unwrap();
        let arbiter = journal.arbiter(0);
        let _recorder = arbiter.begin(started().1, AuditMode::Journalled).unwrap();
        assert!(read(dir.path()).0.is_empty());
        let deadline = Instant::now() + Duration::from_secs(5);
        while read(dir.path()).0.is_empty() {
            assert!(Instant::now() < deadline, "never written");
            tokio::time::sleep(Duration::from_millis(FLUSH_INTERVAL_MS)).await;
        }
    });
}

#[test]
fn a_session_begins_with_its_wrapped_data_key() {
    let dir = tempfile::tempdir().unwrap();
    let (session, started) = started();
    local(async {
        let journal = Journal::open(config(dir.path()), master()).unwrap();
        let mut recorder = journal.arbiter(0).begin(started, AuditMode::Journalled).unwrap();
        done(recorder.commit().unwrap());
    });
    let path = segments(dir.path()).remove(0);
    let mut reader = SegmentReader::open(&path, &master()).unwrap().unwrap();
    let mut payload = Vec::new();
    assert_eq!(reader.next(u64::MAX, true, &mut payload).unwrap(), Met::Frame);
    let first = segment::items(&payload).next().unwrap();
    assert_eq!((first.kind, first.session), (ITEM_BEGIN, session));
    assert_eq!(
        master().open(&format!("session/{session}"), first.body).unwrap().len(),
        32
    );
}

#[test]
fn a_torn_last_frame_is_dropped_and_damage_before_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    local(async {
        let journal = Journal::open(config(dir.path()), master()).unwrap();
        let mut recorder = journal.arbiter(0).begin(started().1, AuditMode::Journalled).unwrap();
        for statement in 1..=4 {
            recorder.append(attempt(statement, "select 1")).unwrap();
            done(recorder.commit().unwrap());
        }
    });
    let path = segments(dir.path()).remove(0);
    let whole = std::fs::read(&path).unwrap();
    let frame = |at: usize| 8 + u32::from_le_bytes(whole[at..at + 4].try_into().unwrap()) as usize;
    let mut starts = vec![segment::HEADER_BYTES];
    while *starts.last().unwrap() < whole.len() {
        starts.push(starts.last().unwrap() + frame(*starts.last().unwrap()));
    }
    for cut in starts[3] + 1..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let (events, met) = read(dir.path());
        assert_eq!(
            (events.len(), met.as_slice()),
            (4, [Met::Torn].as_slice()),
            "cut at {cut}"
        );
    }
    for at in starts[1]..starts[2] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        let (events, met) = read(dir.path());
        assert!(events.len() < 5 && !met.is_empty(), "a change at {at} went unseen");
        if at >= starts[1] + 8 {
            assert_eq!(events.len(), 4, "only the changed frame is lost");
        }
    }
}

#[test]
fn no_clear_text_is_in_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    local(async {
        let journal = Journal::open(config(dir.path()), master()).unwrap();
        let mut recorder = journal.arbiter(0).begin(started().1, AuditMode::Journalled).unwrap();
        recorder
            .append(attempt(1, "select card_number from customers"))
            .unwrap();
        recorder
            .append(output(1, b"4929-4929-4929-4929 ".repeat(1_000)))
            .unwrap();
        done(recorder.commit().unwrap());
    });
    let bytes = std::fs::read(segments(dir.path()).remove(0)).unwrap();
    for needle in [&b"card_number"[..], b"4929-4929", b"ada"] {
        assert!(!bytes.windows(needle.len()).any(|window| window == needle));
    }
    assert!(bytes.len() < 4_000, "20,000 bytes of output took {} bytes", bytes.len());
}

#[test]
fn segments_rotate_and_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    local(async {
        let journal = Journal::open(
            JournalConfig {
                segment_bytes: 2_000,
                ..config(dir.path())
            },
            master(),
        )
        .unwrap();
        let mut recorder = journal.arbiter(3).begin(started().1, AuditMode::Synced).unwrap();
        for statement in 1..=100 {
            recorder.append(attempt(statement, "select 1 -- of many")).unwrap();
            let Commit::Wait(safe) = recorder.commit().unwrap() else {
                panic!("synced did not wait")
            };
            safe.await.unwrap();
        }
    });
    assert!(segments(dir.path()).len() > 3);
    let (events, met) = read(dir.path());
    assert!(met.is_empty());
    assert_eq!(
        events.iter().map(|(_, event)| event.seq).collect::<Vec<_>>(),
        (1..=101).collect::<Vec<_>>()
    );
}

#[test]
fn a_used_up_budget_makes_a_commit_wait_and_then_fail() {
    let dir = tempfile::tempdir().unwrap();
    local(async {
        let journal = Journal::open(
            JournalConfig {
                budget_bytes: 2_000,
                ..config(dir.path())
            },
            master(),
        )
        .unwrap();
        let mut recorder = journal.arbiter(0).begin(started().1, AuditMode::Journalled).unwrap();
        let mut statement = 0;
        let waiting = loop {
            statement += 1;
            recorder.append(attempt(statement, "select 1")).unwrap();
            match recorder.commit().unwrap() {
                Commit::Done => assert!(statement < 100, "the budget never ran out"),
                Commit::Wait(waiting) => break waiting,
            }
        };
        let asked = Instant::now();
        let refused = waiting.await.unwrap_err();
        assert!(refused.0.contains("budget"), "{refused}");
        assert!(asked.elapsed() >= Duration::from_millis(200));
        assert!(journal.used_bytes() <= 2_000);
    });
}

#[test]
fn a_journal_that_cannot_be_written_fails_closed_and_recovers_with_a_new_segment() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("journal");
    local(async {
        let journal = Journal::open(config(&folder), master()).unwrap();
        let arbiter = journal.arbiter(0);
        let (session, started) = started();
        let mut recorder = arbiter.begin(started, AuditMode::Journalled).unwrap();
        // The folder is gone: no segment can be opened (a full disk looks the same from here).
        let away = dir.path().join("away");
        std::fs::rename(&folder, &away).unwrap();
        assert!(recorder.commit().is_err());
        assert!(recorder.append(attempt(1, "select 1")).is_err());
        arbiter
            .end(
                &session,
                Ended {
                    code: "record_failed".to_owned(),
                    ..Ended::default()
                },
            )
            .unwrap();
        std::fs::rename(&away, &folder).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while read(&folder).0.len() < 2 {
            assert!(Instant::now() < deadline, "the journal did not recover");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (events, _) = read(&folder);
        assert!(matches!(events[1].1.body, Some(Body::Ended(_))));
    });
}

#[test]
fn an_event_too_large_for_a_frame_is_refused_and_leaves_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    local(async {
        let journal = Journal::open(config(dir.path()), master()).unwrap();
        let mut recorder = journal.arbiter(0).begin(started().1, AuditMode::Journalled).unwrap();
        assert!(recorder.append(output(1, vec![0; 17 << 20])).is_err());
        recorder.append(attempt(1, "select 1")).unwrap();
        done(recorder.commit().unwrap());
    });
    assert_eq!(
        read(dir.path())
            .0
            .iter()
            .map(|(_, event)| event.seq)
            .collect::<Vec<_>>(),
        [1, 2]
    );
}

#[test]
fn a_folder_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(dir.path()), master()).unwrap();
    assert!(matches!(
        Journal::open(config(dir.path()), master()),
        Err(JournalError::Locked { .. })
    ));
    drop(journal);
    Journal::open(config(dir.path()), master()).unwrap();
}

#[test]
fn another_master_key_is_named_as_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    local(async {
        let journal = Journal::open(config(dir.path()), master()).unwrap();
        let mut recorder = journal.arbiter(0).begin(started().1, AuditMode::Journalled).unwrap();
        done(recorder.commit().unwrap());
    });
    let other = MasterKey::new(&[8; 32]).unwrap();
    let error = SegmentReader::open(&segments(dir.path())[0], &other).err().unwrap();
    assert!(error.to_string().contains("master key"), "{error}");
}
