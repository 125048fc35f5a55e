//! One node's copies: the log and the table of every shard, and the way of a record into both.
//!
//! Invariant: a record enters a shard's log, the WAL's buffer and the table in one critical section
//! of that shard, so that all three hold the records in the same order. Nothing is awaited there;
//! who needs the record to be durable awaits [`wal::Writer::settle`] afterwards.

mod persist;
mod room;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::entry::{
    CONTENT_TYPE_BYTES_MAX, Departure, Effect, Key, Position, Record, RequestId, ShardId,
    Timestamp, Verdict, Version,
};
use crate::metrics::{Metrics, Miss};
use crate::shard::{self, Condition, Live, Log, Operation, Outcome, Placement, Recall};
use crate::store::{self, Budget, Lookup, Table, View};
use crate::wal::{self, Lsn};

pub use persist::{Copies, SnapshotError};
pub use room::{Sweep, Swept};

/// This node's copies, and the log that keeps them.
#[derive(Debug)]
pub struct Replica {
    copies: Copies,
    wal: wal::Writer,
    metrics: Arc<Metrics>,
    /// Where the search for something to evict goes on.
    evict_next: AtomicUsize,
}

/// One shard's copy.
#[derive(Debug)]
struct Copy {
    log: Log,
    table: Table,
    /// The last record's place in the WAL.
    lsn: Lsn,
}

/// A write that stands in the log.
#[derive(Clone, Copy, Debug)]
pub struct Ordered {
    /// What it came to.
    pub verdict: Verdict,
    /// Its version.
    pub version: Version,
    /// The shard's last frame when it was ordered: settle it before answering.
    pub lsn: Lsn,
}

/// Why a write was not ordered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The value does not fit, and nothing can be evicted to make room.
    #[error("memory is full")]
    Full,
    /// The client's own request id belongs to another request.
    #[error("the idempotency key was used for another request")]
    Mismatch,
    /// Too many of the clients' own request ids are remembered already.
    #[error("too many idempotency keys are remembered")]
    TooManyKeyed,
    /// A duplicate that comes too late to be told its answer.
    #[error("a duplicate of a request that nobody waits for any more")]
    Late,
    /// The log has failed; the node is about to stop.
    #[error(transparent)]
    Wal(#[from] wal::Error),
}

/// How one shard stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which.
    pub shard: ShardId,
    /// The epoch in force.
    pub epoch: u32,
    /// Where its log ends.
    pub position: Position,
    /// Live entries and such as have expired but are not swept yet.
    pub items: usize,
    /// Bytes charged for them.
    pub bytes: u64,
}

impl Replica {
    /// Copies that are loaded, and the log that takes their further records.
    pub fn new(copies: Copies, wal: wal::Writer, metrics: Arc<Metrics>) -> Self {
        Self { copies, wal, metrics, evict_next: AtomicUsize::new(0) }
    }

    /// Where keys belong.
    pub fn placement(&self) -> &Placement {
        self.copies.placement()
    }

    /// The memory in use and its limits.
    pub fn budget(&self) -> &Budget {
        self.copies.budget()
    }

    /// The write-ahead log beneath.
    pub fn wal(&self) -> &wal::Writer {
        &self.wal
    }

    /// Looks a key up, as of `now`.
    pub fn get(&self, key: &[u8], now: Timestamp) -> Lookup {
        self.copies.of_key(key).table.get(key, now)
    }

    /// Looks a key up, and says how far the log must be settled for the answer to last.
    pub fn get_with_lsn(&self, key: &[u8], now: Timestamp) -> (Lookup, Lsn) {
        let copy = self.copies.of_key(key);
        (copy.table.get(key, now), copy.lsn)
    }

    /// Looks up whether a client's own request id was ordered before, for the shard of `key`.
    ///
    /// # Errors
    /// [`Refusal`] as [`Replica::write`] would answer.
    pub fn recall(
        &self,
        key: &Key,
        id: RequestId,
        now: Timestamp,
    ) -> Result<Option<Ordered>, Refusal> {
        self.copies.of_key(key.as_bytes()).recall(id, now)
    }

    /// Judges a write against the newest state, orders it and applies it.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing was ordered.
    pub fn write(
        &self,
        key: &Key,
        operation: Operation,
        condition: Condition,
        id: RequestId,
        now: Timestamp,
    ) -> Result<Ordered, Refusal> {
        let size = entry_bytes(key, &operation);
        if size > 0 && self.budget().would_exceed_limit(size) {
            // What the key holds already is freed by the write; a counter stays the size it is.
            let held = self.copies.of_key(key.as_bytes()).table.peek(key.as_bytes(), now).found();
            let growth = match held {
                Some(_) if matches!(operation, Operation::Incr { .. }) => 0,
                Some(found) => size.saturating_sub(found.entry.size()),
                None => size,
            };
            self.make_room(growth, now)?;
        }
        let ordered = self.order(key, operation, condition, id, now)?;
        if size > 0 && self.budget().over_watermark() && self.evicts() {
            self.evict(size, now)?;
        }
        Ok(ordered)
    }

