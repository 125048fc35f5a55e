//! The redb file: the Raft log, the vote, and the latest snapshot, each write on the disk before
//! it is answered.
//!
//! One thread writes. While it syncs, the next writes gather and go into one transaction
//! together. Every value carries a checksum of its own, and redb checks its pages whenever the
//! file is opened. After a failed write nothing is written any more, and nothing is retried.

use std::fmt;
use std::fs;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{oneshot, watch};

use super::{Damage, Error};
use crate::topology::NodeId;

/// The format of the file. A higher one is refused.
pub(super) const FORMAT_VERSION: u32 = 1;

/// What redb may hold in memory, in bytes: the log's tail is read soon after it was written.
const CACHE_BYTES: usize = 8 << 20;

/// Nobody waits for the mark of what is committed; it is written with the next write, or after
/// this long.
pub(super) const COMMITTED_WITHIN: Duration = Duration::from_millis(50);

const LOG_NAME: &str = "log";
const LOG: TableDefinition<'static, u64, &[u8]> = TableDefinition::new(LOG_NAME);
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

/// What is kept beside the log, each under its own key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// [`FORMAT_VERSION`] of whoever made the file.
    Format,
    /// Whose file it is.
    Node,
    /// The last vote.
    Vote,
    /// A log id up to which entries are known to be committed; may be behind.
    Committed,
    /// The log id up to which entries were purged.
    Purged,
    /// The snapshot's description.
    SnapshotMeta,
    /// The snapshot.
    Snapshot,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Node => "node",
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Purged => "purged",
            Self::SnapshotMeta => "snapshot_meta",
            Self::Snapshot => "snapshot",
        }
    }
}

/// One step of writing. Bodies are encoded, without their checksums.
#[derive(Debug)]
pub(super) enum Write {
    /// Entries, by their index.
    Append(Vec<(u64, Vec<u8>)>),
    /// Entries from this index on are void.
    Truncate(u64),
    /// Entries up to this index are not needed any more; the log id of the last.
    Purge(u64, Vec<u8>),
    /// Values that belong together.
    Put(Vec<(Key, Vec<u8>)>),
}

struct Job {
    write: Write,
    done: oneshot::Sender<Result<(), Error>>,
}

#[derive(Default)]
struct Queue {
    /// Each has somebody who waits for it, so there are as many at most as callers.
    jobs: Vec<Job>,
    /// The mark of what is committed, and whether it is still to be written.
    committed: Option<Vec<u8>>,
    unwritten: bool,
    closing: bool,
}

/// The file, open.
pub(super) struct Store {
    path: PathBuf,
    /// `None` when closed.
    database: RwLock<Option<Database>>,
    queue: Mutex<Queue>,
    wake: Condvar,
    failure: watch::Sender<Option<Error>>,
    /// Bytes of entries that were appended since the last snapshot.
    log_bytes: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the file, making it if it is missing and may be new, and starts the thread that
    /// writes. Blocks.
    ///
    /// # Errors
    /// Whatever speaks against going on with this file; see [`Error`].
    pub(super) fn open(path: &Path, me: NodeId, may_be_new: bool) -> Result<Arc<Self>, Error> {
        match path.try_exists().map_err(|e| Error::io("find", path, e))? {
            true => {}
            false if may_be_new => make(path, me)?,
            false => return Err(Error::damaged(path, Damage::Missing)),
        }
        // A damaged page makes redb panic at times, where an error was meant.
        let opened = panic::catch_unwind(AssertUnwindSafe(|| open(path, me)));
        let (database, log_bytes) =
            opened.unwrap_or_else(|_| Err(Error::damaged(path, Damage::Panicked)))?;
        let store = Arc::new(Self {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            queue: Mutex::new(Queue::default()),
            wake: Condvar::new(),
            failure: watch::Sender::new(None),
            log_bytes: AtomicU64::new(log_bytes),
            thread: Mutex::new(None),
        });
        let run = {
            let store = Arc::clone(&store);
            move || store.run()
        };
        let thread = thread::Builder::new().name("topology".to_owned()).spawn(run);
        *store.thread.lock() = Some(thread.map_err(|e| Error::io("start a thread for", path, e))?);
        Ok(store)
    }

