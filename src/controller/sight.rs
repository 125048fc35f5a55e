//! What the controller is told: what gossip says, and what each node reports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::entry::{Position, ShardId};
use crate::topology::{NodeId, Seat};

/// All that the controller knows beside the topology, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// The present moment, on a clock that only moves forward. Every other moment here is of the
    /// same clock.
    pub now: Duration,
    /// The node that looks: its own report stands in `reports` as well.
    pub me: NodeId,
    /// What gossip says of each other node; nothing of those it has not met.
    pub alive: BTreeMap<NodeId, Seen>,
    /// The last report of each node.
    pub reports: BTreeMap<NodeId, Arc<Report>>,
    /// What the last inquiry after each node came to, of those that were to be asked.
    pub inquiries: BTreeMap<NodeId, Inquiry>,
    /// What the node that looks knows of the stop lease that the topology has.
    pub leased: Option<Leased>,
}

/// What is known of the stop lease beside the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leased {
    /// Which lease.
    pub id: u64,
    /// How often it had been renewed.
    pub renewals: u64,
    /// Since when the node that looks has known it so: never before it was granted, and so never
    /// so early that it would run out too soon.
    pub since: Duration,
    /// What its node last answered.
    pub presence: Option<Presence>,
}

/// What a node answers that is asked whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// When it was asked.
    pub at: Duration,
    /// The run of its process; another one after each start.
    pub run: u64,
    /// Copies that it should hold, and that are not level.
    pub behind: u64,
}

/// A node was asked at every address where it may be, from here and from every member that is
/// reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// When the inquiry began.
    pub at: Duration,
    /// Whether it answered anybody.
    pub is_answered: bool,
    /// Whether a connection was taken where it may be, and nothing said on it: it may hang, and
    /// remember all.
    pub may_hang: bool,
}

/// How a node seems to gossip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How.
    pub state: Seems,
    /// Since when.
    pub since: Duration,
}

/// What gossip says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seems {
    /// It is heard.
    Alive,
    /// It has not been heard for a while.
    Suspect,
    /// It has been given up, or has left.
    Dead,
}

/// What a node says of itself. Sent often, and at once when one of its links breaks.
///
/// Its serialized form (see `wire`) is compact: some 14 bytes for a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// When it arrived, on the receiver's clock. Not sent.
    pub at: Duration,
    /// The life of the node that speaks.
    pub life: u64,
    /// The node's links to each other member.
    pub reachable: BTreeMap<NodeId, Link>,
    /// How far its wall clock is ahead of the median of its peers' and its own, in milliseconds.
    pub clock_offset_ms: i64,
    /// The other members that its gossip has for alive.
    pub hears: BTreeSet<NodeId>,
    /// How long its disk has lately taken to make records durable, in milliseconds.
    pub disk_delay_ms: u32,
    /// One for each shard that the node has a copy of or a seat in, in the order of shards.
    pub shards: Vec<ShardReport>,
}

/// A node's connection to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// It works.
    Up,
    /// It does not.
    Down {
        /// What happened to it.
        why: Break,
        /// For how long by now, in milliseconds.
        for_ms: u32,
    },
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Break {
    /// Nobody listens there.
    Refused,
    /// It was closed from the other side.
    Reset,
    /// Nothing is heard on it.
    Silent,
    /// There is no way there.
    Unreachable,
    /// One of the two does not accept the other.
    Rejected,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "it refuses connections",
            Self::Reset => "it closed its connections",
            Self::Silent => "nothing is heard on its connections",
            Self::Unreachable => "there is no way to it",
            Self::Rejected => "its connections are rejected",
        })
    }
}

/// A node's copy of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardReport {
    /// Which shard.
    pub shard: ShardId,
    /// The highest epoch that the copy has been told of: its fence.
    pub epoch: u32,
    /// Where its log ends.
    pub last: Position,
    /// What it does.
    pub role: Role,
    /// What each other seat of the configuration has acknowledged; only from an active primary.
    pub copies: Vec<(Seat, u64)>,
    /// The highest committed sequence number that it knows of.
    pub committed: u64,
    /// Whether it has everything that it ever acknowledged.
    pub vouches: bool,
}

/// What a copy does in its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It follows, or learns.
    Follower,
    /// It is to lead, and is not active yet.
    TakingOver,
    /// It leads: its epoch's first record is committed.
    Active,
    /// It is to lead an epoch that it may have led before it was restarted: it needs another one.
    Waiting,
}
