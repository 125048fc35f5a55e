//! What a client's request says to the coordinator, and what it hears back.

use std::time::Duration;

use crate::entry::{Key, RequestId, Verdict, Version};
use crate::shard::{Acks, Condition, Operation};

/// How many copies must have answered, for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// As `write_quorum` and `read_quorum` say.
    #[default]
    Configured,
    /// Writes are answered at once, before any copy has them (`202`). Reads: any one copy.
    Async,
    /// One copy.
    One,
    /// A majority of the voters.
    Quorum,
    /// Every voter.
    All,
    /// As if there were one copy.
    Linearizable,
}

/// A write to one key.
#[derive(Clone, Debug)]
pub struct Write {
    /// The key.
    pub key: Key,
    /// What to do.
    pub operation: Operation,
    /// What must hold for it.
    pub condition: Condition,
    /// The client's own id for it, if it sent one.
    pub idempotency: Option<IdempotencyKey>,
    /// How many copies.
    pub consistency: Consistency,
}

/// A client's `Idempotency-Key`, and a fingerprint of the request that it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    key: u128,
    request: u64,
}

impl IdempotencyKey {
    /// From the header's bytes and all that the request asks for (method, key, query, body): the
    /// same header with another request is a client's mistake, and is told from a retry by
    /// `request`.
    pub fn new(header: &[u8], request: &[&[u8]]) -> Self {
        use siphasher::sip::SipHasher13;
        use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher13x128};
        use std::hash::Hasher;

        let mut key = SipHasher13x128::new();
        key.write(header);
        let mut fingerprint = SipHasher13::new();
        for part in request {
            fingerprint.write_usize(part.len());
            fingerprint.write(part);
        }
        Self { key: key.finish128().as_u128(), request: fingerprint.finish() }
    }

    /// The id of one step of the request, where it has several (an operation of a batch).
    #[must_use]
    pub fn step(self, index: u64) -> Self {
        let spread = u128::from(index.wrapping_add(1))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        Self { key: self.key ^ spread, request: self.request }
    }

    pub(super) fn id(self) -> RequestId {
        RequestId::Keyed { key: self.key, request: self.request }
    }
}

/// A read of one key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Read {
    /// How many copies.
    pub consistency: Consistency,
    /// Show at least this write.
    pub min_version: Option<Version>,
}

/// A write that was ordered. A refused condition is one of the verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// What it came to.
    pub verdict: Verdict,
    /// The record's version: the entry's new ETag where something was stored.
    pub version: Version,
    /// How many copies had it; `None` if the client did not wait for any.
    pub acks: Option<Acks>,
}

/// Why a request has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not applied, and may be tried again after a while.
    #[error("not applied: {why}")]
    Unavailable {
        /// In words for the client.
        why: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// Ordered, but too few copies acknowledged it in time; it may or may not last.
    #[error("outcome unknown: {why}")]
    Unknown {
        /// In words for the client.
        why: &'static str,
    },
    /// Memory is full and nothing may be evicted to make room.
    #[error(
        "memory is full ({used_bytes} of {limit_bytes} bytes) and nothing can be evicted to make \
         room; delete keys, or raise max_memory_mb"
    )]
    Full {
        /// Bytes in use.
        used_bytes: u64,
        /// The limit (`max_memory_mb`).
        limit_bytes: u64,
    },
    /// The client's `Idempotency-Key` belongs to another request.
    #[error("this Idempotency-Key was used for another request; give each request its own")]
    IdempotencyMismatch,
    /// A cursor that this node did not give out in its present life.
    #[error("unknown cursor; start the listing again without one")]
    Cursor,
}

/// One page of a listing.
#[derive(Clone, Debug)]
pub struct Page {
    /// In no particular order.
    pub entries: Vec<crate::store::Found>,
    /// Where to go on; `None` at the end.
    pub cursor: Option<String>,
    /// For how long a copy that was looked into has been out of touch with its primary.
    pub stale: Option<Duration>,
}
