//! This node's tables, one per shard: what is kept in memory, what has expired, what should go.
//!
//! Synchronous and without I/O: `now` is an argument, whoever calls holds the shard's lock.
//! A table only ever changes by what a record says ([`Table::put`], [`Table::touch`],
//! [`Table::remove`]); it hides what has expired and names what should be evicted, and leaves the
//! removing to its caller's records. So copies of a shard that have applied the same records are
//! equal, by [`Table::content_hash`] too.
//!
//! The way down: [`Table`] → its index (extendible hashing over pages of tagged handles) → an
//! [`Entry`], one allocation each; eviction's queues run through the entries. Everything is
//! charged to one [`Budget`] by the allocator's usable sizes.

mod allocator;
mod budget;
mod entry;
mod ghost;
mod index;
mod page;
mod queues;
mod table;

pub use budget::{Budget, Config, EvictionPolicy, REPLICATION_LOG_PART};
pub use entry::Entry;
pub use index::HashKeys;
pub use table::{Candidate, Found, Lookup, Table, View, size_of_entry};
