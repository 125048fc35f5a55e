//! Takes a client's operation to the copies that must do it, and waits for as many as it asks.
//!
//! On one node every shard has one copy, here: a quorum of any size is this node, and what is left
//! to wait for is the write-ahead log. It never touches a table or a log itself.

mod list;
mod request;
mod tickets;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::entry::Timestamp;
use crate::metrics::Metrics;
use crate::replica::{Refusal, Replica};
use crate::store::Lookup;
use crate::wal::Lsn;

pub use request::{Acks, Consistency, Error, IdempotencyKey, Page, Read, Write, Written};

use tickets::Tickets;

/// When to ask again a node that is starting or stopping.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// When to ask again while a shard remembers as many of the clients' own ids as it can: some of
/// them will have been forgotten.
const KEYED_RETRY_AFTER: Duration = Duration::from_secs(30);

const WAL_FAILED: Error =
    Error::Unknown { why: "the write-ahead log cannot be written; the node is stopping" };

/// Copies of each shard, as long as there is one node.
const COPIES: u32 = 1;

/// The way to the data; cheap to clone.
#[derive(Clone, Debug)]
pub struct Coordinator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Arc<Metrics>,
    /// Empty while the data is being loaded.
    data: OnceLock<Data>,
    draining: AtomicBool,
    /// Whether a write that does not say otherwise waits for any copy (`write_quorum` is not 0).
    writes_wait: AtomicBool,
}

#[derive(Debug)]
struct Data {
    replica: Arc<Replica>,
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
            writes_wait: AtomicBool::new(true),
        }))
    }

    /// Begins to serve what `replica` holds. `life` must differ between any two lives of the
    /// process: it tells the requests of one, and the cursors, from those of another. A second
    /// call changes nothing.
    pub fn serve(&self, replica: Arc<Replica>, life: u64) {
        let tickets = replica.placement().shards().map(|_| Tickets::default()).collect();
        let _ = self.0.data.set(Data { replica, life, tickets });
    }

    /// Refuses everything from now on.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Whether requests are served.
    pub fn phase(&self) -> Phase {
        if self.0.draining.load(Ordering::Acquire) {
            Phase::Draining
        } else if self.0.data.get().is_none() {
            Phase::Starting
        } else {
            Phase::Serving
        }
    }

    /// Sets how many copies a write waits for that does not say so itself: none, or (on one node)
    /// this one.
    pub fn set_write_copies(&self, copies: u32) {
        self.0.writes_wait.store(copies > 0, Ordering::Relaxed);
    }

    /// Writes one key.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Full`] and [`Error::IdempotencyMismatch`] when nothing was
    /// ordered; [`Error::Unknown`] when it was, but may not last.
    pub async fn write(&self, write: Write) -> Result<Written, Error> {
        let data = self.admit()?;
        let waits = self.waits(write.consistency);
        let shard = data.replica.placement().shard_of(write.key.as_bytes());
        let ticket = data.tickets[usize::from(shard.0)].take();
        let id = match write.idempotency {
            Some(key) => key.id(),
            None => ticket.id(data.life),
        };
        let ordered = data
            .replica
            .write(&write.key, write.operation, write.condition, id, Timestamp::now())
            .map_err(|refusal| data.refused(refusal))?;
        let settled = data.settle(ordered.lsn, waits).await;
        match settled {
            Ok(_) => self.0.metrics.replica_success.inc(),
            Err(_) => self.0.metrics.replica_fail.inc(),
        }
        let acks = settled?;
        Ok(Written { verdict: ordered.verdict, version: ordered.version, acks })
    }

    /// Reads one key. A miss is counted by its reason.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while starting or stopping; [`Error::Unknown`] when a linearizable
    /// read cannot vouch for what it saw.
    pub async fn get(&self, key: &[u8], read: Read) -> Result<Lookup, Error> {
        let data = self.admit()?;
        let now = Timestamp::now();
        // This copy is the primary's: it has every write there is, `min_version` included.
        let lookup = if read.consistency == Consistency::Linearizable {
            let (lookup, lsn) = data.replica.get_with_lsn(key, now);
            data.settle(lsn, true).await?;
            lookup
        } else {
            data.replica.get(key, now)
        };
        if let Lookup::Miss(reason) = &lookup {
            self.0.metrics.miss(*reason);
        }
        Ok(lookup)
    }

    fn admit(&self) -> Result<&Data, Error> {
        let why = match self.0.data.get() {
            Some(data) if !self.0.draining.load(Ordering::Acquire) => return Ok(data),
            Some(_) => "the node is being drained; wait for its return",
            None => "the node is loading its data",
        };
        Err(Error::Unavailable { why, retry_after: RETRY_AFTER })
    }

    fn waits(&self, consistency: Consistency) -> bool {
        match consistency {
            Consistency::Async => false,
            Consistency::Configured => self.0.writes_wait.load(Ordering::Relaxed),
            _ => true,
        }
    }
}

impl Data {
    /// Waits for what was ordered up to `lsn`; or, if the client does not, only for room.
    async fn settle(&self, lsn: Lsn, waits: bool) -> Result<Option<Acks>, Error> {
        let wal = self.replica.wal();
        let settled = if waits { wal.settle(lsn).await } else { wal.room().await };
        settled.map_err(|_| WAL_FAILED)?;
        Ok(waits.then_some(Acks { had: COPIES, of: COPIES }))
    }

    fn refused(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Full => Error::Full {
                used_bytes: self.replica.budget().used(),
                limit_bytes: self.replica.budget().limit(),
            },
            Refusal::Mismatch => Error::IdempotencyMismatch,
            Refusal::TooManyKeyed => Error::Unavailable {
                why: "this shard remembers as many Idempotency-Keys as it can",
                retry_after: KEYED_RETRY_AFTER,
            },
            Refusal::Late => Error::Unavailable {
                why: "a duplicate came after its request was over",
                retry_after: RETRY_AFTER,
            },
            Refusal::Wal(_) => WAL_FAILED,
        }
    }
}
