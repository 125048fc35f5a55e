//! Syncing the log. In mode `sync` this is group commit: while one sync runs the next batch
//! gathers, and no timer is involved. In mode `async` it runs on a timer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::{Error, Lsn, Mode, mark};

/// Frames that nobody waits for are written and synced this often, so that none is older than a
/// second before it is on the disk.
pub const FSYNC_INTERVAL: Duration = Duration::from_millis(500);

/// Syncs the log, a round at a time.
#[derive(Debug)]
pub struct Committer {
    shared: Arc<Shared>,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// One round: writes what is gathered, syncs what is written, wakes those who waited, and
    /// begins a new segment when this one is full.
    ///
    /// # Errors
    /// What the log failed with, now or before.
    pub fn step(&mut self) -> Result<(), Error> {
        self.shared.check()?;
        self.round().inspect_err(|e| self.shared.fail(e))
    }

    fn round(&self) -> Result<(), Error> {
        let is_waited_for = self.shared.config.mode == Mode::Sync;
        let _waited_for = is_waited_for.then(|| self.shared.delay.begin());
        let Some(unsynced) = self.shared.write_all()? else {
            return Ok(());
        };
        if unsynced.last > Lsn(self.shared.durable.load(Ordering::Acquire)) {
            let began = Instant::now();
            unsynced.file.sync_data().map_err(Error::disk("sync", unsynced.path))?;
            (self.shared.config.on_fsync)(began.elapsed());
            self.shared.mark_durable(unsynced.last)?;
            self.shared.publish(unsynced.last);
        }
        if unsynced.full { self.shared.rotate() } else { Ok(()) }
    }

    /// Makes durable what the mark says of the log.
    ///
    /// # Errors
    /// As [`Committer::step`].
    pub fn sync_mark(&mut self) -> Result<(), Error> {
        self.shared.sync_mark()
    }

    /// Ends a log that has no thread: a last round, then the allocated room is cut off.
    ///
    /// # Errors
    /// As [`Committer::step`].
    pub fn finish(mut self) -> Result<(), Error> {
        self.step()?;
        self.shared.end().inspect_err(|e| self.shared.fail(e))
    }

    pub(super) fn spawn(mut self) -> io::Result<JoinHandle<()>> {
        let run = move || {
            let mut marked = Instant::now();
            loop {
                let last = self.shared.wait(FSYNC_INTERVAL);
                // Whoever waits has been told of the error; there is nothing left to do here.
                if self.step().is_err() {
                    return;
                }
                if last {
                    let _ = self.finish();
                    return;
                }
                if marked.elapsed() >= mark::SYNC_INTERVAL {
                    if self.sync_mark().is_err() {
                        return;
                    }
                    marked = Instant::now();
                }
            }
        };
        thread::Builder::new().name("wal".to_owned()).spawn(run)
    }
}
