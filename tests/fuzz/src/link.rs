//! How fuzzed bytes enter what is read on port 8010 before an agent is believed, and the agent's own key. Shared by the fuzz
//! targets and by `tests/tests/replay_crashes.rs`.

use std::convert::Infallible;
use std::task::{Context, Waker};

use bytes::Bytes;
use futures_util::stream;
use hoop_actors::mux::{INITIAL_WINDOW_BYTES, Mux, MuxConfig, MuxEvent};
use hoop_agent::key::AgentKey;
use hoop_proto::link::{AgentMessage, Frame, GatewayMessage};
use hoop_store::agents::token_agent;
use prost::Message;

/// A public key whose private half nobody has: no token is good.
const PUBLIC_KEY: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e, 0xe1, 0x72,
    0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

/// A `HOOP_KEY`, as somebody pasted it.
pub fn agent_key(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match AgentKey::parse(&text) {
        Ok(key) => {
            assert!(!key.token().is_empty() && !key.host.is_empty());
            let told = format!("{key:?}");
            // A token of a few characters may well be a part of something else.
            assert!(
                key.token().len() < 16 || !told.contains(key.token()),
                "a key shows its token"
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// An agent's token, as it comes in a request's metadata.
pub fn agent_token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    assert!(token_agent(&text, "k1", &PUBLIC_KEY).is_err(), "nobody holds the key");
}

/// The first messages of Register, of Attach and of Peer. The first byte chooses the reading: one message, or frames of a
/// stream, each behind its length in two bytes.
pub fn link_messages(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    match choice % 3 {
        0 => drop(AgentMessage::decode(rest)),
        1 => drop(GatewayMessage::decode(rest)),
        _ => frames(rest),
    }
}

/// Frames that no peer of ours would send in this order. Whatever they are, the stream ends or goes on, and what it holds
/// stays within its credit.
fn frames(mut data: &[u8]) {
    let mut frames = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (frame, rest) = rest.split_at(length);
        data = rest;
        match Frame::decode(Bytes::copy_from_slice(frame)) {
            Ok(frame) => frames.push(Ok::<_, Infallible>(frame)),
            Err(_) => break,
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (mux, _outbox) = Mux::start(stream::iter(frames), MuxConfig::default());
        let (mut reader, _writer) = mux.channel(1).split();
        let mut cx = Context::from_waker(Waker::noop());
        let mut drive = mux.drive();
        // A poll takes in a bounded number of frames.
        while mux.ended().is_none() {
            drive.poll(&mut cx);
        }
        while let Some(event) = mux.take_event() {
            if let MuxEvent::Lost(error) = event {
                assert!(!error.refusal().message.is_empty());
            }
        }
        let mut held = 0;
        while let std::task::Poll::Ready(Ok(Some(bytes))) = reader.poll_recv(&mut cx) {
            held += bytes.len() as u64;
        }
        assert!(
            held <= INITIAL_WINDOW_BYTES,
            "{held} bytes were taken in without credit"
        );
    });
}
