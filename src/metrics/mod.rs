//! Every metric: its name, help, unit, labels and handle, declared once.
//!
//! Invariant: what is declared here is what `/metrics` shows and what `docs/metrics.md` lists.
//! Nothing is looked up by name after construction; recording neither locks nor allocates.
//! It never reads another module's state: counters are told, gauges come as [`Readings`] with each
//! rendering.

mod process;
mod readings;
mod table;

use std::time::Duration;

use crate::entry::Departure;

pub use prometheus::IntCounter as Counter;
pub use readings::{Readings, ShardCounts};
pub use table::{Declaration, Kind};

use process::Process;
use readings::Gauges;
use table::Table;

/// Upper bounds of the histograms' buckets, in seconds: 50 µs to 10 s.
pub const DURATION_BUCKETS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// What a client asked for; the label `op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// GET or HEAD of one key.
    Get,
    /// PUT of one key.
    Put,
    /// DELETE of one key.
    Delete,
    /// An atomic addition.
    Incr,
    /// A new TTL for a kept value.
    Touch,
    /// One page of a listing.
    List,
    /// DELETE of a prefix.
    DeletePrefix,
    /// A whole batch; its operations count under their own names as well.
    Batch,
}

impl Op {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::Get,
        Self::Put,
        Self::Delete,
        Self::Incr,
        Self::Touch,
        Self::List,
        Self::DeletePrefix,
        Self::Batch,
    ];

    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Incr => "incr",
            Self::Touch => "touch",
            Self::List => "list",
            Self::DeletePrefix => "delete_prefix",
            Self::Batch => "batch",
        }
    }
}

/// Why a GET found nothing; the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Miss {
    /// The key is not known, or was forgotten long ago.
    Absent,
    /// Its time ran out.
    Expired,
    /// Memory was short lately.
    Evicted,
    /// It was deleted lately.
    Deleted,
}

impl Miss {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Absent, Self::Expired, Self::Evicted, Self::Deleted];

    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Expired => "expired",
            Self::Evicted => "evicted",
            Self::Deleted => "deleted",
        }
    }
}

impl From<Departure> for Miss {
    fn from(departure: Departure) -> Self {
        match departure {
            Departure::Deleted => Self::Deleted,
            Departure::Expired => Self::Expired,
            Departure::Evicted => Self::Evicted,
        }
    }
}

/// A duration histogram's handle; cheap to clone.
#[derive(Clone, Debug)]
pub struct Durations(prometheus::Histogram);

impl Durations {
    /// Adds one measurement.
    pub fn record(&self, elapsed: Duration) {
        self.0.observe(elapsed.as_secs_f64());
    }
}

/// One operation's count, errors and durations.
#[derive(Clone, Debug)]
pub struct OpMetrics {
    done: Counter,
    errors: Counter,
    durations: Durations,
}

impl OpMetrics {
    /// Counts one operation. `ok` is false only where the fault was this node's or the cluster's
    /// (500, 503, 504, 507): clients' mistakes, misses and failed conditions are no errors.
    pub fn record(&self, elapsed: Duration, ok: bool) {
        self.done.inc();
        if !ok {
            self.errors.inc();
        }
        self.durations.record(elapsed);
    }
}

/// The requests of one holder of tokens, by what became of them.
#[derive(Clone, Debug)]
pub struct TokenMetrics {
    let_in: Counter,
    forbidden: Counter,
    limited: Counter,
}

impl Default for TokenMetrics {
    /// Counts that nobody sees.
    fn default() -> Self {
        let counter = || Counter::new("unseen", "Not shown.").expect("a name and a help");
        Self { let_in: counter(), forbidden: counter(), limited: counter() }
    }
}

impl TokenMetrics {
    fn of(requests: &prometheus::IntCounterVec, name: &str) -> Self {
        let of = |outcome| requests.with_label_values(&[name, outcome]);
        Self { let_in: of("let_in"), forbidden: of("forbidden"), limited: of("limited") }
    }

    /// Counts a request that was answered with this status.
    pub fn count(&self, status: u16) {
        match status {
            403 => self.forbidden.inc(),
            429 => self.limited.inc(),
            _ => self.let_in.inc(),
        }
    }
}

