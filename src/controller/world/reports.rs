//! What the leader of the made-up cluster is told: gossip, and each node's reports.

use std::sync::Arc;
use std::time::Duration;

use super::super::sight::{Break, Link, Report, Role, Seems, Seen, ShardReport, Sight};
use super::network::Way;
use super::{Copy, STEP, World};
use crate::entry::ShardId;
use crate::topology::{NodeId, Seat};

impl World {
    pub(in super::super) fn sight(&mut self) -> Sight {
        let members: Vec<NodeId> = self.topology.members.keys().copied().collect();
        let reached = self.reached_from(self.leader);
        for node in &members {
            if reached.contains(node) {
                let report = self.report(*node, &members);
                self.reports.insert(*node, Arc::new(report));
            }
        }
        let seen = |node: &NodeId| (*node, self.seen(*node));
        let others = members.iter().filter(|node| **node != self.leader);
        let alive = others.map(seen).collect();
        let (reports, inquiries) = (self.reports.clone(), self.inquiries.clone());
        Sight { now: self.now, me: self.leader, alive, reports, inquiries, leased: self.leased() }
    }

    /// Suspect after half a second of silence, dead after two.
    fn seen(&self, node: NodeId) -> Seen {
        let silent_since = self.silent_since(node);
        let silent = silent_since.map_or(Duration::ZERO, |since| self.now - since);
        let state = match silent.as_millis() {
            2_000.. => Seems::Dead,
            500.. => Seems::Suspect,
            _ => Seems::Alive,
        };
        Seen { state, since: silent_since.map_or(self.now, |since| since + STEP * 20) }
    }

    /// Since when the leader's gossip has not heard a node, itself or through others.
    fn silent_since(&self, node: NodeId) -> Option<Duration> {
        if self.has_for_alive(self.leader, node) {
            return None;
        }
        let process = &self.processes[&node];
        let down = process.down_since.or(process.hung_since);
        let cut = self.cuts.iter().filter(|((way, ..), _)| *way == Way::Udp).map(|(_, at)| *at);
        let unfound = process.slandered_since.max(process.misplaced_since);
        // Whatever is cut after it went down makes nobody hear it once more.
        down.or(cut.max().max(unfound)).or(Some(self.now))
    }

    fn report(&self, node: NodeId, members: &[NodeId]) -> Report {
        let life = self.topology.members[&node].about.life;
        let link = |other: &NodeId| {
            let process = &self.processes[other];
            let dial = self.cuts.get(&(Way::Dial, node, *other)).copied();
            let cut = self.cut_since(Way::Tcp, node, *other).or(dial);
            let silent = [process.hung_since, process.misplaced_since, cut];
            let silent = silent.into_iter().flatten().min().map(|since| since + STEP * 12);
            let silent = silent.filter(|since| self.now >= *since);
            let (why, since) = match (process.down_since, silent) {
                (_, Some(since)) => (Break::Silent, since),
                (Some(since), None) => (Break::Refused, since),
                (None, None) => return (*other, Link::Up),
            };
            let for_ms = (self.now - since).as_millis() as u32;
            (*other, Link::Down { why, for_ms })
        };
        let others = members.iter().filter(|other| **other != node);
        let seat = Seat { node, life };
        let shards =
            (0..self.active.len()).filter_map(|shard| self.shard_report(seat, shard)).collect();
        Report {
            at: self.now,
            life,
            reachable: others.map(link).collect(),
            clock_offset_ms: self.processes[&node].clock_offset_ms,
            hears: members
                .iter()
                .copied()
                .filter(|other| *other != node && self.has_for_alive(node, *other))
                .collect(),
            disk_delay_ms: self.processes[&node].disk_delay_ms,
            shards,
        }
    }

    fn shard_report(&self, seat: Seat, shard: usize) -> Option<ShardReport> {
        let configuration = &self.topology.shards[shard];
        let number = shard as u16;
        let copy = self.copies.get(&(seat, number));
        let copy = match copy {
            Some(copy) => *copy,
            None if configuration.names(seat) => Copy::default(),
            None => return None,
        };
        let leads = configuration.primary == seat;
        let is_active = leads && self.active[shard] == configuration.epoch;
        let acknowledged = |other: &Seat| {
            let copy = self.copies.get(&(*other, number)).copied().unwrap_or_default();
            (*other, if copy.vouches { copy.last.seq } else { 0 })
        };
        let others = configuration.seats().into_iter().filter(|other| *other != seat);
        let copies =
            if is_active { others.map(|other| acknowledged(&other)).collect() } else { Vec::new() };
        Some(ShardReport {
            shard: ShardId(number),
            epoch: configuration.epoch,
            last: copy.last,
            role: match (leads, is_active) {
                (_, true) => Role::Active,
                (true, _) => Role::TakingOver,
                _ => Role::Follower,
            },
            copies,
            committed: self.committed[shard].seq,
            vouches: copy.vouches,
        })
    }
}
