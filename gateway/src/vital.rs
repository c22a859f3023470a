//! `Vital`: held by an actor whose state cannot be rebuilt. Its loss begins the process's shutdown (fail closed).

use hoop_actors::shutdown::Trigger;

pub struct Vital {
    why: &'static str,
    trigger: Trigger,
}

impl Vital {
    /// `why` says what was lost.
    #[must_use]
    pub fn new(why: &'static str, trigger: &Trigger) -> Self {
        Self {
            why,
            trigger: trigger.clone(),
        }
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.trigger.has_begun() {
            tracing::error!(why = self.why, "a vital part is gone");
            self.trigger.begin(self.why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_loss_of_a_vital_part_begins_the_shutdown_once() {
        let trigger = Trigger::default();
        drop(Vital::new("one", &trigger));
        assert_eq!(trigger.begun().await, "one");
        drop(Vital::new("two", &trigger));
        assert_eq!(trigger.begun().await, "one");
    }
}
