//! Decides the configurations, one after another, by the rules and otherwise at random.
//!
//! It stands for consensus and controller together. What it decides is real (`Topology::apply`);
//! how the news travel is the world's business.

use std::sync::Arc;

use aegiskv::entry::{Position, ShardId};
use aegiskv::shard::Part;
use aegiskv::topology::{
    Announcement, Change, Cluster, Command, Configuration, Copies, NodeId, Outcome, Seat, Topology,
};

use crate::dice::Dice;

/// After so many decisions without an active primary another is named.
const STUCK_DECISIONS: u32 = 40;

/// What the oracle knows of a machine.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    pub(crate) seat: Seat,
    /// It seems to be well.
    pub(crate) up: bool,
    /// How each shard stands there, if it is up.
    pub(crate) copies: Vec<Option<Copy>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) epoch: u32,
    pub(crate) part: Part,
    pub(crate) position: Position,
    pub(crate) vouches: bool,
    pub(crate) committed: u64,
    pub(crate) acknowledged: Vec<(Seat, u64)>,
}

/// How lively it is, per mille and decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moods {
    /// Moves a primary for no good reason.
    pub(crate) moves: u64,
    /// Changes learners or voters for no good reason.
    pub(crate) changes: u64,
    /// Takes learners for voters before they are level.
    pub(crate) hurries: u64,
}

#[derive(Debug)]
pub(crate) struct Oracle {
    topology: Topology,
    /// Which machine has which node.
    pub(crate) hosts: Vec<usize>,
    pub(crate) moods: Moods,
    /// No more changes but those that are needed.
    pub(crate) calm: bool,
    /// The shards that went on from what was left.
    pub(crate) unclean: Vec<ShardId>,
    /// The mutation of the oracle itself: voters change from any epoch, or without a joint set.
    pub(crate) breaks: Breaks,
    /// For each shard an epoch, and for how many decisions it has had no active primary.
    stuck: Vec<(u32, u32)>,
}

/// Which of its own rules it breaks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Breaks {
    pub(crate) changes_from_any_epoch: bool,
    pub(crate) changes_at_once: bool,
    pub(crate) drops_lost_seats: bool,
}

fn about(machine: usize, life: u64) -> Announcement {
    Announcement { name: format!("node{machine}"), life, ..Announcement::default() }
}

impl Oracle {
    pub(crate) fn new(machines: usize, shards: u16, moods: Moods, breaks: Breaks) -> Self {
        let mut topology = Topology::default();
        let cluster = Cluster { id: 1, hash_seed: 7, num_shards: shards };
        let founder = NodeId(1);
        topology.apply(Command::Found { cluster, founder, about: about(0, 1), epoch: 1 });
        let mut oracle = Self {
            topology,
            hosts: vec![usize::MAX, 0],
            moods,
            calm: false,
            unclean: Vec::new(),
            breaks,
            stuck: vec![(0, 0); usize::from(shards)],
        };
        for machine in 1..machines {
            oracle.joins(machine, 1);
        }
        oracle
    }

    /// These voters from the beginning, before anything was written.
    pub(crate) fn starts_with(&mut self, voters: Vec<Seat>, shard: ShardId) {
        let mut to = (**self.configuration(shard)).clone();
        if voters == to.voters {
            return;
        }
        to.old_voters = std::mem::replace(&mut to.voters, voters);
        self.change(shard, to.clone());
        to.old_voters.clear();
        self.change(shard, to);
    }

    /// A machine without an identity comes, in a life that no other had.
    pub(crate) fn joins(&mut self, machine: usize, life: u64) -> Seat {
        match self.topology.apply(Command::Join(about(machine, life))) {
            Outcome::Joined { node, .. } => {
                assert_eq!(self.hosts.len() as u64, node.0, "numbers are given out in order");
                self.hosts.push(machine);
                Seat { node, life }
            }
            other => panic!("cannot join: {other:?}"),
        }
    }

