//! The write-ahead log: one per node, all shards' records in one row.
//!
//! Invariant: in mode `sync` a settled frame is on the disk, in mode `async` it is with the
//! kernel; whatever recovery hands over is, bit for bit, what was once written. A batch is written
//! only when what the mode owes the one before is done. What a sync covered is known to have been
//! there, by the mark beside the segments. It never applies a record, never retries a sync, and
//! never cuts a log in its middle.
//!
//! The way of a write: [`Writer::append`] under the shard's lock, then, without the lock,
//! [`Writer::settle`]. The way back: [`recover`], then [`Writer::start`].
//!
//! # Caveats
//! After a failed sync the kernel may show bytes that never reach the disk. A start in the same
//! run of the machine reads those as sound; nobody was told that they are durable.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

mod codec;
mod committer;
mod delay;
mod frame;
mod inspect;
mod mark;
mod reader;
mod recovery;
mod segment;
mod settle;
mod shared;
mod writer;

pub use committer::{Committer, FSYNC_INTERVAL};
pub use frame::{FRAME_BYTES_MAX, Frame, FrameError, KeyState};
pub use inspect::{Seen, Verified, inspect, verify};
pub use reader::{Corruption, Damage, Known};
pub use recovery::{Progress, Recovery, Replay, recover};
pub use segment::{FORMAT_VERSION, Segment, segments};
pub use writer::{BACKLOG_BYTES_MAX, Writer};

pub(crate) use codec::{get_request, get_verdict, put_request, put_verdict};
pub(crate) use segment::{HEADER_BYTES, Header, HeaderError};

/// A frame's place in the node's log: 1 for the first ever, then without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is logged.
    Off,
    /// The frame is with the kernel; it is synced within [`FSYNC_INTERVAL`] or so.
    Async,
    /// The frame is on the disk.
    Sync,
}

impl Mode {
    /// The mode's name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Async => "async",
            Self::Sync => "sync",
        }
    }

    /// The mode of that name; `write` and `fsync` are other names of async and sync.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "off" => Some(Self::Off),
            "async" | "write" => Some(Self::Async),
            "sync" | "fsync" => Some(Self::Sync),
            _ => None,
        }
    }
}

/// Is told how long each sync of the log took.
pub type OnFsync = Arc<dyn Fn(Duration) + Send + Sync>;

/// Where a log is, and whose.
#[derive(Clone)]
pub struct Location {
    /// The directory of its segments.
    pub dir: PathBuf,
    /// Whose log it is; a segment of another cluster is refused.
    pub cluster_id: u128,
    /// The cluster's secret seed. It salts the checksums, so that bytes inside a client's value
    /// cannot pass for a frame when a damaged log is searched.
    pub seed: u128,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Location").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// What the log is told when it opens.
#[derive(Clone)]
pub struct Config {
    /// What writes wait for.
    pub mode: Mode,
    /// Where the segments are, and whose.
    pub location: Location,
    /// A segment that has grown to this many bytes is followed by a new one.
    pub segment_bytes_max: u64,
    /// Is told of each sync.
    pub on_fsync: OnFsync,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("mode", &self.mode)
            .field("location", &self.location)
            .field("segment_bytes_max", &self.segment_bytes_max)
            .finish_non_exhaustive()
    }
}

/// Why the log cannot go on, or cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The disk failed a write or a sync. What was not settled before may be lost; the node must
    /// stop.
    #[error("the log cannot {action} {path}: {source}; the node stops, start it again when the disk is mended", path = path.display())]
    Disk {
        /// What was being done.
        action: &'static str,
        /// The file or directory it was done to.
        path: PathBuf,
        /// What the disk said.
        source: Arc<io::Error>,
    },
    /// The log is closed.
    #[error("the log is closed")]
    Closed,
    /// The frame would be larger than the format allows. Nothing was logged.
    #[error(
        "a log record of {bytes} bytes is over the format's limit of {FRAME_BYTES_MAX}; lower max_value_bytes"
    )]
    TooLarge {
        /// What it would have come to.
        bytes: usize,
    },
    /// A segment belongs to another cluster.
    #[error("{path} belongs to cluster {found:032x}, not to {expected:032x}; give this node the directory it had before, or an empty one", path = path.display())]
    OtherCluster {
        /// The segment.
        path: PathBuf,
        /// The cluster named in it.
        found: u128,
        /// This node's.
        expected: u128,
    },
    /// A segment was written by a newer AegisKV.
    #[error("{path} has log format {found}, this aegiskv reads up to {FORMAT_VERSION}; start it with the newer version again", path = path.display())]
    NewerFormat {
        /// The segment.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },
}

impl Error {
    pub(crate) fn disk(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { action, path, source: Arc::new(source) }
    }
}
