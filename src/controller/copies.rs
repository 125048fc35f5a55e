//! Which nodes hold copies: seats of lost lives, too few voters, too many, places of the gone and
//! the leaving, moves for balance.
//!
//! For each shard the wanted nodes follow from who holds it now and how the members stand; only
//! moves for balance are remembered. Then one step is taken towards them: learners come or go, the
//! voters become joint once the learners are level, and are one set again after that. Every step
//! starts from an epoch whose primary reports itself active. A voter that is not wanted any more
//! stays until as many as should vote without it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::draft::{Draft, Reason};
use super::failover::successor;
use super::health::Fitness;
use super::level::{Budget, Levels, learners_max};
use super::note::{HandOver, Note};
use super::view::{Node, View};
use crate::entry::ShardId;
use crate::topology::placement::{Relocation, Room, Rooms};
use crate::topology::{Configuration, NodeId, Seat, Standing};

/// How long level learners wait for others of their shard, so that one change serves all.
const COMPANY_WAIT: Duration = Duration::from_secs(2);

/// How often moves for balance are looked for.
const RELOCATION_INTERVAL: Duration = Duration::from_secs(1);

/// What is remembered of copies between plans.
#[derive(Clone, Debug, Default)]
pub(super) struct CopyRules {
    levels: Levels,
    /// Moves for balance, until done.
    moves: BTreeMap<ShardId, Relocation>,
    /// Since when level learners wait for others.
    waits: BTreeMap<ShardId, Duration>,
    looked_at: Option<Duration>,
    /// Nodes that were said to be given copies.
    filling: BTreeSet<NodeId>,
    /// Nodes that were said to be empty.
    emptied: BTreeSet<NodeId>,
}

/// What one plan works with.
struct Work {
    rooms: Rooms,
    budget: Budget,
    level: BTreeMap<ShardId, Vec<Seat>>,
    /// Shards where all is as it should be, and their nodes.
    settled: Vec<(ShardId, Vec<NodeId>)>,
    /// How many copies each live node still lacks.
    missing: BTreeMap<NodeId, usize>,
}

impl CopyRules {
    /// Takes the next step for each shard that has not changed yet.
    pub(super) fn plan(&mut self, draft: &mut Draft<'_>, notes: &mut Vec<Note>) {
        let view = draft.view;
        self.moves
            .retain(|shard, relocation| is_under_way(view, view.configuration(*shard), relocation));
        let level = self.levels.read(view);
        let have: Vec<Vec<NodeId>> = view
            .shards()
            .map(|(shard, configuration)| self.have(view, shard, configuration))
            .collect();
        let mut work = Work {
            rooms: rooms(view, &have),
            budget: Budget::new(view, &level),
            level,
            settled: Vec::new(),
            missing: BTreeMap::new(),
        };
        for ((shard, configuration), have) in view.shards().zip(have) {
            if draft.touches(shard) || view.active(shard).is_none() {
                count_missing(view, configuration, &[], &mut work.missing);
            } else if configuration.is_joint() {
                count_missing(view, configuration, &[], &mut work.missing);
                leave_joint(draft, shard, configuration);
            } else {
                let wanted = wanted(view, &mut work.rooms, configuration, &have);
                count_missing(view, configuration, &wanted, &mut work.missing);
                self.step(draft, &mut work, shard, &wanted);
            }
        }
        self.relocate(view, &mut work);
        self.tell(view, &work.missing, notes);
    }

    /// The nodes that hold the shard and may keep it, or are about to.
    fn have(&self, view: &View<'_>, shard: ShardId, configuration: &Configuration) -> Vec<NodeId> {
        let keeps = |id: NodeId| view.node(id).is_some_and(|node| node.stays() && !node.is_gone());
        let mut have: Vec<NodeId> = Vec::new();
        for seat in &configuration.voters {
            if keeps(seat.node) {
                have.push(seat.node);
            }
        }
        for seat in &configuration.learners {
            let is_short = have.len() < view.settings.replication_factor;
            if is_short && keeps(seat.node) && !have.contains(&seat.node) {
                have.push(seat.node);
            }
        }
        if let Some(Relocation { from, to, .. }) = self.moves.get(&shard)
            && !have.contains(to)
            && let Some(place) = have.iter_mut().find(|node| *node == from)
        {
            *place = *to;
        }
        have
    }

