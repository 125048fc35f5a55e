//! Agreement on the topology: one Raft group for the cluster, run by openraft, with its log, its
//! vote and its snapshot in one redb file.
//!
//! Invariant: a [`Topology`] changes on a node only by commands that the group has committed, in
//! the same order everywhere; and whatever Raft relies on is on the disk before it relies on it,
//! whatever the mode of the write-ahead log. Members of the topology are members of the group;
//! which of them vote, the leader decides by [`choose_voters`].
//!
//! It opens no connection: bytes are carried by [`Call`] there and [`Consensus::handle`] here. It
//! never touches a value, and does not decide who is alive or what the topology ought to be.
//!
//! # Elections
//!
//! openraft has no pre-vote, its followers do not vote against a leader that they heard of lately
//! though its process is gone, and its leader votes for any candidate. So its timers are switched
//! off, and whoever would start an election first asks the others (`canvass`): because the
//! connection to the leader broke ([`Consensus::elect`]), each voter at its turn; because the leader
//! resigned; or because no leader was heard of for a while. A node votes as it answered: not while a
//! leader is at work as far as it knows, and at once if none is, by becoming a candidate itself
//! where openraft would stay loyal. So a voter that was cut off, or that alone lost the leader,
//! unseats nobody, and a dead leader is replaced within some round trips.
//!
//! # Caveats
//!
//! A candidate that is cut off in the middle of its election returns with a higher term, and the
//! leader steps down once. A leader that reaches some voters but no majority keeps these from
//! electing another, so it stops its signs of life after two election timeouts.

mod canvass;
mod election;
mod error;
mod log;
mod machine;
mod message;
mod network;
mod propose;
mod steward;
mod store;
#[cfg(test)]
mod tests;
mod voters;

use std::collections::BTreeSet;
use std::fmt;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::SnapshotPolicy;
use openraft::error::{Fatal, InitializeError, RaftError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::topology::{Command, NodeId, Outcome, Rejection, Topology};
use election::Lost;
use log::Log;
use machine::Machine;
use message::{Envelope, Refusal, Reply, Request};
use network::Peers;
use store::Store;

pub use election::Leadership;
pub use error::{Damage, Error, ProposeError, TopologyFormat, Undecided};
pub use network::{Call, CallError};
pub use voters::{VOTERS_MAX, choose_voters};

/// A part of a snapshot that travels in one message, in bytes.
const CHUNK_BYTES: u64 = 1 << 20;

/// A node has this long to take in a part of a snapshot.
const CHUNK_WITHIN: Duration = Duration::from_secs(5);

/// Entries in one message at most; their bytes are bounded besides.
const MESSAGE_ENTRIES_MAX: u64 = 128;

/// Founding has this long: it needs nobody else.
const FOUND_WITHIN: Duration = Duration::from_secs(30);

/// What has come meanwhile, and waits for a slow disk, is not waited for longer at the end.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);

openraft::declare_raft_types!(
    /// What openraft works with here.
    pub(crate) Types:
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        Node = Node,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        Responder = openraft::impls::OneshotResponder<Types>,
        AsyncRuntime = openraft::TokioRuntime,
);

type Raft = openraft::Raft<Types>;
type Entry = openraft::Entry<Types>;
type LogId = openraft::LogId<NodeId>;
type Vote = openraft::Vote<NodeId>;
type StoredMembership = openraft::StoredMembership<NodeId, Node>;
type SnapshotMeta = openraft::SnapshotMeta<NodeId, Node>;
type StorageError = openraft::StorageError<NodeId>;
type Metrics = openraft::RaftMetrics<NodeId, Node>;

/// What the group's membership says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where other nodes reach it: `host:port`.
    pub addr: String,
}

/// How the group works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The leader gives a sign of life this often; openraft rounds it up to one and a half.
    pub heartbeat: Duration,
    /// A follower that has heard of no leader for `election_timeout_max` and then for a random
    /// time between the two starts an election.
    pub election_timeout_min: Duration,
    /// See `election_timeout_min`.
    pub election_timeout_max: Duration,
    /// The nodes that seem dead. They are not made voters, and lose their vote to others in time.
    pub dead: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    /// A voter that has been dead for so long is replaced, if another member can vote.
    pub replace_dead_after: Duration,
    /// The file may be made if it is missing. Not so for a member: without its file it could vote
    /// twice in one term.
    pub may_be_new: bool,
    /// A snapshot is made after so many entries.
    pub snapshot_entries: u64,
    /// So many entries are kept behind a snapshot, for those who are a little late.
    pub kept_entries: u64,
}

