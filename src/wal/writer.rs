//! Writing the log: frames gather in a buffer, and go to the segment in one write.
//!
//! Invariant: sequence numbers have no gaps and frames stand in the file in their order. In mode
//! `sync` only the committer writes, so that a batch goes out when the one before it is durable.
//! Locks are taken in the order tail, gather; neither across a wait for the disk's sync, but for
//! a segment's end.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::watch;

use super::committer::Committer;
use super::frame::{self, Kind};
use super::segment::{HEADER_BYTES, Segment, salt};
use super::settle::{Durable, Waiter, Waiters, block_on};
use super::{Config, Error, Frame, Lsn, Mode, Recovery, codec};
use crate::disk::{Disk, File};
use crate::entry::{Record, ShardId};

/// Writers that do not wait for their own frame wait, in [`Writer::room`], while more bytes than
/// this have not been written.
pub const BACKLOG_BYTES_MAX: usize = 16 << 20;

/// A buffer that has grown beyond this is given back once it is written.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// The log, open for writing. Clones share it; it ends with the last of them, or with
/// [`Writer::close`].
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Arc<Thread>,
}

/// Ends the committer's thread when the last writer is gone.
struct Thread {
    shared: Arc<Shared>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

/// What writers and committer share.
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) config: Config,
    salt: u32,
    gather: Mutex<Gather>,
    gathered_bytes: AtomicUsize,
    tail: Mutex<Tail>,
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
    ended: Mutex<Vec<Segment>>,
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

impl Writer {
    /// Opens the log for writing behind what `recovery` found: cuts a torn tail off, begins a new
    /// segment, and starts the thread that syncs. In mode `off` it touches nothing.
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses.
    pub fn start(disk: Arc<dyn Disk>, config: Config, recovery: &Recovery) -> Result<Self, Error> {
        let off = config.mode == Mode::Off;
        let path = config.location.dir.clone();
        let (writer, committer) = Self::start_stepped(disk, config, recovery)?;
        if !off {
            let handle = committer.spawn().map_err(Error::disk("start the thread for", path))?;
            *writer.thread.handle.lock() = Some(handle);
        }
        Ok(writer)
    }

    /// As [`Writer::start`], without a thread: nothing is synced but by [`Committer::step`]. For
    /// a simulator, which must be able to repeat itself.
    ///
    /// # Errors
    /// As [`Writer::start`].
    pub fn start_stepped(
        disk: Arc<dyn Disk>,
        config: Config,
        recovery: &Recovery,
    ) -> Result<(Self, Committer), Error> {
        let mut ended = Vec::new();
        let mut segment = None;
        if config.mode != Mode::Off {
            ended = prepare(&*disk, &config, recovery)?;
            segment = Some(Open::create(&*disk, &config, recovery.next)?);
        }
        let before = recovery.next.0 - 1;
        let next = recovery.next;
        let shared = Arc::new(Shared {
            disk,
            salt: salt(config.location.seed),
            config,
            gather: Mutex::new(Gather { buffer: Vec::new(), first: next, next, closed: false }),
            gathered_bytes: AtomicUsize::new(0),
            tail: Mutex::new(Tail { segment, spare: Vec::new() }),
            written: AtomicU64::new(before),
            durable: AtomicU64::new(before),
            waiters: Mutex::default(),
            control: Mutex::default(),
            signal: Condvar::new(),
            failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            failure_seen: watch::Sender::new(None),
            ended: Mutex::new(ended),
        });
        let committer = Committer::new(Arc::clone(&shared));
        let thread = Arc::new(Thread { shared: Arc::clone(&shared), handle: Mutex::new(None) });
        Ok((Self { shared, thread }, committer))
    }

    /// What writes wait for.
    pub fn mode(&self) -> Mode {
        self.shared.config.mode
    }

    /// Puts a record behind all others, in memory; to be called under the shard's lock, so that
    /// the log has a shard's records in their order. In mode `off` answers `Lsn(0)`.
    ///
    /// # Errors
    /// What the log failed with before; [`Error::Closed`]; [`Error::TooLarge`].
    pub fn append(&self, record: &Record) -> Result<Lsn, Error> {
        if self.shared.config.mode == Mode::Off {
            return Ok(Lsn(0));
        }
        frame::within_frame(codec::record_bytes(record))?;
        self.shared.put((Kind::Record, record.shard), |into| codec::put_record(into, record))
    }

