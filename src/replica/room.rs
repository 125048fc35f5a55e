//! Room: what has expired is swept, and what memory cannot hold is evicted, each by a record.

use std::sync::atomic::Ordering;

use crate::entry::{Departure, ShardId, Timestamp};
use crate::store::{Budget, EvictionPolicy};
use crate::wal;

use super::{Refusal, Replica};

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
    /// Looks at the next few entries and removes those whose time has run out.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn sweep(&self, sweep: &mut Sweep, now: Timestamp) -> Result<Swept, wal::Error> {
        let mut expired = Vec::new();
        let mut copy = self.copies.of(ShardId(sweep.shard));
        let next = copy.table.sweep(sweep.from, SWEEP_AT_ONCE, now, &mut expired);
        let count = expired.len();
        for key in expired {
            self.remove(&mut copy, key, Departure::Expired, now)?;
        }
        drop(copy);
        let mut round_done = false;
        match next {
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
        Ok(Swept { expired: count, round_done })
    }

    /// Evicts until the node is below its high watermark or `bytes` are free again, going from
    /// shard to shard. Returns the bytes that came free.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn evict(&self, bytes: u64, now: Timestamp) -> Result<u64, wal::Error> {
        self.evict_while(bytes, now, Budget::over_watermark)
    }

    /// Makes room below the hard limit for `bytes` more.
    pub(super) fn make_room(&self, bytes: u64, now: Timestamp) -> Result<(), Refusal> {
        if bytes > self.budget().limit() {
            return Err(Refusal::Full);
        }
        let short = |budget: &Budget| budget.would_exceed_limit(bytes);
        while bytes > 0 && short(self.budget()) {
            if !self.evicts() || self.evict_while(bytes, now, short)? == 0 {
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
    ) -> Result<u64, wal::Error> {
        let shards = usize::from(self.placement().num_shards());
        let mut freed = 0;
        for _ in 0..shards {
            if freed >= bytes || !short(self.budget()) {
                break;
            }
            let shard = self.evict_next.fetch_add(1, Ordering::Relaxed) % shards;
            freed += self.evict_from(ShardId(shard as u16), bytes - freed, now)?;
        }
        Ok(freed)
    }

    /// Whether anything may be evicted at all.
    pub(super) fn evicts(&self) -> bool {
        self.budget().policy() == EvictionPolicy::S3Fifo
    }

    fn evict_from(&self, shard: ShardId, bytes: u64, now: Timestamp) -> Result<u64, wal::Error> {
        let mut copy = self.copies.of(shard);
        let before = copy.table.bytes();
        for candidate in copy.table.evict_candidates(bytes, EVICT_AT_ONCE, now) {
            self.remove(&mut copy, candidate.key, candidate.departure, now)?;
        }
        Ok(before.saturating_sub(copy.table.bytes()))
    }
}
