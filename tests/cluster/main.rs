//! Clusters of real nodes: processes of the built binary, reached through HTTP, killed, stopped,
//! silenced and cut off from each other.
//!
//! Each test has a cluster of its own, on loopback addresses of its own or, as root, in network
//! namespaces. A test that fails prints the ends of its nodes' logs and keeps their files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod addresses;
mod birth;
mod chaos;
mod datagrams;
mod disks;
mod eviction;
mod failover;
mod leases;
mod links;
mod memory;
mod moves;
mod partition;
mod races;
mod readiness;
mod refusals;
mod removal;
mod serving;
mod support;
mod woken;
