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
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::birth::{Newborn, answer_as_member};
use crate::consensus::Consensus;
use crate::controller::{self, Report, Seems, Sight};
use crate::gossip::{self, Gossip};
use crate::metrics::Metrics;
use crate::peer::{self, Identity, Transport};
use crate::replication::Replication;
use crate::topology::{Announcement, Command, Copies, Member, NodeId, Outcome, Standing, Topology};
use crate::wire;

use super::control;
use super::inquiry;
use super::peers::{Knock, KnockReply};
use super::pressure;
use super::stop_lease;
use super::udp;
use super::view;
use super::ways::{self, Ways};
use super::whereabouts;

/// How long a command may take until it is asked for again.
pub(super) const COMMAND_PATIENCE: Duration = Duration::from_secs(2);

/// Pause before a command is asked for again that has to go through, at most.
const COMMAND_PAUSE: Duration = Duration::from_millis(500);

/// How long others are given to take over what this node leads, before it stops.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked at who seems dead, besides when something changed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    /// The members that are connected and whose datagrams do not come in.
    pub(super) unheard: watch::Sender<BTreeSet<NodeId>>,
    /// The members that no way leads to.
    lost: Mutex<BTreeSet<NodeId>>,
    /// Something happened that should be reported, or acted on, at once.
    pub(super) evidence: Notify,
    settings: Mutex<Settings>,
    /// It hands over what it leads, to stop or to be stopped.
    goes: AtomicBool,
    /// How fast shards move.
    pub(super) pace: Mutex<controller::Pace>,
    /// What is known of the stop lease.
    pub(super) lease: stop_lease::Known,
    tasks: TaskTracker,
    /// As long as others can still ask: who does not see that it runs takes itself to have stood
    /// still.
    in_touch: JoinHandle<()>,
    pub(super) stop: CancellationToken,
}

