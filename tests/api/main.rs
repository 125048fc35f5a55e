//! The client API through real sockets, over the real coordinator, store and log.
//!
//! Requests are written out byte by byte, so that what reaches the server is what stands here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod batches;
mod bodies;
mod conditions;
mod connections;
mod document;
mod harness;
mod http2;
mod keys;
mod listings;
mod policies;
mod rights;
mod tls;
mod withdrawn;
