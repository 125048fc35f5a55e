//! The list of declared metrics, and the registry that renders them.
//!
//! A metric enters the registry and the list in one call, so that neither can hold what the other
//! does not.

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::DURATION_BUCKETS;

/// What Prometheus takes a metric for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, until the process starts anew.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Kind {
    /// The word in `# TYPE`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric, as the documents list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, in one or two sentences.
    pub help: &'static str,
}

impl Declaration {
    /// The base unit, which the name tells: `seconds`, `bytes`, `unix seconds`, or nothing for a
    /// plain number.
    pub fn unit(&self) -> &'static str {
        let stem = self.name.trim_end_matches("_total");
        if stem.ends_with("_timestamp_seconds") || stem.ends_with("_start_time_seconds") {
            "unix seconds"
        } else if stem.ends_with("_seconds") {
            "seconds"
        } else if stem.ends_with("_bytes") {
            "bytes"
        } else {
            ""
        }
    }
}

/// Declared metrics and their registry.
#[derive(Debug, Default)]
pub(super) struct Table {
    registry: Registry,
    declarations: Vec<Declaration>,
}

impl Table {
    pub(super) fn declarations(&self) -> &[Declaration] {
        &self.declarations
    }

    /// Everything in Prometheus' text format, in the order of names.
    pub(super) fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("every family is made by this table, with a name, a help and one type")
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &'static str) -> IntCounter {
        self.add(Kind::Counter, name, &[], help, IntCounter::with_opts(Opts::new(name, help)))
    }

    pub(super) fn float_counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        self.add(Kind::Counter, name, &[], help, Counter::with_opts(Opts::new(name, help)))
    }

    pub(super) fn counters(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> IntCounterVec {
        let metric = IntCounterVec::new(Opts::new(name, help), labels);
        self.add(Kind::Counter, name, labels, help, metric)
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> IntGauge {
        self.add(Kind::Gauge, name, &[], help, IntGauge::with_opts(Opts::new(name, help)))
    }

    pub(super) fn float_gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        self.add(Kind::Gauge, name, &[], help, Gauge::with_opts(Opts::new(name, help)))
    }

    pub(super) fn gauges(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> IntGaugeVec {
        self.add(Kind::Gauge, name, labels, help, IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A gauge that shows nothing until it has a value.
    pub(super) fn optional_gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
    ) -> OptionalGauge {
        let metric = GaugeVec::new(Opts::new(name, help), &[]);
        OptionalGauge(self.add(Kind::Gauge, name, &[], help, metric))
    }

    pub(super) fn histogram(&mut self, name: &'static str, help: &'static str) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec());
        self.add(Kind::Histogram, name, &[], help, Histogram::with_opts(options))
    }

    pub(super) fn histograms(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec());
        self.add(Kind::Histogram, name, labels, help, HistogramVec::new(options, labels))
    }

    fn add<C: Collector + Clone + 'static>(
        &mut self,
        kind: Kind,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        metric: prometheus::Result<C>,
    ) -> C {
        let metric = metric.expect("names, labels and buckets are literals that a test has tried");
        self.registry
            .register(Box::new(metric.clone()))
            .expect("each name is declared once, which a test has tried");
        self.declarations.push(Declaration { name, kind, labels, help });
        metric
    }
}

/// A gauge that may have nothing to show.
#[derive(Clone, Debug)]
pub(super) struct OptionalGauge(GaugeVec);

impl OptionalGauge {
    pub(super) fn set(&self, value: Option<f64>) {
        match value {
            Some(value) => self.0.with_label_values::<&str>(&[]).set(value),
            None => self.0.reset(),
        }
    }
}
