//! The log, the snapshots and the data directory, on a disk that tears, flips, fills and fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod crashes;
mod damage;
mod home;
mod mark;
mod snapshots;
mod support;
mod writing;
