//! What is still to be done until nothing is copied, moved or balanced any more, the planned
//! included, and how long that may take.
//!
//! The same rules as the plan's, carried on to their end on paper. Any member can tell, since it
//! needs nothing that only the leader remembers; so it may count a move more or less than there
//! will be, but none where there will be none, and some where there will be some.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::Settings;
use super::balance;
use super::copies;
use super::health::{Fitness, Health, has_late_disk};
use super::lease::is_level;
use super::sight::Sight;
use super::view::View;
use crate::entry::ShardId;
use crate::topology::{Configuration, NodeId, Seat, Topology};

/// The moves that settle a cluster come to their end long before this.
const ROUNDS_MAX: usize = 64;

/// The pace of the moves is taken from so long a time.
const PACE_OVER: Duration = Duration::from_mins(2);

/// What is still to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Whether every shard has all its copies, where they should be, and led by whom it should.
    pub is_settled: bool,
    /// Copies that are still to be moved or made, and primaries that are to change.
    pub moves_left: usize,
}

impl Outlook {
    /// By what is seen now.
    pub fn new(topology: &Topology, sight: &Sight, settings: &Settings) -> Self {
        let mut assessments = Health::default().observe(topology, sight, settings);
        for (node, assessment) in &mut assessments {
            // That a disk is slow is known only by watching it; that it is late now has to do.
            if assessment.fitness.is_some() && has_late_disk(sight, *node) {
                assessment.fitness = assessment.fitness.max(Some(Fitness::DiskSlow));
            }
        }
        let view = View::new(topology, sight, settings, &assessments);
        let moves_left = copies_left(&view) + balance::left(&view);
        let stay = view.nodes().filter(|(_, node)| node.stays()).count();
        let copies = settings.replication_factor.min(stay);
        let is_done = |(shard, _)| has_all(&view, shard, copies);
        Self { is_settled: moves_left == 0 && view.shards().all(is_done), moves_left }
    }
}

/// Whether a shard has so many copies, all of them level, and none on its way.
fn has_all(view: &View<'_>, shard: ShardId, copies: usize) -> bool {
    let configuration = view.configuration(shard);
    let level = configuration.voters.iter().filter(|seat| is_level(view, shard, **seat)).count();
    let is_quiet = !configuration.is_joint() && configuration.learners.is_empty();
    is_quiet && level >= copies && level == configuration.voters.len()
}

/// Copies that are to be made or to go, each pair of the two once, and then those that move for
/// balance.
fn copies_left(view: &View<'_>) -> usize {
    let have: Vec<Vec<NodeId>> = view.shards().map(|(_, shard)| have(view, shard)).collect();
    let mut rooms = copies::rooms(view, &have);
    let mut left = 0;
    let mut targets: Vec<(ShardId, Vec<NodeId>)> = Vec::with_capacity(have.len());
    for ((shard, configuration), have) in view.shards().zip(have) {
        let wanted = copies::wanted(view, &mut rooms, configuration, &have);
        left += steps(view, configuration, &wanted);
        targets.push((shard, wanted));
    }
    for _ in 0..ROUNDS_MAX {
        let moves = rooms.relocate(&targets, usize::MAX);
        if moves.is_empty() {
            break;
        }
        left += moves.len();
        for relocation in moves {
            let nodes = &mut targets[usize::from(relocation.shard.0)].1;
            if let Some(place) = nodes.iter_mut().find(|node| **node == relocation.from) {
                *place = relocation.to;
            }
        }
    }
    left
}

/// The nodes that hold the shard, or are about to, and may.
fn have(view: &View<'_>, configuration: &Configuration) -> Vec<NodeId> {
    let keeps = |id: &NodeId| view.node(*id).is_some_and(|node| node.stays() && !node.is_gone());
    let seats = configuration.voters.iter().chain(&configuration.learners);
    let mut known = BTreeSet::new();
    seats.map(|seat| seat.node).filter(keeps).filter(|node| known.insert(*node)).collect()
}

fn steps(view: &View<'_>, configuration: &Configuration, wanted: &[NodeId]) -> usize {
    let seats: Vec<Seat> = wanted.iter().filter_map(|id| view.present_seat(*id)).collect();
    let votes = |seat: &&Seat| configuration.voters.contains(*seat);
    let to_come = seats.iter().filter(|seat| !votes(seat)).count();
    let held = configuration.seats();
    let to_go = held.iter().filter(|seat| !seats.contains(*seat)).count();
    let is_changing = configuration.is_joint() || !configuration.learners.is_empty();
    to_come.max(to_go).max(usize::from(is_changing))
}

/// How fast moves come to their end.
#[derive(Clone, Debug, Default)]
pub struct Pace(VecDeque<(Duration, usize)>);

