//! What consensus is asked to decide, and what it does to the topology.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Cluster, Configuration, LeaseStep, Member, NodeId, Seat, Standing, StopLease, Topology,
};
use crate::entry::ShardId;

/// What a node says of itself when it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Its name, unique in the cluster.
    pub name: String,
    /// This life of its memory.
    pub life: u64,
    /// Where other nodes reach it: `host:port`, for UDP and TCP.
    pub peer_addr: String,
    /// Where clients reach it: `host:port`.
    pub client_addr: String,
    /// Its zone; empty if unset.
    pub zone: String,
    /// Its region; empty if unset.
    pub region: String,
    /// The version of AegisKV that it runs.
    pub version: String,
    /// The memory it has for entries, in bytes: what placement balances by.
    pub memory_bytes: u64,
}

/// A change of one shard's configuration. Without effect if the shard has left `from_epoch`, or if
/// [`Configuration::may_become`] does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which shard.
    pub shard: ShardId,
    /// The epoch that the change was decided in.
    pub from_epoch: u32,
    /// What comes; its epoch is set by [`Topology::apply`] to the next.
    pub to: Configuration,
}

/// One entry of the topology's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first of all: the cluster is born with one member, which has a copy of every shard.
    Found {
        /// The cluster.
        cluster: Cluster,
        /// Its first member.
        founder: NodeId,
        /// What the founder says of itself.
        about: Announcement,
        /// The epoch in which every shard starts: above any that the founder's disk knows.
        epoch: u32,
    },
    /// A node without a number comes, new or wiped. It gets one. A wiped node's old membership
    /// ends with this.
    Join(Announcement),
    /// A member is there again, or has changed what it says of itself.
    Enter {
        /// Its number.
        node: NodeId,
        /// What it says now.
        about: Announcement,
    },
    /// A member stands otherwise from now on.
    Stand {
        /// Its number.
        node: NodeId,
        /// How.
        standing: Standing,
    },
    /// A member is none any more. Refused while it has a seat in any shard's voters, unless other
    /// voters of that shard are left to outvote it.
    Remove(NodeId),
    /// Configurations change; each for itself.
    Configure(Vec<Change>),
    /// Something happens to the stop lease.
    Lease(LeaseStep),
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, or had been done before.
    Done,
    /// The node has this number now.
    Joined {
        /// Its number.
        node: NodeId,
        /// The cluster it belongs to.
        cluster: Cluster,
    },
    /// So many of the changes took place.
    Configured(usize),
    /// Nothing was changed.
    Rejected(Rejection),
    /// The stop lease is granted, or renewed, as it stands now.
    Leased(Box<StopLease>),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// There is no cluster yet.
    #[error("there is no cluster yet")]
    NotFounded,
    /// There is one already.
    #[error("the cluster was founded before")]
    Founded,
    /// That number is no member's.
    #[error("node {0} is not a member")]
    NotAMember(NodeId),
    /// It still has the only copies of a shard.
    #[error("node {node} holds shard {shard} that no other node could serve; let it be moved first", shard = shard.0)]
    Needed {
        /// The member.
        node: NodeId,
        /// A shard that needs it.
        shard: ShardId,
    },
    /// The stop lease is held by somebody else, or for another node.
    #[error("{} holds the stop lease for node {}", .0.holder, .0.node)]
    Leased(Box<StopLease>),
    /// The topology has changed since it was judged.
    #[error("the topology has changed meanwhile")]
    Outdated,
}

impl Topology {
    /// Applies one command. The same commands in the same order give the same topology anywhere.
    pub fn apply(&mut self, command: Command) -> Outcome {
        let before = self.revision;
        let outcome = match command {
            Command::Found { cluster, founder, about, epoch } => {
                self.found(cluster, founder, about, epoch)
            }
            Command::Join(about) => self.join(about),
            Command::Enter { node, about } => self.change(node, |member| member.about = about),
            Command::Stand { node, standing } => {
                self.change(node, |member| member.standing = standing)
            }
            Command::Remove(node) => self.remove(node),
            Command::Configure(changes) => {
                let took = changes.into_iter().filter(|change| self.configure(change)).count();
                self.revision += u64::from(took > 0);
                Outcome::Configured(took)
            }
            Command::Lease(step) => self.lease(step),
        };
        debug_assert!(self.revision <= before + 1, "one command is one revision");
        outcome
    }

