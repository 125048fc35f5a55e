//! Who is a member, and which copies each shard has: the one thing that consensus agrees on.
//!
//! Pure. A [`Topology`] changes only by [`Topology::apply`], which gives the same outcome on every
//! node that applies the same commands in the same order. Invariants: a [`NodeId`] is never given
//! out twice; each change of a shard's [`Configuration`] has a new, higher epoch; a change of
//! voters goes through a joint configuration, and takes place only from the epoch that it names;
//! one node at a time has the stop lease. It never knows who seems alive, and never a value.

mod command;
mod configuration;
mod lease;
pub mod placement;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::entry::ShardId;

pub use command::{Announcement, Change, Command, Outcome, Rejection};
pub use configuration::{Configuration, Copies};
pub use lease::{Ending, LeaseStep, StopLease, StopLeases};

/// A member's number in its cluster. A node whose disk was wiped comes back with a new one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of a member: what a shard's configuration names. A node that lost its memory comes
/// back with another life, and its old seat stays silent until a change replaces it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Seat {
    /// Whose.
    pub node: NodeId,
    /// Which life: the incarnation in its data directory.
    pub life: u64,
}

/// What a cluster is born with, and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its identity.
    pub id: u128,
    /// Keys the hash that places keys in shards. A secret of the cluster's nodes.
    pub hash_seed: u128,
    /// How many shards there are.
    pub num_shards: u16,
}

/// How a member stands, apart from whether it seems alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It takes part.
    #[default]
    Member,
    /// It said that it is being restarted: it leads no shard while others can, and its copies
    /// stay where they are.
    Restarting,
    /// The operator wants it gone: its copies move away first.
    Decommissioning,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub node: NodeId,
    /// What it said of itself when it last came.
    pub about: Announcement,
    /// How it stands.
    pub standing: Standing,
}

impl Member {
    /// Its present life.
    pub fn seat(&self) -> Seat {
        Seat { node: self.node, life: self.about.life }
    }
}

/// The members and every shard's configuration, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Rises with each command that changed something.
    pub revision: u64,
    /// `None` before the founding command.
    pub cluster: Option<Cluster>,
    /// The members.
    pub members: BTreeMap<NodeId, Member>,
    /// The configuration of each shard, by its number.
    pub shards: Vec<Arc<Configuration>>,
    /// The number that the next new member gets.
    next_node: u64,
    /// The stop lease. Snapshots have it behind all this, and only once there was one, so that
    /// those without it stay readable both ways.
    #[serde(skip)]
    pub leases: StopLeases,
}

/// Whose numbers are whose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// The members.
    pub members: BTreeSet<NodeId>,
    /// The number that the next new member gets.
    pub next: NodeId,
}

impl Roster {
    /// Whether the node was a member and is none any more. However old the roster, that is never
    /// said of a member: numbers rise, and none is given twice.
    pub fn has_removed(&self, node: NodeId) -> bool {
        node < self.next && !self.members.contains(&node)
    }
}

impl Topology {
    /// Whose numbers are whose.
    pub fn roster(&self) -> Roster {
        Roster { members: self.members.keys().copied().collect(), next: self.next_node() }
    }

    /// The number that the next new member gets: no node has had it.
    pub fn next_node(&self) -> NodeId {
        NodeId(self.next_node)
    }

    /// The configuration of a shard; `None` before the founding, or beyond the last shard.
    pub fn shard(&self, shard: ShardId) -> Option<&Arc<Configuration>> {
        self.shards.get(usize::from(shard.0))
    }

    /// The member of that name.
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members.values().find(|member| member.about.name == name)
    }

    /// A member's name, or its number where it is no member any more.
    pub fn name(&self, node: NodeId) -> String {
        let name = self.members.get(&node).map(|member| member.about.name.clone());
        name.unwrap_or_else(|| format!("#{node}"))
    }

    /// Whether a seat is its member's present life.
    pub fn is_present(&self, seat: Seat) -> bool {
        self.members.get(&seat.node).is_some_and(|member| member.about.life == seat.life)
    }
}
