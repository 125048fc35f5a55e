//! Strangers and clients who mean harm: what they send to a node that has half a gigabyte.
//!
//! Each attack is tried on a real process that may have 512 MiB of memory of its own. While it goes
//! on, a bystander puts and gets over connections of its own. The process must live, whoever stands
//! by must be served as before, and the memory must be back soon after. Attacks run one at a time.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod clients;
mod harness;
mod members;
mod operations;
mod requests;
mod wire;
