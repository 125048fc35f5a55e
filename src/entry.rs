//! What is kept, and what changes it: keys, values, versions, and the records of a shard's log.
//!
//! Everything here is plain data. A [`Record`] holds the *result* of an operation, never the
//! operation itself, so that applying it twice, or on another node, ends in the same state.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Longest key that the formats on disk and wire can hold, in bytes.
pub const KEY_BYTES_CEILING: usize = u16::MAX as usize;

/// Longest content type that is kept, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// A key: 1 to [`KEY_BYTES_CEILING`] arbitrary bytes, cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Bytes")]
pub struct Key(Bytes);

impl TryFrom<Bytes> for Key {
    type Error = KeyError;

    fn try_from(bytes: Bytes) -> Result<Self, KeyError> {
        Self::new(bytes, KEY_BYTES_CEILING)
    }
}

/// Why bytes cannot be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No bytes at all.
    #[error("the key is empty; a key has at least one byte")]
    Empty,
    /// More bytes than the limit allows.
    #[error("the key has {bytes} bytes; the limit is {bytes_max} (max_key_bytes)")]
    TooLong {
        /// Length of the refused key.
        bytes: usize,
        /// The limit in force.
        bytes_max: usize,
    },
}

impl Key {
    /// Takes bytes as a key.
    ///
    /// # Errors
    /// [`KeyError`] when `bytes` is empty or longer than `bytes_max` (itself capped at
    /// [`KEY_BYTES_CEILING`]).
    pub fn new(bytes: impl Into<Bytes>, bytes_max: usize) -> Result<Self, KeyError> {
        let bytes = bytes.into();
        let bytes_max = bytes_max.min(KEY_BYTES_CEILING);
        match bytes.len() {
            0 => Err(KeyError::Empty),
            n if n > bytes_max => Err(KeyError::TooLong { bytes: n, bytes_max }),
            _ => Ok(Self(bytes)),
        }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key's bytes, sharing their memory.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(\"{}\")", self.0.escape_ascii())
    }
}

/// A wall-clock instant: milliseconds since 1970-01-01 UTC.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The wall clock's present reading; 0 for a clock before 1970.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// This instant and `span` more, or `None` past the end of time.
    pub fn checked_add(self, span: Duration) -> Option<Self> {
        let millis = u64::try_from(span.as_millis()).ok()?;
        self.0.checked_add(millis).map(Self)
    }

    /// This instant less `span`; the beginning of time at the earliest.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Milliseconds from `now` until this instant; 0 if it has passed.
    pub fn millis_after(self, now: Self) -> u64 {
        self.0.saturating_sub(now.0)
    }
}

/// An entry's version: its ETag, and the last-writer order between regions.
///
/// From the highest bit down: milliseconds since 2025-01-01 UTC (42 bits), a counter within the
/// millisecond (12), the region's index (3), the lowest bits of the epoch it was given in (7): a
/// primary that is deposed, and does not know it, gives no version that the next one gives too.
/// Zero is never given out.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Version(pub u64);

impl Version {
    /// 2025-01-01T00:00:00Z in milliseconds since 1970.
    pub const EPOCH_MILLIS: u64 = 1_735_689_600_000;
    const REGION_BITS: u32 = 3;
    const EPOCH_BITS: u32 = 7;
    const COUNTER_BITS: u32 = 12;
    const TICK_SHIFT: u32 = Self::REGION_BITS + Self::EPOCH_BITS;

    /// The version of the first record in a millisecond, at `now`, in region `region` (0 to 7).
    pub fn at(now: Timestamp, region: u8) -> Self {
        let millis = now.0.saturating_sub(Self::EPOCH_MILLIS);
        Self(millis << (Self::COUNTER_BITS + Self::TICK_SHIFT) | Self::region_bits(region))
    }

    /// The least version of region `region` whose (milliseconds, counter) lies above this one's.
    pub fn next(self, region: u8) -> Self {
        let tick = (self.0 >> Self::TICK_SHIFT) + 1;
        Self(tick << Self::TICK_SHIFT | Self::region_bits(region))
    }

    /// This version, as given in `epoch`.
    pub fn of_epoch(self, epoch: u32) -> Self {
        let mask = (1 << Self::EPOCH_BITS) - 1;
        Self(self.0 & !mask | u64::from(epoch) & mask)
    }

    /// The wall-clock instant that the version carries.
    pub fn timestamp(self) -> Timestamp {
        Timestamp((self.0 >> (Self::COUNTER_BITS + Self::TICK_SHIFT)) + Self::EPOCH_MILLIS)
    }