    /// A node is back, perhaps in another life.
    pub(crate) fn enters(&mut self, machine: usize, seat: Seat) {
        let about = about(machine, seat.life);
        self.topology.apply(Command::Enter { node: seat.node, about });
    }

    pub(crate) fn configuration(&self, shard: ShardId) -> &Arc<Configuration> {
        self.topology.shard(shard).expect("founded")
    }

    /// Whether a majority of each set is left if these seats lose what they have.
    pub(crate) fn survives(&self, lost: &[Seat]) -> bool {
        let left = |seat: Seat| self.topology.is_present(seat) && !lost.contains(&seat);
        self.topology.shards.iter().all(|shard| shard.has_quorum(Copies::Majority, left))
    }

    fn change(&mut self, shard: ShardId, to: Configuration) {
        let from_epoch = self.configuration(shard).epoch;
        if self.breaks.changes_at_once || self.breaks.drops_lost_seats {
            // The topology would not have it.
            let to = Arc::new(Configuration { epoch: from_epoch + 1, ..to });
            self.topology.shards[usize::from(shard.0)] = to;
            return;
        }
        let change = Change { shard, from_epoch, to };
        let outcome = self.topology.apply(Command::Configure(vec![change.clone()]));
        assert_eq!(outcome, Outcome::Configured(1), "against the rules: {change:?}");
    }

    /// Looks at one shard and changes its configuration, or not. Answers whether it did.
    pub(crate) fn decide(&mut self, shard: ShardId, sights: &[Sight], dice: &mut Dice) -> bool {
        let present = self.configuration(shard).clone();
        if self.breaks.drops_lost_seats
            && let Some(to) = self.without_lost_seats(&present)
        {
            self.change(shard, to);
            return true;
        }
        let view = View { topology: &self.topology, hosts: &self.hosts, sights, shard };
        let to = if view.is_lost(&present) {
            let Some(to) = view.with_what_is_left(&present) else { return false };
            self.unclean.push(shard);
            Some(to)
        } else {
            let stuck = self.is_stuck(shard, &present);
            self.next(&view, &present, stuck, dice)
        };
        let changes = to.is_some();
        to.into_iter().for_each(|to| self.change(shard, to));
        changes
    }

    /// What breaks a rule: present lives take the seats of lost ones at once.
    fn without_lost_seats(&self, present: &Configuration) -> Option<Configuration> {
        let mut to = Configuration { unclean: false, ..present.clone() };
        let members = &self.topology.members;
        let replace = |seats: &mut Vec<Seat>| {
            for seat in seats {
                if let Some(member) = members.get(&seat.node) {
                    *seat = member.seat();
                }
            }
        };
        replace(&mut to.voters);
        replace(&mut to.old_voters);
        to.learners.retain(|seat| !to.voters.contains(seat) && !to.old_voters.contains(seat));
        if !to.is_voter(to.primary) {
            to.primary = to.voters[0];
        }
        (to != *present).then_some(to)
    }

    /// Whether the primary has been on its way for too long.
    fn is_stuck(&self, shard: ShardId, present: &Configuration) -> bool {
        let (epoch, decisions) = self.stuck[usize::from(shard.0)];
        epoch == present.epoch && decisions > STUCK_DECISIONS
    }

    /// Counts how long a shard has had no active primary.
    pub(crate) fn counts(&mut self, shard: ShardId, active: bool) {
        let epoch = self.configuration(shard).epoch;
        let stuck = &mut self.stuck[usize::from(shard.0)];
        *stuck = if active || stuck.0 != epoch { (epoch, 0) } else { (epoch, stuck.1 + 1) };
    }

