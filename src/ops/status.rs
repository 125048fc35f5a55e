//! The node's state as this port shows it, gathered once for each request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::controller::ShardState;
use crate::metrics::Readings;

/// Where the process stands in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not serving yet.
    Starting {
        /// What it is at and how far, in words: `replaying the log: 3 of 12 segments`.
        progress: String,
    },
    /// Serving clients.
    Serving,
    /// Answering what came before, taking nothing new.
    Draining,
    /// Removed from its cluster, for good: serving nobody.
    Removed {
        /// How it knows, and what to do, in words.
        why: String,
    },
}

impl Phase {
    /// One word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Removed { .. } => "removed",
        }
    }
}

/// The node at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where in its life.
    pub phase: Phase,
    /// Its cluster, as `cluster_id` shows it; `None` until the data directory is open.
    pub cluster_id: Option<String>,
    /// Its name.
    pub node_id: String,
    /// The topology's epoch.
    pub epoch: u64,
    /// The members of the cluster as this node knows them, itself included. Empty while it knows
    /// of none: it is then shown as the only one, unless it was removed.
    pub members: Vec<Member>,
    /// The member that leads the topology, by name, if one is known.
    pub leader: Option<String>,
    /// For how long nobody has led it, as far as this node knows; `None` while somebody does.
    pub leaderless_for: Option<Duration>,
    /// Where clients reach it; `None` until it listens.
    pub client_addr: Option<SocketAddr>,
    /// Where other nodes reach it; `None` while it talks to none.
    pub gossip_addr: Option<SocketAddr>,
    /// Its zone; empty if unset.
    pub zone: String,
    /// Its region; empty if unset.
    pub region: String,
    /// Time since the process started.
    pub uptime: Duration,
    /// The log.
    pub wal: Wal,
    /// From which members no UDP comes in though TCP works, and what to open, one sentence each.
    pub lost_udp: Vec<String>,
    /// Listeners open to other machines without the protection they should have: what follows, and
    /// how to mend it, one sentence each.
    pub exposures: Vec<String>,
    /// Copies on this node that vote and are not level. The cluster's, on any node, are in
    /// `readings`.
    pub copies_behind: u64,
    /// Those of them whose shards are served: they are being brought level.
    pub copies_coming: u64,
    /// For how long it has been serving clients, or trying to.
    pub serving_for: Duration,
    /// Whether since its start all shards were served, and all its copies level, at some moment.
    pub was_whole: bool,
    /// What is still to be copied, moved and balanced.
    pub outlook: Outlook,
    /// The stop lease that is held, as this node knows it.
    pub stop_lease: Option<super::Lease>,
    /// The figures that the gauges show as well.
    pub readings: Readings,
}

/// What is still to be done until the cluster is settled, the planned included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Nothing is.
    pub settled: bool,
    /// Copies and primaries that are still to move.
    pub moves_left: u64,
    /// When that may be done, counted from now; `None` if there is nothing to tell by.
    pub eta: Option<Duration>,
}

/// A member of the cluster, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its name.
    pub node_id: String,
    /// How it seems to be.
    pub status: MemberStatus,
    /// Where clients reach it, `host:port`; `None` if that is not known.
    pub client_addr: Option<String>,
    /// Where other nodes reach it, `host:port`; `None` if that is not known.
    pub gossip_addr: Option<String>,
    /// Its zone; empty if unset.
    pub zone: String,
    /// Its region; empty if unset.
    pub region: String,
    /// The version of AegisKV that it runs.
    pub version: String,
    /// Shards of which it holds a copy.
    pub shards: u64,
    /// Shards whose primary it is.
    pub primaries: u64,
    /// Whether it leads the topology.
    pub leader: bool,
}

/// How a member seems to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberStatus {
    /// It is heard.
    Alive,
    /// It has been silent for `suspect_timeout`.
    Suspect,
    /// It has been silent for `dead_timeout`.
    Dead,
    /// It has not taken its place yet.
    Joining,
    /// It said that it goes, for a while or for good.
    Leaving,
}

/// The write-ahead log's state.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Wal {
    /// `off`, `async` or `sync`.
    pub mode: &'static str,
    /// Segments on disk.
    pub segments: u64,
    /// It could not be written: the node is about to end.
    pub failed: bool,
}

/// One shard's configuration and positions.
#[derive(Clone, Debug, Serialize)]
pub struct Shard {
    /// Its number.
    pub shard: u16,
    /// Its configuration's epoch.
    pub epoch: u64,
    /// The node that orders its writes, if there is one.
    pub primary: Option<String>,
    /// Nodes that count in its quorums.
    pub voters: Vec<String>,
    /// Nodes that are being brought level.
    pub learners: Vec<String>,
    /// How it stands.
    pub state: ShardState,
    /// The last record of each copy that this node knows of, by node.
    pub positions: BTreeMap<String, Position>,
}

/// A place in a shard's log, as JSON shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The epoch whose primary ordered the record.
    pub epoch: u32,
    /// The record's number.
    pub seq: u64,
}

impl From<crate::entry::Position> for Position {
    fn from(position: crate::entry::Position) -> Self {
        Self { epoch: position.epoch, seq: position.seq }
    }
}
