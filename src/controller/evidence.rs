//! Whether a node seems failed, from what is seen at one moment.

use std::fmt;
use std::time::Duration;

use super::sight::{Break, Link, Seems, Sight};
use crate::topology::{NodeId, Topology};

/// A report older than this says nothing of the present.
pub(super) const REPORT_FRESH: Duration = Duration::from_secs(3);

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

/// How a member seems, with nothing remembered from before.
pub(super) fn condition(topology: &Topology, sight: &Sight, node: NodeId) -> Condition {
    if node == sight.me {
        return Condition::Well;
    }
    let gossip = sight.alive.get(&node).map(|seen| seen.state);
    if let Some(why) = broken_link(sight, sight.me, node)
        && is_confirmed(topology, sight, node, why)
    {
        return Condition::Failed(Failure::Link(why));
    }
    match gossip {
        Some(Seems::Alive) => Condition::Well,
        Some(Seems::Suspect) => Condition::Failed(Failure::Suspected),
        Some(Seems::Dead) => Condition::Failed(Failure::Dead),
        None if has_fresh_report(sight, node) => Condition::Well,
        None => Condition::Unknown,
    }
}

/// Whether the node has reported lately.
pub(super) fn has_fresh_report(sight: &Sight, node: NodeId) -> bool {
    let report = sight.reports.get(&node);
    report.is_some_and(|report| sight.now.saturating_sub(report.at) <= REPORT_FRESH)
}

fn broken_link(sight: &Sight, from: NodeId, to: NodeId) -> Option<Break> {
    if !has_fresh_report(sight, from) {
        return None;
    }
    match sight.reports.get(&from)?.reachable.get(&to)? {
        Link::Up => None,
        Link::Down { why, .. } => Some(*why),
    }
}

/// A second live member says so as well. Where there is none, the other side must have spoken: it
/// refused, or it closed; silence may be the fault of the network alone.
fn is_confirmed(topology: &Topology, sight: &Sight, node: NodeId, why: Break) -> bool {
    let is_live = |other: &NodeId| match sight.alive.get(other) {
        Some(seen) => seen.state == Seems::Alive,
        None => has_fresh_report(sight, *other),
    };
    let mut others = topology
        .members
        .keys()
        .copied()
        .filter(|other| *other != node && *other != sight.me && is_live(other))
        .peekable();
    if others.peek().is_none() {
        return matches!(why, Break::Refused | Break::Reset);
    }
    others.any(|other| broken_link(sight, other, node).is_some())
}
