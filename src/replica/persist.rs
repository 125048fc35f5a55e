//! The copies at rest: filled at the start from snapshot and log, written to snapshots later.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::disk::Disk;
use crate::entry::{ShardId, Timestamp, Version};
use crate::shard::{Log, Outcome, Placement};
use crate::snapshot::{self, Finished, Item, Kept, ShardState};
use crate::store::{Budget, HashKeys, Table};
use crate::wal::{self, Frame, Lsn};

use super::{Copy, Replica, apply};

/// Entries that a snapshot takes under one hold of a shard's lock.
const SNAPSHOT_STEP: usize = 256;

/// How far above the clock versions go on after memory was lost: above all that a lost part may
/// have held.
const VERSION_LEAP_MILLIS: u64 = 1000;

/// Every shard's copy.
#[derive(Debug)]
pub struct Copies {
    placement: Placement,
    region: u8,
    budget: Arc<Budget>,
    copies: Box<[Mutex<Copy>]>,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The log is off: nothing is kept on disk.
    #[error("wal_mode is off: nothing is kept on disk")]
    Off,
    /// It was no longer wanted.
    #[error("it was given up, for the node has to stop")]
    GivenUp,
    /// The disk refused; the log and the older snapshot are as they were.
    #[error(transparent)]
    Disk(#[from] snapshot::Error),
    /// The log failed; the node is about to stop.
    #[error(transparent)]
    Wal(#[from] wal::Error),
}

impl Copies {
    /// Empty copies of all shards of `placement`, in a cluster of region index `region`.
    pub fn new(placement: Placement, region: u8, budget: Arc<Budget>) -> Self {
        let keys = HashKeys::random();
        let empty = |shard| {
            let table = Table::new(budget.clone(), keys.clone());
            Mutex::new(Copy { log: Log::new(shard, region), table, lsn: Lsn::default() })
        };
        let copies = placement.shards().map(empty).collect();
        Self { placement, region, budget, copies }
    }

    /// Where keys belong.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The memory in use and its limits.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Takes what a snapshot holds of a shard, piece by piece.
    pub fn restore(&self, shard: ShardId, item: Item<'_>) {
        let mut copy = self.of(shard);
        match item {
            Item::State(state, _) => {
                copy.log.resume(state.position, state.fence, state.highest_version);
            }
            Item::Request(Kept { request, verdict, version }) => {
                copy.log.restore_request(request, Outcome { verdict, version });
            }
            Item::Entry(entry) => {
                copy.table.put(
                    entry.key,
                    entry.value,
                    entry.content_type,
                    entry.version,
                    entry.expires_at,
                );
            }
        }
    }

    /// Takes a frame of the log again. Frames of one shard come in their order.
    pub fn replay(&self, lsn: Lsn, frame: &Frame) {
        let mut copy = self.of(frame.shard());
        copy.lsn = lsn;
        match frame {
            Frame::Record(record) => {
                copy.log.replay(record);
                // The snapshot may hold a later state than this record's. It must not be taken
                // back: where the log is damaged, the record that led there may be missing.
                if !copy.holds_later_than(record) {
                    apply(&mut copy.table, record);
                }
            }
            Frame::Fence { epoch, .. } => {
                let position = copy.log.position();
                copy.log.resume(position, *epoch, Version::default());
            }
            // Only a member of a cluster writes these.
            Frame::GiveUp { shard, .. }
            | Frame::Adopt { shard, .. }
            | Frame::Drop { shard, .. } => {
                tracing::error!(%lsn, shard = shard.0, kind = frame.kind_name(), "frame passed over");
            }
        }
    }

    pub(super) fn of(&self, shard: ShardId) -> MutexGuard<'_, Copy> {
        self.copies[usize::from(shard.0)].lock()
    }

    pub(super) fn of_key(&self, key: &[u8]) -> MutexGuard<'_, Copy> {
        self.of(self.placement.shard_of(key))
    }
}