impl Config {
    /// The usual times, with the nodes that seem dead as somebody else sees them.
    pub fn new(dead: watch::Receiver<Arc<BTreeSet<NodeId>>>) -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(400),
            election_timeout_max: Duration::from_millis(800),
            dead,
            replace_dead_after: Duration::from_secs(10),
            may_be_new: true,
            snapshot_entries: 1000,
            kept_entries: 200,
        }
    }

    fn raft(&self, name: &str) -> Result<openraft::Config, Error> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: name.to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_timeout_min),
            election_timeout_max: millis(self.election_timeout_max),
            install_snapshot_timeout: millis(CHUNK_WITHIN),
            snapshot_max_chunk_size: CHUNK_BYTES,
            max_payload_entries: MESSAGE_ENTRIES_MAX,
            // Whoever would start an election asks the others first.
            enable_elect: false,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.kept_entries,
            ..openraft::Config::default()
        };
        config.validate().map_err(|e| Error::Config(Arc::new(e)))
    }
}

/// This node's part in the group. Clones share it; [`Consensus::shutdown`] ends it.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    config: Config,
    raft: Raft,
    store: Arc<Store>,
    peers: Peers,
    topology: watch::Receiver<Arc<Topology>>,
    leadership: watch::Sender<Leadership>,
    /// The leader that is to be replaced: its connection broke, or it resigned.
    lost: Mutex<Option<Lost>>,
    /// There is one.
    elect: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for Consensus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consensus").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Consensus {
    /// Takes this node's part up again as its file has it; with a new file it waits to be founded,
    /// or to be addressed by a leader. `name` is this node's, for whoever traces openraft.
    ///
    /// A node that has just got its number opens this before it writes the number down elsewhere;
    /// then a member's file is never rightly missing.
    ///
    /// # Errors
    /// The file cannot be used, or the times in `config` do not go together.
    pub async fn open(
        path: &Path,
        me: NodeId,
        name: &str,
        call: Call,
        config: Config,
    ) -> Result<Self, Error> {
        let raft_config = Arc::new(config.raft(name)?);
        let (path, may_be_new) = (path.to_owned(), config.may_be_new);
        let (store, machine) = log::blocking(move || {
            let store = Store::open(&path, me, may_be_new)?;
            match Machine::load(Arc::clone(&store)) {
                Ok(machine) => Ok((store, machine)),
                Err(e) => {
                    store.close();
                    Err(e)
                }
            }
        })
        .await?;
        let topology = machine.topology();
        let peers = Peers { me, call, topology: topology.clone() };
        let log = Log(Arc::clone(&store));
        let raft = match Raft::new(me, raft_config, peers.clone(), log, machine).await {
            Ok(raft) => raft,
            Err(fatal) => {
                let error = store.cause().unwrap_or_else(|| Error::Ended(Arc::new(fatal)));
                let close = move || {
                    store.close();
                    Ok(())
                };
                log::blocking(close).await?;
                return Err(error);
            }
        };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let leadership = watch::Sender::new(Leadership::unknown());
        let (lost, elect) = (Mutex::new(None), Notify::new());
        let inner = Arc::new(Inner {
            me,
            config,
            raft,
            store,
            peers,
            topology,
            leadership,
            lost,
            elect,
            tasks,
            stop,
        });
        inner.start();
        Ok(Self { inner })
    }

    /// Founds the cluster: a group of this node alone, and in its log `command`, which must be
    /// [`Command::Found`]. If a crash came between the two, or after both, it goes on from there.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Slow`], or what made the group stop.
    pub async fn found(&self, command: Command) -> Result<(), Error> {
        let inner = &self.inner;
        if inner.topology.borrow().cluster.is_some() {
            return Ok(());
        }
        let Command::Found { ref about, founder, .. } = command else {
            return Err(Error::Refused(Rejection::NotFounded));
        };
        if founder != inner.me {
            return Err(Error::Refused(Rejection::NotAMember(founder)));
        }
        let node = Node { name: about.name.clone(), addr: about.peer_addr.clone() };
        match inner.raft.initialize([(inner.me, node)].into_iter().collect::<Nodes>()).await {
            // It was done before.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                unreachable!("this node is the one member")
            }
            Err(RaftError::Fatal(fatal)) => return Err(inner.ended(fatal)),
        }
        match self.propose(command, FOUND_WITHIN).await {
            Ok(Outcome::Rejected(Rejection::Founded)) => Ok(()),
            Ok(Outcome::Rejected(rejection)) => Err(Error::Refused(rejection)),
            Ok(_) => Ok(()),
            Err(ProposeError::TimedOut { within, .. }) => Err(Error::Slow(within)),
            Err(ProposeError::Stopped) => Err(inner.store.cause().unwrap_or(Error::Stopped)),
        }
    }

    /// The topology as it is applied here: at a start at once as it was, then as it changes.
    pub fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        self.inner.topology.clone()
    }

    /// Who leads the group.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Is told once, when the file or Raft fails: the node must then stop.
    pub fn failure(&self) -> watch::Receiver<Option<Error>> {
        self.inner.store.failure()
    }

    /// The connection to a node broke, or the last way to it. If that one leads, and this one
    /// votes, it starts an election at its turn, unless a leader is heard of before, by this node
    /// or by a majority. Costs little when it is wrong.
    pub fn elect(&self, gone: NodeId) {
        self.inner.contest(gone, None);
    }

    /// The voters, and of the others among them those that have all that this node, the leader, has
    /// in its log.
    pub fn successors(&self) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let metrics = self.inner.raft.metrics().borrow().clone();
        let voters = election::voters(&metrics.membership_config);
        let is_level = |node: &NodeId| {
            let matching = metrics.replication.as_ref().and_then(|all| all.get(node).copied());
            matching.flatten().map(|log_id| log_id.index) == metrics.last_log_index
        };
        let mut level = voters.clone();
        level.retain(|node| *node != self.inner.me && is_level(node));
        (voters, level)
    }

    /// As the leader: has another voter lead, which should be level. It is tried; whoever leads
    /// shows in [`Consensus::leadership`].
    pub async fn hand_over(&self, to: NodeId) {
        self.inner.resign(Some(to)).await;
    }

    /// Answers a message of another node's consensus. Any bytes may come.
    pub async fn handle(&self, body: Bytes) -> Bytes {
        let reply = match message::unpack::<Envelope>(&body) {
            Ok(envelope) => self.inner.answer(envelope).await,
            Err(refusal) => Reply::Refused(refusal),
        };
        Bytes::from(message::pack(&reply))
    }

    /// Ends this node's part: a leader says so to the others, and the file is closed, unless its disk
    /// takes too long. What was answered is on the disk in any case.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.stop.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        if inner.leadership.borrow().leads {
            inner.resign(None).await;
        }
        if tokio::time::timeout(SHUTDOWN_WITHIN, inner.end_raft()).await.is_err() {
            tracing::warn!("the topology's file is left as it is: its disk takes too long");
        }
    }
}