/// Handles of all metrics, and their rendering. A node has one; a test makes its own.
#[derive(Debug)]
pub struct Metrics {
    table: Table,
    ops: [OpMetrics; Op::ALL.len()],
    misses: [Counter; Miss::ALL.len()],
    /// Entries that memory pressure took.
    pub evictions: Counter,
    /// Entries removed because their time ran out.
    pub expired: Counter,
    /// Each fsync of the log.
    pub wal_fsync: Durations,
    /// Damaged or missing places found in log, snapshots and copies, other than a torn end.
    pub wal_corruptions: Counter,
    /// Client connections refused for `max_conns`.
    pub rejected_connections: Counter,
    /// Acknowledgements by voting copies by the time a client was answered.
    pub replica_success: Counter,
    /// Records that a voting copy did not acknowledge in time, counted at the primary.
    pub replica_fail: Counter,
    /// Shards brought back from a copy that could not vouch for everything.
    pub unclean_recovery: Counter,
    /// Snapshots that were started and given up.
    pub snapshot_failures: Counter,
    /// Shards that were given another primary because theirs seemed failed, as decided here.
    pub failovers: Counter,
    /// Stop leases that ran out, as this node saw it.
    pub stop_leases_expired: Counter,
    /// From the first sign of a primary's failure until another one orders.
    pub failover_duration: Durations,
    /// Bytes of shards' copies that were brought here.
    pub copy_bytes: Counter,
    /// Messages of this node that went by way of another member.
    pub relays_sent: Counter,
    /// Messages of others that this node passed on.
    pub relays_passed_on: Counter,
    /// Messages that went, or were to go, by way of others, and had no way on.
    pub relays_dropped: Counter,
    /// Requests that showed no token that is accepted.
    pub unauthorized: Counter,
    token_requests: prometheus::IntCounterVec,
    refusals: prometheus::IntCounterVec,
    log_dropped: prometheus::IntCounterVec,
    gauges: Gauges,
    process: Process,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Declares everything, each at zero.
    pub fn new() -> Self {
        let mut table = Table::default();
        let t = &mut table;
        t.gauges(
            "aegis_build_info",
            &["version", "revision"],
            "Always 1; the labels say what was built.",
        )
        .with_label_values(&[env!("CARGO_PKG_VERSION"), revision()])
        .set(1);
        let [relays_sent, relays_passed_on, relays_dropped] = relays(t);
        Self {
            ops: operations(t),
            misses: misses(t),
            evictions: t
                .counter("aegis_evictions_total", "Entries removed because memory was short."),
            expired: t.counter("aegis_expired_total", "Entries removed because their time ran out."),
            wal_fsync: Durations(t.histogram(
                "aegis_wal_fsync_duration_seconds",
                "Time that one fsync of the write-ahead log took.",
            )),
            wal_corruptions: t.counter(
                "aegis_wal_corruptions_total",
                "Damaged or missing places found at the start in the write-ahead log, in snapshots and in copies of shards, other than a torn end.",
            ),
            rejected_connections: t.counter(
                "aegis_rejected_connections_total",
                "Client connections refused because max_conns were open.",
            ),
            replica_success: t.counter(
                "aegis_replica_success_total",
                "Acknowledgements by voting copies, a primary's own included, that this node could \
                 tell its clients of when it answered.",
            ),
            replica_fail: t.counter(
                "aegis_replica_fail_total",
                "Records that a voting copy did not acknowledge within a second; counted by the \
                 shard's primary, once for each such copy.",
            ),
            unclean_recovery: t.counter(
                "aegis_unclean_recovery_total",
                "Shards brought back from a copy that could not vouch for every acknowledged write.",
            ),
            snapshot_failures: t
                .counter("aegis_snapshot_failures_total", "Snapshots started and not completed."),
            failovers: t.counter(
                "aegis_failovers_total",
                "Shards given another primary because theirs seemed failed; counted by the node \
                 that decided it.",
            ),
            stop_leases_expired: t.counter(
                "aegis_stop_lease_expired_total",
                "Stop leases that ran out before their node was back; each member counts what it \
                 sees.",
            ),
            failover_duration: Durations(t.histogram(
                "aegis_failover_duration_seconds",
                "Time from the first sign of a primary's failure until another one orders, for \
                 each shard; measured by the node that decided it.",
            )),
            copy_bytes: t.counter(
                "aegis_copy_bytes_total",
                "Bytes of shards' entries that were copied to this node.",
            ),
            relays_sent,
            relays_passed_on,
            relays_dropped,
            unauthorized: t.counter(
                "aegis_unauthorized_requests_total",
                "Requests of clients and operators that were answered 401: without a token, or with one that is not accepted.",
            ),
            token_requests: token_requests(t),
            refusals: refusals(t),
            log_dropped: log_dropped(t),
            gauges: Gauges::declare(t),
            process: Process::declare(t),
            table,
        }
    }

