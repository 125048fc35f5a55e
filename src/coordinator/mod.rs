//! Takes a client's operation to the copies that must do it, and waits for as many as it asks.
//!
//! Any node coordinates for any key. Writes go to the shard's primary, wherever it is; reads to the
//! nearest copy that may answer. While a primary changes, requests are held, within bounds, and
//! asked again under the same request id. It never touches a table or a log itself.

mod list;
mod pursuit;
mod read;
mod request;
mod serve;
mod tickets;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use crate::entry::ShardId;
use crate::metrics::Metrics;
use crate::replica::{Refusal, Replica};
use crate::replication::{CallError, Replication};
use crate::shard::{Condition, Need, Operation, Ordered, Refused, Request};
use crate::topology::{Copies, Seat, Topology};
use crate::wire::{self, Ask, Reply};

pub use pursuit::{Heard, Pursuit, Step};
pub use read::Got;
pub use request::{Consistency, Error, IdempotencyKey, Page, Read, Write, Written};

/// How many copies had a write when it was answered: `2/3`.
pub use crate::shard::Acks;

use tickets::Tickets;

/// How long an operation is held while its primary cannot be reached.
pub const PATIENCE: Duration = Duration::from_secs(7);

/// Operations that are held at a time; beyond that they are refused at once.
const HELD_MAX: usize = 10_000;

/// When to ask again a node that is starting or stopping, or a shard without a primary.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// When to ask again while a shard remembers as many of the clients' own ids as it can: some of
/// them will have been forgotten.
const KEYED_RETRY_AFTER: Duration = Duration::from_secs(30);

const WAL_FAILED: Error =
    Error::Unknown { why: "the write-ahead log cannot be written; the node is stopping" };

const NO_PRIMARY: Error = Error::Unavailable {
    why: "no primary of the key's shard could be reached in time",
    retry_after: RETRY_AFTER,
};

const REMOVED: Error = Error::Unavailable {
    why: "this node was removed from its cluster and serves nobody; ask another one",
    retry_after: RETRY_AFTER,
};

const TOO_FEW: Error = Error::Unknown {
    why: "too few copies acknowledged it in time; read the key before trying again",
};

/// The way to the data; cheap to clone.
#[derive(Clone, Debug)]
pub struct Coordinator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Arc<Metrics>,
    /// Empty while the data is being loaded.
    data: OnceLock<Data>,
    draining: AtomicBool,
    /// The node was removed from its cluster.
    removed: AtomicBool,
    /// Copies that a write waits for that does not say otherwise; 0 for none.
    write_copies: AtomicU32,
    /// Copies that a read asks that does not say otherwise.
    read_copies: AtomicU32,
    held: Semaphore,
    began: Instant,
}

#[derive(Debug)]
struct Data {
    replication: Arc<Replication>,
    topology: watch::Receiver<Arc<Topology>>,
    /// This life of the process, not of its memory: request counters begin again with it.
    life: u64,
    tickets: Box<[Tickets]>,
}

/// Whether requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not yet: the data is being loaded.
    Starting,
    /// They are.
    Serving,
    /// No more: the node is on its way out.
    Draining,
    /// No more: the node was removed from its cluster.
    Removed,
}

/// Keys that a prefix delete removed, or would remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub count: u64,
    /// How many copies had the last of them; `None` if nothing was waited for.
    pub acks: Option<Acks>,
}

