//! Reading a log back: verifies every frame, and tells a torn tail from a damaged log.
//!
//! Invariant: a frame is handed over only if its checksum and its sequence number hold. It never
//! writes, and needs no more memory than the largest frame and a chunk.
//!
//! # What counts as torn
//! A write that a crash cut short, or that reached the disk in part, leaves bad bytes at the end
//! of the last segment, perhaps with sound frames of the same batch behind them. Those are cut
//! off: nobody was told that they are safe. The bytes are instead *damaged*, and the node has lost
//! memory, if they lie in an earlier segment; if a sound frame behind them says that they were
//! durable when it was written; if the caller knows that they were durable; or if any sound frame
//! is behind them and the machine has not been down since, for the kernel keeps writes in order.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, checksum};
use super::mark::{self, Mark};
use super::segment::{HEADER_BYTES, Segment, salt, segments};
use super::{Error, Location, Lsn};
use crate::disk::{Disk, File};

/// How much is read at a time, in bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// How much is looked through at a time for the next sound frame, in bytes.
const SCAN_BYTES: usize = 64 << 10;

/// Looking for sound frames in damaged bytes ends when so many times the segment's length has been
/// checksummed: bytes made to look like frames must not hold up a start for ever.
const SCAN_CHECKSUMS_MAX: u64 = 16;

/// Frames of the log that are lost, though they were durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// In what way.
    pub damage: Damage,
    /// The segment that is damaged, unless it is missing.
    pub segment: Option<PathBuf>,
    /// Where in that segment, in bytes.
    pub offset: u64,
    /// How many bytes are unreadable.
    pub bytes: u64,
    /// The first frame lost.
    pub from: Lsn,
    /// The last frame lost, where that can be told; the one before `from` if none was.
    pub to: Option<Lsn>,
}

/// What is wrong with a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The header of a segment does not verify.
    Header,
    /// Bytes within a segment do not verify.
    Frame,
    /// A frame verifies, but its content makes no sense to this AegisKV.
    Body,
    /// Frames that should be there are not.
    Missing,
    /// A segment begins before the one before it ends.
    Overlap,
    /// The mark does not verify: whether anything is missing at the log's end cannot be told.
    Mark,
}

/// What the caller knows of the log that is read.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// All frames up to this one are known to have been durable: the newest snapshot's, or those of
    /// a stop in order. `Lsn(0)` if nothing is known.
    pub durable: Lsn,
    /// The machine has not been down since the log was written.
    pub same_boot: bool,
    /// The last run kept a log: if none is there, it is lost.
    pub expects_log: bool,
}

/// A log as it is found: its mark and its segments.
#[derive(Debug)]
pub(super) struct Log<'a> {
    disk: &'a dyn Disk,
    location: &'a Location,
    mark: mark::Seen,
    pub(super) segments: Vec<Segment>,
}

/// A frame that has verified.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) segment: &'a Segment,
    pub(super) offset: u64,
    pub(super) header: FrameHeader,
    pub(super) body: &'a [u8],
}

/// What a log came to.
#[derive(Debug)]
pub(super) struct Walked {
    /// The number after the last frame, lost or found.
    pub(super) next: Lsn,
    /// All up to this one are known to have been there.
    pub(super) durable: Lsn,
    /// The length at which the last segment's sound part ends.
    pub(super) tail_bytes: u64,
    /// Bytes of the torn tail.
    pub(super) torn_bytes: u64,
    pub(super) corruptions: Vec<Corruption>,
}

impl<'a> Log<'a> {
    /// Looks what there is. The mark is read first: if the log is written meanwhile, it is longer
    /// than its mark, never shorter.
    ///
    /// # Errors
    /// [`Error`] when the disk fails, or the mark is another cluster's or of a newer format.
    pub(super) fn find(disk: &'a dyn Disk, location: &'a Location) -> Result<Self, Error> {
        let mark = Mark::read(disk, location)?;
        let segments = segments(disk, &location.dir)?;
        Ok(Self { disk, location, mark, segments })
    }

