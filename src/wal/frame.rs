//! The frame: what one step of the log looks like in bytes.

use bytes::Bytes;

use super::{Error, Lsn, codec};
use crate::entry::{Effect, Key, Position, Record, RequestId, ShardId, Version};

/// The largest frame, in bytes, that is written or read.
pub const FRAME_BYTES_MAX: usize = 1 << 30;

/// Length of what stands before a frame's body, in bytes.
pub(crate) const FRAME_HEADER_BYTES: usize = 23;

/// One step of the node's log.
///
/// # Format
/// Numbers are little-endian.
///
/// | bytes | what |
/// |---|---|
/// | 4 | CRC32C of all that follows, continued from the cluster's salt |
/// | 4 | length of the body |
/// | 8 | log sequence number |
/// | 4 | how many of the frames right before this one were perhaps not durable when it was written |
/// | 1 | kind: 1 record, 2 fence, 3 give-up, 4 adoption, 5 drop, 6 vouching |
/// | 2 | shard |
/// | … | body |
///
/// In mode `sync` the third field counts from the first frame of the batch, because a batch is
/// written when the one before it is durable. It tells a torn tail from a damaged disk: a broken
/// frame that a later frame calls durable was not torn, it was lost.
///
/// Bodies, `position` being epoch (4) and sequence number (8):
/// - record: shard (2), position, predecessor's epoch (4), version (8), then request id, verdict,
///   key and effect, each with a tag or a length before it;
/// - fence: epoch (4);
/// - give-up: position kept, then three lists, each a count (4) and its members: the states (key,
///   version (8), effect), the records, and the request ids;
/// - adoption: session (16), position, fence (4), life (8);
/// - drop: fence (4);
/// - vouching: life (8).
///
/// A frame of zeros cannot verify, and stands for the end of the log: segments are allocated
/// ahead of what is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A record of a shard's log.
    Record(Record),
    /// The shard was told of this epoch and refuses lower ones.
    Fence {
        /// The shard.
        shard: ShardId,
        /// The highest epoch it was told of.
        epoch: u32,
    },
    /// The shard gave up what it had after `kept` and took over, in the same step, what its
    /// primary has instead.
    GiveUp {
        /// The shard.
        shard: ShardId,
        /// The last position that both logs share.
        kept: Position,
        /// The keys that the given-up records named, as the primary has them.
        states: Vec<KeyState>,
        /// The primary's records after `kept`.
        records: Vec<Record>,
        /// The request ids of the records that were given up.
        gone: Vec<RequestId>,
    },
    /// The shard's whole state is from here on that of a copy, which is durable already.
    Adopt {
        /// The shard.
        shard: ShardId,
        /// The session in which the copy was made; names its file.
        session: u128,
        /// Where in the shard's log the copy stands.
        position: Position,
        /// The fence that goes with it.
        fence: u32,
        /// The life of the node from which on it vouches for this copy.
        life: u64,
    },
    /// The shard's data is dropped from this node; its fence is kept.
    Drop {
        /// The shard.
        shard: ShardId,
        /// The highest epoch it was told of.
        fence: u32,
    },
    /// From here on the node vouches for the shard's log in this life of its memory: the log
    /// begins here, or is declared to be the one that counts. What came before it ties to no other
    /// node's log.
    Vouch {
        /// The shard.
        shard: ShardId,
        /// The life.
        life: u64,
    },
}

/// A key as a primary has it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeyState {
    /// The key.
    pub key: Key,
    /// The version of what it holds, or with which it went.
    pub version: Version,
    /// A put or a removal.
    pub effect: Effect,
}

/// Why bytes are not a frame's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the frame's checksum holds but its body is not one this aegiskv can read")]
pub struct FrameError;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Record = 1,
    Fence = 2,
    GiveUp = 3,
    Adopt = 4,
    Drop = 5,
    Vouch = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Record,
            2 => Self::Fence,
            3 => Self::GiveUp,
            4 => Self::Adopt,
            5 => Self::Drop,
            6 => Self::Vouch,
            _ => return None,
        })
    }
}

