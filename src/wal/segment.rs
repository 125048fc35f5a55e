//! Segments: the files that a log is made of, and the header that each begins with.

use std::io;
use std::path::{Path, PathBuf};

use siphasher::sip::SipHasher24;

use super::{Error, Lsn};
use crate::disk::Disk;

/// The version of the log's and the snapshots' format that this AegisKV writes, and the newest
/// that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Length of a file's header in bytes.
pub(crate) const HEADER_BYTES: usize = 40;

const MAGIC: [u8; 8] = *b"AEGISWAL";
const SUFFIX: &str = ".wal";

/// What a segment, and likewise a snapshot, begins with.
///
/// # Format
/// Magic (8: `AEGISWAL`, or `AEGISSNP`), format version (4), cluster id (16), first log sequence
/// number (8), CRC32C of the 36 bytes before (4); little-endian. Every later format begins so too,
/// so that an older AegisKV can tell a newer file from a damaged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) cluster_id: u128,
    pub(crate) lsn: Lsn,
}

/// Why a header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// Too short, another magic, or the checksum fails.
    Damaged,
    /// Another cluster's.
    OtherCluster(u128),
    /// A newer format.
    Newer(u32),
}

impl Header {
    pub(crate) fn encode(&self, magic: [u8; 8]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&magic);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.cluster_id.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.lsn.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(
        bytes: &[u8],
        magic: [u8; 8],
        cluster_id: u128,
    ) -> Result<Self, HeaderError> {
        let (head, _) = bytes.split_first_chunk::<36>().ok_or(HeaderError::Damaged)?;
        let crc = bytes.get(36..HEADER_BYTES).ok_or(HeaderError::Damaged)?;
        if head[..8] != magic || crc != crc32c::crc32c(head).to_le_bytes() {
            return Err(HeaderError::Damaged);
        }
        let u32_at =
            |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        let header = Self {
            version: u32_at(8),
            cluster_id: u128::from(u64_at(12)) | u128::from(u64_at(20)) << 64,
            lsn: Lsn(u64_at(28)),
        };
        if header.version > FORMAT_VERSION {
            return Err(HeaderError::Newer(header.version));
        }
        if header.cluster_id != cluster_id {
            return Err(HeaderError::OtherCluster(header.cluster_id));
        }
        Ok(header)
    }
}

/// One file of the log: `00000000000000000001.wal`, named for its first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// The sequence number of its first frame.
    pub first: Lsn,
    /// The file's length in bytes, room allocated ahead included.
    pub bytes: u64,
}

impl Segment {
    pub(crate) fn path_in(dir: &Path, first: Lsn) -> PathBuf {
        dir.join(format!("{:020}{SUFFIX}", first.0))
    }

    pub(crate) fn encode_header(cluster_id: u128, first: Lsn) -> [u8; HEADER_BYTES] {
        Header { version: FORMAT_VERSION, cluster_id, lsn: first }.encode(MAGIC)
    }

    /// Checks the header at the file's beginning. `Ok(false)` if it is damaged.
    pub(crate) fn check_header(&self, bytes: &[u8], cluster_id: u128) -> Result<bool, Error> {
        match Header::decode(bytes, MAGIC, cluster_id) {
            Ok(header) => Ok(header.lsn == self.first),
            Err(HeaderError::Damaged) => Ok(false),
            Err(HeaderError::OtherCluster(found)) => {
                let path = self.path.clone();
                Err(Error::OtherCluster { path, found, expected: cluster_id })
            }
            Err(HeaderError::Newer(found)) => {
                Err(Error::NewerFormat { path: self.path.clone(), found })
            }
        }
    }
}

/// What the checksums of a log's frames start from.
pub(crate) fn salt(seed: u128) -> u32 {
    let hash = SipHasher24::new_with_key(&seed.to_le_bytes()).hash(b"wal frames");
    (hash >> 32) as u32
}

/// The log's segments in order; none if there is no such directory.
///
/// # Errors
/// [`Error::Disk`] when the directory cannot be read.
pub fn segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<Segment>, Error> {
    let names = match disk.list(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.map_err(Error::disk("list", dir))?,
    };
    let mut segments = Vec::new();
    for name in names {
        let Some(first) = name.strip_suffix(SUFFIX).and_then(|stem| stem.parse().ok()) else {
            continue;
        };
        let path = dir.join(&name);
        let length = disk.open(&path).and_then(|file| file.length());
        let bytes = length.map_err(Error::disk("open", &path))?;
        segments.push(Segment { path, first: Lsn(first), bytes });
    }
    segments.sort_unstable_by_key(|segment| segment.first);
    Ok(segments)
}
