//! The mark: a small file beside the segments that says how far the log goes.
//!
//! The log cannot say what its own last segment held: an emptied, zeroed or missing one looks like
//! a log that was never longer. So the mark says it, from outside.
//!
//! Invariant: it never says more than is true. It is written behind what it speaks of: the sync,
//! the write, the segment's durable creation. It is not synced along with each commit, so after a
//! crash of the machine it may say less, by [`SYNC_INTERVAL`] or so; after a crash of the process
//! it does not.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::segment::{HEADER_BYTES, Header, HeaderError};
use super::{Error, FORMAT_VERSION, Location, Lsn};
use crate::disk::{self, Disk, File};

/// A mark that has changed is synced this often.
pub(super) const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// In mode `async` the mark is written once so many frames were written since: a mark for each
/// write would cost as much as the write.
const FRAMES_BETWEEN: u64 = 16;

/// The mark's name. It ends as a segment's does, so that whoever sets the log aside takes it along.
const NAME: &str = "mark.wal";

const MAGIC: [u8; 8] = *b"AEGISMRK";

/// Length of what is written of a mark at a time, in bytes.
const SLOT_BYTES: usize = HEADER_BYTES + 20;

/// The second slot is a page behind the first, so that a torn write cannot hit both.
const SLOT_DISTANCE: usize = 4096;

/// How far the log is known to go.
///
/// # Format of `mark.wal`
/// Two slots, at 0 and at 4096, of which the one that says more counts. Each: a header as a
/// segment's, with the magic `AEGISMRK` and the first frame of the segment that is written (0 if
/// none is) for its number; the last frame that was durable (8); the last one that was with the
/// kernel (8); CRC32C of the 56 bytes before (4); little-endian. A slot is written over until it is
/// synced, then the other one is: so one of them is sound whatever a crash does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    /// The first frame of the segment being written: it exists, durably. `Lsn(0)` claims nothing.
    pub(super) segment: Lsn,
    /// All frames up to this one are on the disk.
    pub(super) durable: Lsn,
    /// All frames up to this one are with the kernel.
    pub(super) written: Lsn,
}

/// What there is of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// None, as in a log that an older AegisKV wrote.
    Absent,
    /// It does not verify: how far the log went is not known any more.
    Damaged,
    Sound(Mark),
}

impl Mark {
    /// The mark of a log whose frames before `next` are durable, and whose next segment is not
    /// begun.
    pub(super) fn before(next: Lsn) -> Self {
        let last = Lsn(next.0 - 1);
        Self { segment: Lsn(0), durable: last, written: last }
    }

    fn encode(&self, cluster_id: u128) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        let header = Header { version: FORMAT_VERSION, cluster_id, lsn: self.segment };
        slot[..HEADER_BYTES].copy_from_slice(&header.encode(MAGIC));
        slot[40..48].copy_from_slice(&self.durable.0.to_le_bytes());
        slot[48..56].copy_from_slice(&self.written.0.to_le_bytes());
        let crc = crc32c::crc32c(&slot[..56]);
        slot[56..].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    fn decode(slot: &[u8], cluster_id: u128) -> Result<Self, HeaderError> {
        let header = Header::decode(slot, MAGIC, cluster_id)?;
        let (body, crc) = slot.split_at_checked(56).ok_or(HeaderError::Damaged)?;
        if crc.get(..4) != Some(&crc32c::crc32c(body).to_le_bytes()) {
            return Err(HeaderError::Damaged);
        }
        let lsn_at = |at: usize| {
            let bytes = body[at..].first_chunk().expect("the body is 56 bytes long");
            Lsn(u64::from_le_bytes(*bytes))
        };
        Ok(Self { segment: header.lsn, durable: lsn_at(40), written: lsn_at(48) })
    }

