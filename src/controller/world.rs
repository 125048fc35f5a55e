//! A made-up cluster for tests: nodes that live and die, copies that level, primaries that take
//! over, all in steps of a tenth of a second. It follows the shard protocol as far as positions go,
//! and holds every change to the rules before it takes place.

#[path = "world/network.rs"]
mod network;
#[path = "world/reports.rs"]
mod reports;
#[path = "world/tools.rs"]
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::sight::{Inquiry, Report};
use super::{Controller, Failure, Note, Settings, ShardState, UncleanRecovery, shard_states};
use crate::entry::Position;
use crate::topology::{
    Announcement, Change, Cluster, Command, Configuration, Copies, NodeId, Outcome, Seat, Standing,
    Topology,
};

pub(super) use network::Way;
pub(super) use tools::Tools;

pub(super) const STEP: Duration = Duration::from_millis(100);

/// What becomes of a node's memory while it is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    Kept,
    /// Another life that has most of what there was, and cannot vouch for it.
    Doubtful,
    Gone,
}

#[derive(Clone, Debug, Default)]
struct Process {
    down_since: Option<Duration>,
    hung_since: Option<Duration>,
    clock_offset_ms: i64,
    disk_delay_ms: u32,
    slandered_since: Option<Duration>,
    /// It lives where nobody looks for it, unless asked everywhere.
    misplaced_since: Option<Duration>,
    /// How often it was started again.
    run: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copy {
    pub(super) last: Position,
    pub(super) vouches: bool,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) topology: Topology,
    pub(super) settings: Settings,
    pub(super) now: Duration,
    pub(super) controller: Controller,
    pub(super) notes: Vec<Note>,
    /// All changes since the last look.
    pub(super) changes: Vec<Change>,
    /// How many plans changed something since the last look.
    pub(super) plans: usize,
    /// Whether active primaries order a record in each step, to bare majorities.
    pub(super) writes: bool,
    pub(super) copies: BTreeMap<(Seat, u16), Copy>,
    /// When a seat last became a learner of a shard.
    named: BTreeMap<(Seat, u16), Duration>,
    processes: BTreeMap<NodeId, Process>,
    /// From whom to whom nothing arrives, by which way, and since when.
    cuts: BTreeMap<(Way, NodeId, NodeId), Duration>,
    reports: BTreeMap<NodeId, Arc<Report>>,
    inquiries: BTreeMap<NodeId, Inquiry>,
    /// Who is being asked, and since when.
    asked: BTreeMap<NodeId, Duration>,
    /// By shard: the epoch that is being taken over, the one that is active, and the last that was.
    taking_over: Vec<u32>,
    active: Vec<u32>,
    was_active: Vec<u32>,
    /// By shard: the last position that is surely committed.
    committed: Vec<Position>,
    leader: NodeId,
    next_life: u64,
    /// Those who stop nodes, with leave.
    pub(super) tools: Tools,
    /// When something last happened to a process, or to connections.
    shaken_at: Duration,
}

impl World {
    /// One node that holds all shards.
    pub(super) fn new(num_shards: u16) -> Self {
        let cluster = Cluster { id: 1, hash_seed: 2, num_shards };
        let (mut topology, founder) = (Topology::default(), NodeId(1));
        topology.apply(Command::Found { cluster, founder, about: about(1, 1, ""), epoch: 1 });
        let shards = usize::from(num_shards);
        let full = Copy { last: Position::default(), vouches: true };
        let seat = Seat { node: founder, life: 1 };
        Self {
            topology,
            settings: Settings {
                replication_factor: 3,
                rebalance_delay: Duration::from_mins(1),
                unclean_recovery: UncleanRecovery::Serve,
                moves_per_node_max: 2,
            },
            now: Duration::from_secs(1),
            controller: Controller::new(),
            notes: Vec::new(),
            changes: Vec::new(),
            plans: 0,
            writes: false,
            copies: (0..num_shards).map(|shard| ((seat, shard), full)).collect(),
            named: BTreeMap::new(),
            processes: BTreeMap::from([(founder, Process::default())]),
            cuts: BTreeMap::new(),
            reports: BTreeMap::new(),
            inquiries: BTreeMap::new(),
            asked: BTreeMap::new(),
            taking_over: vec![0; shards],
            active: vec![0; shards],
            was_active: vec![0; shards],
            committed: vec![Position::default(); shards],
            leader: founder,
            next_life: 2,
            tools: Tools::default(),
            shaken_at: Duration::ZERO,
        }
    }

    /// A settled cluster of so many nodes.
    pub(super) fn of(nodes: usize, num_shards: u16) -> Self {
        let mut world = Self::new(num_shards);
        (1..nodes).for_each(|_| _ = world.join(""));
        world.settle();
        world.forget();
        world
    }

