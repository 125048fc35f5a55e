//! One shard's table.
//!
//! Invariants: every entry is in the index and in exactly one eviction queue; the budget has been
//! charged for exactly what the table occupies; the content hash covers exactly the entries held.

use std::fmt;
use std::hash::Hasher;
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use super::budget::{Budget, Charge};
use super::entry::{self, Entry};
use super::ghost::Ghost;
use super::index::{HashKeys, Index};
use super::queues::Queues;
use crate::entry::{Departure, KEY_BYTES_CEILING, Key, Timestamp, Version};
use crate::metrics::Miss;

/// Bytes of memory that an entry with parts of these lengths will be charged. The index takes some
/// ten bytes more, when a page grows.
pub fn size_of_entry(key_len: usize, content_type_len: usize, value_len: usize) -> u64 {
    entry::size_of_entry(key_len, content_type_len, value_len)
}

/// A live entry as it was when it was looked up.
#[derive(Clone, Debug)]
pub struct Found {
    /// Key, content type and value; stays readable whatever becomes of the table.
    pub entry: Entry,
    /// The version it had.
    pub version: Version,
    /// When it expires, if ever.
    pub expires_at: Option<Timestamp>,
}

impl Found {
    /// An entry that comes from another node's table, and is in none here.
    pub fn elsewhere(
        key: &[u8],
        value: &[u8],
        content_type: &[u8],
        version: Version,
        expires_at: Option<Timestamp>,
    ) -> Self {
        let entry = Entry::new(key, content_type, value, version, expires_at);
        Self { entry, version, expires_at }
    }

    /// Its key.
    pub fn key(&self) -> Key {
        key_of(&self.entry)
    }
}

/// What a lookup came to.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The key is there.
    Hit(Found),
    /// It is not; why, as far as the table remembers.
    Miss(Miss),
}

impl Lookup {
    /// What was found, if anything.
    pub fn found(self) -> Option<Found> {
        match self {
            Self::Hit(found) => Some(found),
            Self::Miss(_) => None,
        }
    }
}

/// An entry shown to a scan's visitor.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Key, content type and value. Clone it to keep it.
    pub entry: &'a Entry,
    /// The version it has.
    pub version: Version,
    /// When it expires, if ever.
    pub expires_at: Option<Timestamp>,
}

impl View<'_> {
    /// Keeps what is shown.
    pub fn to_found(self) -> Found {
        let Self { entry, version, expires_at } = self;
        Found { entry: entry.clone(), version, expires_at }
    }

    /// Its key.
    pub fn to_key(self) -> Key {
        key_of(self.entry)
    }
}

/// An entry that should make room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its key.
    pub key: Key,
    /// The version it has: should it have changed when the removal is ordered, spare it.
    pub version: Version,
    /// [`Departure::Evicted`], or [`Departure::Expired`] if its time had run out anyway.
    pub departure: Departure,
}

/// One shard's table. See the [module](super) for what it does and leaves undone.
pub struct Table {
    index: Index,
    queues: Queues,
    ghost: Ghost,
    content_hash: u64,
    budget: Arc<Budget>,
    charged: Charge,
}

impl Table {
    /// An empty table, charged to `budget`. All tables of a process should share `keys`.
    pub fn new(budget: Arc<Budget>, keys: HashKeys) -> Self {
        let mut table = Self {
            index: Index::new(keys),
            queues: Queues::new(),
            ghost: Ghost::default(),
            content_hash: 0,
            budget,
            charged: Charge::default(),
        };
        table.settle();
        table
    }

    /// Looks a key up on a client's behalf: counts as a read for eviction.
    pub fn get(&self, key: &[u8], now: Timestamp) -> Lookup {
        let lookup = self.peek(key, now);
        if let Lookup::Hit(found) = &lookup {
            found.entry.count_read();
        }
        lookup
    }

