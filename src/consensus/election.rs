//! Who leads the group: published, told to operators, and contested when the leader is gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use tokio::time::{Instant, sleep, timeout};

use super::canvass::Standing;
use super::message::Request;
use super::{Inner, Metrics, StoredMembership};
use crate::topology::NodeId;

/// The voters start their elections one after the other, so far apart in the first round: long
/// enough for one to be decided, fsyncs included. Each round takes twice as long as the one before,
/// so that slow disks do not let elections overtake each other for ever.
const TURN: Duration = Duration::from_millis(60);

/// After so many rounds it is left to the passing of time.
const ROUNDS_MAX: u32 = 6;

/// What a leader sent before it was gone may arrive so much later, by another connection.
const STRAGGLE: Duration = Duration::from_millis(30);

/// A voter has this long to hear that the leader resigns.
const RESIGN_WITHIN: Duration = Duration::from_millis(100);

/// A leader that resigned, and still leads after so long, is a leader like any other.
const RESIGNED_FOR: Duration = Duration::from_secs(5);

/// Being without a leader for longer is worth a warning.
const LEADERLESS_AFTER: Duration = Duration::from_secs(2);

/// Who leads the group, as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Raft's term.
    pub term: u64,
    /// The leader, if this node has lately heard of one; of itself, if it has lately heard from a
    /// majority.
    pub leader: Option<NodeId>,
    /// This node leads, has applied what its predecessors committed, and has lately heard from a
    /// majority.
    pub leads: bool,
    /// This node votes.
    pub votes: bool,
    /// When the leader came; without one, when one was last heard of, or when this node started.
    pub since: std::time::Instant,
}

impl Leadership {
    pub(super) fn unknown() -> Self {
        let since = Instant::now().into_std();
        Self { term: 0, leader: None, leads: false, votes: false, since }
    }

    fn of(metrics: &Metrics, before: &Self, heard: Option<Instant>, lost_after: Duration) -> Self {
        let now = Instant::now();
        let term = metrics.current_term;
        let is_heard = heard.is_some_and(|heard| now.duration_since(heard) < lost_after);
        let leader = metrics.current_leader.filter(|_| is_heard);
        let is_leader = metrics.state == ServerState::Leader && leader == Some(metrics.id);
        // A new leader knows what is committed only when an entry of its own term is.
        let own = |applied: &super::LogId| applied.leader_id.term == term;
        let caught_up = metrics.last_applied.as_ref().is_some_and(own);
        let acked = metrics
            .millis_since_quorum_ack
            .is_some_and(|millis| Duration::from_millis(millis) < lost_after);
        let since = match (before.leader, leader) {
            _ if (before.leader, before.term) == (leader, term) => before.since,
            (None, None) => before.since,
            // It was lost when it was heard of last.
            (Some(_), None) => heard.unwrap_or(now).into_std().max(before.since),
            (_, Some(_)) => now.into_std(),
        };
        Self {
            term,
            leader,
            leads: is_leader && caught_up && acked,
            votes: voters(&metrics.membership_config).contains(&metrics.id),
            since,
        }
    }
}

/// Everybody whose vote counts, in either set while the voters change.
pub(super) fn voters(membership: &StoredMembership) -> BTreeSet<NodeId> {
    membership.voter_ids().collect()
}

impl Inner {
    /// A leader that has heard from no majority for so long leads no more, whatever it thinks; nor
    /// does one that was not heard of for so long.
    fn quorum_lost_after(&self) -> Duration {
        self.config.election_timeout_max * 2
    }
}

/// Publishes who leads, logs changes of leader and voters, and quiets a leader without majority.
pub(super) async fn observe(inner: Arc<Inner>) {
    let mut metrics = inner.raft.metrics();
    let mut seen = Seen::default();
    let began = Instant::now();
    loop {
        let now = metrics.borrow_and_update().clone();
        if let Err(fatal) = &now.running_state {
            if !matches!(fatal, openraft::error::Fatal::Stopped) {
                inner.store.fail(&inner.ended(fatal.clone()));
            }
            return;
        }
        let Some(Standing { confirmed: heard, .. }) = inner.standing().await else {
            return;
        };
        let lost_after = inner.quorum_lost_after();
        let next = Leadership::of(&now, &inner.leadership.borrow(), heard, lost_after);
        quiet_without_majority(&inner, &now, heard.unwrap_or(began));
        seen.tell(&inner, &now, &next);
        inner.leadership.send_if_modified(|present| {
            let changed = *present != next;
            *present = next;
            changed
        });
        // What is told by the passing of time is looked at even if nothing changes.
        if let Ok(Err(_)) = timeout(inner.config.election_timeout_min, metrics.changed()).await {
            return;
        }
    }
}