    fn next(
        &self,
        view: &View<'_>,
        present: &Configuration,
        stuck: bool,
        dice: &mut Dice,
    ) -> Option<Configuration> {
        let primary = view.copy_of(present.primary);
        let waits = primary.is_none_or(|copy| copy.part == Part::Waiting);
        if waits || stuck && (self.calm || dice.chance(100)) {
            return self.move_primary(view, present, waits, dice);
        }
        if !self.calm && dice.chance(self.moods.moves) {
            return self.move_primary(view, present, false, dice);
        }
        let reported =
            primary.is_some_and(|copy| copy.part == Part::Active && copy.epoch == present.epoch);
        if !reported && !self.breaks.changes_from_any_epoch {
            return None;
        }
        if present.is_joint() {
            return (self.calm || dice.chance(400))
                .then(|| self.leave_joint(view, present, dice))?;
        }
        if let Some(to) = self.mend(view, present, dice) {
            return Some(to);
        }
        if !self.calm && dice.chance(self.moods.changes) {
            return self.change_voters(view, present, dice);
        }
        None
    }

    /// Names another primary, or the same one in a new epoch.
    fn move_primary(
        &self,
        view: &View<'_>,
        present: &Configuration,
        needed: bool,
        dice: &mut Dice,
    ) -> Option<Configuration> {
        let seats = present.seats();
        let candidates: Vec<Seat> = seats
            .into_iter()
            .filter(|seat| present.is_voter(*seat))
            .filter(|seat| view.copy_of(*seat).is_some_and(|copy| copy.vouches))
            .collect();
        let best = candidates.iter().copied().max_by_key(|seat| view.position_of(*seat));
        let to = if needed && dice.chance(700) { best } else { dice.pick(&candidates) };
        Some(Configuration { primary: to?, unclean: false, ..present.clone() })
    }

    fn leave_joint(
        &self,
        view: &View<'_>,
        present: &Configuration,
        dice: &mut Dice,
    ) -> Option<Configuration> {
        let mut to = present.clone();
        to.old_voters = Vec::new();
        to.unclean = false;
        to.learners.retain(|seat| !to.voters.contains(seat));
        if !to.voters.contains(&to.primary) {
            let up: Vec<Seat> = to
                .voters
                .iter()
                .copied()
                .filter(|seat| view.copy_of(*seat).is_some_and(|copy| copy.vouches))
                .collect();
            to.primary = dice.pick(&up)?;
        }
        Some(to)
    }

    /// Replaces seats of lives that are gone; brings the voters to three.
    fn mend(
        &self,
        view: &View<'_>,
        present: &Configuration,
        dice: &mut Dice,
    ) -> Option<Configuration> {
        let gone: Vec<Seat> =
            present.voters.iter().copied().filter(|seat| !view.is_present(*seat)).collect();
        let short = present.voters.len() < 3 && (self.calm || dice.chance(60));
        if gone.is_empty() && !short {
            let stale = present.learners.iter().any(|seat| !view.is_present(*seat));
            if stale || self.calm && !present.learners.is_empty() {
                let mut to = Configuration { unclean: false, ..present.clone() };
                to.learners.clear();
                return Some(to);
            }
            return None;
        }
        if !self.calm && !dice.chance(300) {
            return None;
        }
        if present.voters.len() > 3 {
            let voters = present.voters.iter().copied().filter(|seat| *seat != gone[0]).collect();
            return Some(self.joint(present, voters));
        }
        let level: Vec<Seat> = self.level(view, present, dice);
        let Some(new) = dice.pick(&level) else {
            return self.add_learner(view, present, dice);
        };
        // One at a time; the others come next.
        let replaced = gone.iter().find(|seat| seat.node == new.node).or(gone.first());
        let mut voters: Vec<Seat> =
            present.voters.iter().copied().filter(|seat| Some(seat) != replaced).collect();
        voters.push(new);
        Some(self.joint(present, voters))
    }

