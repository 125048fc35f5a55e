//! How each member has been of late: who may lead, and who has been gone for too long.
//!
//! Moving a primary away is cheap, so it is done on the first evidence. Giving primaries back waits
//! until the node has been well for a while, the longer the more often it has failed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Settings;
use super::evidence::{self, Condition, Evidence, Failure};
use super::sight::Sight;
use crate::topology::{Member, NodeId, Standing, Topology};

/// How long a node must have been well, after its first failure, before it is given primaries.
pub(super) const DAMPING: Duration = Duration::from_secs(3);
/// With each further failure twice as long, so often.
const DOUBLINGS_MAX: u32 = 6;
/// Well for so long, and earlier failures are forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_mins(10);
/// A member that was never met counts as failed after so long.
const UNKNOWN_GRACE: Duration = Duration::from_secs(5);
/// A silent node is asked so long before its silence has lasted for the rebalance delay ...
const ASKED_AHEAD: Duration = Duration::from_secs(3);
/// ... and again and again: an inquiry proves nothing for longer.
pub(super) const INQUIRY_FRESH: Duration = Duration::from_secs(15);
/// A node that has lacked connections with most of the members for so long hands over what it leads.
const LONELY_AFTER: Duration = Duration::from_secs(3);
/// A clock further off than this is off ...
const CLOCK_OFF_MS: u64 = 500;
/// ... until it is nearer than this.
const CLOCK_WELL_MS: u64 = 400;

/// A disk that takes longer than this, and so many times as long as those of most others, ...
const DISK_SLOW_MS: u32 = 500;
const DISK_SLOW_TIMES: u32 = 4;
/// ... for so long, is slow ...
const DISK_SLOW_AFTER: Duration = Duration::from_secs(3);
/// ... until it takes no longer than this.
const DISK_WELL_MS: u32 = 250;

/// What is remembered of all members.
#[derive(Clone, Debug, Default)]
pub(super) struct Health(BTreeMap<NodeId, Course>);

/// What is remembered of one.
#[derive(Clone, Debug, Default)]
struct Course {
    is_failed: bool,
    is_clock_off: bool,
    /// Failures, beside planned restarts, and how often its disk was slow.
    flaps: u32,
    was_ill: bool,
    well_since: Option<Duration>,
    unseen_since: Option<Duration>,
    /// It is not connected with this node, or not with most of the members.
    is_apart: bool,
    /// Since when it has not been connected with most of the members.
    lonely_since: Option<Duration>,
    /// When something last told of it.
    heard_at: Option<Duration>,
    /// Since when its disk has taken much longer than others'.
    disk_late_since: Option<Duration>,
    is_disk_slow: bool,
}

/// What all that comes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assessment {
    pub(super) condition: Condition,
    /// No way has told of it for the rebalance delay, and it was asked and did not answer: its
    /// places may go to others.
    pub(super) is_gone: bool,
    /// It has been silent for so long that it is to be asked by every way.
    pub(super) is_to_be_asked: bool,
    /// It has lacked connections with most of the members for a while.
    pub(super) is_long_lonely: bool,
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
    /// It is badly connected.
    Apart,
    /// Its disk keeps writes waiting.
    DiskSlow,
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
        let evidence = Evidence::new(topology, sight);
        let disks = usual_disk_delay(sight);
        let assess = |(node, member): (&NodeId, &Member)| {
            let course = self.0.entry(*node).or_default();
            course.read_disk(sight, *node, disks);
            (*node, course.assess(member, &evidence, sight, settings))
        };
        topology.members.iter().map(assess).collect()
    }
}

