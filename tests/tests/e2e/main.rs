//! End to end: real clients, real servers, the real binaries. Each test starts what it needs on ports of its own.

mod certificates;
mod changes;
mod checkpoints;
mod configuration;
mod connections;
mod crashes;
mod door;
mod drivers;
mod evidence;
mod hostile;
mod hostile_agent;
mod import;
mod kills;
mod lifetimes;
mod master_key;
mod proxies;
mod psql;
mod recording;
mod refusals;
mod replicas;
mod rules;
mod stalled;
mod store_away;
mod tls;
mod tools;
mod trials;