    pub(super) fn join(&mut self, zone: &str) -> NodeId {
        let number = self.topology.members.keys().map(|node| node.0).max().unwrap_or(0) + 1;
        let life = self.new_life();
        let outcome = self.topology.apply(Command::Join(about(number, life, zone)));
        let Outcome::Joined { node, .. } = outcome else { panic!("{outcome:?}") };
        self.processes.insert(node, Process::default());
        node
    }

    pub(super) fn kill(&mut self, node: u64) {
        self.shaken_at = self.now;
        let now = self.now;
        let process = self.processes.get_mut(&NodeId(node)).unwrap();
        process.down_since.get_or_insert(now);
        process.hung_since = None;
        for shard in 0..self.active.len() {
            if self.topology.shards[shard].primary.node == NodeId(node) {
                (self.active[shard], self.taking_over[shard]) = (0, 0);
            }
        }
        if self.leader == NodeId(node) {
            self.elect();
        }
    }

    pub(super) fn revive(&mut self, node: u64, memory: Memory) {
        self.shaken_at = self.now;
        let process = self.processes.get_mut(&NodeId(node)).unwrap();
        process.hung_since = None;
        if process.down_since.take().is_none() {
            return;
        }
        process.run += 1;
        if memory != Memory::Kept {
            let mut about = self.topology.members[&NodeId(node)].about.clone();
            let (old, life) = (about.life, self.new_life());
            about.life = life;
            self.topology.apply(Command::Enter { node: NodeId(node), about });
            for shard in 0..self.active.len() as u16 {
                let seat = |life| Seat { node: NodeId(node), life };
                if let Some(copy) = self.copies.remove(&(seat(old), shard))
                    && memory == Memory::Doubtful
                {
                    let seq = copy.last.seq.saturating_sub(1);
                    let last = Position { seq, ..copy.last };
                    self.copies.insert((seat(life), shard), Copy { last, vouches: false });
                }
            }
        }
        if self.is_down(self.leader) {
            self.elect();
        }
    }

    pub(super) fn hang(&mut self, node: u64) {
        self.shaken_at = self.now;
        if NodeId(node) != self.leader {
            let now = self.now;
            self.processes.get_mut(&NodeId(node)).unwrap().hung_since.get_or_insert(now);
        }
    }

    pub(super) fn stand(&mut self, node: u64, standing: Standing) {
        self.topology.apply(Command::Stand { node: NodeId(node), standing });
    }

    pub(super) fn set_disk(&mut self, node: u64, disk_delay_ms: u32) {
        self.processes.get_mut(&NodeId(node)).unwrap().disk_delay_ms = disk_delay_ms;
    }

    pub(super) fn set_clock(&mut self, node: u64, clock_offset_ms: i64) {
        self.processes.get_mut(&NodeId(node)).unwrap().clock_offset_ms = clock_offset_ms;
    }

    /// Whether nobody's gossip hears a node that is well.
    pub(super) fn slander(&mut self, node: u64, is_slandered: bool) {
        let now = self.now;
        let process = self.processes.get_mut(&NodeId(node)).unwrap();
        process.slandered_since = is_slandered.then(|| process.slandered_since.unwrap_or(now));
    }

    /// Another node leads from now on, with a controller that remembers nothing.
    pub(super) fn elect(&mut self) {
        self.shaken_at = self.now;
        let can_lead = |node: &&NodeId| !self.is_down(**node) && self.has_majority(**node);
        let mut live = self.topology.members.keys().filter(can_lead);
        let next = live.find(|node| **node != self.leader).copied();
        self.leader = next.unwrap_or(self.leader);
        self.controller = Controller::new();
        self.inquiries.clear();
        self.asked.clear();
    }

