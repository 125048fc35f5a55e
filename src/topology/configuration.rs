//! A shard's configuration, and what counts as a quorum in it.

use serde::{Deserialize, Serialize};

use super::{NodeId, Seat};

/// How many copies must have a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Whether this epoch began without a majority of the voters before it: what they had
    /// acknowledged may be missing. All other copies copy the only voter's whole, and versions
    /// start a second above the clock.
    pub unclean: bool,
}

impl Configuration {
    /// The first configuration of a shard: one copy.
    pub fn alone(epoch: u32, seat: Seat) -> Self {
        let (old_voters, learners) = (Vec::new(), Vec::new());
        Self { epoch, primary: seat, voters: vec![seat], old_voters, learners, unclean: false }
    }

    /// Whether the voters are changing.
    pub fn is_joint(&self) -> bool {
        !self.old_voters.is_empty()
    }

    /// Whether `next` may come right after this, as far as the two can tell.
    ///
    /// Each set names a node once, the primary is a voter, and a learner is none. The voters stay,
    /// or change by way of a joint configuration, or are one after an unclean recovery. That the
    /// present epoch's primary was active is for whoever proposes the change to know.
    pub fn may_become(&self, next: &Self) -> bool {
        let same = |a: &[Seat], b: &[Seat]| a.len() == b.len() && a.iter().all(|s| b.contains(s));
        let sets_are_sound = next.sets().all(|set| !set.is_empty() && names_each_node_once(set));
        let learners_are_sound = next
            .learners
            .iter()
            .enumerate()
            .all(|(at, seat)| !next.is_voter(*seat) && !next.learners[..at].contains(seat));
        let voters_may_follow = if next.unclean {
            next.voters.len() == 1 && !next.is_joint()
        } else if same(&self.voters, &next.voters) && same(&self.old_voters, &next.old_voters) {
            true
        } else if self.is_joint() {
            !next.is_joint() && same(&self.voters, &next.voters)
        } else {
            next.is_joint() && same(&self.voters, &next.old_voters)
        };
        sets_are_sound && learners_are_sound && next.is_voter(next.primary) && voters_may_follow
    }

    /// The set of voters, or the two sets.
    pub fn sets(&self) -> impl Iterator<Item = &[Seat]> {
        let old = self.is_joint().then_some(self.old_voters.as_slice());
        std::iter::once(self.voters.as_slice()).chain(old)
    }

    /// Whether `copies` of the voters of each set are such that `has` holds.
    pub fn has_quorum(&self, copies: Copies, mut has: impl FnMut(Seat) -> bool) -> bool {
        self.sets().all(|set| set.iter().filter(|seat| has(**seat)).count() >= copies.of(set.len()))
    }

    /// The highest number that `copies` of the voters of each set have reached, by what `reached`
    /// says of each.
    pub fn reached_by(&self, copies: Copies, mut reached: impl FnMut(Seat) -> u64) -> u64 {
        let of_set = |set: &[Seat]| {
            let (mut few, mut many) = ([0; 8], Vec::new());
            let numbers = few.get_mut(..set.len()).unwrap_or_else(|| {
                many.resize(set.len(), 0);
                &mut many
            });
            numbers.iter_mut().zip(set).for_each(|(number, seat)| *number = reached(*seat));
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

fn names_each_node_once(set: &[Seat]) -> bool {
    set.iter().enumerate().all(|(at, seat)| set[..at].iter().all(|other| other.node != seat.node))
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
            unclean: false,
        }
    }

    #[test]
    fn voters_change_by_way_of_both_sets_and_no_other() {
        let alone = Configuration::alone(3, seat(1));
        let with = |change: &dyn Fn(&mut Configuration)| {
            let mut next = joint();
            change(&mut next);
            next
        };
        let settled = with(&|c| c.old_voters.clear());
        let first = with(&|c| c.voters.clone_from(&c.old_voters));
        let first = Configuration { old_voters: Vec::new(), ..first };
        assert!(first.may_become(&joint()) && joint().may_become(&settled));
        assert!(joint().may_become(&with(&|c| c.primary = seat(4))), "only the primary");
        assert!(joint().may_become(&with(&|c| c.learners.clear())), "only learners");
        assert!(!first.may_become(&settled), "left out the joint configuration");
        assert!(!alone.may_become(&joint()), "the old set is not what it was");
        assert!(!joint().may_become(&first), "backwards");
        assert!(!joint().may_become(&with(&|c| c.voters = vec![seat(1), seat(2)])));
        assert!(joint().may_become(&Configuration { unclean: true, ..alone.clone() }));
        assert!(!joint().may_become(&with(&|c| c.unclean = true)));
    }

    #[test]
    fn an_unsound_configuration_comes_after_none() {
        let later = Seat { node: NodeId(2), life: 2 };
        let bad = |change: &dyn Fn(&mut Configuration)| {
            let mut next = joint();
            change(&mut next);
            !joint().may_become(&next)
        };
        assert!(bad(&|c| c.primary = seat(5)), "a learner leads");
        assert!(bad(&|c| c.learners.push(seat(3))), "a voter learns");
        assert!(bad(&|c| c.learners.push(seat(5))), "a learner twice");
        assert!(bad(&|c| c.voters[0] = later), "two lives of a node in one set");
        assert!(bad(&|c| c.voters.clear()));
    }

    #[test]
    fn while_voters_change_a_quorum_is_needed_in_both_sets() {
        let has =
            |nodes: &[u64], copies| joint().has_quorum(copies, |seat| nodes.contains(&seat.node.0));
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
