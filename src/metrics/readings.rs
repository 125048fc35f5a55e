//! What the gauges show.

use std::time::Duration;

use prometheus::{Gauge, IntGauge, IntGaugeVec};

use super::table::{OptionalGauge, Table};
use crate::entry::Timestamp;

/// Bits of the configuration's hash that a sample, a 64-bit float, shows without loss.
const CONFIG_HASH_MASK: u64 = (1 << 48) - 1;

/// How many of the shards that this node knows are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ShardCounts {
    /// All copies there and caught up.
    pub healthy: u64,
    /// Served by fewer copies than there should be.
    pub under_replicated: u64,
    /// A copy is being brought level.
    pub catching_up: u64,
    /// Changing its nodes.
    pub moving: u64,
    /// No primary that can answer.
    pub unavailable: u64,
}

impl ShardCounts {
    /// Every state with its count, as the label `state` names them.
    pub fn by_state(&self) -> [(&'static str, u64); 5] {
        [
            ("healthy", self.healthy),
            ("under_replicated", self.under_replicated),
            ("catching_up", self.catching_up),
            ("moving", self.moving),
            ("unavailable", self.unavailable),
        ]
    }

    /// All shards.
    pub fn total(&self) -> u64 {
        self.by_state().iter().map(|(_, count)| count).sum()
    }
}

/// The node's state at one moment, read by whoever renders the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Memory that entries take, overhead included.
    pub cache_size_bytes: u64,
    /// Those of them that are records kept for other nodes.
    pub replication_log_bytes: u64,
    /// Entries held.
    pub cache_items: u64,
    /// The memory limit in force.
    pub cache_max_bytes: u64,
    /// Size of all segments of the log.
    pub wal_bytes: u64,
    /// How long writes have lately waited for the disk, or wait now.
    pub disk_delay: Duration,
    /// Open client connections.
    pub active_connections: u64,
    /// The connection limit in force.
    pub max_connections: u64,
    /// Shards by state.
    pub shards: ShardCounts,
    /// Shards of which this node holds a copy.
    pub shards_owned: u64,
    /// Shards whose primary this node is.
    pub shard_primaries: u64,
    /// Records that the copy furthest behind lacks, of the shards that this node leads.
    pub replica_lag_records: u64,
    /// Living members, this node included.
    pub cluster_members: u64,
    /// All members, living or not.
    pub cluster_members_expected: u64,
    /// Members that this node is connected with and whose datagrams do not come in.
    pub gossip_unheard_peers: u64,
    /// Whether this node leads the topology, and has lately heard from a majority.
    pub topology_leader: bool,
    /// The node that may be stopped, and who holds the stop lease for it; `None` if nobody does.
    pub stop_lease: Option<(String, String)>,
    /// Whether clients are served: neither starting nor draining.
    pub serving: bool,
    /// Whether the configuration that was read last, at the start or by a reload, is in force.
    pub config_reload_success: bool,
    /// Hash of the configuration in force; its low 48 bits are shown.
    pub config_hash: u64,
    /// When the served certificate ends; `None` without TLS.
    pub tls_cert_expiry: Option<Timestamp>,
    /// Listeners reachable from beyond this machine without the protection they should have.
    pub insecure_listeners: u64,
    /// How long the last complete snapshot took; `None` before the first.
    pub snapshot_duration: Option<Duration>,
    /// When the last complete snapshot was finished; `None` before the first.
    pub snapshot_finished_at: Option<Timestamp>,
}

#[derive(Debug)]
pub(super) struct Gauges {
    cache_size: IntGauge,
    replication_log: IntGauge,
    cache_items: IntGauge,
    cache_max: IntGauge,
    wal_bytes: IntGauge,
    disk_delay: Gauge,
    active_connections: IntGauge,
    max_connections: IntGauge,
    shards: IntGaugeVec,
    shards_owned: IntGauge,
    shard_primaries: IntGauge,
    replica_lag: IntGauge,
    cluster_members: IntGauge,
    cluster_members_expected: IntGauge,
    gossip_unheard_peers: IntGauge,
    topology_leader: IntGauge,
    stop_lease: IntGaugeVec,
    serving: IntGauge,
    config_reload_success: IntGauge,
    config_hash: IntGauge,
    tls_cert_expiry: OptionalGauge,
    insecure_listeners: IntGauge,
    snapshot_duration: OptionalGauge,
    snapshot_finished_at: OptionalGauge,
}

