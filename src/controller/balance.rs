//! Primaries move from nodes that lead more than their share to nodes that lead less.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::draft::{Draft, Reason};
use super::health::Fitness;
use super::note::HandOver;
use super::view::View;
use crate::entry::ShardId;
use crate::topology::{Copies, NodeId, Seat};

/// How many shards change hands in one plan.
const HAND_OVERS_MAX: usize = 8;

/// Moves some primaries, unless shards are without one.
pub(super) fn plan(draft: &mut Draft<'_>) {
    hand_over(draft, HAND_OVERS_MAX);
}

/// How many primaries are to change hands until there is balance.
pub(super) fn left(view: &View<'_>) -> usize {
    hand_over(&mut Draft::new(view), usize::MAX)
}

/// Moves so many primaries at most; how many moved.
fn hand_over(draft: &mut Draft<'_>, bound: usize) -> usize {
    let view = draft.view;
    if view.shards().any(|(shard, _)| is_between_primaries(view, shard)) {
        return 0;
    }
    let mut movable: BTreeMap<NodeId, Vec<ShardId>> = BTreeMap::new();
    for (shard, configuration) in view.shards() {
        let is_quiet = !configuration.is_joint() && configuration.learners.is_empty();
        if is_quiet && !draft.touches(shard) {
            movable.entry(configuration.primary.node).or_default().push(shard);
        }
    }
    let mut moved = 0;
    while moved < bound
        && let Some((shard, to)) = next(draft, &movable)
    {
        draft.lead(shard, to, Reason::HandedOver(HandOver::Balance));
        moved += 1;
    }
    moved
}

/// A majority could serve it, and no primary does yet.
fn is_between_primaries(view: &View<'_>, shard: ShardId) -> bool {
    let configuration = view.configuration(shard);
    view.active(shard).is_none()
        && configuration.has_quorum(Copies::Majority, |seat| view.has_memory(seat))
}

/// The hand-over between those furthest apart that some shard allows.
fn next(draft: &Draft<'_>, movable: &BTreeMap<NodeId, Vec<ShardId>>) -> Option<(ShardId, Seat)> {
    let view = draft.view;
    let mut least: Vec<Seat> = view
        .nodes()
        .filter(|(id, _)| view.fitness(*id) == Some(Fitness::Fit))
        .map(|(_, node)| node.member.seat())
        .collect();
    least.sort_by_key(|seat| (draft.load(seat.node, 1), *seat));
    let mut most: Vec<NodeId> = movable.keys().copied().collect();
    most.sort_by_key(|id| (Reverse(draft.load(*id, 0)), *id));
    for to in least {
        let after = draft.load(to.node, 1);
        for from in most.iter().take_while(|id| draft.load(**id, 0) > after) {
            let may_take =
                |shard: &&ShardId| !draft.touches(**shard) && is_level(view, **shard, to);
            if let Some(shard) = movable[from].iter().find(may_take) {
                return Some((*shard, to));
            }
        }
    }
    None
}

/// Whether the voter has all that is committed, and the connections to lead.
fn is_level(view: &View<'_>, shard: ShardId, seat: Seat) -> bool {
    let configuration = view.configuration(shard);
    let Some(primary) = view.active(shard) else { return false };
    let has_all = |(copy, seq): &(Seat, u64)| *copy == seat && *seq >= primary.committed;
    let is_able = configuration.voters.contains(&seat) && view.is_central(shard, seat);
    is_able && primary.copies.iter().any(has_all)
}
