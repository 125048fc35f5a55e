//! Sees everything, and complains: what must hold of the copies of a shard at any moment.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aegiskv::entry::{Position, Record, RequestId, ShardId, Version};
use aegiskv::replica::ShardStatus;
use aegiskv::shard::{Envelope, Message, Part};

/// What is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Complaint(pub(crate) String);

#[derive(Debug, Default)]
pub(crate) struct Witness {
    shards: BTreeMap<ShardId, Seen>,
    pub(crate) complaint: Option<Complaint>,
}

/// What was seen of a shard.
#[derive(Debug, Default)]
struct Seen {
    /// What each copy held that stood at a position.
    contents: HashMap<Position, u64>,
    records: HashMap<Position, Arc<Record>>,
    /// The last position that a primary called committed.
    committed: Position,
    /// The epoch that was last seen active.
    active: u32,
    /// What was committed before this epoch counts no more.
    anew_from: u32,
    /// By machine: what was committed when its process last saw that it had stood still.
    woken_at: BTreeMap<usize, Position>,
}

impl Witness {
    pub(crate) fn complain(&mut self, what: String) {
        if self.complaint.is_none() {
            self.complaint = Some(Complaint(what));
        }
    }

    /// A shard goes on from a copy that may lack what was acknowledged: what was committed counts
    /// no more.
    pub(crate) fn declared_unclean(&mut self, shard: ShardId, epoch: u32) {
        let seen = self.shards.entry(shard).or_default();
        seen.committed = Position::default();
        seen.anew_from = epoch;
        seen.woken_at.clear();
    }

    /// A process sees that it stood still.
    pub(crate) fn wakes(&mut self, machine: usize) {
        for seen in self.shards.values_mut() {
            seen.woken_at.insert(machine, seen.committed);
        }
    }

    /// A process begins.
    pub(crate) fn begins(&mut self, machine: usize) {
        self.shards.values_mut().for_each(|seen| _ = seen.woken_at.remove(&machine));
    }

    /// A copy that counts as level is shown to a client. Answers whether it had been away.
    pub(crate) fn is_shown(&mut self, machine: usize, shard: ShardId, last: Position) -> bool {
        let Some(seen) = self.shards.get(&shard) else { return false };
        let Some(woken_at) = seen.woken_at.get(&machine).copied() else { return false };
        if seen.lacks(last, woken_at) {
            self.complain(format!(
                "machine {machine} shows a copy to {last:?} for level that lacks {woken_at:?}, \
                 which was committed when it woke"
            ));
        }
        true
    }

    /// Looks at the records in a message.
    pub(crate) fn sees_message(&mut self, envelope: &Envelope) {
        let records = match &envelope.message {
            Message::Append { records, .. } => records,
            Message::Resume { tail, .. } => tail,
            Message::Piece(piece) => &piece.records,
            _ => return,
        };
        for record in records {
            self.sees_record(record);
        }
    }

    fn sees_record(&mut self, record: &Arc<Record>) {
        let seen = self.shards.entry(record.shard).or_default();
        let at = record.position;
        if let Some(known) = seen.records.get(&at) {
            if !Arc::ptr_eq(known, record) && known != record {
                let what = format!("two records at {at:?}: {known:?} and {record:?}");
                self.complain(what);
            }
            return;
        }
        let before = Position { epoch: record.predecessor_epoch, seq: at.seq - 1 };
        let falls =
            seen.records.get(&before).is_some_and(|before| before.version >= record.version);
        seen.records.insert(at, record.clone());
        if falls {
            self.complain(format!("the version does not rise at {at:?}: {record:?}"));
        }
    }

    /// Whether the log that ends at `last` surely lacks a write.
    pub(crate) fn lacks_write(
        &self,
        shard: ShardId,
        last: Position,
        (version, id): (Version, RequestId),
    ) -> bool {
        let Some(seen) = self.shards.get(&shard) else { return false };
        let mut records = seen.records.values();
        let write = records.find(|record| record.version == version && record.request == id);
        write.is_some_and(|record| seen.lacks(last, record.position))
    }

    /// Looks at a copy after it has done something.
    pub(crate) fn sees_copy(&mut self, machine: usize, status: &ShardStatus) {
        let seen = self.shards.entry(status.shard).or_default();
        let at = status.position;
        if status.vouches && at.epoch >= seen.anew_from {
            let known = *seen.contents.entry(at).or_insert(status.content_hash);
            if known != status.content_hash {
                return self.complain(format!("machine {machine} holds other content at {at:?}"));
            }
        }
        if status.part != Part::Active {
            return;
        }
        if at.epoch > seen.active {
            seen.active = at.epoch;
            let committed = seen.committed;
            if committed.epoch < at.epoch && seen.lacks(at, committed) {
                return self.complain(format!(
                    "machine {machine} leads with a log to {at:?} that lacks {committed:?}, which \
                     was committed"
                ));
            }
        }
        let seen = self.shards.entry(status.shard).or_default();
        if status.committed == at.seq && at > seen.committed && at.epoch >= seen.anew_from {
            seen.committed = at;
        }
    }
}

impl Seen {
    /// Whether the log that ends at `last` surely lacks what stands at `wanted`.
    fn lacks(&self, last: Position, wanted: Position) -> bool {
        let mut at = last;
        while at.seq > wanted.seq {
            let Some(record) = self.records.get(&at) else { return false };
            at = Position { epoch: record.predecessor_epoch, seq: at.seq - 1 };
        }
        at != wanted
    }
}

/// What a kind of message is called in the counts.
pub(crate) fn name_of(message: &Message) -> &'static str {
    match message {
        Message::Fence => "message fence",
        Message::Fenced { .. } => "message fenced",
        Message::Take { .. } => "message take",
        Message::Append { .. } => "message append",
        Message::Ack { .. } => "message ack",
        Message::Behind { .. } => "message behind",
        Message::Diverged { .. } => "message diverged",
        Message::GiveUp { .. } => "message give up",
        Message::Resume { .. } => "message resume",
        Message::TooFarBehind => "message too far behind",
        Message::AskPiece { .. } => "message ask piece",
        Message::Piece(piece) if piece.after.is_some() => "message piece after the first",
        Message::Piece(_) => "message piece",
        Message::Confirm { .. } => "message confirm",
        Message::Confirmed { .. } => "message confirmed",
        Message::Refused { .. } => "message refused",
        Message::ReadIndex { .. } => "message read index",
        Message::ReadFrom { .. } => "message read from",
    }
}