    /// One step towards `wanted` for a shard that is active and not joint.
    fn step(&mut self, draft: &mut Draft<'_>, work: &mut Work, shard: ShardId, wanted: &[NodeId]) {
        let view = draft.view;
        let present = view.configuration(shard);
        let seats: Vec<Seat> = wanted.iter().filter_map(|id| view.present_seat(*id)).collect();
        if seats.is_empty() {
            return;
        }
        let learners = learners(view, &mut work.budget, shard, &seats);
        let level = work.level.get(&shard).map_or(&[][..], Vec::as_slice);
        let is_ready = |seat: &Seat| present.voters.contains(seat) || level.contains(seat);
        let voters = voters(view, present, &seats, is_ready);
        let mut next = Configuration { learners, unclean: false, ..present.clone() };
        let has_majority =
            2 * voters.iter().filter(|s| view.has_memory(**s)).count() > voters.len();
        let is_change = !same(&voters, &present.voters);
        if is_change && has_majority {
            let others =
                next.learners.iter().any(|seat| view.is_well(seat.node) && !is_ready(seat));
            let since = *self.waits.entry(shard).or_insert(view.now);
            if !others || view.now.saturating_sub(since) >= COMPANY_WAIT {
                next.learners.retain(|seat| !voters.contains(seat));
                next.old_voters = std::mem::replace(&mut next.voters, voters);
            }
        }
        if !is_change || next.is_joint() {
            self.waits.remove(&shard);
        }
        if next.is_joint() || next.learners != present.learners {
            draft.set(shard, next, Reason::Copies);
        } else if !is_change && present.learners.is_empty() {
            work.settled.push((shard, wanted.to_vec()));
        }
    }

    /// Looks for moves that balance, while all is well.
    fn relocate(&mut self, view: &View<'_>, work: &mut Work) {
        let looked = self.looked_at.map_or(Duration::MAX, |at| view.now.saturating_sub(at));
        let is_calm = view.nodes().all(|(id, node)| {
            node.is_well() && (view.fitness(id) != Some(Fitness::Leaving) || !node.stays())
        });
        if looked < RELOCATION_INTERVAL || !is_calm {
            return;
        }
        self.looked_at = Some(view.now);
        let bound = learners_max(view).saturating_sub(self.moves.len());
        for relocation in work.rooms.relocate(&work.settled, bound) {
            self.moves.insert(relocation.shard, relocation);
        }
    }

    /// Says once who is being given copies, who has them all, and who has none left.
    fn tell(&mut self, view: &View<'_>, missing: &BTreeMap<NodeId, usize>, notes: &mut Vec<Note>) {
        for (id, shards) in missing {
            if self.filling.insert(*id) {
                let (node, shards) = (view.topology.name(*id), *shards);
                notes.push(Note::CopiesStarted { node, shards });
            }
        }
        self.filling.retain(|id| {
            let is_done = !missing.contains_key(id);
            if is_done && view.is_well(*id) {
                notes.push(Note::CopiesDone { node: view.topology.name(*id) });
            }
            !is_done
        });
        let is_leaving = |id: NodeId| {
            view.node(id).is_some_and(|n| n.member.standing == Standing::Decommissioning)
        };
        self.emptied.retain(|id| is_leaving(*id));
        let mut holders = BTreeSet::new();
        for (_, configuration) in view.shards() {
            holders.extend(configuration.seats().into_iter().map(|seat| seat.node));
        }
        for (id, _) in view.nodes().filter(|(id, _)| is_leaving(*id) && !holders.contains(id)) {
            if self.emptied.insert(id) {
                notes.push(Note::Emptied { node: view.topology.name(id) });
            }
        }
    }
}

/// Whether a move for balance is still to be done, and can be.
fn is_under_way(view: &View<'_>, configuration: &Configuration, relocation: &Relocation) -> bool {
    let holds = |set: &[Seat], id: NodeId| set.iter().any(|seat| seat.node == id);
    let is_done = !configuration.is_joint() && holds(&configuration.voters, relocation.to);
    let is_possible = |node: &Node<'_>| {
        let has_begun = configuration.seat_of(relocation.to).is_some();
        node.stays() && !node.is_gone() && (has_begun || node.is_open())
    };
    let is_needed = configuration.sets().any(|set| holds(set, relocation.from));
    is_needed && !is_done && view.node(relocation.to).is_some_and(is_possible)
}

