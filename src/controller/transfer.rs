//! Whether another voter should lead the topology, because it is better connected than the leader, or
//! has a disk that does not keep decisions waiting.
//!
//! Everything that the leader says to members that it has no connection to goes by way of others; so
//! whoever has most connections leads best. Nothing is decided before the leader's own disk has it.
//! Patient on purpose: a transfer costs a moment without a
//! leader.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use super::evidence::fresh_report;
use super::health::has_late_disk;
use super::sight::{Link, Sight};
use crate::topology::NodeId;

/// Another must have been better connected for so long.
const BETTER_FOR: Duration = Duration::from_secs(3);

/// A leader stays at least so long, or leaderships would follow a link that comes and goes.
const TENURE_MIN: Duration = Duration::from_secs(10);

/// From one transfer by this node to the next.
const TRANSFER_PAUSE: Duration = Duration::from_secs(30);

/// The decision, and what it remembers. To be kept while others lead as well.
#[derive(Debug, Default)]
pub struct Transfer {
    /// Who has been better connected, and since when.
    better: Option<(NodeId, Duration)>,
    /// When this node last gave the leadership away.
    given: Option<Duration>,
}

impl Transfer {
    /// The voter to which this node, the leader since `elected`, should give the leadership now.
    /// `successors` are the other voters whose log is not behind.
    pub fn plan(
        &mut self,
        sight: &Sight,
        elected: Duration,
        voters: &BTreeSet<NodeId>,
        successors: &BTreeSet<NodeId>,
    ) -> Option<NodeId> {
        let rank = |node: NodeId| rank(sight, voters, node);
        let own = rank(sight.me);
        let known = self.better.map(|(node, _)| node);
        let best = successors
            .iter()
            .copied()
            .filter(|node| fresh_report(sight, *node).is_some() && rank(*node) > own)
            // Of equals the one that was the best before: else none would ever be for long.
            .min_by_key(|node| (Reverse(rank(*node)), Some(*node) != known, *node));
        self.better = best.map(|best| match self.better {
            Some((node, since)) if node == best => (best, since),
            _ => (best, sight.now),
        });
        let (best, since) = self.better?;
        let for_long = |since: Duration, min| sight.now.saturating_sub(since) >= min;
        let is_time = for_long(since, BETTER_FOR)
            && for_long(elected, TENURE_MIN)
            && self.given.is_none_or(|given| for_long(given, TRANSFER_PAUSE));
        is_time.then(|| {
            (self.better, self.given) = (None, Some(sight.now));
            best
        })
    }
}

