//! The connections between nodes: who is at the other end, whether it lives, and bytes both ways.
//!
//! Each node dials each other one and sends its own frames and requests over the connection that
//! it dialled; answers come back on the same. A [`Transport`] owns all of a node's connections and
//! their tasks. Invariants: nothing is handed over before both sides have proved that they know
//! the cluster's secret (or, where there is none, have said so); a connection is to the one node
//! that it was dialled for; what one node does not read waits in that node's outbox alone, which
//! is bounded. It knows nothing of what it carries.
//!
//! **Layers**, from the wire up: TLS, or `record`s sealed with a key that follows from the secret,
//! or neither; `hello` and `handshake`, by which two nodes introduce themselves; `frame`s.
//!
//! **Evidence.** [`Transport::links`] says at once when a connection is refused or reset, and when
//! nothing was heard for [`Timing::silent_after`] though this process was awake. A connection that
//! is silent stays open, and carries again when it is heard, until [`Timing::close_after`].
//!
//! # Caveats
//! A secret that is taken back ends no connection that was opened with it; restart the node that
//! must not be talked to. A body that is kept keeps the block of memory alive that it was read
//! into, up to some 64 KiB for a short one.

mod accepted;
mod addresses;
mod calls;
mod connect;
mod dialler;
mod frame;
mod handshake;
mod hello;
mod knock;
mod link;
mod listener;
mod outbox;
mod record;
mod refusal;
mod registry;
mod secret;
mod shared;
mod strangers;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::entry::Timestamp;
use crate::topology::{NodeId, Roster};

use dialler::Dialler;
use frame::Head;
use secret::Secrets;
use shared::Shared;

pub use addresses::Source;
pub use calls::CallError;
pub use frame::FRAME_BYTES_MAX;
pub use hello::Identity;
pub use knock::KnockError;
pub use link::{Down, Link, State};
pub use outbox::OUTBOX_BYTES_MAX;
pub use refusal::{Refusal, Refusals};
pub use shared::Timing;
pub use tls::Tls;

/// How long [`Transport::stop`] waits for requests under way and for what is queued.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// How long it then waits for tasks that were told to end.
const END_GRACE: Duration = Duration::from_millis(200);

/// What a transport is started with.
#[derive(Debug)]
pub struct Config {
    /// Where other nodes are heard, bound already.
    pub listen: TcpListener,
    /// Who this node is.
    pub identity: Identity,
    /// The cluster's secrets, the preferred one first. None: whoever reaches the port may talk.
    pub secrets: Vec<Vec<u8>>,
    /// With it, all connections are TLS, and both sides show a certificate.
    pub tls: Option<Tls>,
    /// The intervals.
    pub timing: Timing,
}

/// A node to keep a connection to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, for log lines.
    pub name: String,
    /// Where the topology has it: host:port, resolved anew each time. Where it is heard to be
    /// since is tried first.
    pub addr: String,
}

/// Who is given what other nodes send.
pub trait Handler: Send + Sync + 'static {
    /// One-way frames of one member, in the order in which it sent them, each with its kind. All
    /// that one read brought come at once. Called on the connection's own task: must not block.
    ///
    /// A body shares the memory of all that was read with it; copy what is to be kept for long.
    fn frames(&self, from: &Identity, frames: &mut dyn Iterator<Item = (u8, Bytes)>);

    /// A request; what it returns goes back as the answer. `from` is a member, or a newborn
    /// without a cluster. Runs as a task of its own, after all frames that were sent before it
    /// have been handed over; it is brought to its end also when the connection breaks.
    fn request(&self, from: &Identity, kind: u8, body: Bytes)
    -> impl Future<Output = Bytes> + Send;
}

