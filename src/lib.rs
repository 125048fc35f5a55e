//! AegisKV, from the ground up. A module uses only modules declared above it.

pub mod entry;

pub mod clock;

pub mod metrics;

pub mod shard;
