//! A shard's configuration, and what counts as a quorum in it.

use serde::{Deserialize, Serialize};

use super::{NodeId, Seat};

/// How many copies must have a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// So many voters of each set, or all of a set that has fewer.
    Count(u32),
    /// More than half of each set.
    Majority,
    /// Every voter.
    All,
}

impl Copies {
    /// How many of a set of `voters` that is.
    pub fn of(self, voters: usize) -> usize {
        match self {
            Self::Count(count) => voters.min(count as usize),
            Self::Majority => voters / 2 + 1,
            Self::All => voters,
        }
    }
}

/// Who holds a shard's copies and who orders its records, in one epoch.
///
/// While the voters change there are two sets of them, and every quorum is needed in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Rises with each change.
    pub epoch: u32,
    /// Who orders; one of the voters, of either set.
    pub primary: Seat,
    /// The voters; while they change, those that will be.
    pub voters: Vec<Seat>,
    /// While the voters change, those that were; else empty.
    pub old_voters: Vec<Seat>,
    /// Copies that are being brought level and count in no quorum.
    pub learners: Vec<Seat>,
}

impl Configuration {
    /// The first configuration of a shard: one copy.
    pub fn alone(epoch: u32, seat: Seat) -> Self {
        let (old_voters, learners) = (Vec::new(), Vec::new());
        Self { epoch, primary: seat, voters: vec![seat], old_voters, learners }
    }

    /// Whether the voters are changing.
    pub fn is_joint(&self) -> bool {
        !self.old_voters.is_empty()
    }

    /// The set of voters, or the two sets.
    pub fn sets(&self) -> impl Iterator<Item = &[Seat]> {
        let old = self.is_joint().then_some(self.old_voters.as_slice());
        std::iter::once(self.voters.as_slice()).chain(old)
    }

    /// Whether `copies` of the voters of each set are such that `has` holds.
    pub fn has_quorum(&self, copies: Copies, mut has: impl FnMut(Seat) -> bool) -> bool {
        self.sets().all(|set| {
            set.iter().filter(|seat| has(**seat)).count() >= copies.of(set.len())
        })
    }

    /// The highest number that `copies` of the voters of each set have reached, by what `reached`
    /// says of each.
    pub fn reached_by(&self, copies: Copies, mut reached: impl FnMut(Seat) -> u64) -> u64 {
        let of_set = |set: &[Seat]| {
            let mut numbers: Vec<u64> = set.iter().map(|seat| reached(*seat)).collect();
            numbers.sort_unstable_by(|a, b| b.cmp(a));
            match copies.of(set.len()) {
                0 => u64::MAX,
                n => numbers.get(n - 1).copied().unwrap_or(0),
            }
        };
        self.sets().map(of_set).min().unwrap_or(0)
    }

    /// Whether the seat votes, in either set.
    pub fn is_voter(&self, seat: Seat) -> bool {
        self.sets().any(|set| set.contains(&seat))
    }

    /// Whether the seat has, or shall have, a copy.
    pub fn names(&self, seat: Seat) -> bool {
        self.is_voter(seat) || self.learners.contains(&seat)
    }

    /// Every seat once: voters first.
    pub fn seats(&self) -> Vec<Seat> {
        let mut seats: Vec<Seat> = self.voters.clone();
        for seat in self.old_voters.iter().chain(&self.learners) {
            if !seats.contains(seat) {
                seats.push(*seat);
            }
        }
        seats
    }

    /// The seat that a node has here, if any; its latest life if it has several.
    pub fn seat_of(&self, node: NodeId) -> Option<Seat> {
        self.seats().into_iter().filter(|seat| seat.node == node).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(node: u64) -> Seat {
        Seat { node: NodeId(node), life: 1 }
    }

    fn joint() -> Configuration {
        Configuration {
            epoch: 7,
            primary: seat(1),
            voters: vec![seat(1), seat(2), seat(4)],
            old_voters: vec![seat(1), seat(2), seat(3)],
            learners: vec![seat(5)],
        }
    }

    #[test]
    fn while_voters_change_a_quorum_is_needed_in_both_sets() {
        let has = |nodes: &[u64], copies| {
            joint().has_quorum(copies, |seat| nodes.contains(&seat.node.0))
        };
        assert!(has(&[1, 2], Copies::Majority));
        assert!(!has(&[1, 4], Copies::Majority), "of the old set only node 1");
        assert!(has(&[2, 3, 4], Copies::Majority));
        assert!(!has(&[1, 2, 4], Copies::All));
        assert!(has(&[1, 2, 3, 4], Copies::All));
        assert!(has(&[3, 4], Copies::Count(1)));
    }

    #[test]
    fn what_a_quorum_has_reached_is_the_lesser_of_both_sets() {
        let reached = |seat: Seat| [0, 9, 8, 3, 7, 99][seat.node.0 as usize];
        assert_eq!(joint().reached_by(Copies::Majority, reached), 8);
        assert_eq!(joint().reached_by(Copies::All, reached), 3);
        assert_eq!(joint().reached_by(Copies::Count(9), reached), 3);
    }

    #[test]
    fn another_life_of_a_node_is_another_seat() {
        let mut configuration = joint();
        let later = Seat { node: NodeId(3), life: 2 };
        configuration.learners.push(later);
        assert!(!configuration.is_voter(later) && configuration.names(later));
        assert_eq!(configuration.seat_of(NodeId(3)), Some(later));
    }
}
