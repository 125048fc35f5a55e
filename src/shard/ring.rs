//! A shard's recent records, for those who are a little behind.
//!
//! Invariant: the records stand without gaps up to the log's end. Bounded in bytes, except that
//! the last record always stays, and that a copy under way may hold on to more, within a bound.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entry::{Effect, Record, Version};

/// How many times its bytes a ring may hold while a copy of the shard is under way.
const HELD_FACTOR: usize = 16;

/// Bytes of records in one message; a single record may be longer. With an entry of a copy beside
/// them they fit a frame between nodes.
const TAIL_BYTES_MAX: usize = 16 << 20;

/// What a record occupies beside its key and value, in bytes, or a little more.
const RECORD_FIXED_BYTES: usize = 192;

/// The end of a log.
#[derive(Debug)]
pub(super) struct Ring {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
    bytes_max: usize,
    /// Records behind this number are wanted by a copy under way.
    held_after: Option<u64>,
}

impl Ring {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { records: VecDeque::new(), bytes: 0, bytes_max, held_after: None }
    }

    pub(super) fn push(&mut self, record: Arc<Record>) {
        self.bytes += bytes_of(&record);
        self.records.push_back(record);
        while self.records.len() > 1 && self.bytes > self.bytes_max && !self.holds_first() {
            self.drop_first();
        }
    }

    /// The records behind number `seq`, if all of them are here.
    pub(super) fn after(&self, seq: u64) -> Option<impl Iterator<Item = &Arc<Record>>> {
        let first = self.records.front()?;
        let skip = (seq + 1).checked_sub(first.position.seq)?;
        Some(self.records.range(usize::try_from(skip).ok()?.min(self.records.len())..))
    }

    /// The record with this version, if it is here.
    pub(super) fn with_version(&self, version: Version) -> Option<&Arc<Record>> {
        // Versions rise along the log.
        let at = self.records.binary_search_by_key(&version, |record| record.version).ok()?;
        self.records.get(at)
    }

    /// As [`Ring::after`], if they are not too many for one message.
    pub(super) fn tail(&self, seq: u64) -> Option<Vec<Arc<Record>>> {
        let mut bytes = 0;
        let mut tail = Vec::new();
        for record in self.after(seq)? {
            bytes += bytes_of(record);
            if bytes > TAIL_BYTES_MAX && !tail.is_empty() {
                return None;
            }
            tail.push(record.clone());
        }
        Some(tail)
    }

    /// Takes out the records behind number `seq`.
    pub(super) fn cut(&mut self, seq: u64) {
        while let Some(last) = self.records.back()
            && last.position.seq > seq
        {
            self.bytes -= bytes_of(last);
            self.records.pop_back();
        }
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
    }

    /// Holds what comes behind number `seq` for a copy under way, as far as memory allows; or
    /// nothing any more.
    pub(super) fn hold(&mut self, seq: Option<u64>) {
        self.held_after = seq;
    }

    fn holds_first(&self) -> bool {
        let first = self.records.front().map_or(0, |record| record.position.seq);
        self.held_after.is_some_and(|seq| first > seq)
            && self.bytes <= self.bytes_max.saturating_mul(HELD_FACTOR)
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.records.pop_front() {
            self.bytes -= bytes_of(&first);
        }
    }
}

/// What a record occupies in memory, in bytes, or a little more.
pub(super) fn bytes_of(record: &Record) -> usize {
    let key = record.key.as_ref().map_or(0, |key| key.as_bytes().len());
    let value = match &record.effect {
        Effect::Put { value, content_type, .. } => value.len() + content_type.len(),
        _ => 0,
    };
    RECORD_FIXED_BYTES + key + value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Position, RequestId, ShardId, Verdict};

    fn record(seq: u64) -> Arc<Record> {
        Arc::new(Record {
            shard: ShardId(0),
            position: Position { epoch: 1, seq },
            predecessor_epoch: 1,
            key: None,
            effect: Effect::None,
            version: Version(seq),
            request: RequestId::Internal,
            verdict: Verdict::Absent,
        })
    }

    fn after(ring: &Ring, seq: u64) -> Option<Vec<u64>> {
        ring.after(seq).map(|records| records.map(|r| r.position.seq).collect())
    }

    #[test]
    fn old_records_go_and_whoever_needs_them_is_told() {
        let mut ring = Ring::new(3 * RECORD_FIXED_BYTES);
        assert_eq!(after(&ring, 0), None);
        (5..10).for_each(|seq| ring.push(record(seq)));
        assert_eq!(after(&ring, 6), Some(vec![7, 8, 9]));
        assert_eq!(after(&ring, 9), Some(vec![]));
        assert_eq!(after(&ring, 5), None);
        ring.cut(7);
        assert_eq!(after(&ring, 6), Some(vec![7]));
    }

    #[test]
    fn a_copy_under_way_holds_what_it_will_need() {
        let mut ring = Ring::new(RECORD_FIXED_BYTES);
        ring.push(record(1));
        ring.hold(Some(1));
        (2..6).for_each(|seq| ring.push(record(seq)));
        assert_eq!(after(&ring, 1), Some(vec![2, 3, 4, 5]));
        ring.hold(None);
        ring.push(record(6));
        assert_eq!(after(&ring, 5), Some(vec![6]));
        assert_eq!(after(&ring, 4), None);
    }
}
