//! How a snapshot is laid out: header, blocks, index, trailer.

use bytes::{Buf, Bytes};

use super::{Entry, Kept, ShardState};
use crate::entry::{Position, ShardId, Timestamp, Version};
use crate::wal::{Lsn, get_request, get_verdict, put_request, put_verdict};

pub(super) const MAGIC: [u8; 8] = *b"AEGISSNP";
pub(super) const END_MAGIC: [u8; 8] = *b"AEGISEND";

/// Length of what stands before a block's content, in bytes.
pub(super) const BLOCK_HEADER_BYTES: usize = 15;

/// Length of one shard's line in the index, in bytes.
const LINE_BYTES: usize = 66;

/// Length of the trailer, in bytes.
pub(super) const TRAILER_BYTES: usize = 32;

/// One shard's line in the index.
///
/// # Format of a snapshot
/// Numbers are little-endian.
///
/// - Header (40): as a log segment's, with the magic `AEGISSNP` and the log sequence number that
///   came next when the snapshot was begun.
/// - Blocks, those of one shard in a row: CRC32C of what follows (4), length of the content (4),
///   kind (1: 0 entries, 1 request ids), shard (2), how many (4), content.
///   - entry: key length (2), content type length (1), flags (1: bit 0, it expires), value length
///     (4), version (8), [expiry (8)], key, content type, value;
///   - request id: as in the log, then verdict, as in the log, then version (8).
/// - Index: for each shard its number (2), start (8), position (4 + 8), fence (4), highest version
///   (8), life (8), where its blocks begin (8), their length (8), how many entries (8).
/// - Trailer (32): where the index begins (8), its length (4), the last frame that was durable at
///   the end (8), CRC32C of the index and the 20 bytes before (4), magic `AEGISEND` (8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) state: ShardState,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

impl Line {
    fn put(&self, into: &mut Vec<u8>) {
        let state = &self.state;
        into.extend_from_slice(&state.shard.0.to_le_bytes());
        into.extend_from_slice(&state.start.0.to_le_bytes());
        into.extend_from_slice(&state.position.epoch.to_le_bytes());
        into.extend_from_slice(&state.position.seq.to_le_bytes());
        into.extend_from_slice(&state.fence.to_le_bytes());
        into.extend_from_slice(&state.highest_version.0.to_le_bytes());
        into.extend_from_slice(&state.life.to_le_bytes());
        for n in [self.offset, self.bytes, self.entries] {
            into.extend_from_slice(&n.to_le_bytes());
        }
    }

    fn get(mut line: &[u8]) -> Self {
        let from = &mut line;
        Self {
            state: ShardState {
                shard: ShardId(from.get_u16_le()),
                start: Lsn(from.get_u64_le()),
                position: Position { epoch: from.get_u32_le(), seq: from.get_u64_le() },
                fence: from.get_u32_le(),
                highest_version: Version(from.get_u64_le()),
                life: from.get_u64_le(),
            },
            offset: from.get_u64_le(),
            bytes: from.get_u64_le(),
            entries: from.get_u64_le(),
        }
    }
}

/// The index and the trailer, to stand at `offset`.
pub(super) fn put_index(lines: &[Line], offset: u64, end: Lsn) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(lines.len() * LINE_BYTES + TRAILER_BYTES);
    lines.iter().for_each(|line| line.put(&mut bytes));
    let length = u32::try_from(bytes.len()).expect("65,536 shards of 66 bytes fit 32 bits");
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&end.0.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&END_MAGIC);
    bytes
}

/// Where the index begins, by the trailer of a file of `file_bytes`; unverified.
pub(super) fn index_offset(trailer: &[u8; TRAILER_BYTES], file_bytes: u64) -> Option<u64> {
    let mut from = &trailer[..];
    let offset = from.get_u64_le();
    let length = u64::from(from.get_u32_le());
    let fits = offset.checked_add(length + TRAILER_BYTES as u64) == Some(file_bytes);
    (fits && trailer[24..] == END_MAGIC).then_some(offset)
}

/// Reads the index and the trailer; `None` if they do not verify.
pub(super) fn get_index(bytes: &[u8]) -> Option<Vec<Line>> {
    let (index, trailer) = bytes.split_at_checked(bytes.len().checked_sub(TRAILER_BYTES)?)?;
    let crc = crc32c::crc32c(&bytes[..index.len() + 20]);
    let whole = index.len() % LINE_BYTES == 0 && trailer[20..24] == crc.to_le_bytes();
    whole.then(|| index.chunks_exact(LINE_BYTES).map(Line::get).collect())
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Entries = 0,
    Requests = 1,
}

