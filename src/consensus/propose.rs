//! Commands, on their way to the leader and into the log.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::message::{Reply, Request};
use super::{Consensus, Inner, Leadership, ProposeError, Undecided};
use crate::topology::{Command, NodeId, Outcome, Rejection, Topology};

/// Whoever found no leader, or none that answers, looks again after this.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The answer to a forwarded request may take so much longer than the leader has for it.
const TRAVEL: Duration = Duration::from_millis(250);

impl Consensus {
    /// Has a command decided, wherever the leader is, and answers its outcome. Elections within
    /// `within` are waited out.
    ///
    /// It may be tried more than once, and so take effect twice; every command allows that. Only
    /// the answers differ: of [`Command::Configure`] the repetition changes nothing and says so.
    ///
    /// # Errors
    /// [`ProposeError::TimedOut`], after which the command may still take place, or
    /// [`ProposeError::Stopped`].
    pub async fn propose(
        &self,
        command: Command,
        within: Duration,
    ) -> Result<Outcome, ProposeError> {
        let (removes, founds) = match command {
            Command::Remove(_) => (true, false),
            Command::Found { .. } => (false, true),
            _ => (false, false),
        };
        let mut tries = 0_u32;
        let reply = self
            .inner
            .ask_leader(within, &mut tries, |within_ms| Request::Propose {
                command: command.clone(),
                within_ms,
            })
            .await?;
        let Reply::Outcome(outcome) = reply else {
            unreachable!("only outcomes are taken for answers");
        };
        Ok(match outcome {
            // An earlier try went through after all.
            Outcome::Rejected(Rejection::NotAMember(_)) if removes && tries > 1 => Outcome::Done,
            Outcome::Rejected(Rejection::Founded) if founds && tries > 1 => Outcome::Done,
            outcome => outcome,
        })
    }

    /// Has a command decided that is this leader's own judgement: it is put into the log here, or
    /// nowhere. If another leads by then, it does not take place.
    ///
    /// # Errors
    /// [`Undecided`].
    pub async fn propose_as_leader(
        &self,
        command: Command,
        within: Duration,
    ) -> Result<Outcome, Undecided> {
        match self.inner.propose_here(command, within).await {
            Reply::Outcome(outcome) => Ok(outcome),
            Reply::NotLeader(_) => Err(Undecided::NotLeader),
            _ => Err(Undecided::Late),
        }
    }

    /// The topology with everything that was committed before the call.
    ///
    /// # Errors
    /// As [`Consensus::propose`].
    pub async fn linearizable(&self, within: Duration) -> Result<Arc<Topology>, ProposeError> {
        let inner = &self.inner;
        let deadline = Instant::now() + within;
        let reply =
            inner.ask_leader(within, &mut 0, |within_ms| Request::Confirm { within_ms }).await?;
        let Reply::Confirmed(index) = reply else {
            unreachable!("only confirmations are taken for answers");
        };
        let mut metrics = inner.raft.metrics();
        let applied =
            metrics.wait_for(|metrics| metrics.last_applied.map(|log_id| log_id.index) >= index);
        match timeout(deadline - Instant::now(), applied).await {
            Ok(Ok(_)) => Ok(inner.topology.borrow().clone()),
            Ok(Err(_)) => Err(ProposeError::Stopped),
            Err(_) => Err(inner.timed_out(within)),
        }
    }
}

impl Inner {
    /// Asks whoever leads until there is an answer that settles the matter.
    async fn ask_leader(
        &self,
        within: Duration,
        tries: &mut u32,
        request: impl Fn(u32) -> Request,
    ) -> Result<Reply, ProposeError> {
        let deadline = Instant::now() + within;
        let mut leadership = self.leadership.subscribe();
        let mut hint = None;
        loop {
            let present = leadership.borrow_and_update().clone();
            let hinted = hint.take();
            let leader = hinted.or(present.leader);
            let left = deadline - Instant::now();
            if left.is_zero() {
                return Err(self.timed_out(within));
            }
            let Some(leader) = leader else {
                self.wait_for_leader(&mut leadership, deadline, None).await?;
                continue;
            };
            *tries += 1;
            // An old leader that is cut off would keep us; the next one ends that.
            let reply = tokio::select! {
                reply = self.ask(leader, request(millis(left)), left) => reply,
                result = another(&mut leadership, &present) => { result?; continue }
                () = self.stop.cancelled() => return Err(ProposeError::Stopped),
            };
            match reply {
                Some(reply @ (Reply::Outcome(_) | Reply::Confirmed(_))) => return Ok(reply),
                Some(Reply::NotLeader(Some(other))) if other != leader && hinted.is_none() => {
                    hint = Some(other);
                }
                _ => self.wait_for_leader(&mut leadership, deadline, Some(&present)).await?,
            }
        }
    }

    /// Asks one node, perhaps this one. `None`: it did not answer.
    async fn ask(&self, node: NodeId, request: Request, within: Duration) -> Option<Reply> {
        if node != self.me {
            return self.peers.ask(node, "", request, within + TRAVEL).await.ok();
        }
        Some(match request {
            Request::Propose { command, .. } => self.propose_here(command, within).await,
            _ => self.confirm_here(within).await,
        })
    }

    /// Waits a moment, or until the leader is another than in `present`.
    async fn wait_for_leader(
        &self,
        leadership: &mut watch::Receiver<Leadership>,
        deadline: Instant,
        present: Option<&Leadership>,
    ) -> Result<(), ProposeError> {
        let changed = async {
            match present {
                Some(present) => another(leadership, present).await,
                None => leadership
                    .wait_for(|now| now.leader.is_some())
                    .await
                    .map_or(Err(ProposeError::Stopped), |_| Ok(())),
            }
        };
        // Without a leader there is nothing to look for but a change.
        let again = if present.is_some() { LOOK_AGAIN_AFTER } else { Duration::MAX };
        tokio::select! {
            result = changed => result,
            () = sleep(again) => Ok(()),
            () = sleep_until(deadline) => Ok(()),
            () = self.stop.cancelled() => Err(ProposeError::Stopped),
        }
    }

    /// As the leader: puts the command into the log and waits until it is applied.
    pub(super) async fn propose_here(&self, command: Command, within: Duration) -> Reply {
        match timeout(within, self.raft.client_write(command)).await {
            Ok(Ok(response)) => Reply::Outcome(response.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Reply::NotLeader(forward.leader_id)
            }
            Ok(Err(_)) | Err(_) => Reply::Undecided,
        }
    }

    /// As the leader: makes sure that it still is, and answers what is committed by now.
    pub(super) async fn confirm_here(&self, within: Duration) -> Reply {
        match timeout(within, self.raft.get_read_log_id()).await {
            Ok(Ok((log_id, _))) => Reply::Confirmed(log_id.map(|log_id| log_id.index)),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Reply::NotLeader(forward.leader_id)
            }
            Ok(Err(_)) | Err(_) => Reply::Undecided,
        }
    }

    fn timed_out(&self, within: Duration) -> ProposeError {
        let leader = self.leadership.borrow().leader;
        let leader = leader.map(|node| self.topology.borrow().name(node));
        ProposeError::TimedOut { within, leader }
    }
}

/// Waits until there is another leader than in `present`.
async fn another(
    leadership: &mut watch::Receiver<Leadership>,
    present: &Leadership,
) -> Result<(), ProposeError> {
    let other = |now: &Leadership| {
        now.leader.is_some() && (now.leader, now.term) != (present.leader, present.term)
    };
    leadership.wait_for(other).await.map_or(Err(ProposeError::Stopped), |_| Ok(()))
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
