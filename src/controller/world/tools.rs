//! Those who stop nodes of the made-up cluster, each with leave: what they ask for takes its time to
//! be decided, answers are lost, and they believe what they were told for as long as it may hold.
//!
//! Held in every step: leave for one node at a time is believed in, and no node is stopped while one
//! that another tool stopped is down.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::sight::{Leased, Presence};
use super::super::{may_run, may_stop};
use super::{Memory, STEP, World};
use crate::topology::{Command, Copies, LeaseStep, NodeId, Outcome, Standing, StopLease};

/// A lease's node is asked this often whether it is back.
const ASKED_EVERY: u64 = 5;

/// Who has less time left does not begin to stop a node: what was stopped is noticed by then.
const MARGIN: Duration = Duration::from_secs(4);

/// The tools, and what is under way.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Tools {
    dice: u64,
    tools: Vec<Tool>,
    /// What is to be decided, when, and whose it is.
    under_way: Vec<(Duration, Option<usize>, LeaseStep)>,
    /// What each node knows of the lease.
    known: BTreeMap<NodeId, Leased>,
    /// How often a tool stopped a node.
    pub(in super::super) stops: u64,
}

#[derive(Clone, Debug, Default)]
struct Tool {
    state: State,
    /// What it does next, it does not do before.
    not_before: Duration,
    /// The node that it stopped, until that is started again.
    stopped: Option<NodeId>,
}

#[derive(Clone, Debug, Default)]
enum State {
    #[default]
    Idle,
    Asked(NodeId, Duration),
    Holds(Leave),
}

/// Leave to stop a node, as its holder was told.
#[derive(Clone, Debug)]
struct Leave {
    node: NodeId,
    until: Duration,
    /// The run of the node's process when it was granted: it is over once there is another.
    run: Option<u64>,
}

impl Tools {
    /// So many, which do what this number makes them do.
    pub(in super::super) fn new(count: usize, seed: u64) -> Self {
        let tools = vec![Tool::default(); count];
        Self { dice: seed | 1, tools, ..Self::default() }
    }

    /// A number below `bound`: xorshift, whose quality is enough for this.
    fn below(&mut self, bound: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 16) % bound
    }

    fn steps(&mut self, bound: u64) -> Duration {
        STEP * u32::try_from(self.below(bound)).unwrap_or(u32::MAX)
    }
}

impl World {
    /// What the leader knows of the lease.
    pub(super) fn leased(&self) -> Option<Leased> {
        self.tools.known.get(&self.leader).copied()
    }

    /// The lease's end is under way, if it is due.
    pub(super) fn end_lease(&mut self, step: Option<LeaseStep>) {
        let Some(step) = step else { return };
        let at = self.now + self.tools.steps(5);
        self.tools.under_way.push((at, None, step));
    }

    /// Everything that tools do in one step.
    pub(super) fn work_with_tools(&mut self) {
        if self.tools.tools.is_empty() {
            return;
        }
        self.decide();
        self.know();
        for tool in 0..self.tools.tools.len() {
            self.forget_what_is_over(tool);
            if self.now >= self.tools.tools[tool].not_before {
                let pause = self.tools.steps(40);
                self.tools.tools[tool].not_before = self.now + pause;
                self.act(tool);
            }
        }
        self.check_leave();
    }

    /// What is due is decided, whoever leads by now: it may have been replicated.
    fn decide(&mut self) {
        let now = self.now;
        let due = self.tools.under_way.extract_if(.., |(at, ..)| *at <= now);
        for (_, tool, step) in due.collect::<Vec<_>>() {
            let outcome = self.topology.apply(Command::Lease(step));
            let Some(tool) = tool else { continue };
            let State::Asked(node, since) = self.tools.tools[tool].state else { continue };
            // An answer that is lost: it asks again, or somebody else does.
            let is_lost = self.tools.below(8) == 0;
            self.tools.tools[tool].state = match outcome {
                Outcome::Leased(lease) if !is_lost => {
                    let StopLease { ttl_ms, run, .. } = *lease;
                    let until = since + Duration::from_millis(ttl_ms);
                    State::Holds(Leave { node, until, run })
                }
                _ => State::Idle,
            };
        }
    }

    /// Each node that runs takes note of the lease; the leader asks its node.
    fn know(&mut self) {
        let Some(lease) = self.topology.leases.held.clone() else {
            self.tools.known.clear();
            return;
        };
        let (id, renewals, since) = (lease.id, lease.renewals, self.now);
        let mut nodes: Vec<NodeId> = self.topology.members.keys().copied().collect();
        nodes.retain(|node| !self.is_down(*node));
        for node in nodes {
            let known = self.tools.known.entry(node).or_insert(Leased {
                id,
                renewals,
                since,
                presence: None,
            });
            if (known.id, known.renewals) != (id, renewals) {
                *known = Leased { id, renewals, since, presence: None };
            }
        }
        let is_time = (self.now.as_millis() as u64 / 100).is_multiple_of(ASKED_EVERY);
        let presence = if is_time { Some(self.presence(lease.node)) } else { None };
        if let (Some(presence), Some(known)) = (presence, self.tools.known.get_mut(&self.leader)) {
            known.presence = presence;
        }
    }

