//! The network of the made-up cluster: ways that are cut one by one, and who hears of whom.

use std::collections::BTreeSet;
use std::time::Duration;

use super::World;
use crate::topology::NodeId;

/// A way by which nodes hear of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Way {
    /// Connections; messages go through other nodes where there is none.
    Tcp,
    /// Dialling: one that the other side dialled carries both ways.
    Dial,
    /// Gossip; what a node hears it tells those who hear it.
    Udp,
}

impl World {
    /// A node is at another address, and nobody knows.
    pub(in super::super) fn misplace(&mut self, node: u64) {
        self.shaken_at = self.now;
        let now = self.now;
        self.processes.get_mut(&NodeId(node)).unwrap().misplaced_since.get_or_insert(now);
    }

    /// Nothing arrives any more from one node at another.
    pub(in super::super) fn cut(&mut self, way: Way, from: u64, to: u64) {
        if way != Way::Udp {
            self.shaken_at = self.now;
        }
        self.cuts.entry((way, NodeId(from), NodeId(to))).or_insert(self.now);
    }

    /// Nothing passes any more between two nodes by that way.
    pub(in super::super) fn part(&mut self, way: Way, a: u64, b: u64) {
        self.cut(way, a, b);
        self.cut(way, b, a);
    }

    /// All ways lead everywhere again.
    pub(in super::super) fn mend(&mut self) {
        self.shaken_at = self.now;
        self.cuts.clear();
    }

    /// Since when nothing arrives, of what one node sends another by that way; `None` if it does.
    /// A connection needs both directions.
    pub(super) fn cut_since(&self, way: Way, from: NodeId, to: NodeId) -> Option<Duration> {
        let there = self.cuts.get(&(way, from, to));
        let back = self.cuts.get(&(way, to, from)).filter(|_| way == Way::Tcp);
        [there, back].into_iter().flatten().min().copied()
    }

    pub(super) fn are_linked(&self, a: NodeId, b: NodeId) -> bool {
        let can_dial = |from, to| !self.cuts.contains_key(&(Way::Dial, from, to));
        a == b || (self.cut_since(Way::Tcp, a, b).is_none() && (can_dial(a, b) || can_dial(b, a)))
    }

    /// The living nodes to which connections lead, one after another.
    pub(super) fn reached_from(&self, node: NodeId) -> BTreeSet<NodeId> {
        let is_found = |node: NodeId| self.processes[&node].misplaced_since.is_none();
        self.reached_among(node, is_found)
    }

    pub(super) fn reached_among(
        &self,
        node: NodeId,
        is_found: impl Fn(NodeId) -> bool,
    ) -> BTreeSet<NodeId> {
        let mut reached = BTreeSet::from([node]);
        let mut ahead = vec![node];
        while let Some(from) = ahead.pop() {
            for to in self.topology.members.keys() {
                let is_way = !self.is_down(*to) && self.are_linked(from, *to) && is_found(*to);
                if is_way && reached.insert(*to) {
                    ahead.push(*to);
                }
            }
        }
        reached
    }

    pub(super) fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        let is_quiet = self.cuts.is_empty() && !self.is_anyone_misplaced();
        is_quiet || self.reached_from(from).contains(&to)
    }

    /// Whether the network leaves a leader more than half of those that run: where more than half
    /// are down it leads all the same, so that histories go on.
    pub(super) fn has_majority(&self, leader: NodeId) -> bool {
        let running = self.topology.members.keys().filter(|node| !self.is_down(**node)).count();
        self.cuts.is_empty() || 2 * self.reached_from(leader).len() > running
    }

    pub(super) fn is_anyone_misplaced(&self) -> bool {
        self.processes.values().any(|process| process.misplaced_since.is_some())
    }

    /// Whether a node's gossip hears another itself.
    pub(super) fn hears(&self, node: NodeId, other: NodeId) -> bool {
        let is_slandered = self.processes[&other].slandered_since.is_some();
        let is_found = self.processes[&other].misplaced_since.is_none();
        !self.is_down(other)
            && is_found
            && !is_slandered
            && self.cut_since(Way::Udp, other, node).is_none()
    }

    /// Whether a node's gossip has another for alive: it hears it, or somebody who does.
    pub(super) fn has_for_alive(&self, node: NodeId, other: NodeId) -> bool {
        let members = || self.topology.members.keys();
        self.hears(node, other)
            || members().any(|third| self.hears(node, *third) && self.hears(*third, other))
    }

    /// Whether any way tells the leader that a node lives.
    pub(in super::super) fn is_told_of(&self, node: NodeId) -> bool {
        let reached = self.reached_from(self.leader);
        let tells = |by: &NodeId| *by != node && self.has_for_alive(*by, node);
        !self.is_down(node) && (reached.contains(&node) || reached.iter().any(tells))
    }
}
