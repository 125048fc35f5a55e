//! The ways to the other members: over the connection that this node dialled, or, where that is
//! down, by way of members that reach them.
//!
//! Invariants: what goes by way of others is bounded like all that is sent, by the outboxes and by
//! [`RELAYS_MAX`]; a request that may have arrived is never said not to have been sent. It decides
//! nothing: routes come from links and reports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::controller::{self, REPORT_FRESH, Report};
use crate::metrics::Metrics;
use crate::peer::{CallError, Down, Link, State, Transport};
use crate::route::{self, HOPS_MAX, Links};
use crate::topology::{NodeId, Topology};
use crate::wire::{self, Kind, Relay, Relayed};

use super::cluster::Cluster;

/// Most requests of others that are passed on at a time.
const RELAYS_MAX: usize = 512;

/// A node without a connection counts as in touch if it was heard by another way so lately: its
/// reports come three times a second.
const IN_TOUCH: Duration = Duration::from_secs(1);

/// A node that was never heard counts as silent for so long.
const NEVER_HEARD: Duration = Duration::from_secs(3600);

/// The next of each node to which no connection of this node's leads, but a route.
#[derive(Debug, Default, PartialEq, Eq)]
struct Routes {
    /// This node, once it is a member.
    me: NodeId,
    next: BTreeMap<NodeId, NodeId>,
}

/// The ways to the other members.
#[derive(Debug)]
pub(super) struct Ways {
    transport: Arc<Transport>,
    links: watch::Receiver<Arc<BTreeMap<NodeId, Link>>>,
    /// Whether no connection is down, so that nothing else need be looked at.
    whole: AtomicBool,
    routes: watch::Sender<Arc<Routes>>,
    /// When each node was last heard, since something has been down.
    heard: Mutex<BTreeMap<NodeId, Instant>>,
    relays: Semaphore,
    metrics: Arc<Metrics>,
}

