//! What other nodes send to port 7701, handed to whom it is for; and the way back to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::consensus;
use crate::coordinator::Coordinator;
use crate::peer::{self, Identity, Link, State, Transport};
use crate::replication::{Call, CallError, Carrier};
use crate::shard::Envelope;
use crate::topology::{Announcement, Cluster, NodeId};
use crate::wire::{self, Kind};

use super::cluster;
use super::inquiry;
use super::newborn::Nursery;
use super::pressure;

/// A node that is no member's peer counts as silent for so long.
const NEVER_HEARD: Duration = Duration::from_secs(3600);

/// What a node says over a connection of its own, before it is a member, or to one that is none.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Knock {
    /// A newborn knocks: [`crate::birth::Newborn`], encoded.
    Newborn(Vec<u8>),
    /// A newborn asks to be let in.
    Join(Announcement),
    /// A member tells a newborn that its cluster knows the newborn's name.
    Member,
}

/// The answer to a [`Knock`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum KnockReply {
    /// [`crate::birth::Answer`], encoded.
    Birth(Vec<u8>),
    /// The newborn is a member now.
    Joined {
        /// Its number.
        node: NodeId,
        /// Of this cluster.
        cluster: Cluster,
    },
    /// It is not let in, and why.
    Refused(String),
    /// Ask again.
    NotNow,
    /// Heard.
    Noted,
}

/// Hands over what other nodes send.
pub(super) struct Peers {
    pub(super) coordinator: Coordinator,
    /// While this node is being born.
    pub(super) nursery: OnceLock<Arc<Nursery>>,
    /// From then on.
    pub(super) cluster: OnceLock<Weak<cluster::Cluster>>,
}

impl Peers {
    pub(super) fn new(coordinator: Coordinator) -> Arc<Self> {
        Arc::new(Self { coordinator, nursery: OnceLock::new(), cluster: OnceLock::new() })
    }

    fn cluster(&self) -> Option<Arc<cluster::Cluster>> {
        self.cluster.get().and_then(Weak::upgrade)
    }

    async fn knocked(&self, from: &Identity, body: &[u8]) -> KnockReply {
        let Ok(knock) = wire::get::<Knock>(body) else { return KnockReply::NotNow };
        if let Some(cluster) = self.cluster() {
            return cluster.knocked(knock).await;
        }
        match self.nursery.get() {
            Some(nursery) => nursery.knocked(from, knock),
            None => KnockReply::NotNow,
        }
    }
}

impl peer::Handler for Peers {
    fn frames(&self, from: &Identity, frames: &mut dyn Iterator<Item = (u8, Bytes)>) {
        let Some(cluster) = self.cluster() else { return };
        let mut envelopes: Vec<Envelope> = Vec::new();
        for (kind, body) in frames {
            match Kind::from_byte(kind) {
                Some(Kind::Shard) => match wire::get_envelope(&body) {
                    Ok(envelope) if Some(envelope.from.node) == from.node => {
                        envelopes.push(envelope);
                    }
                    Ok(_) => tracing::debug!(from = from.name, "a message in another's name"),
                    Err(error) => tracing::debug!(from = from.name, %error, "message dropped"),
                },
                Some(Kind::Report) => cluster.reported(from, &body),
                Some(Kind::Pressure) if from.is_member() => pressure::relieve(&cluster, &body),
                _ => tracing::debug!(from = from.name, kind, "an unknown kind of message"),
            }
        }
        // A log that has failed says so to the server, which then stops.
        let _ = cluster.replication().receive(envelopes.into_iter());
    }

    async fn request(&self, from: &Identity, kind: u8, body: Bytes) -> Bytes {
        let reply = match Kind::from_byte(kind) {
            Some(Kind::Client) if from.is_member() => match wire::get_ask(&body) {
                Ok(ask) => wire::to_vec(&self.coordinator.answer(ask).await),
                Err(error) => {
                    tracing::debug!(from = from.name, %error, "a question that makes no sense");
                    Vec::new()
                }
            },
            Some(Kind::Consensus) if from.is_member() => match self.cluster() {
                Some(cluster) => return cluster.consensus().handle(body).await,
                None => Vec::new(),
            },
            Some(Kind::Inquiry) if from.is_member() => match self.cluster() {
                Some(cluster) => inquiry::answer(&cluster, &body).await,
                None => Vec::new(),
            },
            Some(Kind::Knock) => wire::to_vec(&self.knocked(from, &body).await),
            _ => Vec::new(),
        };
        Bytes::from(reply)
    }
}

/// The way to the other members.
#[derive(Debug)]
pub(super) struct PeerCarrier {
    transport: Arc<Transport>,
    links: watch::Receiver<Arc<BTreeMap<NodeId, Link>>>,
    /// Whether no link is down; kept up to date by the cluster.
    whole: Arc<AtomicBool>,
}

impl PeerCarrier {
    pub(super) fn new(transport: Arc<Transport>, whole: Arc<AtomicBool>) -> Self {
        let links = transport.links();
        Self { transport, links, whole }
    }
}

impl Carrier for PeerCarrier {
    fn send(&self, envelope: &Envelope) {
        let put = |into: &mut Vec<u8>| wire::put(envelope, into);
        self.transport.send(envelope.to.node, Kind::Shard as u8, put);
    }

    fn call(&self, to: NodeId, ask: Vec<u8>, timeout: Duration) -> Call<'_> {
        Box::pin(async move {
            let put = |into: &mut Vec<u8>| into.extend_from_slice(&ask);
            let answer = self.transport.call(to, Kind::Client as u8, put, timeout).await;
            answer.map_err(|error| match error {
                peer::CallError::NotSent => CallError::NotSent,
                peer::CallError::Lost | peer::CallError::TimedOut => CallError::Lost,
            })
        })
    }

    fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    fn silent_for(&self, node: NodeId) -> Option<Duration> {
        match self.links.borrow().get(&node).map(|link| link.state) {
            Some(State::Up) => None,
            Some(State::Down { since, .. }) => Some(Instant::now() - since),
            None => Some(NEVER_HEARD),
        }
    }
}

/// How consensus reaches other members.
pub(super) fn consensus_call(transport: &Arc<Transport>) -> consensus::Call {
    let transport = transport.clone();
    Arc::new(move |to, _addr, body, timeout| {
        let transport = transport.clone();
        async move {
            let put = |into: &mut Vec<u8>| into.extend_from_slice(&body);
            let answer = transport.call(to, Kind::Consensus as u8, put, timeout).await;
            answer.map_err(|error| match error {
                peer::CallError::NotSent => consensus::CallError::NotSent,
                peer::CallError::Lost => consensus::CallError::Lost,
                peer::CallError::TimedOut => consensus::CallError::TimedOut,
            })
        }
        .boxed()
    })
}
