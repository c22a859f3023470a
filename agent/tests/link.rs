//! The agent against a gateway of a few lines: linking, sessions from Dispatch to Close, draining.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hoop_actors::mux::{LinkError, Mux, MuxEvent};
use hoop_proto::end::{End, Refusal};
use hoop_proto::link::agent_message::Body as FromAgent;
use hoop_proto::link::control::Body as ControlBody;
use hoop_proto::link::gateway_message::Body as FromGateway;
use hoop_proto::link::{Cancel, Control, Drain, Kill, Ready, Replicas};
use support::authority::Authority;
use support::gateway::{Gateway, Linked, agent, next, target};
use support::target::{Behaviour, EchoTarget, PROCESS_ID, SECRET};
use tokio::time::timeout;

const ONE_ARBITER: &str = "arbiters = 1\n";
const WAIT: Duration = Duration::from_secs(20);

async fn ready(mux: &Mux) -> Ready {
    match next(mux).await {
        MuxEvent::Control(0, control) => match control.body {
            Some(ControlBody::Ready(ready)) => ready,
            other => panic!("not ready: {other:?}"),
        },
        other => panic!("not ready: {other:?}"),
    }
}

async fn closed(mux: &Mux) -> Option<Refusal> {
    match next(mux).await {
        MuxEvent::Close(refusal) => refusal,
        other => panic!("not closed: {other:?}"),
    }
}

/// A gateway, an agent linked to it, and a session at `behaviour`'s target that is ready.
async fn session(behaviour: Behaviour) -> (Gateway, Linked, EchoTarget, hoop_agent::run::Agent, Mux) {
    let mut gateway = Gateway::start(&Authority::new(), 1, 1).await;
    let agent = agent(&gateway.key, ONE_ARBITER);
    let linked = gateway.link().await;
    let echo = EchoTarget::start(behaviour).await;
    linked.dispatch(target(echo.address)).await;
    let mux = gateway.attach().await;
    let ready = ready(&mux).await;
    assert_eq!(&ready.greeting[..], b"S\0\0\0\x09a\0bc\0");
    (gateway, linked, echo, agent, mux)
}

#[actix_rt::test]
async fn hello_says_what_the_agent_can_and_who_it_is() {
    let mut gateway = Gateway::start(&Authority::new(), 1, 1).await;
    let _agent = agent(&gateway.key, ONE_ARBITER);
    let linked = gateway.link().await;
    assert_eq!(linked.hello.protocols, ["postgres"]);
    assert_eq!(linked.hello.instance.len(), 16);
    assert_eq!(hex::encode(&linked.hello.instance), linked.instance);
    assert!(linked.hello.capabilities.contains(&"postgres.cancel".to_owned()));
}

#[actix_rt::test]
async fn bytes_flow_both_ways_and_an_orderly_close_closes_the_target() {
    let (_gateway, _linked, _echo, agent, mux) = session(Behaviour::Echo).await;
    let (mut reader, mut writer) = mux.channel(1).split();
    writer.send(Bytes::from_static(b"select 1")).await.unwrap();
    let mut got = Vec::new();
    while got.len() < 8 {
        let bytes = timeout(WAIT, reader.recv()).await.unwrap().unwrap().unwrap();
        reader.consumed(bytes.len());
        got.extend_from_slice(&bytes);
    }
    assert_eq!(got, b"select 1");
    writer.eof();
    assert_eq!(
        timeout(WAIT, reader.recv()).await.unwrap(),
        Ok(None),
        "the target saw the end and closed"
    );
    mux.close(None);
    timeout(WAIT, agent.sessions().idle()).await.unwrap();
}

