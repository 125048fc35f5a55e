//! A shard's recent records, for those who are a little behind.
//!
//! Invariant: the records stand without gaps up to the log's end; where nobody follows there are
//! none. Together, the rings of a node keep to the budget's [`Budget::log_limit`], but for the last
//! record of one that a copy under way holds: a quarter of it is theirs in equal shares, half is whoever's
//! comes first, and the last quarter is for those that a copy under way holds.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entry::{Effect, Record, Version};
use crate::store::Budget;

/// Bytes of records in one message; a single record may be longer. With an entry of a copy beside
/// them they fit a frame between nodes.
const TAIL_BYTES_MAX: usize = 16 << 20;

/// What a record occupies beside its key and value, in bytes, or a little more: with its place in
/// the ring, its counts of handles, and what the allocator rounds up.
const RECORD_FIXED_BYTES: usize = size_of::<Record>() + 96;

/// The end of a log.
#[derive(Debug)]
pub(super) struct Ring {
    records: VecDeque<Arc<Record>>,
    bytes: u64,
    budget: Arc<Budget>,
    /// How many rings share the budget.
    rings: u64,
    /// Whether there are other copies, which may ask for records.
    is_followed: bool,
    /// Records behind this number are wanted by a copy under way.
    held_after: Option<u64>,
}

impl Ring {
    pub(super) fn new(budget: Arc<Budget>, rings: u16) -> Self {
        let rings = u64::from(rings);
        let records = VecDeque::new();
        Self { records, bytes: 0, budget, rings, is_followed: true, held_after: None }
    }

    /// Keeps records from here on, or, where nobody follows, none.
    pub(super) fn follow(&mut self, is_followed: bool) {
        self.is_followed = is_followed;
        if !is_followed {
            self.clear();
        }
    }

    /// Whether records are kept.
    pub(super) fn is_followed(&self) -> bool {
        self.is_followed
    }

    pub(super) fn push(&mut self, record: Arc<Record>) {
        if self.is_followed {
            self.count(bytes_of(&record).cast_signed() as i64);
            self.records.push_back(record);
            self.trim();
        }
    }

    /// Lets go of what is beyond the bounds, which may have changed.
    pub(super) fn trim(&mut self) {
        let least = usize::from(self.held_after.is_some());
        while self.records.len() > least && self.is_full() {
            if let Some(first) = self.records.pop_front() {
                self.count(-(bytes_of(&first).cast_signed() as i64));
            }
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
            let bytes = bytes_of(last).cast_signed() as i64;
            self.records.pop_back();
            self.count(-bytes);
        }
    }

    pub(super) fn clear(&mut self) {
        self.records = VecDeque::new();
        self.count(-self.bytes.cast_signed());
    }

    /// Holds what comes behind number `seq` for a copy under way, as far as memory allows; or
    /// nothing any more.
    pub(super) fn hold(&mut self, seq: Option<u64>) {
        self.held_after = seq;
    }

    fn is_full(&self) -> bool {
        let quarter = self.budget.log_limit() / 4;
        let first = self.records.front().map_or(0, |record| record.position.seq);
        let is_held = self.held_after.is_some_and(|seq| first > seq);
        let common = if is_held { 3 * quarter } else { 2 * quarter };
        self.bytes > quarter / self.rings && self.budget.log() > common
    }

    fn count(&mut self, change: i64) {
        let before = self.bytes;
        self.bytes = before.wrapping_add_signed(change);
        self.budget.settle_log(before, self.bytes);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.clear();
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
    use crate::store::Config;

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

    /// A budget for so many records, and so many rings that share it.
    fn rings<const N: usize>(records: u64) -> (Arc<Budget>, [Ring; N]) {
        let replication_log = records * RECORD_FIXED_BYTES as u64;
        let budget = Arc::new(Budget::new(&Config { replication_log, ..Config::default() }));
        let rings = std::array::from_fn(|_| Ring::new(budget.clone(), N as u16));
        (budget, rings)
    }

    fn kept(budget: &Budget) -> u64 {
        budget.log() / RECORD_FIXED_BYTES as u64
    }

    #[test]
    fn old_records_go_and_whoever_needs_them_is_told() {
        let (budget, [mut ring]) = rings(6);
        assert_eq!(after(&ring, 0), None);
        (5..10).for_each(|seq| ring.push(record(seq)));
        assert_eq!(after(&ring, 6), Some(vec![7, 8, 9]));
        assert_eq!(after(&ring, 9), Some(vec![]));
        assert_eq!(after(&ring, 5), None);
        ring.cut(7);
        assert_eq!(after(&ring, 6), Some(vec![7]));
        assert_eq!((kept(&budget), budget.used()), (1, RECORD_FIXED_BYTES as u64));
        drop(ring);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_copy_under_way_holds_what_it_will_need_within_the_bound() {
        let (budget, [mut ring]) = rings(8);
        ring.push(record(1));
        ring.hold(Some(1));
        (2..7).for_each(|seq| ring.push(record(seq)));
        assert_eq!(after(&ring, 1), Some(vec![2, 3, 4, 5, 6]));
        (7..50).for_each(|seq| ring.push(record(seq)));
        assert_eq!((kept(&budget), after(&ring, 42)), (6, None));
        ring.hold(None);
        ring.trim();
        assert_eq!(after(&ring, 45), Some(vec![46, 47, 48, 49]));
        assert_eq!(after(&ring, 44), None);
    }

    #[test]
    fn all_rings_together_keep_to_one_bound_and_none_is_starved() {
        let (budget, mut rings) = rings::<4>(16);
        rings[0].hold(Some(0));
        for seq in 1..100 {
            rings[0].push(record(seq));
            assert!(kept(&budget) <= 16);
        }
        assert_eq!(kept(&budget), 12);
        for ring in &mut rings[1..] {
            (1..10).for_each(|seq| ring.push(record(seq)));
            assert_eq!(after(ring, 8), Some(vec![9]));
        }
        assert!(kept(&budget) <= 16, "{}", kept(&budget));
        budget.configure(&Config { replication_log: 0, ..Config::default() });
        rings.iter_mut().for_each(Ring::trim);
        assert_eq!(kept(&budget), 1, "the last of the one that is held stays");
    }

    #[test]
    fn where_nobody_follows_nothing_is_kept() {
        let (budget, [mut ring]) = rings(8);
        ring.push(record(1));
        ring.follow(false);
        ring.push(record(2));
        assert_eq!((after(&ring, 1), budget.log()), (None, 0));
        ring.follow(true);
        ring.push(record(3));
        assert_eq!((after(&ring, 1), after(&ring, 2)), (None, Some(vec![3])));
    }
}
