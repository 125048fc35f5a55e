//! One node's copies: the shards, the write-ahead log beneath them, and those who wait for them.
//!
//! Invariant: what a shard puts into its log enters the WAL's buffer in the same critical section
//! of that shard, so that both hold the frames in one order. Nothing is awaited there. What is left
//! to do outside comes back as [`Work`]: messages to send, and what to settle on disk before others
//! may be sent. It knows no network: whoever calls carries the messages.

mod persist;
mod room;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::entry::{Key, Position, RequestId, ShardId, Timestamp, Version};
use crate::metrics::Metrics;
use crate::shard::{
    Answer, Envelope, Event, Logged, Need, Operation, Ordered, Outputs, Part, Placement, Refused,
    Request, Settled, Shard, Staged,
};
use crate::store::{Budget, Lookup, View};
use crate::topology::{Configuration, NodeId, Seat};
use crate::wal::{self, FRAME_BYTES_MAX, Lsn};

pub use persist::{Copies, CopyFile, SnapshotError};
pub use room::{Sweep, Swept};

/// Copies of shards that are brought here at a time.
const COPIES_MAX: usize = 4;

/// Bytes of a record beside key, value and content type: more than there are.
const RECORD_BYTES: usize = 4096;

/// This node's copies, and the log that keeps them.
#[derive(Debug)]
pub struct Replica {
    copies: Copies,
    wal: wal::Writer,
    metrics: Arc<Metrics>,
    tickets: AtomicU64,
    /// Copies of shards being brought here.
    copying: AtomicUsize,
    sessions: AtomicU64,
    /// Adopted copies whose files the next snapshot makes unneeded.
    adopted: Mutex<Vec<CopyFile>>,
    /// Where the search for something to evict goes on.
    evict_next: AtomicUsize,
}

/// One shard's copy, where its log stands in the WAL, and who waits for it.
#[derive(Debug)]
struct Slot {
    shard: Shard,
    /// The last frame's place in the WAL.
    lsn: Lsn,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    /// Whether it counts in [`Replica::copying`].
    copying: bool,
}

/// What is left to do outside the shards' locks. To be gathered over several calls; then
/// `messages` are sent and the work is settled ([`Replica::settle`]), which brings more messages.
#[derive(Debug, Default)]
pub struct Work {
    /// To be sent at once.
    pub messages: Vec<Envelope>,
    /// Complete copies: [`Replica::finish_copy`].
    pub copied: Vec<(ShardId, Box<Staged>)>,
    vouching: Vec<Envelope>,
    settling: Vec<(ShardId, Settled)>,
    lsn: Lsn,
}

impl Work {
    /// Whether nothing is left to be settled.
    pub fn is_settled(&self) -> bool {
        self.vouching.is_empty() && self.settling.is_empty()
    }
}

/// Somebody's place in the row of those who wait for a shard.
#[derive(Debug)]
pub struct Wait {
    shard: ShardId,
    ticket: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Wait {
    /// Waits for the answer; a copy that is gone has been deposed.
    pub async fn answer(&mut self) -> Answer {
        (&mut self.answer).await.unwrap_or(Answer::Deposed)
    }

    /// The answer, if it has come.
    pub fn try_answer(&mut self) -> Option<Answer> {
        match self.answer.try_recv() {
            Ok(answer) => Some(answer),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Answer::Deposed),
        }
    }
}