    /// The last frame that the mark knows to have been there; `Lsn(0)` if it knows of none.
    fn marked(&self, same_boot: bool) -> Result<Lsn, Error> {
        let mark::Seen::Sound(mark) = self.mark else { return Ok(Lsn(0)) };
        let is_begun = match self.segments.last() {
            Some(last) if last.first == mark.segment => {
                let mut window = Window::open(self.disk, last)?;
                let header = window.view(0, HEADER_BYTES)?;
                last.check_header(header, self.location.cluster_id)?
            }
            // Of a segment before the last the next one tells.
            last => last.map_or(Lsn(0), |last| last.first) >= mark.segment,
        };
        Ok(mark.reaches(same_boot, is_begun))
    }

    /// Walks through it, handing over each frame that verifies, in order. Frames below `earliest`
    /// are not needed; segments that hold no others are not read.
    ///
    /// # Errors
    /// [`Error`] when the disk fails, or the log is not this cluster's or not this AegisKV's.
    pub(super) fn walk(
        &self,
        earliest: Lsn,
        known: Known,
        each: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    ) -> Result<Walked, Error> {
        let known = Known { durable: known.durable.max(self.marked(known.same_boot)?), ..known };
        let later = self.segments.iter().skip(1);
        let skipped = later.take_while(|segment| segment.first <= earliest).count();
        let needed = &self.segments[skipped..];
        let mut walk = Walk {
            disk: self.disk,
            location: self.location,
            known,
            earliest,
            salt: salt(self.location.seed),
            expected: earliest,
            walked: Walked {
                next: earliest,
                durable: known.durable,
                tail_bytes: 0,
                torn_bytes: 0,
                corruptions: Vec::new(),
            },
        };
        if let Some(first) = needed.first() {
            // What is below `earliest` in it is read along, for its order.
            walk.expected = walk.expected.min(first.first);
        } else if known.expects_log {
            walk.missing(earliest, known.durable.max(earliest));
        }
        for (i, segment) in needed.iter().enumerate() {
            let following = needed.get(i + 1).map(|next| next.first);
            if walk.segment(segment, following, each)?.is_break() {
                break;
            }
        }
        if needed.is_empty() {
            walk.expected = walk.expected.max(Lsn(1));
        }
        walk.missing(walk.expected, known.durable);
        walk.walked.next = walk.expected.max(Lsn(known.durable.0 + 1)).max(earliest);
        if self.mark == mark::Seen::Damaged {
            walk.unknown_end();
        }
        Ok(walk.walked)
    }
}

struct Walk<'a> {
    disk: &'a dyn Disk,
    location: &'a Location,
    known: Known,
    /// Frames below are not needed.
    earliest: Lsn,
    salt: u32,
    expected: Lsn,
    walked: Walked,
}

/// What bad bytes turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// Nothing was ever there, or nothing that anyone relied on.
    Torn { bytes: u64 },
    /// Something was; the next sound frame is at this offset, if there is one.
    Damaged { resume: Option<u64> },
}

