//! The log as its users see it: append, settle, and what a snapshot asks of it.
//!
//! Invariant: appending never waits for the disk, so that it may be done under a shard's lock;
//! whatever waits or blocks says so. It never touches the segment that is being written.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::committer::Committer;
use super::frame::{self, Kind};
use super::segment::Segment;
use super::settle::{Durable, block_on};
use super::shared::Shared;
use super::{Config, Error, Frame, Lsn, Mode, Recovery, codec};
use crate::disk::Disk;
use crate::entry::Record;

/// Writers that do not wait for their own frame wait, in [`Writer::room`], while more bytes than
/// this have not been written.
pub const BACKLOG_BYTES_MAX: usize = 16 << 20;

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
        let shared = Arc::new(Shared::open(disk, config, recovery)?);
        let committer = Committer::new(Arc::clone(&shared));
        let thread = Arc::new(Thread { shared: Arc::clone(&shared), handle: Mutex::new(None) });
        Ok((Self { shared, thread }, committer))
    }

    /// What writes wait for.
    pub fn mode(&self) -> Mode {
        self.shared.config.mode
    }

    /// The directory of its segments.
    pub fn dir(&self) -> &Path {
        &self.shared.config.location.dir
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
        let last = self.last_lsn();
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
        self.settle(self.last_lsn()).await
    }

    /// Bytes that are gathered and not yet on their way to the disk.
    pub fn backlog_bytes(&self) -> usize {
        self.shared.backlog_bytes()
    }

    /// The number that the next frame will have.
    pub fn next_lsn(&self) -> Lsn {
        self.shared.next_lsn()
    }

    /// The last frame that was appended; `Lsn(0)` before the first.
    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.next_lsn().0 - 1)
    }

    /// The last frame that is on the disk.
    pub fn durable_lsn(&self) -> Lsn {
        Lsn(self.shared.durable.load(Ordering::Acquire))
    }

    /// How long writes have lately waited for the disk, or wait now: in mode `sync` for the longest
    /// round of the last second or two, the one under way included; in mode `async` for the kernel
    /// to take the bytes, and for the change of segments; in mode `off` not at all.
    pub fn disk_delay(&self) -> Duration {
        self.shared.delay.at(Instant::now())
    }

    /// Is told once, when the log fails: the server must then stop.
    pub fn failure(&self) -> watch::Receiver<Option<Error>> {
        self.shared.subscribe()
    }

    /// The log's segments in order, the one being written last.
    pub fn segments(&self) -> Vec<Segment> {
        self.shared.segments()
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
        let tail_first = self.shared.segments().last().map(|segment| segment.first);
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

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.begin_close();
    }
}