impl Coordinator {
    /// A coordinator that refuses everything until it has data to serve.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            metrics,
            data: OnceLock::new(),
            draining: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            write_copies: AtomicU32::new(1),
            read_copies: AtomicU32::new(1),
            held: Semaphore::new(HELD_MAX),
            began: Instant::now(),
        }))
    }

    /// Begins to serve, in a cluster of that topology. `life` must differ between any two lives of
    /// the process: it tells the requests of one, and the cursors, from those of another. A second
    /// call changes nothing.
    pub fn serve(
        &self,
        replication: Arc<Replication>,
        topology: watch::Receiver<Arc<Topology>>,
        life: u64,
    ) {
        let shards = replication.replica().placement().shards();
        let tickets = shards.map(|_| Tickets::default()).collect();
        let _ = self.0.data.set(Data { replication, topology, life, tickets });
    }

    /// Refuses everything from now on.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// The node was removed from its cluster: refuses everything from now on, and what is held.
    pub fn strike_off(&self) {
        self.0.removed.store(true, Ordering::Release);
    }

    fn is_removed(&self) -> bool {
        self.0.removed.load(Ordering::Acquire)
    }

    /// Whether requests are served.
    pub fn phase(&self) -> Phase {
        if self.is_removed() {
            Phase::Removed
        } else if self.0.draining.load(Ordering::Acquire) {
            Phase::Draining
        } else if self.0.data.get().is_none() {
            Phase::Starting
        } else {
            Phase::Serving
        }
    }

    /// Sets how many copies a write waits for that does not say so itself: 0 for none.
    pub fn set_write_copies(&self, copies: u32) {
        self.0.write_copies.store(copies, Ordering::Relaxed);
    }

    /// Sets how many copies a read asks that does not say so itself.
    pub fn set_read_copies(&self, copies: u32) {
        self.0.read_copies.store(copies, Ordering::Relaxed);
    }

    /// Writes one key.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Full`] and [`Error::IdempotencyMismatch`] when nothing was
    /// ordered; [`Error::Unknown`] when it was, or may have been, but may not last.
    pub async fn write(&self, write: Write) -> Result<Written, Error> {
        let data = self.admit()?;
        let shard = data.replica().placement().shard_of(write.key.as_bytes());
        let ticket = data.tickets[usize::from(shard.0)].take();
        let id = match write.idempotency {
            Some(key) => key.id(),
            None => ticket.id(data.life),
        };
        let (need, shows_acks) = self.need_of(&write);
        let Write { key, operation, condition, .. } = write;
        let request = Request { key, operation, condition, id };
        let outcome = self.write_at_primary(data, shard, request, need).await;
        if let Ok((_, acks)) = &outcome {
            self.0.metrics.replica_success.inc_by(u64::from(acks.map_or(1, |acks| acks.had)));
        }
        let (Ordered { verdict, version }, acks) = outcome?;
        Ok(Written { verdict, version, acks: acks.filter(|_| shows_acks) })
    }

    /// What must hold before a write is answered, and whether the client waits for it.
    fn need_of(&self, write: &Write) -> (Option<Need>, bool) {
        let committed = write.condition != Condition::Always
            || matches!(write.operation, Operation::Incr { .. } | Operation::Touch { .. })
            || write.consistency == Consistency::Linearizable;
        let copies = match write.consistency {
            Consistency::Configured => Copies::Count(self.0.write_copies.load(Ordering::Relaxed)),
            Consistency::Async => Copies::Count(0),
            Consistency::One => Copies::Count(1),
            Consistency::Quorum | Consistency::Linearizable => Copies::Majority,
            Consistency::All => Copies::All,
        };
        let waits = copies != Copies::Count(0);
        let need = (waits || committed).then_some(Need { copies, committed });
        (need, waits)
    }

    /// Has a write ordered by the shard's primary, wherever that is.
    async fn write_at_primary(
        &self,
        data: &Data,
        shard: ShardId,
        request: Request,
        need: Option<Need>,
    ) -> Result<(Ordered, Option<Acks>), Error> {
        let began = self.0.began.elapsed();
        // If the primary is here, nobody need be asked who it is.
        let unsure = match data.write_here(request.clone(), need, PATIENCE).await {
            Reply::Ordered(ordered, acks) => return Ok((ordered, acks)),
            Reply::Refused(Refused::NotActive) => false,
            Reply::Unknown if data.has_failed() => return Err(WAL_FAILED),
            Reply::Unknown => true,
            other => return Err(data.error_of(other, false)),
        };
        let ask = Ask::Write { request, need };
        let mut pursuit = Pursuit::new(began, PATIENCE);
        if unsure {
            pursuit.heard(Heard::Deposed);
        }
        let (reply, unsure) = self.pursue(data, shard, &ask, pursuit).await?;
        match reply {
            Reply::Ordered(ordered, acks) => Ok((ordered, acks)),
            other => Err(data.error_of(other, unsure)),
        }
    }

    /// Asks the shard's primary until it answers, or patience ends; also says whether some primary
    /// may have done what was asked.
    async fn ask_primary(
        &self,
        data: &Data,
        shard: ShardId,
        ask: &Ask,
    ) -> Result<(Reply, bool), Error> {
        let pursuit = Pursuit::new(self.0.began.elapsed(), PATIENCE);
        self.pursue(data, shard, ask, pursuit).await
    }

    async fn pursue(
        &self,
        data: &Data,
        shard: ShardId,
        ask: &Ask,
        mut pursuit: Pursuit,
    ) -> Result<(Reply, bool), Error> {
        let mut topology = data.topology.clone();
        let mut held = None;
        loop {
            if self.is_removed() {
                return Err(if pursuit.is_unsure() { TOO_FEW } else { REMOVED });
            }
            let primary = primary_of(&topology.borrow_and_update(), shard);
            match pursuit.next(primary, self.0.began.elapsed()) {
                Step::Ask(seat, left) => {
                    match data.ask_once(shard, seat, ask, left, &mut topology).await {
                        Ok(reply) => return Ok((reply, pursuit.is_unsure())),
                        Err(heard) => pursuit.heard(heard),
                    }
                }
                Step::Pause(pause) => {
                    if held.is_none() {
                        held = Some(self.0.held.try_acquire().map_err(|_| NO_PRIMARY)?);
                    }
                    let _ = tokio::time::timeout(pause, topology.changed()).await;
                }
                Step::NotApplied => return Err(NO_PRIMARY),
                Step::Unknown => return Err(TOO_FEW),
            }
        }
    }

    fn admit(&self) -> Result<&Data, Error> {
        if self.is_removed() {
            return Err(REMOVED);
        }
        let why = match self.0.data.get() {
            Some(data) if !self.0.draining.load(Ordering::Acquire) => return Ok(data),
            Some(_) => "the node is being drained; wait for its return",
            None => "the node is loading its data",
        };
        Err(Error::Unavailable { why, retry_after: RETRY_AFTER })
    }
}

