//! The stop lease: asked for at any member, judged and granted by the one that leads the topology.
//!
//! The leader judges by what it sees of the members, and binds the grant to the revision of the
//! topology by which it judged: of two that were judged at the same time one takes place. It puts
//! the grant into its own log, so that one that leads no more grants nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use crate::consensus::Undecided;
use crate::controller::{self, Leased, Presence, Unsafe};
use crate::entry::Timestamp;
use crate::ops::{self, LeaseRefusal, LeaseRequest, LeaseUnsafe};
use crate::topology::{
    Command, Copies, Ending, LeaseStep, Member, NodeId, Outcome, Rejection, StopLease, Topology,
};
use crate::wire::{self, Kind};

use super::cluster::{COMMAND_PATIENCE, Cluster};
use super::view::ClusterView;

/// How long a lease is tried for, elections included.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whoever found no leader, or none that answers, looks again after this.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How long a node is given to say whether it is there.
const PRESENCE_WITHIN: Duration = Duration::from_secs(1);

/// While a lease is held, its node is asked this often whether it is back.
const PRESENCE_EVERY: Duration = Duration::from_millis(500);

/// The topology may change so often between a judgement and its grant.
const JUDGEMENTS_MAX: u32 = 20;

/// What members ask each other about the lease. New kinds come last.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Of a node: is it there?
    Presence,
    /// Of the leader.
    Acquire { node: String, holder: String, ttl_ms: u64 },
}

/// What is answered. New kinds come last.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// To [`Ask::Presence`].
    Present { run: u64, behind: u64 },
    /// Another leads.
    NotLeader,
    /// It is granted, or renewed.
    Granted(StopLease),
    /// It is held.
    Held(StopLease),
    /// It would not be safe.
    Unsafe { why: String, without_quorum: Vec<u16>, not_level: Vec<u16>, missing: Vec<String> },
    /// There is no such member.
    Unknown,
    /// It did not come about in time. It still may.
    Undecided,
}

/// What this node knows of the lease beside the topology, and this run of its process.
#[derive(Debug)]
pub(super) struct Known {
    run: u64,
    leased: Mutex<Option<Leased>>,
}

impl Known {
    pub(super) fn new() -> Self {
        let mut run = [0; 8];
        getrandom::fill(&mut run).expect("the system has random numbers");
        Self { run: u64::from_ne_bytes(run), leased: Mutex::default() }
    }

    pub(super) fn leased(&self) -> Option<Leased> {
        *self.leased.lock()
    }
}

/// A lease with the names that operators know.
pub(super) fn shown(topology: &Topology, lease: &StopLease) -> ops::Lease {
    ops::Lease {
        lease_id: lease.id,
        node_id: topology.name(lease.node),
        holder: lease.holder.clone(),
        since: Timestamp(lease.since_ms),
        until: Timestamp(lease.until_ms),
        ttl_seconds: lease.ttl_ms / 1000,
        renewed: lease.renewals > 0,
    }
}

impl Cluster {
    /// The lease that is held, with everything that was committed before the call.
    pub(super) async fn stop_lease(&self) -> Result<Option<ops::Lease>, LeaseRefusal> {
        let topology = self.agreed_topology().await?;
        Ok(topology.leases.held.as_ref().map(|lease| shown(&topology, lease)))
    }