    pub(super) fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            self.step();
        }
    }

    /// Runs until nothing has changed for six seconds; a quarter of an hour at most.
    pub(super) fn settle(&mut self) {
        let deadline = self.now + Duration::from_mins(15);
        let mut quiet = 0;
        while quiet < 60 {
            assert!(self.now < deadline, "never quiet; last: {:?}", self.changes.last());
            let before = self.plans;
            self.step();
            quiet = if self.plans == before { quiet + 1 } else { 0 };
        }
    }

    pub(super) fn forget(&mut self) {
        self.changes.clear();
        self.notes.clear();
        self.plans = 0;
    }

    pub(super) fn step(&mut self) {
        self.now += STEP;
        self.work_with_tools();
        self.hear_answers();
        if !self.is_down(self.leader) && !self.has_majority(self.leader) {
            self.elect();
        }
        if !self.is_down(self.leader) && self.has_majority(self.leader) {
            let sight = self.sight();
            let plan = self.controller.plan(&self.topology, &sight, &self.settings);
            assert!(plan.commands.len() <= 1, "all changes go in one command");
            plan.notes.iter().for_each(|note| self.check_note(note));
            self.notes.extend(plan.notes);
            plan.inquire.into_iter().for_each(|node| self.ask(node));
            for command in plan.commands {
                let Command::Configure(changes) = &command else { panic!("{command:?}") };
                assert!(!changes.is_empty());
                changes.iter().for_each(|change| self.check(change));
                changes.iter().for_each(|change| self.remember_learners(change));
                self.changes.extend(changes.iter().cloned());
                self.plans += 1;
                let all = Outcome::Configured(changes.len());
                assert_eq!(self.topology.apply(command), all);
            }
            self.end_lease(plan.lease);
        }
        (0..self.active.len()).for_each(|shard| self.progress(shard));
        let named = |topology: &Topology, seat: Seat, shard: u16| {
            let shard = &topology.shards[usize::from(shard)];
            shard.names(seat) || (topology.is_present(seat) && shard.seat_of(seat.node).is_some())
        };
        let (topology, processes) = (&self.topology, &self.processes);
        self.copies.retain(|(seat, shard), _| {
            processes[&seat.node].down_since.is_some() || named(topology, *seat, *shard)
        });
    }

    fn remember_learners(&mut self, change: &Change) {
        let from = &self.topology.shards[usize::from(change.shard.0)];
        for seat in change.to.learners.iter().filter(|seat| !from.learners.contains(seat)) {
            self.named.insert((*seat, change.shard.0), self.now);
        }
    }

    /// The rules that every change keeps, whatever happened before.
    fn check(&self, change: &Change) {
        let shard = usize::from(change.shard.0);
        let (from, to) = (&*self.topology.shards[shard], &change.to);
        let context = format!("{from:?} to {to:?}");
        assert_eq!(change.from_epoch, from.epoch, "{context}");
        assert!(from.may_become(to), "{context}");
        let voters_stay = from.voters == to.voters && from.old_voters == to.old_voters;
        if to.unclean {
            let may_be_found = |seat| self.is_live(seat) && self.may_be_found(seat.node);
            let is_kept = from.has_quorum(Copies::Majority, may_be_found);
            assert!(!self.is_calm() || !is_kept, "given up: {context}");
            assert_eq!(self.settings.unclean_recovery, UncleanRecovery::Serve);
        } else if !voters_stay {
            assert_eq!(self.was_active[shard], from.epoch, "not from an active epoch: {context}");
            for seat in to.voters.iter().filter(|seat| !from.is_voter(**seat)) {
                assert!(self.copies[&(*seat, change.shard.0)].vouches, "not level: {context}");
            }
            let entering = to.voters.iter().filter(|seat| !from.is_voter(**seat));
            let named = entering.filter_map(|seat| self.named.get(&(*seat, change.shard.0))).max();
            let named = named.copied().unwrap_or(self.now);
            for seat in from.voters.iter().filter(|seat| !to.voters.contains(seat)) {
                assert!(!self.is_merely_misplaced(*seat, named), "stripped: {context}");
            }
        }
        if to.primary != from.primary {
            assert!(self.topology.is_present(to.primary), "{context}");
            assert!(!self.seems_failed(to.primary.node), "led by the failed: {context}");
        }
        for seat in to.learners.iter().filter(|seat| !from.learners.contains(seat)) {
            assert!(self.topology.is_present(*seat), "{context}");
        }
    }

    /// Whether what last happened is known by now.
    fn is_calm(&self) -> bool {
        self.now > self.shaken_at + STEP * 20
    }

    /// Nobody fails over from a node to which connections lead.
    fn check_note(&self, note: &Note) {
        let Note::FailedOver { node, why, .. } = note else { return };
        let id = self.topology.member_named(node).unwrap().node;
        let is_calm = self.is_calm();
        let is_reached = !self.is_down(id) && self.reaches(self.leader, id);
        assert!(
            *why == Failure::LostMemory || !is_calm || !is_reached,
            "failed over from one that is reached: {note}"
        );
    }

    /// What the protocol does with a shard in one step.
    fn progress(&mut self, shard: usize) {
        let configuration = Arc::clone(&self.topology.shards[shard]);
        let number = shard as u16;
        let voters: BTreeSet<Seat> = configuration.sets().flatten().copied().collect();
        let primary = configuration.primary;
        let counts =
            |seat: &Seat| self.counts(*seat, shard) && self.reaches(primary.node, seat.node);
        let mut live: Vec<Seat> = voters.into_iter().filter(counts).collect();
        let may_lead = live.contains(&primary) || (configuration.unclean && self.is_live(primary));
        if !may_lead {
            return;
        }
        if configuration.unclean {
            live = vec![primary];
        }
        // Another majority each time.
        let turn = (self.now.as_millis() as usize / 100 + shard) % live.len();
        live.rotate_left(turn);
        live.sort_by_key(|seat| *seat != primary);
        let mut majority: Vec<Seat> = Vec::new();
        for seat in live {
            if !configuration.has_quorum(Copies::Majority, |seat| majority.contains(&seat)) {
                majority.push(seat);
            }
        }
        if !configuration.has_quorum(Copies::Majority, |seat| majority.contains(&seat)) {
            self.active[shard] = 0;
            return;
        }
        if self.active[shard] != configuration.epoch {
            if self.taking_over[shard] == configuration.epoch {
                self.activate(shard, &configuration, &majority);
            }
            self.taking_over[shard] = configuration.epoch;
            return;
        }
        if self.writes {
            self.order(shard, &configuration, &majority);
        } else {
            let full = Copy { last: self.copies[&(primary, number)].last, vouches: true };
            for seat in configuration.seats() {
                if self.counts(seat, shard) && self.reaches(primary.node, seat.node) {
                    self.copies.insert((seat, number), full);
                }
            }
        }
        self.bring_level(shard, &configuration);
    }

    fn activate(&mut self, shard: usize, configuration: &Configuration, majority: &[Seat]) {
        let last = |seat: &Seat| self.copies.get(&(*seat, shard as u16)).map(|copy| copy.last);
        let last = majority.iter().filter_map(last).max().unwrap_or_default();
        if !configuration.unclean {
            let committed = self.committed[shard];
            assert!(last >= committed, "{committed:?} was lost: {configuration:?}, {majority:?}");
        }
        let first = Position { epoch: configuration.epoch, seq: last.seq + 1 };
        self.spread(shard, first, majority);
        self.active[shard] = configuration.epoch;
        self.was_active[shard] = configuration.epoch;
    }

    fn order(&mut self, shard: usize, configuration: &Configuration, majority: &[Seat]) {
        let last = self.copies[&(configuration.primary, shard as u16)].last;
        self.spread(shard, Position { seq: last.seq + 1, ..last }, majority);
    }

    fn spread(&mut self, shard: usize, last: Position, majority: &[Seat]) {
        for seat in majority {
            self.copies.insert((*seat, shard as u16), Copy { last, vouches: true });
        }
        self.committed[shard] = last;
    }

    /// Live learners get all there is, one step after they came.
    fn bring_level(&mut self, shard: usize, configuration: &Configuration) {
        let last = self.copies[&(configuration.primary, shard as u16)].last;
        for seat in &configuration.learners {
            if self.is_live(*seat) && self.reaches(configuration.primary.node, seat.node) {
                self.copies.insert((*seat, shard as u16), Copy { last, vouches: true });
            }
        }
    }

    fn new_life(&mut self) -> u64 {
        self.next_life += 1;
        self.next_life
    }

    fn is_down(&self, node: NodeId) -> bool {
        let gone = |process: &Process| process.down_since.or(process.hung_since).is_some();
        self.processes.get(&node).is_none_or(gone)
    }

    fn is_live(&self, seat: Seat) -> bool {
        self.topology.is_present(seat) && !self.is_down(seat.node)
    }

    /// Whether the seat counts in quorums: it lives, and has everything it ever acknowledged.
    fn counts(&self, seat: Seat, shard: usize) -> bool {
        let copy = self.copies.get(&(seat, shard as u16));
        self.is_live(seat) && copy.is_some_and(|copy| copy.vouches)
    }

    /// Whether the leader can know by now that the node does not serve. Where no connection led to
    /// it that could break, its last report counts for three seconds.
    fn seems_failed(&self, node: NodeId) -> bool {
        let process = &self.processes[&node];
        let silent_since = process.down_since.or(process.hung_since);
        let is_linked = self.cuts.is_empty() && process.misplaced_since.is_none();
        let told_after = STEP * if is_linked { 20 } else { 31 };
        silent_since.is_some_and(|since| self.now >= since + told_after)
    }

    pub(super) fn states(&mut self) -> Vec<ShardState> {
        let sight = self.sight();
        shard_states(&self.topology, &sight, &self.settings)
    }

    /// How many shards each member leads.
    pub(super) fn primaries(&self) -> Vec<usize> {
        let leads = |node: &NodeId| {
            self.topology.shards.iter().filter(|shard| shard.primary.node == *node).count()
        };
        self.topology.members.keys().map(leads).collect()
    }

    /// How many shards each member votes in, with its present life.
    pub(super) fn votes(&self) -> Vec<usize> {
        let votes = |seat: Seat| {
            self.topology.shards.iter().filter(|shard| shard.voters.contains(&seat)).count()
        };
        self.topology.members.values().map(|member| votes(member.seat())).collect()
    }
}

fn about(number: u64, life: u64, zone: &str) -> Announcement {
    Announcement {
        name: format!("node{number}"),
        life,
        zone: zone.to_owned(),
        memory_bytes: 1 << 30,
        ..Announcement::default()
    }
}