    /// As [`Writer::append`], for any frame.
    ///
    /// # Errors
    /// As [`Writer::append`].
    pub fn append_frame(&self, frame: &Frame) -> Result<Lsn, Error> {
        if self.shared.config.mode == Mode::Off {
            return Ok(Lsn(0));
        }
        frame.check_size()?;
        self.shared.put((frame.kind(), frame.shard()), |into| frame.put_body(into))
    }

    /// Waits for what the mode owes a write before its answer; to be called without the shard's
    /// lock. In mode `async` it writes in place, without a task switch.
    ///
    /// # Errors
    /// What the log failed with: whether the frame will be found again is then unknown.
    pub async fn settle(&self, lsn: Lsn) -> Result<(), Error> {
        match self.shared.config.mode {
            Mode::Off => Ok(()),
            Mode::Async => self.shared.hand_over(lsn),
            Mode::Sync => self.durable(lsn).await,
        }
    }

    /// As [`Writer::settle`], on a thread that may block.
    ///
    /// # Errors
    /// As [`Writer::settle`].
    pub fn settle_blocking(&self, lsn: Lsn) -> Result<(), Error> {
        block_on(self.settle(lsn))
    }

    /// Waits until the frame is on the disk, in mode `async` too. In mode `off` there is nothing
    /// to wait for.
    ///
    /// # Errors
    /// As [`Writer::settle`].
    pub async fn durable(&self, lsn: Lsn) -> Result<(), Error> {
        match self.shared.config.mode {
            Mode::Off => Ok(()),
            Mode::Async | Mode::Sync => Durable::new(&self.shared, lsn).await,
        }
    }

    /// Makes durable all that was appended before the call, and answers the last of it. Blocks.
    ///
    /// # Errors
    /// As [`Writer::settle`].
    pub fn sync_blocking(&self) -> Result<Lsn, Error> {
        let last = Lsn(self.next_lsn().0 - 1);
        block_on(self.durable(last))?;
        Ok(last)
    }

    /// Waits while too much is gathered ([`BACKLOG_BYTES_MAX`]); for writes that are answered
    /// without waiting for their own frame.
    ///
    /// # Errors
    /// As [`Writer::settle`].
    pub async fn room(&self) -> Result<(), Error> {
        if self.backlog_bytes() <= BACKLOG_BYTES_MAX {
            return Ok(());
        }
        self.settle(Lsn(self.next_lsn().0 - 1)).await
    }

    /// Bytes that are gathered and not yet on their way to the disk.
    pub fn backlog_bytes(&self) -> usize {
        self.shared.gathered_bytes.load(Ordering::Relaxed)
    }

    /// The number that the next frame will have.
    pub fn next_lsn(&self) -> Lsn {
        self.shared.gather.lock().next
    }

    /// The last frame that is on the disk.
    pub fn durable_lsn(&self) -> Lsn {
        Lsn(self.shared.durable.load(Ordering::Acquire))
    }

    /// Is told once, when the log fails: the server must then stop.
    pub fn failure(&self) -> watch::Receiver<Option<Error>> {
        self.shared.failure_seen.subscribe()
    }

    /// The log's segments in order, the one being written last.
    pub fn segments(&self) -> Vec<Segment> {
        let tail = self.shared.tail.lock();
        let mut segments = self.shared.ended.lock().clone();
        segments.extend(tail.segment.as_ref().map(Open::segment));
        segments
    }

    /// Bytes of frames and headers in all segments.
    pub fn bytes(&self) -> u64 {
        self.segments().iter().map(|segment| segment.bytes).sum()
    }

    /// Ends the present segment and begins a new one; no-op if it has no frames. Blocks.
    ///
    /// # Errors
    /// What the log failed with, now or before.
    pub fn rotate(&self) -> Result<(), Error> {
        self.shared.check()?;
        self.shared.rotate().inspect_err(|e| self.shared.fail(e))
    }

    /// Removes the segments all of whose frames lie below `lsn`; answers how many. Blocks.
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses; the log itself goes on.
    pub fn truncate_below(&self, lsn: Lsn) -> Result<usize, Error> {
        let tail_first = self.shared.tail.lock().segment.as_ref().map(|open| open.first);
        let mut ended = self.shared.ended.lock();
        let after = ended.iter().skip(1).map(|segment| segment.first).chain(tail_first);
        // The last segment of all is being written: it stays.
        let n = after.take_while(|first| *first <= lsn).count().min(ended.len());
        for _ in 0..n {
            let path = &ended[0].path;
            self.shared.disk.remove(path).map_err(Error::disk("remove", path))?;
            ended.remove(0);
        }
        drop(ended);
        if n > 0 {
            let dir = &self.shared.config.location.dir;
            self.shared.disk.sync_dir(dir).map_err(Error::disk("sync", dir))?;
        }
        Ok(n)
    }

