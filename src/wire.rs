//! What nodes ask of each other for their clients, and how all that they say becomes bytes.
//!
//! Everything is encoded by `postcard`, after a byte that says what it is ([`Kind`]). Whatever
//! comes from outside is checked here for what the types cannot say; it never panics on any bytes.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::entry::{
    CONTENT_TYPE_BYTES_MAX, Effect, Key, Position, Record, RequestId, ShardId, Version,
};
use crate::metrics::Miss;
use crate::shard::{Acks, EntryCopy, Envelope, Message, Need, Ordered, Refused, Request};

/// What a frame between nodes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One way: an [`Envelope`].
    Shard = 1,
    /// A request: an [`Ask`], answered by a [`Reply`].
    Client = 2,
    /// A request: consensus' own.
    Consensus = 3,
    /// A request: an empty node knocks.
    Knock = 4,
    /// One way, to whoever leads the topology: how a node's shards and links stand.
    Report = 5,
    /// One way, to primaries: a node's memory is short by so many bytes (`u64`).
    Pressure = 6,
    /// A request: whether a seat answers at any address of its node.
    Inquiry = 9,
}

impl Kind {
    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Shard,
            2 => Self::Client,
            3 => Self::Consensus,
            4 => Self::Knock,
            5 => Self::Report,
            6 => Self::Pressure,
            9 => Self::Inquiry,
            _ => return None,
        })
    }
}

/// What a coordinator asks of another node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    /// Of a primary: order this, and answer when the need holds.
    Write {
        /// The write.
        request: Request,
        /// `None`: answer once it is ordered.
        need: Option<Need>,
    },
    /// Of a primary: was this ordered before?
    Recall {
        /// The key it was about.
        key: Key,
        /// Who asked.
        id: RequestId,
        /// What must hold before the answer.
        need: Need,
    },
    /// Of a primary: this key, as if there were one copy; or, not linearizable, as it has it.
    Get {
        /// The key.
        key: Bytes,
        /// Whether the epoch must be confirmed first.
        linearizable: bool,
    },
    /// Of any copy that votes: this key, as it has it.
    Peek {
        /// The key.
        key: Bytes,
        /// A version that a write gave the key: does this copy hold that write?
        written: Option<Version>,
    },
    /// Of any copy that votes, or of the primary: live keys from a place of its table on.
    Scan {
        /// The shard.
        shard: ShardId,
        /// Only if this copy leads the shard.
        leading: bool,
        /// The place; good only in the life of the process that gave it.
        from: u64,
        /// What the keys begin with.
        prefix: Bytes,
        /// Most entries in the answer.
        limit: u32,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// It stands in the log; how many copies had it, if that was waited for.
    Ordered(Ordered, Option<Acks>),
    /// It was not ordered before.
    NotOrdered,
    /// The shard does not take it.
    Refused(Refused),
    /// It does not fit into memory.
    Full {
        /// Bytes in use.
        used_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// It was ordered perhaps, but this node leads the shard no more, or its log has failed.
    Unknown,
    /// What this copy has.
    Entry {
        /// The entry, or why there is none.
        entry: Result<EntryCopy, Miss>,
        /// Where the copy's log ended.
        position: Position,
        /// Whether it surely held the write that it was asked about; if none, it did.
        holds: bool,
        /// Whether it leads the shard.
        leads: bool,
        /// Whether it is not known to be old.
        level: bool,
    },
    /// Live keys.
    Page {
        /// The entries.
        entries: Vec<EntryCopy>,
        /// Where to go on; `None` at the end.
        next: Option<u64>,
        /// The life of the process in which the place is good.
        life: u64,
    },
    /// This node has no copy that could answer.
    NoCopy,
}

/// Why bytes from another node are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They do not decode.
    #[error("not a message of this protocol: {0}")]
    Encoding(#[from] postcard::Error),
    /// They decode to what cannot be.
    #[error("a message with impossible contents")]
    Contents,
}

/// Appends a message.
pub fn put(message: &impl Serialize, into: &mut Vec<u8>) {
    let taken = std::mem::take(into);
    *into =
        postcard::to_extend(message, taken).expect("these types serialise, and a vector takes all");
}

/// A message as bytes of its own.
pub fn to_vec(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(message, &mut bytes);
    bytes
}

/// Reads a message.
///
/// # Errors
/// [`Malformed::Encoding`].
pub fn get<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    Ok(postcard::from_bytes(bytes)?)
}

/// Reads an envelope, and checks what its types cannot say.
///
/// # Errors
/// [`Malformed`].
pub fn get_envelope(bytes: &[u8]) -> Result<Envelope, Malformed> {
    let envelope: Envelope = get(bytes)?;
    let sound = match &envelope.message {
        Message::Append { records, .. } => records_are_sound(envelope.shard, records),
        Message::Resume { tail, states, .. } => {
            records_are_sound(envelope.shard, tail)
                && states.iter().all(|state| effect_is_sound(&state.effect))
        }
        Message::Piece(piece) => {
            records_are_sound(envelope.shard, &piece.records)
                && piece.entries.iter().all(entry_is_sound)
        }
        _ => true,
    };
    if sound { Ok(envelope) } else { Err(Malformed::Contents) }
}

/// Reads what another node asks, and checks it.
///
/// # Errors
/// [`Malformed`].
pub fn get_ask(bytes: &[u8]) -> Result<Ask, Malformed> {
    use crate::shard::Operation;
    let ask: Ask = get(bytes)?;
    match &ask {
        Ask::Write {
            request: Request { operation: Operation::Put { content_type, .. }, .. },
            ..
        } if content_type.len() > CONTENT_TYPE_BYTES_MAX => Err(Malformed::Contents),
        _ => Ok(ask),
    }
}

fn records_are_sound(shard: ShardId, records: &[Arc<Record>]) -> bool {
    records.iter().all(|record| {
        record.shard == shard
            && record.position.seq > 0
            && record.position.epoch >= record.predecessor_epoch
            && effect_is_sound(&record.effect)
    })
}

fn effect_is_sound(effect: &Effect) -> bool {
    match effect {
        Effect::Put { content_type, .. } => content_type.len() <= CONTENT_TYPE_BYTES_MAX,
        _ => true,
    }
}

fn entry_is_sound(entry: &EntryCopy) -> bool {
    entry.content_type.len() <= CONTENT_TYPE_BYTES_MAX
}
