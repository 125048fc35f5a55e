//! What the writers and the committer of a log share: the gathered frames, the segment that is
//! written, and those who wait.
//!
//! Invariant: sequence numbers have no gaps and frames stand in the file in their order. In mode
//! `sync` only the committer writes, so that a batch goes out when the one before it is durable.
//! Locks are taken in the order tail, then gather, ended or mark; none across a wait for the disk's
//! sync, but for a segment's end, and the mark's own.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::watch;

use super::delay::Delay;
use super::frame::{self, Kind};
use super::mark::{Mark, MarkFile};
use super::segment::{HEADER_BYTES, Segment, salt};
use super::settle::{Waiter, Waiters};
use super::{Config, Error, Lsn, Mode, Recovery};
use crate::disk::{Disk, File};
use crate::entry::ShardId;

/// A buffer that has grown beyond this is given back once it is written.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// What writers and committer share.
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) config: Config,
    salt: u32,
    gather: Mutex<Gather>,
    gathered_bytes: AtomicUsize,
    tail: Mutex<Tail>,
    /// None in mode `off`.
    mark: Mutex<Option<MarkFile>>,
    /// All frames up to this one are with the kernel.
    pub(super) written: AtomicU64,
    /// All frames up to this one are on the disk.
    pub(super) durable: AtomicU64,
    pub(super) waiters: Mutex<Waiters>,
    control: Mutex<Control>,
    signal: Condvar,
    failed: AtomicBool,
    failure: OnceLock<Error>,
    failure_seen: watch::Sender<Option<Error>>,
    /// All segments but the one being written, oldest first.
    pub(super) ended: Mutex<Vec<Segment>>,
    /// What writes wait for: in mode `sync` the committer's rounds, in mode `async` whoever has the
    /// tail.
    pub(super) delay: Delay,
}

/// Frames that are encoded but not written.
struct Gather {
    buffer: Vec<u8>,
    /// The first frame in the buffer.
    first: Lsn,
    /// The next frame's.
    next: Lsn,
    closed: bool,
}

/// The segment being written; none in mode `off`.
struct Tail {
    segment: Option<Open>,
    spare: Vec<u8>,
}

struct Open {
    file: Arc<dyn File>,
    path: PathBuf,
    first: Lsn,
    end: u64,
}

