//! Contracts: the link's messages, the evidence's events, and the wire codecs.
//!
//! Everything here is sans-IO: bytes and typed values in, bytes and typed values out. No tokio, no actix, no clock, no
//! socket. `gateway` and `agent` own the sockets and drive these machines.

pub mod dialogue;
pub mod end;
pub mod event;
pub mod postgres;
pub mod proxy_protocol;

/// `hoop.v1`: the wire between gateway, agents and replicas.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod link {
    tonic::include_proto!("hoop.v1");
}

/// `hoop.evidence.v1`: what a session's record is made of.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod evidence {
    tonic::include_proto!("hoop.evidence.v1");
}
