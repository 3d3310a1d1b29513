//! What a run measures while it goes on: how long commits take, and how soon partitions move again after a kill.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Samples of where each partition ends in the tables.
#[derive(Debug, Default)]
pub struct Recovery {
    samples: Vec<(Instant, Vec<i64>)>,
    kills: Vec<Instant>,
}

impl Recovery {
    pub fn sample(&mut self, positions: Vec<i64>) {
        self.samples.push((Instant::now(), positions));
    }

    pub fn killed(&mut self) {
        self.kills.push(Instant::now());
    }

    /// For each kill: the time until every partition had moved past where it stood then. Sorted. A kill after which some
    /// partition had nothing left to do is left out.
    pub fn times(&self) -> Vec<Duration> {
        let mut times: Vec<_> = self.kills.iter().filter_map(|at| self.time(*at)).collect();
        times.sort();
        times
    }

    fn time(&self, killed: Instant) -> Option<Duration> {
        let (_, before) = self.samples.iter().rev().find(|(at, _)| *at <= killed)?;
        let moved = |now: &[i64]| now.iter().zip(before).all(|(now, before)| now > before);
        let (at, _) = self.samples.iter().find(|(at, now)| *at > killed && moved(now))?;
        Some(*at - killed)
    }
}

/// The histograms of commit times of all workers, also of those that have ended.
#[derive(Debug, Default)]
pub struct Commits {
    ended: BTreeMap<u64, f64>,
    running: BTreeMap<String, BTreeMap<u64, f64>>,
}

impl Commits {
    /// Takes what a worker tells at its address. A count that falls means that the worker was replaced.
    pub fn take(&mut self, address: &str, exposition: &str) {
        let now: BTreeMap<u64, f64> = exposition.lines().filter_map(bucket).collect();
        let last = self.running.insert(address.to_owned(), now.clone()).unwrap_or_default();
        // A worker that has committed nothing yet tells no bucket at all.
        if last.iter().any(|(limit, last)| now.get(limit).is_none_or(|count| count < last)) {
            add(&mut self.ended, &last);
        }
    }

    /// The upper bound in seconds that a share of the commits kept, and how many commits were seen.
    pub fn quantile(&self, share: f64) -> (f64, u64) {
        let mut all = self.ended.clone();
        self.running.values().for_each(|worker| add(&mut all, worker));
        let total = all.values().copied().fold(0.0, f64::max);
        let found = all.iter().find(|(_, count)| **count >= total * share);
        (found.map_or(f64::NAN, |(limit, _)| f64::from_bits(*limit)), total as u64)
    }
}

fn add(sum: &mut BTreeMap<u64, f64>, more: &BTreeMap<u64, f64>) {
    more.iter().for_each(|(limit, count)| *sum.entry(*limit).or_default() += count);
}

/// The limit of a bucket, as bits that sort like the number, and its count.
fn bucket(line: &str) -> Option<(u64, f64)> {
    let rest = line.strip_prefix("assay_commit_seconds_bucket{")?;
    let (labels, count) = rest.split_once("} ")?;
    let limit = labels.split("le=\"").nth(1)?.trim_end_matches('"');
    let limit: f64 = if limit == "+Inf" { f64::INFINITY } else { limit.parse().ok()? };
    Some((limit.to_bits(), count.parse().ok()?))
}

/// The value below which a share of sorted values lies.
pub fn share_of(sorted: &[Duration], share: f64) -> Duration {
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_of_workers_that_were_replaced_still_count() {
        let told = |fast: u32, all: u32| {
            format!(
                "assay_commit_seconds_bucket{{job=\"j\",le=\"0.1\"}} {fast}\n\
                 assay_commit_seconds_bucket{{job=\"j\",le=\"1\"}} {all}\nassay_commit_seconds_bucket{{job=\"j\",le=\"+Inf\"}} {all}\n"
            )
        };
        let mut commits = Commits::default();
        commits.take("a", &told(9, 10));
        commits.take("a", "");
        commits.take("a", &told(1, 2));
        commits.take("b", &told(5, 5));
        assert_eq!(commits.quantile(0.5), (0.1, 17));
        assert_eq!(commits.quantile(0.99), (1.0, 17));
    }

    #[test]
    fn recovery_is_over_when_every_partition_has_moved() {
        let mut recovery = Recovery::default();
        recovery.sample(vec![5, 5]);
        recovery.killed();
        recovery.sample(vec![9, 5]);
        recovery.sample(vec![9, 6]);
        assert_eq!(recovery.times(), [recovery.samples[2].0 - recovery.kills[0]]);
        recovery.killed();
        assert_eq!(recovery.times().len(), 1, "nothing moved after the second kill");
    }
}