    /// Is told once, when the file fails.
    pub(super) fn failure(&self) -> watch::Receiver<Option<Error>> {
        self.failure.subscribe()
    }

    /// What the file failed with, if it did.
    pub(super) fn cause(&self) -> Option<Error> {
        self.failure.borrow().clone()
    }

    /// Tells of a failure that was found outside; the first one stays.
    pub(super) fn fail(&self, error: &Error) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| error.clone());
            first
        });
    }

    /// Bytes of entries that were appended since the last snapshot.
    pub(super) fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// Writes, and answers when it is on the disk.
    ///
    /// # Errors
    /// What the file failed with, now or before.
    pub(super) async fn write(&self, write: Write) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.closing {
                return Err(Error::Stopped);
            }
            queue.jobs.push(Job { write, done });
        }
        self.wake.notify_one();
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// Notes what is committed, without waiting: a mark that is behind costs a restarted node no
    /// more than hearing of it again.
    pub(super) fn note_committed(&self, committed: Vec<u8>) {
        let mut queue = self.queue.lock();
        queue.committed = Some(committed);
        queue.unwritten = true;
        drop(queue);
        self.wake.notify_one();
    }

    /// What was noted last. Blocks, as [`Store::get`].
    ///
    /// # Errors
    /// As [`Store::get`].
    pub(super) fn committed<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let noted = self.queue.lock().committed.clone();
        match noted {
            Some(noted) => decode(&self.path, Key::Committed.name(), &noted).map(Some),
            None => self.get(Key::Committed),
        }
    }

    /// A value, decoded. Blocks, shortly: what is read here is small or read once.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(super) fn get<T: DeserializeOwned>(&self, key: Key) -> Result<Option<T>, Error> {
        self.with(|database| get(database, &self.path, key))
    }

    /// A value as it was put. Blocks, as [`Store::get`].
    ///
    /// # Errors
    /// As [`Store::get`].
    pub(super) fn bytes(&self, key: Key) -> Result<Option<Vec<u8>>, Error> {
        self.with(|database| bytes(database, &self.path, key))
    }

    /// Entries in order, as many of the range as come to `bytes_max` and at least one if there is
    /// any. Blocks.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub(super) fn entries<T: DeserializeOwned>(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<T>, Error> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_empty(bounds) {
            return Ok(Vec::new());
        }
        let read = |database: &Database| -> Result<Vec<Vec<u8>>, redb::Error> {
            let (mut entries, mut sum) = (Vec::new(), 0);
            let table = database.begin_read()?.open_table(LOG)?;
            for item in table.range::<u64>(bounds)? {
                let (_, sealed) = item?;
                sum += sealed.value().len();
                if sum > bytes_max && !entries.is_empty() {
                    break;
                }
                entries.push(sealed.value().to_vec());
            }
            Ok(entries)
        };
        let sealed = self.with(|database| read(database).map_err(|e| self.unreadable(e)))?;
        let open = |sealed: &Vec<u8>| {
            let body = unseal(&self.path, LOG_NAME, sealed)?;
            decode(&self.path, LOG_NAME, body)
        };
        sealed.iter().map(open).collect()
    }

    /// The index of the log's last entry. Blocks.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub(super) fn last_index(&self) -> Result<Option<u64>, Error> {
        let read = |database: &Database| -> Result<Option<u64>, redb::Error> {
            let table = database.begin_read()?.open_table(LOG)?;
            let last = table.last()?;
            Ok(last.map(|(index, _)| index.value()))
        };
        self.with(|database| read(database).map_err(|e| self.unreadable(e)))
    }

    /// Writes what is left, closes the file and ends the thread. Blocks.
    pub(super) fn close(&self) {
        self.queue.lock().closing = true;
        self.wake.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            self.fail(&Error::damaged(&self.path, Damage::Panicked));
        }
    }

    /// From now on every read and write fails.
    #[cfg(test)]
    pub(super) fn lose_file(&self) -> Option<Database> {
        self.database.write().take()
    }

    fn unreadable(&self, e: redb::Error) -> Error {
        Error::disk("read", &self.path, e)
    }

    fn with<T>(&self, read: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        match self.database.read().as_ref() {
            Some(database) => read(database),
            None => Err(Error::Stopped),
        }
    }

    /// The thread: batch after batch, until the store is closed.
    fn run(&self) {
        loop {
            let (jobs, committed, closing) = self.next_batch();
            if !jobs.is_empty() || committed.is_some() {
                self.step(jobs, committed);
            }
            if closing {
                break;
            }
        }
        if let Some(database) = self.database.write().take()
            && let Err(e) = database.close()
        {
            self.fail(&Error::disk("close", &self.path, e.into()));
        }
    }

    /// Waits for the next writes. With the last of them comes `true`.
    fn next_batch(&self) -> (Vec<Job>, Option<Vec<u8>>, bool) {
        let mut queue = self.queue.lock();
        while queue.jobs.is_empty() && !queue.closing {
            if !queue.unwritten {
                self.wake.wait(&mut queue);
            } else if self.wake.wait_for(&mut queue, COMMITTED_WITHIN).timed_out() {
                break;
            }
        }
        let unwritten = std::mem::take(&mut queue.unwritten);
        let committed = queue.committed.clone().filter(|_| unwritten);
        (std::mem::take(&mut queue.jobs), committed, queue.closing)
    }

    fn step(&self, jobs: Vec<Job>, committed: Option<Vec<u8>>) {
        let result = match self.cause() {
            Some(error) => Err(error),
            None => self.with(|database| {
                let written =
                    panic::catch_unwind(AssertUnwindSafe(|| commit(database, &jobs, committed)));
                match written {
                    Ok(result) => result.map_err(|e| Error::disk("write", &self.path, e)),
                    Err(_) => Err(Error::damaged(&self.path, Damage::Panicked)),
                }
            }),
        };
        match &result {
            Ok(()) => jobs.iter().for_each(|job| self.count(&job.write)),
            Err(error) => self.fail(error),
        }
        for job in jobs {
            // Whoever asked may have gone; the write took place all the same.
            let _ = job.done.send(result.clone());
        }
    }

    fn count(&self, write: &Write) {
        match write {
            Write::Append(entries) => {
                let bytes: usize = entries.iter().map(|(_, body)| body.len()).sum();
                self.log_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Write::Put(values) if values.iter().any(|(key, _)| *key == Key::Snapshot) => {
                self.log_bytes.store(0, Ordering::Relaxed);
            }
            Write::Put(_) | Write::Truncate(_) | Write::Purge(..) => {}
        }
    }
}