    fn found(
        &mut self,
        cluster: Cluster,
        founder: NodeId,
        about: Announcement,
        epoch: u32,
    ) -> Outcome {
        if self.cluster.is_some() {
            return Outcome::Rejected(Rejection::Founded);
        }
        let seat = Seat { node: founder, life: about.life };
        self.cluster = Some(cluster);
        self.next_node = founder.0 + 1;
        let alone = Arc::new(Configuration::alone(epoch, seat));
        self.shards = std::iter::repeat_n(alone, usize::from(cluster.num_shards)).collect();
        let standing = Standing::Member;
        self.members.insert(founder, Member { node: founder, about, standing });
        self.revision += 1;
        Outcome::Done
    }

    fn join(&mut self, about: Announcement) -> Outcome {
        let Some(cluster) = self.cluster else {
            return Outcome::Rejected(Rejection::NotFounded);
        };
        let known = self.member_named(&about.name);
        if let Some(member) = known.filter(|member| member.about.life == about.life) {
            // The same node asks again: its first answer was lost.
            return Outcome::Joined { node: member.node, cluster };
        }
        let before = known.map(|member| member.node);
        if let Some(node) = before {
            // Wiped: its number is gone for good. Its seats stay silent until changes replace them.
            self.members.remove(&node);
        }
        let node = NodeId(self.next_node);
        self.next_node += 1;
        if let Some(held) = self.leases.held.as_mut().filter(|held| Some(held.node) == before) {
            // Whoever stopped it and emptied its disk waits for it under its name.
            held.node = node;
        }
        self.members.insert(node, Member { node, about, standing: Standing::Member });
        self.revision += 1;
        Outcome::Joined { node, cluster }
    }

    fn change(&mut self, node: NodeId, change: impl FnOnce(&mut Member)) -> Outcome {
        let Some(member) = self.members.get_mut(&node) else {
            return Outcome::Rejected(Rejection::NotAMember(node));
        };
        let before = member.clone();
        change(member);
        self.revision += u64::from(*member != before);
        Outcome::Done
    }

    fn remove(&mut self, node: NodeId) -> Outcome {
        if !self.members.contains_key(&node) {
            return Outcome::Rejected(Rejection::NotAMember(node));
        }
        let needed = |configuration: &Configuration| {
            configuration.sets().any(|set| {
                let others = set.iter().filter(|s| s.node != node && self.is_present(**s)).count();
                set.iter().any(|s| s.node == node) && others <= set.len() / 2
            })
        };
        if let Some(shard) = self.shards.iter().position(|shard| needed(shard)) {
            let shard = ShardId(shard as u16);
            return Outcome::Rejected(Rejection::Needed { node, shard });
        }
        self.members.remove(&node);
        self.end_lease_of(node);
        self.revision += 1;
        Outcome::Done
    }

