//! Whether clients should be sent here: what a load balancer and a rolling restart ask.
//!
//! A node is ready when it can carry out requests, itself or through others. That some shards are
//! served by nobody, or that it has no connection to some member, takes nobody out of service: the
//! others would be no better, and then there would be nobody left. A node that has just started
//! waits until it does its whole part, so that the next one is not stopped before.

use std::time::Duration;

use super::{Phase, Status};

/// A node that has just started waits so long for shards that nobody serves.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// A disk that keeps writes waiting for so long is named.
const DISK_SLOW: Duration = Duration::from_millis(500);

/// One line of `/ready`.
pub(super) struct Check {
    pub(super) name: &'static str,
    /// Whether it lets the node be ready.
    pub(super) passed: bool,
    pub(super) text: String,
}

impl Check {
    pub(super) fn passed(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, passed: true, text: text.into() }
    }

    pub(super) fn failed(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, passed: false, text: text.into() }
    }
}

/// All checks. A slow disk, lost datagrams, insecure listeners and a refused reload are named, since this is where
/// an operator looks, but they keep nobody from being served.
pub(super) fn readiness(status: &Status) -> Vec<Check> {
    let node = match &status.phase {
        Phase::Serving => Check::passed("node", "ok"),
        Phase::Starting { progress } => Check::failed("node", format!("starting: {progress}")),
        Phase::Draining => Check::failed("node", "draining: takes no new work"),
        Phase::Removed { why } => Check::failed("node", format!("removed: {why}")),
    };
    let starting = matches!(status.phase, Phase::Starting { .. });
    let wal = match status.wal.mode {
        _ if starting => Check::failed("wal", "not open yet"),
        _ if status.wal.failed => Check::failed("wal", "cannot be written; the node is stopping"),
        "off" => Check::passed("wal", "ok: off, nothing outlives the process"),
        _ if status.readings.disk_delay >= DISK_SLOW => {
            let seconds = status.readings.disk_delay.as_secs_f64();
            Check::passed("wal", format!("slow: writes wait {seconds:.1} s for the disk"))
        }
        _ => Check::passed("wal", "ok"),
    };
    let shards =
        if starting { Check::failed("shards", "not open yet") } else { shards_check(status) };
    let gossip = match status.lost_udp.as_slice() {
        [] => Check::passed("gossip", "ok"),
        lost => Check::passed("gossip", lost.join("; ")),
    };
    let listeners = match status.exposures.as_slice() {
        [] => Check::passed("listeners", "ok"),
        exposures => Check::passed("listeners", format!("exposed: {}", exposures.join("; "))),
    };
    let config = if status.readings.config_reload_success {
        Check::passed("config", "ok")
    } else {
        Check::passed(
            "config",
            "the last reload was refused; the configuration before it is in force",
        )
    };
    vec![node, wal, shards, gossip, listeners, config]
}

fn shards_check(status: &Status) -> Check {
    let counts = &status.readings.shards;
    let mut troubles: Vec<String> = counts
        .by_state()
        .into_iter()
        .filter(|(state, count)| *state != "healthy" && *count > 0)
        .map(|(state, count)| format!("{count} {}", state.replace('_', " ")))
        .collect();
    if status.copies_behind > 0 {
        troubles.push(format!("{} copies here not level yet", status.copies_behind));
    }
    let text = if troubles.is_empty() { "ok".to_owned() } else { troubles.join(", ") };
    if serves(status) { Check::passed("shards", text) } else { Check::failed("shards", text) }
}

/// Whether there is anything that the node can do for clients; and, right after a start, whether it
/// does its whole part.
fn serves(status: &Status) -> bool {
    let counts = &status.readings.shards;
    let reaches_none = counts.unavailable > 0 && counts.unavailable == counts.total();
    if reaches_none {
        return false;
    }
    if status.was_whole {
        return true;
    }
    let waits_for_shards =
        status.serving_for < START_PATIENCE && (counts.unavailable > 0 || status.copies_behind > 0);
    // A copy that is brought level is waited for; for one that nobody brings level it makes no
    // sense.
    !waits_for_shards && status.copies_coming == 0
}
