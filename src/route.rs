//! Which neighbour leads to a node that this one has no working link to.
//!
//! Pure: links go in, routes come out. Invariant: of nodes that know the same links, each passes on
//! to one that is nearer to the destination, so nothing goes round. Nodes that know different links
//! may send a message round for a moment; [`HOPS_MAX`] ends that. It never asks whether what a link
//! is said to be is still so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::topology::NodeId;

/// How often a message may be passed on.
pub const HOPS_MAX: u8 = 8;

/// The links that work, by the node that dialled them.
pub type Links = BTreeMap<NodeId, BTreeSet<NodeId>>;

/// The way to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The neighbour that comes first; the node itself if a link leads there.
    pub next: NodeId,
    /// How many links it takes.
    pub links: usize,
}

/// The shortest way from a node to each that one leads to, `from` left out; of equals the one
/// whose neighbours have the lowest numbers. Breadth-first, so that the links of a node count only
/// if a way leads to it.
pub fn routes(from: NodeId, links: &Links) -> BTreeMap<NodeId, Route> {
    let mut routes: BTreeMap<NodeId, Route> = BTreeMap::new();
    let mut ahead = VecDeque::from([from]);
    while let Some(node) = ahead.pop_front() {
        let here = routes.get(&node).copied();
        for neighbour in links.get(&node).into_iter().flatten().copied() {
            if neighbour == from || routes.contains_key(&neighbour) {
                continue;
            }
            let next = here.map_or(neighbour, |here| here.next);
            let links = here.map_or(0, |here| here.links) + 1;
            routes.insert(neighbour, Route { next, links });
            ahead.push_back(neighbour);
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn links(links: &[(u64, &[u64])]) -> Links {
        let of = |(node, to): &(u64, &[u64])| {
            (NodeId(*node), to.iter().map(|node| NodeId(*node)).collect())
        };
        links.iter().map(of).collect()
    }

    /// The routes as (destination, next, links).
    fn found(from: u64, told: &[(u64, &[u64])]) -> Vec<(u64, u64, usize)> {
        let routes = routes(NodeId(from), &links(told));
        routes.iter().map(|(to, route)| (to.0, route.next.0, route.links)).collect()
    }

    #[test]
    fn whoever_has_a_link_is_its_own_next() {
        let told: [(u64, &[u64]); 3] = [(1, &[2, 3]), (2, &[1, 3]), (3, &[1, 2])];
        assert_eq!(found(1, &told), [(2, 2, 1), (3, 3, 1)]);
    }

    #[test]
    fn a_third_leads_where_the_own_link_is_cut() {
        let told: [(u64, &[u64]); 3] = [(1, &[3]), (2, &[3]), (3, &[1, 2])];
        assert_eq!(found(1, &told), [(2, 3, 2), (3, 3, 1)]);
        assert_eq!(found(2, &told), [(1, 3, 2), (3, 3, 1)]);
    }

    #[test]
    fn the_shortest_way_is_taken_and_of_equals_the_one_by_the_lowest_numbers() {
        let told: [(u64, &[u64]); 4] = [(1, &[2, 3, 4]), (2, &[5]), (3, &[6]), (4, &[5, 6])];
        assert_eq!(found(1, &told)[3..], [(5, 2, 2), (6, 3, 2)]);
        let chain: [(u64, &[u64]); 4] = [(1, &[4]), (4, &[3]), (3, &[2]), (2, &[5])];
        assert_eq!(found(1, &chain), [(2, 4, 3), (3, 4, 2), (4, 4, 1), (5, 4, 4)]);
    }

    #[test]
    fn links_of_a_node_that_no_way_leads_to_lead_nowhere() {
        let told: [(u64, &[u64]); 3] = [(1, &[2]), (3, &[4]), (4, &[3, 1])];
        assert_eq!(found(1, &told), [(2, 2, 1)]);
        assert_eq!(found(9, &told), []);
    }

    #[test]
    fn a_link_that_works_one_way_leads_one_way() {
        let told: [(u64, &[u64]); 3] = [(1, &[3]), (2, &[1, 3]), (3, &[1, 2])];
        assert_eq!(found(1, &told), [(2, 3, 2), (3, 3, 1)]);
        assert_eq!(found(2, &told), [(1, 1, 1), (3, 3, 1)]);
    }

    proptest! {
        #[test]
        fn nothing_goes_round_among_nodes_that_know_the_same_links(
            told in prop::collection::btree_set((0_u64..8, 0_u64..8), 0..40),
        ) {
            let mut links = Links::new();
            for (from, to) in told {
                links.entry(NodeId(from)).or_default().insert(NodeId(to));
            }
            for from in 0..8 {
                for (to, route) in routes(NodeId(from), &links) {
                    let mut at = NodeId(from);
                    for left in (0..route.links).rev() {
                        let next = routes(at, &links)[&to].next;
                        prop_assert!(links[&at].contains(&next), "there is such a link");
                        at = next;
                        prop_assert!(left == 0 || routes(at, &links)[&to].links == left);
                    }
                    prop_assert_eq!(at, to);
                }
            }
        }
    }
}