    fn configure(&mut self, change: &Change) -> bool {
        let Some(present) = self.shards.get_mut(usize::from(change.shard.0)) else {
            return false;
        };
        let (from, mut to) = (present.epoch, change.to.clone());
        if from != change.from_epoch || !present.may_become(&to) {
            return false;
        }
        to.epoch = from + 1;
        *present = Arc::new(to);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(1);

    fn about(name: &str, life: u64) -> Announcement {
        Announcement { name: name.to_owned(), life, ..Announcement::default() }
    }

    fn seat(node: u64, life: u64) -> Seat {
        Seat { node: NodeId(node), life }
    }

    fn founded() -> Topology {
        let mut topology = Topology::default();
        let cluster = Cluster { id: 7, hash_seed: 8, num_shards: 2 };
        let (founder, about) = (NodeId(1), about("a", 10));
        let found = Command::Found { cluster, founder, about, epoch: 5 };
        assert_eq!(topology.apply(found.clone()), Outcome::Done);
        assert_eq!(topology.apply(found), Outcome::Rejected(Rejection::Founded));
        topology
    }

    fn change(from_epoch: u32, to: Configuration) -> Command {
        Command::Configure(vec![Change { shard: SHARD, from_epoch, to }])
    }

    #[test]
    fn each_change_is_a_new_epoch_and_only_the_first_of_two_takes_place() {
        let mut topology = founded();
        topology.apply(Command::Join(about("b", 20)));
        let learner = vec![seat(2, 20)];
        let to = Configuration { learners: learner, ..Configuration::alone(99, seat(1, 10)) };
        let revision = topology.revision;
        assert_eq!(topology.apply(change(5, to.clone())), Outcome::Configured(1));
        assert_eq!(topology.shards[1].epoch, 6);
        assert_eq!(topology.apply(change(5, to)), Outcome::Configured(0));
        assert_eq!((topology.shards[1].epoch, topology.shards[0].epoch), (6, 5));
        assert_eq!(topology.revision, revision + 1);
    }

    #[test]
    fn an_unsound_change_has_no_effect() {
        let mut topology = founded();
        let stolen = Configuration::alone(5, seat(2, 20));
        assert_eq!(topology.apply(change(5, stolen)), Outcome::Configured(0));
        let beyond =
            Change { shard: ShardId(2), from_epoch: 5, to: Configuration::alone(5, seat(1, 10)) };
        assert_eq!(topology.apply(Command::Configure(vec![beyond])), Outcome::Configured(0));
        assert_eq!(topology, founded());
    }

    #[test]
    fn only_who_was_a_member_and_is_none_any_more_counts_as_removed() {
        let mut topology = founded();
        topology.apply(Command::Join(about("b", 20)));
        let behind = topology.clone();
        topology.apply(Command::Join(about("c", 30)));
        topology.apply(Command::Remove(NodeId(2)));
        let removed = |topology: &Topology| -> Vec<u64> {
            (0..6).filter(|node| topology.roster().has_removed(NodeId(*node))).collect()
        };
        // No node has number 0.
        assert_eq!(removed(&topology), [0, 2]);
        assert_eq!(removed(&behind), [0]);
        assert!(removed(&Topology::default()).is_empty());
    }

    #[test]
    fn a_number_is_never_given_out_twice() {
        let mut topology = founded();
        let joined = |outcome| match outcome {
            Outcome::Joined { node, .. } => node.0,
            other => panic!("{other:?}"),
        };
        assert_eq!(joined(topology.apply(Command::Join(about("b", 20)))), 2);
        assert_eq!(joined(topology.apply(Command::Join(about("b", 20)))), 2, "asked again");
        assert_eq!(joined(topology.apply(Command::Join(about("b", 21)))), 3, "wiped");
        assert!(!topology.members.contains_key(&NodeId(2)));
        assert_eq!(topology.apply(Command::Remove(NodeId(3))), Outcome::Done);
        assert_eq!(joined(topology.apply(Command::Join(about("b", 22)))), 4);
    }

    #[test]
    fn the_only_holder_of_a_shard_cannot_be_removed() {
        let mut topology = founded();
        let needed = Rejection::Needed { node: NodeId(1), shard: ShardId(0) };
        assert_eq!(topology.apply(Command::Remove(NodeId(1))), Outcome::Rejected(needed));
        let stranger = Rejection::NotAMember(NodeId(9));
        assert_eq!(topology.apply(Command::Remove(NodeId(9))), Outcome::Rejected(stranger));
    }

    #[test]
    fn a_member_that_comes_with_another_life_leaves_its_old_seat_behind() {
        let mut topology = founded();
        let enter = Command::Enter { node: NodeId(1), about: about("a", 11) };
        assert_eq!(topology.apply(enter), Outcome::Done);
        assert!(!topology.is_present(topology.shards[0].primary));
        assert!(topology.is_present(seat(1, 11)));
    }
}