    /// Asks whoever leads for leave to stop a node, until there is an answer.
    pub(super) async fn acquire_lease(
        &self,
        request: &LeaseRequest,
    ) -> Result<ops::Lease, LeaseRefusal> {
        let deadline = Instant::now() + PATIENCE;
        let mut leadership = self.consensus().leadership();
        loop {
            let leader = leadership.borrow_and_update().leader;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LeaseRefusal::NotAgreed { source: None });
            }
            let answer = match leader {
                Some(leader) => self.ask_for_lease(leader, request, left).await,
                None => None,
            };
            match answer {
                None | Some(Answer::NotLeader | Answer::Undecided | Answer::Present { .. }) => {
                    let _ = timeout(LOOK_AGAIN_AFTER, leadership.changed()).await;
                }
                Some(answer) => return self.read(request, answer),
            }
        }
    }

    fn read(&self, request: &LeaseRequest, answer: Answer) -> Result<ops::Lease, LeaseRefusal> {
        let topology = self.topology_now();
        Err(match answer {
            Answer::Granted(lease) => return Ok(shown(&topology, &lease)),
            Answer::Held(lease) => LeaseRefusal::Held(Box::new(shown(&topology, &lease))),
            Answer::Unsafe { why, without_quorum, not_level, missing } => {
                LeaseRefusal::Unsafe(Box::new(LeaseUnsafe {
                    why,
                    shards_without_quorum: without_quorum,
                    shards_not_level: not_level,
                    members_missing: missing,
                }))
            }
            Answer::Unknown => LeaseRefusal::Unknown(request.node_id.clone()),
            Answer::Present { .. } | Answer::NotLeader | Answer::Undecided => {
                LeaseRefusal::NotAgreed { source: None }
            }
        })
    }

    /// `None`: no answer, or none that makes sense.
    async fn ask_for_lease(
        &self,
        leader: NodeId,
        request: &LeaseRequest,
        within: Duration,
    ) -> Option<Answer> {
        let LeaseRequest { node_id, holder, ttl } = request;
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        if leader == self.me {
            return Some(self.grant(node_id, holder, ttl_ms).await);
        }
        let ask = Ask::Acquire { node: node_id.clone(), holder: holder.clone(), ttl_ms };
        let ask = wire::to_vec(&ask);
        let answer = self.ways().call(leader, Kind::StopLease, &ask, within).await;
        wire::get(&answer.ok()?).ok()
    }

    /// Answers another member.
    pub(super) async fn answer_about_lease(&self, body: &[u8]) -> Bytes {
        let answer = match wire::get::<Ask>(body) {
            Ok(Ask::Presence) => self.own_presence(),
            Ok(Ask::Acquire { node, holder, ttl_ms }) => self.grant(&node, &holder, ttl_ms).await,
            Err(error) => {
                tracing::debug!(%error, "a question about the stop lease that makes no sense");
                return Bytes::new();
            }
        };
        wire::to_vec(&answer).into()
    }

    fn own_presence(&self) -> Answer {
        let (behind, _) = ClusterView::of(self).copies_behind();
        Answer::Present { run: self.lease.run, behind }
    }

    /// Whether a node is there, and with what.
    async fn presence_of(&self, node: NodeId) -> Option<Presence> {
        let at = self.now();
        let answer = if node == self.me {
            self.own_presence()
        } else {
            let ask = wire::to_vec(&Ask::Presence);
            let answer = self.ways().call(node, Kind::StopLease, &ask, PRESENCE_WITHIN).await;
            wire::get(&answer.ok()?).ok()?
        };
        match answer {
            Answer::Present { run, behind } => Some(Presence { at, run, behind }),
            _ => None,
        }
    }

    /// As the leader: judges, and grants if it is safe.
    async fn grant(&self, name: &str, holder: &str, ttl_ms: u64) -> Answer {
        for _ in 0..JUDGEMENTS_MAX {
            if !self.consensus().leadership().borrow().leads {
                return Answer::NotLeader;
            }
            let topology = self.topology_now();
            let Some(member) = topology.member_named(name) else { return Answer::Unknown };
            let node = member.node;
            if let Some(held) = &topology.leases.held
                && (held.node != node || held.holder != holder)
            {
                return Answer::Held(held.clone());
            }
            let run = match self.judge(&topology, member).await {
                Ok(run) => run,
                Err(refused) => return refused,
            };
            let step = LeaseStep::Grant {
                node,
                holder: holder.to_owned(),
                ttl_ms,
                run,
                at_ms: Timestamp::now().0,
                revision: topology.revision,
            };
            let granted = self.consensus().propose_as_leader(step.into(), COMMAND_PATIENCE);
            match granted.await {
                Ok(Outcome::Leased(lease)) => {
                    let renewed = lease.renewals > 0;
                    tracing::info!(
                        holder,
                        node = name,
                        lease = lease.id,
                        renewed,
                        "the stop lease is granted"
                    );
                    return Answer::Granted(*lease);
                }
                Ok(Outcome::Rejected(Rejection::Leased(held))) => return Answer::Held(*held),
                Ok(Outcome::Rejected(Rejection::NotAMember(_))) => return Answer::Unknown,
                // It has changed since: judged again, as it is now.
                Ok(_) => {}
                Err(Undecided::NotLeader) => return Answer::NotLeader,
                Err(Undecided::Late) => return Answer::Undecided,
            }
        }
        Answer::Undecided
    }

    /// Whether the member may be stopped; the run of its process, if it runs.
    async fn judge(&self, topology: &Topology, member: &Member) -> Result<Option<u64>, Answer> {
        let name = &member.about.name;
        let presence = self.presence_of(member.node).await;
        let settings = self.settings();
        let sight = self.sight();
        let quorum = Copies::Count(settings.write_copies.max(1));
        controller::may_stop(topology, &sight, &settings.controller, member.node, quorum)
            .map_err(|found| unsafe_answer(topology, name, &found))?;
        if presence.is_none()
            && controller::may_run(topology, &sight, &settings.controller, member.node)
        {
            return Err(not_known(format!(
                "{name} seems to run, and does not say which run of its process that is: it is \
                 starting, or its version knows no stop lease; ask again when its /ready answers 200"
            )));
        }
        // A member that cannot read the lease in the topology's log would be stuck there.
        if topology.leases.granted == 0 {
            let others = topology.members.values().filter(|other| other.node != member.node);
            let asked = others.map(async |other| {
                let presence = self.presence_of(other.node).await;
                presence.is_none().then(|| other.about.name.clone())
            });
            let silent: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
            if !silent.is_empty() {
                return Err(not_known(format!(
                    "{} knows no stop lease, or does not answer: all members must run a version \
                     that does before the first is granted",
                    silent.join(", ")
                )));
            }
        }
        Ok(presence.map(|presence| presence.run))
    }

    /// Gives the lease for a node back; of this holder, or of whoever has it. What was given back.
    pub(super) async fn release_lease(
        &self,
        name: &str,
        holder: Option<&str>,
    ) -> Result<Option<ops::Lease>, LeaseRefusal> {
        let is_held = |topology: &Topology| {
            let held = topology.leases.held.as_ref();
            held.is_some_and(|held| topology.name(held.node) == name)
        };
        let mut topology = self.topology_now();
        if !is_held(&topology) {
            // That nothing is held is said only by what all agree on.
            topology = self.agreed_topology().await?;
        }
        let Some(member) = topology.member_named(name) else {
            return Err(LeaseRefusal::Unknown(name.to_owned()));
        };
        let node = member.node;
        let Some(held) = topology.leases.held.as_ref().filter(|_| is_held(&topology)) else {
            return Ok(None);
        };
        let step = LeaseStep::Release { node, holder: holder.map(str::to_owned) };
        match self.consensus().propose(Command::Lease(step), COMMAND_PATIENCE).await {
            Ok(Outcome::Rejected(Rejection::Leased(other))) => {
                Err(LeaseRefusal::Held(Box::new(shown(&topology, &other))))
            }
            Ok(_) => Ok(Some(shown(&topology, held))),
            Err(error) => Err(LeaseRefusal::NotAgreed { source: Some(error.into()) }),
        }
    }

    /// Its holder needs the lease no more: it is given back at once if the node was not stopped, and
    /// else once the node is back with all its copies.
    pub(super) async fn settle_lease(&self, name: &str, holder: &str) -> Result<(), LeaseRefusal> {
        let topology = self.agreed_topology().await?;
        let Some(member) = topology.member_named(name) else {
            return Err(LeaseRefusal::Unknown(name.to_owned()));
        };
        let held = topology.leases.held.as_ref();
        let Some(held) = held.filter(|held| held.node == member.node && held.holder == holder)
        else {
            return Ok(());
        };
        let run = self.presence_of(member.node).await.map(|presence| presence.run);
        if run.is_none() || run != held.run {
            return Err(LeaseRefusal::NotBack(format!(
                "{name} has been stopped and is not back with all its copies level; ask again, the \
                 lease is given back then"
            )));
        }
        self.release_lease(name, Some(holder)).await.map(drop)
    }

    async fn agreed_topology(&self) -> Result<Arc<Topology>, LeaseRefusal> {
        let topology = self.consensus().linearizable(COMMAND_PATIENCE).await;
        topology.map_err(|error| LeaseRefusal::NotAgreed { source: Some(error.into()) })
    }
}