/// Makes the file under another name first, so that a crash leaves the whole of it or nothing.
fn make(path: &Path, me: NodeId) -> Result<(), Error> {
    let aside = path.with_extension("tmp");
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &aside, e));
        }
        _ => {}
    }
    let fill = || -> Result<(), redb::Error> {
        let database = Database::create(&aside)?;
        let transaction = database.begin_write()?;
        transaction.open_table(LOG)?;
        put(&transaction, Key::Format, &encode(&FORMAT_VERSION))?;
        put(&transaction, Key::Node, &encode(&me))?;
        transaction.commit()?;
        Ok(database.close()?)
    };
    let made = fill().map_err(|e| Error::disk("make", path, e));
    let made = made.and_then(|()| fs::rename(&aside, path).map_err(|e| Error::io("make", path, e)));
    made.inspect_err(|_| {
        // The first error tells more; the next start removes what cannot be removed now.
        let _ = fs::remove_file(&aside);
    })?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|e| Error::io("sync", dir, e))
}

/// Opens a file that exists and checks whose it is; also answers how many bytes of entries it has.
fn open(path: &Path, me: NodeId) -> Result<(Database, u64), Error> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    let database = builder.open(path).map_err(|e| match e {
        redb::DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
        redb::DatabaseError::Storage(redb::StorageError::Io(e))
            if e.kind() != io::ErrorKind::InvalidData
                && e.kind() != io::ErrorKind::UnexpectedEof =>
        {
            Error::io("open", path, e)
        }
        e => Error::damaged(path, Damage::Redb(Arc::new(e.into()))),
    })?;
    let missing = || Error::damaged(path, Damage::Foreign);
    let found: u32 = get(&database, path, Key::Format)?.ok_or_else(missing)?;
    if found > FORMAT_VERSION {
        return Err(Error::NewerFormat { path: path.to_owned(), found });
    }
    let found: NodeId = get(&database, path, Key::Node)?.ok_or_else(missing)?;
    if found != me {
        return Err(Error::OtherNode { path: path.to_owned(), found, expected: me });
    }
    let read = || -> Result<u64, redb::Error> {
        let table = database.begin_read()?.open_table(LOG)?;
        table.iter()?.try_fold(0, |sum, item| Ok(sum + item?.1.value().len() as u64))
    };
    let log_bytes = read().map_err(|e| Error::damaged(path, Damage::Redb(Arc::new(e))))?;
    Ok((database, log_bytes))
}

