//! End to end: real clients, real servers, the real binaries. Each test starts what it needs on ports of its own.

mod changes;
mod crashes;
mod drivers;
mod evidence;
mod hostile;
mod hostile_agent;
mod kills;
mod psql;
mod refusals;
mod replicas;
mod stalled;
mod tls;
mod tools;
