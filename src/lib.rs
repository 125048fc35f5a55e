//! AegisKV, from the ground up. A module uses only the modules declared above it.
//!
//! **A PUT.** [`api`] reads key, value and header fields from the connection and asks the
//! [`coordinator`], which gives the request its id and takes it to the primary that the
//! [`topology`] names for the key's shard: here, or over [`peer`] on another node. There, in
//! [`replica`] and under the lock of the shard, [`shard`] judges the condition and puts a record
//! into the shard's log; [`wal`] takes the record into its buffer and [`store`] applies it to the
//! shard's table. Outside the lock [`replication`] sends the record to the shard's other copies and
//! settles the WAL as its mode promises. The others do the same, and acknowledge; when as many have
//! it as the request needs, the primary answers, and so does [`api`].
//!
//! **A GET.** [`api`] → [`coordinator`] → [`replica`] → [`store`] → a handle to the entry; its
//! bytes go to the socket uncopied, without a task switch or a lock held across an await. What this
//! node's copy does not have is asked of the primary.
//!
//! **A start.** [`server`] opens the data directory ([`disk`]). A new one goes through [`birth`]:
//! it founds a cluster, or joins one. Then [`server`] loads the newest [`snapshot`] and replays the
//! [`wal`] behind it, connects to the other members, and lets the coordinator serve.
//!
//! **A failure.** [`peer`] notices a broken connection, [`gossip`] a silence; [`consensus`] elects
//! another leader if that is gone; the [`controller`] beside it names other primaries, each in a
//! new epoch. A new primary collects the fences of a majority, takes over the log that goes
//! furthest, and orders on from there.

// What is kept, and what changes it.
pub mod entry;

pub mod clock;

pub mod metrics;

// This node's memory and disk.
pub mod store;

pub mod disk;

pub mod wal;

pub mod snapshot;

/// Whether a rule is broken on purpose, to see that simulations notice.
#[cfg(feature = "mutations")]
macro_rules! mutated {
    ($mutation:ident) => {
        crate::mutation::is(crate::mutation::Mutation::$mutation)
    };
}

#[cfg(not(feature = "mutations"))]
macro_rules! mutated {
    ($mutation:ident) => {
        false
    };
}

#[cfg(feature = "mutations")]
pub mod mutation;

// Who is a member, and who holds and orders each shard.
pub mod topology;

// The order of each shard's records, and the copies that follow it.
pub mod shard;

pub mod replica;

// Between nodes: connections, who seems alive, what all agree on.
pub mod tls;

pub mod peer;

pub mod gossip;

pub mod consensus;

pub mod birth;

// The cluster's work: carrying records, serving clients, keeping copies where they should be.
pub mod wire;

pub mod route;

pub mod replication;

pub mod coordinator;

pub mod controller;

// What it looks like from outside.
pub mod backup;

pub mod api;

pub mod ops;

// One process.
pub mod logging;

pub mod process;

pub mod config;

pub mod server;

pub mod cli;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