impl Walk<'_> {
    /// Notes that frames are not there, if the range has any.
    fn missing(&mut self, from: Lsn, to: Lsn) {
        let noted = self.walked.corruptions.last().and_then(|c| c.to);
        if from <= to && noted != Some(to) {
            self.walked.corruptions.push(Corruption {
                damage: Damage::Missing,
                segment: None,
                offset: 0,
                bytes: 0,
                from,
                to: Some(to),
            });
        }
    }

    /// Notes that the mark does not say how far the log went.
    fn unknown_end(&mut self) {
        self.walked.corruptions.push(Corruption {
            damage: Damage::Mark,
            segment: None,
            offset: 0,
            bytes: 0,
            from: self.walked.next,
            to: None,
        });
    }

    fn segment(
        &mut self,
        segment: &Segment,
        following: Option<Lsn>,
        each: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        self.missing(self.expected, Lsn(segment.first.0 - 1));
        let overlaps = segment.first < self.expected;
        self.expected = self.expected.max(segment.first);
        let mut window = Window::open(self.disk, segment)?;
        let header = window.view(0, HEADER_BYTES)?;
        let mut bad = match segment.check_header(header, self.location.cluster_id)? {
            _ if overlaps => Some(Damage::Overlap),
            true => None,
            false => Some(Damage::Header),
        };
        let mut offset = if bad.is_some() { 0 } else { HEADER_BYTES as u64 };
        loop {
            if bad.is_none() {
                match self.frame_at(&mut window, offset)? {
                    Some(header) if header.lsn == self.expected => {
                        let frame = window.view(offset, header.frame_bytes())?;
                        let body = &frame[FRAME_HEADER_BYTES..];
                        if each(Found { segment, offset, header, body }).is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                        offset += header.frame_bytes() as u64;
                        self.expected = Lsn(header.lsn.0 + 1);
                        continue;
                    }
                    _ => {}
                }
            }
            let damage = bad.take().unwrap_or(Damage::Frame);
            match self.judge(&mut window, offset, damage, following)? {
                Judgement::Torn { bytes } => {
                    self.walked.tail_bytes = offset;
                    self.walked.torn_bytes = bytes;
                    return Ok(ControlFlow::Continue(()));
                }
                Judgement::Damaged { resume } => {
                    let end = resume.unwrap_or(window.length);
                    self.damaged(&mut window, (offset, end), damage, following)?;
                    offset = end;
                    if resume.is_none() {
                        self.walked.tail_bytes = window.length;
                        return Ok(ControlFlow::Continue(()));
                    }
                }
            }
        }
    }

    /// Notes damaged bytes, and takes up the count behind them.
    fn damaged(
        &mut self,
        window: &mut Window<'_>,
        (offset, end): (u64, u64),
        damage: Damage,
        following: Option<Lsn>,
    ) -> Result<(), Error> {
        let next = match self.frame_at(window, end)? {
            Some(header) => Some(header.lsn),
            None if self.known.durable >= self.expected && following.is_none() => {
                Some(Lsn(self.known.durable.0 + 1))
            }
            None => following,
        };
        let needed = self.expected >= self.earliest || next.is_none_or(|next| next > self.earliest);
        if needed {
            self.walked.corruptions.push(Corruption {
                damage,
                segment: Some(window.segment.path.clone()),
                offset,
                bytes: end - offset,
                from: self.expected,
                to: next.map(|next| Lsn(next.0 - 1)),
            });
        }
        self.expected = next.unwrap_or(self.expected).max(self.expected);
        Ok(())
    }

    /// The header of the frame at `offset`, if a whole frame is there and its checksum holds.
    fn frame_at(&self, window: &mut Window<'_>, offset: u64) -> Result<Option<FrameHeader>, Error> {
        let Some(header) = FrameHeader::parse(window.view(offset, FRAME_HEADER_BYTES)?) else {
            return Ok(None);
        };
        if offset + header.frame_bytes() as u64 > window.length {
            return Ok(None);
        }
        let frame = window.view(offset, header.frame_bytes())?;
        let sound = frame.len() == header.frame_bytes() && checksum(self.salt, frame) == header.crc;
        Ok(sound.then_some(header))
    }

    /// Tells what the bytes from `offset` on are; see the module's text.
    fn judge(
        &self,
        window: &mut Window<'_>,
        offset: u64,
        damage: Damage,
        following: Option<Lsn>,
    ) -> Result<Judgement, Error> {
        let mut budget = SCAN_CHECKSUMS_MAX * window.length;
        let first = self.next_sound(window, offset, offset, &mut budget)?;
        let Some((resume, header)) = first else {
            let bytes = window.content_end(offset)? - offset;
            // A segment that just ends is no damage; what should follow is missed where it is not.
            let ended = bytes == 0 && damage == Damage::Frame;
            let relied_on = following.is_some()
                || self.expected <= self.known.durable
                || damage == Damage::Overlap;
            return Ok(if ended || !relied_on {
                Judgement::Torn { bytes }
            } else {
                Judgement::Damaged { resume: None }
            });
        };
        let mut proven = damage != Damage::Frame
            || following.is_some()
            || self.known.same_boot
            || self.expected <= self.known.durable
            || header.durable >= self.expected;
        let mut at = resume + header.frame_bytes() as u64;
        while !proven {
            let Some((found, header)) = self.next_sound(window, at, offset, &mut budget)? else {
                let bytes = window.content_end(offset)? - offset;
                return Ok(Judgement::Torn { bytes });
            };
            proven = header.durable >= self.expected;
            at = found + header.frame_bytes() as u64;
        }
        Ok(Judgement::Damaged { resume: Some(resume) })
    }

    /// The first sound frame at `from` or behind it, where bytes from `bad` on are in doubt.
    fn next_sound(
        &self,
        window: &mut Window<'_>,
        from: u64,
        bad: u64,
        budget: &mut u64,
    ) -> Result<Option<(u64, FrameHeader)>, Error> {
        let mut at = from;
        let length = window.length;
        while at + FRAME_HEADER_BYTES as u64 <= length {
            let bytes = window.view(at, SCAN_BYTES)?;
            if bytes.len() < FRAME_HEADER_BYTES {
                return Ok(None);
            }
            let places = bytes.len() - FRAME_HEADER_BYTES + 1;
            // A header is never all zeros, and most of what is looked through is.
            let zeros = leading_zeros(bytes).saturating_sub(FRAME_HEADER_BYTES - 1);
            let Some(step) = (zeros..places).find(|i| {
                FrameHeader::parse(&bytes[*i..]).is_some_and(|header| {
                    let place = at + *i as u64;
                    // So many frames at most can have stood in the bytes before it.
                    let lsn_max = self.expected.0 + (place - bad) / FRAME_HEADER_BYTES as u64;
                    (self.expected.0..=lsn_max).contains(&header.lsn.0)
                        && place + header.frame_bytes() as u64 <= length
                })
            }) else {
                at += places as u64;
                continue;
            };
            at += step as u64;
            let header = FrameHeader::parse(window.view(at, FRAME_HEADER_BYTES)?);
            *budget = budget.saturating_sub(header.map_or(0, |h| h.frame_bytes() as u64));
            if *budget == 0 {
                return Ok(None);
            }
            if let Some(header) = self.frame_at(window, at)? {
                return Ok(Some((at, header)));
            }
            at += 1;
        }
        Ok(None)
    }
}

