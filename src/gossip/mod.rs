//! Who seems alive: UDP datagrams between all nodes, sealed with the cluster's secret.
//!
//! foca spreads who the members are, where they are reached and which life they are in (SWIM with
//! suspicion; Das, Gupta, Motivala 2002). Around it stand sessions, which make a recorded datagram
//! worthless, beats, which make silence measurable, and the watch, which says what silence means.
//! It decides nothing: who owns or leads what is not known here.
//!
//! **Timeouts.** `gossip_interval` is foca's probe period and the time between two beats to each
//! node. A beat names the nodes that its sender has heard itself, so one broken path between two
//! nodes makes nobody silent. A node counts as silent from the last time that it, or somebody who
//! heard it, was heard here.
//!
//! - `suspect_timeout` of silence: [`State::Suspect`].
//! - `dead_timeout` of silence: [`State::Dead`]; already before, between the two, when foca has
//!   the node down. foca has one down that failed a probe, direct and through others, and did not
//!   object within `dead_timeout` less one interval.
//! - foca's verdict on a node that is being heard changes nothing here: the node is told, and comes
//!   back to foca in a later generation. A node that hears nothing may so unsettle foca's members,
//!   but not what is published.
//! - Time in which this process was stopped does not count as anybody's silence.
//!
//! **Identity.** Node number, life, generation. A later life wins, then a later generation. The
//! generation starts at the wall clock's milliseconds, only so that it mostly rises from run to
//! run; where it does not, whoever is greeted says what others know, and the node goes beyond.
//!
//! **Replay.** See `session`: freshness rests on random sessions and tokens that the receiver has
//! given, never on a clock. Clocks may be off by any amount. What is never proven fresh reaches
//! neither foca nor the watch.
//!
//! # Caveats
//! With names and advertised addresses of near their greatest length (255 and 262 bytes) foca has
//! no room to tell of third nodes; such nodes meet only through seeds.

mod datagram;
mod engine;
mod identity;
mod names;
mod refusal;
mod seal;
mod seeds;
mod session;
mod shell;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::net::UdpSocket;
use tokio::sync::watch as published;

use crate::topology::NodeId;
use shell::{Ending, Settings};
use watch::Timeouts;

pub use refusal::{Reason, Refusal};

/// Told of every datagram that is refused, for counting. Called on the gossip task: be quick.
pub type OnRefusal = Arc<dyn Fn(Refusal) + Send + Sync>;

/// Finds the addresses of a `host:port`.
pub type Resolver =
    Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// What gossip starts from.
pub struct Config {
    /// Bound, and used by nobody else.
    pub socket: UdpSocket,
    /// The cluster. Datagrams of others are refused.
    pub cluster_id: u128,
    /// The cluster's secrets: the first seals, all open. Empty: nothing is sealed.
    pub secrets: Vec<Vec<u8>>,
    /// What this node says of itself.
    pub me: Peer,
    /// Time between two rounds; `gossip_interval`.
    pub interval: Duration,
    /// Silence after which a node is suspected.
    pub suspect_timeout: Duration,
    /// Silence after which a node is taken for dead; above `suspect_timeout`.
    pub dead_timeout: Duration,
    /// Told of every datagram that is refused.
    pub on_refusal: OnRefusal,
    /// Finds addresses; usually [`system_resolver`].
    pub resolver: Resolver,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// This life of its memory. Later ones are higher.
    pub life: u64,
    /// Where it is reached: `host:port`. A name is resolved again when the node falls silent.
    pub addr: String,
}

/// Another node, as it seems from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it says of itself.
    pub peer: Peer,
    /// How it seems.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// Whether its own datagrams come in here: not if none did for `suspect_timeout`, even if
    /// others hear it.
    pub is_heard_here: bool,
    /// Where it is reached at present; `None` while its name is not resolved.
    pub addr: Option<SocketAddr>,
}

/// How a node seems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It is heard.
    Alive,
    /// It has been silent for `suspect_timeout`.
    Suspect,
    /// It has been silent for `dead_timeout`, or foca has given it up.
    Dead,
    /// It said that it leaves.
    Left,
}

/// The nodes that are seen from here, without this one.
pub type Members = Arc<BTreeMap<NodeId, Seen>>;

/// Resolves names as the system does.
pub fn system_resolver() -> Resolver {
    Arc::new(|name| {
        Box::pin(async move { tokio::net::lookup_host(name).await.map(Iterator::collect) })
    })
}

/// This node's part in the gossip: one task, which ends with [`Gossip::leave`], [`Gossip::stop`],
/// or when this is dropped.
#[derive(Debug)]
pub struct Gossip {
    settings: published::Sender<Settings>,
    members: published::Receiver<Members>,
}

impl Gossip {
    /// Starts; to be called within a Tokio runtime. Nobody is known yet: see
    /// [`Gossip::set_seeds`].
    pub fn start(config: Config) -> Self {
        let (settings, new_settings) = published::channel(Settings::of(&config));
        let (publish, members) = published::channel(Members::default());
        tokio::spawn(shell::run(config, new_settings, publish));
        Self { settings, members }
    }

    /// The nodes seen from here. Published at each change; closed when the gossip has ended.
    pub fn members(&self) -> published::Receiver<Members> {
        self.members.clone()
    }

    /// Knocks at these addresses, `host:port`, from now on: each until a living node answers from
    /// it, and again when that falls silent. Names are resolved every few seconds, and each
    /// address that a name leads to counts for itself. One's own address may be among them.
    pub fn set_seeds(&self, seeds: Vec<String>) {
        self.change(|settings| settings.seeds = seeds);
    }

    /// Uses other secrets from now on. To rotate: first give all nodes `[old, new]`, then
    /// `[new, old]`, then `[new]`.
    pub fn set_secrets(&self, secrets: Vec<Vec<u8>>) {
        self.change(|settings| settings.secrets = secrets);
    }

    /// Uses other timeouts from now on.
    pub fn set_timeouts(&self, suspect: Duration, dead: Duration) {
        self.change(|settings| settings.timeouts = Timeouts { suspect, dead });
    }

    /// Tells the others that this node leaves, and ends. Takes a moment, since UDP is told thrice.
    pub async fn leave(&self) {
        self.change(|settings| settings.ending = Ending::Leave);
        self.ended().await;
    }

    /// Ends without a word. To the others the node falls silent.
    pub async fn stop(&self) {
        self.change(|settings| settings.ending = Ending::Stop);
        self.ended().await;
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) {
        self.settings.send_modify(change);
    }

    async fn ended(&self) {
        let mut members = self.members.clone();
        // The task owns the other end; only when it is gone does this fail.
        while members.changed().await.is_ok() {}
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secrets.
        f.debug_struct("Config")
            .field("socket", &self.socket)
            .field("me", &self.me)
            .field("interval", &self.interval)
            .field("suspect_timeout", &self.suspect_timeout)
            .field("dead_timeout", &self.dead_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
