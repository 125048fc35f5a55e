//! A copy at rest: filled at the start from snapshot and log, told to snapshots later.

use std::sync::Arc;

use super::{Kept, Setting, Shard, apply};
use crate::entry::{Position, Record, Timestamp};
use crate::snapshot::{Entry, Item, ShardState};
use crate::store::Lookup;
use crate::wal::{Frame, Lsn};

impl Shard {
    /// Takes what a snapshot holds of it, piece by piece.
    pub fn restore(&mut self, item: Item<'_>) {
        match item {
            Item::State(state, _) => {
                self.log.history.start_at(state.position);
                self.log.clock.observe(state.highest_version);
                self.fence = self.fence.max(state.fence);
                self.vouched = state.life;
                self.restored();
            }
            Item::Request(kept) => self.log.restore_request(kept),
            Item::Entry(entry) => self.restore_entry(&entry),
        }
    }

    fn restore_entry(&mut self, entry: &Entry<'_>) {
        let Entry { key, value, content_type, version, expires_at } = *entry;
        self.table.put(key, value, content_type, version, expires_at);
    }

    /// From here on it is a copy of another life of the node.
    pub fn enter(&mut self, setting: Arc<Setting>) {
        self.setting = setting;
    }

    /// Empties it, for a copy that was adopted and comes by [`Shard::restore`].
    pub fn restore_anew(&mut self) {
        self.table.clear();
        self.log.clear();
    }

    /// Takes a frame of the log again, in the log's order. Taking one again is harmless. An
    /// adoption is followed by what was adopted, from its own file.
    pub fn replay(&mut self, frame: &Frame) {
        match frame {
            Frame::Record(record) => self.replay_record(record),
            Frame::Fence { epoch, .. } => self.fence = self.fence.max(*epoch),
            Frame::GiveUp { kept, .. } => {
                if !self.log.history.contains(*kept) {
                    // It lies before the snapshot.
                    self.log.history.start_at(*kept);
                    self.log.ring.clear();
                }
                self.apply_give_up(frame);
            }
            Frame::Adopt { fence, .. } => self.fence = self.fence.max(*fence),
            Frame::Drop { fence, .. } => {
                self.table.clear();
                self.log.clear();
                self.fence = self.fence.max(*fence);
            }
            Frame::Vouch { life, .. } => {
                self.vouched = *life;
                self.log.start_anew(self.fence);
            }
        }
        self.restored();
    }

    /// What a snapshot keeps of it beside its entries; `start` is the first frame it may lack.
    pub fn state(&self, start: Lsn) -> (ShardState, Vec<Kept>) {
        let state = ShardState {
            shard: self.id,
            start,
            position: self.last(),
            fence: self.fence,
            highest_version: self.highest_version(),
            life: self.vouched,
        };
        (state, self.log.kept_requests())
    }

    fn replay_record(&mut self, record: &Record) {
        self.fence = self.fence.max(record.position.epoch);
        if record.position <= self.last() && self.last() != Position::default() {
            return;
        }
        // The snapshot may hold a later state than this record's. It must not be taken back:
        // where the log is damaged, the record that led there may be missing.
        if !self.holds_later_than(record) {
            apply(&mut self.table, record);
        }
        self.log.push(Arc::new(detached(record)));
    }

    /// Whether the record's key holds what a later record left there.
    fn holds_later_than(&self, record: &Record) -> bool {
        let Some(key) = &record.key else { return false };
        match self.table.peek(key.as_bytes(), Timestamp(0)) {
            Lookup::Hit(found) => found.version > record.version,
            Lookup::Miss(_) => false,
        }
    }

    fn restored(&mut self) {
        self.restored_fence = self.fence;
        self.settled = self.to_settle();
    }
}

/// A record whose bytes are its own, not a piece of the buffer that many were read into.
fn detached(record: &Record) -> Record {
    let mut record = record.clone();
    if let crate::entry::Effect::Put { value, .. } = &mut record.effect {
        *value = bytes::Bytes::copy_from_slice(value);
    }
    record
}
