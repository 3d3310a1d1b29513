//! Creates metrics, adds them to the registry and writes down what each is.
//!
//! It knows no single metric. Invariant: what is registered is described, in the order of registration, so that the
//! written list and the exposition cannot differ.

use std::cell::RefCell;
use std::fmt;

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// How a metric's value moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    Gauge,
    /// Has the series `_bucket`, `_sum` and `_count`.
    Histogram,
}

/// What one metric is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub name: &'static str,
    pub kind: MetricKind,
    pub unit: &'static str,
    pub labels: &'static [&'static str],
    pub meaning: &'static str,
}

/// A metric before it is created.
pub(super) struct Named {
    name: &'static str,
    unit: &'static str,
    meaning: &'static str,
    labels: &'static [&'static str],
}

/// A metric without labels.
pub(super) const fn named(name: &'static str, unit: &'static str, meaning: &'static str) -> Named {
    Named { name, unit, meaning, labels: &[] }
}

impl Named {
    pub(super) const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }

    fn opts(&self) -> Opts {
        Opts::new(self.name, self.meaning)
    }
}

impl fmt::Display for MetricKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// Every name occurs once and is valid, so registering cannot fail.
#[derive(Default)]
pub(super) struct Registrar {
    registry: Registry,
    descriptions: RefCell<Vec<Description>>,
}

impl Registrar {
    pub(super) fn finish(self) -> (Registry, Vec<Description>) {
        (self.registry, self.descriptions.into_inner())
    }

    pub(super) fn counters(&self, named: Named) -> IntCounterVec {
        let metric = IntCounterVec::new(named.opts(), named.labels);
        self.add(metric, MetricKind::Counter, named)
    }

    pub(super) fn counter(&self, named: Named) -> IntCounter {
        self.add(IntCounter::with_opts(named.opts()), MetricKind::Counter, named)
    }

    /// For sums of times.
    pub(super) fn fractional_counters(&self, named: Named) -> CounterVec {
        let metric = CounterVec::new(named.opts(), named.labels);
        self.add(metric, MetricKind::Counter, named)
    }

    pub(super) fn gauges(&self, named: Named) -> IntGaugeVec {
        let metric = IntGaugeVec::new(named.opts(), named.labels);
        self.add(metric, MetricKind::Gauge, named)
    }

    pub(super) fn gauge(&self, named: Named) -> IntGauge {
        self.add(IntGauge::with_opts(named.opts()), MetricKind::Gauge, named)
    }

    pub(super) fn fractional_gauges(&self, named: Named) -> GaugeVec {
        let metric = GaugeVec::new(named.opts(), named.labels);
        self.add(metric, MetricKind::Gauge, named)
    }

    pub(super) fn fractional_gauge(&self, named: Named) -> Gauge {
        self.add(Gauge::with_opts(named.opts()), MetricKind::Gauge, named)
    }

    pub(super) fn histograms(&self, named: Named, buckets: Vec<f64>) -> HistogramVec {
        let options = HistogramOpts::from(named.opts()).buckets(buckets);
        self.add(HistogramVec::new(options, named.labels), MetricKind::Histogram, named)
    }

    pub(super) fn histogram(&self, named: Named, buckets: Vec<f64>) -> Histogram {
        let options = HistogramOpts::from(named.opts()).buckets(buckets);
        self.add(Histogram::with_opts(options), MetricKind::Histogram, named)
    }

    fn add<M>(&self, metric: prometheus::Result<M>, kind: MetricKind, named: Named) -> M
    where
        M: Collector + Clone + 'static,
    {
        let metric = metric.expect("static name and labels are valid");
        self.registry.register(Box::new(metric.clone())).expect("every metric is registered once");
        let Named { name, unit, meaning, labels } = named;
        self.descriptions.borrow_mut().push(Description { name, kind, unit, labels, meaning });
        metric
    }
}
