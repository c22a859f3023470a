//! The runtime: supervision, sessions, stages, pumps, the credit-controlled link. No SQL, no HTTP, no wire details.
//!
//! - *supervision*: [`keeper`] restarts actors, [`handle`] reaches them, [`backoff`] and [`shutdown`] time it;
//! - *a session*: [`session`] is its actor, [`control`] what it may be told, [`relay`] its two pumps, [`stage`] its
//!   policy chain, [`recorder`] its record;
//! - *the link*: [`mux`] carries channels with credit, within the [`budget`] of the process;
//! - *the door*: [`gate`] caps connections that have not proved who they are; [`scratch`] reads sockets;
//! - *what both programs need of the machine*: [`maybe_tls`] is a socket, [`trust`] says whom a TLS server must be,
//!   [`end_point`] what SCRAM binds to, [`network`] is a list's
//!   entry, [`process`] sets the limits of the whole process;
//! - *figures*: [`metrics`] counts and times.

pub mod backoff;
pub mod budget;
pub mod control;
pub mod end_point;
pub mod gate;
pub mod handle;
pub mod keeper;
pub mod maybe_tls;
pub mod metrics;
pub mod mux;
pub mod network;
pub mod process;
pub mod recorder;
pub mod relay;
pub mod scratch;
pub mod session;
pub mod shutdown;
mod slot;
pub mod stage;
pub mod trust;
