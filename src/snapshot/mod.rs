//! Snapshots: a node's shards in one file, so that a start need not replay the whole log.
//!
//! Invariant: a snapshot that bears its name is complete and durable, and holds nothing that the
//! log had not made durable; an older one, and the log it needs, go only after that. What is loaded
//! has verified, block by block. It never stops the world: the caller streams shard after shard, in
//! steps as small as it likes, while writes go on; what they change meanwhile is in the log behind
//! the shard's start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::Disk;
use crate::entry::{Position, RequestId, ShardId, Timestamp, Verdict, Version};
use crate::wal::{FORMAT_VERSION, Lsn};

mod format;
mod load;
mod writer;

pub use load::{Damage, Loaded, load, load_copy, verify};
pub use writer::{Finished, Writer, check_room};

const PREFIX: &str = "snapshot-";

/// What a snapshot holds of a shard beside its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardState {
    /// The shard.
    pub shard: ShardId,
    /// The first frame of the log that the snapshot may lack: [`crate::wal::Writer::next_lsn`],
    /// asked under the shard's lock before its first entry is read.
    pub start: Lsn,
    /// Where in its log the shard stood then.
    pub position: Position,
    /// The highest epoch it had been told of.
    pub fence: u32,
    /// Its highest version.
    pub highest_version: Version,
    /// The life of the node from which on it vouches for the shard's log.
    pub life: u64,
}

/// An entry, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// 1 to 65,535 bytes.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// At most 255 bytes; empty if unset.
    pub content_type: &'a [u8],
    /// Its version.
    pub version: Version,
    /// When it expires, if ever.
    pub expires_at: Option<Timestamp>,
}

/// A request id that a shard keeps, with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    /// Who asked.
    pub request: RequestId,
    /// What was answered.
    pub verdict: Verdict,
    /// The version of its record.
    pub version: Version,
}

/// What a load hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// First for each shard: its state, and how many entries follow.
    State(ShardState, u64),
    /// A request id.
    Request(Kept),
    /// An entry, perhaps expired by now. To be copied: it is gone after the call.
    Entry(Entry<'a>),
}

/// Why a snapshot cannot be written or loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The disk refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Disk {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the disk said.
        source: Arc<io::Error>,
    },
    /// There is not enough room on the disk. Nothing is left of what was begun.
    #[error("{dir} has {free} bytes free, and {needed} are needed; make room there", dir = dir.display())]
    NoRoom {
        /// The directory.
        dir: PathBuf,
        /// How many bytes may be written there.
        free: u64,
        /// How many there must be.
        needed: u64,
    },
    /// It belongs to another cluster.
    #[error("{path} belongs to cluster {found:032x}, not to {expected:032x}; give this node the directory it had before, or an empty one", path = path.display())]
    OtherCluster {
        /// The snapshot.
        path: PathBuf,
        /// The cluster named in it.
        found: u128,
        /// This node's.
        expected: u128,
    },
    /// A newer AegisKV wrote it.
    #[error("{path} has snapshot format {found}, this aegiskv reads up to {FORMAT_VERSION}; start it with the newer version again", path = path.display())]
    NewerFormat {
        /// The snapshot.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },
}

impl Error {
    fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { action, path, source: Arc::new(source) }
    }
}

/// The snapshots in a directory, newest first, with the frame up to which the log was durable when
/// each was finished; none if there is no such directory.
///
/// # Errors
/// [`Error::Disk`] when the directory cannot be read.
pub fn snapshots(disk: &dyn Disk, dir: &Path) -> Result<Vec<(Lsn, PathBuf)>, Error> {
    let names = match disk.list(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.map_err(Error::disk("list", dir))?,
    };
    let mut found: Vec<(Lsn, PathBuf)> = names
        .iter()
        .filter_map(|name| Some((Lsn(name.strip_prefix(PREFIX)?.parse().ok()?), dir.join(name))))
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

fn path_in(dir: &Path, end: Lsn) -> PathBuf {
    dir.join(format!("{PREFIX}{:020}", end.0))
}
