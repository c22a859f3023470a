//! Figures of a running process: counters, gauges and histograms that cost a hot path one or two relaxed additions on a
//! cache line of its own thread, and the text that Prometheus reads (exposition format 0.0.4).
//!
//! Statics beside what they count; whoever serves them names them. No labels here: each series is a value of its own, so
//! none can grow without bound.

use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Threads that write without meeting each other; more share.
const SHARDS: usize = 8;
/// Upper bounds of a histogram's buckets, in microseconds.
pub const BOUNDS_US: [u64; 14] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000,
];

static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: Cell<usize> = Cell::new(NEXT_SHARD.fetch_add(1, Ordering::Relaxed) % SHARDS);
}

fn own<T>(shards: &[T; SHARDS]) -> &T {
    let [first, ..] = shards;
    shards.get(SHARD.get()).unwrap_or(first)
}

/// Keeps neighbours off each other's cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(AtomicU64);

/// A number that only grows.
#[derive(Debug)]
pub struct Counter([Shard; SHARDS]);

impl Counter {
    #[must_use]
    pub const fn new() -> Self {
        Self([const { Shard(AtomicU64::new(0)) }; SHARDS])
    }

    pub fn add(&self, n: u64) {
        own(&self.0).0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn inc(&self) {
        self.add(1);
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum()
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

/// A number that comes and goes.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
#[repr(align(128))]
struct Observed {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// How long something took, in buckets of `BOUNDS_US`.
#[derive(Debug)]
pub struct Histogram([Observed; SHARDS]);

impl Histogram {
    #[must_use]
    pub const fn new() -> Self {
        Self(
            [const {
                Observed {
                    buckets: [const { AtomicU64::new(0) }; BOUNDS_US.len() + 1],
                    sum_us: AtomicU64::new(0),
                }
            }; SHARDS],
        )
    }

    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let observed = own(&self.0);
        let bucket = BOUNDS_US
            .iter()
            .position(|bound| us <= *bound)
            .unwrap_or(BOUNDS_US.len());
        if let Some(bucket) = observed.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        observed.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// How many there were of each bucket, and the sum in microseconds.
    #[must_use]
    pub fn read(&self) -> ([u64; BOUNDS_US.len() + 1], u64) {
        let mut counts = [0; BOUNDS_US.len() + 1];
        let mut sum_us = 0;
        for observed in &self.0 {
            for (count, bucket) in counts.iter_mut().zip(&observed.buckets) {
                *count += bucket.load(Ordering::Relaxed);
            }
            sum_us += observed.sum_us.load(Ordering::Relaxed);
        }
        (counts, sum_us)
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// The text that Prometheus reads. Each family is written once, with all its series.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// A family begins.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _infallible = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn series(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            self.0.push(if place == 0 { '{' } else { ',' });
            let text = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _infallible = write!(self.0, "{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _infallible = writeln!(self.0, "{close} {value}");
    }

    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, "", [("", value)]);
    }

    /// One series for each value of `label`.
    pub fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.family(name, "counter", help);
        for (text, value) in values {
            let labels = [(label, text)];
            self.series(name, if label.is_empty() { &[] } else { &labels }, value);
        }
    }

    /// Series with several labels.
    pub fn labelled<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, u64)>,
    ) {
        self.family(name, "counter", help);
        for (labels, value) in series {
            self.series(name, &labels, value);
        }
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, "gauge", help);
        self.series(name, &[], value);
    }

    /// A gauge of value 1 whose labels are what it says.
    pub fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        self.family(name, "gauge", help);
        self.series(name, labels, 1);
    }

    /// Seconds; one histogram for each value of `label`, or one alone where it is empty.
    pub fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, &'a Histogram)>,
    ) {
        self.family(name, "histogram", help);
        for (text, histogram) in values {
            let (counts, sum_us) = histogram.read();
            let own = (!label.is_empty()).then_some((label, text));
            let mut total = 0;
            let bounds = BOUNDS_US.iter().map(|us| seconds(*us)).chain(["+Inf".to_owned()]);
            for (count, bound) in counts.iter().zip(bounds) {
                total += count;
                let labels: Vec<_> = own.into_iter().chain([("le", bound.as_str())]).collect();
                self.series(&format!("{name}_bucket"), &labels, total);
            }
            let labels: Vec<_> = own.into_iter().collect();
            self.series(&format!("{name}_sum"), &labels, seconds(sum_us));
            self.series(&format!("{name}_count"), &labels, total);
        }
    }

    #[must_use]
    pub fn text(self) -> String {
        self.0
    }
}

/// Microseconds as decimal seconds, without rounding.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_count_apart_and_are_read_together() {
        static COUNTER: Counter = Counter::new();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 3 {
                scope.spawn(|| (0..1000).for_each(|_| COUNTER.inc()));
            }
        });
        assert_eq!(COUNTER.get(), (SHARDS as u64 + 3) * 1000);
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_all() {
        static TOOK: Histogram = Histogram::new();
        for us in [50, 51, 1_000, 40_000_000] {
            TOOK.observe(Duration::from_micros(us));
        }
        let mut out = Exposition::default();
        out.histograms("took_seconds", "How long.", "stage", [("login", &TOOK)]);
        let text = out.text();
        for line in [
            "# TYPE took_seconds histogram",
            "took_seconds_bucket{stage=\"login\",le=\"0.00005\"} 1",
            "took_seconds_bucket{stage=\"login\",le=\"0.0001\"} 2",
            "took_seconds_bucket{stage=\"login\",le=\"0.001\"} 3",
            "took_seconds_bucket{stage=\"login\",le=\"30\"} 3",
            "took_seconds_bucket{stage=\"login\",le=\"+Inf\"} 4",
            "took_seconds_sum{stage=\"login\"} 40.001101",
            "took_seconds_count{stage=\"login\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn labels_are_escaped_and_families_are_told_apart() {
        let mut out = Exposition::default();
        out.info("build_info", "What runs.", &[("version", "1\"\\\n"), ("b", "c")]);
        out.counter("a_total", "A.", 3);
        let expected = "# HELP build_info What runs.\n# TYPE build_info gauge\n\
            build_info{version=\"1\\\"\\\\\\n\",b=\"c\"} 1\n# HELP a_total A.\n# TYPE a_total counter\na_total 3\n";
        assert_eq!(out.text(), expected);
    }
}
