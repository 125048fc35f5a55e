//! What the bench saw: latencies by operation, errors, and how they are shown.

use std::io::Write as _;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use hdrhistogram::Histogram;
use hyper::StatusCode;
use serde_json::{Value as Json, json};

use super::connection::Error;
use super::load::Kind;
use crate::cli::exit::output;

/// Decimal digits to which latencies are kept.
const DIGITS: u8 = 3;

/// What one connection saw.
#[derive(Debug, Default)]
pub(super) struct Samples {
    get: Series,
    put: Series,
    first_error: Option<String>,
}

/// What was seen of one kind of operation. Latencies are in microseconds.
#[derive(Debug)]
struct Series {
    latency: Histogram<u64>,
    errors: u64,
    misses: u64,
}

impl Default for Series {
    fn default() -> Self {
        let latency = Histogram::new(DIGITS).expect("three digits are in range");
        Self { latency, errors: 0, misses: 0 }
    }
}

impl Samples {
    /// Takes note of an operation that took `latency`.
    pub(super) fn record(
        &mut self,
        kind: Kind,
        latency: Duration,
        result: Result<StatusCode, Error>,
    ) {
        let series = match kind {
            Kind::Get => &mut self.get,
            Kind::Put => &mut self.put,
        };
        match result {
            Ok(status) => {
                let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
                series.latency.record(micros).expect("the histogram grows with its values");
                series.misses += u64::from(status == StatusCode::NOT_FOUND);
            }
            Err(error) => {
                series.errors += 1;
                if self.first_error.is_none() {
                    self.first_error = Some(format!("{}: {error}", kind.name()));
                }
            }
        }
    }
}

/// What all connections saw.
#[derive(Debug, Default)]
pub(super) struct Tally {
    samples: Samples,
    /// Operations that became due and were never sent.
    pub(super) unsent: u64,
    /// How long was measured.
    pub(super) elapsed: Duration,
}

impl Tally {
    /// Adds what one connection saw.
    pub(super) fn add(&mut self, samples: &Samples) {
        let pairs = [(&mut self.samples.get, &samples.get), (&mut self.samples.put, &samples.put)];
        for (sum, part) in pairs {
            sum.latency.add(&part.latency).expect("both histograms resize themselves");
            sum.errors += part.errors;
            sum.misses += part.misses;
        }
        if self.samples.first_error.is_none() {
            self.samples.first_error.clone_from(&samples.first_error);
        }
    }

    /// Operations that failed.
    pub(super) fn errors(&self) -> u64 {
        self.samples.get.errors + self.samples.put.errors
    }

    /// The first failure, in words.
    pub(super) fn first_error(&self) -> Option<&str> {
        self.samples.first_error.as_deref()
    }

    /// The result, with the settings that matter to it.
    pub(super) fn into_report(self, clients: u32, rate: Option<u64>) -> Report {
        Report { tally: self, clients, rate }
    }
}

/// The result of a run.
#[derive(Debug)]
pub(super) struct Report {
    tally: Tally,
    clients: u32,
    rate: Option<u64>,
}

impl Report {
    /// Whether nothing worked at all.
    pub(super) fn is_failure(&self) -> bool {
        let samples = &self.tally.samples;
        samples.get.latency.is_empty() && samples.put.latency.is_empty()
    }

