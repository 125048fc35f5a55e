//! AegisKV, from the ground up. A module uses only modules declared above it.

pub mod entry;

pub mod clock;

pub mod metrics;

pub mod disk;

pub mod wal;

pub mod shard;

pub mod backup;

pub mod logging;

pub mod process;

pub mod config;

pub mod server;

pub mod cli;
