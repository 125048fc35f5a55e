//! A shard's log: the order of its records, their versions, and the requests they answer.

use std::sync::Arc;

use super::Setting;
use super::history::History;
use super::requests::{Outcome, Recall, Requests};
use super::ring::Ring;
use crate::clock::Clock;
use crate::entry::{
    Effect, Key, Position, Record, RequestId, ShardId, Timestamp, Verdict, Version,
};
use crate::snapshot::Kept;

/// The log of one copy of a shard. It holds no values but those of its recent records.
#[derive(Debug)]
pub(super) struct Log {
    shard: ShardId,
    region: u8,
    pub(super) history: History,
    pub(super) ring: Ring,
    pub(super) clock: Clock,
    pub(super) requests: Requests,
}

impl Log {
    pub(super) fn new(shard: ShardId, setting: &Setting) -> Self {
        Self {
            shard,
            region: setting.region,
            history: History::default(),
            ring: Ring::new(setting.budget.clone(), setting.num_shards),
            clock: Clock::default(),
            requests: Requests::default(),
        }
    }

    /// Where the log ends.
    pub(super) fn last(&self) -> Position {
        self.history.last()
    }

    /// Looks up whether a request was ordered before.
    pub(super) fn recall(&mut self, id: RequestId, now: Timestamp) -> Recall {
        self.requests.recall(id, now)
    }

    /// Makes the next record of `epoch`, whose place is the end of the log, and puts it there.
    pub(super) fn order(
        &mut self,
        epoch: u32,
        key: Option<Key>,
        (effect, verdict): (Effect, Verdict),
        request: RequestId,
        now: Timestamp,
    ) -> Arc<Record> {
        let last = self.last();
        let of_epoch = if mutated!(VersionsWithoutEpoch) { 0 } else { epoch };
        let record = Arc::new(Record {
            shard: self.shard,
            position: Position { epoch, seq: last.seq + 1 },
            predecessor_epoch: last.epoch,
            key,
            effect,
            version: self.clock.next(now, self.region, of_epoch),
            request,
            verdict,
        });
        self.push(record.clone());
        record
    }

    /// Puts a record that follows the last one at the end of the log.
    pub(super) fn push(&mut self, record: Arc<Record>) {
        self.history.push(record.position);
        self.clock.observe(record.version);
        let outcome = Outcome { verdict: record.verdict, version: record.version };
        self.requests.note(record.request, outcome);
        self.ring.push(record);
    }

    /// The position before a record.
    pub(super) fn before(record: &Record) -> Position {
        Position { epoch: record.predecessor_epoch, seq: record.position.seq - 1 }
    }

    /// The records behind `position`, which the log holds, if they are all at hand.
    pub(super) fn after(&self, position: Position) -> Option<Vec<Arc<Record>>> {
        if position == self.last() {
            return Some(Vec::new());
        }
        self.ring.after(position.seq).map(|records| records.cloned().collect())
    }

    /// The records behind `position`, which the log holds, if they are at hand and fit a message.
    pub(super) fn tail(&self, position: Position) -> Option<Vec<Arc<Record>>> {
        if position == self.last() {
            return Some(Vec::new());
        }
        self.ring.tail(position.seq)
    }

    /// Gives up what comes behind `position`, and the request ids `gone` with it.
    pub(super) fn cut(&mut self, position: Position, gone: &[RequestId]) {
        self.history.cut(position);
        self.ring.cut(position.seq);
        gone.iter().for_each(|id| self.requests.forget(*id));
    }

    /// Becomes the log that a copy stands for.
    pub(super) fn adopt(&mut self, history: History, highest: Version, requests: Vec<Kept>) {
        self.history = history;
        self.ring.clear();
        self.clock.observe(highest);
        self.requests = Requests::default();
        requests.into_iter().for_each(|kept| self.restore_request(kept));
    }

    /// Takes a request id that a snapshot or a copy kept.
    pub(super) fn restore_request(&mut self, kept: Kept) {
        let outcome = Outcome { verdict: kept.verdict, version: kept.version };
        self.requests.note(kept.request, outcome);
    }

    /// All request ids that are kept.
    pub(super) fn kept_requests(&self) -> Vec<Kept> {
        self.requests.iter().map(Kept::from).collect()
    }

    /// Empties the log, but for the clock.
    pub(super) fn clear(&mut self) {
        self.history = History::default();
        self.ring.clear();
        self.requests = Requests::default();
    }

    /// Cuts every tie with other logs of the shard: whoever follows from here on needs a copy. A log
    /// that holds anything goes on from a position that no other has: where it ended it may lack
    /// records that others hold up to the same number.
    pub(super) fn start_anew(&mut self, epoch: u32) {
        let last = self.last();
        let anew = match last == Position::default() {
            true => last,
            false => Position { epoch, seq: last.seq + 1 },
        };
        self.history.start_at(anew);
        self.ring.clear();
    }
}
