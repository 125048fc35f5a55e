//! This node as a member of its cluster: connections, gossip, consensus, and what goes on between
//! them.
//!
//! It hands news from one to the other and decides nothing: peers to dial come from the topology,
//! elections from broken connections, configurations to the shards, reports to whoever leads.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::birth::{Newborn, answer_as_member};
use crate::consensus::Consensus;
use crate::controller::{self, Report, Seems, Sight};
use crate::gossip::{self, Gossip};
use crate::metrics::Metrics;
use crate::ops::ActionError;
use crate::peer::{self, Down, Refusal, State, Transport};
use crate::replication::Replication;
use crate::topology::{Announcement, Command, Copies, Member, NodeId, Outcome, Standing, Topology};
use crate::wire::{self, Kind};

use super::control;
use super::inquiry;
use super::peers::{Knock, KnockReply};
use super::pressure;
use super::ways::Ways;

/// How long a command may take until it is asked for again.
pub(super) const COMMAND_PATIENCE: Duration = Duration::from_secs(2);

/// Pause before a command is asked for again that has to go through, at most.
const COMMAND_PAUSE: Duration = Duration::from_millis(500);

/// How long others are given to take over what this node leads, before it stops.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(5);

/// How often a newborn that sits at a member's address is told of its cluster.
const TELL_NEWBORN_PAUSE: Duration = Duration::from_secs(1);

/// The parts of a member.
pub(super) struct Cluster {
    pub(super) me: NodeId,
    about: Announcement,
    transport: Arc<Transport>,
    ways: Arc<Ways>,
    gossip: Gossip,
    consensus: Consensus,
    replication: Arc<Replication>,
    pub(super) metrics: Arc<Metrics>,
    began: Instant,
    /// The last report of each node, this one's included.
    reports: Mutex<BTreeMap<NodeId, Arc<Report>>>,
    /// What the last inquiry after each silent node came to.
    pub(super) inquiries: Mutex<BTreeMap<NodeId, inquiry::Asked>>,
    /// The members that no way leads to.
    lost: Mutex<BTreeSet<NodeId>>,
    /// Something happened that should be reported, or acted on, at once.
    pub(super) evidence: Notify,
    settings: Mutex<Settings>,
    /// It hands over what it leads, to stop or to be stopped.
    goes: AtomicBool,
    tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

/// What of the configuration the cluster's parts go by.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) controller: controller::Settings,
    pub(super) write_copies: u32,
    pub(super) seeds: Vec<String>,
}

/// What a member is made of.
pub(super) struct Parts {
    pub(super) me: NodeId,
    pub(super) about: Announcement,
    pub(super) transport: Arc<Transport>,
    pub(super) ways: Arc<Ways>,
    pub(super) gossip: Gossip,
    pub(super) consensus: Consensus,
    pub(super) replication: Arc<Replication>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) settings: Settings,
    pub(super) dead: watch::Sender<Arc<BTreeSet<NodeId>>>,
}