/// One transaction: all of it or nothing, and on the disk when this returns.
fn commit(
    database: &Database,
    jobs: &[Job],
    committed: Option<Vec<u8>>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(redb::Durability::Immediate)?;
    for job in jobs {
        apply(&transaction, &job.write)?;
    }
    if let Some(committed) = committed {
        put(&transaction, Key::Committed, &committed)?;
    }
    transaction.commit()?;
    Ok(())
}

fn apply(transaction: &WriteTransaction, write: &Write) -> Result<(), redb::Error> {
    match write {
        Write::Append(entries) => {
            let mut log = transaction.open_table(LOG)?;
            for (index, body) in entries {
                log.insert(index, seal(body).as_slice())?;
            }
        }
        Write::Truncate(from) => {
            transaction.open_table(LOG)?.retain_in(*from.., |_, _| false)?;
        }
        Write::Purge(upto, log_id) => {
            transaction.open_table(LOG)?.retain_in(..=*upto, |_, _| false)?;
            put(transaction, Key::Purged, log_id)?;
        }
        Write::Put(values) => {
            for (key, body) in values {
                put(transaction, *key, body)?;
            }
        }
    }
    Ok(())
}

fn put(transaction: &WriteTransaction, key: Key, body: &[u8]) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(key.name(), seal(body).as_slice())?;
    Ok(())
}

fn bytes(database: &Database, path: &Path, key: Key) -> Result<Option<Vec<u8>>, Error> {
    let read = || -> Result<Option<Vec<u8>>, redb::Error> {
        let table = match database.begin_read()?.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        Ok(table.get(key.name())?.map(|value| value.value().to_vec()))
    };
    let value = read().map_err(|e| Error::disk("read", path, e))?;
    value.map(|value| unseal(path, key.name(), &value).map(<[u8]>::to_vec)).transpose()
}

fn get<T: DeserializeOwned>(
    database: &Database,
    path: &Path,
    key: Key,
) -> Result<Option<T>, Error> {
    let value = bytes(database, path, key)?;
    value.map(|value| decode(path, key.name(), &value)).transpose()
}

/// Encodes a value of ours.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("these types have lengths, and memory takes all of them")
}

fn decode<T: DeserializeOwned>(path: &Path, what: &'static str, body: &[u8]) -> Result<T, Error> {
    postcard::from_bytes(body)
        .map_err(|source| Error::damaged(path, Damage::Unreadable { what, source }))
}

/// A value as it is in the file: CRC32C, little-endian, then the body.
fn seal(body: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(4 + body.len());
    sealed.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    sealed.extend_from_slice(body);
    sealed
}

fn unseal<'a>(path: &Path, what: &'static str, sealed: &'a [u8]) -> Result<&'a [u8], Error> {
    let sound = sealed
        .split_first_chunk::<4>()
        .filter(|(sum, body)| u32::from_le_bytes(**sum) == crc32c::crc32c(body));
    sound.map(|(_, body)| body).ok_or_else(|| Error::damaged(path, Damage::Checksum { what }))
}

/// Whether nothing can lie between the bounds; `BTreeMap` and redb panic on some of these.
fn is_empty(bounds: (Bound<u64>, Bound<u64>)) -> bool {
    let start = match bounds.0 {
        Bound::Included(start) => start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match bounds.1 {
        Bound::Included(end) => end < start,
        Bound::Excluded(end) => end <= start,
        Bound::Unbounded => false,
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
