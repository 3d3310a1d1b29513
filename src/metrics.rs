//! Every Prometheus metric of a worker, registered once and passed around as one [`Metrics`].
//!
//! Names end in `_total`, `_seconds` or `_bytes`. No asset id, URL or offset is ever a label. Invariant: every metric has
//! a [`Description`], from which the written list is made.

mod registrar;

use prometheus::{
    CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

use self::registrar::{Registrar, named};

pub use self::registrar::{Description, MetricKind};

/// Handles of all metrics; [`Metrics::descriptions`] says what each is.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    descriptions: Vec<Description>,
    pub start_timestamp_seconds: Gauge,
    pub records_total: IntCounterVec,
    pub outcomes_total: IntCounterVec,
    pub rejections_total: IntCounterVec,
    pub in_flight_assets: IntGaugeVec,
    pub lag_records: IntGaugeVec,
    pub flow_paused: IntGaugeVec,
    pub rebalances_total: IntCounterVec,
    pub rows_committed_total: IntCounterVec,
    pub commit_seconds: HistogramVec,
    pub commit_retries_total: IntCounterVec,
    pub fenced_partitions_total: IntCounterVec,
    pub last_commit_timestamp_seconds: GaugeVec,
    pub media_read_bytes_total: IntCounter,
    pub media_fetch_seconds: Histogram,
    pub media_errors_total: IntCounterVec,
    pub prepare_seconds: Histogram,
    pub batch_tokens: Histogram,
    pub waiting_requests: IntGauge,
    pub device_seconds_total: CounterVec,
    pub device_alive: Gauge,
    pub engine_step_seconds: HistogramVec,
    pub vision_seconds_total: CounterVec,
    pub mask_seconds_total: CounterVec,
    pub running_sequences: IntGaugeVec,
    pub waiting_sequences: IntGaugeVec,
    pub kv_blocks: IntGaugeVec,
    pub preemptions_total: IntCounterVec,
    pub prefix_cache_tokens_total: IntCounterVec,
    pub vision_cache_total: IntCounterVec,
    pub prompt_tokens_total: IntCounterVec,
    pub generated_tokens_total: IntCounterVec,
    pub finished_sequences_total: IntCounterVec,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    #[rustfmt::skip]
    #[allow(clippy::too_many_lines, reason = "a table: one entry for each metric")]
    pub fn new() -> Self {
        let register = Registrar::default();
        let start_timestamp_seconds = register.fractional_gauge(
            named("assay_start_timestamp_seconds", "Unix time", "When the models were loaded; 0 before."),
        );
        let records_total = register.counters(
            named("assay_records_total", "records", "Records read from the source.").by(&["job"]),
        );
        let outcomes_total = register.counters(
            named(
                "assay_outcomes_total",
                "assets",
                "Outcomes that are durable. Outcome: annotated, removed, rejected.",
            ).by(&["job", "outcome"]),
        );
        let rejections_total = register.counters(
            named("assay_rejections_total", "assets", "Rejected assets.").by(&["job", "stage", "reason"]),
        );
        let in_flight_assets = register.gauges(
            named("assay_in_flight_assets", "assets", "Assets between source and commit.").by(&["job"]),
        );
        let lag_records = register.gauges(
            named(
                "assay_lag_records",
                "records",
                "Records behind the end of each assigned partition.",
            ).by(&["job", "topic", "partition"]),
        );
        let flow_paused = register.gauges(
            named("assay_flow_paused", "0 or 1", "1 while delivery is paused for want of permits.").by(&["job"]),
        );
        let rebalances_total = register.counters(
            named(
                "assay_rebalances_total",
                "changes",
                "Changes of the assignment. Kind: assigned, revoked.",
            ).by(&["job", "kind"]),
        );
        let rows_committed_total = register.counters(
            named(
                "assay_rows_committed_total",
                "rows",
                "Rows written. Table: results, rejections.",
            ).by(&["job", "table"]),
        );
        let commit_seconds = register.histograms(
            named("assay_commit_seconds", "seconds", "Time of one commit over both tables.").by(&["job"]), seconds(),
        );
        let commit_retries_total = register.counters(
            named(
                "assay_commit_retries_total",
                "attempts",
                "Commits tried again. Cause: conflict (another writer came first), unavailable (the store did not answer).",
            ).by(&["job", "cause"]),
        );
        let fenced_partitions_total = register.counters(
            named(
                "assay_fenced_partitions_total",
                "partitions",
                "Partitions lost to another writer at commit time.",
            ).by(&["job"]),
        );
        let last_commit_timestamp_seconds = register.fractional_gauges(
            named("assay_last_commit_timestamp_seconds", "Unix time", "When the last commit ended.").by(&["job"]),
        );
        let media_read_bytes_total = register.counter(
            named("assay_media_read_bytes_total", "bytes", "Bytes of media read."),
        );
        let media_fetch_seconds = register.histogram(
            named("assay_media_fetch_seconds", "seconds", "Time of one attempt to read one medium."), seconds(),
        );
        let media_errors_total = register.counters(
            named("assay_media_errors_total", "attempts", "Failed attempts to read a medium.").by(&["reason"]),
        );
        let prepare_seconds = register.histogram(
            named(
                "assay_prepare_seconds",
                "seconds",
                "CPU time of decoding and preparing one asset's inputs.",
            ), seconds(),
        );
        let batch_tokens = register.histogram(
            named("assay_batch_tokens", "tokens", "Tokens in each batch that the device ran."), tokens(),
        );
        let waiting_requests = register.gauge(
            named("assay_waiting_requests", "requests", "Requests waiting for the device."),
        );
        let device_seconds_total = register.fractional_counters(
            named("assay_device_seconds_total", "seconds", "Device time.").by(&["model"]),
        );
        let device_alive = register.fractional_gauge(
            named("assay_device_alive", "0 or 1", "1 while the device thread lives."),
        );
        let engine_step_seconds = register.histograms(
            named(
                "assay_engine_step_seconds",
                "seconds",
                "Time of one step of a generator. Kind: prefill, decode, mixed.",
            ).by(&["model", "kind"]), seconds(),
        );
        let vision_seconds_total = register.fractional_counters(
            named("assay_vision_seconds_total", "seconds", "Device time of vision towers.").by(&["model"]),
        );
        let mask_seconds_total = register.fractional_counters(
            named(
                "assay_mask_seconds_total",
                "seconds",
                "Time that steps waited for masks of output schemas, beyond their own.",
            ).by(&["model"]),
        );
        let running_sequences = register.gauges(
            named("assay_running_sequences", "sequences", "Answers that are being written.").by(&["model"]),
        );
        let waiting_sequences = register.gauges(
            named("assay_waiting_sequences", "sequences", "Answers that wait for room.").by(&["model"]),
        );
        let kv_blocks = register.gauges(
            named("assay_kv_blocks", "blocks", "Blocks of the key-value cache. State: used, free.").by(&["model", "state"]),
        );
        let preemptions_total = register.counters(
            named("assay_preemptions_total", "sequences", "Answers set back because the cache was full.").by(&["model"]),
        );
        let prefix_cache_tokens_total = register.counters(
            named(
                "assay_prefix_cache_tokens_total",
                "tokens",
                "Prompt tokens at the start of an answer. Result: hit (their keys and values were there), miss.",
            ).by(&["model", "result"]),
        );
        let vision_cache_total = register.counters(
            named(
                "assay_vision_cache_total",
                "pictures",
                "Pictures shown to generators. Result: hit (their features were there), miss.",
            ).by(&["model", "result"]),
        );
        let prompt_tokens_total = register.counters(
            named("assay_prompt_tokens_total", "tokens", "Prompt tokens computed by generators.").by(&["model"]),
        );
        let generated_tokens_total = register.counters(
            named(
                "assay_generated_tokens_total",
                "tokens",
                "Tokens of answers. Kind: sampled, forced (by the output schema).",
            ).by(&["model", "kind"]),
        );
        let finished_sequences_total = register.counters(
            named(
                "assay_finished_sequences_total",
                "sequences",
                "Answers by why they ended. Reason: stop, length, deadline, failed, cancelled.",
            ).by(&["model", "reason"]),
        );
        let (registry, descriptions) = register.finish();
        Self {
            registry, descriptions,
            start_timestamp_seconds, records_total, outcomes_total, rejections_total, in_flight_assets, lag_records,
            flow_paused, rebalances_total, rows_committed_total, commit_seconds, commit_retries_total,
            fenced_partitions_total, last_commit_timestamp_seconds, media_read_bytes_total, media_fetch_seconds,
            media_errors_total, prepare_seconds, batch_tokens, waiting_requests, device_seconds_total, device_alive,
            engine_step_seconds, vision_seconds_total, mask_seconds_total, running_sequences, waiting_sequences, kv_blocks,
            preemptions_total, prefix_cache_tokens_total, vision_cache_total, prompt_tokens_total,
            generated_tokens_total, finished_sequences_total,
        }
    }

    /// What every metric is, in the order in which they are shown.
    pub fn descriptions(&self) -> &[Description] {
        &self.descriptions
    }

    /// All descriptions as a table that is also Markdown.
    pub fn listing(&self) -> String {
        let mut table = "| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n".to_owned();
        for Description { name, kind, unit, labels, meaning } in &self.descriptions {
            table += &format!("| `{name}` | {kind} | {unit} | {} | {meaning} |\n", labels.join(", "));
        }
        table
    }

    /// Records behind the ends of all assigned partitions of a job.
    pub fn total_lag(&self, job: &str) -> u64 {
        use prometheus::core::Collector;
        let is_job = |metric: &prometheus::proto::Metric| {
            metric.get_label().iter().any(|label| label.name() == "job" && label.value() == job)
        };
        let families = self.lag_records.collect();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        metrics.filter(|metric| is_job(metric)).map(|metric| metric.get_gauge().get_value().max(0.0) as u64).sum()
    }

    /// The exposition text of all metrics.
    pub fn render(&self) -> String {
        let mut buffer = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut buffer).expect("a Vec takes every write");
        String::from_utf8(buffer).expect("the text format is UTF-8")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// From half a millisecond to about half a minute.
fn seconds() -> Vec<f64> {
    prometheus::exponential_buckets(0.0005, 2.0, 17).expect("start and factor are valid")
}

/// From 16 to 131,072.
fn tokens() -> Vec<f64> {
    prometheus::exponential_buckets(16.0, 2.0, 14).expect("start and factor are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_metrics_are_registered_and_rendered() {
        let metrics = Metrics::new();
        metrics.records_total.with_label_values(&["a"]).inc_by(3);
        let text = metrics.render();
        assert!(text.contains("assay_records_total{job=\"a\"} 3"));
        assert!(text.contains("assay_device_alive 0"));
    }

    #[test]
    fn the_lag_of_a_job_is_the_sum_over_its_partitions() {
        let metrics = Metrics::new();
        metrics.lag_records.with_label_values(&["a", "assets", "0"]).set(3);
        metrics.lag_records.with_label_values(&["a", "assets", "1"]).set(4);
        metrics.lag_records.with_label_values(&["b", "assets", "1"]).set(50);
        assert_eq!(metrics.total_lag("a"), 7);
    }

    #[test]
    fn names_tell_kind_and_unit_and_every_metric_has_a_meaning() {
        for described in Metrics::new().descriptions() {
            let Description { name, kind, unit, meaning, .. } = described;
            assert!(name.starts_with("assay_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == MetricKind::Counter, "{name}");
            let base = name.trim_end_matches("_total");
            assert_eq!(base.ends_with("_seconds"), matches!(*unit, "seconds" | "Unix time"), "{name}");
            assert_eq!(base.ends_with("_bytes"), *unit == "bytes", "{name}");
            assert!(meaning.ends_with('.') && !unit.is_empty(), "{name}");
        }
    }

    #[test]
    fn the_listing_has_a_row_for_each_metric() {
        let listing = Metrics::new().listing();
        assert_eq!(listing.lines().count(), Metrics::new().descriptions().len() + 2);
        let row =
            "| `assay_kv_blocks` | gauge | blocks | model, state | Blocks of the key-value cache. State: used, free. |";
        assert!(listing.lines().any(|line| line == row), "{listing}");
    }
}