/// What of the configuration the cluster's parts go by.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) controller: controller::Settings,
    pub(super) write_copies: u32,
    pub(super) seeds: Vec<String>,
    pub(super) suspect_timeout: Duration,
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
        let in_touch = parts.replication.clone().stay_in_touch(parts.consensus.topology());
        let cluster = Arc::new(Self {
            in_touch: tokio::spawn(in_touch),
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
            unheard: watch::Sender::default(),
            lost: Mutex::default(),
            evidence: Notify::new(),
            settings: Mutex::new(parts.settings),
            goes: AtomicBool::new(false),
            pace: Mutex::default(),
            lease: stop_lease::Known::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        cluster.run(enter(cluster.clone()));
        cluster.run(follow_topology(cluster.clone()));
        cluster.run(follow_gossip(cluster.clone(), parts.dead));
        cluster.run(ways::follow_links(cluster.clone()));
        cluster.run(whereabouts::follow(cluster.clone()));
        cluster.run(whereabouts::tell_newborns(cluster.clone()));
        cluster.run(control::report(cluster.clone()));
        cluster.run(control::control(cluster.clone()));
        cluster.run(pressure::press(cluster.clone()));
        cluster.run(udp::watch(cluster.clone()));
        cluster.run(stop_lease::follow(cluster.clone()));
        cluster.run(view::follow_moves(cluster.clone()));
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

    pub(super) fn gossip(&self) -> &Gossip {
        &self.gossip
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
        *self.settings.lock() = settings;
        self.renew_seeds();
    }

    /// Has gossip look for others as configured, and wherever members may be.
    pub(super) fn renew_seeds(&self) {
        let members = self.topology_now().members.values().cloned().collect::<Vec<_>>();
        let mut seeds: BTreeSet<String> = self.settings().seeds.into_iter().collect();
        for Member { node, about, .. } in members {
            seeds.extend(self.transport.addresses(node).into_iter().next());
            seeds.insert(about.peer_addr);
        }
        self.gossip.set_seeds(seeds.into_iter().collect());
    }

    /// Where this node says that it is reached.
    pub(super) fn own_addr(&self) -> &str {
        &self.about.peer_addr
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
    pub(super) fn renew_routes(&self) {
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
        let leased = self.lease.leased();
        Sight { now, me: self.me, alive, reports, inquiries, leased }
    }

    /// The members that gossip has for alive.
    pub(super) fn heard_in_gossip(&self) -> BTreeSet<NodeId> {
        let members = self.gossip.members().borrow().clone();
        let alive = members.iter().filter(|(_, seen)| seen.state == gossip::State::Alive);
        alive.map(|(node, _)| *node).collect()
    }

    /// Where a member may be: where it was heard to be, as the topology has it, and where seeds are.
    pub(super) fn addresses_of(&self, node: NodeId) -> Vec<String> {
        let topology = self.topology_now();
        let known = topology.members.get(&node).map(|member| member.about.peer_addr.clone());
        let mut addresses = self.transport.addresses(node);
        addresses.extend(known);
        addresses.extend(self.settings().seeds);
        let mut known = BTreeSet::new();
        addresses.retain(|addr| known.insert(addr.clone()));
        addresses
    }

    /// What gossip says of a member.
    pub(super) fn seems(&self, node: NodeId) -> Option<gossip::State> {
        self.gossip.members().borrow().get(&node).map(|seen| seen.state)
    }

    /// Whether a member answers over TCP, on this node's connection or by way of others.
    pub(super) fn is_reached(&self, node: NodeId) -> bool {
        self.ways.silent_for(node).is_none()
    }

    /// The members that this node is connected with, and whether their datagrams seem lost.
    pub(super) fn lost_datagrams(&self) -> BTreeMap<NodeId, bool> {
        let seen = self.gossip.members().borrow().clone();
        let is_lost = |node: &NodeId| seen.get(node).is_none_or(|seen| !seen.is_heard_here);
        let links = self.transport.links().borrow().clone();
        let up = links.iter().filter(|(_, link)| link.is_up());
        up.map(|(node, _)| (*node, is_lost(node))).collect()
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

    /// A node that is no member yet knocks, or a member that looks for others.
    pub(super) async fn knocked(&self, from: &Identity, knock: Knock) -> KnockReply {
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
            Knock::Whereabouts if from.is_member() => {
                KnockReply::Whereabouts(whereabouts::known(self))
            }
            Knock::Member | Knock::Whereabouts => KnockReply::Noted,
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

    pub(super) fn is_living(&self, member: &Member) -> bool {
        if member.node == self.me {
            return true;
        }
        self.is_reached(member.node) && self.seems(member.node) != Some(gossip::State::Left)
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

    /// Ends this node's part in the cluster. A second call does nothing.
    pub(super) async fn end(&self) {
        if self.stop.is_cancelled() {
            return;
        }
        self.gossip.leave().await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.consensus.shutdown().await;
        self.transport.stop().await;
        self.in_touch.abort();
    }
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
            cluster.transport.set_roster(now.roster());
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

/// Tells consensus who seems dead: to gossip, and not reached over TCP either.
async fn follow_gossip(cluster: Arc<Cluster>, dead: watch::Sender<Arc<BTreeSet<NodeId>>>) {
    let (mut members, mut links) = (cluster.gossip.members(), cluster.transport.links());
    loop {
        let seen = members.borrow_and_update().clone();
        links.mark_unchanged();
        let gone = seen.iter().filter_map(|(node, seen)| {
            let silent = matches!(seen.state, gossip::State::Dead | gossip::State::Left);
            (silent && !cluster.is_reached(*node)).then_some(*node)
        });
        let gone = Arc::new(gone.collect::<BTreeSet<_>>());
        dead.send_if_modified(|known| {
            let changed = **known != *gone;
            *known = gone;
            changed
        });
        let news = tokio::select! {
            changed = members.changed() => {
                cluster.evidence.notify_waiters();
                changed
            }
            changed = links.changed() => changed,
            // Who was reached by way of others may be reached no more.
            () = tokio::time::sleep(LOOK_AGAIN) => Ok(()),
        };
        if news.is_err() {
            return;
        }
    }
}
