//! Whether a node seems failed, or gone, from what is seen at one moment.
//!
//! Every way by which a node may be heard of counts: the leader's own connection, those of whoever
//! the leader reaches, the node's own reports by whatever way they came, gossip here and gossip
//! elsewhere. A node seems *failed* when nobody reaches it over TCP: then it cannot do its work. It
//! is *silent* when no way at all tells of it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::sight::{Break, Link, Report, Seems, Sight};
use crate::topology::{NodeId, Topology};

/// A report older than this says nothing of the present.
pub const REPORT_FRESH: Duration = Duration::from_secs(3);

/// What a node said before its last connection broke may arrive so much later, by another way.
const STRAGGLE: Duration = Duration::from_millis(300);

/// Whether a node can be counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing speaks against it.
    Well,
    /// Nothing has been heard of it, good or bad.
    Unknown,
    /// It seems failed.
    Failed(Failure),
}

/// Why a node seems failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Connections to it broke, from here and from elsewhere.
    Link(Break),
    /// Gossip has not heard it for a while.
    Suspected,
    /// Gossip has given it up.
    Dead,
    /// It was never met.
    Unseen,
    /// It came back with another life, or is no member any more: what it held is gone.
    LostMemory,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(why) => why.fmt(f),
            Self::Suspected => f.write_str("gossip has not heard it for a while"),
            Self::Dead => f.write_str("gossip has given it up"),
            Self::Unseen => f.write_str("it has not been met yet"),
            Self::LostMemory => f.write_str("it has lost its memory"),
        }
    }
}

/// All evidence of one moment.
pub(super) struct Evidence<'a> {
    topology: &'a Topology,
    sight: &'a Sight,
    /// The members to which connections lead from here, one after another.
    reached: BTreeSet<NodeId>,
}

impl<'a> Evidence<'a> {
    pub(super) fn new(topology: &'a Topology, sight: &'a Sight) -> Self {
        let mut reached = BTreeSet::from([sight.me]);
        let mut ahead = vec![sight.me];
        while let Some(node) = ahead.pop() {
            let Some(report) = fresh_report(sight, node) else { continue };
            for (next, link) in &report.reachable {
                let is_way = *link == Link::Up && topology.members.contains_key(next);
                if is_way && reached.insert(*next) && !mutated!(OthersLinksIgnored) {
                    ahead.push(*next);
                }
            }
        }
        Self { topology, sight, reached }
    }

    /// How a member seems, with nothing remembered from before.
    pub(super) fn condition(&self, node: NodeId) -> Condition {
        let seen = self.sight.alive.get(&node).map(|seen| seen.state);
        let gossip_decides = mutated!(GossipDecides) && seen != Some(Seems::Alive);
        if self.is_reached(node) && !(gossip_decides && node != self.sight.me) {
            return Condition::Well;
        }
        if let Some((why, _)) = self.broken_link(self.sight.me, node)
            && self.is_confirmed(node, why)
        {
            return Condition::Failed(Failure::Link(why));
        }
        match seen {
            Some(Seems::Alive) => Condition::Well,
            Some(Seems::Suspect) => Condition::Failed(Failure::Suspected),
            Some(Seems::Dead) => Condition::Failed(Failure::Dead),
            None if has_fresh_report(self.sight, node) => Condition::Well,
            None => Condition::Unknown,
        }
    }

    /// Since when no way at all tells of a node, as far as that can be told now; `None` while one
    /// does. Zero if nothing ever told of it.
    pub(super) fn silent_since(&self, node: NodeId) -> Option<Duration> {
        let seen = self.sight.alive.get(&node);
        let is_suspect = seen.is_some_and(|seen| seen.state != Seems::Dead);
        if self.is_reached(node) || is_suspect || self.is_heard_elsewhere(node) {
            return None;
        }
        let given_up = seen.map(|seen| seen.since);
        given_up.max(self.last_break(node)).or(Some(Duration::ZERO))
    }

    /// Whether a connection leads to the node, or it has said something since the last one broke.
    fn is_reached(&self, node: NodeId) -> bool {
        self.reached.contains(&node) || self.has_spoken(node)
    }

    /// Whether a report came since the last connection to the node broke: then there is a way.
    fn has_spoken(&self, node: NodeId) -> bool {
        let spoke = fresh_report(self.sight, node).map(|report| report.at);
        let broke = self.last_break(node);
        spoke.zip(broke).is_some_and(|(spoke, broke)| spoke > broke + STRAGGLE)
            && !mutated!(WordsIgnored)
    }

    /// Whether the gossip of somebody who is reached has the node for alive.
    fn is_heard_elsewhere(&self, node: NodeId) -> bool {
        let hears = |report: &Report| report.hears.contains(&node) && !mutated!(ElsewhereIgnored);
        self.others(node).any(|other| fresh_report(self.sight, other).is_some_and(hears))
    }

    /// Members other than `node` and this one to which connections lead.
    fn others(&self, node: NodeId) -> impl Iterator<Item = NodeId> {
        let me = self.sight.me;
        self.reached.iter().copied().filter(move |other| *other != node && *other != me)
    }

    /// When the last of the connections to the node broke, of those that are known to have.
    fn last_break(&self, node: NodeId) -> Option<Duration> {
        let break_of = |from: NodeId| self.broken_link(from, node).map(|(_, since)| since);
        self.others(node).chain([self.sight.me]).filter_map(break_of).max()
    }

    /// Why a connection carries nothing, and since when, if that is known.
    fn broken_link(&self, from: NodeId, to: NodeId) -> Option<(Break, Duration)> {
        let report = fresh_report(self.sight, from)?;
        match report.reachable.get(&to)? {
            Link::Up => None,
            Link::Down { why, for_ms } => {
                let since = report.at.saturating_sub(Duration::from_millis(u64::from(*for_ms)));
                Some((*why, since))
            }
        }
    }

    /// A second member that is reached says so as well. Where there is none, the other side must
    /// have spoken: it refused, or it closed; silence may be the fault of the network alone.
    fn is_confirmed(&self, node: NodeId, why: Break) -> bool {
        let mut others = self.others(node).peekable();
        if others.peek().is_none() {
            return matches!(why, Break::Refused | Break::Reset);
        }
        others.any(|other| self.broken_link(other, node).is_some())
    }

    /// Whether a connection stands between the two, whoever dialled it.
    pub(super) fn are_connected(&self, a: NodeId, b: NodeId) -> bool {
        let is_up = |from: NodeId, to: NodeId| {
            let report = fresh_report(self.sight, from);
            report.is_some_and(|report| report.reachable.get(&to) == Some(&Link::Up))
        };
        a == b || is_up(a, b) || is_up(b, a)
    }

    /// Whether the node is connected with most of the members, itself included.
    pub(super) fn is_central(&self, node: NodeId) -> bool {
        let members = &self.topology.members;
        let connected = members.keys().filter(|other| self.are_connected(node, **other)).count();
        2 * connected > members.len()
    }

    /// Whether this node is connected with it.
    pub(super) fn is_near(&self, node: NodeId) -> bool {
        self.are_connected(self.sight.me, node)
    }
}

/// Whether the node has reported lately.
pub(super) fn has_fresh_report(sight: &Sight, node: NodeId) -> bool {
    fresh_report(sight, node).is_some()
}

/// What the node has reported lately.
pub(super) fn fresh_report(sight: &Sight, node: NodeId) -> Option<&Report> {
    let report = sight.reports.get(&node)?;
    (sight.now.saturating_sub(report.at) <= REPORT_FRESH).then_some(report)
}