    /// Reads the mark of a log.
    ///
    /// # Errors
    /// [`Error`] when the disk fails, or the mark is another cluster's or of a newer format.
    pub(super) fn read(disk: &dyn Disk, location: &Location) -> Result<Seen, Error> {
        let path = path_of(location);
        let bytes = match disk::read(disk, &path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Seen::Absent),
            bytes => bytes.map_err(Error::disk("read", &path))?,
        };
        let mut best = None;
        for slot in [0, SLOT_DISTANCE] {
            let slot = bytes.get(slot..).unwrap_or_default();
            match Self::decode(slot, location.cluster_id) {
                Ok(mark) => best = best.max(Some(mark)),
                Err(HeaderError::Damaged) => {}
                Err(HeaderError::OtherCluster(found)) => {
                    return Err(Error::OtherCluster { path, found, expected: location.cluster_id });
                }
                Err(HeaderError::Newer(found)) => return Err(Error::NewerFormat { path, found }),
            }
        }
        Ok(best.map_or(Seen::Damaged, Seen::Sound))
    }

    /// The last frame that was there for certain. `is_begun` says whether the segment that it
    /// names, or a later one, is there.
    pub(super) fn reaches(&self, same_boot: bool, is_begun: bool) -> Lsn {
        let frames = if same_boot { self.durable.max(self.written) } else { self.durable };
        // What a lost segment held is not known. It was begun, so it is taken to have had a frame.
        if is_begun { frames } else { frames.max(self.segment) }
    }
}

/// The mark of a log that is open for writing.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: Arc<dyn File>,
    path: PathBuf,
    cluster_id: u128,
    mark: Mark,
    slot: u64,
    is_synced: bool,
}

impl MarkFile {
    /// Puts `mark` in the place of the one there was; durable on return.
    pub(super) fn create(disk: &dyn Disk, location: &Location, mark: Mark) -> Result<Self, Error> {
        let path = path_of(location);
        let cluster_id = location.cluster_id;
        let slot = mark.encode(cluster_id);
        let mut bytes = vec![0; 2 * SLOT_DISTANCE];
        bytes[..SLOT_BYTES].copy_from_slice(&slot);
        bytes[SLOT_DISTANCE..][..SLOT_BYTES].copy_from_slice(&slot);
        disk::replace(disk, &path, &bytes).map_err(Error::disk("write", &path))?;
        let file = disk.open_to_write(&path).map_err(Error::disk("open", &path))?;
        Ok(Self { file, path, cluster_id, mark, slot: 0, is_synced: true })
    }

    /// All up to `last` is on the disk.
    pub(super) fn durable(&mut self, last: Lsn) -> Result<(), Error> {
        let durable = self.mark.durable.max(last);
        self.write(Mark { durable, written: self.mark.written.max(durable), ..self.mark })
    }

    /// All up to `last` is with the kernel. Is written only now and then ([`FRAMES_BETWEEN`]).
    pub(super) fn written(&mut self, last: Lsn) -> Result<(), Error> {
        if last.0 < self.mark.written.0 + FRAMES_BETWEEN {
            return Ok(());
        }
        self.write(Mark { written: last, ..self.mark })
    }

    /// A segment was begun, and all before it is on the disk; durable on return.
    pub(super) fn begun(&mut self, segment: Lsn) -> Result<(), Error> {
        self.write(Mark { segment, ..Mark::before(segment) })?;
        self.sync()
    }

    /// Makes it durable, if it has changed.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if self.is_synced {
            return Ok(());
        }
        self.file.sync_data().map_err(Error::disk("sync", &self.path))?;
        self.is_synced = true;
        self.slot = 1 - self.slot;
        Ok(())
    }

    fn write(&mut self, mark: Mark) -> Result<(), Error> {
        if mark == self.mark {
            return Ok(());
        }
        let bytes = mark.encode(self.cluster_id);
        let written = self.file.write_all_at(&bytes, self.slot * SLOT_DISTANCE as u64);
        written.map_err(Error::disk("write", &self.path))?;
        self.mark = mark;
        self.is_synced = false;
        Ok(())
    }
}

fn path_of(location: &Location) -> PathBuf {
    location.dir.join(NAME)
}