    /// The index of the region in which the version was born.
    pub fn region(self) -> u8 {
        ((self.0 >> Self::EPOCH_BITS) & 0b111) as u8
    }

    fn region_bits(region: u8) -> u64 {
        u64::from(region & 0b111) << Self::EPOCH_BITS
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A shard's number: 0 to `num_shards` - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u16);

/// A place in a shard's log. Positions of one shard are ordered by epoch, then by sequence number.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Position {
    /// The epoch whose primary ordered the record.
    pub epoch: u32,
    /// 1 for a shard's first record, then without gaps, across epochs.
    pub seq: u64,
}

/// Who asked for a write, so that asking again does not apply it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RequestId {
    /// Nobody: the shard's own record (expiry, eviction, an epoch's first).
    Internal,
    /// A coordinator's own number for it.
    Counted {
        /// Which life of which coordinator.
        incarnation: u64,
        /// Rises by one with each request of that life to this shard.
        counter: u64,
        /// The lowest counter that the coordinator still waits for; below it replicas forget.
        waits_from: u64,
    },
    /// A client's `Idempotency-Key`.
    Keyed {
        /// 128-bit hash of the client's key.
        key: u128,
        /// 64-bit hash of the request, to tell a retry from a key used twice.
        request: u64,
    },
}

/// How a key came to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Departure {
    /// A client deleted it.
    Deleted,
    /// Its time ran out.
    Expired,
    /// Memory was short.
    Evicted,
}

/// What a record does to its key. Applying it again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Nothing: a refusal, or the first record of an epoch.
    None,
    /// The key holds this from now on.
    Put {
        /// The value's bytes.
        value: Bytes,
        /// As the client sent it; at most [`CONTENT_TYPE_BYTES_MAX`] bytes; empty if unset.
        content_type: Bytes,
        /// When it expires, if ever.
        expires_at: Option<Timestamp>,
    },
    /// The key keeps its value and has a new version and expiry.
    Touch {
        /// When it expires, if ever.
        expires_at: Option<Timestamp>,
    },
    /// The key is gone.
    Remove(Departure),
}

/// What a write came to. Kept beside its request id, so that a retry gets the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// Stored where no live value was.
    Created,
    /// Stored over a live value.
    Replaced,
    /// Deleted, whether or not it was there.
    Deleted,
    /// The counter's new value.
    Number(i64),
    /// A new expiry was set.
    Touched,
    /// This many keys were deleted under a prefix.
    Counted(u64),
    /// The condition did not hold; the live entry's version, if there is one.
    ConditionFailed(Option<Version>),
    /// The present value is not a 64-bit integer, or the sum would leave its range.
    NotAnInteger,
    /// Nothing there to touch.
    Absent,
}

/// One step of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The shard in whose log it stands.
    pub shard: ShardId,
    /// Where in that log.
    pub position: Position,
    /// The epoch of the record before it; 0 for the first.
    pub predecessor_epoch: u32,
    /// The key it is about; `None` where it is about none.
    pub key: Option<Key>,
    /// What it does.
    pub effect: Effect,
    /// Its version, above every earlier one of the shard. Carries the region of origin.
    pub version: Version,
    /// Who asked.
    pub request: RequestId,
    /// What was, or will be, answered.
    pub verdict: Verdict,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_holds_time_counter_and_region_where_the_contract_says() {
        let v = Version::at(Timestamp(1_735_689_600_001), 5);
        assert_eq!(v.0, (1 << 22) | (5 << 7));
        assert_eq!(v.timestamp(), Timestamp(1_735_689_600_001));
        assert_eq!(v.region(), 5);
        assert_eq!(v.next(2).0, (1 << 22) | (1 << 10) | (2 << 7));
    }

    #[test]
    fn a_full_counter_runs_over_into_the_next_millisecond() {
        let full = Version((7 << 22) | (0xfff << 10));
        assert_eq!(full.next(0), Version(8 << 22));
    }

    #[test]
    fn keys_outside_their_bounds_are_refused_with_the_bound() {
        assert_eq!(Key::new(Bytes::new(), 4), Err(KeyError::Empty));
        assert_eq!(Key::new(&b"12345"[..], 4), Err(KeyError::TooLong { bytes: 5, bytes_max: 4 }));
        assert!(Key::new(&b"1234"[..], 4).is_ok());
    }
}
