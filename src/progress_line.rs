//! What a person sees while `assay run` works: one line on a terminal, one log record every ten seconds elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::metrics::Metrics;
use crate::pipeline::{Parts, Progress, Snapshot};

/// Draws the sum over all jobs.
pub struct ProgressLine {
    jobs: Vec<(String, Arc<Progress>, Arc<Metrics>)>,
    bar: Option<ProgressBar>,
    drawn: Instant,
    logged: Instant,
    written: u64,
    rate: f64,
}

impl ProgressLine {
    pub fn new(terminal: bool, parts: &[Parts]) -> Self {
        let jobs = parts.iter().map(|parts| (parts.job.name.clone(), parts.progress.clone(), parts.metrics.clone()));
        let bar = terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is valid"));
            bar
        });
        let now = Instant::now();
        Self { jobs: jobs.collect(), bar, drawn: now, logged: now, written: 0, rate: 0.0 }
    }

    /// Brings the line up to date.
    pub fn draw(&mut self) {
        let (snapshot, lag) = self.total();
        let now = Instant::now();
        let seconds = now.duration_since(self.drawn).as_secs_f64();
        if seconds > 0.05 {
            let rate = (snapshot.written() - self.written) as f64 / seconds;
            // Commits come in bursts: smooth over about two seconds.
            self.rate += (rate - self.rate) * (seconds / 2.0).min(1.0);
            (self.drawn, self.written) = (now, snapshot.written());
        }
        if let Some(bar) = &self.bar {
            bar.set_message(line(&snapshot, lag, self.rate));
            bar.tick();
        } else if now.duration_since(self.logged) >= Duration::from_secs(10) {
            self.logged = now;
            let Snapshot { annotated, removed, rejected, in_flight, .. } = snapshot;
            tracing::info!(annotated, removed, rejected, in_flight, lag, assets_per_second = self.rate, "progress");
        }
    }

    /// Takes the line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn total(&self) -> (Snapshot, u64) {
        let mut total = Snapshot::default();
        let mut lag = 0;
        for (job, progress, metrics) in &self.jobs {
            let one = progress.snapshot();
            total.received += one.received;
            total.annotated += one.annotated;
            total.removed += one.removed;
            total.rejected += one.rejected;
            total.in_flight += one.in_flight;
            lag += metrics.total_lag(job);
        }
        (total, lag)
    }
}

fn line(snapshot: &Snapshot, lag: u64, rate: f64) -> String {
    format!(
        "{} written  {} assets/s  lag {}  in flight {}  rejected {}",
        HumanCount(snapshot.written()),
        HumanCount(rate.max(0.0) as u64),
        HumanCount(lag),
        HumanCount(snapshot.in_flight),
        HumanCount(snapshot.rejected),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_rate_lag_and_rejections() {
        let snapshot = Snapshot { received: 5000, annotated: 4000, removed: 1, rejected: 2, in_flight: 997 };
        assert_eq!(
            line(&snapshot, 12_000, 1234.5),
            "4,003 written  1,234 assets/s  lag 12,000  in flight 997  rejected 2"
        );
    }
}