/// What stands before a frame's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) crc: u32,
    pub(crate) body_bytes: usize,
    pub(crate) lsn: Lsn,
    /// All frames up to this one were durable when this frame was written.
    pub(crate) durable: Lsn,
    pub(crate) kind: Kind,
    pub(crate) shard: ShardId,
}

impl FrameHeader {
    /// Reads a header; `None` if no frame can begin so. Says nothing of the checksum.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; FRAME_HEADER_BYTES] = bytes.first_chunk()?;
        let u32_at =
            |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let lsn = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        let body_bytes = u32_at(4) as usize;
        let unsure = u64::from(u32_at(16));
        if body_bytes > FRAME_BYTES_MAX || lsn == 0 || unsure >= lsn {
            return None;
        }
        Some(Self {
            crc: u32_at(0),
            body_bytes,
            lsn: Lsn(lsn),
            durable: Lsn(lsn - 1 - unsure),
            kind: Kind::from_byte(header[20])?,
            shard: ShardId(u16::from_le_bytes([header[21], header[22]])),
        })
    }

    /// The whole frame's length in bytes.
    pub(crate) fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.body_bytes
    }
}

/// The checksum of a frame, given whole.
pub(crate) fn checksum(salt: u32, frame: &[u8]) -> u32 {
    crc32c::crc32c_append(salt, &frame[4..])
}

/// Appends a frame to `into`; `body` writes what comes after the header.
pub(crate) fn put_frame(
    into: &mut Vec<u8>,
    salt: u32,
    (lsn, durable): (Lsn, Lsn),
    (kind, shard): (Kind, ShardId),
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = into.len();
    let unsure = u32::try_from(lsn.0 - 1 - durable.0)
        .expect("far fewer than 2^32 frames are written between two syncs");
    into.extend_from_slice(&[0; 8]);
    into.extend_from_slice(&lsn.0.to_le_bytes());
    into.extend_from_slice(&unsure.to_le_bytes());
    into.push(kind as u8);
    into.extend_from_slice(&shard.0.to_le_bytes());
    body(into);
    let frame = &mut into[start..];
    let body_bytes = u32::try_from(frame.len() - FRAME_HEADER_BYTES)
        .expect("a frame's size is checked before it is written");
    frame[4..8].copy_from_slice(&body_bytes.to_le_bytes());
    let crc = checksum(salt, frame);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
}