#[actix_rt::test]
async fn thirty_megabytes_arrive_whole_and_in_order_each_way() {
    const BYTES: usize = 30_000_000;
    let (_gateway, _linked, _echo, _agent, mux) = session(Behaviour::Source(BYTES)).await;
    let (mut reader, _writer) = mux.channel(1).split();
    let mut received = 0_usize;
    while let Some(bytes) = timeout(WAIT, reader.recv()).await.unwrap().unwrap() {
        for (index, byte) in bytes.iter().enumerate() {
            assert_eq!(
                usize::from(*byte),
                (received + index) % 251 % 251,
                "at {}",
                received + index
            );
        }
        received += bytes.len();
        reader.consumed(bytes.len());
    }
    assert_eq!(received, BYTES);

    let (_gateway, _linked, _echo, _agent, mux) = session(Behaviour::Echo).await;
    let (mut reader, mut writer) = mux.channel(1).split();
    let sending = async {
        for number in 0..BYTES / 100_000 {
            writer.send(Bytes::from(vec![number as u8; 100_000])).await.unwrap();
        }
        writer.eof();
    };
    let receiving = async {
        let mut received = 0_usize;
        while let Some(bytes) = timeout(WAIT, reader.recv()).await.unwrap().unwrap() {
            for (index, byte) in bytes.iter().enumerate() {
                assert_eq!(*byte, ((received + index) / 100_000) as u8);
            }
            received += bytes.len();
            reader.consumed(bytes.len());
        }
        received
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert_eq!(received, BYTES);
}

#[actix_rt::test]
async fn a_reader_that_stalls_holds_back_its_own_session_only() {
    let (mut gateway, linked, echo, _agent, stalled) = session(Behaviour::Source(50_000_000)).await;
    linked.dispatch(target(echo.address)).await;
    let busy = gateway.attach().await;
    ready(&busy).await;
    let (mut reader, _writer) = busy.channel(1).split();
    let mut received = 0;
    while let Some(bytes) = timeout(WAIT, reader.recv()).await.unwrap().unwrap() {
        received += bytes.len();
        reader.consumed(bytes.len());
    }
    assert_eq!(received, 50_000_000);
    let (mut reader, _writer) = stalled.channel(1).split();
    let first = timeout(WAIT, reader.recv()).await.unwrap().unwrap().unwrap();
    assert!(!first.is_empty(), "the stalled session lives");
}

#[actix_rt::test]
async fn a_cancel_reaches_the_target_with_its_own_key() {
    let (_gateway, _linked, echo, _agent, mux) = session(Behaviour::Deaf).await;
    let cancel = Cancel {
        process_id: 1,
        secret: Bytes::from_static(b"the client's"),
    };
    mux.control(
        0,
        Control {
            body: Some(ControlBody::Cancel(cancel)),
        },
    )
    .unwrap();
    assert_eq!(
        timeout(WAIT, echo.cancel()).await.unwrap(),
        (PROCESS_ID, SECRET.to_vec())
    );
}

#[actix_rt::test]
async fn a_kill_ends_the_session_at_once_and_cancels_what_runs_though_the_target_is_deaf() {
    let (_gateway, _linked, echo, agent, mux) = session(Behaviour::Deaf).await;
    let (_reader, mut writer) = mux.channel(1).split();
    // More than the socket takes: the agent's writing side is stuck.
    for _ in 0..2 {
        writer.send(Bytes::from(vec![0; 100_000])).await.unwrap();
    }
    let kill = Kill {
        code: "killed".into(),
        message: "by an administrator".into(),
    };
    mux.control(
        0,
        Control {
            body: Some(ControlBody::Kill(kill)),
        },
    )
    .unwrap();
    assert_eq!(closed(&mux).await, None);
    timeout(WAIT, agent.sessions().idle()).await.unwrap();
    assert_eq!(timeout(WAIT, echo.cancel()).await.unwrap().0, PROCESS_ID);
}

#[actix_rt::test]
async fn refusals_of_target_and_agent_arrive_as_close_without_the_host() {
    let mut gateway = Gateway::start(&Authority::new(), 1, 1).await;
    let _agent = agent(
        &gateway.key,
        "arbiters = 1\nallow = [\"127.0.0.0/8:1-60000\"]\ndeny = [\"*:9\"]\n",
    );
    let linked = gateway.link().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut missing = target(free);
    missing.secret = Some(hoop_proto::link::target::Secret::Reference(
        "env:HOOP_TARGET_NOT_THERE".into(),
    ));
    for (wanted, end, words) in [
        (
            target("127.0.0.1:9".parse().unwrap()),
            End::AgentRefused,
            "deny = \"*:9\"",
        ),
        (
            target("169.254.169.254:80".parse().unwrap()),
            End::AgentRefused,
            "metadata",
        ),
        (target(free), End::TargetUnreachable, "test-db"),
        (missing, End::TargetSecretMissing, "HOOP_TARGET_NOT_THERE"),
    ] {
        linked.dispatch(wanted).await;
        let mux = gateway.attach().await;
        let refusal = closed(&mux).await.expect("a reason");
        assert_eq!(refusal.end, end, "{refusal:?}");
        assert!(
            refusal.message.contains(words) && refusal.message.contains("test-agent"),
            "{refusal:?}"
        );
        assert!(
            !refusal.message.contains("127.0.0.1:") && !refusal.message.contains("169.254.169.254"),
            "{refusal:?}"
        );
    }
}

#[actix_rt::test]
async fn an_unknown_protocol_and_too_many_sessions_are_refused_on_the_register_stream() {
    let mut gateway = Gateway::start(&Authority::new(), 1, 1).await;
    let _agent = agent(&gateway.key, "arbiters = 1\nmax_sessions = 1\n");
    let mut linked = gateway.link().await;
    let echo = EchoTarget::start(Behaviour::Echo).await;
    let mut ssh = target(echo.address);
    ssh.protocol = "ssh".into();
    let session = linked.dispatch(ssh).await;
    match linked.hear().await {
        Some(FromAgent::Refused(refused)) => {
            assert_eq!((refused.session, refused.code.as_str()), (session, "agent_refused"));
        }
        other => panic!("{other:?}"),
    }
    linked.dispatch(target(echo.address)).await;
    let mux = gateway.attach().await;
    ready(&mux).await;
    linked.dispatch(target(echo.address)).await;
    match linked.hear().await {
        Some(FromAgent::Refused(refused)) => assert_eq!(refused.code, "too_many_sessions"),
        other => panic!("{other:?}"),
    }
}

#[actix_rt::test]
async fn the_agent_links_every_arbiter_of_every_replica_and_closes_duplicates() {
    let mut gateway = Gateway::start(&Authority::new(), 2, 3).await;
    let agent = agent(&gateway.key, "arbiters = 2\n");
    let mut places = BTreeSet::new();
    let mut links = Vec::new();
    while places.len() < 6 {
        let linked = gateway.link().await;
        places.insert((linked.replica, linked.arbiter));
        links.push(linked);
    }
    assert_eq!(links.len(), 6, "in turns there is no duplicate");
    timeout(WAIT, async {
        while agent.links_held().await < 6 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    // One that is lost is dialled for; the balancer's turn gives the place again or a duplicate.
    let lost = links.remove(0);
    let place = (lost.replica, lost.arbiter);
    drop(lost);
    let again = gateway.link().await;
    assert_eq!(
        (again.replica, again.arbiter),
        place,
        "the seventh dial begins a new round"
    );
}

#[actix_rt::test]
async fn a_duplicate_is_closed_after_its_welcome() {
    let mut gateway = Gateway::start(&Authority::new(), 1, 2).await;
    // The gateway gives the same arbiter in turns of two; a second agent takes every other turn.
    let first = agent(&gateway.key, ONE_ARBITER);
    let one = gateway.link().await;
    let two = gateway.link().await;
    assert_ne!(one.arbiter, two.arbiter);
    one.say(FromGateway::Replicas(Replicas {
        replicas: vec![id(&one), Bytes::copy_from_slice(&[9; 16])],
    }))
    .await;
    let mut duplicate = gateway.link().await;
    assert_eq!(
        duplicate.hear().await.map(|word| format!("{word:?}")),
        None,
        "closed by the agent"
    );
    // The duplicate of the first may be closed before the second link's welcome was taken in.
    let both = async {
        while first.links_held().await != 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(WAIT, both).await.expect("both links are held");
}

fn id(linked: &Linked) -> Bytes {
    Bytes::copy_from_slice(linked.replica.as_bytes())
}

#[actix_rt::test]
async fn a_replica_that_drains_is_replaced_at_once_while_its_sessions_go_on() {
    let (mut gateway, linked, _echo, _agent, mux) = session(Behaviour::Echo).await;
    let before = gateway.dials.load(Ordering::SeqCst);
    linked.say(FromGateway::Drain(Drain { deadline_ms: 5_000 })).await;
    let second = timeout(Duration::from_secs(5), gateway.link())
        .await
        .expect("no new link");
    assert_eq!(second.instance, linked.instance);
    assert_eq!(gateway.dials.load(Ordering::SeqCst), before + 1);
    drop(linked);
    let (mut reader, mut writer) = mux.channel(1).split();
    writer.send(Bytes::from_static(b"still here")).await.unwrap();
    assert_eq!(
        timeout(WAIT, reader.recv()).await.unwrap().unwrap().unwrap(),
        "still here"
    );
}

#[actix_rt::test]
async fn a_stopping_agent_says_so_refuses_the_new_waits_for_the_old_and_ends_them_at_its_deadline() {
    let mut gateway = Gateway::start(&Authority::new(), 1, 1).await;
    let agent = agent(&gateway.key, "arbiters = 1\ndrain_deadline_s = 2\n");
    let mut linked = gateway.link().await;
    let echo = EchoTarget::start(Behaviour::Echo).await;
    linked.dispatch(target(echo.address)).await;
    let mux = gateway.attach().await;
    ready(&mux).await;
    let draining = actix_rt::spawn(agent.drain(std::future::pending()));
    assert!(matches!(linked.hear().await, Some(FromAgent::Draining(_))));
    linked.dispatch(target(echo.address)).await;
    match linked.hear().await {
        Some(FromAgent::Refused(refused)) => assert_eq!(refused.code, "agent_offline"),
        other => panic!("{other:?}"),
    }
    let (mut reader, mut writer) = mux.channel(1).split();
    writer.send(Bytes::from_static(b"still here")).await.unwrap();
    assert_eq!(
        timeout(WAIT, reader.recv()).await.unwrap().unwrap().unwrap(),
        "still here"
    );
    let refusal = closed(&mux).await.expect("a reason");
    assert_eq!(refusal.end, End::Shutdown);
    timeout(WAIT, draining).await.unwrap().unwrap();
}

#[actix_rt::test]
async fn another_authoritys_gateway_is_not_spoken_to() {
    let (authority, other) = (Authority::new(), Authority::new());
    let gateway = Gateway::start(&authority, 1, 1).await;
    let key = gateway.key.replace(&authority.pin(), &other.pin());
    let agent = agent(&key, ONE_ARBITER);
    timeout(WAIT, async {
        while gateway.dials.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it goes on trying");
    assert_eq!((agent.links_held().await, gateway.open()), (0, 0));
}

#[actix_rt::test]
async fn a_gateway_that_dies_ends_its_sessions_and_the_agent_comes_back() {
    let (mut gateway, linked, _echo, agent, mux) = session(Behaviour::Deaf).await;
    gateway.cut();
    timeout(WAIT, agent.sessions().idle()).await.unwrap();
    assert!(matches!(next(&mux).await, MuxEvent::Lost(LinkError::Lost(_))));
    let again = gateway.link().await;
    assert_eq!(again.instance, linked.instance);
}
