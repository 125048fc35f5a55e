//! What the copies of a shard say to each other.
//!
//! Each message goes with its shard, the epoch in which it is said, and the seats of both sides.

use std::sync::Arc;

use super::history::History;
use super::{Kept, Outcome};
use crate::entry::{Key, Position, Record, RequestId, ShardId, Timestamp, Version};
use crate::topology::Seat;
use crate::wal::KeyState;

/// A message on its way.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Envelope {
    /// The shard it is about.
    pub shard: ShardId,
    /// Who says it.
    pub from: Seat,
    /// To whom; another life of the same node must not take it.
    pub to: Seat,
    /// In which epoch.
    pub epoch: u32,
    /// What.
    pub message: Message,
}

/// What one copy says to another.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Message {
    /// A new primary: raise your fence to my epoch, and tell where your log ends.
    Fence,
    /// A replica: my fence stands, durably, and my log ends here.
    Fenced {
        /// The end of its log.
        last: Position,
    },
    /// A new primary, to the copy with the longest log: bring me level. This is what I have.
    Take {
        /// Its log.
        history: History,
    },
    /// The primary: take these records, which follow `previous`.
    Append {
        /// The position before the first of them.
        previous: Position,
        /// In order, without gaps. May be empty: do you hold `previous`?
        records: Vec<Arc<Record>>,
        /// The number of the primary's last record.
        last: u64,
    },
    /// A replica: I hold, as durably as the log's mode says, your log up to this number.
    Ack {
        /// The number.
        seq: u64,
    },
    /// A replica: what you sent does not follow what I have. This is what I have.
    Behind {
        /// Its log.
        history: History,
    },
    /// To one who is behind: our logs part after this position. Which keys do your records behind
    /// it name?
    Diverged {
        /// The last position that both logs hold.
        common: Position,
    },
    /// The answer: these keys.
    GiveUp {
        /// The position from `Diverged`.
        common: Position,
        /// The keys, each once.
        keys: Vec<Key>,
    },
    /// To one who is behind: these keys as they are at the end of my log, and my log from where
    /// ours parted up to there.
    Resume {
        /// The last position that both logs held when it was asked.
        common: Position,
        /// The keys that were asked for.
        states: Vec<KeyState>,
        /// The records behind `common`.
        tail: Vec<Arc<Record>>,
        /// The sender's log.
        history: History,
    },
    /// To one who is behind: my recent records do not reach back to what you have; ask for a copy.
    TooFarBehind,
    /// Who needs a copy: the next piece of it, please.
    AskPiece {
        /// Which copy, as the one who asks counts them.
        session: u64,
        /// What came with the last piece; `None` for the first.
        after: Option<Mark>,
    },
    /// A piece of a copy.
    Piece(Box<Piece>),
    /// The primary: does my epoch still stand with you?
    Confirm {
        /// Which time it asks.
        round: u64,
    },
    /// A replica: it does.
    Confirmed {
        /// The round it was asked in.
        round: u64,
    },
    /// Whoever was spoken to in a lower epoch than it knows of.
    Refused {
        /// The epoch it knows of.
        fence: u32,
    },
    /// A replica that was away: where does your log end? To be answered only after a round of
    /// [`Message::Confirm`] that began since (ReadIndex, Ongaro's thesis, §6.4).
    ReadIndex {
        /// Which time it asks; unlike any other of this seat.
        number: u64,
    },
    /// The primary: here, and I led when you asked.
    ReadFrom {
        /// The number it was asked under.
        number: u64,
        /// The end of its log.
        last: Position,
    },
}

impl Message {
    /// Whether the sender vouches for its disk: to be sent only once what it logged is settled.
    pub fn vouches(&self) -> bool {
        matches!(self, Self::Fenced { .. } | Self::Ack { .. } | Self::Confirmed { .. })
    }
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Which life of the source's table the place belongs to.
    pub source: u64,
    /// The place in the source's table where the next piece begins.
    pub place: u64,
    /// The last record that came along.
    pub last: Position,
}

/// A piece of a copy: entries from one place of the table on, and the records that were ordered
/// since the piece before. What the records name may have come with either; in the end both agree.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Piece {
    /// Which copy.
    pub session: u64,
    /// What was asked for.
    pub after: Option<Mark>,
    /// Records since the last piece; none in the first.
    pub records: Vec<Arc<Record>>,
    /// Entries, expired ones too.
    pub entries: Vec<EntryCopy>,
    /// How to go on, or, at the end, the rest.
    pub rest: Rest,
}

/// What comes after a piece.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Rest {
    /// More pieces.
    More(Mark),
    /// Nothing: what comes here completes the copy.
    End {
        /// The log that the copy stands for, at its end.
        history: History,
        /// The highest version in that log.
        highest: Version,
        /// The request ids that the shard keeps.
        requests: Vec<Kept>,
    },
}

/// An entry of a copy.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EntryCopy {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: bytes::Bytes,
    /// Its content type.
    pub content_type: bytes::Bytes,
    /// Its version.
    pub version: Version,
    /// When it expires, if ever.
    pub expires_at: Option<Timestamp>,
}

impl From<(RequestId, Outcome)> for Kept {
    fn from((request, outcome): (RequestId, Outcome)) -> Self {
        Self { request, verdict: outcome.verdict, version: outcome.version }
    }
}
