//! The topology with what is seen of it: what every rule asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Settings;
use super::evidence::{self, Condition, Evidence};
use super::health::{Assessment, Fitness};
use super::sight::{Report, Role, ShardReport, Sight};
use crate::entry::ShardId;
use crate::topology::{Configuration, Copies, Member, NodeId, Seat, Standing, Topology};

/// One moment.
pub(super) struct View<'a> {
    pub(super) topology: &'a Topology,
    pub(super) settings: &'a Settings,
    pub(super) now: Duration,
    evidence: Evidence<'a>,
    nodes: BTreeMap<NodeId, Node<'a>>,
}

/// A member, as it is seen.
pub(super) struct Node<'a> {
    pub(super) member: &'a Member,
    assessment: Assessment,
    /// What its present life reported last.
    report: Option<&'a Report>,
    is_report_fresh: bool,
    /// That report's copies, by shard.
    copies: Vec<Option<&'a ShardReport>>,
}

impl<'a> View<'a> {
    pub(super) fn new(
        topology: &'a Topology,
        sight: &'a Sight,
        settings: &'a Settings,
        assessments: &BTreeMap<NodeId, Assessment>,
    ) -> Self {
        let node = |(id, assessment): (&NodeId, &Assessment)| {
            let member = topology.members.get(id)?;
            let report = sight.reports.get(id).map(|report| &**report);
            let report = report.filter(|report| report.life == member.about.life);
            let mut copies = vec![None; topology.shards.len()];
            for copy in report.iter().flat_map(|report| &report.shards) {
                if let Some(place) = copies.get_mut(usize::from(copy.shard.0)) {
                    *place = Some(copy);
                }
            }
            let is_report_fresh = report.is_some() && evidence::has_fresh_report(sight, *id);
            let assessment = *assessment;
            Some((*id, Node { member, assessment, report, is_report_fresh, copies }))
        };
        let nodes = assessments.iter().filter_map(node).collect();
        let evidence = Evidence::new(topology, sight);
        Self { topology, settings, now: sight.now, evidence, nodes }
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node<'a>)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// The names of the members that are gone.
    pub(super) fn gone(&self) -> Vec<String> {
        let gone = self.nodes().filter(|(_, node)| node.is_gone());
        gone.map(|(_, node)| node.member.about.name.clone()).collect()
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&Node<'a>> {
        self.nodes.get(&id)
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = (ShardId, &'a Configuration)> {
        let shards: &'a [Arc<Configuration>] = &self.topology.shards;
        shards.iter().enumerate().map(|(at, shard)| (ShardId(at as u16), &**shard))
    }

    pub(super) fn configuration(&self, shard: ShardId) -> &'a Configuration {
        &self.topology.shards[usize::from(shard.0)]
    }

    /// How fit the node is to lead.
    pub(super) fn fitness(&self, id: NodeId) -> Option<Fitness> {
        self.nodes.get(&id)?.assessment.fitness
    }

    pub(super) fn is_well(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(Node::is_well)
    }

    /// Whether the seat's node is connected with a majority of the shard's voters, itself included.
    pub(super) fn is_central(&self, shard: ShardId, seat: Seat) -> bool {
        let is_near = |other: Seat| self.evidence.are_connected(seat.node, other.node);
        self.configuration(shard).has_quorum(Copies::Majority, is_near)
    }

    /// Whether the seat may remember: it is its node's present life, and that is not gone.
    pub(super) fn may_remember(&self, seat: Seat) -> bool {
        self.topology.is_present(seat) && !self.nodes.get(&seat.node).is_some_and(Node::is_gone)
    }

    /// Whether the seat is the present life of a live member.
    pub(super) fn has_memory(&self, seat: Seat) -> bool {
        self.topology.is_present(seat) && self.is_well(seat.node)
    }

    /// The seat of a member's present life.
    pub(super) fn present_seat(&self, id: NodeId) -> Option<Seat> {
        self.nodes.get(&id).map(|node| node.member.seat())
    }

    /// What a seat's life last reported of its copy.
    pub(super) fn copy(&self, seat: Seat, shard: ShardId) -> Option<&'a ShardReport> {
        let node = self.nodes.get(&seat.node)?;
        let is_present = node.member.about.life == seat.life;
        node.copies.get(usize::from(shard.0)).copied().flatten().filter(|_| is_present)
    }

    /// What the primary lately reported, if it is active in the shard's present epoch.
    pub(super) fn active(&self, shard: ShardId) -> Option<&'a ShardReport> {
        let configuration = self.configuration(shard);
        let fresh = self.nodes.get(&configuration.primary.node)?.is_report_fresh;
        let copy = self.copy(configuration.primary, shard)?;
        (fresh && copy.role == Role::Active && copy.epoch == configuration.epoch).then_some(copy)
    }
}

impl<'a> Node<'a> {
    pub(super) fn condition(&self) -> Condition {
        self.assessment.condition
    }

    pub(super) fn is_well(&self) -> bool {
        self.assessment.condition == Condition::Well
    }

    /// Whether its places may go to others.
    pub(super) fn is_gone(&self) -> bool {
        self.assessment.is_gone
    }

    /// Whether it is to be asked, by every way there is, if it is still there.
    pub(super) fn is_to_be_asked(&self) -> bool {
        self.assessment.is_to_be_asked
    }

    /// Whether it has lacked connections with most of the members for a while.
    pub(super) fn is_long_lonely(&self) -> bool {
        self.assessment.is_long_lonely
    }

    /// Whether it may be given copies that it has not yet.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.assessment.fitness, Some(Fitness::Fit | Fitness::ClockOff))
    }

    /// Whether it keeps the copies that it has.
    pub(super) fn stays(&self) -> bool {
        self.member.standing != Standing::Decommissioning
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.member.about.memory_bytes
    }

    /// What its present life reported last.
    pub(super) fn report(&self) -> Option<&'a Report> {
        self.report
    }
}
