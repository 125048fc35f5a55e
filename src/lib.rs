//! AegisKV, from the ground up. A module uses only the modules declared above it.
//!
//! **A PUT.** [`api`] reads key, value and header fields from the connection and asks the
//! [`coordinator`], which gives the request its id and hands it to the [`replica`]. There, under
//! the lock of the key's shard, [`shard`] judges the condition and puts a record into the shard's
//! log; [`wal`] takes the record into its buffer and [`store`] applies it to the shard's table.
//! Back outside the lock the coordinator waits until the WAL is settled as its mode promises, and
//! [`api`] answers.
//!
//! **A GET.** [`api`] → [`coordinator`] → [`replica`] → [`store`] → a handle to the entry; its
//! bytes go to the socket uncopied, without a task switch or a lock held across an await.
//!
//! **A start.** [`server`] opens the data directory ([`disk`]), loads the newest [`snapshot`] and
//! replays the [`wal`] behind it, and only then lets the coordinator serve.

// What is kept, and what changes it.
pub mod entry;

pub mod clock;

pub mod metrics;

// This node's memory and disk.
pub mod store;

pub mod disk;

pub mod wal;

pub mod snapshot;

// Who is a member, and who holds and orders each shard.
pub mod topology;

#[cfg(feature = "mutations")]
pub mod mutation;

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
