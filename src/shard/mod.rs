//! A shard's log: the order of its records, their versions, and the requests they answer.
//!
//! Pure: state and request in, record out. It never does I/O, holds no values, and reads no clock.
//! Only the shard's primary orders; on one node that is always this one.

mod operation;
mod placement;
mod requests;

pub use operation::{Condition, INTEGER_BYTES_MAX, Live, Operation, Ttl};
pub use placement::Placement;
pub use requests::{KEYED_MAX, KEYED_WINDOW, Outcome, Recall, Requests};

use crate::clock::Clock;
use crate::entry::{
    Effect, Key, Position, Record, RequestId, ShardId, Timestamp, Verdict, Version,
};

/// One shard's log, from the side of the node that orders it.
#[derive(Debug)]
pub struct Log {
    shard: ShardId,
    region: u8,
    /// The epoch in which new records are ordered.
    epoch: u32,
    last: Position,
    clock: Clock,
    requests: Requests,
}

impl Log {
    /// An empty log, in its first epoch. `region` is this cluster's region index, 0 to 7.
    pub fn new(shard: ShardId, region: u8) -> Self {
        Self {
            shard,
            region,
            epoch: 1,
            last: Position::default(),
            clock: Clock::default(),
            requests: Requests::default(),
        }
    }

    /// Where the log ends.
    pub fn position(&self) -> Position {
        self.last
    }

    /// The epoch in force: no record of an earlier one will be ordered or taken.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The highest version in the log.
    pub fn highest_version(&self) -> Version {
        self.clock.highest()
    }

    /// The request ids that are kept.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Looks up whether a request was ordered before.
    pub fn recall(&mut self, id: RequestId, now: Timestamp) -> Recall {
        self.requests.recall(id, now)
    }

    /// Puts the next record at the end of the log.
    pub fn order(
        &mut self,
        key: Option<Key>,
        effect: Effect,
        verdict: Verdict,
        request: RequestId,
        now: Timestamp,
    ) -> Record {
        let record = Record {
            shard: self.shard,
            position: Position { epoch: self.epoch, seq: self.last.seq + 1 },
            predecessor_epoch: self.last.epoch,
            key,
            effect,
            version: self.clock.next(now, self.region),
            request,
            verdict,
        };
        self.last = record.position;
        self.requests.note(request, Outcome { verdict, version: record.version });
        record
    }

    /// Takes a record that stands in the log already, on replay. Taking it again is harmless.
    pub fn replay(&mut self, record: &Record) {
        self.resume(record.position, record.position.epoch, record.version);
        let outcome = Outcome { verdict: record.verdict, version: record.version };
        self.requests.note(record.request, outcome);
    }

    /// Goes on from what a snapshot or a fence says; never goes back.
    pub fn resume(&mut self, position: Position, epoch: u32, highest: Version) {
        self.last = self.last.max(position);
        self.epoch = self.epoch.max(epoch).max(position.epoch);
        self.clock.observe(highest);
    }

    /// Takes a request id that a snapshot kept.
    pub fn restore_request(&mut self, id: RequestId, outcome: Outcome) {
        self.requests.note(id, outcome);
    }

    /// Begins a new epoch after memory was lost: versions go on above `highest`, and the epoch's
    /// first, empty record is returned, to be logged before any other.
    pub fn begin_epoch(&mut self, highest: Version, now: Timestamp) -> Record {
        self.epoch += 1;
        self.clock.observe(highest);
        self.order(None, Effect::None, Verdict::Absent, RequestId::Internal, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Departure;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn delete(log: &mut Log, counter: u64) -> Record {
        let key = Key::new(&b"k"[..], 8).expect("short");
        let id = RequestId::Counted { incarnation: 1, counter, waits_from: 1 };
        log.order(Some(key), Effect::Remove(Departure::Deleted), Verdict::Deleted, id, NOW)
    }

    #[test]
    fn records_follow_each_other_without_gaps_and_with_rising_versions() {
        let mut log = Log::new(ShardId(3), 0);
        let (a, b) = (delete(&mut log, 1), delete(&mut log, 2));
        assert_eq!(a.position, Position { epoch: 1, seq: 1 });
        assert_eq!(a.predecessor_epoch, 0);
        assert_eq!(b.position, Position { epoch: 1, seq: 2 });
        assert_eq!(b.predecessor_epoch, 1);
        assert!(b.version > a.version);
    }

    #[test]
    fn a_replayed_log_goes_on_where_it_ended_and_remembers_its_requests() {
        let mut log = Log::new(ShardId(3), 0);
        let (a, b) = (delete(&mut log, 1), delete(&mut log, 2));
        let mut again = Log::new(ShardId(3), 0);
        for record in [&a, &b, &a, &b] {
            again.replay(record);
        }
        assert_eq!(again.position(), b.position);
        let recalled = again.recall(b.request, NOW);
        assert_eq!(recalled, Recall::Done(Outcome { verdict: b.verdict, version: b.version }));
        let c = delete(&mut again, 3);
        assert_eq!(c.position.seq, 3);
        assert!(c.version > b.version);
    }

    #[test]
    fn an_epoch_begun_after_lost_memory_fences_the_old_one_off() {
        let mut log = Log::new(ShardId(0), 0);
        delete(&mut log, 1);
        let ahead = Version::at(Timestamp(NOW.0 + 1000), 0);
        let first = log.begin_epoch(ahead, NOW);
        assert_eq!(first.position, Position { epoch: 2, seq: 2 });
        assert_eq!(first.predecessor_epoch, 1);
        assert!(first.version > ahead);
    }
}
