//! Whether a majority of the voters would have another leader: asked before any election.
//!
//! An election that starts raises the term, and a leader that hears of a higher term steps down. So
//! nobody starts one until a majority has said that it hears of no leader either, and that the
//! asker's log is not behind its own (pre-vote; Ongaro, *Consensus: Bridging Theory and Practice*,
//! §9.6). A voter that was cut off, or paused, comes back without unseating anybody; one that alone
//! has lost the leader goes on waiting for it. The answers promise nothing: safety rests on Raft's
//! votes.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use openraft::raft::{VoteRequest, VoteResponse};
use tokio::time::Instant;

use super::election::Lost;
use super::message::{Reply, Request};
use super::voters::majority;
use super::{Inner, LogId, Vote};
use crate::topology::NodeId;

/// What Raft knows of the leader, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Committed if a majority gave it to whom it names: that one leads.
    pub(super) vote: Vote,
    /// When it was last confirmed: by the leader's sign of life, if there is one. On the leader
    /// itself, when it was elected, or when a majority last answered it.
    pub(super) confirmed: Option<Instant>,
}

impl Standing {
    /// Who leads, and in which term.
    pub(super) fn leader(&self) -> Option<(NodeId, u64)> {
        let leader = self.vote.leader_id().voted_for().filter(|_| self.vote.is_committed());
        leader.map(|leader| (leader, self.vote.leader_id().term))
    }

    /// Whether a leader is at work at `now`, as far as this node can tell: it was heard of within
    /// `lease`, and since it seemed `lost`, if it did; one that has resigned is not.
    pub(super) fn is_led(&self, lost: Option<Lost>, lease: Duration, now: Instant) -> bool {
        let (Some(leader), Some(confirmed)) = (self.leader(), self.confirmed) else {
            return false;
        };
        let is_lost = lost.is_some_and(|lost| lost.outlasts(leader, confirmed, now));
        !is_lost && now.saturating_duration_since(confirmed) <= lease
    }
}

impl Inner {
    /// What Raft knows of the leader. `None` when Raft has ended.
    pub(super) async fn standing(&self) -> Option<Standing> {
        let read = self.raft.with_raft_state(|raft| (*raft.vote_ref(), raft.vote_last_modified()));
        let (vote, confirmed) = read.await.ok()?;
        let acked = self.raft.metrics().borrow().millis_since_quorum_ack;
        let acked =
            acked.and_then(|millis| Instant::now().checked_sub(Duration::from_millis(millis)));
        Some(Standing { vote, confirmed: confirmed.max(acked) })
    }

    /// Whether a leader is at work, as far as this node can tell.
    async fn is_led(&self) -> bool {
        let lost = *self.lost.lock();
        let standing = self.standing().await;
        standing.is_some_and(|s| s.is_led(lost, self.config.election_timeout_max, Instant::now()))
    }

    /// Whether this node would rather have one as leader whose log ends there, than wait.
    pub(super) async fn would_elect(&self, last_log: Option<LogId>) -> bool {
        let own = self.raft.data_metrics().borrow().last_log;
        last_log >= own && !self.is_led().await
    }

    /// Votes, as its answer to the canvass was: not while a leader is at work, and at once if none is.
    pub(super) async fn vote(&self, request: VoteRequest<NodeId>) -> Option<VoteResponse<NodeId>> {
        let lost = *self.lost.lock();
        let standing = self.standing().await?;
        if standing.is_led(lost, self.config.election_timeout_max, Instant::now()) {
            let last_log_id = self.raft.data_metrics().borrow().last_log;
            return Some(VoteResponse { vote: standing.vote, vote_granted: false, last_log_id });
        }
        // openraft stays loyal to a leader that is gone for a while, unless it is a candidate
        // itself; of candidates in one term the highest number wins. Where another is to follow,
        // nobody competes.
        let lost = lost.filter(|lost| standing.leader() == Some((lost.leader, lost.term)));
        let is_named = lost.and_then(|lost| lost.resigned?.to).is_some();
        if standing.vote.is_committed() && !is_named {
            self.raft.trigger().elect().await.ok()?;
        }
        self.raft.vote(request).await.ok()
    }

    /// Asks the voters, this one among them, whether to elect it. Ends as soon as that is clear.
    pub(super) async fn is_wanted(&self) -> bool {
        let membership = self.raft.metrics().borrow().membership_config.clone();
        let sets = membership.membership().get_joint_config();
        let is_majority =
            |nodes: &BTreeSet<NodeId>| sets.iter().all(|set| majority(set, |n| nodes.contains(&n)));
        if self.is_led().await {
            return false;
        }
        let last_log = self.raft.data_metrics().borrow().last_log;
        let within = self.config.election_timeout_min;
        let others = membership.voter_ids().filter(|node| *node != self.me);
        let mut answers: FuturesUnordered<_> = others
            .map(|node| async move {
                let reply = self.peers.ask(node, "", Request::Canvass { last_log }, within).await;
                (node, matches!(reply, Ok(Reply::Canvassed(true))))
            })
            .collect();
        let mut possible: BTreeSet<NodeId> = membership.voter_ids().chain([self.me]).collect();
        let mut agreed = BTreeSet::from([self.me]);
        while !is_majority(&agreed) && is_majority(&possible) {
            match answers.next().await {
                Some((node, true)) => drop(agreed.insert(node)),
                Some((node, false)) => drop(possible.remove(&node)),
                None => return false,
            }
        }
        is_majority(&agreed) && !self.is_led().await
    }
}

#[cfg(test)]
mod tests {
    use super::super::election::Resignation;
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LEASE: Duration = Duration::from_millis(800);

    fn led_by(node: u64, term: u64, confirmed: Instant) -> Standing {
        Standing { vote: Vote::new_committed(term, NodeId(node)), confirmed: Some(confirmed) }
    }

    #[test]
    fn a_leader_counts_until_it_was_not_heard_of_for_the_lease() {
        let heard = Instant::now();
        let standing = led_by(1, 5, heard);
        assert!(standing.is_led(None, LEASE, heard + 800 * MS));
        assert!(!standing.is_led(None, LEASE, heard + 801 * MS));
        let candidate = Standing { vote: Vote::new(6, NodeId(2)), ..standing };
        assert!(!candidate.is_led(None, LEASE, heard), "who is not elected does not lead");
        let restarted = Standing { confirmed: None, ..standing };
        assert!(!restarted.is_led(None, LEASE, heard), "it was not heard of in this run");
    }

    #[test]
    fn a_lost_leader_counts_again_when_it_is_heard_of_and_a_resigned_one_does_not() {
        let told = Instant::now();
        let lost = Lost { leader: NodeId(1), term: 5, resigned: None, told };
        let is_led = |lost, standing: Standing| standing.is_led(Some(lost), LEASE, told + 50 * MS);
        assert!(!is_led(lost, led_by(1, 5, told - 100 * MS)));
        assert!(!is_led(lost, led_by(1, 5, told + 30 * MS)), "what was under way still comes");
        assert!(is_led(lost, led_by(1, 5, told + 31 * MS)));
        let resigned = Lost { resigned: Some(Resignation { to: None }), ..lost };
        assert!(!is_led(resigned, led_by(1, 5, told + 31 * MS)));
        let later = told + 5_001 * MS;
        assert!(led_by(1, 5, later).is_led(Some(resigned), LEASE, later), "nobody took over");
        for another in [led_by(1, 6, told), led_by(2, 5, told)] {
            assert!(is_led(resigned, another), "{another:?}");
        }
    }
}