impl Replica {
    /// Begins a new epoch in every shard, because part of what was acknowledged may be lost:
    /// versions go on a second above `now`.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn begin_epochs(&self, now: Timestamp) -> Result<(), wal::Error> {
        let highest = Version::at(Timestamp(now.0 + VERSION_LEAP_MILLIS), self.copies.region);
        for shard in self.placement().shards() {
            let mut copy = self.copies.of(shard);
            let first = copy.log.begin_epoch(highest, now);
            self.take(&mut copy, &first)?;
            self.metrics.unclean_recovery.inc();
        }
        Ok(())
    }

    /// Writes a snapshot of all shards into `dir`, shard after shard, while reads and writes go on.
    /// Older snapshots go, those in `damaged` are set aside. The segments of the log that are not
    /// needed any more are for the caller to remove. Looks at `give_up` between two steps. Blocks.
    ///
    /// # Errors
    /// [`SnapshotError`]; then older snapshots and the log are as they were.
    pub fn snapshot(
        &self,
        disk: Arc<dyn Disk>,
        dir: &Path,
        cluster_id: u128,
        damaged: &[PathBuf],
        give_up: &dyn Fn() -> bool,
    ) -> Result<Finished, SnapshotError> {
        if self.wal.mode() == wal::Mode::Off {
            return Err(SnapshotError::Off);
        }
        self.wal.rotate()?;
        let mut writer = snapshot::Writer::create(disk, dir, cluster_id, self.wal.next_lsn())?;
        for shard in self.placement().shards() {
            self.snapshot_shard(shard, &mut writer, give_up)?;
        }
        let durable = self.wal.sync_blocking()?;
        Ok(writer.finish(durable, damaged)?)
    }

    fn snapshot_shard(
        &self,
        shard: ShardId,
        writer: &mut snapshot::Writer,
        give_up: &dyn Fn() -> bool,
    ) -> Result<(), SnapshotError> {
        let (state, kept) = {
            let copy = self.copies.of(shard);
            let state = ShardState {
                shard,
                start: self.wal.next_lsn(),
                position: copy.log.position(),
                fence: copy.log.epoch(),
                highest_version: copy.log.highest_version(),
            };
            let requests = copy.log.requests().iter();
            let kept: Vec<Kept> = requests
                .map(|(request, Outcome { verdict, version })| Kept { request, verdict, version })
                .collect();
            (state, kept)
        };
        writer.begin_shard(state)?;
        kept.iter().try_for_each(|kept| writer.request(kept))?;
        let mut from = Some(0);
        while let Some(at) = from {
            if give_up() {
                return Err(SnapshotError::GivenUp);
            }
            let mut step = Vec::with_capacity(SNAPSHOT_STEP);
            // At the beginning of time nothing has expired: what has, goes along.
            from = self.scan(shard, at, SNAPSHOT_STEP, Timestamp(0), |view| {
                step.push(view.to_found());
                ControlFlow::Continue(())
            });
            for found in &step {
                writer.entry(&snapshot::Entry {
                    key: found.entry.key(),
                    value: found.entry.value_bytes(),
                    content_type: found.entry.content_type(),
                    version: found.version,
                    expires_at: found.expires_at,
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::entry::{Effect, Key, Position, Record, RequestId, Verdict};
    use crate::store::{Config, EvictionPolicy, Lookup};

    fn copies() -> Copies {
        let config = Config {
            max_memory: 1 << 20,
            eviction_ratio: 0.9,
            eviction_policy: EvictionPolicy::S3Fifo,
        };
        Copies::new(Placement::new(1, 1), 0, Arc::new(Budget::new(&config)))
    }

    fn put(seq: u64, value: &'static str) -> Frame {
        Frame::Record(Record {
            shard: ShardId(0),
            position: Position { epoch: 1, seq },
            predecessor_epoch: 1,
            key: Some(Key::new(&b"k"[..], 8).expect("short")),
            effect: Effect::Put {
                value: Bytes::from_static(value.as_bytes()),
                content_type: Bytes::new(),
                expires_at: None,
            },
            version: Version(seq << 10),
            request: RequestId::Internal,
            verdict: Verdict::Created,
        })
    }

    fn value(copies: &Copies) -> Option<Bytes> {
        match copies.of_key(b"k").table.peek(b"k", Timestamp(0)) {
            Lookup::Hit(found) => Some(found.entry.value()),
            Lookup::Miss(_) => None,
        }
    }

    #[test]
    fn replay_never_takes_a_key_back_behind_its_snapshot() {
        let copies = copies();
        let entry = snapshot::Entry {
            key: b"k",
            value: b"second",
            content_type: b"",
            version: Version(2 << 10),
            expires_at: None,
        };
        copies.restore(ShardId(0), Item::Entry(entry));
        // The record that led to the second value is lost; the one before it is not.
        copies.replay(Lsn(1), &put(1, "first"));
        assert_eq!(value(&copies).as_deref(), Some(&b"second"[..]));
        copies.replay(Lsn(3), &put(3, "third"));
        assert_eq!(value(&copies).as_deref(), Some(&b"third"[..]));
    }

    #[test]
    fn replaying_twice_ends_in_the_same_state() {
        let (once, twice) = (copies(), copies());
        for copies in [&once, &twice, &twice] {
            copies.replay(Lsn(1), &put(1, "first"));
            copies.replay(Lsn(2), &put(2, "second"));
        }
        assert_eq!(value(&twice), value(&once));
        assert_eq!(twice.of(ShardId(0)).log.position(), once.of(ShardId(0)).log.position());
        assert_eq!(twice.budget().used(), once.budget().used());
    }
}