    /// Sets the damaged segments that `recovery` reports aside (`….wal.corrupt`). Only to be
    /// called when a fresh snapshot holds what was found in them. Blocks.
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses; the log itself goes on.
    pub fn set_aside(&self, recovery: &Recovery) -> Result<(), Error> {
        let mut ended = self.shared.ended.lock();
        let damaged: Vec<PathBuf> = recovery.damaged_segments().map(PathBuf::from).collect();
        for path in &damaged {
            let mut aside = path.clone().into_os_string();
            aside.push(".corrupt");
            match self.shared.disk.rename(path, aside.as_ref()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::disk("rename", path)(e));
                }
                _ => ended.retain(|segment| &segment.path != path),
            }
        }
        drop(ended);
        if !damaged.is_empty() {
            let dir = &self.shared.config.location.dir;
            self.shared.disk.sync_dir(dir).map_err(Error::disk("sync", dir))?;
        }
        Ok(())
    }

    /// Writes and syncs what is gathered, cuts the allocated room off the last segment, and ends
    /// the thread. Later appends fail. Blocks.
    ///
    /// # Errors
    /// What the log failed with, now or before.
    pub fn close(&self) -> Result<(), Error> {
        self.shared.begin_close();
        if let Some(handle) = self.thread.handle.lock().take() {
            handle.join().expect("the committer does not panic");
        }
        self.shared.failure().map_or(Ok(()), Err)
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
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

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.begin_close();
    }
}

impl Shared {
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

    fn put(&self, about: (Kind, ShardId), body: impl FnOnce(&mut Vec<u8>)) -> Result<Lsn, Error> {
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
    fn hand_over(&self, lsn: Lsn) -> Result<(), Error> {
        self.check()?;
        if self.written.load(Ordering::Acquire) >= lsn.0 {
            return Ok(());
        }
        let mut tail = self.tail.lock();
        if self.written.load(Ordering::Acquire) >= lsn.0 {
            return Ok(());
        }
        self.write_gathered(&mut tail).inspect_err(|e| self.fail(e))?;
        let full = tail.is_full(&self.config);
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
        let Some(open) = &tail.segment else {
            return Ok(());
        };
        if open.end == HEADER_BYTES as u64 {
            return Ok(());
        }
        let last = Lsn(self.written.load(Ordering::Acquire));
        open.file.truncate(open.end).map_err(Error::disk("end", &open.path))?;
        let next = Open::create(&*self.disk, &self.config, Lsn(last.0 + 1))?;
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
        open.file.truncate(open.end).map_err(Error::disk("end", &open.path))
    }

    /// Asks the committer for a round.
    pub(super) fn demand(&self) {
        self.control.lock().demand = true;
        self.signal.notify_one();
    }

    fn begin_close(&self) {
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
        // reason to stop: if it is full, the write will say so.
        let _ = file.allocate(config.segment_bytes_max);
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

/// Makes what recovery found the durable past of a new segment; answers its segments.
fn prepare(disk: &dyn Disk, config: &Config, recovery: &Recovery) -> Result<Vec<Segment>, Error> {
    let dir = &config.location.dir;
    disk.create_dir(dir).map_err(Error::disk("create", dir))?;
    if let Some(above) = dir.parent() {
        disk.sync_dir(above).map_err(Error::disk("sync", above))?;
    }
    let mut segments = recovery.segments.clone();
    let Some(last) = segments.last_mut() else {
        return Ok(segments);
    };
    if recovery.tail_bytes <= HEADER_BYTES as u64 {
        disk.remove(&last.path).map_err(Error::disk("remove", &last.path))?;
        segments.pop();
    } else {
        let cut = disk.open_to_write(&last.path).and_then(|f| f.truncate(recovery.tail_bytes));
        cut.map_err(Error::disk("cut", &last.path))?;
        last.bytes = recovery.tail_bytes;
    }
    Ok(segments)
}

/// What a sync is to make durable.
pub(super) struct Unsynced {
    pub(super) file: Arc<dyn File>,
    pub(super) path: PathBuf,
    pub(super) last: Lsn,
    pub(super) full: bool,
}
