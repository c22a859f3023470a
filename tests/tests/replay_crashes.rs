//! Replays what fuzzing has found at the agents' door (tests/fuzz/crashes/<target>/), and faults in what is really said
//! there, through the fuzz targets' own entry points.
#![allow(clippy::expect_used, clippy::print_stdout)] // a test: to panic is to fail

#[path = "../fuzz/src/link.rs"]
mod entry;

use std::fs;
use std::path::Path;

use hoop_proto::link::frame::Body;
use hoop_proto::link::{
    AgentMessage, Close, Control, Credit, Dispatch, Eof, Frame, GatewayMessage, Hello, Kill, Open, Ready, Welcome,
    agent_message, control, gateway_message,
};
use proptest::prelude::*;
use prost::Message as _;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 3] = [
    ("agent_key", entry::agent_key),
    ("agent_token", entry::agent_token),
    ("link_messages", entry::link_messages),
];

/// A frame behind its length, as the target takes it.
fn framed(channel: u32, body: Body) -> Vec<u8> {
    let frame = Frame {
        channel,
        body: Some(body),
    }
    .encode_to_vec();
    let length = u16::try_from(frame.len()).unwrap_or(u16::MAX);
    [length.to_be_bytes().as_slice(), &frame].concat()
}

fn session() -> Vec<u8> {
    let open = Open {
        session: vec![7; 16].into(),
        ticket: vec![9; 32].into(),
        kind: "session".into(),
        ..Open::default()
    };
    let control = |body| Body::Control(Control { body: Some(body) });
    [
        framed(0, Body::Open(open)),
        framed(0, control(control::Body::Ready(Ready::default()))),
        framed(1, Body::Data(vec![b'x'; 1000].into())),
        framed(
            1,
            Body::Credit(Credit {
                bytes: 65_536,
                frames: 256,
            }),
        ),
        framed(1, Body::Credit(Credit::default())),
        framed(1, Body::Data(vec![b'y'].into())),
        framed(0, control(control::Body::Kill(Kill::default()))),
        framed(1, Body::Eof(Eof {})),
        framed(0, Body::Close(Close::default())),
    ]
    .concat()
}

/// What agents, gateways and people really say.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let pin = "00112233445566778899aabbccddeeff".repeat(2);
    match name {
        "agent_key" => vec![
            format!("grpcs://prod-eu:eyJraWQiOiJrMSJ9.c2lnbmF0dXJl@gw.example.com:9010?mode=embedded&pin={pin},{pin}")
                .into(),
            b"grpcs://a:t@[2001:db8::1]\n".to_vec(),
        ],
        "agent_token" => {
            vec![b"eyJraWQiOiJrMSJ9.c2lnbmF0dXJlc2lnbmF0dXJlc2lnbmF0dXJlc2lnbmF0dXJlc2lnbmF0dXJlc2lnbmF0dXJl".to_vec()]
        }
        _ => {
            let hello = AgentMessage {
                body: Some(agent_message::Body::Hello(Hello {
                    version: "0.1.0".into(),
                    protocols: vec!["postgres".into()],
                    capabilities: vec!["postgres.cancel".into()],
                    instance: vec![1; 16].into(),
                    ..Hello::default()
                })),
            };
            let gateway = |body| GatewayMessage { body: Some(body) }.encode_to_vec();
            let welcome = gateway(gateway_message::Body::Welcome(Welcome {
                replicas: vec![vec![1; 16].into(), vec![2; 16].into()],
                ..Welcome::default()
            }));
            let dispatch = gateway(gateway_message::Body::Dispatch(Dispatch {
                session: vec![3; 16].into(),
                ..Dispatch::default()
            }));
            let behind = |choice: u8, message: Vec<u8>| [&[choice][..], &message].concat();
            vec![
                behind(0, hello.encode_to_vec()),
                behind(1, welcome),
                behind(1, dispatch),
                behind(2, session()),
            ]
        }
    }
}

#[test]
fn every_crash_found_stays_mended() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/crashes").join(name);
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("a crash").path();
            println!("{}", path.display());
            target(&fs::read(&path).expect("a crash"));
        }
    }
}

#[test]
fn what_is_really_said_passes() {
    for (name, target) in TARGETS {
        for seed in seeds(name) {
            target(&seed);
        }
    }
}

#[test]
fn a_stream_of_single_bytes_without_credit_is_ended() {
    let flood = framed(1, Body::Data(vec![b'z'].into())).repeat(100_000);
    entry::link_messages(&[&[2][..], &flood].concat());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
        for (_, target) in TARGETS {
            target(&data);
        }
    }

    #[test]
    fn seeds_with_faults_never_panic(
        target in prop::sample::select(TARGETS.to_vec()),
        seed in any::<prop::sample::Index>(),
        faults in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
    ) {
        let seeds = seeds(target.0);
        let mut data = seeds[seed.index(seeds.len())].clone();
        for (index, byte, cut) in faults {
            let index = index.index(data.len());
            if cut {
                data.drain(index..(index + usize::from(byte)).min(data.len()));
                data.push(byte);
            } else {
                data[index] = byte;
            }
        }
        target.1(&data);
    }
}