impl Cluster {
    /// Begins to take part.
    pub(super) fn start(parts: Parts) -> Arc<Self> {
        let cluster = Arc::new(Self {
            me: parts.me,
            about: parts.about,
            transport: parts.transport,
            ways: parts.ways,
            gossip: parts.gossip,
            consensus: parts.consensus,
            replication: parts.replication,
            metrics: parts.metrics,
            began: Instant::now(),
            reports: Mutex::default(),
            inquiries: Mutex::default(),
            lost: Mutex::default(),
            evidence: Notify::new(),
            settings: Mutex::new(parts.settings),
            goes: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        cluster.run(enter(cluster.clone()));
        cluster.run(follow_topology(cluster.clone()));
        cluster.run(follow_gossip(cluster.clone(), parts.dead));
        cluster.run(follow_links(cluster.clone()));
        cluster.run(tell_newborns(cluster.clone()));
        cluster.run(control::report(cluster.clone()));
        cluster.run(control::control(cluster.clone()));
        cluster.run(pressure::press(cluster.clone()));
        let replication = cluster.replication.clone();
        let topology = cluster.topology();
        // A log that has failed says so to the server, which then stops.
        cluster.run(async move { drop(replication.run(topology).await) });
        cluster
    }

    /// Runs a task that ends with this node's part in the cluster.
    pub(super) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    pub(super) fn replication(&self) -> &Arc<Replication> {
        &self.replication
    }

    pub(super) fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(super) fn ways(&self) -> &Ways {
        &self.ways
    }

    pub(super) fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        self.consensus.topology()
    }

    pub(super) fn topology_now(&self) -> Arc<Topology> {
        self.consensus.topology().borrow().clone()
    }

    pub(super) fn settings(&self) -> Settings {
        self.settings.lock().clone()
    }

    /// Puts other settings into force.
    pub(super) fn apply(
        &self,
        settings: Settings,
        secrets: Vec<Vec<u8>>,
        timeouts: (Duration, Duration),
    ) {
        self.transport.set_secrets(secrets.clone());
        self.gossip.set_secrets(secrets);
        self.gossip.set_timeouts(timeouts.0, timeouts.1);
        self.gossip.set_seeds(seeds(&settings, &self.topology_now()));
        *self.settings.lock() = settings;
    }

    /// Another node's report has come.
    pub(super) fn reported(&self, from: NodeId, body: &[u8]) {
        let Ok(mut report) = wire::get::<Report>(body) else { return };
        report.at = self.now();
        self.take_report(from, Arc::new(report));
    }

    /// Keeps a report; what it says of broken links may call for action.
    pub(super) fn take_report(&self, node: NodeId, report: Arc<Report>) {
        let old = self.reports.lock().insert(node, report.clone());
        self.renew_routes();
        let broken = |report: &Report| {
            report.reachable.values().filter(|l| matches!(l, controller::Link::Down { .. })).count()
        };
        if old.is_none_or(|old| broken(&old) != broken(&report)) {
            self.evidence.notify_waiters();
        }
    }

    /// Finds the routes anew, and has a leader contested to which no way leads any more.
    fn renew_routes(&self) {
        let topology = self.topology_now();
        let lost = {
            let reports = self.reports.lock();
            self.ways.renew(self.me, &topology, &reports, self.now())
        };
        let mut known = self.lost.lock();
        for node in lost.difference(&known) {
            self.consensus.elect(*node);
        }
        *known = lost;
    }

    /// Time on the clock of [`Sight`].
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// All that is known of the members at this moment.
    pub(super) fn sight(&self) -> Sight {
        let now = self.now();
        let members = self.gossip.members().borrow().clone();
        let alive = members.iter().map(|(node, seen)| {
            let state = match seen.state {
                gossip::State::Alive => Seems::Alive,
                gossip::State::Suspect => Seems::Suspect,
                gossip::State::Dead | gossip::State::Left => Seems::Dead,
            };
            let since = now.saturating_sub(seen.since.elapsed());
            (*node, controller::Seen { state, since })
        });
        let alive = alive.collect();
        let reports = self.reports.lock().clone();
        let asked = self.inquiries.lock();
        let inquiries = asked.iter().filter_map(|(node, asked)| Some((*node, asked.inquiry?)));
        let inquiries = inquiries.collect();
        Sight { now, me: self.me, alive, reports, inquiries }
    }

    /// The members that gossip has for alive.
    pub(super) fn heard_in_gossip(&self) -> BTreeSet<NodeId> {
        let members = self.gossip.members().borrow().clone();
        let alive = members.iter().filter(|(_, seen)| seen.state == gossip::State::Alive);
        alive.map(|(node, _)| *node).collect()
    }

    /// Where a member may be: as the topology has it, as gossip has it, and where seeds are.
    pub(super) fn addresses_of(&self, node: NodeId) -> Vec<String> {
        let topology = self.topology_now();
        let known = topology.members.get(&node).map(|member| member.about.peer_addr.clone());
        let mut addresses: Vec<String> = known.into_iter().collect();
        if let Some(seen) = self.gossip.members().borrow().get(&node) {
            addresses.push(seen.peer.addr.clone());
            addresses.extend(seen.addr.map(|addr| addr.to_string()));
        }
        addresses.extend(self.settings().seeds);
        let mut known = BTreeSet::new();
        addresses.retain(|addr| known.insert(addr.clone()));
        addresses
    }

    /// What gossip says of a member.
    pub(super) fn seems(&self, node: NodeId) -> Option<gossip::State> {
        self.gossip.members().borrow().get(&node).map(|seen| seen.state)
    }

    /// Whether every shard keeps its write quorum while this node is stopped.
    pub(super) fn stoppable(&self) -> Result<(), String> {
        let settings = self.settings();
        let topology = self.topology_now();
        if topology.members.len() <= 1 {
            let shards = topology.shards.len();
            return Err(format!(
                "this node is the only member of its cluster: while it is stopped, none of its \
                 {shards} shards can be read or written"
            ));
        }
        let quorum = Copies::Count(settings.write_copies.max(1));
        controller::keeps_quorum_without(
            &topology,
            &self.sight(),
            &settings.controller,
            self.me,
            quorum,
        )
        .map_err(|needed| needed.to_string())
    }

    /// A node that is no member yet knocks.
    pub(super) async fn knocked(&self, knock: Knock) -> KnockReply {
        let topology = self.topology_now();
        let Some(cluster) = topology.cluster else { return KnockReply::NotNow };
        match knock {
            Knock::Newborn(bytes) => match Newborn::decode(&bytes) {
                Ok(newborn) => {
                    let answer = answer_as_member(&topology, cluster.id, &newborn);
                    KnockReply::Birth(answer.encode())
                }
                Err(error) => {
                    tracing::warn!(%error, "a knock is refused");
                    KnockReply::NotNow
                }
            },
            Knock::Join(about) => self.let_in(&topology, about).await,
            Knock::Member => KnockReply::Noted,
        }
    }

    async fn let_in(&self, topology: &Topology, about: Announcement) -> KnockReply {
        if let Some(member) = topology.member_named(&about.name)
            && member.about.life != about.life
            && self.is_living(member)
        {
            let why = format!(
                "a living member at {} has the name {} already; give this node a node_id of its own",
                member.about.peer_addr, about.name
            );
            tracing::warn!("{} at {} is not let in: {why}", about.name, about.peer_addr);
            self.metrics.refused("duplicate", 1);
            return KnockReply::Refused(why);
        }
        match self.consensus.propose(Command::Join(about), COMMAND_PATIENCE).await {
            Ok(Outcome::Joined { node, cluster }) => KnockReply::Joined { node, cluster },
            Ok(outcome) => {
                tracing::debug!(?outcome, "a node could not be let in");
                KnockReply::NotNow
            }
            Err(error) => {
                tracing::warn!(%error, "a node could not be let in now");
                KnockReply::NotNow
            }
        }
    }

    fn is_living(&self, member: &Member) -> bool {
        if member.node == self.me {
            return true;
        }
        let up = self.transport.links().borrow().get(&member.node).is_some_and(peer::Link::is_up);
        up && self.seems(member.node).is_none_or(|state| state == gossip::State::Alive)
    }

    /// What the topology should be told of this node, if anything.
    fn what_to_enter(&self, topology: &Topology) -> Option<Command> {
        // The topology may not have come yet.
        let member = topology.members.get(&self.me)?;
        if member.about != self.about {
            return Some(Command::Enter { node: self.me, about: self.about.clone() });
        }
        let is_wrong = member.standing == Standing::Restarting && !self.goes.load(Relaxed);
        is_wrong.then_some(Command::Stand { node: self.me, standing: Standing::Member })
    }

    /// Asks others to take over what this node leads, and waits until they have.
    pub(super) async fn hand_over(&self) {
        self.goes.store(true, Relaxed);
        let topology = self.topology_now();
        let Some(member) = topology.members.get(&self.me) else { return };
        if topology.members.len() <= 1 {
            return;
        }
        // Who is to leave for good hands over already, and is still to leave after a restart.
        if member.standing != Standing::Decommissioning {
            let standing = Standing::Restarting;
            let command = Command::Stand { node: self.me, standing };
            if let Err(error) = self.consensus.propose(command, COMMAND_PATIENCE).await {
                tracing::warn!(%error, "the others could not be told that this node stops");
                return;
            }
        }
        let mut topology = self.topology();
        let leads_none = |topology: &Arc<Topology>| {
            topology.shards.iter().all(|shard| shard.primary.node != self.me)
        };
        let handed_over = topology.wait_for(leads_none);
        match tokio::time::timeout(HAND_OVER_PATIENCE, handed_over).await {
            Ok(_) => tracing::info!("others lead all shards now"),
            Err(_) => tracing::warn!("some shards have nobody else to lead them; they will wait"),
        }
    }

    /// Has a member's copies moved away, for it to leave afterwards.
    pub(super) async fn decommission(&self, name: &str) -> Result<(), ActionError> {
        let member = self.member(name)?;
        if self.topology_now().members.len() <= 1 {
            return Err(ActionError::Conflict(
                "it is the only member of its cluster, there is no other node to take its shards",
            ));
        }
        let standing = Standing::Decommissioning;
        self.decide(Command::Stand { node: member.node, standing }, "decommissioning").await
    }

    /// Ends the membership of a node that is dead, or that was decommissioned.
    pub(super) async fn remove(&self, name: &str) -> Result<(), ActionError> {
        let member = self.member(name)?;
        if self.topology_now().members.len() <= 1 {
            return Err(ActionError::Conflict(
                "it is the only member of its cluster, and it is alive",
            ));
        }
        if self.is_living(&member) && member.standing != Standing::Decommissioning {
            return Err(ActionError::Conflict(
                "the node is alive: decommission it first, or stop it",
            ));
        }
        self.decide(Command::Remove(member.node), "removing the node").await
    }

    fn member(&self, name: &str) -> Result<Member, ActionError> {
        let topology = self.topology_now();
        topology.member_named(name).cloned().ok_or(ActionError::Unknown { what: "member" })
    }

    async fn decide(&self, command: Command, what: &'static str) -> Result<(), ActionError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| ActionError::Failed { what, source };
        match self.consensus.propose(command, COMMAND_PATIENCE).await {
            Ok(Outcome::Rejected(rejection)) => Err(failed(rejection.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Ends this node's part in the cluster.
    pub(super) async fn end(&self) {
        self.gossip.leave().await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.consensus.shutdown().await;
        self.transport.stop().await;
    }
}

/// Where gossip looks for others: as configured, and wherever members are.
pub(super) fn seeds(settings: &Settings, topology: &Topology) -> Vec<String> {
    let mut seeds: BTreeSet<String> = settings.seeds.iter().cloned().collect();
    seeds.extend(topology.members.values().map(|member| member.about.peer_addr.clone()));
    seeds.into_iter().collect()
}

/// Says that this node is there, as it is now, whenever the topology has it otherwise: after a
/// start, and when what its last run said before its end is decided only now.
async fn enter(cluster: Arc<Cluster>) {
    let mut topology = cluster.topology();
    loop {
        let command = cluster.what_to_enter(&topology.borrow_and_update());
        let Some(command) = command else {
            match topology.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        };
        if let Err(error) = cluster.consensus.propose(command, COMMAND_PATIENCE).await {
            tracing::debug!(%error, "could not enter yet");
        }
        // The leader may know of it before this node does.
        let _ = tokio::time::timeout(COMMAND_PAUSE, topology.changed()).await;
    }
}

/// Dials the members, and tells of changes.
async fn follow_topology(cluster: Arc<Cluster>) {
    let mut watch = cluster.topology();
    let mut known = Arc::new(Topology::default());
    loop {
        let now = watch.borrow_and_update().clone();
        tell_changes(&known, &now);
        if known.members != now.members {
            let others = now.members.values().filter(|member| member.node != cluster.me);
            let peers = others.map(|member| {
                let about = &member.about;
                let peer = peer::Peer { name: about.name.clone(), addr: about.peer_addr.clone() };
                (member.node, peer)
            });
            cluster.transport.set_peers(peers.collect());
            cluster.gossip.set_seeds(seeds(&cluster.settings(), &now));
            cluster.reports.lock().retain(|node, _| now.members.contains_key(node));
        }
        known = now;
        cluster.evidence.notify_waiters();
        if watch.changed().await.is_err() {
            return;
        }
    }
}

/// One line for each change of the members.
fn tell_changes(known: &Topology, now: &Topology) {
    if known.revision == 0 {
        return;
    }
    for (node, member) in &now.members {
        let about = &member.about;
        match known.members.get(node) {
            None => tracing::info!("{} joined, at {}", about.name, about.peer_addr),
            Some(old) if old.about.life != about.life => {
                tracing::warn!("{} is back without its memory; it learns from others", about.name);
            }
            Some(old) if old.standing != member.standing => match member.standing {
                Standing::Member => tracing::info!("{} takes part again", about.name),
                Standing::Restarting => tracing::info!("{} is being restarted", about.name),
                Standing::Decommissioning => tracing::info!("{} is to leave", about.name),
            },
            Some(_) => {}
        }
    }
    for (node, member) in &known.members {
        if !now.members.contains_key(node) {
            tracing::info!("{} is no member any more", member.about.name);
        }
    }
}

/// Tells consensus who seems dead.
async fn follow_gossip(cluster: Arc<Cluster>, dead: watch::Sender<Arc<BTreeSet<NodeId>>>) {
    let mut members = cluster.gossip.members();
    loop {
        let seen = members.borrow_and_update().clone();
        let gone = seen.iter().filter_map(|(node, seen)| {
            let gone = matches!(seen.state, gossip::State::Dead | gossip::State::Left);
            gone.then_some(*node)
        });
        let gone = Arc::new(gone.collect::<BTreeSet<_>>());
        dead.send_if_modified(|known| {
            let changed = **known != *gone;
            *known = gone;
            changed
        });
        cluster.evidence.notify_waiters();
        if members.changed().await.is_err() {
            return;
        }
    }
}

/// Takes a broken connection for what it may mean: a leader to replace, a report to be made.
async fn follow_links(cluster: Arc<Cluster>) {
    let mut links = cluster.transport.links();
    let mut down: BTreeSet<NodeId> = BTreeSet::new();
    loop {
        let now = links.borrow_and_update().clone();
        cluster.renew_routes();
        let mut still = BTreeSet::new();
        for (node, link) in now.iter() {
            let State::Down { why, .. } = link.state else { continue };
            if why == Down::Untried {
                continue;
            }
            still.insert(*node);
            if !down.contains(node) {
                cluster.consensus.elect(*node);
            }
        }
        if down != still {
            cluster.evidence.notify_waiters();
        }
        down = still;
        if links.changed().await.is_err() {
            return;
        }
    }
}

/// Tells newborns at members' addresses that they are known: their disks were wiped.
async fn tell_newborns(cluster: Arc<Cluster>) {
    let links = cluster.transport.links();
    let body = wire::to_vec(&Knock::Member);
    loop {
        tokio::time::sleep(TELL_NEWBORN_PAUSE).await;
        let newborn = |link: &peer::Link| {
            matches!(link.state, State::Down { why: Down::Rejected(Refusal::NotMember), .. })
        };
        let now = links.borrow().clone();
        for (node, _) in now.iter().filter(|(_, link)| newborn(link)) {
            let topology = cluster.topology_now();
            let Some(member) = topology.members.get(node) else { continue };
            let addr = &member.about.peer_addr;
            let told =
                cluster.transport.call_addr(addr, Kind::Knock as u8, &body, TELL_NEWBORN_PAUSE);
            if let Err(error) = told.await {
                tracing::debug!(addr, %error, "a newborn could not be told of its cluster");
            }
        }
    }
}