impl Ways {
    pub(super) fn new(transport: Arc<Transport>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            links: transport.links(),
            transport,
            whole: AtomicBool::new(true),
            routes: watch::Sender::default(),
            heard: Mutex::default(),
            relays: Semaphore::new(RELAYS_MAX),
            metrics,
        })
    }

    /// Sends a frame to a member, or drops it. `write` appends its body, under a lock.
    pub(super) fn send(&self, to: NodeId, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) {
        let Some((me, next)) = self.next(to) else {
            self.transport.send(to, kind as u8, write);
            return;
        };
        let relay = Relay { origin: me, to, hops: HOPS_MAX, kind: kind as u8, within_ms: 0 };
        let sent = self.transport.send(next, Kind::Relay as u8, |into| {
            wire::put(&relay, into);
            write(into);
        });
        self.metrics.relays_sent.inc();
        if !sent {
            self.metrics.relays_dropped.inc();
        }
    }

    /// Sends a request to a member and waits for the answer.
    ///
    /// # Errors
    /// A [`CallError`] that says whether the request may have been delivered. It comes as soon as
    /// the connection falls silent, if there is another way to ask again.
    pub(super) async fn call(
        &self,
        to: NodeId,
        kind: Kind,
        body: &[u8],
        within: Duration,
    ) -> Result<Bytes, CallError> {
        let mut routes = self.routes.subscribe();
        let next = self.next(to);
        let answer = async {
            let Some((me, next)) = next else {
                let put = |into: &mut Vec<u8>| into.extend_from_slice(body);
                return self.transport.call(to, kind as u8, put, within).await;
            };
            let within_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
            let relay = Relay { origin: me, to, hops: HOPS_MAX, kind: kind as u8, within_ms };
            self.metrics.relays_sent.inc();
            self.ask_next(next, &relay, body).await
        };
        let used = next.map_or(to, |(_, next)| next);
        let another = |routes: &Arc<Routes>| routes.next.get(&to).is_some_and(|next| *next != used);
        tokio::select! {
            biased;
            answer = answer => answer,
            Ok(_) = routes.wait_for(another) => Err(CallError::Lost),
        }
    }

    /// Asks the next on a request's way.
    async fn ask_next(&self, next: NodeId, relay: &Relay, body: &[u8]) -> Result<Bytes, CallError> {
        let put = |into: &mut Vec<u8>| {
            wire::put(relay, into);
            into.extend_from_slice(body);
        };
        let within = Duration::from_millis(relay.within_ms.into());
        let answer = self.transport.call(next, Kind::Relay as u8, put, within).await?;
        match Relayed::decode(&answer) {
            Relayed::Answer(answer) => Ok(answer),
            Relayed::NotSent => Err(CallError::NotSent),
            Relayed::Lost => Err(CallError::Lost),
        }
    }

    /// Passes on a frame that is for another member.
    pub(super) fn pass_on(&self, relay: &Relay, body: &[u8]) {
        let sent = self.onward(relay).is_some_and(|(next, relay)| {
            self.transport.send(next, Kind::Relay as u8, |into| {
                wire::put(&relay, into);
                into.extend_from_slice(body);
            })
        });
        self.count(sent);
    }

    /// Passes on a request that is for another member, and its answer back.
    pub(super) async fn pass_on_request(&self, relay: &Relay, body: &[u8]) -> Relayed {
        let (Some((next, relay)), Ok(_place)) = (self.onward(relay), self.relays.try_acquire())
        else {
            self.count(false);
            return Relayed::NotSent;
        };
        let answer = self.ask_next(next, &relay, body).await;
        self.count(answer.is_ok());
        match answer {
            Ok(answer) => Relayed::Answer(answer),
            Err(CallError::NotSent) => Relayed::NotSent,
            Err(CallError::Lost | CallError::TimedOut) => Relayed::Lost,
        }
    }

    /// To whom a message is passed on, and as what; `None` if it has been on its way for too long,
    /// or would go back.
    fn onward(&self, relay: &Relay) -> Option<(NodeId, Relay)> {
        let hops = relay.hops.checked_sub(1)?;
        let next = self.next(relay.to).map_or(relay.to, |(_, next)| next);
        (next != relay.origin).then_some((next, Relay { hops, ..*relay }))
    }

    fn count(&self, passed_on: bool) {
        match passed_on {
            true => self.metrics.relays_passed_on.inc(),
            false => self.metrics.relays_dropped.inc(),
        }
    }

    /// Something that a member said has come, by whatever way.
    pub(super) fn heard(&self, node: NodeId) {
        if !self.is_whole() {
            self.heard.lock().insert(node, Instant::now());
        }
    }

    /// Whether no connection is down.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    /// For how long a node has been out of touch; `None` if it is in touch.
    pub(super) fn silent_for(&self, node: NodeId) -> Option<Duration> {
        let silent = match self.links.borrow().get(&node).map(|link| link.state) {
            Some(State::Up) => return None,
            Some(State::Down { since, .. }) => since.elapsed(),
            None => NEVER_HEARD,
        };
        match self.heard.lock().get(&node).map(Instant::elapsed) {
            Some(heard) if heard < IN_TOUCH => None,
            Some(heard) => Some(heard.min(silent)),
            None => Some(silent),
        }
    }

    /// This node, and the member by way of which a node is reached, where that is so.
    fn next(&self, to: NodeId) -> Option<(NodeId, NodeId)> {
        if self.is_whole() {
            return None;
        }
        let routes = self.routes.borrow();
        routes.next.get(&to).map(|next| (routes.me, *next))
    }

    /// Finds the routes anew. Answers the members that neither a connection nor a route leads to,
    /// of those that were dialled.
    pub(super) fn renew(
        &self,
        me: NodeId,
        topology: &Topology,
        reports: &BTreeMap<NodeId, Arc<Report>>,
        now: Duration,
    ) -> BTreeSet<NodeId> {
        let links = self.links.borrow().clone();
        let is_tried = |link: &Link| !matches!(link.state, State::Down { why: Down::Untried, .. });
        let whole = links.values().all(|link| link.is_up() || !is_tried(link));
        let mut lost = BTreeSet::new();
        let mut next = BTreeMap::new();
        if !links.values().all(Link::is_up) {
            let known = known_links(me, &links, topology, reports, now);
            let routes = route::routes(me, &known);
            for (node, link) in links.iter().filter(|(_, link)| !link.is_up()) {
                match routes.get(node) {
                    Some(route) => drop(next.insert(*node, route.next)),
                    None if is_tried(link) => drop(lost.insert(*node)),
                    None => {}
                }
            }
        }
        self.whole.store(whole && next.is_empty(), Ordering::Relaxed);
        let new = Arc::new(Routes { me, next });
        self.routes.send_if_modified(|present| {
            let changed = *present != new;
            *present = new;
            changed
        });
        lost
    }
}

/// The links between members that work, as far as this node knows at `now`.
fn known_links(
    me: NodeId,
    links: &BTreeMap<NodeId, Link>,
    topology: &Topology,
    reports: &BTreeMap<NodeId, Arc<Report>>,
    now: Duration,
) -> Links {
    let is_member = |node: &NodeId| topology.members.contains_key(node);
    let own = links.iter().filter(|(_, link)| link.is_up()).map(|(node, _)| *node);
    let mut known = Links::from([(me, own.filter(is_member).collect())]);
    for (node, report) in reports {
        if *node == me || now.saturating_sub(report.at) > REPORT_FRESH {
            continue;
        }
        let up = report.reachable.iter().filter(|(_, link)| **link == controller::Link::Up);
        known.insert(*node, up.map(|(node, _)| *node).filter(is_member).collect());
    }
    known
}

/// Takes a broken connection for what it may mean: a leader to replace, a report to be made.
pub(super) async fn follow_links(cluster: Arc<Cluster>) {
    let mut links = cluster.transport().links();
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
                cluster.consensus().elect(*node);
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
