//! Every way in which a session ends.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_kill_says_farewell_closes_the_link_and_leaves_the_outcome_unknown() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        rig.target_gets().await;
        rig.control.kill(Order {
            refusal: Refusal::new(End::Killed, "ended by ada", ""),
            by: "ada".into(),
        });
        assert_eq!(rig.client_gets().await, "farewell: ended by ada\n");
        assert_eq!(rig.client_gets().await, "", "and then the end");
        let closed = rig.from_gateway.recv().await.unwrap_err();
        assert_eq!(closed.refusal().end, End::Killed);
        assert_eq!(
            rig.record.story(),
            ["attempt 1 one", "control kill by ada", "outcome 1 unknown"]
        );
        assert_eq!(rig.end().await.0.end, End::Killed);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_does_not_hold_up_a_kill_nor_memory() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        rig.target_gets().await;
        let mut writer = rig.agent.channel(0).split().1;
        let sent = Rc::new(Cell::new(0u64));
        let count = sent.clone();
        spawn_local(async move {
            let line = Bytes::from([vec![b'x'; 9_999], vec![b'\n']].concat());
            while writer.send(line.clone()).await.is_ok() {
                count.set(count.get() + 10_000);
            }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(
            sent.get() <= INITIAL_WINDOW_BYTES + 64 * 1024 + 64 * 1024,
            "{}",
            sent.get()
        );
        let before = Instant::now();
        rig.control.kill(Order {
            refusal: Refusal::new(End::Killed, "ended", ""),
            by: "ada".into(),
        });
        let Rig {
            relay, client: _client, ..
        } = rig;
        assert_eq!(relay.await.unwrap().0.end, End::Killed);
        assert!(before.elapsed() <= FAREWELL_LIMIT + Duration::from_millis(10));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_half_closes_gets_the_rest_of_its_result() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        rig.client.shutdown().await.unwrap();
        assert_eq!(rig.target_gets().await, "one\n");
        assert_eq!(rig.target_gets().await, "", "the end is passed on");
        tokio::time::sleep(Duration::from_secs(100)).await;
        rig.target_says("late\n.\n").await;
        rig.to_gateway.eof();
        assert_eq!(rig.client_gets().await, "late\n.\n");
        assert_eq!(rig.client_gets().await, "");
        assert_eq!(rig.record.story().last().unwrap(), "outcome 1 ok");
        assert_eq!(rig.agent.next_event().await, MuxEvent::Close(None));
        let (refusal, counts) = rig.end().await;
        assert_eq!(refusal.end, End::ClientClosed);
        assert_eq!(
            counts,
            Counts {
                statements: 1,
                client_bytes: 4,
                target_bytes: 7
            }
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_closes_ends_the_session_after_its_last_bytes() {
    local(async {
        let mut rig = start(Setup::default());
        rig.target_says("bye\n").await;
        rig.to_gateway.eof();
        let mut all = String::new();
        rig.client.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "bye\nfarewell: the target closed the connection\n");
        let before = Instant::now();
        let Rig {
            relay, client: _client, ..
        } = rig;
        assert_eq!(relay.await.unwrap().0.end, End::TargetClosed);
        assert_eq!(before.elapsed().as_secs(), HALF_CLOSE_LINGER.as_secs());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_agents_reason_reaches_the_client_after_the_data_before_it() {
    local(async {
        let mut rig = start(Setup::default());
        rig.target_says("partial\n").await;
        rig.agent
            .close(Some(&Refusal::new(End::TargetUnreachable, "the target was reset", "")));
        let mut all = String::new();
        rig.client.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "partial\nfarewell: the target was reset\n");
        assert_eq!(rig.end().await.0.end, End::TargetUnreachable);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_from_the_agent_ends_the_session() {
    local(async {
        let mut rig = start(Setup::default());
        let kill = Kill {
            code: "shutdown".into(),
            message: "the agent stops".into(),
        };
        rig.agent
            .control(
                0,
                Control {
                    body: Some(control::Body::Kill(kill)),
                },
            )
            .unwrap();
        assert_eq!(rig.client_gets().await, "farewell: the agent stops\n");
        assert_eq!(rig.end().await.0.end, End::Shutdown);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_violation_is_told_with_its_own_code() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("!\n").await;
        assert_eq!(rig.client_gets().await, "farewell: no line begins with !\n");
        let (refusal, _) = rig.end().await;
        assert_eq!((refusal.end, refusal.sqlstate()), (End::ClientViolation, "08P01"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idleness_is_told_and_a_running_statement_is_not_idle() {
    local(async {
        let mut rig = start(Setup {
            limits: SessionLimits {
                idle: Some(Duration::from_secs(30)),
                ..SessionLimits::default()
            },
            ..Setup::default()
        });
        rig.says("one\n").await;
        rig.target_gets().await;
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        rig.target_says(".\n").await;
        assert_eq!(rig.client_gets().await, ".\n");
        let before = Instant::now();
        tokio::time::sleep(Duration::from_secs(20)).await;
        rig.says("two\n").await;
        rig.target_gets().await;
        rig.target_says(".\n").await;
        rig.client_gets().await;
        assert_eq!(
            rig.client_gets().await,
            "farewell: nothing was sent for 30 s, so the session was ended\n"
        );
        assert_eq!(before.elapsed().as_secs(), 50);
        assert_eq!(rig.end().await.0.end, End::IdleTimeout);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_is_told_and_what_ran_is_unknown() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        rig.target_gets().await;
        rig.transport.abort();
        assert_eq!(rig.client_gets().await, "farewell: the link to the agent was lost\n");
        assert_eq!(rig.record.story(), ["attempt 1 one", "outcome 1 unknown"]);
        assert_eq!(rig.end().await.0.end, End::LinkLost);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_does_not_wait_for_a_client_that_reads_nothing() {
    local(async {
        let mut rig = start(Setup::default());
        rig.target_says([vec![b'x'; 199_999], vec![b'\n']].concat()).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        rig.transport.abort();
        let before = Instant::now();
        let Rig {
            relay, client: _client, ..
        } = rig;
        assert_eq!(relay.await.unwrap().0.end, End::LinkLost);
        assert!(before.elapsed() <= HALF_CLOSE_LINGER + FAREWELL_LIMIT + Duration::from_millis(10));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_dropped_closes_its_link() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("one\n").await;
        rig.target_gets().await;
        rig.relay.abort();
        assert_eq!(rig.from_gateway.recv().await, Ok(None));
        assert_eq!(rig.agent.next_event().await, MuxEvent::Close(None));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_reaches_its_length_between_statements_ends_at_once() {
    local(async {
        let mut rig = start(Setup {
            limits: SessionLimits {
                length: Some(Duration::from_secs(100)),
                ..SessionLimits::default()
            },
            ..Setup::default()
        });
        let began = Instant::now();
        assert_eq!(
            rig.client_gets().await,
            "farewell: this session has lasted 100 s, the longest that its connection allows, so it was ended\n"
        );
        assert_eq!(began.elapsed().as_secs(), 100);
        let (refusal, _) = rig.end().await;
        assert_eq!((refusal.end, refusal.sqlstate()), (End::SessionTooLong, "57P01"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_statement_that_runs_at_the_sessions_length_is_let_finish_within_the_overtime() {
    let limits = SessionLimits {
        length: Some(Duration::from_secs(100)),
        ..SessionLimits::default()
    };
    local(async {
        let mut rig = start(Setup {
            limits,
            ..Setup::default()
        });
        let began = Instant::now();
        rig.says("one\n").await;
        rig.target_gets().await;
        tokio::time::sleep(Duration::from_secs(130)).await;
        rig.target_says(".\n").await;
        assert_eq!(
            rig.client_gets().await,
            ".\nfarewell: this session has lasted 100 s, the longest that its connection allows, so it was ended\n"
        );
        assert_eq!(began.elapsed().as_secs(), 130);
        assert_eq!(rig.end().await.0.end, End::SessionTooLong);
    })
    .await;
    local(async {
        let mut rig = start(Setup {
            limits,
            ..Setup::default()
        });
        let began = Instant::now();
        rig.says("one\n").await;
        rig.target_gets().await;
        assert!(
            rig.client_gets()
                .await
                .starts_with("farewell: this session has lasted 100 s")
        );
        assert_eq!(began.elapsed(), Duration::from_secs(100) + SESSION_OVERTIME);
        assert_eq!(rig.record.story(), ["attempt 1 one", "outcome 1 unknown"]);
    })
    .await;
}

#[tokio::test]
async fn results_beyond_the_limit_are_not_forwarded_and_the_client_is_told() {
    local(async {
        let mut rig = start(Setup {
            limits: SessionLimits {
                result_bytes: Some(10),
                ..SessionLimits::default()
            },
            ..Setup::default()
        });
        rig.says("one\n").await;
        rig.target_gets().await;
        rig.target_says("12345678\n").await;
        assert_eq!(rig.client_gets().await, "12345678\n");
        rig.target_says("more\n").await;
        assert_eq!(
            rig.client_gets().await,
            "farewell: the results of this session exceed its connection's limit of 10 bytes, so it was ended\n"
        );
        let (refusal, _) = rig.end().await;
        assert_eq!((refusal.end, refusal.sqlstate()), (End::ResultLimit, "53400"));
    })
    .await;
}

/// libpq loses a last message that has the end right behind it, and a system that closes on unread bytes resets.
#[tokio::test(start_paused = true)]
async fn the_connection_stays_open_behind_the_last_message_until_the_client_leaves_or_its_rest_is_over() {
    for leaves in [false, true] {
        local(async move {
            let mut rig = start(Setup::default());
            rig.says("one\n").await;
            rig.target_gets().await;
            rig.control.kill(Order {
                refusal: Refusal::new(End::Killed, "ended", ""),
                by: "ada".into(),
            });
            let before = Instant::now();
            assert!(rig.client_gets().await.starts_with("farewell: ended"));
            rig.says("a line that nobody waits for\n").await;
            if leaves {
                rig.client.shutdown().await.unwrap();
            }
            assert_eq!(rig.client_gets().await, "");
            let rest = if leaves { Duration::ZERO } else { FAREWELL_REST };
            assert_eq!(before.elapsed(), rest);
            assert_eq!(rig.end().await.0.end, End::Killed);
        })
        .await;
    }
}