impl Gauges {
    pub(super) fn declare(t: &mut Table) -> Self {
        Self {
            cache_size: t.gauge(
                "aegis_cache_size_bytes",
                "Memory that entries take, their overhead included, and records kept for other nodes.",
            ),
            replication_log: t.gauge(
                "aegis_replication_log_bytes",
                "The part of that which is records kept for nodes that fall a little behind, at most \
                 replication_log_mb. 0 where no shard has another copy.",
            ),
            cache_items: t.gauge("aegis_cache_items", "Entries held in memory."),
            cache_max: t.gauge(
                "aegis_cache_max_bytes",
                "Memory that entries and records kept for other nodes may take (max_memory_mb).",
            ),
            wal_bytes: t.gauge(
                "aegis_wal_bytes",
                "Size of all segments of the write-ahead log on disk.",
            ),
            disk_delay: t.float_gauge(
                "aegis_disk_delay_seconds",
                "The longest that a write has waited for the disk in the last second or two, or has \
                 waited by now. 0 while nothing is written, and with wal_mode off.",
            ),
            active_connections: t.gauge("aegis_active_connections", "Open client connections."),
            max_connections: t.gauge(
                "aegis_max_connections",
                "Client connections that may be open at once (max_conns).",
            ),
            shards: t.gauges("aegis_shards", &["state"], "Shards of the cluster by state."),
            shards_owned: t.gauge(
                "aegis_shards_owned",
                "Shards of which this node holds a copy.",
            ),
            shard_primaries: t.gauge(
                "aegis_shard_primaries",
                "Shards whose writes this node orders.",
            ),
            replica_lag: t.gauge(
                "aegis_replica_lag_records",
                "Records that the copy furthest behind lacks, of the shards that this node leads.",
            ),
            cluster_members: t.gauge(
                "aegis_cluster_members",
                "Living members of the cluster, this node included.",
            ),
            cluster_members_expected: t.gauge(
                "aegis_cluster_members_expected",
                "Members of the cluster, living or not, until they are removed.",
            ),
            gossip_unheard_peers: t.gauge(
                "aegis_gossip_unheard_peers",
                "Members that this node reaches over TCP and whose UDP does not come in.",
            ),
            topology_leader: t.gauge(
                "aegis_topology_leader",
                "1 if this node leads the topology and has lately heard from a majority, else 0.",
            ),
            stop_lease: t.gauges(
                "aegis_stop_lease",
                &["node", "holder"],
                "1 while somebody holds the stop lease for a node, as this member knows it; missing \
                 while nobody does.",
            ),
            serving: t.gauge(
                "aegis_serving",
                "1 if this node serves clients, 0 while it starts or drains.",
            ),
            config_reload_success: t.gauge(
                "aegis_config_reload_success",
                "1 if the configuration that was read last is in force, 0 if it was refused.",
            ),
            config_hash: t.gauge(
                "aegis_config_hash",
                "Hash of the configuration in force; nodes configured alike show the same.",
            ),
            tls_cert_expiry: t.optional_gauge(
                "aegis_tls_cert_expiry_timestamp_seconds",
                "When the served certificate ends. Missing without TLS.",
            ),
            insecure_listeners: t.gauge(
                "aegis_insecure_listeners",
                "Listeners that answer beyond this machine without the protection they should have.",
            ),
            snapshot_duration: t.optional_gauge(
                "aegis_snapshot_last_duration_seconds",
                "Time that the last complete snapshot took. Missing before the first.",
            ),
            snapshot_finished_at: t.optional_gauge(
                "aegis_snapshot_last_success_timestamp_seconds",
                "When the last complete snapshot was finished. Missing before the first.",
            ),
        }
    }

    pub(super) fn set(&self, now: &Readings) {
        for (gauge, value) in [
            (&self.cache_size, now.cache_size_bytes),
            (&self.replication_log, now.replication_log_bytes),
            (&self.cache_items, now.cache_items),
            (&self.cache_max, now.cache_max_bytes),
            (&self.wal_bytes, now.wal_bytes),
            (&self.active_connections, now.active_connections),
            (&self.max_connections, now.max_connections),
            (&self.shards_owned, now.shards_owned),
            (&self.shard_primaries, now.shard_primaries),
            (&self.replica_lag, now.replica_lag_records),
            (&self.cluster_members, now.cluster_members),
            (&self.cluster_members_expected, now.cluster_members_expected),
            (&self.gossip_unheard_peers, now.gossip_unheard_peers),
            (&self.topology_leader, u64::from(now.topology_leader)),
            (&self.serving, u64::from(now.serving)),
            (&self.config_reload_success, u64::from(now.config_reload_success)),
            (&self.config_hash, now.config_hash & CONFIG_HASH_MASK),
            (&self.insecure_listeners, now.insecure_listeners),
        ] {
            gauge.set(saturating(value));
        }
        self.disk_delay.set(now.disk_delay.as_secs_f64());
        for (state, count) in now.shards.by_state() {
            self.shards.with_label_values(&[state]).set(saturating(count));
        }
        self.stop_lease.reset();
        if let Some((node, holder)) = &now.stop_lease {
            self.stop_lease.with_label_values(&[node, holder]).set(1);
        }
        self.tls_cert_expiry.set(now.tls_cert_expiry.map(unix_seconds));
        self.snapshot_duration.set(now.snapshot_duration.map(|d| d.as_secs_f64()));
        self.snapshot_finished_at.set(now.snapshot_finished_at.map(unix_seconds));
    }
}

fn saturating(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unix_seconds(at: Timestamp) -> f64 {
    Duration::from_millis(at.0).as_secs_f64()
}
