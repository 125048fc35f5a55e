//! The stop lease: whether it is safe to give it, and when it ends by itself.
//!
//! It is given for one node while every other member is there, every other copy is level, and every
//! shard keeps its write quorum without that node. It ends when its time is over, or when its node
//! has been stopped *and* is back: another run of its process, a member that takes part, all its
//! copies level. That a process answers is no reason: it may be the one that is still to be stopped.

use std::time::Duration;

use super::Settings;
use super::evidence::Condition;
use super::health::Health;
use super::sight::{Leased, Presence, Sight};
use super::state::{keeps_up, needs};
use super::view::View;
use crate::entry::ShardId;
use crate::topology::{
    Configuration, Copies, LeaseStep, NodeId, Seat, Standing, StopLease, Topology,
};

/// What a node answered longer ago than this says nothing of the present.
const PRESENCE_FRESH: Duration = Duration::from_secs(2);

/// Why it is not safe to stop a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsafe {
    /// Shards that would lose their write quorum, or their majority.
    pub without_quorum: Vec<ShardId>,
    /// Shards with voting copies on other nodes that are not level.
    pub not_level: Vec<ShardId>,
    /// Other members that seem failed, or are about to stop.
    pub missing: Vec<NodeId>,
}

/// Whether `node` may be stopped: no other member is missing, no copy elsewhere is behind, and
/// every shard keeps `quorum` and a majority.
///
/// # Errors
/// All that speaks against it.
pub fn may_stop(
    topology: &Topology,
    sight: &Sight,
    settings: &Settings,
    node: NodeId,
    quorum: Copies,
) -> Result<(), Unsafe> {
    let assessments = Health::default().observe(topology, sight, settings);
    let view = View::new(topology, sight, settings, &assessments);
    let is_missing = |id: &NodeId| {
        let other = view.node(*id);
        let is_there = other
            .is_some_and(|other| other.is_well() && other.member.standing != Standing::Restarting);
        *id != node && !is_there
    };
    let is_behind = |(shard, configuration): &(ShardId, &Configuration)| {
        let others = configuration.sets().flatten().filter(|seat| seat.node != node);
        { others }.any(|seat| !is_level(&view, *shard, *seat))
    };
    let number = |(shard, _): (ShardId, &Configuration)| shard;
    let found = Unsafe {
        without_quorum: view
            .shards()
            .map(number)
            .filter(|s| needs(&view, *s, node, quorum))
            .collect(),
        not_level: view.shards().filter(is_behind).map(number).collect(),
        missing: topology.members.keys().copied().filter(is_missing).collect(),
    };
    if found == Unsafe::default() { Ok(()) } else { Err(found) }
}

/// Whether a node that should be running is: nothing speaks against it, or nothing is known.
pub fn may_run(topology: &Topology, sight: &Sight, settings: &Settings, node: NodeId) -> bool {
    let assessments = Health::default().observe(topology, sight, settings);
    let view = View::new(topology, sight, settings, &assessments);
    !matches!(view.node(node).map(super::view::Node::condition), Some(Condition::Failed(_)))
}

/// Whether a seat's copy has all that is committed, as the shard's primary has it.
pub(super) fn is_level(view: &View<'_>, shard: ShardId, seat: Seat) -> bool {
    let primary = view.active(shard);
    let leads = view.configuration(shard).primary == seat;
    view.has_memory(seat) && primary.is_some_and(|primary| leads || keeps_up(primary, seat))
}

/// The lease's end, if it is due.
pub(super) fn plan(view: &View<'_>, leased: Option<&Leased>) -> Option<LeaseStep> {
    let lease = view.topology.leases.held.as_ref()?;
    let (id, renewals) = (lease.id, lease.renewals);
    let leased = leased.filter(|known| known.id == id && known.renewals == renewals)?;
    let ttl = Duration::from_millis(lease.ttl_ms);
    if view.now.saturating_sub(leased.since) >= ttl {
        return Some(LeaseStep::RunOut { id, renewals });
    }
    let presence = leased.presence.as_ref()?;
    is_back(view, lease, presence).then_some(LeaseStep::Return { id, renewals })
}

/// Whether the lease's node has been stopped, and is back with all that it should hold.
fn is_back(view: &View<'_>, lease: &StopLease, presence: &Presence) -> bool {
    let is_fresh = view.now.saturating_sub(presence.at) <= PRESENCE_FRESH;
    let was_stopped = lease.run != Some(presence.run) || mutated!(LeaseBackWhenAnswering);
    let Some(node) = view.node(lease.node) else { return false };
    let takes_part = node.is_well() && node.member.standing != Standing::Restarting;
    is_fresh
        && was_stopped
        && takes_part
        && presence.behind == 0
        && view.shards().all(|(shard, _)| is_whole(view, shard, lease.node))
}

/// Whether a shard has no copy of the node that is not level, and no seat of a life that ended.
fn is_whole(view: &View<'_>, shard: ShardId, node: NodeId) -> bool {
    let configuration = view.configuration(shard);
    configuration.seats().into_iter().all(|seat| {
        let is_present = view.topology.is_present(seat);
        let votes_and_is_level = configuration.is_voter(seat) && is_level(view, shard, seat);
        is_present && (seat.node != node || votes_and_is_level)
    })
}
