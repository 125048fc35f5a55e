//! How each member has been of late: who may lead, and who has been gone for too long.
//!
//! Moving a primary away is cheap, so it is done on the first evidence. Giving primaries back waits
//! until the node has been well for a while, the longer the more often it has failed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Settings;
use super::evidence::{self, Condition, Failure};
use super::sight::{Seems, Sight};
use crate::topology::{Member, NodeId, Standing, Topology};

/// How long a node must have been well, after its first failure, before it is given primaries.
pub(super) const DAMPING: Duration = Duration::from_secs(3);
/// With each further failure twice as long, so often.
const DOUBLINGS_MAX: u32 = 6;
/// Well for so long, and earlier failures are forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_mins(10);
/// A member that was never met counts as failed after so long.
const UNKNOWN_GRACE: Duration = Duration::from_secs(5);
/// A clock further off than this is off ...
const CLOCK_OFF_MS: u64 = 500;
/// ... until it is nearer than this.
const CLOCK_WELL_MS: u64 = 400;

/// What is remembered of all members.
#[derive(Debug, Default)]
pub(super) struct Health(BTreeMap<NodeId, Course>);

/// What is remembered of one.
#[derive(Debug, Default)]
struct Course {
    is_failed: bool,
    is_clock_off: bool,
    /// Failures, beside planned restarts.
    flaps: u32,
    was_ill: bool,
    well_since: Option<Duration>,
    unseen_since: Option<Duration>,
}

/// What all that comes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assessment {
    pub(super) condition: Condition,
    /// Dead for longer than the rebalance delay: its places may go to others.
    pub(super) is_gone: bool,
    /// How fit it is to lead; not at all if it has failed or is unknown.
    pub(super) fitness: Option<Fitness>,
}

/// How fit a live node is to lead, the fittest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fitness {
    /// Fit.
    Fit,
    /// It failed lately.
    Damped,
    /// Its clock is off.
    ClockOff,
    /// It is being restarted or decommissioned.
    Leaving,
}

impl Health {
    /// Takes in what is seen now, and says what to make of each member.
    pub(super) fn observe(
        &mut self,
        topology: &Topology,
        sight: &Sight,
        settings: &Settings,
    ) -> BTreeMap<NodeId, Assessment> {
        self.0.retain(|node, _| topology.members.contains_key(node));
        let assess = |(node, member): (&NodeId, &Member)| {
            let course = self.0.entry(*node).or_default();
            let condition = evidence::condition(topology, sight, *node);
            (*node, course.assess(member, condition, sight, settings))
        };
        topology.members.iter().map(assess).collect()
    }
}

impl Course {
    fn assess(
        &mut self,
        member: &Member,
        mut condition: Condition,
        sight: &Sight,
        settings: &Settings,
    ) -> Assessment {
        let now = sight.now;
        let gossip = sight.alive.get(&member.node);
        let is_seen = gossip.is_some() || condition == Condition::Well;
        self.unseen_since = (!is_seen).then(|| self.unseen_since.unwrap_or(now));
        if condition == Condition::Unknown && self.unseen_for(now) >= UNKNOWN_GRACE {
            condition = Condition::Failed(Failure::Unseen);
        }
        let dead_for = match gossip {
            Some(seen) if seen.state == Seems::Dead => now.saturating_sub(seen.since),
            Some(_) => Duration::ZERO,
            None => self.unseen_for(now),
        };
        let is_failed = matches!(condition, Condition::Failed(_));
        let is_gone =
            is_failed && dead_for > Duration::ZERO && dead_for >= settings.rebalance_delay;
        self.read_clock(sight, member.node);
        self.follow(is_failed, member.standing, now);
        let fitness = (condition == Condition::Well).then(|| self.fitness(member.standing, now));
        Assessment { condition, is_gone, fitness }
    }

    fn unseen_for(&self, now: Duration) -> Duration {
        self.unseen_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    fn read_clock(&mut self, sight: &Sight, node: NodeId) {
        if evidence::has_fresh_report(sight, node) {
            let off = sight.reports[&node].clock_offset_ms.unsigned_abs();
            self.is_clock_off = off > if self.is_clock_off { CLOCK_WELL_MS } else { CLOCK_OFF_MS };
        }
    }

    fn follow(&mut self, is_failed: bool, standing: Standing, now: Duration) {
        if is_failed && !self.is_failed && standing == Standing::Member {
            self.flaps += 1;
        }
        self.is_failed = is_failed;
        if is_failed || self.is_clock_off || standing != Standing::Member {
            self.was_ill = true;
            self.well_since = None;
            return;
        }
        let since = *self.well_since.get_or_insert(now);
        if now.saturating_sub(since) >= FORGIVEN_AFTER {
            (self.flaps, self.was_ill) = (0, false);
        }
    }

    fn fitness(&self, standing: Standing, now: Duration) -> Fitness {
        let damping = DAMPING * (1 << self.flaps.saturating_sub(1).min(DOUBLINGS_MAX));
        let is_damped = |since| self.was_ill && now.saturating_sub(since) < damping;
        if standing != Standing::Member {
            Fitness::Leaving
        } else if self.is_clock_off {
            Fitness::ClockOff
        } else if self.well_since.is_some_and(is_damped) {
            Fitness::Damped
        } else {
            Fitness::Fit
        }
    }
}