fn not_known(why: String) -> Answer {
    let (without_quorum, not_level, missing) = Default::default();
    Answer::Unsafe { why, without_quorum, not_level, missing }
}

fn unsafe_answer(topology: &Topology, name: &str, found: &Unsafe) -> Answer {
    let numbers = |shards: &[crate::entry::ShardId]| shards.iter().map(|shard| shard.0).collect();
    let missing: Vec<String> = found.missing.iter().map(|node| topology.name(*node)).collect();
    Answer::Unsafe {
        why: in_words(topology, name, found, &missing),
        without_quorum: numbers(&found.without_quorum),
        not_level: numbers(&found.not_level),
        missing,
    }
}

/// What speaks against it, as one sentence.
fn in_words(topology: &Topology, name: &str, found: &Unsafe, missing: &[String]) -> String {
    if topology.members.len() <= 1 {
        return format!(
            "{name} is the only member of its cluster: while it is stopped, nothing can be read or \
             written"
        );
    }
    let mut reasons = Vec::new();
    if !missing.is_empty() {
        reasons.push(format!("{} missing, or about to stop", are(missing)));
    }
    let quorum = found.without_quorum.len();
    if quorum > 0 {
        reasons.push(format!("{quorum} shards would be left without a write quorum"));
    }
    let behind = found.not_level.len();
    if behind > 0 {
        reasons.push(format!("{behind} shards have copies elsewhere that are not level"));
    }
    format!("{name} cannot be stopped safely now: {}", reasons.join("; "))
}

