//! Looking at a log offline: lists its frames, and says whether it is sound. Never writes.

use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;

use super::frame::Frame;
use super::reader::{Known, Log};
use super::{Corruption, Damage, Error, Location, Lsn};
use crate::disk::Disk;

/// A frame, as an operator is shown it.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The segment it is in.
    pub segment: &'a Path,
    /// Where in that segment it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes, header included.
    pub bytes: usize,
    /// Its number.
    pub lsn: Lsn,
    /// All frames up to this one were durable when it was written.
    pub durable: Lsn,
    /// What it says.
    pub frame: Frame,
}

/// What a log came to.
#[derive(Debug)]
pub struct Verified {
    /// How many segments there are.
    pub segments: usize,
    /// The length of all segments in bytes.
    pub bytes: u64,
    /// Sound frames.
    pub frames: u64,
    /// The first and the last sound frame.
    pub range: Option<(Lsn, Lsn)>,
    /// All frames up to this one are known to have been there; `Lsn(0)` if nothing is known.
    pub durable: Lsn,
    /// Bytes of a torn tail, which the next start will cut off.
    pub torn_bytes: u64,
    /// What is damaged or missing. The log is sound if there is none.
    pub corruptions: Vec<Corruption>,
}

/// Shows every sound frame in order, until `each` breaks off. From `needed` on all must be there: the
/// snapshot holds what was before; `Lsn(1)` without one.
///
/// # Errors
/// [`Error`] when the disk fails, or the log is another cluster's or of a newer format.
pub fn inspect(
    disk: &dyn Disk,
    location: &Location,
    known: Known,
    needed: Lsn,
    each: &mut dyn FnMut(Seen<'_>) -> ControlFlow<()>,
) -> Result<Verified, Error> {
    let log = Log::find(disk, location)?;
    let mut frames = 0;
    let mut range: Option<(Lsn, Lsn)> = None;
    let mut unreadable = Vec::new();
    // What is left of older segments is looked at along.
    let earliest = log.segments.first().map_or(Lsn(known.durable.0 + 1), |segment| segment.first);
    let earliest = earliest.min(needed);
    let walked = log.walk(earliest, known, &mut |found| {
        let (lsn, bytes) = (found.header.lsn, found.header.frame_bytes());
        let mut body = Bytes::copy_from_slice(found.body);
        let Ok(frame) = Frame::get(found.header.kind, found.header.shard, &mut body) else {
            unreadable.push(Corruption {
                damage: Damage::Body,
                segment: Some(found.segment.path.clone()),
                offset: found.offset,
                bytes: bytes as u64,
                from: lsn,
                to: Some(lsn),
            });
            return ControlFlow::Continue(());
        };
        frames += 1;
        range = Some((range.map_or(lsn, |(first, _)| first), lsn));
        let durable = found.header.durable;
        let (segment, offset) = (found.segment.path.as_path(), found.offset);
        each(Seen { segment, offset, bytes, lsn, durable, frame })
    })?;
    let mut corruptions = walked.corruptions;
    corruptions.append(&mut unreadable);
    Ok(Verified {
        segments: log.segments.len(),
        bytes: log.segments.iter().map(|segment| segment.bytes).sum(),
        frames,
        range,
        durable: walked.durable,
        torn_bytes: walked.torn_bytes,
        corruptions,
    })
}

/// Reads a log through and says whether it is sound.
///
/// # Errors
/// As [`inspect`].
pub fn verify(
    disk: &dyn Disk,
    location: &Location,
    known: Known,
    needed: Lsn,
) -> Result<Verified, Error> {
    inspect(disk, location, known, needed, &mut |_| ControlFlow::Continue(()))
}
