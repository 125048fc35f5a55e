//! The client API over HTTP: the only place that knows routes, header fields and status codes.
//!
//! Keys, values and results go through as the bytes they are; what a request means is decided by
//! [`crate::coordinator`]. Invariants: no answer leaves without the header fields that keep
//! browsers from running it; a key is decoded exactly once; every body, wait and queue is bounded
//! by a setting of [`Settings`] or a constant here.

mod answer;
mod batch;
mod client;
mod conditions;
mod dispatch;
mod frames;
pub(crate) mod framing;
mod held;
mod inbound;
mod intake;
mod json;
mod kv;
mod length;
mod listing;
mod openapi;
mod pace;
mod params;
mod problem;
mod serve;
mod settings;
mod sites;
mod standing;
mod streams;
pub mod tls;
mod tokens;
mod turns;
mod upload;
mod watch;
mod wire;

pub use serve::Server;
pub use settings::{BATCH_OPS_MAX, KEYED_BATCH_OPS_MAX, Rate, Settings, held_bytes_max};
pub use sites::Sites;
pub use tokens::{Holder, Rights, Tokens, Verb};
