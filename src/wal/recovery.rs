//! Replaying a log at start: one thread reads and verifies, several apply, each its own shards.
//!
//! Invariant: all frames of one shard are handed over by one thread, in the log's order. Memory is
//! bounded by the batches under way.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bytes::Bytes;

use super::frame::{FrameHeader, Kind};
use super::reader::{Found, Known, Log};
use super::segment::HEADER_BYTES;
use super::{Corruption, Damage, Error, Frame, Location, Lsn, Segment};
use crate::disk::Disk;
use crate::entry::ShardId;

/// A batch is sent off when it has this many bytes.
const BATCH_BYTES: usize = 256 << 10;

/// Batches under way to each thread.
const BATCHES_MAX: usize = 4;

/// How far a long replay or load is; to be read from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: AtomicU64,
    /// Bytes there are.
    pub total_bytes: AtomicU64,
}

/// What is to be replayed, and what is known of the log.
#[derive(Debug)]
pub struct Replay<'a> {
    /// For each shard the first frame that its snapshot may lack; `Lsn(1)` for each without a
    /// snapshot. As long as the cluster has shards.
    pub starts: &'a [Lsn],
    /// What is known of it beside.
    pub known: Known,
    /// How many threads apply frames; at least one.
    pub threads: usize,
    /// Is kept up to date.
    pub progress: &'a Progress,
}

/// What a replay found. The default is that of a new, empty log.
#[derive(Debug)]
pub struct Recovery {
    /// Frames handed over.
    pub frames: u64,
    /// Bytes of a torn tail, which [`super::Writer::start`] cuts off.
    pub torn_bytes: u64,
    /// What was lost though it had been durable. If there is any, the node has lost memory.
    pub corruptions: Vec<Corruption>,
    /// The segments there are.
    pub segments: Vec<Segment>,
    /// The sound length of the last segment.
    pub(super) tail_bytes: u64,
    /// The number that the next frame will have.
    pub next: Lsn,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            frames: 0,
            torn_bytes: 0,
            corruptions: Vec::new(),
            segments: Vec::new(),
            tail_bytes: 0,
            next: Lsn(1),
        }
    }
}

impl Recovery {
    /// The segments in which something is damaged, each once.
    pub fn damaged_segments(&self) -> impl Iterator<Item = &Path> {
        let mut paths: Vec<&Path> =
            self.corruptions.iter().filter_map(|c| c.segment.as_deref()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths.into_iter()
    }
}

/// Replays a log: hands over to `apply` every sound frame from its shard's start on. Writes
/// nothing. A frame's bytes share memory with its batch; who keeps some should copy them.
///
/// `apply` is called from several threads at once, for one shard from one only.
///
/// # Errors
/// [`Error`] when the disk fails, or when the log is another cluster's or of a newer format;
/// damage is no error but stands in [`Recovery`].
pub fn recover(
    disk: &dyn Disk,
    location: &Location,
    replay: &Replay<'_>,
    apply: &(dyn Fn(Lsn, Frame) + Sync),
) -> Result<Recovery, Error> {
    let log = Log::find(disk, location)?;
    let earliest = replay.starts.iter().copied().min().unwrap_or(Lsn(1)).max(Lsn(1));
    let total = log.segments.iter().map(|segment| segment.bytes).sum();
    replay.progress.total_bytes.store(total, Ordering::Relaxed);
    let (walked, frames, unreadable) = thread::scope(|scope| {
        let mut lanes = Vec::new();
        let mut workers = Vec::new();
        for _ in 0..replay.threads.max(1) {
            let (sender, receiver) = sync_channel(BATCHES_MAX);
            lanes.push(Lane { sender, batch: Batch::default() });
            workers.push(scope.spawn(move || work(&receiver, apply)));
        }
        let mut frames = 0;
        let mut strays = Vec::new();
        let walked = log.walk(earliest, replay.known, &mut |found| {
            let bytes = (super::frame::FRAME_HEADER_BYTES + found.body.len()) as u64;
            replay.progress.done_bytes.fetch_add(bytes, Ordering::Relaxed);
            let shard = usize::from(found.header.shard.0);
            match replay.starts.get(shard) {
                None => strays.push(Unreadable::new(&found)),
                Some(start) if found.header.lsn < *start => {}
                Some(_) => {
                    frames += 1;
                    let lane = shard % lanes.len();
                    lanes[lane].push(&found);
                }
            }
            ControlFlow::Continue(())
        });
        lanes.into_iter().for_each(Lane::finish);
        for worker in workers {
            strays.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        walked.map(|walked| (walked, frames, strays))
    })?;
    let segments = log.segments;
    let mut corruptions = walked.corruptions;
    let frames = frames - unreadable.iter().filter(|u| u.dispatched).count() as u64;
    corruptions.extend(unreadable.into_iter().map(|u| u.corruption(&segments)));
    let tail_bytes = if segments.is_empty() { HEADER_BYTES as u64 } else { walked.tail_bytes };
    replay.progress.done_bytes.store(total, Ordering::Relaxed);
    Ok(Recovery {
        frames,
        torn_bytes: walked.torn_bytes,
        corruptions,
        segments,
        tail_bytes,
        next: walked.next,
    })
}

/// A frame that verified but makes no sense.
#[derive(Debug)]
struct Unreadable {
    lsn: Lsn,
    offset: u64,
    bytes: u64,
    dispatched: bool,
}

impl Unreadable {
    fn new(found: &Found<'_>) -> Self {
        let bytes = found.header.frame_bytes() as u64;
        Self { lsn: found.header.lsn, offset: found.offset, bytes, dispatched: false }
    }

    fn corruption(&self, segments: &[Segment]) -> Corruption {
        let segment = segments.iter().rev().find(|segment| segment.first <= self.lsn);
        Corruption {
            damage: Damage::Body,
            segment: segment.map(|segment| segment.path.clone()),
            offset: self.offset,
            bytes: self.bytes,
            from: self.lsn,
            to: Some(self.lsn),
        }
    }
}

/// Frames on their way to one thread.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    frames: Vec<(FrameHeader, u64, Range<usize>)>,
}

struct Lane {
    sender: SyncSender<Batch>,
    batch: Batch,
}

impl Lane {
    fn push(&mut self, found: &Found<'_>) {
        if self.batch.bytes.is_empty() {
            self.batch.bytes.reserve(BATCH_BYTES.max(found.body.len()));
        }
        let start = self.batch.bytes.len();
        self.batch.bytes.extend_from_slice(found.body);
        let range = start..self.batch.bytes.len();
        self.batch.frames.push((found.header, found.offset, range));
        if self.batch.bytes.len() >= BATCH_BYTES {
            self.send();
        }
    }

    fn send(&mut self) {
        // A thread that is gone has panicked; joining it tells.
        let _ = self.sender.send(std::mem::take(&mut self.batch));
    }

    fn finish(mut self) {
        self.send();
    }
}

fn work(batches: &Receiver<Batch>, apply: &(dyn Fn(Lsn, Frame) + Sync)) -> Vec<Unreadable> {
    let mut unreadable = Vec::new();
    for Batch { bytes, frames } in batches {
        let bytes = Bytes::from(bytes);
        for (header, offset, range) in frames {
            let (lsn, kind, shard): (Lsn, Kind, ShardId) = (header.lsn, header.kind, header.shard);
            match Frame::get(kind, shard, &mut bytes.slice(range)) {
                Ok(frame) => apply(lsn, frame),
                Err(_) => unreadable.push(Unreadable {
                    lsn,
                    offset,
                    bytes: header.frame_bytes() as u64,
                    dispatched: true,
                }),
            }
        }
    }
    unreadable
}