    /// Learners that may vote.
    fn level(&self, view: &View<'_>, present: &Configuration, dice: &mut Dice) -> Vec<Seat> {
        let Some(primary) = view.copy_of(present.primary) else { return Vec::new() };
        let acked = |seat: Seat| {
            primary.acknowledged.iter().find(|(s, _)| *s == seat).map_or(0, |(_, acked)| *acked)
        };
        let hurries = !self.calm && dice.chance(self.moods.hurries);
        present
            .learners
            .iter()
            .copied()
            .filter(|seat| view.is_present(*seat))
            .filter(|seat| hurries || acked(*seat) > 0 && acked(*seat) >= primary.committed)
            .collect()
    }

    fn add_learner(
        &self,
        view: &View<'_>,
        present: &Configuration,
        dice: &mut Dice,
    ) -> Option<Configuration> {
        let has = |seat: Seat| present.seats().contains(&seat);
        let free: Vec<Seat> =
            view.sights.iter().filter(|s| s.up && !has(s.seat)).map(|s| s.seat).collect();
        let mut to = Configuration { unclean: false, ..present.clone() };
        to.learners.retain(|seat| view.is_present(*seat));
        to.learners.push(dice.pick(&free)?);
        Some(to)
    }

    fn joint(&self, present: &Configuration, voters: Vec<Seat>) -> Configuration {
        let mut to = Configuration { unclean: false, ..present.clone() };
        to.learners.retain(|seat| !voters.contains(seat));
        if self.breaks.changes_at_once {
            if !voters.contains(&to.primary) {
                to.primary = voters[0];
            }
            to.voters = voters;
        } else {
            to.old_voters = std::mem::replace(&mut to.voters, voters);
        }
        to
    }

    fn change_voters(
        &self,
        view: &View<'_>,
        present: &Configuration,
        dice: &mut Dice,
    ) -> Option<Configuration> {
        let level = self.level(view, present, dice);
        let mut voters = present.voters.clone();
        match dice.below(4) {
            0 => return self.add_learner(view, present, dice),
            1 if voters.len() > 1 => {
                voters.remove(dice.below(voters.len()));
            }
            kind => {
                let new = dice.pick(&level)?;
                if kind == 3 {
                    voters.swap_remove(dice.below(voters.len()));
                }
                // It may be the next life of one that votes.
                voters.retain(|seat| seat.node != new.node);
                voters.push(new);
            }
        }
        Some(self.joint(present, voters))
    }
}

/// One shard and what is known of the machines.
struct View<'a> {
    topology: &'a Topology,
    hosts: &'a [usize],
    sights: &'a [Sight],
    shard: ShardId,
}

impl View<'_> {
    fn is_present(&self, seat: Seat) -> bool {
        self.topology.is_present(seat)
    }

    /// How a seat's copy stands, if it is up.
    fn copy_of(&self, seat: Seat) -> Option<&Copy> {
        let sight = &self.sights[self.hosts[seat.node.0 as usize]];
        if sight.seat != seat || !sight.up {
            return None;
        }
        sight.copies[usize::from(self.shard.0)].as_ref()
    }

    fn position_of(&self, seat: Seat) -> Position {
        self.copy_of(seat).map_or(Position::default(), |copy| copy.position)
    }

    /// Whether no majority that remembers can ever be had again.
    fn is_lost(&self, present: &Configuration) -> bool {
        !present.has_quorum(Copies::Majority, |seat| self.is_present(seat))
    }

    /// The most advanced copy that is left becomes the only one that counts.
    fn with_what_is_left(&self, present: &Configuration) -> Option<Configuration> {
        let up: Vec<Seat> = self.sights.iter().filter(|s| s.up).map(|s| s.seat).collect();
        let rank = |seat: &Seat| {
            let copy = self.copy_of(*seat);
            let known = copy.is_some_and(|copy| copy.vouches);
            (self.position_of(*seat) > Position::default(), known, self.position_of(*seat))
        };
        let primary = up.iter().copied().max_by_key(rank)?;
        Some(Configuration {
            epoch: present.epoch,
            primary,
            voters: vec![primary],
            old_voters: Vec::new(),
            learners: up.into_iter().filter(|seat| *seat != primary).collect(),
            unclean: true,
        })
    }
}