    /// Looks a key up without counting a read.
    pub fn peek(&self, key: &[u8], now: Timestamp) -> Lookup {
        let hash = self.index.hash(key);
        match self.index.get(hash, key) {
            Some(entry) if entry.is_expired(now) => Lookup::Miss(Miss::Expired),
            Some(entry) => Lookup::Hit(Found {
                version: entry.version(),
                expires_at: entry.expires_at(),
                entry: entry.clone(),
            }),
            None => Lookup::Miss(self.ghost.departure(hash).map_or(Miss::Absent, Miss::from)),
        }
    }

    /// Makes `key` hold this, whatever it held. Returns by how many bytes the table grew (below
    /// zero: shrank).
    ///
    /// # Panics
    /// When `key` is longer than [`KEY_BYTES_CEILING`], `content_type` than
    /// [`crate::entry::CONTENT_TYPE_BYTES_MAX`], or `value` than 4 GiB.
    pub fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        content_type: &[u8],
        version: Version,
        expires_at: Option<Timestamp>,
    ) -> i64 {
        let hash = self.index.hash(key);
        let mark = KeyMark::of(key);
        let entry = Entry::new(key, content_type, value, version, expires_at);
        self.content_hash = self.content_hash.wrapping_add(mark.with(version));
        if let Some(slot) = self.index.slot_mut(hash, key) {
            if let Some(old) = slot.replace(entry.clone()) {
                self.content_hash = self.content_hash.wrapping_sub(mark.with(old.version()));
                // SAFETY: every entry of the index is in the queues; the index now holds the new
                // one, and `remove` and `clear` take entries out of both.
                unsafe { self.queues.substitute(&old, &entry) };
            }
            self.index.expects(hash, expires_at);
        } else {
            let returns = self.ghost.departure(hash) == Some(Departure::Evicted);
            self.ghost.forget(hash);
            // SAFETY: the entry is new, so in no queue; the index keeps it until `remove` or
            // `clear`, which take it out of the queues as well.
            unsafe { self.queues.push(&entry, returns) };
            self.index.insert(hash, entry);
        }
        self.settle()
    }

    /// Gives an entry a new version and expiry; its value stays. Returns whether it was there.
    pub fn touch(&mut self, key: &[u8], version: Version, expires_at: Option<Timestamp>) -> bool {
        let hash = self.index.hash(key);
        let Some(entry) = self.index.get(hash, key) else {
            return false;
        };
        let mark = KeyMark::of(key);
        let without = self.content_hash.wrapping_sub(mark.with(entry.version()));
        entry.stamp(version, expires_at);
        entry.count_read();
        self.content_hash = without.wrapping_add(mark.with(version));
        self.index.expects(hash, expires_at);
        true
    }

    /// Takes a key out and remembers how it left. Returns whether it was there, be it expired.
    pub fn remove(&mut self, key: &[u8], departure: Departure) -> bool {
        let hash = self.index.hash(key);
        let Some(entry) = self.index.remove(hash, key) else {
            return false;
        };
        // SAFETY: every entry of the index is in the queues, and this one has just left it.
        unsafe { self.queues.unlink(&entry) };
        let mark = KeyMark::of(key).with(entry.version());
        self.content_hash = self.content_hash.wrapping_sub(mark);
        self.ghost.note(hash, departure, self.index.len());
        self.settle();
        true
    }

    /// Forgets everything, departures too.
    pub fn clear(&mut self) {
        let keys = self.index.keys().clone();
        // The queues hold addresses of what the index keeps alive: they go first.
        self.queues = Queues::new();
        self.index = Index::new(keys);
        self.ghost = Ghost::default();
        self.content_hash = 0;
        self.settle();
    }

    /// Entries held, expired ones that are not yet removed included.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether the table holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the table occupies.
    pub fn bytes(&self) -> u64 {
        self.charged.bytes
    }

    /// A hash over (key, version) of all entries held, in no order. Two copies of a shard that
    /// have applied the same records have the same one, on any machine.
    pub fn content_hash(&self) -> u64 {
        self.content_hash
    }

    /// Shows live entries to `visit`, in the order of their keyed hashes, from position `from` on
    /// (0 is the start). Looks at `looks_max` entries at most, live or not, or until `visit`
    /// breaks; after either, entries with the very same hash are still shown. Returns the position
    /// to go on from, or `None` at the end. A key that is there all through a scan is shown at
    /// least once, whatever comes and goes. No read is counted.
    ///
    /// `now` at zero shows everything, expired entries too: what a snapshot wants. A position is
    /// good for any table with the same [`HashKeys`], and only for those: see [`HashKeys::id`].
    pub fn scan(
        &self,
        from: u64,
        looks_max: usize,
        now: Timestamp,
        mut visit: impl FnMut(View<'_>) -> ControlFlow<()>,
    ) -> Option<u64> {
        let mut looks = 0;
        self.index.walk(from, |entry| {
            looks += 1;
            let flow = if entry.is_expired(now) {
                ControlFlow::Continue(())
            } else {
                let (version, expires_at) = (entry.version(), entry.expires_at());
                visit(View { entry, version, expires_at })
            };
            if looks >= looks_max { ControlFlow::Break(()) } else { flow }
        })
    }

    /// Appends the keys of entries that have expired at `now`, from position `from` on, for the
    /// caller to remove by record. Looks at some `looks_max` entries (it finishes its page, of less
    /// than a thousand); pages in which nothing expires are skipped at no cost. Returns the
    /// position to go on from, or `None` at the end.
    pub fn sweep(
        &mut self,
        from: u64,
        looks_max: usize,
        now: Timestamp,
        out: &mut Vec<Key>,
    ) -> Option<u64> {
        self.index.sweep(from, looks_max, now, |entry| out.push(key_of(entry)))
    }

    /// Names entries worth `bytes_wanted` bytes or more, at most `candidates_max`, in S3-FIFO's
    /// order; at least one, unless the table is empty. They stay until the caller removes them by
    /// record; asked again before that, the table names the same. One that has been read in the
    /// meantime ([`Self::get`]) may get its second chance so.
    pub fn evict_candidates(
        &mut self,
        bytes_wanted: u64,
        candidates_max: usize,
        now: Timestamp,
    ) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        self.queues.pick(bytes_wanted, candidates_max, now, |entry| {
            let expired = entry.is_expired(now);
            candidates.push(Candidate {
                key: key_of(entry),
                version: entry.version(),
                departure: if expired { Departure::Expired } else { Departure::Evicted },
            });
        });
        candidates
    }

    /// Brings the budget up to date. Returns by how many bytes the table grew.
    fn settle(&mut self) -> i64 {
        let bytes = self.queues.bytes() + self.index.bytes() + self.ghost.bytes();
        let now = Charge { bytes, items: self.index.len() as u64 };
        let before = mem::replace(&mut self.charged, now);
        self.budget.settle(before, now);
        now.bytes.wrapping_sub(before.bytes).cast_signed()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.budget.settle(self.charged, Charge::default());
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("charged", &self.charged).finish_non_exhaustive()
    }
}

fn key_of(entry: &Entry) -> Key {
    Key::new(Bytes::copy_from_slice(entry.key()), KEY_BYTES_CEILING)
        .expect("the entry was made from a key")
}

/// A key's part in the content hash, computed once for all its versions. SipHash-1-3 with a zero
/// key: the same on every node, and some ten nanoseconds for a short key.
struct KeyMark(u64);

impl KeyMark {
    fn of(key: &[u8]) -> Self {
        let mut hasher = SipHasher13::new();
        hasher.write(key);
        Self(hasher.finish())
    }

    /// The summand of this key at `version`: splitmix64's finish (Steele et al., 2014) over both.
    fn with(&self, version: Version) -> u64 {
        let mut z = self.0 ^ version.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
