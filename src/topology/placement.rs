//! Which nodes should hold a shard's copies.
//!
//! Pure and deterministic. A shard's copies stand on different nodes, in different zones as long as
//! there are enough, on the nodes that hold least for the memory they have. What is there stays
//! where it is: a copy moves only if that spreads zones or brings loads nearer together. It never
//! knows how a copy gets to its place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::NodeId;
use crate::entry::ShardId;

/// A node as a place for copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its zone; nodes without one share the empty zone.
    pub zone: String,
    /// What its load is measured against, in bytes.
    pub memory_bytes: u64,
    /// Whether it takes copies that it has not yet.
    pub open: bool,
    /// How many copies it has, or shall have.
    pub copies: usize,
}

impl Room {
    /// How full it is with so many copies. To be compared, nothing more.
    fn load(&self, copies: usize) -> u128 {
        relative(copies, self.memory_bytes)
    }
}

/// `count` for each byte of `memory_bytes`, scaled so that whole numbers can be compared.
pub fn relative(count: usize, memory_bytes: u64) -> u128 {
    ((count as u128) << 64) / u128::from(memory_bytes.max(1))
}

/// A copy that should stand elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Of which shard.
    pub shard: ShardId,
    /// The node that has it.
    pub from: NodeId,
    /// The node that should.
    pub to: NodeId,
}

/// Every node that copies may stand on.
#[derive(Clone, Debug, Default)]
pub struct Rooms(BTreeMap<NodeId, Room>);

impl Rooms {
    /// The nodes, with the copies that they have already.
    pub fn new(rooms: BTreeMap<NodeId, Room>) -> Self {
        Self(rooms)
    }

    /// How many copies a node has by now.
    pub fn copies(&self, node: NodeId) -> usize {
        self.0.get(&node).map_or(0, |room| room.copies)
    }

    /// The nodes for `count` copies of a shard that stand on `have` now: those, without surplus
    /// ones, and open nodes for what is missing. Fewer where there are not enough nodes.
    ///
    /// `have` names each node once, and is counted in the rooms' copies; what comes to it or goes
    /// is counted by this.
    pub fn choose(&mut self, have: &[NodeId], count: usize) -> Vec<NodeId> {
        let mut chosen = have.to_vec();
        while chosen.len() > count {
            let Some(surplus) = self.surplus(&chosen) else { break };
            chosen.retain(|node| *node != surplus);
            self.count(surplus, -1);
        }
        while chosen.len() < count {
            let Some(next) = self.next(&chosen) else { break };
            chosen.push(next);
            self.count(next, 1);
        }
        chosen
    }

    /// Which copies should move, at most `bound`: first those that spread a shard over more zones,
    /// then from the fullest nodes to the emptiest. Nothing where no move would bring the loads
    /// nearer together. `shards` names the nodes of each shard that may be touched.
    pub fn relocate(&mut self, shards: &[(ShardId, Vec<NodeId>)], bound: usize) -> Vec<Relocation> {
        let mut found: Vec<Relocation> = Vec::new();
        let mut touched = BTreeSet::new();
        for (shard, set) in shards {
            if found.len() == bound {
                return found;
            }
            if let Some((from, to)) = self.spread(set) {
                touched.insert(*shard);
                self.note(&mut found, Relocation { shard: *shard, from, to });
            }
        }
        let mut held_by: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (at, (_, set)) in shards.iter().enumerate() {
            set.iter().for_each(|node| held_by.entry(*node).or_default().push(at));
        }
        while found.len() < bound {
            let Some(relocation) = self.level(shards, &held_by, &touched) else { break };
            touched.insert(relocation.shard);
            self.note(&mut found, relocation);
        }
        found
    }

    fn note(&mut self, found: &mut Vec<Relocation>, relocation: Relocation) {
        self.count(relocation.from, -1);
        self.count(relocation.to, 1);
        found.push(relocation);
    }

    fn count(&mut self, node: NodeId, by: isize) {
        if let Some(room) = self.0.get_mut(&node) {
            room.copies = room.copies.saturating_add_signed(by);
        }
    }

    fn zone(&self, node: NodeId) -> Option<&str> {
        self.0.get(&node).map(|room| room.zone.as_str())
    }

    fn zones(&self, set: impl Iterator<Item = NodeId>) -> usize {
        set.filter_map(|node| self.zone(node)).collect::<BTreeSet<_>>().len()
    }

    fn shares_its_zone(&self, node: NodeId, set: &[NodeId]) -> bool {
        set.iter().any(|other| *other != node && self.zone(*other) == self.zone(node))
    }

