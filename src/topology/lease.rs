//! The stop lease: leave to stop one node, of which the cluster has one to give.
//!
//! Invariants: one node has it at a time; a lease's number is never given twice; it is granted only
//! in the very topology in which somebody judged that it is safe. No step reads a clock: that a
//! lease has run out, or that its node is back, is for whoever proposes the step to know.

use serde::{Deserialize, Serialize};

use super::{Command, NodeId, Outcome, Rejection, Topology};

/// Leave to stop one node, as somebody holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopLease {
    /// Its number; rises with each lease.
    pub id: u64,
    /// How often it was renewed.
    pub renewals: u64,
    /// The node that may be stopped.
    pub node: NodeId,
    /// Who holds it, in the holder's own words.
    pub holder: String,
    /// It lasts so long from when it was granted or renewed, in milliseconds.
    pub ttl_ms: u64,
    /// The run of the node's process at that time; `None` if it did not run. Only another run shows
    /// that the node was really stopped.
    pub run: Option<u64>,
    /// When it was granted, by the wall clock of the leader of that time, in Unix milliseconds. To
    /// be shown; nothing goes by it.
    pub since_ms: u64,
    /// When it runs out by that clock. To be shown, likewise.
    pub until_ms: u64,
}

/// How a lease came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Somebody gave it back.
    Released,
    /// Its time was over.
    RanOut,
    /// Its node was stopped, is a member again, and its copies are level.
    Returned,
    /// Its node is no member any more.
    Removed,
}

/// The lease there is, if there is one, and those there were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopLeases {
    /// How many were ever granted.
    pub granted: u64,
    /// The one that is held.
    pub held: Option<StopLease>,
    /// The last one that ended, and how.
    pub ended: Option<(StopLease, Ending)>,
}

/// What may happen to the stop lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseStep {
    /// It is granted, or renewed for who has it already. Refused while somebody else has it, or
    /// for another node, and if the topology is not the judged one any more.
    Grant {
        /// The node that may be stopped.
        node: NodeId,
        /// Who asks.
        holder: String,
        /// For how long, in milliseconds.
        ttl_ms: u64,
        /// The run of the node's process.
        run: Option<u64>,
        /// The present time by the leader's wall clock, in Unix milliseconds.
        at_ms: u64,
        /// The topology's revision by which it was judged that it is safe.
        revision: u64,
    },
    /// It is given back for this node; by this holder, or whoever has it.
    Release {
        /// The node that it is held for.
        node: NodeId,
        /// Who holds it, if that is to be compared.
        holder: Option<String>,
    },
    /// Its time is over: if it is this one, and was not renewed since.
    RunOut {
        /// Which.
        id: u64,
        /// As often as it had been renewed.
        renewals: u64,
    },
    /// Its node was stopped and is back: if it is this one, and was not renewed since.
    Return {
        /// Which.
        id: u64,
        /// As often as it had been renewed.
        renewals: u64,
    },
}

impl From<LeaseStep> for Command {
    fn from(step: LeaseStep) -> Self {
        Self::Lease(step)
    }
}

impl Topology {
    pub(super) fn lease(&mut self, step: LeaseStep) -> Outcome {
        match step {
            LeaseStep::Grant { node, holder, ttl_ms, run, at_ms, revision } => {
                if let Some(refused) = self.refuses_lease(node, &holder, revision) {
                    return Outcome::Rejected(refused);
                }
                self.revision += 1;
                let until_ms = at_ms.saturating_add(ttl_ms);
                let leases = &mut self.leases;
                let lease = match leases.held.take() {
                    Some(held) if held.node == node && held.holder == holder => {
                        let renewals = held.renewals + 1;
                        StopLease { renewals, ttl_ms, run, until_ms, ..held }
                    }
                    _ => {
                        leases.granted += 1;
                        let (id, renewals, since_ms) = (leases.granted, 0, at_ms);
                        StopLease { id, renewals, node, holder, ttl_ms, run, since_ms, until_ms }
                    }
                };
                leases.held = Some(lease.clone());
                Outcome::Leased(Box::new(lease))
            }
            LeaseStep::Release { node, holder } => match &self.leases.held {
                None => Outcome::Done,
                Some(held) if held.node != node => Outcome::Done,
                Some(held) if holder.is_none_or(|holder| holder == held.holder) => {
                    self.end_lease(Ending::Released);
                    Outcome::Done
                }
                Some(held) => Outcome::Rejected(Rejection::Leased(Box::new(held.clone()))),
            },
            LeaseStep::RunOut { id, renewals } => self.end_this_lease(id, renewals, Ending::RanOut),
            LeaseStep::Return { id, renewals } => {
                self.end_this_lease(id, renewals, Ending::Returned)
            }
        }
    }

