//! Named points at which a test kills this process. Without the cargo feature `faults` they are nothing at all.
//!
//! `HOOP_FAULT=name:n` ends the process, as `kill -9` would, when the named point is reached the n-th time.

/// Ends the process here where `HOOP_FAULT` says so. The name is told on standard error first, as proof of the hit.
#[cfg(feature = "faults")]
pub fn point(name: &str) {
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ARMED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static HITS: AtomicU64 = AtomicU64::new(0);

    let armed = ARMED.get_or_init(|| {
        let value = std::env::var("HOOP_FAULT").ok()?;
        let (name, count) = value.split_once(':').unwrap_or((&value, "1"));
        Some((name.to_owned(), count.parse().unwrap_or(1)))
    });
    if let Some((armed, count)) = armed
        && armed == name
        && HITS.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        let _ = writeln!(std::io::stderr(), "fault point {name} reached");
        std::process::abort();
    }
}

/// Nothing: this build has no fault points.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn point(_name: &str) {}
