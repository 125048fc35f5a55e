//! How shards are, in the words that operators see, and whether a node can be stopped.

use serde::Serialize;

use super::Settings;
use super::health::Health;
use super::sight::{ShardReport, Sight};
use super::view::View;
use crate::entry::ShardId;
use crate::topology::{Copies, NodeId, Seat, Topology};

/// A voter that is no further behind than this keeps up: under steady writes some are always on
/// their way.
const IN_FLIGHT_RECORDS: u64 = 1_000;

/// How a shard is; in JSON, `snake_case` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardState {
    /// It has all the copies it should have.
    Healthy,
    /// It is served, and has fewer copies than it should; none is on its way.
    UnderReplicated,
    /// It is served, and has fewer copies than it should; they are on their way.
    CatchingUp,
    /// It has all its copies, and some of them move.
    Moving,
    /// It has no active primary, or no majority.
    Unavailable,
}

/// Why a node cannot be stopped: some shards would be left without a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{shards} shards, shard {first} among them, would be left without a quorum; wait until their \
     other copies are there",
    first = first.0
)]
pub struct Needed {
    /// The first of them.
    pub first: ShardId,
    /// How many there are.
    pub shards: usize,
}

/// The state of every shard, in the order of shards.
pub fn shard_states(topology: &Topology, sight: &Sight, settings: &Settings) -> Vec<ShardState> {
    let assessments = Health::default().observe(topology, sight, settings);
    let view = View::new(topology, sight, settings, &assessments);
    // Every member is counted, also one that has long been dead, or is to leave, until it is
    // removed: the operator wants to know.
    let copies = settings.replication_factor.min(topology.members.len());
    view.shards().map(|(shard, _)| state(&view, shard, copies)).collect()
}

/// Whether every shard keeps `quorum`, and a majority, of each of its sets of voters while `node`
/// is down: of voters that live, remember, and keep up.
///
/// # Errors
/// [`Needed`] if some shards would not.
pub fn keeps_quorum_without(
    topology: &Topology,
    sight: &Sight,
    settings: &Settings,
    node: NodeId,
    quorum: Copies,
) -> Result<(), Needed> {
    let assessments = Health::default().observe(topology, sight, settings);
    let view = View::new(topology, sight, settings, &assessments);
    let mut needed = view.shards().filter(|(shard, _)| needs(&view, *shard, node, quorum));
    let Some((first, _)) = needed.next() else { return Ok(()) };
    Err(Needed { first, shards: 1 + needed.count() })
}

/// Whether the shard would lose `quorum`, or its majority, while `node` is down.
pub(super) fn needs(view: &View<'_>, shard: ShardId, node: NodeId, quorum: Copies) -> bool {
    let Some(primary) = view.active(shard) else { return true };
    let configuration = view.configuration(shard);
    let counts = |seat: Seat| {
        let keeps_up = seat == configuration.primary || keeps_up(primary, seat);
        view.has_memory(seat) && keeps_up && seat.node != node
    };
    let keeps = |copies| configuration.has_quorum(copies, counts);
    !(keeps(Copies::Majority) && keeps(quorum))
}

/// Whether the seat has acknowledged all that is committed, but for what may be on its way.
pub(super) fn keeps_up(primary: &ShardReport, seat: Seat) -> bool {
    let has = |(copy, acknowledged): &(Seat, u64)| {
        *copy == seat && acknowledged.saturating_add(IN_FLIGHT_RECORDS) >= primary.committed
    };
    primary.copies.iter().any(has)
}

fn state(view: &View<'_>, shard: ShardId, copies: usize) -> ShardState {
    let configuration = view.configuration(shard);
    let has_majority = configuration.has_quorum(Copies::Majority, |seat| view.has_memory(seat));
    let Some(primary) = view.active(shard).filter(|_| has_majority) else {
        return ShardState::Unavailable;
    };
    let live = configuration.voters.iter().filter(|seat| view.has_memory(**seat)).count();
    let is_coming = configuration.learners.iter().any(|seat| view.has_memory(*seat));
    let is_behind = configuration.voters.iter().any(|seat| {
        *seat != configuration.primary && view.has_memory(*seat) && !keeps_up(primary, *seat)
    });
    if live < copies.max(configuration.voters.len().min(view.settings.replication_factor)) {
        if is_coming { ShardState::CatchingUp } else { ShardState::UnderReplicated }
    } else if is_behind {
        ShardState::CatchingUp
    } else if configuration.is_joint() || is_coming {
        ShardState::Moving
    } else {
        ShardState::Healthy
    }
}
