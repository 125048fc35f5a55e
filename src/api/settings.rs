//! What an operator can change about the client API while it serves.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Sites, Tokens};

/// Operations that one JSON batch may hold. A stream of lines may hold any number.
pub const BATCH_OPS_MAX: usize = 10_000;

/// Operations that one JSON batch may hold under an `Idempotency-Key`: each is remembered for some
/// minutes, and one request must not take up what a shard can remember.
pub const KEYED_BATCH_OPS_MAX: usize = 1_000;

/// Settings in force. All of them may change between two requests of one connection.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Tokens that are accepted; none: everybody is.
    pub tokens: Tokens,
    /// Names and web pages that may be used while no token is set.
    pub sites: Sites,
    /// Limit per connection, if there is one.
    pub rate: Option<Rate>,
    /// Longest wait for a request: from the end of the last one (or the connection's start) until
    /// its head is complete, and again until its body is; between two pieces of a streamed one.
    pub read_timeout: Duration,
    /// Longest time that a client may leave an answer untaken.
    pub write_timeout: Duration,
    /// Connections served at once; the next one is refused.
    pub max_conns: usize,
    /// Longest key, in bytes.
    pub max_key_bytes: usize,
    /// Largest value, in bytes.
    pub max_value_bytes: usize,
    /// Bytes that are held at once for all clients: bodies under way, heads, streams, and values
    /// that were replaced while they were being sent. Who holds most for longest is cut off beyond.
    pub held_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tokens: Tokens::default(),
            sites: Sites::default(),
            rate: None,
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            max_conns: 10_000,
            max_key_bytes: 1024,
            max_value_bytes: 8 << 20,
            held_bytes_max: held_bytes_max(1024 << 20),
        }
    }
}

/// The bytes that a node with so much memory for its entries holds for its clients at most: a quarter
/// of it, but not so little that a few large values fill it, and not more than helps.
pub const fn held_bytes_max(max_memory: u64) -> usize {
    const LEAST: u64 = 128 << 20;
    const MOST: u64 = 512 << 20;
    let quarter = max_memory / 4;
    (if quarter < LEAST {
        LEAST
    } else if quarter > MOST {
        MOST
    } else {
        quarter
    }) as usize
}

/// So many operations a second, and so many at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Operations per second.
    pub per_second: NonZeroU32,
    /// Operations at once.
    pub burst: NonZeroU32,
}

/// The part of the settings that a request carries along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) read_timeout: Duration,
    pub(super) key_bytes: usize,
    pub(super) value_bytes: usize,
    pub(super) rate: Option<Rate>,
}

impl Limits {
    /// Largest JSON batch, and largest line of a streamed one, in bytes: room for a value of the
    /// largest size in base64, and for what stands around it.
    pub(super) fn batch_bytes(self) -> usize {
        const AROUND: usize = 1 << 20;
        self.value_bytes.saturating_mul(2).saturating_add(AROUND)
    }

    /// Bytes of the answer to a JSON batch beyond which it gets no further values. A stream of lines
    /// has no such bound: its operations begin as the client takes the results.
    pub(super) fn batch_answer_bytes(self) -> usize {
        const LEAST: usize = 16 << 20;
        self.value_bytes.saturating_mul(16).max(LEAST)
    }
}

impl Settings {
    /// Bytes that are held for one connection: half of all, or a batch of the largest size.
    pub(super) fn held_bytes_each(&self) -> usize {
        const BESIDE: usize = 8 << 20;
        (self.held_bytes_max / 2).max(2 * self.limits().batch_bytes() + BESIDE)
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            read_timeout: self.read_timeout,
            key_bytes: self.max_key_bytes,
            value_bytes: self.max_value_bytes,
            rate: self.rate,
        }
    }
}