/// A segment's file, seen through a buffer.
struct Window<'a> {
    segment: &'a Segment,
    file: Arc<dyn File>,
    length: u64,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    start: u64,
}

impl<'a> Window<'a> {
    fn open(disk: &dyn Disk, segment: &'a Segment) -> Result<Self, Error> {
        let open = || -> io::Result<_> {
            let file = disk.open(&segment.path)?;
            let length = file.length()?;
            Ok((file, length))
        };
        let (file, length) = open().map_err(Error::disk("open", &segment.path))?;
        Ok(Self { segment, file, length, buffer: Vec::new(), start: 0 })
    }

    /// Up to `n` bytes at `offset`; fewer at the file's end.
    fn view(&mut self, offset: u64, n: usize) -> Result<&[u8], Error> {
        let n = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(n).min(n);
        let inside = |start: u64, have: usize| {
            let skip = usize::try_from(offset.checked_sub(start)?).ok()?;
            (skip + n <= have).then_some(skip)
        };
        let skip = match inside(self.start, self.buffer.len()) {
            Some(skip) => skip,
            None => {
                self.fill(offset, n)?;
                0
            }
        };
        let end = (skip + n).min(self.buffer.len());
        Ok(&self.buffer[skip.min(end)..end])
    }

    /// Reads a chunk, or `n` bytes if that is more, so that the buffer begins at `offset`.
    fn fill(&mut self, offset: u64, n: usize) -> Result<(), Error> {
        let kept = match offset.checked_sub(self.start).map(usize::try_from) {
            Some(Ok(skip)) if skip < self.buffer.len() => {
                self.buffer.drain(..skip);
                self.buffer.len()
            }
            _ => {
                self.buffer.clear();
                0
            }
        };
        self.start = offset;
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.buffer.resize(n.max(CHUNK_BYTES).min(left).max(kept), 0);
        let read = self.file.read_full_at(&mut self.buffer[kept..], offset + kept as u64);
        let read = read.map_err(Error::disk("read", &self.segment.path))?;
        self.buffer.truncate(kept + read);
        Ok(())
    }

    /// Where the last byte that is not zero ends, at `from` at least.
    fn content_end(&mut self, from: u64) -> Result<u64, Error> {
        let (mut at, mut end) = (from, from);
        while at < self.length {
            let bytes = self.view(at, SCAN_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            if leading_zeros(bytes) < bytes.len() {
                let last = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
                end = at + last as u64 + 1;
            }
            at += bytes.len() as u64;
        }
        Ok(end)
    }
}

/// How many zeros `bytes` begins with.
fn leading_zeros(bytes: &[u8]) -> usize {
    let is_zero = |chunk: &&[u8]| chunk.iter().fold(0, |all, byte| all | byte) == 0;
    let whole: usize = bytes.chunks(256).take_while(is_zero).map(<[u8]>::len).sum();
    whole + bytes[whole..].iter().take_while(|byte| **byte == 0).count()
}
