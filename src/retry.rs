//! Backing off from a dependency that is down: exponential delays with full jitter, never an end of patience.
//!
//! Whether to try again at all is the caller's decision, by blame; this file only says how long to wait.

use std::time::Duration;

use rand::Rng;
use serde::{Deserialize, Serialize};

/// How long to wait between attempts.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The upper bound of the first wait.
    #[serde(with = "humantime_serde")]
    pub initial: Duration,
    /// The upper bound of every wait.
    #[serde(with = "humantime_serde")]
    pub maximum: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { initial: Duration::from_millis(100), maximum: Duration::from_secs(20) }
    }
}

/// The waits of one series of attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    options: Options,
    attempts: u32,
}

impl Backoff {
    pub fn new(options: Options) -> Self {
        Self { options, attempts: 0 }
    }

    /// How many waits have been handed out.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The next wait: uniform between half of and the whole of a bound that doubles each time up to the maximum.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.options.initial.saturating_mul(1 << self.attempts.min(20)).min(self.options.maximum);
        self.attempts = self.attempts.saturating_add(1);
        bound.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Waits for [`Self::next_delay`], or for `at_least` when the dependency asked for more.
    pub async fn wait(&mut self, at_least: Option<Duration>) {
        let delay = self.next_delay().max(at_least.unwrap_or_default());
        tokio::time::sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_maximum_and_stay_there() {
        let options = Options { initial: Duration::from_millis(10), maximum: Duration::from_millis(80) };
        let mut backoff = Backoff::new(options);
        let delays: Vec<_> = (0..40).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] <= Duration::from_millis(10));
        assert!(delays.iter().all(|delay| *delay <= Duration::from_millis(80)));
        assert!(delays[10..].iter().all(|delay| *delay >= Duration::from_millis(40)));
    }
}
