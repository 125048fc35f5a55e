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
use crate::topology::NodeId;

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
    /// One way, or a request answered by a [`Relayed`]: what another member said, to be passed on
    /// to a third, behind a [`Relay`].
    Relay = 7,
    /// A request: whether a seat answers at any address of its node.
    Inquiry = 8,
    /// A request: about the stop lease.
    StopLease = 9,
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
            7 => Self::Relay,
            8 => Self::Inquiry,
            9 => Self::StopLease,
            _ => return None,
        })
    }
}

/// What stands before the body of a message that is passed on by other members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Who said it. The members that pass it on are trusted with that.
    pub origin: NodeId,
    /// Whom it is for.
    pub to: NodeId,
    /// How often it may still be passed on.
    pub hops: u8,
    /// What it is: a [`Kind`] that members say to each other, not another relay.
    pub kind: u8,
    /// For how long an answer is of use, in milliseconds; 0 where none is expected.
    pub within_ms: u32,
}

/// What became of a request that was passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relayed {
    /// The answer of the node that it was for.
    Answer(Bytes),
    /// It surely never reached that node.
    NotSent,
    /// It may have.
    Lost,
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

/// Reads what is to be passed on: what it is, and its body, which shares the memory.
///
/// # Errors
/// [`Malformed`], also where it is of a kind that is not passed on.
pub fn get_relay(bytes: &Bytes) -> Result<(Relay, Kind, Bytes), Malformed> {
    let (relay, body): (Relay, &[u8]) = postcard::take_from_bytes(bytes)?;
    let kind = match Kind::from_byte(relay.kind) {
        Some(Kind::Relay | Kind::Knock) | None => return Err(Malformed::Contents),
        Some(kind) => kind,
    };
    Ok((relay, kind, bytes.slice_ref(body)))
}

const NOT_SENT: u8 = 0;
const LOST: u8 = 1;
const ANSWER: u8 = 2;

impl Relayed {
    /// As the answer of the member that passed the request on: a byte that says which it is, and
    /// the answer.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::NotSent => Bytes::from_static(&[NOT_SENT]),
            Self::Lost => Bytes::from_static(&[LOST]),
            Self::Answer(answer) => [&[ANSWER], &answer[..]].concat().into(),
        }
    }

    /// Reads such an answer. One that makes no sense is lost.
    pub fn decode(bytes: &Bytes) -> Self {
        match bytes.first() {
            Some(&NOT_SENT) => Self::NotSent,
            Some(&ANSWER) => Self::Answer(bytes.slice(1..)),
            _ => Self::Lost,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(kind: Kind) -> Bytes {
        let (origin, to) = (NodeId(1), NodeId(2));
        let relay = Relay { origin, to, hops: 7, kind: kind as u8, within_ms: 300 };
        let mut bytes = Vec::new();
        put(&relay, &mut bytes);
        bytes.extend_from_slice(b"body");
        bytes.into()
    }

    #[test]
    fn what_is_passed_on_comes_out_as_it_went_in() {
        let (relay, kind, body) = get_relay(&relay(Kind::Client)).unwrap();
        assert_eq!((relay.origin, relay.to, relay.hops), (NodeId(1), NodeId(2), 7));
        assert_eq!((kind, relay.within_ms, &body[..]), (Kind::Client, 300, &b"body"[..]));
    }

    #[test]
    fn neither_a_knock_nor_what_is_passed_on_already_is_wrapped() {
        for kind in [Kind::Relay, Kind::Knock] {
            assert_eq!(get_relay(&relay(kind)).unwrap_err(), Malformed::Contents, "{kind:?}");
        }
        assert!(get_relay(&Bytes::new()).is_err());
    }

    #[test]
    fn an_answer_is_told_from_its_failing_and_nonsense_is_lost() {
        for relayed in [Relayed::Answer(Bytes::from_static(b"a")), Relayed::NotSent, Relayed::Lost]
        {
            assert_eq!(Relayed::decode(&relayed.encode()), relayed);
        }
        assert_eq!(Relayed::decode(&Bytes::new()), Relayed::Lost);
        assert_eq!(Relayed::decode(&Bytes::from_static(&[9, 9])), Relayed::Lost);
    }
}
