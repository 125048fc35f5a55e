//! Room: what has expired is swept, and what memory cannot hold is evicted, each by a record.

use std::sync::atomic::Ordering;

use crate::entry::{CONTENT_TYPE_BYTES_MAX, Key, ShardId, Timestamp};
use crate::shard::{self, Operation, Outputs};
use crate::store::{self, Budget, EvictionPolicy};
use crate::wal;

use super::{Refusal, Replica, Work};

/// Most entries evicted from one shard before the next has its turn.
const EVICT_AT_ONCE: usize = 32;

/// Most entries looked at under one shard's lock while sweeping.
const SWEEP_AT_ONCE: usize = 512;

/// A sweeper's place on its way through all shards.
#[derive(Debug, Default)]
pub struct Sweep {
    shard: u16,
    from: u64,
}

/// What one step of a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries removed because their time had run out.
    pub expired: usize,
    /// The way through all shards ended with this step.
    pub round_done: bool,
}

impl Replica {
    /// Looks at the next few entries and removes those whose time has run out, in the shards that
    /// this node leads.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn sweep(
        &self,
        sweep: &mut Sweep,
        now: Timestamp,
        work: &mut Work,
    ) -> Result<Swept, wal::Error> {
        let mut slot = self.copies.of(ShardId(sweep.shard));
        let mut out = Outputs::default();
        let swept = slot.shard.sweep(sweep.from, SWEEP_AT_ONCE, now, &mut out);
        self.carry_out(&mut slot, out, work)?;
        drop(slot);
        self.metrics.expired.inc_by(swept.expired as u64);
        let mut round_done = false;
        match swept.next {
            Some(from) => sweep.from = from,
            None => {
                sweep.from = 0;
                sweep.shard += 1;
                if sweep.shard == self.placement().num_shards() {
                    sweep.shard = 0;
                    round_done = true;
                }
            }
        }
        Ok(Swept { expired: swept.expired, round_done })
    }

    /// Evicts until the node is below its high watermark or `bytes` are free again, going from
    /// shard to shard of those that this node leads. Returns the bytes that came free.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn evict(&self, bytes: u64, now: Timestamp, work: &mut Work) -> Result<u64, wal::Error> {
        self.evict_while(bytes, now, Budget::over_watermark, work)
    }

    /// Evicts for another node, which holds copies of what this one leads: until `bytes` came free
    /// here, and so there, or once around the shards. Returns the bytes that came free.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn relieve(&self, bytes: u64, now: Timestamp, work: &mut Work) -> Result<u64, wal::Error> {
        self.evict_while(bytes, now, |_| true, work)
    }

    /// Makes room below the hard limit for `bytes` more.
    pub(super) fn make_room(
        &self,
        bytes: u64,
        now: Timestamp,
        work: &mut Work,
    ) -> Result<(), Refusal> {
        if bytes > self.budget().limit() {
            return Err(Refusal::Full);
        }
        let short = |budget: &Budget| budget.would_exceed_limit(bytes);
        while bytes > 0 && short(self.budget()) {
            if !self.evicts() || self.evict_while(bytes, now, short, work)? == 0 {
                return Err(Refusal::Full);
            }
        }
        Ok(())
    }

    /// Evicts from one shard after another, once around at most, until `bytes` came free or memory
    /// is no longer `short`. Returns the bytes that came free.
    fn evict_while(
        &self,
        bytes: u64,
        now: Timestamp,
        short: impl Fn(&Budget) -> bool,
        work: &mut Work,
    ) -> Result<u64, wal::Error> {
        let shards = usize::from(self.placement().num_shards());
        let mut freed = 0;
        for _ in 0..shards {
            if freed >= bytes || !short(self.budget()) {
                break;
            }
            let shard = self.evict_next.fetch_add(1, Ordering::Relaxed) % shards;
            freed += self.evict_from(ShardId(shard as u16), bytes - freed, now, work)?;
        }
        Ok(freed)
    }

    /// Whether anything may be evicted at all.
    pub(super) fn evicts(&self) -> bool {
        self.budget().policy() == EvictionPolicy::S3Fifo
    }

    fn evict_from(
        &self,
        shard: ShardId,
        bytes: u64,
        now: Timestamp,
        work: &mut Work,
    ) -> Result<u64, wal::Error> {
        let mut slot = self.copies.of(shard);
        let before = slot.shard.table().bytes();
        let mut out = Outputs::default();
        let (evicted, expired) = slot.shard.evict(bytes, EVICT_AT_ONCE, now, &mut out);
        self.carry_out(&mut slot, out, work)?;
        self.metrics.evictions.inc_by(evicted as u64);
        self.metrics.expired.inc_by(expired as u64);
        Ok(before.saturating_sub(slot.shard.table().bytes()))
    }
}

/// Bytes that the entry occupies which the operation may leave behind; 0 if it leaves none anew.
pub(super) fn entry_bytes(key: &Key, operation: &Operation) -> u64 {
    let size =
        |content_type, value| store::size_of_entry(key.as_bytes().len(), content_type, value);
    match operation {
        Operation::Put { value, content_type, .. } => size(content_type.len(), value.len()),
        Operation::Incr { .. } => size(CONTENT_TYPE_BYTES_MAX, shard::INTEGER_BYTES_MAX),
        Operation::Delete | Operation::Touch { .. } | Operation::Note(_) => 0,
    }
}