    /// Why the lease cannot be granted, if it cannot.
    fn refuses_lease(&self, node: NodeId, holder: &str, revision: u64) -> Option<Rejection> {
        if !self.members.contains_key(&node) {
            return Some(Rejection::NotAMember(node));
        }
        let other = self.leases.held.as_ref();
        let other = other.filter(|held| held.node != node || held.holder != holder);
        if let Some(other) = other.filter(|_| !mutated!(LeaseUncompared)) {
            return Some(Rejection::Leased(Box::new(other.clone())));
        }
        let is_judged = revision == self.revision || mutated!(LeaseJudgedEarlier);
        (!is_judged && !mutated!(LeaseUncompared)).then_some(Rejection::Outdated)
    }

    fn end_this_lease(&mut self, id: u64, renewals: u64, how: Ending) -> Outcome {
        let held = self.leases.held.as_ref();
        if held.is_some_and(|held| held.id == id && held.renewals == renewals) {
            self.end_lease(how);
        }
        Outcome::Done
    }

    fn end_lease(&mut self, how: Ending) {
        if let Some(lease) = self.leases.held.take() {
            self.leases.ended = Some((lease, how));
            self.revision += 1;
        }
    }

    /// A node is no member any more: a lease for it ends with that. Its revision rises anyway.
    pub(super) fn end_lease_of(&mut self, node: NodeId) {
        if let Some(lease) = self.leases.held.take_if(|held| held.node == node) {
            self.leases.ended = Some((lease, Ending::Removed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Announcement, Cluster, Standing};
    use super::*;

    fn about(name: &str, life: u64) -> Announcement {
        Announcement { name: name.to_owned(), life, ..Announcement::default() }
    }

    /// Three members, and shards of the first alone.
    fn topology() -> Topology {
        let mut topology = Topology::default();
        let cluster = Cluster { id: 7, hash_seed: 8, num_shards: 2 };
        let (founder, about_a) = (NodeId(1), about("a", 10));
        topology.apply(Command::Found { cluster, founder, about: about_a, epoch: 5 });
        topology.apply(Command::Join(about("b", 20)));
        topology.apply(Command::Join(about("c", 30)));
        topology
    }

    fn grant(node: u64, holder: &str, revision: u64) -> Command {
        let (node, holder, at_ms) = (NodeId(node), holder.to_owned(), 1_000);
        LeaseStep::Grant { node, holder, ttl_ms: 500, run: Some(77), at_ms, revision }.into()
    }

    fn granted(topology: &mut Topology, node: u64, holder: &str) -> StopLease {
        match topology.apply(grant(node, holder, topology.revision)) {
            Outcome::Leased(lease) => *lease,
            other => panic!("{other:?}"),
        }
    }

    fn release(node: u64, holder: Option<&str>) -> Command {
        LeaseStep::Release { node: NodeId(node), holder: holder.map(str::to_owned) }.into()
    }

    fn ending(topology: &Topology) -> Option<Ending> {
        assert_eq!(topology.leases.held, None);
        topology.leases.ended.as_ref().map(|(_, how)| *how)
    }

    #[test]
    fn one_node_has_it_at_a_time() {
        let mut topology = topology();
        let first = granted(&mut topology, 2, "x");
        assert_eq!((first.id, first.since_ms, first.until_ms), (1, 1_000, 1_500));
        for (node, holder) in [(3, "y"), (3, "x"), (2, "y")] {
            let outcome = topology.apply(grant(node, holder, topology.revision));
            let refused = Outcome::Rejected(Rejection::Leased(Box::new(first.clone())));
            assert_eq!(outcome, refused, "{holder} for {node}");
        }
        assert_eq!(topology.leases.held, Some(first));
        topology.apply(release(2, None));
        assert_eq!(granted(&mut topology, 3, "y").id, 2, "no number is given twice");
        let stranger = topology.apply(grant(9, "y", topology.revision));
        assert_eq!(stranger, Outcome::Rejected(Rejection::NotAMember(NodeId(9))));
    }

    #[test]
    fn what_was_judged_in_another_topology_does_not_count() {
        let mut topology = topology();
        let judged = topology.revision;
        granted(&mut topology, 2, "x");
        topology.apply(release(2, None));
        // Nobody has it, and yet: whoever judged did not see what happened since.
        let late = topology.apply(grant(3, "y", judged));
        assert_eq!(late, Outcome::Rejected(Rejection::Outdated));
        let judged = topology.revision;
        let standing = Standing::Restarting;
        topology.apply(Command::Stand { node: NodeId(1), standing });
        assert_eq!(topology.apply(grant(3, "y", judged)), Outcome::Rejected(Rejection::Outdated));
        assert_eq!(topology.leases.held, None);
    }

    #[test]
    fn who_has_it_and_asks_again_renews_it() {
        let mut topology = topology();
        let first = granted(&mut topology, 2, "x");
        let (node, holder, revision) = (NodeId(2), "x".to_owned(), topology.revision);
        let again =
            LeaseStep::Grant { node, holder, ttl_ms: 900, run: Some(78), at_ms: 1_200, revision };
        let Outcome::Leased(lease) = topology.apply(again.into()) else { panic!("not renewed") };
        assert_eq!((lease.id, lease.renewals, lease.since_ms), (first.id, 1, 1_000));
        assert_eq!((lease.until_ms, lease.run), (2_100, Some(78)));
        // What was decided about it as it was before does not end it.
        for step in [
            LeaseStep::RunOut { id: 1, renewals: 0 },
            LeaseStep::Return { id: 1, renewals: 0 },
            LeaseStep::RunOut { id: 2, renewals: 1 },
        ] {
            let revision = topology.revision;
            topology.apply(step.into());
            assert_eq!(topology.leases.held.as_ref(), Some(&*lease));
            assert_eq!(topology.revision, revision);
        }
        topology.apply(LeaseStep::RunOut { id: 1, renewals: 1 }.into());
        assert_eq!(ending(&topology), Some(Ending::RanOut));
    }

    #[test]
    fn it_is_given_back_for_the_node_and_by_the_holder_that_are_named() {
        let mut topology = topology();
        let lease = granted(&mut topology, 2, "x");
        assert_eq!(topology.apply(release(3, None)), Outcome::Done);
        let other = topology.apply(release(2, Some("y")));
        assert_eq!(other, Outcome::Rejected(Rejection::Leased(Box::new(lease.clone()))));
        assert_eq!(topology.leases.held, Some(lease));
        assert_eq!(topology.apply(release(2, Some("x"))), Outcome::Done);
        assert_eq!(ending(&topology), Some(Ending::Released));
        assert_eq!(topology.apply(release(2, Some("x"))), Outcome::Done, "asked again");
    }

    #[test]
    fn it_ends_with_its_node_and_follows_one_that_comes_back_empty() {
        let mut topology = topology();
        granted(&mut topology, 2, "x");
        topology.apply(Command::Join(about("b", 21)));
        let held = topology.leases.held.as_ref().map(|lease| lease.node);
        assert_eq!(held, Some(NodeId(4)), "the same name, wiped");
        topology.apply(Command::Join(about("c", 31)));
        assert!(topology.leases.held.is_some());
        let standing = Standing::Decommissioning;
        topology.apply(Command::Stand { node: NodeId(4), standing });
        assert!(topology.leases.held.is_some(), "its holder may still stop it");
        topology.apply(Command::Remove(NodeId(4)));
        assert_eq!(ending(&topology), Some(Ending::Removed));
    }
}
