//! Which learners have caught up, and how many more may be added.

use std::collections::BTreeMap;
use std::time::Duration;

use super::view::{Node, View};
use crate::entry::ShardId;
use crate::topology::{NodeId, Seat};

/// How many shards with much in them one move may bring level at a time.
const LEARNERS_PER_MOVE: usize = 8;

/// What bringing a shard level costs, of the budget that a node has.
const SHARD_COST: usize = 16;

/// What it costs if there is next to nothing in it.
const SMALL_SHARD_COST: usize = 1;

/// A log so short has next to nothing in it.
const SMALL_SHARD_RECORDS: u64 = 128;

/// How old a mark becomes before the next is set.
const MARK_AGE: Duration = Duration::from_millis(200);

/// Remembers what was committed a moment ago: under steady writes a learner never has all that is
/// committed now, and is level if it has all that was committed when its primary last spoke.
#[derive(Clone, Debug, Default)]
pub(super) struct Levels(BTreeMap<ShardId, Mark>);

#[derive(Clone, Copy, Debug)]
struct Mark {
    epoch: u32,
    /// When the primary reported it.
    at: Duration,
    committed: u64,
}

impl Levels {
    /// The learners of live nodes that are level, by what the active primaries report.
    pub(super) fn read(&mut self, view: &View<'_>) -> BTreeMap<ShardId, Vec<Seat>> {
        self.0.retain(|shard, _| !view.configuration(*shard).learners.is_empty());
        let mut level = BTreeMap::new();
        for (shard, configuration) in view.shards() {
            if configuration.learners.is_empty() {
                continue;
            }
            let Some(primary) = view.active(shard) else { continue };
            let node = view.node(configuration.primary.node);
            let at = node.and_then(Node::report).map_or(view.now, |report| report.at);
            let fresh = Mark { epoch: configuration.epoch, at, committed: primary.committed };
            let mark = self.0.entry(shard).or_insert(fresh);
            if mark.epoch != fresh.epoch {
                *mark = fresh;
            }
            let needed = mark.committed.min(primary.committed);
            let acknowledged = |seat: Seat| {
                let copy = primary.copies.iter().find(|(copy, _)| *copy == seat);
                copy.map(|(_, acknowledged)| *acknowledged)
            };
            let is_level = |seat: &Seat| {
                view.has_memory(*seat) && acknowledged(*seat).is_some_and(|seq| seq >= needed)
            };
            let seats = configuration.learners.iter().copied().filter(is_level).collect();
            level.insert(shard, seats);
            if at.saturating_sub(mark.at) >= MARK_AGE {
                *mark = fresh;
            }
        }
        level
    }
}

/// How much copying is under way to each node.
#[derive(Debug)]
pub(super) struct Budget {
    used: BTreeMap<NodeId, usize>,
    bound: usize,
}

impl Budget {
    /// With the learners that are being brought level now.
    pub(super) fn new(view: &View<'_>, level: &BTreeMap<ShardId, Vec<Seat>>) -> Self {
        let bound = learners_max(view) * SHARD_COST;
        let mut used: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (shard, configuration) in view.shards() {
            for seat in &configuration.learners {
                if !level.get(&shard).is_some_and(|level| level.contains(seat)) {
                    *used.entry(seat.node).or_default() += cost(view, shard);
                }
            }
        }
        Self { used, bound }
    }

    /// Takes what a copy of the shard costs; `false` if the node has too much under way.
    pub(super) fn take(&mut self, view: &View<'_>, node: NodeId, shard: ShardId) -> bool {
        let used = self.used.entry(node).or_default();
        let fits = *used + cost(view, shard) <= self.bound;
        *used += if fits { cost(view, shard) } else { 0 };
        fits
    }
}

/// How many shards with much in them may be brought level on one node at a time.
pub(super) fn learners_max(view: &View<'_>) -> usize {
    view.settings.moves_per_node_max * LEARNERS_PER_MOVE
}

fn cost(view: &View<'_>, shard: ShardId) -> usize {
    let is_small = |committed| committed <= SMALL_SHARD_RECORDS;
    match view.active(shard) {
        Some(primary) if is_small(primary.committed) => SMALL_SHARD_COST,
        _ => SHARD_COST,
    }
}
