//! The log, the snapshots and the data directory, on a disk that tears, flips, fills and fails.

mod crashes;
mod damage;
mod home;
mod snapshots;
mod support;
mod writing;
