//! Every Prometheus metric of a worker, registered once and passed around as one [`Metrics`].
//!
//! Names end in `_total`, `_seconds` or `_bytes`. No asset id, URL or offset is ever a label.

use prometheus::{
    CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// Handles of all metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Records read from the source. Labels: job.
    pub records_total: IntCounterVec,
    /// Outcomes by kind: annotated, removed, rejected. Labels: job, outcome.
    pub outcomes_total: IntCounterVec,
    /// Rejections. Labels: job, stage, reason.
    pub rejections_total: IntCounterVec,
    /// Assets between source and commit. Labels: job.
    pub in_flight_assets: IntGaugeVec,
    /// Records behind the end of each assigned partition. Labels: job, topic, partition.
    pub lag_records: IntGaugeVec,
    /// 1 while delivery is paused for want of permits. Labels: job.
    pub flow_paused: IntGaugeVec,
    /// Changes of the assignment. Labels: job, kind (assigned, revoked).
    pub rebalances_total: IntCounterVec,
    /// Rows written. Labels: job, table (results, rejections).
    pub rows_committed_total: IntCounterVec,
    /// Time of one commit over both tables. Labels: job.
    pub commit_seconds: HistogramVec,
    /// Commits tried again. Labels: job, cause (conflict, unavailable).
    pub commit_retries_total: IntCounterVec,
    /// Partitions lost to another writer at commit time. Labels: job.
    pub fenced_partitions_total: IntCounterVec,
    /// When the last commit ended, in seconds since the Unix epoch. Labels: job.
    pub last_commit_timestamp_seconds: GaugeVec,
    /// Bytes of media read.
    pub media_read_bytes: IntCounter,
    /// Time of one attempt to read one medium.
    pub media_fetch_seconds: Histogram,
    /// Failed attempts to read a medium. Labels: reason.
    pub media_errors_total: IntCounterVec,
    /// CPU time of decoding and preparing one asset's inputs.
    pub prepare_seconds: Histogram,
    /// Tokens in each batch that the device ran.
    pub batch_tokens: Histogram,
    /// Requests waiting for the device.
    pub waiting_requests: IntGauge,
    /// Time of one step of a generator by what it computed. Labels: model, kind (prefill, decode, mixed).
    pub engine_step_seconds: HistogramVec,
    /// Device time of vision towers. Labels: model.
    pub vision_seconds_total: CounterVec,
    /// Time that steps waited for masks of output schemas. Labels: model.
    pub mask_seconds_total: CounterVec,
    /// Answers that are being written. Labels: model.
    pub running_sequences: IntGaugeVec,
    /// Answers that wait for room. Labels: model.
    pub waiting_sequences: IntGaugeVec,
    /// Blocks of the key-value cache. Labels: model, state (used, free).
    pub kv_blocks: IntGaugeVec,
    /// Prompt tokens at admission by whether their keys and values were there already. Labels: model, result (hit, miss).
    pub prefix_cache_tokens_total: IntCounterVec,
    /// Pictures by whether their features were there already. Labels: model, result (hit, miss).
    pub vision_cache_total: IntCounterVec,
    /// Answers that were set back because the cache was full. Labels: model.
    pub preemptions_total: IntCounterVec,
    /// Tokens of prompts that were computed. Labels: model.
    pub prompt_tokens_total: IntCounterVec,
    /// Tokens of answers. Labels: model, kind (sampled, forced).
    pub generated_tokens_total: IntCounterVec,
    /// Answers by why they ended. Labels: model, reason (stop, length, deadline, failed, cancelled).
    pub finished_sequences_total: IntCounterVec,
    /// Device time. Labels: model.
    pub device_seconds_total: CounterVec,
    /// 1 while the device thread lives.
    pub device_alive: Gauge,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    pub fn new() -> Self {
        let registry = Registry::new();
        let register = Registrar(&registry);
        Self {
            records_total: register.counters("assay_records_total", "Records read from the source.", &["job"]),
            outcomes_total: register.counters("assay_outcomes_total", "Outcomes by kind.", &["job", "outcome"]),
            rejections_total: register.counters(
                "assay_rejections_total",
                "Rejected assets.",
                &["job", "stage", "reason"],
            ),
            in_flight_assets: register.gauges("assay_in_flight_assets", "Assets between source and commit.", &["job"]),
            lag_records: register.gauges(
                "assay_lag_records",
                "Records behind the end of each assigned partition.",
                &["job", "topic", "partition"],
            ),
            flow_paused: register.gauges("assay_flow_paused", "1 while delivery is paused.", &["job"]),
            rebalances_total: register.counters(
                "assay_rebalances_total",
                "Changes of the assignment.",
                &["job", "kind"],
            ),
            rows_committed_total: register.counters("assay_rows_committed_total", "Rows written.", &["job", "table"]),
            commit_seconds: register.histograms("assay_commit_seconds", "Time of one commit.", &["job"]),
            commit_retries_total: register.counters(
                "assay_commit_retries_total",
                "Commits tried again.",
                &["job", "cause"],
            ),
            fenced_partitions_total: register.counters(
                "assay_fenced_partitions_total",
                "Partitions lost to another writer.",
                &["job"],
            ),
            last_commit_timestamp_seconds: register.add(
                GaugeVec::new(
                    Opts::new("assay_last_commit_timestamp_seconds", "When the last commit ended (Unix time)."),
                    &["job"],
                )
                .expect("static name and labels are valid"),
            ),
            media_read_bytes: register
                .add(IntCounter::new("assay_media_read_bytes", "Bytes of media read.").expect("static name is valid")),
            media_fetch_seconds: register.histogram("assay_media_fetch_seconds", "Time of one attempt."),
            media_errors_total: register.counters(
                "assay_media_errors_total",
                "Failed attempts to read a medium.",
                &["reason"],
            ),
            prepare_seconds: register.histogram("assay_prepare_seconds", "CPU time of one asset's inputs."),
            batch_tokens: register.add(
                Histogram::with_opts(
                    HistogramOpts::new("assay_batch_tokens", "Tokens in each batch.")
                        .buckets(prometheus::exponential_buckets(16.0, 2.0, 14).expect("valid buckets")),
                )
                .expect("static name is valid"),
            ),
            waiting_requests: register.add(
                IntGauge::new("assay_waiting_requests", "Requests waiting for the device.")
                    .expect("static name is valid"),
            ),
            engine_step_seconds: register.histograms(
                "assay_engine_step_seconds",
                "Time of one step of a generator.",
                &["model", "kind"],
            ),
            vision_seconds_total: register.seconds("assay_vision_seconds_total", "Device time of vision towers."),
            mask_seconds_total: register.seconds("assay_mask_seconds_total", "Time that steps waited for masks."),
            running_sequences: register.gauges(
                "assay_running_sequences",
                "Answers that are being written.",
                &["model"],
            ),
            waiting_sequences: register.gauges("assay_waiting_sequences", "Answers that wait for room.", &["model"]),
            kv_blocks: register.gauges("assay_kv_blocks", "Blocks of the key-value cache.", &["model", "state"]),
            prefix_cache_tokens_total: register.counters(
                "assay_prefix_cache_tokens_total",
                "Prompt tokens at admission.",
                &["model", "result"],
            ),
            vision_cache_total: register.counters(
                "assay_vision_cache_total",
                "Pictures shown to generators.",
                &["model", "result"],
            ),
            preemptions_total: register.counters(
                "assay_preemptions_total",
                "Answers set back because the cache was full.",
                &["model"],
            ),
            prompt_tokens_total: register.counters(
                "assay_prompt_tokens_total",
                "Prompt tokens computed by generators.",
                &["model"],
            ),
            generated_tokens_total: register.counters(
                "assay_generated_tokens_total",
                "Tokens of answers.",
                &["model", "kind"],
            ),
            finished_sequences_total: register.counters(
                "assay_finished_sequences_total",
                "Answers by why they ended.",
                &["model", "reason"],
            ),
            device_seconds_total: register.seconds("assay_device_seconds_total", "Device time."),
            device_alive: register.add(
                Gauge::new("assay_device_alive", "1 while the device thread lives.").expect("static name is valid"),
            ),
            registry,
        }
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

/// Creates metrics and adds them to the registry; every name occurs once, so registering cannot fail.
struct Registrar<'a>(&'a Registry);

impl Registrar<'_> {
    fn add<M: prometheus::core::Collector + Clone + 'static>(&self, metric: M) -> M {
        self.0.register(Box::new(metric.clone())).expect("every metric is registered once");
        metric
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels).expect("static name and labels are valid"))
    }

    /// A counter of seconds for each model.
    fn seconds(&self, name: &str, help: &str) -> CounterVec {
        self.add(CounterVec::new(Opts::new(name, help), &["model"]).expect("static name and labels are valid"))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels).expect("static name and labels are valid"))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(seconds_buckets());
        self.add(HistogramVec::new(options, labels).expect("static name and labels are valid"))
    }

    fn histogram(&self, name: &str, help: &str) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(seconds_buckets());
        self.add(Histogram::with_opts(options).expect("static name is valid"))
    }
}

/// From half a millisecond to about half a minute.
fn seconds_buckets() -> Vec<f64> {
    prometheus::exponential_buckets(0.0005, 2.0, 17).expect("start and factor are valid")
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
}