    /// The handles of one operation.
    pub fn op(&self, op: Op) -> &OpMetrics {
        &self.ops[op as usize]
    }

    /// The handles of the tokens that the configuration calls `name`.
    pub fn of_token(&self, name: &str) -> TokenMetrics {
        TokenMetrics::of(&self.token_requests, name)
    }

    /// Counts a GET that found nothing.
    pub fn miss(&self, reason: Miss) {
        self.misses[reason as usize].inc();
    }

    /// Counts lines of the log that were dropped on their way to `stderr` or `file`.
    pub fn log_dropped(&self, to: &str, lines: u64) {
        self.log_dropped.with_label_values(&[to]).inc_by(lines);
    }

    /// Counts what was refused on the node port.
    pub fn refused(&self, reason: &str, times: u64) {
        self.refusals.with_label_values(&[reason]).inc_by(times);
    }

    /// All metrics in Prometheus' text format 0.0.4, the gauges as `now` has them.
    pub fn render(&self, now: &Readings) -> String {
        self.gauges.set(now);
        self.process.read();
        self.table.render()
    }

    /// All metrics there are, in the order of their declaration.
    pub fn declarations(&self) -> &[Declaration] {
        self.table.declarations()
    }
}

/// The commit that was built, where the build said so in `AEGISKV_REVISION`.
pub fn revision() -> &'static str {
    option_env!("AEGISKV_REVISION").unwrap_or("unknown")
}

fn operations(t: &mut Table) -> [OpMetrics; Op::ALL.len()] {
    let done = t.counters(
        "aegis_ops_total",
        &["op"],
        "Operations that clients asked for. A batch counts once, and each operation in it as well.",
    );
    let errors = t.counters(
        "aegis_ops_errors_total",
        &["op"],
        "Operations answered 500, 503, 504 or 507. Misses and clients' mistakes are no errors.",
    );
    let durations = t.histograms(
        "aegis_op_duration_seconds",
        &["op"],
        "Time from an operation's complete request to its answer.",
    );
    Op::ALL.map(|op| OpMetrics {
        done: done.with_label_values(&[op.label()]),
        errors: errors.with_label_values(&[op.label()]),
        durations: Durations(durations.with_label_values(&[op.label()])),
    })
}

fn token_requests(t: &mut Table) -> prometheus::IntCounterVec {
    let requests = t.counters(
        "aegis_token_requests_total",
        &["token", "outcome"],
        "Requests that showed a token, by the name that the configuration gives it: let_in, forbidden (403) or limited (429).",
    );
    TokenMetrics::of(&requests, "auth_token");
    requests
}

fn refusals(t: &mut Table) -> prometheus::IntCounterVec {
    let refusals = t.counters(
        "aegis_peer_refusals_total",
        &["reason"],
        "Connections and datagrams on the node port that were refused, by the reason.",
    );
    // There from the start, so that an alert on its rise has something to rise from.
    refusals.with_label_values(&["secret"]);
    refusals
}

fn log_dropped(t: &mut Table) -> prometheus::IntCounterVec {
    let dropped = t.counters(
        "aegis_log_lines_dropped_total",
        &["to"],
        "Lines of the log that were dropped because their reader, standard error's or the disk of log_dir, did not keep up.",
    );
    dropped.with_label_values(&["stderr"]);
    dropped
}

fn relays(t: &mut Table) -> [Counter; 3] {
    let relays = t.counters(
        "aegis_relayed_messages_total",
        &["what"],
        "Messages between members that went by way of a third one: this node's own that were sent \
         so, those of others that it passed on, those that had no way on.",
    );
    ["sent", "passed_on", "dropped"].map(|what| relays.with_label_values(&[what]))
}

fn misses(t: &mut Table) -> [Counter; Miss::ALL.len()] {
    let misses =
        t.counters("aegis_misses_total", &["reason"], "GETs that found nothing, by the reason.");
    Miss::ALL.map(|reason| misses.with_label_values(&[reason.label()]))
}

#[cfg(test)]
mod tests;