    fn presence(&self, node: NodeId) -> Option<Presence> {
        let is_there = !self.is_down(node) && self.reaches(self.leader, node);
        let seat = self.topology.members.get(&node)?.seat();
        let is_behind = |shard: &usize| {
            let voters = &self.topology.shards[*shard].voters;
            let is_lost = voters.iter().any(|voter| voter.node == node && *voter != seat);
            is_lost || (voters.contains(&seat) && !self.counts(seat, *shard))
        };
        let behind = (0..self.topology.shards.len()).filter(is_behind).count() as u64;
        is_there.then(|| Presence { at: self.now, run: self.processes[&node].run, behind })
    }

    fn act(&mut self, tool: usize) {
        if let Some(node) = self.tools.tools[tool].stopped {
            self.start_again(tool, node);
            return;
        }
        match self.tools.tools[tool].state.clone() {
            State::Idle => self.ask_for_leave(tool),
            State::Asked(..) => {}
            State::Holds(leave) => match self.tools.below(6) {
                0 => self.give_up(tool, leave.node),
                1 => self.ask_again(tool, leave.node),
                _ if leave.until > self.now + MARGIN => self.stop(tool, leave.node),
                _ => {}
            },
        }
    }

    fn ask_for_leave(&mut self, tool: usize) {
        let nodes = self.topology.members.len() as u64;
        let node = NodeId(1 + self.tools.below(nodes));
        self.ask_again(tool, node);
    }

    /// The leader judges by what it sees, and what it decides takes its time.
    fn ask_again(&mut self, tool: usize, node: NodeId) {
        let holder = format!("tool{tool}");
        let held = self.topology.leases.held.as_ref();
        let is_others = held.is_some_and(|held| held.node != node || held.holder != holder);
        if self.is_down(self.leader) || !self.has_majority(self.leader) || is_others {
            return;
        }
        let sight = self.sight();
        let run = self.presence(node).map(|presence| presence.run);
        let quorum = Copies::Count(1);
        if may_stop(&self.topology, &sight, &self.settings, node, quorum).is_err()
            || (run.is_none() && may_run(&self.topology, &sight, &self.settings, node))
        {
            return;
        }
        let ttl_ms = [5_000, 7_000, 15_000, 60_000][self.tools.below(4) as usize];
        let (at_ms, revision) = (self.now.as_millis() as u64, self.topology.revision);
        let grant = LeaseStep::Grant { node, holder, ttl_ms, run, at_ms, revision };
        // Now and then it is held up for so long that all may be otherwise by then.
        let bound = if self.tools.below(4) == 0 { 400 } else { 5 };
        let at = self.now + self.tools.steps(bound);
        self.tools.tools[tool].state = State::Asked(node, self.now);
        self.tools.tools[tool].not_before = at + STEP * 5;
        self.tools.under_way.push((at, Some(tool), grant));
    }

    fn give_up(&mut self, tool: usize, node: NodeId) {
        let at = self.now + self.tools.steps(5);
        let release = LeaseStep::Release { node, holder: Some(format!("tool{tool}")) };
        self.tools.under_way.push((at, None, release));
        self.tools.tools[tool].state = State::Idle;
        // What it gives back must not be what it is given next.
        self.tools.tools[tool].not_before = at + STEP * 5;
    }

    fn stop(&mut self, tool: usize, node: NodeId) {
        let others = || self.tools.tools.iter().enumerate().filter(|(at, _)| *at != tool);
        let is_down = |node: &NodeId| self.processes[node].down_since.is_some();
        let other = others().filter_map(|(_, other)| other.stopped).find(is_down);
        assert_eq!(other.filter(|other| *other != node), None, "{node} is stopped as well");
        if self.processes[&node].down_since.is_some() {
            return;
        }
        if self.tools.below(2) == 0 {
            self.stand(node.0, Standing::Restarting);
        }
        self.kill(node.0);
        self.tools.stops += 1;
        self.tools.tools[tool].stopped = Some(node);
        // Now and then it is down for longer than leave for it lasts.
        let bound = if self.tools.below(3) == 0 { 400 } else { 40 };
        let pause = self.tools.steps(bound);
        self.tools.tools[tool].not_before = self.now + pause;
    }

    fn start_again(&mut self, tool: usize, node: NodeId) {
        let memory = if self.tools.below(6) == 0 { Memory::Gone } else { Memory::Kept };
        self.revive(node.0, memory);
        self.stand(node.0, Standing::Member);
        self.tools.tools[tool].stopped = None;
    }

    /// Who holds leave knows when its time is over, and that its node was started again.
    fn forget_what_is_over(&mut self, tool: usize) {
        let State::Holds(leave) = &self.tools.tools[tool].state else { return };
        let process = &self.processes[&leave.node];
        let has_run = process.down_since.is_none() && leave.run != Some(process.run);
        if self.now >= leave.until || has_run {
            self.tools.tools[tool].state = State::Idle;
        }
    }

    fn check_leave(&self) {
        let mut nodes = self.tools.tools.iter().filter_map(|tool| match &tool.state {
            State::Holds(leave) => Some(leave.node),
            _ => None,
        });
        let Some(first) = nodes.next() else { return };
        let second = nodes.find(|node| *node != first);
        assert_eq!(second, None, "there is leave to stop {first} as well");
    }
}
