//! What stages say, and holds.

use super::*;

#[tokio::test(start_paused = true)]
async fn any_refusal_wins_and_every_verdict_is_on_record() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![
            Box::new(ByText("reviews", |text| match text {
                "drop" => Verdict::Hold("r1".into()),
                _ => Verdict::Forward,
            })),
            Box::new(ByText("rbac", |text| {
                if text == "drop" {
                    refuse("not yours")
                } else {
                    Verdict::Forward
                }
            })),
        ];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("drop\n").await;
        assert_eq!(rig.client_gets().await, "refused: not yours\n");
        rig.says("select\n").await;
        assert_eq!(rig.target_gets().await, "select\n");
        assert_eq!(
            rig.record.story(),
            [
                "attempt 1 drop [reviews=hold rbac=refuse]",
                "outcome 1 refused",
                "attempt 2 select [reviews=forward rbac=forward]"
            ]
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_held_statement_waits_for_its_release() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![Box::new(ByText("reviews", |_| Verdict::Hold("r1".into())))];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("one\n").await;
        assert_eq!(rig.client_gets().await, "notice: waiting for review r1\n");
        rig.says("two\n").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!((rig.counters.held.get(), rig.record.story().len()), (1, 0));
        assert!(
            rig.control.release(Release {
                review: "r0".into(),
                decision: Err(client_closed())
            }),
            "another's"
        );
        assert!(rig.control.release(Release {
            review: "r1".into(),
            decision: Ok(())
        }));
        assert_eq!(rig.target_gets().await, "one\n");
        assert_eq!(rig.client_gets().await, "notice: waiting for review r1\n");
        rig.target_says(".\n").await;
        assert_eq!(
            rig.client_gets().await,
            ".\n",
            "the target is heard while a statement is held"
        );
        let no = Refusal::new(End::Refused, "rejected by rita", "");
        assert!(rig.control.release(Release {
            review: "r1".into(),
            decision: Err(no)
        }));
        assert_eq!(rig.client_gets().await, "refused: rejected by rita\n");
        assert_eq!(rig.record.story()[2], "attempt 2 two [reviews=hold reviews=refuse]");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_ends_at_its_limit_and_sooner_while_it_keeps_locks() {
    local(async {
        let stage = || -> Vec<Box<dyn Stage>> {
            vec![Box::new(ByText("reviews", |text| match text {
                "held" => Verdict::Hold("r1".into()),
                _ => Verdict::Forward,
            }))]
        };
        for (first, seconds) in [("", 3600), ("open\n", 60)] {
            let mut rig = start(Setup {
                stages: stage(),
                ..Setup::default()
            });
            if !first.is_empty() {
                rig.says(first).await;
                rig.target_gets().await;
            }
            let before = Instant::now();
            rig.says("held\n").await;
            rig.client_gets().await;
            assert_eq!(
                rig.client_gets().await,
                format!("refused: review r1 was not decided within {seconds} s\n")
            );
            assert_eq!(before.elapsed().as_secs(), seconds);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_during_a_hold_is_noticed() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![Box::new(ByText("reviews", |_| Verdict::Hold("r1".into())))];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("one\n").await;
        rig.client_gets().await;
        let Rig {
            client, relay, record, ..
        } = rig;
        drop(client);
        assert_eq!(relay.await.unwrap().0.end, End::ClientClosed);
        assert_eq!(record.story().len(), 0, "nothing was attempted");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_panics_ends_the_session_and_nothing_is_forwarded() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![Box::new(ByText("broken", |_| panic!("on purpose")))];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("one\n").await;
        assert!(rig.from_gateway.recv().await.is_err());
        assert!(rig.client_gets().await.contains("\"broken\" failed"));
        assert_eq!(rig.end().await.0.end, End::StageFailed);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_never_answers_ends_the_session_in_time() {
    struct Mute;
    impl Stage for Mute {
        fn name(&self) -> &'static str {
            "mute"
        }
        fn interest(&self) -> Interest {
            Interest {
                statements: true,
                ..Interest::default()
            }
        }
        fn judge(&mut self, _: Direction, _: &[Event]) -> LocalBoxFuture<'static, Vec<Verdict>> {
            Box::pin(std::future::pending())
        }
    }
    local(async {
        let mut rig = start(Setup {
            stages: vec![Box::new(Mute)],
            ..Setup::default()
        });
        rig.says("one\n").await;
        assert_eq!(rig.end().await.0.end, End::StageFailed);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_replacement_that_no_codec_can_make_is_refused() {
    local(async {
        let stages: Vec<Box<dyn Stage>> = vec![Box::new(ByText("mask", |_| {
            Verdict::Replace(Box::new(Event::Notice {
                kind: "",
                text: String::new(),
            }))
        }))];
        let mut rig = start(Setup {
            stages,
            ..Setup::default()
        });
        rig.says("one\n").await;
        assert!(
            rig.client_gets()
                .await
                .starts_with("refused: a policy wants to change this")
        );
    })
    .await;
}

/// A stage that refuses long input, and where it says so what it did not ask for.
struct NoInput {
    unasked: bool,
}

impl Stage for NoInput {
    fn name(&self) -> &'static str {
        "no-input"
    }
    fn interest(&self) -> Interest {
        Interest {
            input: true,
            ..Interest::default()
        }
    }
    fn judge(&mut self, _: Direction, events: &[Event]) -> LocalBoxFuture<'static, Vec<Verdict>> {
        let verdict = |event: &Event| match event {
            Event::Input { span, .. } if span.len() > 3 => refuse("too long"),
            Event::Prepared(_) if self.unasked => refuse("unasked"),
            _ => Verdict::Forward,
        };
        let verdicts = events.iter().map(verdict).collect();
        Box::pin(async move { verdicts })
    }
}

#[tokio::test(start_paused = true)]
async fn refused_input_is_not_recorded_as_sent_nor_is_what_follows_it() {
    local(async {
        let mut rig = start(Setup {
            stages: vec![Box::new(NoInput { unasked: false })],
            ..Setup::default()
        });
        rig.says("copy\n<a\n").await;
        rig.target_gets().await;
        rig.target_gets().await;
        rig.says("<long\n<b\n").await;
        rig.target_gets().await;
        assert_eq!(rig.record.story(), ["attempt 1 copy [no-input=forward]", "input 1 <a"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_nothing_carries_out_ends_the_session() {
    local(async {
        let mut rig = start(Setup {
            stages: vec![Box::new(NoInput { unasked: true })],
            ..Setup::default()
        });
        rig.says("copy\n?one\n<a\n").await;
        assert!(rig.from_gateway.recv().await.is_err());
        assert_eq!(rig.end().await.0.end, End::StageFailed);
    })
    .await;
}
