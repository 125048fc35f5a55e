//! Which members vote in the topology's Raft group.

use std::collections::{BTreeMap, BTreeSet};

use crate::topology::{Member, NodeId, Standing, Topology};

/// More voters than this make each decision slower and the topology no safer.
pub const VOTERS_MAX: usize = 5;

/// The voters that the group ought to have: odd in number, five at most, spread over zones.
///
/// `present` are those that it has, `leader` the one that asks. `able` says of a present voter
/// whether it is to be reckoned with, and of any other member whether it could vote at once, which
/// is to say that it seems alive and has caught up.
///
/// A present voter keeps its place unless another is better: one that is able instead of one that
/// is not, or one in a zone that has fewer voters. The number of voters falls only because there
/// are fewer members, never because some are down.
pub fn choose_voters(
    topology: &Topology,
    present: &BTreeSet<NodeId>,
    leader: NodeId,
    able: impl Fn(NodeId) -> bool,
) -> BTreeSet<NodeId> {
    let staying = |member: &&Member| member.standing != Standing::Decommissioning;
    let mut members: Vec<&Member> = topology.members.values().filter(staying).collect();
    if members.is_empty() {
        // Everybody is to go: somebody still has to decide that.
        members = topology.members.values().collect();
    }
    let wanted = voters_of(members.len());
    members.retain(|member| present.contains(&member.node) || able(member.node));
    let count = wanted.min(odd(members.len()));
    if count == 0 || (count < wanted && count < present.len()) {
        // Whoever is to replace a voter is not ready yet.
        return present.clone();
    }

    let mut chosen = BTreeSet::new();
    let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    while chosen.len() < count {
        let others = members.iter().filter(|member| !chosen.contains(&member.node));
        let merit = |member: &&&Member| {
            let zone = member.about.zone.as_str();
            let crowd = in_zone.get(zone).copied().unwrap_or(0);
            let node = member.node;
            (!able(node), crowd, node != leader, !present.contains(&node), node)
        };
        let best = others.min_by_key(merit).expect("there are at least as many members as voters");
        chosen.insert(best.node);
        *in_zone.entry(best.about.zone.as_str()).or_default() += 1;
    }
    chosen
}

/// How many of so many members vote: of two, one, since two voters bear no loss either.
fn voters_of(members: usize) -> usize {
    odd(members.min(VOTERS_MAX))
}

/// The highest odd number up to `n`; 0 for 0.
fn odd(n: usize) -> usize {
    if n == 0 { 0 } else { n - usize::from(n.is_multiple_of(2)) }
}