pub(super) fn rooms(view: &View<'_>, have: &[Vec<NodeId>]) -> Rooms {
    let mut copies: BTreeMap<NodeId, usize> = BTreeMap::new();
    for id in have.iter().flatten() {
        *copies.entry(*id).or_default() += 1;
    }
    let room = |(id, node): (NodeId, &Node<'_>)| {
        let zone = node.member.about.zone.clone();
        let (memory_bytes, open) = (node.memory_bytes(), node.is_open());
        (id, Room { zone, memory_bytes, open, copies: copies.get(&id).copied().unwrap_or(0) })
    };
    Rooms::new(view.nodes().map(room).collect())
}

/// The nodes that should hold the shard: as many as the replication factor, as far as there are.
/// A gone node keeps its place where nobody can take it.
pub(super) fn wanted(
    view: &View<'_>,
    rooms: &mut Rooms,
    configuration: &Configuration,
    have: &[NodeId],
) -> Vec<NodeId> {
    let count = view.settings.replication_factor;
    let mut wanted = rooms.choose(have, count);
    for seat in &configuration.voters {
        let stays = view.node(seat.node).is_some_and(Node::stays);
        if wanted.len() < count && stays && !wanted.contains(&seat.node) {
            wanted.push(seat.node);
        }
    }
    wanted
}

/// The learners that are wanted: those there are, and new ones as far as the budget goes.
fn learners(view: &View<'_>, budget: &mut Budget, shard: ShardId, seats: &[Seat]) -> Vec<Seat> {
    let present = view.configuration(shard);
    let mut learners = present.learners.clone();
    learners.retain(|seat| seats.contains(seat));
    for seat in seats {
        let is_new = !present.names(*seat);
        let is_open = view.node(seat.node).is_some_and(Node::is_open);
        let is_near = is_open && view.is_central(shard, *seat);
        if is_new && is_near && budget.take(view, seat.node, shard) {
            learners.push(*seat);
        }
    }
    learners
}

/// The voters that should be next: the wanted seats that are ready, and for those that are not yet
/// the present voters, live ones first.
fn voters(
    view: &View<'_>,
    present: &Configuration,
    wanted: &[Seat],
    is_ready: impl Fn(&Seat) -> bool,
) -> Vec<Seat> {
    let mut voters: Vec<Seat> = wanted.iter().copied().filter(is_ready).collect();
    let mut others = present.voters.clone();
    others.retain(|seat| voters.iter().all(|voter| voter.node != seat.node));
    others.sort_by_key(|seat| !view.has_memory(*seat));
    let short = wanted.len().saturating_sub(voters.len());
    voters.extend(others.into_iter().take(short));
    voters
}

/// From two sets of voters to the new one; by way of a primary that is in it.
fn leave_joint(draft: &mut Draft<'_>, shard: ShardId, present: &Configuration) {
    if present.voters.contains(&present.primary) {
        let old_voters = Vec::new();
        let next = Configuration { old_voters, unclean: false, ..present.clone() };
        draft.set(shard, next, Reason::Copies);
    } else if let Some(next) = successor(draft, shard, &present.voters) {
        draft.lead(shard, next, Reason::HandedOver(HandOver::Moving));
    }
}

/// Counts the copies that live nodes do not have yet, of those wanted or begun.
fn count_missing(
    view: &View<'_>,
    configuration: &Configuration,
    wanted: &[NodeId],
    missing: &mut BTreeMap<NodeId, usize>,
) {
    let begun = configuration.learners.iter().map(|seat| seat.node);
    let mut nodes: Vec<NodeId> = begun.chain(wanted.iter().copied()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    for id in nodes {
        let votes = view.present_seat(id).is_some_and(|seat| configuration.is_voter(seat));
        if !votes && view.is_well(id) {
            *missing.entry(id).or_default() += 1;
        }
    }
}

fn same(a: &[Seat], b: &[Seat]) -> bool {
    a.len() == b.len() && a.iter().all(|seat| b.contains(seat))
}