/// Why a write was not ordered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The value does not fit, and nothing can be evicted to make room.
    #[error("memory is full")]
    Full,
    /// The shard does not take it.
    #[error(transparent)]
    Shard(#[from] Refused),
    /// The log has failed; the node is about to stop.
    #[error(transparent)]
    Wal(#[from] wal::Error),
}

/// How one shard stands.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardStatus {
    /// Which.
    pub shard: ShardId,
    /// The epoch in force.
    pub epoch: u32,
    /// Where its log ends.
    pub position: Position,
    /// Its part.
    pub part: Part,
    /// Whether it can vouch for its log.
    pub vouches: bool,
    /// Whether it is not known to be old.
    pub level: bool,
    /// Where this copy leads: up to where the log is committed.
    pub committed: u64,
    /// Where this copy leads: how far each other one has acknowledged.
    pub acknowledged: Vec<(Seat, u64)>,
    /// Live entries and such as have expired but are not swept yet.
    pub items: usize,
    /// Bytes charged for them.
    pub bytes: u64,
    /// A hash over the keys and versions it holds.
    pub content_hash: u64,
}

impl Replica {
    /// Copies that are loaded, and the log that takes their further records.
    pub fn new(copies: Copies, wal: wal::Writer, metrics: Arc<Metrics>) -> Self {
        let adopted = Mutex::new(copies.adopted());
        Self {
            copies,
            wal,
            metrics,
            tickets: AtomicU64::new(1),
            copying: AtomicUsize::new(0),
            sessions: AtomicU64::new(0),
            adopted,
            evict_next: AtomicUsize::new(0),
        }
    }

    /// The node, in this life.
    pub fn me(&self) -> Seat {
        self.copies.setting().me
    }

    /// Where keys belong.
    pub fn placement(&self) -> &Placement {
        self.copies.placement()
    }

    /// The memory in use and its limits.
    pub fn budget(&self) -> &Budget {
        &self.copies.setting().budget
    }

    /// The write-ahead log beneath.
    pub fn wal(&self) -> &wal::Writer {
        &self.wal
    }

    /// Looks a key up in this copy, as of `now`, if clients may be shown it. `written`: a version
    /// that a write gave the key, to be told whether this copy holds that write.
    pub fn get(&self, key: &[u8], written: Option<Version>, now: Timestamp) -> Option<Seen> {
        let slot = self.copies.of_key(key);
        slot.shard.is_readable().then(|| Seen {
            lookup: slot.shard.get(key, now),
            position: slot.shard.last(),
            holds: written.is_none_or(|version| slot.shard.holds_write(key, version)),
            leads: slot.shard.is_active(),
            level: slot.shard.is_level(),
            away_since: slot.shard.away_since(),
        })
    }

    /// Looks a key up so that the answer, when the wait is over, is as if there were one copy.
    ///
    /// # Errors
    /// [`Refusal`] where this copy does not lead.
    pub fn get_linearizable(
        &self,
        key: &[u8],
        now: Timestamp,
        work: &mut Work,
    ) -> Result<(Lookup, Wait), Refusal> {
        let mut slot = self.copies.of_key(key);
        let mut out = Outputs::default();
        let wait = self.enter(&mut slot);
        let lookup = slot.shard.get_linearizable(key, wait.ticket, now, &mut out);
        if lookup.is_err() {
            slot.waiting.remove(&wait.ticket);
        }
        let lookup = lookup?;
        // Also what this copy itself showed must be on disk.
        work.settling.push((slot.shard.id(), slot.shard.to_settle()));
        work.lsn = work.lsn.max(slot.lsn);
        self.carry_out(&mut slot, out, work)?;
        Ok((lookup, wait))
    }

    /// Looks up whether a request was ordered before, for the shard of `key`.
    ///
    /// # Errors
    /// [`Refusal`] as [`Replica::write`] would answer.
    pub fn recall(
        &self,
        key: &Key,
        id: RequestId,
        need: Need,
        now: Timestamp,
        work: &mut Work,
    ) -> Result<Option<(Ordered, Wait)>, Refusal> {
        let mut slot = self.copies.of_key(key.as_bytes());
        let mut out = Outputs::default();
        let wait = self.enter(&mut slot);
        let done = slot.shard.recall_request(id, (wait.ticket, need), now, &mut out);
        if !matches!(done, Ok(Some(_))) {
            slot.waiting.remove(&wait.ticket);
        }
        self.carry_out(&mut slot, out, work)?;
        Ok(done?.map(|ordered| (ordered, wait)))
    }