    /// The open node that should have the next copy.
    fn next(&self, chosen: &[NodeId]) -> Option<NodeId> {
        self.0
            .iter()
            .filter(|(node, room)| room.open && !chosen.contains(node))
            .min_by_key(|(node, room)| {
                (self.shares_its_zone(**node, chosen), room.load(room.copies + 1), **node)
            })
            .map(|(node, _)| *node)
    }

    /// The node that is best done without.
    fn surplus(&self, chosen: &[NodeId]) -> Option<NodeId> {
        let load = |node| self.0.get(&node).map_or(u128::MAX, |room| room.load(room.copies));
        chosen
            .iter()
            .copied()
            .max_by_key(|node| (self.shares_its_zone(*node, chosen), load(*node), *node))
    }

    /// A move that takes one of two copies out of a zone into one that has none.
    fn spread(&self, set: &[NodeId]) -> Option<(NodeId, NodeId)> {
        let from = self.surplus(set).filter(|node| self.shares_its_zone(*node, set))?;
        let to = self.next(set).filter(|node| !self.shares_its_zone(*node, set))?;
        Some((from, to))
    }

    /// The move between the fullest and the emptiest node that some shard allows.
    fn level(
        &self,
        shards: &[(ShardId, Vec<NodeId>)],
        held_by: &BTreeMap<NodeId, Vec<usize>>,
        touched: &BTreeSet<ShardId>,
    ) -> Option<Relocation> {
        let mut fullest: Vec<_> = self.0.iter().collect();
        fullest.sort_by_key(|(node, room)| (Reverse(room.load(room.copies)), **node));
        let mut emptiest: Vec<_> = self.0.iter().filter(|(_, room)| room.open).collect();
        emptiest.sort_by_key(|(node, room)| (room.load(room.copies + 1), **node));
        for (to, room) in emptiest {
            let after = room.load(room.copies + 1);
            let fuller = fullest.iter().take_while(|(_, room)| room.load(room.copies) > after);
            for (from, _) in fuller {
                let may_move = |at: &&usize| {
                    let (shard, set) = &shards[**at];
                    let others = || set.iter().copied().filter(|node| node != *from);
                    !touched.contains(shard)
                        && !set.contains(to)
                        && self.zones(others().chain([*to])) >= self.zones(set.iter().copied())
                };
                let held = held_by.get(*from).into_iter().flatten();
                if let Some(at) = { held }.find(may_move) {
                    return Some(Relocation { shard: shards[*at].0, from: **from, to: *to });
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn room(zone: &str, memory_bytes: u64) -> Room {
        Room { zone: zone.to_owned(), memory_bytes, open: true, copies: 0 }
    }

    fn rooms(of: &[(&str, u64)]) -> Rooms {
        let number = |at: usize| NodeId(at as u64 + 1);
        Rooms::new(of.iter().enumerate().map(|(at, (z, m))| (number(at), room(z, *m))).collect())
    }

    fn nodes(numbers: &[u64]) -> Vec<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    /// Places shards until `count` have been, then moves copies until nothing wants to move.
    fn settle(rooms: &mut Rooms, shards: &mut [(ShardId, Vec<NodeId>)]) -> usize {
        let mut moves = 0;
        loop {
            let found = rooms.relocate(shards, 3);
            if found.is_empty() {
                return moves;
            }
            for Relocation { shard, from, to } in found {
                let set = &mut shards[usize::from(shard.0)].1;
                let at = set.iter().position(|node| *node == from).expect("it stood there");
                set[at] = to;
                moves += 1;
                assert!(moves < 10_000, "copies are moved back and forth");
            }
        }
    }

    #[test]
    fn zones_come_first_and_then_the_emptier_node() {
        let mut rooms = rooms(&[("x", 1), ("x", 1), ("y", 1), ("", 1)]);
        assert_eq!(rooms.choose(&nodes(&[2]), 3), nodes(&[2, 3, 4]));
        rooms.count(NodeId(1), 5);
        assert_eq!(rooms.choose(&[], 2), nodes(&[2, 3]));
    }

    #[test]
    fn a_surplus_copy_goes_from_a_zone_that_has_two() {
        let mut rooms = rooms(&[("x", 1), ("y", 1), ("y", 1), ("z", 1)]);
        assert_eq!(rooms.choose(&nodes(&[1, 2, 3, 4]), 3), nodes(&[1, 2, 4]));
        rooms.0.get_mut(&NodeId(4)).unwrap().open = false;
        assert_eq!(rooms.choose(&nodes(&[4]), 1), nodes(&[4]), "what is there stays");
        assert_eq!(rooms.choose(&nodes(&[1]), 4), nodes(&[1, 2, 3]), "not on a closed one");
    }

    #[test]
    fn a_fourth_node_takes_a_quarter_by_as_many_moves() {
        let mut rooms = rooms(&[("", 1), ("", 1), ("", 1)]);
        let mut shards: Vec<_> = (0..64).map(|s| (ShardId(s), rooms.choose(&[], 3))).collect();
        rooms.0.insert(NodeId(4), room("", 1));
        assert_eq!(settle(&mut rooms, &mut shards), 48);
        let copies: Vec<_> = rooms.0.values().map(|room| room.copies).collect();
        assert_eq!(copies, [48, 48, 48, 48]);
    }

    #[test]
    fn a_node_with_twice_the_memory_has_twice_the_copies() {
        let mut rooms = rooms(&[("", 10), ("", 10), ("", 20)]);
        (0..40).for_each(|_| drop(rooms.choose(&[], 1)));
        let copies: Vec<_> = rooms.0.values().map(|room| room.copies).collect();
        assert_eq!(copies, [10, 10, 20]);
    }

    #[test]
    fn copies_spread_when_another_zone_comes() {
        let mut rooms = rooms(&[("x", 1), ("x", 1), ("x", 1), ("y", 1)]);
        (1..4).for_each(|node| rooms.count(NodeId(node), 1));
        let moves = rooms.relocate(&[(ShardId(0), nodes(&[1, 2, 3]))], 9);
        let moved = Relocation { shard: ShardId(0), from: NodeId(3), to: NodeId(4) };
        assert_eq!(moves, [moved]);
    }

    prop_compose! {
        fn any_rooms()(of in prop::collection::vec((0..4_u8, 1..5_u64, any::<bool>()), 1..9)) -> Rooms {
            let mut rooms = BTreeMap::new();
            for (at, (zone, memory_bytes, open)) in of.into_iter().enumerate() {
                let room = Room { open, ..room(&format!("z{zone}"), memory_bytes) };
                rooms.insert(NodeId(at as u64), room);
            }
            Rooms::new(rooms)
        }
    }

    proptest! {
        #[test]
        fn no_node_has_two_copies_of_a_shard_and_zones_are_spread_if_they_can(
            mut rooms in any_rooms(), count in 1..6_usize, shards in 1..20_u16,
        ) {
            let open: Vec<_> = rooms.0.iter().filter(|(_, r)| r.open).map(|(n, _)| *n).collect();
            let zones = rooms.zones(open.iter().copied());
            for _ in 0..shards {
                let chosen = rooms.choose(&[], count);
                let each: BTreeSet<_> = chosen.iter().collect();
                prop_assert_eq!(each.len(), chosen.len());
                prop_assert_eq!(chosen.len(), count.min(open.len()));
                prop_assert_eq!(rooms.zones(chosen.iter().copied()), chosen.len().min(zones));
                prop_assert!(chosen.iter().all(|node| open.contains(node)));
            }
        }

        #[test]
        fn equal_nodes_differ_by_one_copy_at_most(
            count in 1..6_usize, number in 1..9_usize, shards in 1..60_u16, zoned in any::<bool>(),
        ) {
            let zones: Vec<_> = (0..number).map(|n| if zoned { n.to_string() } else { String::new() }).collect();
            let mut rooms = rooms(&zones.iter().map(|z| (z.as_str(), 7)).collect::<Vec<_>>());
            (0..shards).for_each(|_| drop(rooms.choose(&[], count)));
            let copies = || rooms.0.values().map(|room| room.copies);
            prop_assert!(copies().max() <= copies().min().map(|least| least + 1));
        }

        #[test]
        fn moves_end_in_balance_and_never_put_two_copies_on_a_node(
            sets in prop::collection::vec(prop::collection::btree_set(0..6_u64, 3), 1..30),
        ) {
            let mut rooms = Rooms::new((0..6).map(|n| (NodeId(n), room("", 1))).collect());
            let mut shards = Vec::new();
            for (at, set) in sets.into_iter().enumerate() {
                let set: Vec<_> = set.into_iter().map(NodeId).collect();
                set.iter().for_each(|node| rooms.count(*node, 1));
                shards.push((ShardId(at as u16), set));
            }
            settle(&mut rooms, &mut shards);
            for (_, set) in &shards {
                prop_assert_eq!(set.iter().collect::<BTreeSet<_>>().len(), 3);
            }
            let copies = || rooms.0.values().map(|room| room.copies);
            prop_assert!(copies().max() <= copies().min().map(|least| least + 1));
        }
    }
}