/// What the committer's thread is asked to do.
#[derive(Default)]
struct Control {
    demand: bool,
    closing: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("config", &self.config)
            .field("written", &self.written)
            .field("durable", &self.durable)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Opens the log behind what was recovered.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        config: Config,
        recovery: &Recovery,
    ) -> Result<Self, Error> {
        let mut ended = Vec::new();
        let (mut segment, mut mark) = (None, None);
        if config.mode != Mode::Off {
            let mut claims_nothing;
            (ended, claims_nothing) = prepare(&*disk, &config, recovery)?;
            segment = Some(Open::create(&*disk, &config, recovery.next)?);
            claims_nothing.begun(recovery.next)?;
            mark = Some(claims_nothing);
        }
        let before = recovery.next.0 - 1;
        let next = recovery.next;
        Ok(Self {
            disk,
            salt: salt(config.location.seed),
            config,
            gather: Mutex::new(Gather { buffer: Vec::new(), first: next, next, closed: false }),
            gathered_bytes: AtomicUsize::new(0),
            tail: Mutex::new(Tail { segment, spare: Vec::new() }),
            mark: Mutex::new(mark),
            written: AtomicU64::new(before),
            durable: AtomicU64::new(before),
            waiters: Mutex::default(),
            control: Mutex::default(),
            signal: Condvar::new(),
            failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            failure_seen: watch::Sender::new(None),
            ended: Mutex::new(ended),
            delay: Delay::new(Instant::now()),
        })
    }

    pub(super) fn segments(&self) -> Vec<Segment> {
        let tail = self.tail.lock();
        let mut segments = self.ended.lock().clone();
        segments.extend(tail.segment.as_ref().map(Open::segment));
        segments
    }

    pub(super) fn next_lsn(&self) -> Lsn {
        self.gather.lock().next
    }

    pub(super) fn backlog_bytes(&self) -> usize {
        self.gathered_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Error>> {
        self.failure_seen.subscribe()
    }

    /// What the log failed with, if it has.
    pub(super) fn failure(&self) -> Option<Error> {
        if self.failed.load(Ordering::Acquire) { self.failure.get().cloned() } else { None }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        self.failure().map_or(Ok(()), Err)
    }

    /// The log is at its end: everyone, now and later, is told so.
    pub(super) fn fail(&self, error: &Error) {
        if self.failure.set(error.clone()).is_ok() {
            self.failed.store(true, Ordering::Release);
            self.failure_seen.send_replace(Some(error.clone()));
        }
        let waiting = std::mem::take(&mut self.waiters.lock().waiting);
        waiting.into_iter().for_each(|waiter| waiter.waker.wake());
    }

    /// Encodes a frame into the buffer.
    pub(super) fn put(
        &self,
        about: (Kind, ShardId),
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Lsn, Error> {
        self.check()?;
        let durable = Lsn(self.durable.load(Ordering::Acquire));
        let mut gather = self.gather.lock();
        if gather.closed {
            return Err(Error::Closed);
        }
        let lsn = gather.next;
        gather.next = Lsn(lsn.0 + 1);
        let durable = match self.config.mode {
            // This buffer is written when all before it is durable.
            Mode::Sync => Lsn(gather.first.0 - 1),
            Mode::Off | Mode::Async => durable,
        };
        frame::put_frame(&mut gather.buffer, self.salt, (lsn, durable), about, body);
        self.gathered_bytes.store(gather.buffer.len(), Ordering::Relaxed);
        Ok(lsn)
    }

    /// Sees to it that the frame is with the kernel. Whoever comes first writes for all.
    pub(super) fn hand_over(&self, lsn: Lsn) -> Result<(), Error> {
        self.check()?;
        if self.written.load(Ordering::Acquire) >= lsn.0 {
            return Ok(());
        }
        let mut tail = self.tail.lock();
        if self.written.load(Ordering::Acquire) >= lsn.0 {
            return Ok(());
        }
        let waited_for = self.delay.begin();
        self.write_gathered(&mut tail).inspect_err(|e| self.fail(e))?;
        self.mark_written(&tail).inspect_err(|e| self.fail(e))?;
        let full = tail.is_full(&self.config);
        drop(waited_for);
        drop(tail);
        if full {
            self.demand();
        }
        Ok(())
    }

    fn write_gathered(&self, tail: &mut MutexGuard<'_, Tail>) -> Result<(), Error> {
        // Under the lock, so that nothing is written behind a write that failed.
        self.check()?;
        let Tail { segment, spare } = &mut **tail;
        let Some(open) = segment else { return Ok(()) };
        let last = {
            let mut gather = self.gather.lock();
            std::mem::swap(&mut gather.buffer, spare);
            gather.first = gather.next;
            self.gathered_bytes.store(0, Ordering::Relaxed);
            gather.next.0 - 1
        };
        if spare.is_empty() {
            return Ok(());
        }
        let written = open.file.write_all_at(spare, open.end);
        written.map_err(Error::disk("write", &open.path))?;
        open.end += spare.len() as u64;
        spare.clear();
        spare.shrink_to(BUFFER_BYTES_KEPT);
        self.written.store(last, Ordering::Release);
        Ok(())
    }

    /// Has the mark say what is with the kernel, unless it is being synced.
    fn mark_written(&self, _tail: &MutexGuard<'_, Tail>) -> Result<(), Error> {
        let last = Lsn(self.written.load(Ordering::Acquire));
        match self.mark.try_lock().as_deref_mut() {
            Some(Some(mark)) => mark.written(last),
            _ => Ok(()),
        }
    }

    /// Has the mark say what is on the disk, before anybody is told.
    pub(super) fn mark_durable(&self, last: Lsn) -> Result<(), Error> {
        self.mark.lock().as_mut().map_or(Ok(()), |mark| mark.durable(last))
    }

    /// Makes the mark itself durable.
    pub(super) fn sync_mark(&self) -> Result<(), Error> {
        self.check()?;
        self.mark.lock().as_mut().map_or(Ok(()), MarkFile::sync).inspect_err(|e| self.fail(e))
    }

    /// Writes what is gathered; answers what is then to be synced, and up to where.
    pub(super) fn write_all(&self) -> Result<Option<Unsynced>, Error> {
        let mut tail = self.tail.lock();
        self.write_gathered(&mut tail)?;
        let full = tail.is_full(&self.config);
        Ok(tail.segment.as_ref().map(|open| Unsynced {
            file: Arc::clone(&open.file),
            path: open.path.clone(),
            last: Lsn(self.written.load(Ordering::Acquire)),
            full,
        }))
    }

    /// All up to `lsn` is on the disk: wakes those who waited for it.
    pub(super) fn publish(&self, lsn: Lsn) {
        let durable = self.durable.fetch_max(lsn.0, Ordering::AcqRel).max(lsn.0);
        let mut waiters = self.waiters.lock();
        let settled = waiters.waiting.extract_if(.., |waiter| waiter.lsn.0 <= durable);
        let settled: Vec<Waiter> = settled.collect();
        drop(waiters);
        settled.into_iter().for_each(|waiter| waiter.waker.wake());
    }

    /// Ends the segment, which makes all of it durable, and begins the next.
    pub(super) fn rotate(&self) -> Result<(), Error> {
        let mut tail = self.tail.lock();
        self.check()?;
        let _waited_for = (self.config.mode == Mode::Async).then(|| self.delay.begin());
        let Some(open) = &tail.segment else {
            return Ok(());
        };
        if open.end == HEADER_BYTES as u64 {
            return Ok(());
        }
        let last = Lsn(self.written.load(Ordering::Acquire));
        open.file.truncate(open.end).map_err(Error::disk("end", &open.path))?;
        let next = Open::create(&*self.disk, &self.config, Lsn(last.0 + 1))?;
        self.mark.lock().as_mut().map_or(Ok(()), |mark| mark.begun(next.first))?;
        self.ended.lock().push(open.segment());
        tail.segment = Some(next);
        drop(tail);
        self.publish(last);
        Ok(())
    }

    /// Cuts the allocated room off the last segment.
    pub(super) fn end(&self) -> Result<(), Error> {
        let tail = self.tail.lock();
        let Some(open) = &tail.segment else {
            return Ok(());
        };
        open.file.truncate(open.end).map_err(Error::disk("end", &open.path))?;
        drop(tail);
        self.sync_mark()
    }

    /// Asks the committer for a round.
    pub(super) fn demand(&self) {
        self.control.lock().demand = true;
        self.signal.notify_one();
    }

    /// Asks the committer for its last round; later appends fail.
    pub(super) fn begin_close(&self) {
        self.gather.lock().closed = true;
        self.control.lock().closing = true;
        self.signal.notify_one();
    }

    /// Waits until a round is asked for, or `interval` has passed; answers if it is the last.
    pub(super) fn wait(&self, interval: Duration) -> bool {
        let mut control = self.control.lock();
        if !control.demand && !control.closing {
            self.signal.wait_for(&mut control, interval);
        }
        control.demand = false;
        control.closing
    }
}

impl Tail {
    fn is_full(&self, config: &Config) -> bool {
        self.segment.as_ref().is_some_and(|open| open.end >= config.segment_bytes_max)
    }
}

impl Open {
    /// Begins a segment; its header and name are durable on return.
    fn create(disk: &dyn Disk, config: &Config, first: Lsn) -> Result<Self, Error> {
        let dir = &config.location.dir;
        let path = Segment::path_in(dir, first);
        let file = disk.create(&path).map_err(Error::disk("create", &path))?;
        // Frames are then overwrites, whose sync need not grow the file. A disk that cannot is no
        // reason to stop: if it is full, the write will say so. What it could is given back, for
        // others may need it.
        if file.allocate(config.segment_bytes_max).is_err() {
            file.truncate(0).map_err(Error::disk("create", &path))?;
        }
        let header = Segment::encode_header(config.location.cluster_id, first);
        let written = file.write_all_at(&header, 0).and_then(|()| file.sync_data());
        written.map_err(Error::disk("write", &path))?;
        disk.sync_dir(dir).map_err(Error::disk("sync", dir))?;
        Ok(Self { file, path, first, end: HEADER_BYTES as u64 })
    }

    fn segment(&self) -> Segment {
        Segment { path: self.path.clone(), first: self.first, bytes: self.end }
    }
}

/// Makes what recovery found the durable past of a new segment; answers its segments, and the mark,
/// which claims no segment yet.
fn prepare(
    disk: &dyn Disk,
    config: &Config,
    recovery: &Recovery,
) -> Result<(Vec<Segment>, MarkFile), Error> {
    let dir = &config.location.dir;
    disk.create_dir(dir).map_err(Error::disk("create", dir))?;
    if let Some(above) = dir.parent() {
        disk.sync_dir(above).map_err(Error::disk("sync", above))?;
    }
    let mut segments = recovery.segments.clone();
    let mut empty = None;
    if recovery.tail_bytes <= HEADER_BYTES as u64 {
        empty = segments.pop();
    } else if let Some(last) = segments.last_mut() {
        let cut = disk.open_to_write(&last.path).and_then(|f| f.truncate(recovery.tail_bytes));
        cut.map_err(Error::disk("cut", &last.path))?;
        last.bytes = recovery.tail_bytes;
    }
    // Before the segment goes that the last run's mark names.
    let mark = MarkFile::create(disk, &config.location, Mark::before(recovery.next))?;
    if let Some(last) = empty {
        disk.remove(&last.path).map_err(Error::disk("remove", &last.path))?;
    }
    Ok((segments, mark))
}

/// What a sync is to make durable.
pub(super) struct Unsynced {
    pub(super) file: Arc<dyn File>,
    pub(super) path: PathBuf,
    pub(super) last: Lsn,
    pub(super) full: bool,
}