    /// Judges a write against the newest state, orders it and applies it. Where there is a need,
    /// the answer comes when it holds; it will not before the work is settled.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing was ordered.
    pub fn write(
        &self,
        request: Request,
        need: Option<Need>,
        now: Timestamp,
        work: &mut Work,
    ) -> Result<(Ordered, Option<Wait>), Refusal> {
        let key = &request.key;
        let size = room::entry_bytes(key, &request.operation);
        if size > 0 && self.budget().would_exceed_limit(size) {
            // What the key holds already is freed by the write; a counter stays the size it is.
            let slot = self.copies.of_key(key.as_bytes());
            let held = slot.shard.table().peek(key.as_bytes(), now).found();
            drop(slot);
            let growth = match held {
                Some(_) if matches!(request.operation, Operation::Incr { .. }) => 0,
                Some(found) => size.saturating_sub(found.entry.size()),
                None => size,
            };
            self.make_room(growth, now, work)?;
        }
        let ordered = self.order(request, need, now, work)?;
        if size > 0 && self.budget().over_watermark() && self.evicts() {
            self.evict(size, now, work)?;
        }
        Ok(ordered)
    }

    fn order(
        &self,
        request: Request,
        need: Option<Need>,
        now: Timestamp,
        work: &mut Work,
    ) -> Result<(Ordered, Option<Wait>), Refusal> {
        check_size(&request)?;
        let mut slot = self.copies.of_key(request.key.as_bytes());
        let mut out = Outputs::default();
        let wait = need.map(|_| self.enter(&mut slot));
        let waits = wait.as_ref().map(|wait| wait.ticket).zip(need);
        let ordered = slot.shard.write(request, waits, now, &mut out);
        if let (Err(_), Some(wait)) = (&ordered, &wait) {
            slot.waiting.remove(&wait.ticket);
        }
        self.carry_out(&mut slot, out, work)?;
        Ok((ordered?, wait))
    }

