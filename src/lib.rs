//! AegisKV, from the ground up. A module uses only modules declared above it.

pub mod entry;

pub mod clock;

pub mod store;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