impl Frame {
    /// The shard it is about.
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Record(record) => record.shard,
            Self::Fence { shard, .. }
            | Self::GiveUp { shard, .. }
            | Self::Adopt { shard, .. }
            | Self::Drop { shard, .. }
            | Self::Vouch { shard, .. } => *shard,
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Record(_) => Kind::Record,
            Self::Fence { .. } => Kind::Fence,
            Self::GiveUp { .. } => Kind::GiveUp,
            Self::Adopt { .. } => Kind::Adopt,
            Self::Drop { .. } => Kind::Drop,
            Self::Vouch { .. } => Kind::Vouch,
        }
    }

    /// The kind's name, for people.
    pub fn kind_name(&self) -> &'static str {
        match self.kind() {
            Kind::Record => "record",
            Kind::Fence => "fence",
            Kind::GiveUp => "give-up",
            Kind::Adopt => "adoption",
            Kind::Drop => "drop",
            Kind::Vouch => "vouching",
        }
    }

    pub(crate) fn put_body(&self, into: &mut Vec<u8>) {
        match self {
            Self::Record(record) => codec::put_record(into, record),
            Self::Fence { epoch: fence, .. } | Self::Drop { fence, .. } => {
                into.extend_from_slice(&fence.to_le_bytes());
            }
            Self::GiveUp { kept, states, records, gone, .. } => {
                codec::put_position(into, *kept);
                put_count(into, states.len());
                for state in states {
                    codec::put_key(into, Some(&state.key));
                    into.extend_from_slice(&state.version.0.to_le_bytes());
                    codec::put_effect(into, &state.effect);
                }
                put_count(into, records.len());
                for record in records {
                    codec::put_record(into, record);
                }
                put_count(into, gone.len());
                for id in gone {
                    codec::put_request(into, id);
                }
            }
            Self::Adopt { session, position, fence, life, .. } => {
                into.extend_from_slice(&session.to_le_bytes());
                codec::put_position(into, *position);
                into.extend_from_slice(&fence.to_le_bytes());
                into.extend_from_slice(&life.to_le_bytes());
            }
            Self::Vouch { life, .. } => into.extend_from_slice(&life.to_le_bytes()),
        }
    }

    /// Reads a body whose frame has verified. The result shares `body`'s memory.
    pub(crate) fn get(kind: Kind, shard: ShardId, body: &mut Bytes) -> Result<Self, FrameError> {
        let frame = Self::get_body(kind, shard, body).ok_or(FrameError)?;
        if body.is_empty() && frame.shard() == shard { Ok(frame) } else { Err(FrameError) }
    }

    fn get_body(kind: Kind, shard: ShardId, body: &mut Bytes) -> Option<Self> {
        Some(match kind {
            Kind::Record => Self::Record(codec::get_record(body)?),
            Kind::Fence => Self::Fence { shard, epoch: codec::take_u32(body)? },
            Kind::GiveUp => {
                let kept = codec::get_position(body)?;
                let states = get_list(body, get_state)?;
                let records = get_list(body, codec::get_record)?;
                let gone = get_list(body, codec::get_request)?;
                Self::GiveUp { shard, kept, states, records, gone }
            }
            Kind::Adopt => Self::Adopt {
                shard,
                session: codec::take_u128(body)?,
                position: codec::get_position(body)?,
                fence: codec::take_u32(body)?,
                life: codec::take_u64(body)?,
            },
            Kind::Drop => Self::Drop { shard, fence: codec::take_u32(body)? },
            Kind::Vouch => Self::Vouch { shard, life: codec::take_u64(body)? },
        })
    }

    /// Its length in bytes, or a little more; refused above [`FRAME_BYTES_MAX`].
    pub(crate) fn check_size(&self) -> Result<(), Error> {
        let bytes = match self {
            Self::Record(record) => codec::record_bytes(record),
            Self::GiveUp { states, records, gone, .. } => {
                let of_state =
                    |s: &KeyState| 16 + s.key.as_bytes().len() + 8 + codec::effect_bytes(&s.effect);
                64 + 32 * gone.len()
                    + states.iter().map(of_state).sum::<usize>()
                    + records.iter().map(codec::record_bytes).sum::<usize>()
            }
            _ => 64,
        };
        within_frame(bytes)
    }
}

/// Refuses a frame of more than [`FRAME_BYTES_MAX`].
pub(crate) fn within_frame(bytes: usize) -> Result<(), Error> {
    if bytes + FRAME_HEADER_BYTES > FRAME_BYTES_MAX {
        Err(Error::TooLarge { bytes })
    } else {
        Ok(())
    }
}

fn put_count(into: &mut Vec<u8>, n: usize) {
    let n = u32::try_from(n).expect("a frame's size is checked before it is written");
    into.extend_from_slice(&n.to_le_bytes());
}

/// Reads a counted list; a count beyond what the bytes can hold fails at the first missing member.
fn get_list<T>(from: &mut Bytes, member: impl Fn(&mut Bytes) -> Option<T>) -> Option<Vec<T>> {
    let n = codec::take_u32(from)?;
    (0..n).map(|_| member(from)).collect()
}

fn get_state(from: &mut Bytes) -> Option<KeyState> {
    let key = codec::get_key(from)??;
    let version = Version(codec::take_u64(from)?);
    Some(KeyState { key, version, effect: codec::get_effect(from)? })
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