    /// Takes a message from another copy.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn receive(
        &self,
        envelope: Envelope,
        now: Timestamp,
        work: &mut Work,
    ) -> Result<(), wal::Error> {
        self.with(envelope.shard, work, |shard, out| shard.receive(envelope, now, out))
    }

    /// Takes a shard's configuration; an old one changes nothing.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn configure(
        &self,
        shard: ShardId,
        configuration: Arc<Configuration>,
        now: Timestamp,
        work: &mut Work,
    ) -> Result<(), wal::Error> {
        self.with(shard, work, |shard, out| shard.configure(configuration, now, out))
    }

    /// Lets every shard say again what had no answer; to be called some 20 times a second.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn tick(&self, now: Timestamp, work: &mut Work) -> Result<(), wal::Error> {
        self.placement()
            .shards()
            .try_for_each(|id| self.with(id, work, |shard, out| shard.tick(now, out)))
    }

    /// The process stood still from one moment to the other, so that others may have gone on without
    /// it: no copy counts as level until it has asked ([`Shard::was_away`]).
    ///
    /// # Errors
    /// When the log has failed.
    pub fn was_away(
        &self,
        span: (Timestamp, Timestamp),
        work: &mut Work,
    ) -> Result<(), wal::Error> {
        self.placement()
            .shards()
            .try_for_each(|id| self.with(id, work, |shard, out| shard.was_away(span, out)))
    }

    /// A node was out of touch from one moment to the other, so that others may have gone on: the
    /// copies that hang on it count as level when they have asked ([`Shard::was_apart`]).
    ///
    /// # Errors
    /// When the log has failed.
    pub fn was_apart(
        &self,
        from: NodeId,
        in_touch: &dyn Fn(NodeId) -> bool,
        span: (Timestamp, Timestamp),
        work: &mut Work,
    ) -> Result<(), wal::Error> {
        self.placement().shards().try_for_each(|id| {
            self.with(id, work, |shard, out| shard.was_apart(from, in_touch, span, out))
        })
    }

    /// Settles what was logged, as the log's mode has it, and tells the shards; what may be said
    /// then is among the work's messages, and what comes of that is settled too. In the modes `off`
    /// and `async` it never suspends.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn settle(&self, work: &mut Work) -> Result<(), wal::Error> {
        while !work.is_settled() {
            self.wal.settle(work.lsn).await?;
            self.after_settling(Timestamp::now(), work)?;
        }
        Ok(())
    }

    /// One step of [`Replica::settle`], for whoever has settled the log itself: a simulator.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn after_settling(&self, now: Timestamp, work: &mut Work) -> Result<(), wal::Error> {
        work.messages.append(&mut work.vouching);
        for (shard, settled) in std::mem::take(&mut work.settling) {
            self.with(shard, work, |shard, out| shard.settled(settled, now, out))?;
        }
        Ok(())
    }

    /// The last frame that the work is to be settled up to.
    pub fn to_settle(work: &Work) -> Lsn {
        work.lsn
    }

    /// Nobody waits there any more.
    pub fn forget(&self, wait: &Wait) {
        let mut slot = self.copies.of(wait.shard);
        slot.shard.forget(wait.ticket);
        slot.waiting.remove(&wait.ticket);
    }

    /// Visits live entries of one shard under its lock, as [`store::Table::scan`] does.
    pub fn scan(
        &self,
        shard: ShardId,
        from: u64,
        looks_max: usize,
        now: Timestamp,
        visit: impl FnMut(View<'_>) -> ControlFlow<()>,
    ) -> Option<u64> {
        self.copies.of(shard).shard.table().scan(from, looks_max, now, visit)
    }

    /// Whether clients may be shown this node's copy of a shard.
    pub fn is_readable(&self, shard: ShardId) -> bool {
        self.copies.of(shard).shard.is_readable()
    }

    /// Whether this node's copy of a shard is not known to be old; else since when, if that is known.
    pub fn is_level(&self, shard: ShardId) -> Result<(), Option<Timestamp>> {
        let slot = self.copies.of(shard);
        if slot.shard.is_level() { Ok(()) } else { Err(slot.shard.away_since()) }
    }

    /// Whether this node's copy of a shard orders and answers.
    pub fn is_active(&self, shard: ShardId) -> bool {
        self.copies.of(shard).shard.is_active()
    }

    /// How each shard stands here.
    pub fn status(&self) -> Vec<ShardStatus> {
        self.placement().shards().map(|id| self.status_of(id)).collect()
    }

    /// How one shard stands here.
    pub fn status_of(&self, id: ShardId) -> ShardStatus {
        let slot = self.copies.of(id);
        let shard = &slot.shard;
        ShardStatus {
            shard: id,
            epoch: shard.fence(),
            position: shard.last(),
            part: shard.part(),
            vouches: shard.vouches(),
            level: shard.is_level(),
            committed: shard.committed(),
            acknowledged: shard.acknowledged(),
            items: shard.table().len(),
            bytes: shard.table().bytes(),
            content_hash: shard.table().content_hash(),
        }
    }

    /// Leads every shard alone, in a first epoch of its own: for a node that is no cluster's.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn lead_alone(&self) -> Result<(), wal::Error> {
        let mut work = Work::default();
        for shard in self.placement().shards() {
            let epoch = self.copies.of(shard).shard.fence() + 1;
            let configuration = Arc::new(Configuration::alone(epoch, self.me()));
            self.configure(shard, configuration, Timestamp::now(), &mut work)?;
        }
        self.settle(&mut work).await
    }

    fn with(
        &self,
        shard: ShardId,
        work: &mut Work,
        act: impl FnOnce(&mut Shard, &mut Outputs),
    ) -> Result<(), wal::Error> {
        if shard.0 >= self.placement().num_shards() {
            return Ok(());
        }
        let mut slot = self.copies.of(shard);
        let mut out = Outputs::default();
        act(&mut slot.shard, &mut out);
        self.carry_out(&mut slot, out, work)
    }

    fn enter(&self, slot: &mut Slot) -> Wait {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (tell, answer) = oneshot::channel();
        slot.waiting.insert(ticket, tell);
        Wait { shard: slot.shard.id(), ticket, answer }
    }

    /// Does what a shard wants done, or leaves it as work. A log that refuses has failed for good:
    /// the gap that this leaves is never seen, for nothing more is settled.
    fn carry_out(&self, slot: &mut Slot, out: Outputs, work: &mut Work) -> Result<(), wal::Error> {
        let logs = !out.log.is_empty();
        for logged in &out.log {
            slot.lsn = match logged {
                Logged::Record(record) => self.wal.append(record)?,
                Logged::Frame(frame) => self.wal.append_frame(frame)?,
            };
        }
        if logs {
            work.settling.push((slot.shard.id(), slot.shard.to_settle()));
            work.lsn = work.lsn.max(slot.lsn);
        }
        for (ticket, answer) in out.answers {
            if let Some(waiting) = slot.waiting.remove(&ticket) {
                // Whoever gave up waiting is not to be told.
                let _ = waiting.send(answer);
            }
        }
        for envelope in out.messages {
            if envelope.message.vouches() {
                work.lsn = work.lsn.max(slot.lsn);
                work.vouching.push(envelope);
            } else {
                work.messages.push(envelope);
            }
        }
        for event in out.events {
            match event {
                Event::Active { epoch } => {
                    tracing::debug!(shard = slot.shard.id().0, epoch, "leads the shard");
                }
                Event::Unclean => self.metrics.unclean_recovery.inc(),
                Event::Missed { records } => self.metrics.replica_fail.inc_by(records),
                Event::Copied(staged) => work.copied.push((slot.shard.id(), staged)),
            }
        }
        self.count_copying(slot, work)
    }

    /// Keeps count of copies under way, and begins one that is wanted if there is a place free.
    fn count_copying(&self, slot: &mut Slot, work: &mut Work) -> Result<(), wal::Error> {
        let copying = slot.shard.is_copying();
        if copying != slot.copying {
            slot.copying = copying;
            if copying {
                self.copying.fetch_add(1, Ordering::Relaxed);
            } else {
                self.copying.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if slot.shard.wants_copy() && self.copying.load(Ordering::Relaxed) < COPIES_MAX {
            let mut out = Outputs::default();
            slot.shard.begin_copy(self.next_session(), &mut out);
            return self.carry_out(slot, out, work);
        }
        Ok(())
    }

    /// Unlike any other: a random number of the process, and a counter, mixed (splitmix64).
    fn next_session(&self) -> u64 {
        let n = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let mut z =
            self.copies.setting().source.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What a copy shows of a key.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The entry, or why there is none.
    pub lookup: Lookup,
    /// Where the copy's log ended then.
    pub position: Position,
    /// Whether it surely held the write that it was asked about; if none, it did.
    pub holds: bool,
    /// Whether it led the shard.
    pub leads: bool,
    /// Whether it is not known to be old.
    pub level: bool,
    /// Where it is not, because this process stood still: since when.
    pub away_since: Option<Timestamp>,
}

/// Refuses what the log could not hold.
fn check_size(request: &Request) -> Result<(), Refusal> {
    let bytes = match &request.operation {
        Operation::Put { value, content_type, .. } => value.len() + content_type.len(),
        _ => 0,
    };
    let bytes = bytes + request.key.as_bytes().len() + RECORD_BYTES;
    if bytes > FRAME_BYTES_MAX { Err(wal::Error::TooLarge { bytes }.into()) } else { Ok(()) }
}