/// How long the disks of most members take, in milliseconds, by fresh reports; of two the faster.
fn usual_disk_delay(sight: &Sight) -> u32 {
    let fresh = sight.reports.iter().filter(|(node, _)| evidence::has_fresh_report(sight, **node));
    let mut delays: Vec<u32> = fresh.map(|(_, report)| report.disk_delay_ms).collect();
    delays.sort_unstable();
    delays.get(delays.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

fn is_far_off(delay_ms: u32, usual_ms: u32) -> bool {
    delay_ms > usual_ms.saturating_mul(DISK_SLOW_TIMES)
}

fn is_late(delay_ms: u32, usual_ms: u32) -> bool {
    delay_ms > DISK_SLOW_MS && is_far_off(delay_ms, usual_ms)
}

/// Whether a node's disk takes much longer than most others' at this moment, by a fresh report.
pub(super) fn has_late_disk(sight: &Sight, node: NodeId) -> bool {
    evidence::fresh_report(sight, node)
        .is_some_and(|report| is_late(report.disk_delay_ms, usual_disk_delay(sight)))
}

impl Course {
    fn assess(
        &mut self,
        member: &Member,
        evidence: &Evidence<'_>,
        sight: &Sight,
        settings: &Settings,
    ) -> Assessment {
        let (now, node) = (sight.now, member.node);
        let mut condition = evidence.condition(node);
        let is_seen = sight.alive.contains_key(&node) || condition == Condition::Well;
        self.unseen_since = (!is_seen).then(|| self.unseen_since.unwrap_or(now));
        if condition == Condition::Unknown && self.unseen_for(now) >= UNKNOWN_GRACE {
            condition = Condition::Failed(Failure::Unseen);
        }
        let is_failed = matches!(condition, Condition::Failed(_));
        let silent_for = self.silent_for(evidence.silent_since(node), sight, node);
        let inquiry = sight.inquiries.get(&node).filter(|inquiry| {
            let is_of_this_silence = now.saturating_sub(inquiry.at) <= silent_for;
            is_of_this_silence && now.saturating_sub(inquiry.at) <= INQUIRY_FRESH
        });
        let has_not_answered = inquiry.is_some_and(|inquiry| !inquiry.is_answered);
        let delay = settings.rebalance_delay;
        self.read_clock(sight, node);
        let is_lonely = condition == Condition::Well && !evidence.is_central(node);
        self.lonely_since = is_lonely.then(|| self.lonely_since.unwrap_or(now));
        self.is_apart = is_lonely || !evidence.is_near(node);
        self.follow(is_failed, member.standing, now);
        let is_silent = is_failed && silent_for > Duration::ZERO;
        Assessment {
            condition,
            is_gone: is_silent
                && silent_for >= delay
                && (has_not_answered || mutated!(GoneUnasked)),
            is_to_be_asked: is_silent && silent_for + ASKED_AHEAD >= delay,
            is_long_lonely: self.lonely_since.is_some_and(|at| now - at >= LONELY_AFTER),
            fitness: (condition == Condition::Well).then(|| self.fitness(member.standing, now)),
        }
    }

    /// For how long no way has told of the node.
    fn silent_for(&mut self, since: Option<Duration>, sight: &Sight, node: NodeId) -> Duration {
        let answer = sight.inquiries.get(&node).filter(|inquiry| inquiry.is_answered);
        self.heard_at = self.heard_at.max(answer.map(|inquiry| inquiry.at));
        let Some(since) = since else {
            self.heard_at = Some(sight.now);
            return Duration::ZERO;
        };
        // What was never heard of counts from when that was first noticed.
        let noticed = if since == Duration::ZERO { self.unseen_since } else { Some(since) };
        let since = noticed.max(self.heard_at).unwrap_or(sight.now);
        sight.now.saturating_sub(since)
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

    /// Takes in how long the node's disk takes, beside what is usual.
    fn read_disk(&mut self, sight: &Sight, node: NodeId, usual_ms: u32) {
        if !evidence::has_fresh_report(sight, node) {
            return;
        }
        let (delay_ms, now) = (sight.reports[&node].disk_delay_ms, sight.now);
        let is_late = is_late(delay_ms, usual_ms);
        self.disk_late_since = is_late.then(|| self.disk_late_since.unwrap_or(now));
        let was_slow = self.is_disk_slow;
        self.is_disk_slow = match self.disk_late_since {
            Some(since) => was_slow || now.saturating_sub(since) >= DISK_SLOW_AFTER,
            // Where the others' have become as slow, it need not stand back for them.
            None => was_slow && is_far_off(delay_ms, usual_ms) && delay_ms > DISK_WELL_MS,
        };
        if self.is_disk_slow && !was_slow {
            self.flaps += 1;
        }
    }

    fn follow(&mut self, is_failed: bool, standing: Standing, now: Duration) {
        if is_failed && !self.is_failed && standing == Standing::Member {
            self.flaps += 1;
        }
        self.is_failed = is_failed;
        let is_ill = is_failed || self.is_clock_off || self.is_apart || self.is_disk_slow;
        if is_ill || standing != Standing::Member {
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
        } else if self.is_disk_slow {
            Fitness::DiskSlow
        } else if self.is_apart {
            Fitness::Apart
        } else if self.well_since.is_some_and(is_damped) {
            Fitness::Damped
        } else {
            Fitness::Fit
        }
    }
}