/// The primary that a topology names, and in which epoch.
fn primary_of(topology: &Topology, shard: ShardId) -> Option<(u32, Seat)> {
    topology.shard(shard).map(|configuration| (configuration.epoch, configuration.primary))
}

impl Data {
    fn replica(&self) -> &Arc<Replica> {
        self.replication.replica()
    }

    /// Asks one copy, this node's or another's, until another primary is named.
    async fn ask_once(
        &self,
        shard: ShardId,
        seat: Seat,
        ask: &Ask,
        left: Duration,
        topology: &mut watch::Receiver<Arc<Topology>>,
    ) -> Result<Reply, Heard> {
        let reply = if seat.node == self.replica().me().node {
            self.answer(ask.clone(), left).await
        } else {
            let call = self.replication.carrier().call(seat.node, wire::to_vec(ask), left);
            let moved = topology
                .wait_for(|topology| primary_of(topology, shard).map(|(_, s)| s) != Some(seat));
            tokio::select! {
                answer = call => match answer {
                    Ok(bytes) => wire::get(&bytes).map_err(|_| Heard::Lost)?,
                    Err(CallError::NotSent) => return Err(Heard::NotSent),
                    Err(CallError::Lost) => return Err(Heard::Lost),
                },
                _ = moved => return Err(Heard::Lost),
            }
        };
        match reply {
            Reply::Refused(Refused::NotActive) | Reply::NoCopy => Err(Heard::NotLeading),
            Reply::Unknown => Err(Heard::Deposed),
            reply => Ok(reply),
        }
    }

    /// What the client is told where a reply has no result. `unsure`: some primary may have done
    /// it all the same.
    fn error_of(&self, reply: Reply, unsure: bool) -> Error {
        if unsure {
            return TOO_FEW;
        }
        match reply {
            Reply::Full { used_bytes, limit_bytes } => Error::Full { used_bytes, limit_bytes },
            Reply::Refused(Refused::Mismatch) => Error::IdempotencyMismatch,
            Reply::Refused(Refused::TooManyKeyed) => Error::Unavailable {
                why: "this shard remembers as many Idempotency-Keys as it can",
                retry_after: KEYED_RETRY_AFTER,
            },
            Reply::Refused(Refused::Late) => Error::Unavailable {
                why: "a duplicate came after its request was over",
                retry_after: RETRY_AFTER,
            },
            Reply::Refused(Refused::NotActive) | Reply::NoCopy => NO_PRIMARY,
            _ if self.has_failed() => WAL_FAILED,
            _ => TOO_FEW,
        }
    }

    /// Whether the log has failed: the node is about to stop.
    fn has_failed(&self) -> bool {
        self.replica().wal().failure().borrow().is_some()
    }

    fn reply_of(&self, refusal: Refusal) -> Reply {
        match refusal {
            Refusal::Full => Reply::Full {
                used_bytes: self.replica().budget().used(),
                limit_bytes: self.replica().budget().limit(),
            },
            Refusal::Shard(refused) => Reply::Refused(refused),
            Refusal::Wal(_) => Reply::Unknown,
        }
    }
}
