//! AegisKV, from the ground up. A module uses only modules declared above it.

pub mod entry;

pub mod clock;

pub mod metrics;

pub mod store;

pub mod disk;

pub mod wal;

pub mod shard;

pub mod replica;

pub mod coordinator;

pub mod api;

pub mod ops;

pub mod logging;

pub mod process;

pub mod config;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
