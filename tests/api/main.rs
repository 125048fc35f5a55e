//! The client API through real sockets, over the real coordinator, store and log.
//!
//! Requests are written out byte by byte, so that what reaches the server is what stands here.

mod conditions;
mod harness;
mod keys;
mod listings;