/// With how many voters a node is connected both ways, whether its disk is as quick as others', and
/// with how many nodes it is connected, as far as fresh reports tell.
fn rank(sight: &Sight, voters: &BTreeSet<NodeId>, node: NodeId) -> (usize, bool, usize) {
    let Some(report) = fresh_report(sight, node) else { return (0, false, 0) };
    let answers = |other: NodeId| {
        let back = fresh_report(sight, other).and_then(|report| report.reachable.get(&node));
        !matches!(back, Some(Link::Down { .. }))
    };
    let up = report.reachable.iter().filter(|(_, link)| **link == Link::Up);
    let connected: Vec<NodeId> = up.map(|(other, _)| *other).filter(|o| answers(*o)).collect();
    let has_voters = connected.iter().filter(|other| voters.contains(other)).count();
    (has_voters, !has_late_disk(sight, node), connected.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::sight::{Break, Report};
    use super::*;

    const DOWN: Link = Link::Down { why: Break::Silent, for_ms: 1 };

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn nodes(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().map(|node| NodeId(*node)).collect()
    }

    /// What node 1 sees of nodes 1 to 5, between which these links are down.
    fn sight(now: Duration, down: &[(u64, u64)]) -> Sight {
        let link = |from, to| if down.contains(&(from, to)) { DOWN } else { Link::Up };
        let report = |from: u64| {
            let others = (1..=5).filter(|to| *to != from);
            let reachable: BTreeMap<_, _> = others.map(|to| (NodeId(to), link(from, to))).collect();
            (NodeId(from), Arc::new(Report { at: now, reachable, ..Report::default() }))
        };
        Sight { now, me: NodeId(1), reports: (1..=5).map(report).collect(), ..Sight::default() }
    }

    /// The leader's links to two followers, cut both ways.
    const APART: [(u64, u64); 4] = [(1, 2), (2, 1), (1, 3), (3, 1)];

    /// When the leadership is given away first, and to whom, if these links are down from 100 s on
    /// and `successors` may take it.
    fn given(elected: u64, down: &[(u64, u64)], successors: &[u64]) -> Option<(u64, u64)> {
        let mut transfer = Transfer::default();
        let (voters, successors) = (nodes(&[1, 2, 3, 4]), nodes(successors));
        (100..200).find_map(|now| {
            let sight = sight(seconds(now), down);
            let to = transfer.plan(&sight, seconds(elected), &voters, &successors)?;
            Some((now, to.0))
        })
    }

    #[test]
    fn the_best_connected_voter_takes_over_after_a_while() {
        assert_eq!(given(0, &APART, &[2, 3, 4]), Some((103, 4)), "2 and 3 lack one voter each");
        assert_eq!(given(0, &APART, &[2, 3]), Some((103, 2)), "of equals the lowest");
        assert_eq!(given(95, &APART, &[4]), Some((105, 4)), "not within ten seconds");
    }

    #[test]
    fn a_leader_that_is_as_well_connected_as_any_stays() {
        assert_eq!(given(0, &[], &[2, 3, 4]), None);
        let dead: Vec<(u64, u64)> = (1..=4).flat_map(|node| [(node, 5), (5, node)]).collect();
        assert_eq!(given(0, &dead, &[2, 3, 4]), None, "nobody reaches node 5");
        assert_eq!(given(0, &[(2, 3), (3, 2)], &[2, 3, 4]), None, "followers apart");
        assert_eq!(given(0, &APART, &[]), None, "the others' logs are behind");
    }

    #[test]
    fn a_leader_with_a_slow_disk_gives_the_topology_to_one_that_is_as_well_connected() {
        let given = |down: &[(u64, u64)], delays: [u32; 5]| {
            let mut transfer = Transfer::default();
            let (voters, successors) = (nodes(&[1, 2, 3, 4]), nodes(&[2, 3, 4]));
            (100..120).find_map(|now| {
                let mut sight = sight(seconds(now), down);
                for (node, disk_delay_ms) in (1..).zip(delays) {
                    let report =
                        Report { disk_delay_ms, ..(*sight.reports[&NodeId(node)]).clone() };
                    sight.reports.insert(NodeId(node), Arc::new(report));
                }
                let to = transfer.plan(&sight, seconds(0), &voters, &successors)?;
                Some((now, to.0))
            })
        };
        assert_eq!(given(&[], [3_000, 4_000, 5, 5, 5]), Some((103, 3)));
        assert_eq!(given(&[], [450, 5, 5, 5, 5]), None);
        assert_eq!(given(&[], [3_000, 900, 2_000, 900, 5]), None, "the others are hardly better");
        let apart: Vec<(u64, u64)> =
            [(2, 3), (2, 4), (3, 4)].into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect();
        assert_eq!(given(&apart, [3_000, 5, 5, 5, 5]), None, "only the leader reaches all");
    }

    #[test]
    fn a_connection_counts_only_if_both_sides_have_it() {
        assert_eq!(given(0, &[(2, 1), (3, 1)], &[4]), Some((103, 4)));
        assert_eq!(given(0, &[(1, 2), (1, 3)], &[4]), Some((103, 4)));
    }

    #[test]
    fn voters_count_before_other_members() {
        // The leader lacks a member that does not vote, the only successor a voter.
        assert_eq!(given(0, &[(1, 5), (5, 1), (4, 2), (2, 4)], &[4]), None);
        assert_eq!(given(0, &[(1, 5), (5, 1)], &[4]), Some((103, 4)));
    }

    #[test]
    fn a_better_one_for_a_moment_only_is_nobody() {
        let mut transfer = Transfer::default();
        let (voters, successors) = (nodes(&[1, 2, 3, 4]), nodes(&[4]));
        for now in 100..130 {
            let down = if now % 3 == 0 { &[][..] } else { &APART };
            let to = transfer.plan(&sight(seconds(now), down), seconds(0), &voters, &successors);
            assert_eq!(to, None, "at {now}");
        }
    }

    #[test]
    fn one_transfer_is_not_followed_by_another_for_half_a_minute() {
        let mut transfer = Transfer::default();
        let (voters, successors) = (nodes(&[1, 2, 3, 4]), nodes(&[4]));
        let given: Vec<u64> = (100..170)
            .filter(|now| {
                let sight = sight(seconds(*now), &APART);
                transfer.plan(&sight, seconds(0), &voters, &successors).is_some()
            })
            .collect();
        assert_eq!(given, [103, 133, 163]);
    }

    #[test]
    fn nobody_takes_over_whose_report_is_old() {
        let mut transfer = Transfer::default();
        let (voters, successors) = (nodes(&[1, 2, 3, 4]), nodes(&[4]));
        for now in 100..110 {
            let mut sight = sight(seconds(now), &APART);
            let old = Report { at: seconds(96), ..(*sight.reports[&NodeId(4)]).clone() };
            sight.reports.insert(NodeId(4), Arc::new(old));
            assert_eq!(transfer.plan(&sight, seconds(0), &voters, &successors), None);
        }
    }
}