/// The signs of life of a leader keep its followers from electing another. One that has no
/// majority must fall silent, or those it reaches could never elect one that has. `heard`: when it
/// was elected, or a majority last answered.
fn quiet_without_majority(inner: &Inner, metrics: &Metrics, heard: Instant) {
    let is_leader = metrics.state == ServerState::Leader;
    let lost = is_leader && heard.elapsed() > inner.quorum_lost_after();
    inner.raft.runtime_config().heartbeat(!lost);
}

/// What was told last.
#[derive(Default)]
struct Seen {
    leader: Option<NodeId>,
    leaderless: bool,
    voters: Option<BTreeSet<NodeId>>,
}

impl Seen {
    fn tell(&mut self, inner: &Inner, metrics: &Metrics, next: &Leadership) {
        let membership = metrics.membership_config.membership();
        let name = |node: NodeId| match membership.get_node(&node) {
            Some(known) => known.name.clone(),
            None => inner.topology.borrow().name(node),
        };
        let founded = membership.voter_ids().next().is_some();
        match next.leader {
            Some(leader) if self.leader != Some(leader) || self.leaderless => {
                tracing::info!("{} leads the topology (term {})", name(leader), next.term);
                (self.leader, self.leaderless) = (Some(leader), false);
            }
            None if founded && !self.leaderless && next.since.elapsed() >= LEADERLESS_AFTER => {
                let voters: Vec<String> = membership.voter_ids().map(name).collect();
                tracing::warn!(
                    "nobody leads the topology: it cannot change until more than half of {} reach \
                     each other",
                    voters.join(", ")
                );
                self.leaderless = true;
            }
            _ => {}
        }
        if membership.get_joint_config().len() != 1 {
            return;
        }
        let voters = voters(&metrics.membership_config);
        if let Some(before) = self.voters.replace(voters.clone()) {
            for node in voters.difference(&before) {
                tracing::info!("{} votes in the topology now", name(*node));
            }
            for node in before.difference(&voters) {
                tracing::info!("{} does not vote in the topology any more", name(*node));
            }
        }
    }
}

impl Inner {
    /// Tells the voters that this leader will not go on, so that they elect another at once: `to`,
    /// or whoever comes first.
    pub(super) async fn resign(&self, to: Option<NodeId>) {
        let metrics = self.raft.metrics().borrow().clone();
        let (leader, term) = (self.me, metrics.current_term);
        let resigned = Some(Resignation { to });
        *self.lost.lock() = Some(Lost { leader, term, resigned, told: Instant::now() });
        let others = voters(&metrics.membership_config).into_iter().filter(|node| *node != self.me);
        let tell = |node| self.peers.ask(node, "", Request::Resign { term, to }, RESIGN_WITHIN);
        // Whoever does not hear it waits for its timers, as it would have anyway.
        futures_util::future::join_all(others.map(tell)).await;
    }

    /// A leader is gone, or resigned: has it contested, if it is the present one and not this node.
    /// If it resigned, it may have named who is to follow.
    pub(super) fn contest(&self, leader: NodeId, resigned: Option<Option<NodeId>>) {
        let term = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.current_leader == Some(leader)).then_some(metrics.current_term)
        };
        let Some(term) = term.filter(|_| leader != self.me) else {
            return;
        };
        {
            let mut lost = self.lost.lock();
            let same = lost.filter(|lost| (lost.leader, lost.term) == (leader, term));
            let resigned = resigned.map(|to| Resignation { to });
            let resigned = resigned.or(same.and_then(|lost| lost.resigned));
            *lost = Some(Lost { leader, term, resigned, told: Instant::now() });
        }
        self.elect.notify_one();
    }
}

/// A leader that is to be replaced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) leader: NodeId,
    pub(super) term: u64,
    /// It said so itself: that it is still heard of does not count.
    pub(super) resigned: Option<Resignation>,
    pub(super) told: Instant,
}

/// What a leader said that will not go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resignation {
    /// Who is to follow, if it named one.
    pub(super) to: Option<NodeId>,
}

impl Lost {
    /// Whether this is still what to think at `now` of the leader of a term that was last heard of
    /// then.
    pub(super) fn outlasts(&self, leader: (NodeId, u64), heard: Instant, now: Instant) -> bool {
        let has_resigned = self.resigned.is_some() && now <= self.told + RESIGNED_FOR;
        (self.leader, self.term) == leader && (has_resigned || heard <= self.told + STRAGGLE)
    }
}

