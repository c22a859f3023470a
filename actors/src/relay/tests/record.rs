//! What is recorded, when, and what is cut.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_statement_is_recorded_before_it_is_forwarded_and_its_result_before_it_is_seen() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        assert_eq!(rig.target_gets().await, "one\n");
        assert_eq!(rig.record.story(), ["attempt 1 one"]);
        assert_eq!(rig.record.0.commits.get(), 1);
        rig.target_says("a\nb\n.\n").await;
        assert_eq!(rig.client_gets().await, "a\nb\n.\n");
        assert_eq!(rig.record.story(), ["attempt 1 one", "output 1 a\nb", "outcome 1 ok"]);
        assert_eq!(rig.record.0.commits.get(), 1, "results need no commit");
        assert_eq!(rig.counters.statements.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_came_with_the_start_up_is_the_first_batch_and_a_batch_has_one_commit() {
    local(async {
        let mut rig = start(Setup {
            early: "one\ntwo\n",
            ..Setup::default()
        });
        assert_eq!(rig.target_gets().await, "one\n");
        assert_eq!(rig.target_gets().await, "two\n");
        assert_eq!(rig.record.story(), ["attempt 1 one", "attempt 2 two"]);
        assert_eq!(rig.record.0.commits.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forwarded_before_a_slow_commit_is_done() {
    local(async {
        let mut rig = start(Setup::default());
        rig.record.0.slow.set(Some(Duration::from_secs(3)));
        let before = Instant::now();
        rig.says("one\n").await;
        assert_eq!(rig.target_gets().await, "one\n");
        assert!(before.elapsed() >= Duration::from_secs(3));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_kept_ends_the_session_before_anything_is_forwarded() {
    local(async {
        let mut rig = start(Setup::default());
        rig.record.0.fail.set(true);
        rig.says("one\n").await;
        assert!(rig.from_gateway.recv().await.is_err());
        assert_eq!(
            rig.client_gets().await,
            "farewell: this session cannot be recorded, so it was ended\n"
        );
        assert_eq!(rig.end().await.0.end, End::RecordFailed);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn results_past_the_limit_leave_a_cut_and_totals_with_a_hash_of_everything() {
    local(async {
        let record = RecordLimits {
            statement_bytes: 100_000,
            session_bytes: 150_000,
            mode: RecordMode::Default,
        };
        let mut rig = start(Setup {
            record,
            ..Setup::default()
        });
        let line = [vec![b'x'; 49_999], vec![b'\n']].concat();
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for id in 1..=3 {
            rig.says("q\n").await;
            rig.target_gets().await;
            for _ in 0..3 {
                rig.target_says(line.clone()).await;
                if id == 1 {
                    context.update(&line);
                }
            }
            rig.target_says(".\n").await;
            let mut got = vec![0; 150_002];
            rig.client.read_exact(&mut got).await.unwrap();
        }
        let story: Vec<_> = rig
            .record
            .story()
            .into_iter()
            .filter(|line| !line.starts_with("output"))
            .collect();
        assert_eq!(
            story,
            [
                "attempt 1 q",
                "cut 1 statement 100000",
                "total 1 statement 100000/150000",
                "outcome 1 ok",
                "attempt 2 q",
                "cut 0 session 150000",
                "cut 2 session 50000",
                "total 2 session 50000/150000",
                "outcome 2 ok",
                "attempt 3 q",
                "cut 3 session 0",
                "total 3 session 0/150000",
                "outcome 3 ok",
            ]
        );
        let bodies = rig.record.0.bodies.borrow();
        let totals: Vec<_> = bodies
            .iter()
            .filter_map(|b| {
                if let Body::Cut(c) = b {
                    c.total.then_some(c)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(totals[0].sha256, context.finish().as_ref());
        assert_eq!(totals[0].rows, 3);
        assert_eq!(totals[0].sha256, totals[2].sha256);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn recording_off_leaves_one_cut_a_statement_and_full_leaves_none() {
    local(async {
        for (mode, middle) in [(RecordMode::Off, "total 1 off 0/4"), (RecordMode::Full, "output 1 abc")] {
            let record = RecordLimits {
                statement_bytes: 1,
                session_bytes: 1,
                mode,
            };
            let mut rig = start(Setup {
                record,
                ..Setup::default()
            });
            for text in ["abc\n.\n", ".\n"] {
                rig.says("q\n").await;
                rig.target_gets().await;
                rig.target_says(text).await;
                rig.client_gets().await;
            }
            let mut expected = vec!["attempt 1 q", middle, "outcome 1 ok", "attempt 2 q", "outcome 2 ok"];
            expected.dedup();
            assert_eq!(rig.record.story(), expected);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_small_result_whose_session_is_cut_is_hashed_too() {
    local(async {
        let record = RecordLimits {
            statement_bytes: 10,
            session_bytes: 2,
            mode: RecordMode::Default,
        };
        let mut rig = start(Setup {
            record,
            ..Setup::default()
        });
        rig.says("q\n").await;
        rig.target_gets().await;
        rig.target_says("abc\n.\n").await;
        rig.client_gets().await;
        let bodies = rig.record.0.bodies.borrow();
        let total = bodies
            .iter()
            .find_map(|b| {
                if let Body::Cut(c) = b {
                    c.total.then_some(c)
                } else {
                    None
                }
            })
            .unwrap();
        let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"abc\n");
        assert_eq!(total.sha256, expected.as_ref());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_only_prepared_is_recorded_before_it_is_forwarded_and_is_no_statement() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("?one\n").await;
        assert_eq!(rig.target_gets().await, "?one\n");
        assert_eq!(rig.record.story(), ["prepared 1 ?one"]);
        assert_eq!((rig.record.0.commits.get(), rig.counters.statements.get()), (1, 0));
        rig.target_says(".\n").await;
        rig.client_gets().await;
        assert_eq!(rig.record.story(), ["prepared 1 ?one", "outcome 1 ok"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn input_is_recorded_before_it_is_forwarded() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("copy\n<a\n").await;
        assert_eq!(rig.target_gets().await, "copy\n");
        assert_eq!(rig.record.story(), ["attempt 1 copy", "input 1 <a"]);
        assert_eq!(rig.record.0.commits.get(), 1, "one commit for both");
        assert_eq!(rig.target_gets().await, "<a\n");
        rig.record.0.slow.set(Some(Duration::from_secs(3)));
        let before = Instant::now();
        rig.says("<b\n").await;
        assert_eq!(rig.target_gets().await, "<b\n");
        assert_eq!(before.elapsed(), Duration::from_secs(3));
        rig.target_says(".\n").await;
        rig.client_gets().await;
        let story = ["attempt 1 copy", "input 1 <a", "input 1 <b", "outcome 1 ok"];
        assert_eq!(rig.record.story(), story, "all of it is there, so nothing is cut");
        assert_eq!(rig.counters.statements.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn input_past_the_limit_leaves_a_cut_and_totals_with_a_hash_of_everything_and_costs_no_commit() {
    local(async {
        let record = RecordLimits {
            statement_bytes: 100,
            session_bytes: 150,
            mode: RecordMode::Default,
        };
        let mut rig = start(Setup {
            record,
            ..Setup::default()
        });
        let line = format!("<{}\n", "x".repeat(58));
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for commits in [3, 5] {
            rig.says("copy\n").await;
            rig.target_gets().await;
            for _ in 0..4 {
                rig.says(&line).await;
                assert_eq!(rig.target_gets().await, line);
                context.update(if commits == 3 { line.as_bytes() } else { b"" });
            }
            rig.target_says(".\n").await;
            rig.client_gets().await;
            assert_eq!(rig.record.0.commits.get(), commits, "what appends nothing needs none");
        }
        let story: Vec<_> = rig
            .record
            .story()
            .into_iter()
            .filter(|line| !line.starts_with("input 1") && !line.starts_with("input 2"))
            .collect();
        assert_eq!(
            story,
            [
                "attempt 1 copy",
                "input cut 1 statement 100",
                "input total 1 statement 100/240 in 4",
                "outcome 1 ok",
                "attempt 2 copy",
                "input cut 0 session 150",
                "input cut 2 session 50",
                "input total 2 session 50/240 in 4",
                "outcome 2 ok",
            ]
        );
        let bodies = rig.record.0.bodies.borrow();
        let total = bodies.iter().find_map(|body| match body {
            Body::InputCut(cut) if cut.total => Some(cut),
            _ => None,
        });
        assert_eq!(total.unwrap().sha256, context.finish().as_ref());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn input_of_no_open_statement_is_recorded_as_such_and_is_no_statement() {
    local(async {
        let record = RecordLimits {
            statement_bytes: 3,
            ..RecordLimits::default()
        };
        let mut rig = start(Setup {
            record,
            ..Setup::default()
        });
        rig.says("copy\n").await;
        rig.target_gets().await;
        rig.target_says(".\n").await;
        rig.client_gets().await;
        rig.says("<late\n").await;
        rig.target_gets().await;
        rig.to_gateway.eof();
        let Rig {
            client, relay, record, ..
        } = rig;
        drop(client);
        relay.await.unwrap();
        assert_eq!(
            record.story(),
            [
                "attempt 1 copy",
                "outcome 1 ok",
                "input 0 <la",
                "input cut 0 statement 3",
                "input total 0 statement 3/6 in 1"
            ]
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_its_statement_is_held_is_noticed() {
    local(async {
        let mut rig = start(Setup::default());
        rig.record.0.slow.set(Some(Duration::from_secs(60)));
        rig.says("one\n").await;
        tokio::time::sleep(10 * HELD_AFTER).await;
        rig.says("ahead\n").await;
        let before = Instant::now();
        let Rig {
            client,
            relay,
            record,
            mut from_gateway,
            ..
        } = rig;
        drop(client);
        assert_eq!(relay.await.unwrap().0.end, End::ClientClosed);
        assert_eq!(before.elapsed(), Duration::ZERO, "at once");
        assert!(
            !matches!(from_gateway.recv().await, Ok(Some(_))),
            "nothing was forwarded"
        );
        assert_eq!(record.story(), ["attempt 1 one", "outcome 1 unknown"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_in_a_statements_first_second_is_noticed_at_its_end() {
    local(async {
        let mut rig = start(Setup::default());
        rig.record.0.slow.set(Some(Duration::from_secs(60)));
        rig.says("one\n").await;
        let before = Instant::now();
        drop(rig.client);
        assert_eq!(rig.relay.await.unwrap().0.end, End::ClientClosed);
        assert_eq!(before.elapsed(), HELD_AFTER);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_and_leaves_has_its_statement_run_where_nothing_holds_it() {
    local(async {
        let mut rig = start(Setup::default());
        rig.record.0.slow.set(Some(HELD_AFTER / 2));
        rig.says("one\n").await;
        drop(rig.client);
        let bytes = rig.from_gateway.recv().await.unwrap().unwrap();
        assert_eq!(bytes, "one\n");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn long_texts_are_cut_in_the_record_only() {
    local(async {
        let rig = start(Setup::default());
        let text = "x".repeat(ATTEMPT_TEXT_BYTES + 1);
        let sent = text.clone() + "\n";
        let (mut reader, mut client) = (rig.from_gateway, rig.client);
        spawn_local(async move {
            client.write_all(sent.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut got = 0;
        while got < text.len() + 1 {
            let bytes = reader.recv().await.unwrap().unwrap();
            got += bytes.len();
            reader.consumed(bytes.len());
        }
        let bodies = rig.record.0.bodies.borrow();
        let Body::Attempt(attempt) = &bodies[0] else {
            panic!("{:?}", bodies[0])
        };
        assert!(attempt.text_cut);
        assert_eq!(
            (attempt.text.len(), attempt.text_bytes),
            (ATTEMPT_TEXT_BYTES, text.len() as u64)
        );
        let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        assert_eq!(attempt.text_sha256, expected.as_ref());
        rig.relay.abort();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_note_from_outside_enters_the_record() {
    local(async {
        let mut rig = start(Setup::default());
        let body = Body::Control(evidence::Control {
            kind: "cancel".into(),
            by: "client".into(),
        });
        assert!(rig.control.note(body));
        rig.says("one\n").await;
        rig.target_gets().await;
        assert_eq!(rig.record.story(), ["control cancel by client", "attempt 1 one"]);
    })
    .await;
}