impl Pace {
    /// Takes in how many moves are left at this moment, on a clock that only moves forward.
    pub fn observe(&mut self, now: Duration, left: usize) {
        if self.0.back().is_some_and(|(_, before)| left > *before) || left == 0 {
            // More has come; or all is done, and what comes next has a pace of its own.
            self.0.clear();
        }
        self.0.retain(|(at, _)| now.saturating_sub(*at) <= PACE_OVER);
        if left > 0 {
            self.0.push_back((now, left));
        }
    }

    /// When the last of so many moves may be done, counted from now; `None` if nothing was done yet
    /// to tell by.
    pub fn estimate(&self, left: usize) -> Option<Duration> {
        if left == 0 {
            return Some(Duration::ZERO);
        }
        let ((first, most), (last, least)) = (*self.0.front()?, *self.0.back()?);
        let done = u32::try_from(most.saturating_sub(least)).ok().filter(|done| *done > 0)?;
        Some((last - first) * u32::try_from(left).unwrap_or(u32::MAX) / done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::{Memory, STEP, World};
    use super::*;
    use crate::topology::Standing;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn outlook(world: &mut World) -> Outlook {
        let sight = world.sight();
        Outlook::new(&world.topology, &sight, &world.settings)
    }

    const SETTLED: Outlook = Outlook { is_settled: true, moves_left: 0 };

    #[test]
    fn planned_moves_are_counted_before_they_begin() {
        let mut world = World::of(3, 30);
        assert_eq!(outlook(&mut world), SETTLED);
        world.join("");
        // A quarter of 90 copies; primaries follow them.
        assert_eq!(outlook(&mut world).moves_left, 22);
        assert!(!outlook(&mut world).is_settled);
        world.settle();
        assert_eq!(outlook(&mut world), SETTLED);
    }

    #[test]
    fn what_is_left_becomes_less_until_nothing_is() {
        let mut world = World::of(3, 30);
        world.join("");
        let mut seen = Vec::new();
        for _ in 0..400 {
            world.step();
            let Outlook { is_settled, moves_left } = outlook(&mut world);
            assert!(!is_settled || moves_left == 0);
            seen.push(moves_left);
        }
        seen.dedup();
        assert!(seen.len() > 3 && seen.last() == Some(&0), "{seen:?}");
        assert_eq!(outlook(&mut world), SETTLED);
    }

    #[test]
    fn a_cluster_is_not_settled_while_a_node_is_down_or_its_primaries_are_elsewhere() {
        let mut world = World::of(3, 30);
        world.kill(3);
        world.run(seconds(2));
        assert!(!outlook(&mut world).is_settled);
        world.revive(3, Memory::Kept);
        world.run(seconds(1));
        // It is given primaries only once it has been well for three seconds.
        assert_eq!(outlook(&mut world), Outlook { is_settled: false, moves_left: 10 });
        world.settle();
        assert_eq!(outlook(&mut world), SETTLED);
    }

    #[test]
    fn a_node_that_leaves_does_not_count_once_it_is_empty() {
        let mut world = World::of(3, 30);
        world.stand(3, Standing::Decommissioning);
        assert!(!outlook(&mut world).is_settled);
        world.settle();
        assert_eq!(outlook(&mut world), SETTLED);
    }

    #[test]
    fn a_disk_that_is_late_keeps_nobody_waiting_for_primaries_that_will_not_come() {
        let mut world = World::of(3, 30);
        world.set_disk(3, 3_000);
        world.run(seconds(20));
        world.run(STEP);
        assert_eq!(world.primaries(), [15, 15, 0]);
        assert_eq!(outlook(&mut world), SETTLED);
    }

    #[test]
    fn an_estimate_goes_by_what_was_done_and_begins_anew_when_more_comes() {
        let mut pace = Pace::default();
        assert_eq!(pace.estimate(0), Some(Duration::ZERO));
        pace.observe(seconds(10), 100);
        assert_eq!(pace.estimate(100), None, "nothing is done yet");
        pace.observe(seconds(20), 80);
        assert_eq!(pace.estimate(80), Some(seconds(40)));
        pace.observe(seconds(30), 50);
        assert_eq!(pace.estimate(50), Some(seconds(20)));
        pace.observe(seconds(31), 90);
        assert_eq!(pace.estimate(90), None, "more has come");
        pace.observe(seconds(41), 80);
        pace.observe(seconds(300), 79);
        assert_eq!(pace.estimate(79), None, "what was done long ago tells nothing");
        pace.observe(seconds(301), 0);
        pace.observe(seconds(302), 5);
        assert_eq!(pace.estimate(5), None);
    }
}