/// A node's connections to others. Dropping it ends them at once; [`Transport::stop`] is gentler.
pub struct Transport {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Transport {
    /// Starts to listen. `handler` is given what others send. To be called within a runtime.
    ///
    /// # Errors
    /// The listener's address cannot be told, or the identity has texts that others would refuse:
    /// empty, longer than a host name and port, or with control characters.
    pub fn start<H: Handler>(config: Config, handler: Arc<H>) -> io::Result<Self> {
        let local_addr = config.listen.local_addr()?;
        let Config { listen, identity, secrets, tls, timing } = config;
        if !identity.is_sound() {
            let what = "node_id or the advertised address is empty, too long, or not plain text";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let shared = Arc::new(Shared::new(identity, secrets, tls, timing));
        shared.tracker.spawn(listener::listen(Arc::clone(&shared), listen, handler));
        Ok(Self { shared, local_addr })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Takes on another identity: after founding or joining. Members' connections under the old
    /// one are closed and dialled again; single requests are not disturbed.
    pub fn set_identity(&self, identity: Identity) {
        self.shared.renew(identity);
    }

    /// Takes other secrets for connections to come; those that stand are kept.
    pub fn set_secrets(&self, secrets: Vec<Vec<u8>>) {
        self.shared.secrets.store(Arc::new(Secrets::new(secrets)));
    }

    /// Takes other certificates for connections to come; those that stand are kept.
    pub fn set_tls(&self, tls: Option<Tls>) {
        self.shared.tls.store(tls.map(Arc::new));
    }

    /// Whom to keep a connection to. This node itself may be among them and is left out. A
    /// connection to a node that stays is kept, also if its address has changed.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, Peer>) {
        let _change = self.shared.diallers_change.lock();
        if self.shared.stopping.is_cancelled() {
            return;
        }
        let old = self.shared.diallers.load_full();
        let mut new = BTreeMap::new();
        let mut added = Vec::new();
        for (node, peer) in peers {
            let dialler = match old.get(&node) {
                Some(dialler) => {
                    dialler.retarget(&peer);
                    Arc::clone(dialler)
                }
                None => {
                    let dialler = Arc::new(Dialler::new(node, peer));
                    added.push(Arc::clone(&dialler));
                    dialler
                }
            };
            new.insert(node, dialler);
        }
        let new = Arc::new(new);
        self.shared.diallers.store(Arc::clone(&new));
        for (_, dialler) in old.iter().filter(|(node, _)| !new.contains_key(node)) {
            dialler.remove();
        }
        for dialler in added {
            self.shared.tracker.spawn(dialler.run(Arc::clone(&self.shared)));
        }
    }

    /// Takes note that a peer is said to be at `addr`, host:port: it is dialled there next.
    pub fn hear_address(&self, node: NodeId, source: Source, addr: &str) {
        if let Some(dialler) = self.shared.diallers.load().get(&node) {
            dialler.hear(source, addr);
        }
    }

    /// Where a peer may be, the likeliest address first.
    pub fn addresses(&self, node: NodeId) -> Vec<String> {
        self.shared.diallers.load().get(&node).map(|d| d.addresses()).unwrap_or_default()
    }

    /// Who is a member, and which numbers were given. Who was a member and is none any more is told
    /// so, on a connection that stands or when it comes, and is not listened to.
    pub fn set_roster(&self, roster: Roster) {
        self.shared.roster.send_if_modified(|known| {
            let changed = *known != roster;
            *known = roster;
            changed
        });
    }

    /// The member that says that this node was removed from the cluster, once one has said so on a
    /// connection on which both have proved that they know the cluster's secret.
    pub fn removed_by(&self) -> watch::Receiver<Option<String>> {
        self.shared.removed_by.subscribe()
    }

    /// Sends a frame of `kind` to a member, its body appended by `write` to what waits there
    /// already: under a lock, so `write` must be short, and must not send. False if it was
    /// dropped: there is no connection, more than [`OUTBOX_BYTES_MAX`] would wait, or it is longer
    /// than [`FRAME_BYTES_MAX`]. True promises nothing.
    pub fn send(&self, to: NodeId, kind: u8, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let diallers = self.shared.diallers.load();
        let sent = diallers.get(&to).and_then(|dialler| {
            dialler.with_lane(|lane| lane.outbox.push(Head::OneWay { kind }, write))
        });
        sent.unwrap_or(false)
    }

    /// Sends a request of `kind` to a member, its body appended by `body` as in
    /// [`Transport::send`], and waits for the answer.
    ///
    /// # Errors
    /// A [`CallError`] that says whether the request may have been delivered.
    pub async fn call(
        &self,
        to: NodeId,
        kind: u8,
        body: impl FnOnce(&mut Vec<u8>),
        time_max: Duration,
    ) -> Result<Bytes, CallError> {
        let lane = self.shared.diallers.load().get(&to).and_then(|dialler| dialler.lane());
        let lane = lane.ok_or(CallError::NotSent)?;
        let mut call = lane.calls.begin().ok_or(CallError::NotSent)?;
        if !lane.outbox.push(Head::Request { number: call.number, kind }, body) {
            return Err(CallError::NotSent);
        }
        timeout(time_max, call.wait()).await.unwrap_or(Err(CallError::TimedOut))
    }

    /// Sends one request of `kind` over a connection of its own to whoever is at `addr`
    /// (host:port). Who answered, and the answer.
    ///
    /// # Errors
    /// A [`KnockError`].
    pub async fn call_addr(
        &self,
        addr: &str,
        kind: u8,
        body: &[u8],
        time_max: Duration,
    ) -> Result<(Identity, Bytes), KnockError> {
        knock::knock(&self.shared, addr, kind, body, time_max).await
    }

    /// How the connection to each peer stands, published as it changes. Measurements alone are
    /// published once a second.
    pub fn links(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, Link>>> {
        self.shared.links.watch()
    }

    /// How often this node refused others, or was refused.
    pub fn refusals(&self) -> &Refusals {
        &self.shared.refusals
    }

    /// Ends all connections: nothing new is begun; requests under way and frames that wait are
    /// given a second.
    pub async fn stop(&self) {
        {
            let _change = self.shared.diallers_change.lock();
            self.shared.stopping.cancel();
        }
        self.shared.tracker.close();
        if timeout(STOP_GRACE, self.shared.tracker.wait()).await.is_err() {
            self.shared.ended.cancel();
            // What does not end now is abandoned to the runtime's end.
            let _ = timeout(END_GRACE, self.shared.tracker.wait()).await;
        }
        self.shared.ended.cancel();
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        self.shared.ended.cancel();
    }
}

fn fill_random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system gives random bytes");
}

fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}

fn wall_millis() -> u64 {
    Timestamp::now().0
}