    /// Visits live entries of one shard under its lock, as [`Table::scan`] does.
    pub fn scan(
        &self,
        shard: ShardId,
        from: u64,
        looks_max: usize,
        now: Timestamp,
        visit: impl FnMut(View<'_>) -> ControlFlow<()>,
    ) -> Option<u64> {
        self.copies.of(shard).table.scan(from, looks_max, now, visit)
    }

    /// How each shard stands.
    pub fn status(&self) -> Vec<ShardStatus> {
        let status = |shard| {
            let copy = self.copies.of(shard);
            ShardStatus {
                shard,
                epoch: copy.log.epoch(),
                position: copy.log.position(),
                items: copy.table.len(),
                bytes: copy.table.bytes(),
            }
        };
        self.placement().shards().map(status).collect()
    }

    fn order(
        &self,
        key: &Key,
        operation: Operation,
        condition: Condition,
        id: RequestId,
        now: Timestamp,
    ) -> Result<Ordered, Refusal> {
        let mut copy = self.copies.of_key(key.as_bytes());
        if let Some(done) = copy.recall(id, now)? {
            return Ok(done);
        }
        let present = copy.table.peek(key.as_bytes(), now);
        if let Lookup::Miss(Miss::Expired) = present {
            // Judged expired here: that goes into the log first, so that no slower clock can
            // bring the entry back.
            self.remove(&mut copy, key.clone(), Departure::Expired, now)?;
        }
        let present = present.found();
        let live = present.as_ref().map(|found| Live {
            version: found.version,
            expires_at: found.expires_at,
            value: found.entry.value_bytes(),
            content_type: found.entry.content_type(),
        });
        let (effect, verdict) = operation.judge(condition, live, now);
        let record = copy.log.order(Some(key.clone()), effect, verdict, id, now);
        self.take(&mut copy, &record)?;
        Ok(Ordered { verdict, version: record.version, lsn: copy.lsn })
    }

    /// Orders the removal of a key by the shard itself.
    fn remove(
        &self,
        copy: &mut Copy,
        key: Key,
        why: Departure,
        now: Timestamp,
    ) -> Result<(), wal::Error> {
        let effect = Effect::Remove(why);
        let record = copy.log.order(Some(key), effect, Verdict::Deleted, RequestId::Internal, now);
        self.take(copy, &record)?;
        match why {
            Departure::Expired => self.metrics.expired.inc(),
            Departure::Evicted => self.metrics.evictions.inc(),
            Departure::Deleted => {}
        }
        Ok(())
    }

    /// Logs an ordered record and applies it. A log that refuses has failed for good: the gap that
    /// this leaves in the shard's order is never seen, for nothing more is ordered.
    fn take(&self, copy: &mut Copy, record: &Record) -> Result<(), wal::Error> {
        copy.lsn = self.wal.append(record)?;
        apply(&mut copy.table, record);
        Ok(())
    }
}

impl Copy {
    /// Whether the record's key holds what a later record left there.
    fn holds_later_than(&self, record: &Record) -> bool {
        let Some(key) = &record.key else { return false };
        let held = self.table.peek(key.as_bytes(), Timestamp(0)).found();
        held.is_some_and(|found| found.version > record.version)
    }

    fn recall(&mut self, id: RequestId, now: Timestamp) -> Result<Option<Ordered>, Refusal> {
        match self.log.recall(id, now) {
            Recall::New => Ok(None),
            Recall::Done(Outcome { verdict, version }) => {
                Ok(Some(Ordered { verdict, version, lsn: self.lsn }))
            }
            Recall::Forgotten => Err(Refusal::Late),
            Recall::Mismatch => Err(Refusal::Mismatch),
            Recall::Full => Err(Refusal::TooManyKeyed),
        }
    }
}

/// Bytes that the entry occupies which the operation may leave behind; 0 if it leaves none anew.
fn entry_bytes(key: &Key, operation: &Operation) -> u64 {
    let size =
        |content_type, value| store::size_of_entry(key.as_bytes().len(), content_type, value);
    match operation {
        Operation::Put { value, content_type, .. } => size(content_type.len(), value.len()),
        Operation::Incr { .. } => size(CONTENT_TYPE_BYTES_MAX, shard::INTEGER_BYTES_MAX),
        Operation::Delete | Operation::Touch { .. } | Operation::Note(_) => 0,
    }
}

/// Makes the table as the record says.
fn apply(table: &mut Table, record: &Record) {
    let Some(key) = &record.key else { return };
    match &record.effect {
        Effect::None => {}
        Effect::Put { value, content_type, expires_at } => {
            table.put(key.as_bytes(), value, content_type, record.version, *expires_at);
        }
        Effect::Touch { expires_at } => {
            table.touch(key.as_bytes(), record.version, *expires_at);
        }
        Effect::Remove(why) => {
            table.remove(key.as_bytes(), *why);
        }
    }
}
