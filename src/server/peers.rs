//! What other nodes send to port 7701, handed to whom it is for; and the way back to them.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};

use crate::consensus;
use crate::coordinator::Coordinator;
use crate::peer::{self, Identity};
use crate::replication::{Call, CallError, Carrier};
use crate::shard::Envelope;
use crate::topology::{Announcement, Cluster, NodeId};
use crate::wire::{self, Kind, Relay, Relayed};

use super::cluster;
use super::inquiry;
use super::newborn::Nursery;
use super::pressure;
use super::ways::Ways;

/// What a node says over a connection of its own: before it is a member, to one that is none, or to
/// one that it has not found yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Knock {
    /// A newborn knocks: [`crate::birth::Newborn`], encoded.
    Newborn(Vec<u8>),
    /// A newborn asks to be let in.
    Join(Announcement),
    /// A member tells a newborn that its cluster knows the newborn's name.
    Member,
    /// A member asks where others are.
    Whereabouts,
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
    /// Where each member is reached that this one is connected with, and this one itself.
    Whereabouts(Vec<(NodeId, String)>),
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
            return cluster.knocked(from, knock).await;
        }
        match self.nursery.get() {
            Some(nursery) => nursery.knocked(from, knock),
            None => KnockReply::NotNow,
        }
    }
}

impl peer::Handler for Peers {
    fn frames(&self, from: &Identity, frames: &mut dyn Iterator<Item = (u8, Bytes)>) {
        let (Some(cluster), Some(sender)) = (self.cluster(), from.node) else { return };
        cluster.ways().heard(sender);
        let mut envelopes: Vec<Envelope> = Vec::new();
        for (kind, body) in frames {
            match Kind::from_byte(kind) {
                Some(Kind::Relay) => match passed_here(&cluster, &body) {
                    Some((relay, kind, body)) if relay.to == cluster.me => {
                        cluster.ways().heard(relay.origin);
                        take(&cluster, relay.origin, kind, &body, &mut envelopes);
                    }
                    Some((relay, _, body)) => cluster.ways().pass_on(&relay, &body),
                    None => {}
                },
                Some(kind) => take(&cluster, sender, kind, &body, &mut envelopes),
                None => tracing::debug!(from = from.name, kind, "an unknown kind of message"),
            }
        }
        // A log that has failed says so to the server, which then stops.
        let _ = cluster.replication().receive(envelopes.into_iter());
    }

    async fn request(&self, from: &Identity, kind: u8, body: Bytes) -> Bytes {
        match Kind::from_byte(kind) {
            Some(Kind::Knock) => wire::to_vec(&self.knocked(from, &body).await).into(),
            Some(_) if !from.is_member() => Bytes::new(),
            Some(Kind::Relay) => match self.cluster() {
                Some(cluster) => self.passed(&cluster, &body).await.encode(),
                None => Relayed::NotSent.encode(),
            },
            Some(kind) => self.answer(kind, body).await,
            None => Bytes::new(),
        }
    }
}

impl Peers {
    /// Answers what a member asks.
    async fn answer(&self, kind: Kind, body: Bytes) -> Bytes {
        match kind {
            Kind::Client => match wire::get_ask(&body) {
                Ok(ask) => wire::to_vec(&self.coordinator.answer(ask).await).into(),
                Err(error) => {
                    tracing::debug!(%error, "a question that makes no sense");
                    Bytes::new()
                }
            },
            Kind::Consensus => match self.cluster() {
                Some(cluster) => cluster.consensus().handle(body).await,
                None => Bytes::new(),
            },
            Kind::Inquiry => match self.cluster() {
                Some(cluster) => inquiry::answer(&cluster, &body).await.into(),
                None => Bytes::new(),
            },
            Kind::StopLease => match self.cluster() {
                Some(cluster) => cluster.answer_about_lease(&body).await,
                None => Bytes::new(),
            },
            _ => Bytes::new(),
        }
    }

    /// A request has come by way of a member: for this node, or to be passed on.
    async fn passed(&self, cluster: &cluster::Cluster, body: &Bytes) -> Relayed {
        match passed_here(cluster, body) {
            Some((relay, kind, body)) if relay.to == cluster.me => {
                Relayed::Answer(self.answer(kind, body).await)
            }
            Some((relay, _, body)) => cluster.ways().pass_on_request(&relay, &body).await,
            None => Relayed::NotSent,
        }
    }
}

/// Reads what came by way of a member, if another member said it.
fn passed_here(cluster: &cluster::Cluster, body: &Bytes) -> Option<(Relay, Kind, Bytes)> {
    let passed = wire::get_relay(body);
    let passed = passed.inspect_err(|error| tracing::debug!(%error, "a relay is dropped")).ok()?;
    let origin = passed.0.origin;
    let is_other = origin != cluster.me && cluster.topology_now().members.contains_key(&origin);
    is_other.then_some(passed)
}

/// Takes a message of a member; those of shards are gathered.
fn take(
    cluster: &cluster::Cluster,
    from: NodeId,
    kind: Kind,
    body: &[u8],
    envelopes: &mut Vec<Envelope>,
) {
    match kind {
        Kind::Shard => match wire::get_envelope(body) {
            Ok(envelope) if envelope.from.node == from => envelopes.push(envelope),
            Ok(_) => tracing::debug!(%from, "a message in another's name"),
            Err(error) => tracing::debug!(%from, %error, "message dropped"),
        },
        Kind::Report => cluster.reported(from, body),
        Kind::Pressure => pressure::relieve(cluster, body),
        _ => tracing::debug!(%from, ?kind, "a message of a kind that asks for an answer"),
    }
}

/// The way to the other members, as the shards' messages and clients' requests take it.
#[derive(Debug)]
pub(super) struct PeerCarrier(pub(super) Arc<Ways>);

impl Carrier for PeerCarrier {
    fn send(&self, envelope: &Envelope) {
        self.0.send(envelope.to.node, Kind::Shard, |into| wire::put(envelope, into));
    }

    fn call(&self, to: NodeId, ask: Vec<u8>, timeout: Duration) -> Call<'_> {
        Box::pin(async move {
            let answer = self.0.call(to, Kind::Client, &ask, timeout).await;
            answer.map_err(|error| match error {
                peer::CallError::NotSent => CallError::NotSent,
                peer::CallError::Lost | peer::CallError::TimedOut => CallError::Lost,
            })
        })
    }

    fn is_whole(&self) -> bool {
        self.0.is_whole()
    }

    fn silent_for(&self, node: NodeId) -> Option<Duration> {
        self.0.silent_for(node)
    }
}

/// How consensus reaches other members.
pub(super) fn consensus_call(ways: &Arc<Ways>) -> consensus::Call {
    let ways = ways.clone();
    Arc::new(move |to, _addr, body, timeout| {
        let ways = ways.clone();
        async move {
            let answer = ways.call(to, Kind::Consensus, &body, timeout).await;
            answer.map_err(|error| match error {
                peer::CallError::NotSent => consensus::CallError::NotSent,
                peer::CallError::Lost => consensus::CallError::Lost,
                peer::CallError::TimedOut => consensus::CallError::TimedOut,
            })
        }
        .boxed()
    })
}