    /// Prints a table, or JSON.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(super) fn print(&self, as_json: bool) -> std::io::Result<()> {
        let mut out = output();
        if as_json {
            writeln!(out, "{:#}", self.json())?;
        } else {
            out.write_all(self.text().as_bytes())?;
        }
        out.flush()
    }

    fn rows(&self) -> impl Iterator<Item = (&'static str, &Series)> {
        let samples = &self.tally.samples;
        let rows = [(Kind::Get.name(), &samples.get), (Kind::Put.name(), &samples.put)];
        rows.into_iter().filter(|(_, series)| !series.latency.is_empty() || series.errors > 0)
    }

    fn per_second(&self, series: &Series) -> f64 {
        series.latency.len() as f64 / self.tally.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        let header = ["OP", "COUNT", "ERRORS", "PER SECOND", "P50", "P90", "P99", "P99.9", "MAX"];
        table.set_header(header);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for (name, series) in self.rows() {
            let at = |quantile| millis(series.latency.value_at_quantile(quantile));
            table.add_row([
                name.to_owned(),
                series.latency.len().to_string(),
                series.errors.to_string(),
                format!("{:.0}", self.per_second(series)),
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999),
                millis(series.latency.max()),
            ]);
        }
        let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        text +=
            &format!("\n{} connections, {:.1} s", self.clients, self.tally.elapsed.as_secs_f64());
        match self.rate {
            Some(rate) => {
                text += &format!(", {rate} a second due; latency from when each was due\n")
            }
            None => text += "; each sends when its last is answered\n",
        }
        if self.tally.samples.get.misses > 0 {
            text += &format!("{} GETs found no such key\n", self.tally.samples.get.misses);
        }
        if self.tally.unsent > 0 {
            text += &format!(
                "{} operations became due and were never sent: the server, or this machine, \
                 cannot keep up with the rate\n",
                self.tally.unsent
            );
        }
        if let Some(error) = self.tally.first_error() {
            text += &format!("the first error: {error}\n");
        }
        text
    }

    fn json(&self) -> Json {
        let operations: serde_json::Map<String, Json> = self
            .rows()
            .map(|(name, series)| {
                let at = |quantile| series.latency.value_at_quantile(quantile);
                let row = json!({
                    "count": series.latency.len(),
                    "errors": series.errors,
                    "misses": series.misses,
                    "per_second": self.per_second(series),
                    "latency_us": {
                        "mean": series.latency.mean(),
                        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
                        "max": series.latency.max(),
                    },
                });
                (name.to_owned(), row)
            })
            .collect();
        json!({
            "clients": self.clients,
            "rate": self.rate,
            "seconds": self.tally.elapsed.as_secs_f64(),
            "unsent": self.tally.unsent,
            "first_error": self.tally.first_error(),
            "operations": operations,
        })
    }
}

/// Microseconds in the unit that people compare.
fn millis(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_latencies_are_kept_as_they_are() {
        let mut samples = Samples::default();
        for millis in [1, 5_000, 60_000] {
            samples.record(Kind::Get, Duration::from_millis(millis), Ok(StatusCode::OK));
        }
        let mut tally = Tally { elapsed: Duration::from_secs(1), ..Tally::default() };
        tally.add(&samples);
        let latency = &tally.into_report(1, None).json()["operations"]["get"]["latency_us"];
        let near = |key: &str, expected: u64| {
            let found = latency[key].as_u64().expect("a number");
            assert!(found.abs_diff(expected) * 1000 <= expected, "{key} is {found}");
        };
        near("p50", 5_000_000);
        near("max", 60_000_000);
    }

    #[test]
    fn latencies_misses_and_errors_are_told_apart() {
        let mut samples = Samples::default();
        samples.record(Kind::Get, Duration::from_micros(1500), Ok(StatusCode::OK));
        samples.record(Kind::Get, Duration::from_micros(500), Ok(StatusCode::NOT_FOUND));
        samples.record(
            Kind::Put,
            Duration::from_secs(9),
            Err(Error::Refused(StatusCode::INSUFFICIENT_STORAGE)),
        );
        let mut tally = Tally { elapsed: Duration::from_secs(2), ..Tally::default() };
        tally.add(&samples);
        let report = tally.into_report(3, None);
        assert!(!report.is_failure());
        let json = report.json();
        assert_eq!(json["operations"]["get"]["count"], 2);
        assert_eq!(json["operations"]["get"]["misses"], 1);
        assert_eq!(json["operations"]["get"]["per_second"], 1.0);
        assert_eq!(json["operations"]["get"]["latency_us"]["max"], 1500);
        assert_eq!(json["operations"]["put"]["errors"], 1);
        assert_eq!(json["first_error"], "put: the server answered 507 Insufficient Storage");
        let text = report.text();
        assert!(text.contains("1.500 ms"), "{text}");
        assert!(text.contains("1 GETs found no such key"), "{text}");
    }
}
