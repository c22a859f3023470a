//! How far a login has come and how long each step took: for who tests a connection.

use std::time::{Duration, Instant};

/// The steps of a login, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The target's secret, where it is a reference.
    Secret,
    /// The target's name.
    Resolve,
    /// This agent's own list of allowed targets.
    Allow,
    Connect,
    Tls,
    /// Up to the target's first ReadyForQuery.
    Login,
    /// One question and its answer, after the login.
    RoundTrip,
}

/// Of one login.
#[derive(Debug)]
pub struct Progress {
    stage: Stage,
    since: Instant,
    took: Vec<(Stage, Duration)>,
    /// What the system said where a step failed. Names the target: for administrators and the log only.
    pub cause: String,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            stage: Stage::Secret,
            since: Instant::now(),
            took: Vec::new(),
            cause: String::new(),
        }
    }
}

impl Progress {
    /// The step before is done.
    pub fn enter(&mut self, stage: Stage) {
        self.done();
        self.stage = stage;
    }

    /// The last step is done.
    pub fn done(&mut self) {
        let now = Instant::now();
        self.took.push((self.stage, now - self.since));
        self.since = now;
    }

    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// How long a step took; zero where it was not done.
    #[must_use]
    pub fn took(&self, stage: Stage) -> Duration {
        let of_stage = self.took.iter().filter(|(known, _)| *known == stage);
        of_stage.map(|(_, took)| *took).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_is_entered_twice_counts_its_whole_time_and_one_that_failed_none() {
        let mut progress = Progress::default();
        progress.enter(Stage::Login);
        std::thread::sleep(Duration::from_millis(2));
        progress.enter(Stage::Tls);
        let first = progress.took(Stage::Login);
        assert!(first >= Duration::from_millis(2));
        progress.enter(Stage::Login);
        std::thread::sleep(Duration::from_millis(2));
        progress.done();
        assert!(progress.took(Stage::Login) >= first + Duration::from_millis(2));
        assert_eq!(progress.took(Stage::RoundTrip), Duration::ZERO);
    }
}