/// What stands before a block's content.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockHeader {
    crc: u32,
    pub(super) content_bytes: usize,
    kind: u8,
    shard: ShardId,
    pub(super) count: u32,
}

impl BlockHeader {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut from = bytes.get(..BLOCK_HEADER_BYTES)?;
        Some(Self {
            crc: from.get_u32_le(),
            content_bytes: from.get_u32_le() as usize,
            kind: from.get_u8(),
            shard: ShardId(from.get_u16_le()),
            count: from.get_u32_le(),
        })
    }

    /// The kind of a whole block, if it verifies and is of `shard`.
    pub(super) fn verify(&self, block: &[u8], shard: ShardId) -> Option<Kind> {
        let sound = crc32c::crc32c(&block[4..]) == self.crc && self.shard == shard;
        match self.kind {
            0 if sound => Some(Kind::Entries),
            1 if sound => Some(Kind::Requests),
            _ => None,
        }
    }
}

/// Fills in the header that `block` was begun with.
pub(super) fn seal(block: &mut [u8], kind: Kind, shard: ShardId, count: u32) {
    let content = u32::try_from(block.len() - BLOCK_HEADER_BYTES)
        .expect("a block ends with the entry that fills it, and an entry fits a log frame");
    block[4..8].copy_from_slice(&content.to_le_bytes());
    block[8] = kind as u8;
    block[9..11].copy_from_slice(&shard.0.to_le_bytes());
    block[11..15].copy_from_slice(&count.to_le_bytes());
    let crc = crc32c::crc32c(&block[4..]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
}

pub(super) fn put_entry(into: &mut Vec<u8>, entry: &Entry<'_>) {
    let key = u16::try_from(entry.key.len()).expect("a key fits its ceiling of 65,535 bytes");
    let content_type = u8::try_from(entry.content_type.len()).expect("it is capped at 255 bytes");
    let value = u32::try_from(entry.value.len()).expect("a value fits a log frame");
    into.extend_from_slice(&key.to_le_bytes());
    into.push(content_type);
    into.push(u8::from(entry.expires_at.is_some()));
    into.extend_from_slice(&value.to_le_bytes());
    into.extend_from_slice(&entry.version.0.to_le_bytes());
    if let Some(at) = entry.expires_at {
        into.extend_from_slice(&at.0.to_le_bytes());
    }
    into.extend_from_slice(entry.key);
    into.extend_from_slice(entry.content_type);
    into.extend_from_slice(entry.value);
}

/// Takes an entry off the front; `None` if the bytes are none.
pub(super) fn get_entry<'a>(from: &mut &'a [u8]) -> Option<Entry<'a>> {
    const FIXED_BYTES: usize = 16;
    let (mut head, rest) = from.split_at_checked(FIXED_BYTES)?;
    let key_bytes = usize::from(head.get_u16_le());
    let content_type_bytes = usize::from(head.get_u8());
    let flags = head.get_u8();
    let value_bytes = head.get_u32_le() as usize;
    let version = Version(head.get_u64_le());
    let (expires_at, rest) = match flags {
        0 => (None, rest),
        1 => {
            let (at, rest) = rest.split_first_chunk()?;
            (Some(Timestamp(u64::from_le_bytes(*at))), rest)
        }
        _ => return None,
    };
    let (key, rest) = rest.split_at_checked(key_bytes)?;
    let (content_type, rest) = rest.split_at_checked(content_type_bytes)?;
    let (value, rest) = rest.split_at_checked(value_bytes)?;
    *from = rest;
    (!key.is_empty()).then_some(Entry { key, value, content_type, version, expires_at })
}

pub(super) fn put_kept(into: &mut Vec<u8>, kept: &Kept) {
    put_request(into, &kept.request);
    put_verdict(into, &kept.verdict);
    into.extend_from_slice(&kept.version.0.to_le_bytes());
}

/// Takes a request id off the front; `None` if the bytes are none.
pub(super) fn get_kept(from: &mut Bytes) -> Option<Kept> {
    let request = get_request(from)?;
    let verdict = get_verdict(from)?;
    let version = Version(from.try_get_u64_le().ok()?);
    Some(Kept { request, verdict, version })
}