type Nodes = std::collections::BTreeMap<NodeId, Node>;

impl Inner {
    async fn end_raft(&self) {
        if let Err(e) = self.raft.shutdown().await {
            tracing::warn!("the topology's Raft ended in disorder: {e}");
        }
        let store = Arc::clone(&self.store);
        let close = move || {
            store.close();
            Ok(())
        };
        if let Err(e) = log::blocking(close).await {
            tracing::warn!("the topology's file was not closed in order: {e}");
        }
    }

    fn start(self: &Arc<Self>) {
        let run = |task: futures_util::future::BoxFuture<'static, ()>| {
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                stop.run_until_cancelled(task).await;
            });
        };
        run(Box::pin(election::observe(Arc::clone(self))));
        run(Box::pin(election::campaign_when_told(Arc::clone(self))));
        run(Box::pin(election::stand_when_due(Arc::clone(self))));
        run(Box::pin(steward::keep_membership(Arc::clone(self))));
    }

    /// Why Raft ended: the file's failure if it has one.
    fn ended(&self, fatal: Fatal<NodeId>) -> Error {
        self.store.cause().unwrap_or_else(|| match fatal {
            Fatal::Stopped => Error::Stopped,
            fatal => Error::Ended(Arc::new(fatal)),
        })
    }

    async fn answer(&self, envelope: Envelope) -> Reply {
        let Envelope { from, to, request } = envelope;
        if to != self.me {
            return Reply::Refused(Refusal::NotMe(self.me));
        }
        if !request.is_sound(from) {
            return Reply::Refused(Refusal::Unsound);
        }
        if self.stop.is_cancelled() {
            return Reply::Refused(Refusal::Stopped);
        }
        let stopped = Reply::Refused(Refusal::Stopped);
        match request {
            Request::Append(append) => {
                self.raft.append_entries(append).await.map_or(stopped, Reply::Append)
            }
            Request::Vote(vote) => self.vote(vote).await.map_or(stopped, Reply::Vote),
            Request::Install(install) => match self.raft.install_snapshot(install).await {
                Ok(response) => Reply::Install(Ok(response.vote)),
                Err(RaftError::APIError(e)) => Reply::Install(Err(e)),
                Err(RaftError::Fatal(_)) => stopped,
            },
            Request::Propose { command, within_ms } => {
                self.propose_here(command, Duration::from_millis(within_ms.into())).await
            }
            Request::Confirm { within_ms } => {
                self.confirm_here(Duration::from_millis(within_ms.into())).await
            }
            Request::Resign { term, to } => {
                if self.raft.metrics().borrow().current_term == term {
                    self.contest(from, Some(to));
                }
                Reply::Noted
            }
            Request::Canvass { last_log } => Reply::Canvassed(self.would_elect(last_log).await),
        }
    }
}
