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
        let is_outdated = revision != self.revision && !mutated!(LeaseJudgedEarlier);
        is_outdated.then_some(Rejection::Outdated)
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