/// Waits to be told that the leader is gone, and then contests. Told again, it begins anew.
pub(super) async fn campaign_when_told(inner: Arc<Inner>) {
    inner.elect.notified().await;
    loop {
        let lost = *inner.lost.lock();
        tokio::select! {
            () = inner.elect.notified() => continue,
            () = async {
                if let Some(lost) = lost {
                    campaign(&inner, lost).await;
                }
            } => {}
        }
        inner.elect.notified().await;
    }
}

/// Starts an election whenever no leader was heard of for so long, and a majority agrees.
pub(super) async fn stand_when_due(inner: Arc<Inner>) {
    let config = &inner.config;
    let random = || between(config.election_timeout_min, config.election_timeout_max);
    let mut patience = random();
    loop {
        sleep(config.heartbeat).await;
        let Some(standing) = inner.standing().await else { return };
        let votes = voters(&inner.raft.metrics().borrow().membership_config).contains(&inner.me);
        if !votes || !is_due(&standing, inner.me, config.election_timeout_max, patience) {
            continue;
        }
        if inner.is_wanted().await && inner.raft.trigger().elect().await.is_err() {
            return;
        }
        // Those that lost a leader together do not try again together.
        patience = random();
        sleep(patience / 4).await;
    }
}

/// Whether nothing has come of the present vote for so long: of a leader's, beyond its lease.
fn is_due(standing: &Standing, me: NodeId, lease: Duration, patience: Duration) -> bool {
    let wait = match standing.leader() {
        Some((leader, _)) if leader == me => return false,
        Some(_) => lease + patience,
        None => patience,
    };
    standing.confirmed.is_none_or(|confirmed| confirmed.elapsed() >= wait)
}

/// A random time between two.
fn between(min: Duration, max: Duration) -> Duration {
    // Without randomness they come together, and Raft sees to it that one wins all the same.
    let share = getrandom::u32().unwrap_or(0);
    min + max.saturating_sub(min).mul_f64(f64::from(share) / f64::from(u32::MAX))
}

/// How long it is from one's turn in the round before to the one in this round; in the first, from
/// its beginning.
fn until_turn(round: u32, turn: usize, rivals: usize) -> Duration {
    let turns = |n: usize| TURN * u32::try_from(n).unwrap_or(u32::MAX);
    match round.checked_sub(1) {
        None => turns(turn),
        Some(before) => turns(rivals + turn) * 2_u32.pow(before),
    }
}

/// Tries to become the leader, at this node's turn and again, until there is another one, if a
/// majority agrees that the old one is gone.
///
/// The rival of higher number has the higher vote in the same term; so with one turn for each, the
/// first whose turn comes after a majority has given up the old leader wins.
async fn campaign(inner: &Inner, lost: Lost) {
    let mut metrics = inner.raft.metrics();
    let replaced = |metrics: &Metrics| {
        let led = metrics.current_leader.map(|leader| (leader, metrics.current_term));
        led.is_some_and(|led| led != (lost.leader, lost.term))
    };
    let mut granted = None;
    for round in 0..ROUNDS_MAX {
        let mut rivals = voters(&metrics.borrow().membership_config);
        rivals.remove(&lost.leader);
        let Some(turn) = rivals.iter().position(|node| *node == inner.me) else {
            return;
        };
        let wait = match lost.resigned.and_then(|resigned| resigned.to) {
            Some(next) if next == inner.me => until_turn(round, 0, 1),
            // The others' loyalty may have to run out before it is elected.
            Some(_) if round == 0 => {
                inner.config.election_timeout_max * 2 + until_turn(round, turn, rivals.len())
            }
            _ => until_turn(round, turn, rivals.len()),
        };
        tokio::select! {
            biased;
            _ = metrics.wait_for(replaced) => return,
            () = sleep(wait) => {}
        }
        // A rival that has this node's vote is left a round to win.
        let Some(Standing { vote, .. }) = inner.standing().await else {
            return;
        };
        let rival = vote.leader_id().voted_for().filter(|node| rivals.contains(node));
        if rival.is_some_and(|node| node != inner.me) && granted.replace(vote) != Some(vote) {
            continue;
        }
        let wanted = tokio::select! {
            biased;
            _ = metrics.wait_for(replaced) => return,
            wanted = inner.is_wanted() => wanted,
        };
        if wanted && inner.raft.trigger().elect().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_never_come_together_and_rounds_grow() {
        let mut at = Vec::new();
        for turn in 0..3 {
            let mut now = Duration::ZERO;
            for round in 0..3 {
                now += until_turn(round, turn, 3);
                at.push(now.as_millis());
            }
        }
        // By node; the rounds begin at 0, 180 and 540.
        assert_eq!(at, [0, 180, 540, 60, 300, 780, 120, 420, 1020]);
    }
}