/// Whether more than half of the nodes are such that `alive` holds.
pub(super) fn majority(nodes: &BTreeSet<NodeId>, alive: impl Fn(NodeId) -> bool) -> bool {
    nodes.iter().filter(|node| alive(**node)).count() > nodes.len() / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::{Announcement, Cluster, Command, Outcome};

    /// A topology whose members have the zones, numbered from 1.
    fn topology(zones: &[&str]) -> Topology {
        let mut topology = Topology::default();
        for (i, zone) in zones.iter().enumerate() {
            let about = Announcement {
                name: format!("node{}", i + 1),
                zone: (*zone).to_owned(),
                ..Announcement::default()
            };
            let cluster = Cluster { id: 1, hash_seed: 2, num_shards: 1 };
            let outcome = if i == 0 {
                topology.apply(Command::Found { cluster, founder: NodeId(1), about, epoch: 1 })
            } else {
                topology.apply(Command::Join(about))
            };
            assert!(!matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
        }
        topology
    }

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    fn choose(topology: &Topology, present: &[u64], dead: &[u64]) -> BTreeSet<NodeId> {
        let dead = nodes(dead);
        let leader = NodeId(present[0]);
        choose_voters(topology, &nodes(present), leader, |node| !dead.contains(&node))
    }

    #[test]
    fn voters_are_odd_in_number_and_five_at_most() {
        let voters =
            |members: usize, present: &[u64]| choose(&topology(&vec![""; members]), present, &[]);
        assert_eq!(voters(1, &[1]), nodes(&[1]));
        assert_eq!(voters(2, &[1]), nodes(&[1]));
        assert_eq!(voters(2, &[2]), nodes(&[2]), "the one that votes goes on voting");
        assert_eq!(voters(3, &[1]), nodes(&[1, 2, 3]));
        assert_eq!(voters(4, &[1, 2, 4]), nodes(&[1, 2, 4]));
        assert_eq!(voters(5, &[1, 2, 3]), nodes(&[1, 2, 3, 4, 5]));
        assert_eq!(voters(9, &[1, 2, 3, 5, 8]), nodes(&[1, 2, 3, 5, 8]));
    }

    #[test]
    fn a_dead_voter_is_replaced_by_a_learner_that_is_able_or_keeps_its_place() {
        let four = topology(&["", "", "", ""]);
        assert_eq!(choose(&four, &[1, 2, 3], &[2]), nodes(&[1, 3, 4]));
        assert_eq!(choose(&four, &[1, 2, 3], &[2, 4]), nodes(&[1, 2, 3]));
        let three = topology(&["", "", ""]);
        assert_eq!(choose(&three, &[1, 2, 3], &[3]), nodes(&[1, 2, 3]));
        assert_eq!(choose(&three, &[1, 2, 3], &[2, 3]), nodes(&[1, 2, 3]));
    }

    #[test]
    fn learners_vote_only_once_their_number_makes_it_odd() {
        let three = topology(&["", "", ""]);
        assert_eq!(choose(&three, &[1], &[3]), nodes(&[1]));
        let five = topology(&["", "", "", "", ""]);
        assert_eq!(choose(&five, &[1, 2, 3], &[5]), nodes(&[1, 2, 3]));
    }

    #[test]
    fn voters_spread_over_zones_with_the_fewest_changes() {
        let zones = topology(&["a", "a", "b", "c"]);
        assert_eq!(choose(&zones, &[1, 2, 3], &[]), nodes(&[1, 3, 4]));
        assert_eq!(choose(&zones, &[2, 1, 3], &[]), nodes(&[2, 3, 4]), "the leader stays");
        assert_eq!(choose(&zones, &[1, 2, 3], &[4]), nodes(&[1, 2, 3]));
        let crowded = topology(&["a", "a", "a", "b", "b", "b"]);
        assert_eq!(choose(&crowded, &[1, 2, 3, 4, 5], &[]), nodes(&[1, 2, 3, 4, 5]));
    }

    #[test]
    fn whoever_is_to_leave_votes_no_more_once_another_can() {
        let mut four = topology(&["", "", "", ""]);
        let standing = Standing::Decommissioning;
        four.apply(Command::Stand { node: NodeId(2), standing });
        assert_eq!(choose(&four, &[1, 2, 3], &[]), nodes(&[1, 3, 4]));
        assert_eq!(choose(&four, &[1, 2, 3], &[4]), nodes(&[1, 2, 3]), "no replacement yet");
        assert_eq!(choose(&four, &[2, 1, 3], &[]), nodes(&[1, 3, 4]), "even if it leads");
        for node in [1, 3, 4] {
            four.apply(Command::Stand { node: NodeId(node), standing });
        }
        assert_eq!(choose(&four, &[1, 2, 3], &[]), nodes(&[1, 2, 3]), "somebody must decide");
    }

    #[test]
    fn a_removed_voter_keeps_its_place_until_its_successor_has_caught_up() {
        let mut three = topology(&["", "", ""]);
        let about = Announcement { name: "node3".to_owned(), life: 9, ..Announcement::default() };
        let outcome = three.apply(Command::Join(about));
        assert!(matches!(outcome, Outcome::Joined { node: NodeId(4), .. }), "{outcome:?}");
        assert_eq!(choose(&three, &[1, 2, 3], &[3, 4]), nodes(&[1, 2, 3]));
        assert_eq!(choose(&three, &[1, 2, 3], &[3]), nodes(&[1, 2, 4]));
    }

    #[test]
    fn with_fewer_members_there_are_fewer_voters() {
        let two = topology(&["", ""]);
        assert_eq!(choose(&two, &[2, 1, 7], &[7]), nodes(&[2]), "the leader is kept");
    }

    proptest! {
        #[test]
        fn voters_are_always_a_sane_group(
            zones in prop::collection::vec("[abc]?", 1..9),
            present in prop::collection::btree_set(1_u64..10, 1..6),
            dead in prop::collection::btree_set(1_u64..10, 0..6),
        ) {
            let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
            let topology = topology(&zones);
            let present: Vec<u64> = present.into_iter().collect();
            let dead: Vec<u64> = dead.into_iter().collect();
            let chosen = choose(&topology, &present, &dead);
            let unchanged = chosen == nodes(&present);
            prop_assert!(unchanged || chosen.len() % 2 == 1);
            prop_assert!(unchanged || chosen.len() <= 5);
            // Nobody begins to vote who is not able to.
            let newcomers = chosen.difference(&nodes(&present)).copied().collect::<BTreeSet<_>>();
            prop_assert!(newcomers.is_disjoint(&nodes(&dead)));
            prop_assert!(newcomers.iter().all(|node| topology.members.contains_key(node)));
            // And then there is nothing left to change.
            let again: Vec<u64> = chosen.iter().map(|node| node.0).collect();
            let dead = nodes(&dead);
            let leader = NodeId(present[0]);
            let able = |node| !dead.contains(&node);
            let then = choose_voters(&topology, &nodes(&again), leader, able);
            prop_assert_eq!(then, chosen);
        }
    }
}