fn are(names: &[String]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

/// Notes since when the lease has been as it is; as the leader, asks its node whether it is back.
pub(super) async fn follow(cluster: Arc<Cluster>) {
    let mut topology = cluster.topology();
    let mut ended = topology.borrow().leases.ended.as_ref().map(|(lease, _)| lease.id);
    loop {
        let now = topology.borrow_and_update().clone();
        tell_ending(&cluster, &now, &mut ended);
        let held = now.leases.held.as_ref();
        note(&cluster, held);
        if let Some(lease) = held
            && cluster.consensus().leadership().borrow().leads
        {
            let presence = cluster.presence_of(lease.node).await;
            if let Some(known) = cluster.lease.leased.lock().as_mut()
                && (known.id, known.renewals) == (lease.id, lease.renewals)
            {
                known.presence = presence;
            }
        }
        let is_held = held.is_some();
        tokio::select! {
            changed = topology.changed() => if changed.is_err() { return },
            () = sleep(PRESENCE_EVERY), if is_held => {}
        }
    }
}

fn note(cluster: &Cluster, held: Option<&StopLease>) {
    let since = cluster.now();
    let mut known = cluster.lease.leased.lock();
    let is_as_it_was = |lease: &StopLease| {
        known.is_some_and(|known| (known.id, known.renewals) == (lease.id, lease.renewals))
    };
    match held {
        None => *known = None,
        Some(lease) if is_as_it_was(lease) => {}
        Some(StopLease { id, renewals, .. }) => {
            let (id, renewals, presence) = (*id, *renewals, None);
            *known = Some(Leased { id, renewals, since, presence });
        }
    }
}

/// One line for a lease that has ended, once.
fn tell_ending(cluster: &Cluster, now: &Topology, told: &mut Option<u64>) {
    let Some((lease, how)) = &now.leases.ended else { return };
    if told.is_some_and(|told| told >= lease.id) {
        return;
    }
    *told = Some(lease.id);
    let (holder, node, lease) = (&lease.holder, now.name(lease.node), lease.id);
    match how {
        Ending::Released => tracing::info!(holder, node, lease, "the stop lease was given back"),
        Ending::Returned => tracing::info!(
            holder,
            node,
            lease,
            "the stop lease is over: its node was stopped, and is back with all its copies"
        ),
        Ending::Removed => {
            tracing::info!(holder, node, lease, "the stop lease is over: its node was removed");
        }
        Ending::RanOut => {
            cluster.metrics.stop_leases_expired.inc();
            tracing::warn!(
                holder,
                node,
                lease,
                "the stop lease ran out before its node was back: its holder may have died; another \
                 node may be stopped now"
            );
        }
    }
}
