//! Writing a snapshot, shard by shard, in the background.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{BLOCK_HEADER_BYTES, Kind, Line, MAGIC, put_entry, put_index, put_kept, seal};
use super::{Entry, Error, Kept, ShardState, path_in, snapshots};
use crate::disk::{Disk, File, remove_if_there};
use crate::wal::{FORMAT_VERSION, Header, Lsn};

/// A block is written when it has this many bytes.
const BLOCK_BYTES: usize = 128 << 10;

/// What is written is synced each time it has grown by so much, so that the log's own syncs need
/// not wait behind a whole snapshot.
const SYNC_BYTES: u64 = 8 << 20;

/// So much room is left on the disk, in bytes: to the log, which must go on whatever becomes of a
/// snapshot.
const ROOM_LEFT_BYTES: u64 = SYNC_BYTES;

/// A snapshot being written. Dropped before [`Writer::finish`], it leaves nothing behind. All calls
/// block.
#[derive(Debug)]
pub struct Writer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    path: PathBuf,
    file: Arc<dyn File>,
    offset: u64,
    synced: u64,
    lines: Vec<Line>,
    block: Vec<u8>,
    kind: Kind,
    count: u32,
    is_finished: bool,
}

/// Sees whether `dir` has room for `bytes`, and for what is left to the log.
///
/// # Errors
/// [`Error::NoRoom`].
pub fn check_room(disk: &dyn Disk, dir: &Path, bytes: u64) -> Result<(), Error> {
    // A disk that does not say how much room it has is no reason to do without.
    let free = disk.room(dir).unwrap_or(u64::MAX);
    let needed = bytes.saturating_add(ROOM_LEFT_BYTES);
    if free < needed { Err(Error::NoRoom { dir: dir.to_owned(), free, needed }) } else { Ok(()) }
}

/// A snapshot that is complete and durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// How many entries it holds.
    pub entries: u64,
    /// Frames of the log below this are not needed any more.
    pub needs_from: Lsn,
}

impl Writer {
    /// Begins a snapshot in `dir`; `next` is the log's [`crate::wal::Writer::next_lsn`].
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        cluster_id: u128,
        next: Lsn,
    ) -> Result<Self, Error> {
        Self::begin(disk, dir, "snapshot.tmp", cluster_id, next)
    }

    /// Begins the file of a single shard's copy, which is no snapshot of the node: it is written
    /// under a temporary name until [`Writer::finish_copy`].
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses.
    pub fn create_copy(disk: Arc<dyn Disk>, path: &Path, cluster_id: u128) -> Result<Self, Error> {
        let dir = path.parent().unwrap_or(Path::new(""));
        let name = format!("{}.tmp", path.file_name().unwrap_or_default().to_string_lossy());
        Self::begin(disk, dir, &name, cluster_id, Lsn(1))
    }

    /// Completes a shard's copy and gives it its name; durable on return.
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses.
    pub fn finish_copy(mut self, path: &Path) -> Result<(), Error> {
        self.end_shard()?;
        let index = put_index(&self.lines, self.offset, Lsn(0));
        self.write(&index)?;
        self.file.sync_data().map_err(Error::disk("sync", &self.path))?;
        self.disk.rename(&self.path, path).map_err(Error::disk("rename", &self.path))?;
        self.is_finished = true;
        self.sync_dir()
    }

    fn begin(
        disk: Arc<dyn Disk>,
        dir: &Path,
        name: &str,
        cluster_id: u128,
        next: Lsn,
    ) -> Result<Self, Error> {
        check_room(&*disk, dir, 0)?;
        let path = dir.join(name);
        remove_if_there(&*disk, &path).map_err(Error::disk("remove", &path))?;
        let file = disk.create(&path).map_err(Error::disk("create", &path))?;
        let mut writer = Self {
            disk,
            dir: dir.to_owned(),
            path,
            file,
            offset: 0,
            synced: 0,
            lines: Vec::new(),
            block: vec![0; BLOCK_HEADER_BYTES],
            kind: Kind::Entries,
            count: 0,
            is_finished: false,
        };
        let header = Header { version: FORMAT_VERSION, cluster_id, lsn: next }.encode(MAGIC);
        writer.write(&header)?;
        Ok(writer)
    }

    /// Begins the next shard; what follows is its own.
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses.
    ///
    /// # Panics
    /// When the shard was begun before.
    pub fn begin_shard(&mut self, state: ShardState) -> Result<(), Error> {
        self.end_shard()?;
        let known = self.lines.iter().any(|line| line.state.shard == state.shard);
        assert!(!known, "shard {} is in the snapshot already", state.shard.0);
        self.lines.push(Line { state, offset: self.offset, bytes: 0, entries: 0 });
        Ok(())
    }

    /// Adds a request id to the shard.
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses.
    pub fn request(&mut self, kept: &Kept) -> Result<(), Error> {
        self.begin_item(Kind::Requests)?;
        put_kept(&mut self.block, kept);
        self.end_item()
    }

    /// Adds an entry to the shard, once for each key: where a log's replay begins to matter, the
    /// last one stands.
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses.
    pub fn entry(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        self.begin_item(Kind::Entries)?;
        put_entry(&mut self.block, entry);
        let line = self.lines.last_mut().expect("a shard is begun before its entries");
        line.entries += 1;
        self.end_item()
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.offset
    }

    /// Completes the snapshot. Before this the caller has made the log durable up to `durable`
    /// ([`crate::wal::Writer::sync_blocking`], called after the last entry was read). Then the
    /// older snapshots go; those in `damaged` are set aside (`….corrupt`).
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk refuses; the older snapshots are then still there.
    pub fn finish(mut self, durable: Lsn, damaged: &[PathBuf]) -> Result<Finished, Error> {
        self.end_shard()?;
        let index = put_index(&self.lines, self.offset, durable);
        self.write(&index)?;
        self.file.sync_data().map_err(Error::disk("sync", &self.path))?;
        let path = path_in(&self.dir, durable);
        if damaged.contains(&path) {
            self.set_aside(&path)?;
        }
        self.disk.rename(&self.path, &path).map_err(Error::disk("rename", &self.path))?;
        self.is_finished = true;
        self.sync_dir()?;
        for (_, older) in snapshots(&*self.disk, &self.dir)? {
            if damaged.contains(&older) && older != path {
                self.set_aside(&older)?;
            } else if older != path {
                self.disk.remove(&older).map_err(Error::disk("remove", &older))?;
            }
        }
        self.sync_dir()?;
        Ok(Finished {
            path,
            bytes: self.offset,
            entries: self.lines.iter().map(|line| line.entries).sum(),
            needs_from: self.lines.iter().map(|line| line.state.start).min().unwrap_or(Lsn(1)),
        })
    }

    fn set_aside(&self, path: &Path) -> Result<(), Error> {
        let mut aside = path.to_owned().into_os_string();
        aside.push(".corrupt");
        self.disk.rename(path, aside.as_ref()).map_err(Error::disk("rename", path))
    }

    fn sync_dir(&self) -> Result<(), Error> {
        self.disk.sync_dir(&self.dir).map_err(Error::disk("sync", &self.dir))
    }

    fn begin_item(&mut self, kind: Kind) -> Result<(), Error> {
        assert!(!self.lines.is_empty(), "a shard is begun before what is its own");
        if self.kind != kind {
            self.end_block()?;
            self.kind = kind;
        }
        Ok(())
    }

    fn end_item(&mut self) -> Result<(), Error> {
        self.count += 1;
        if self.block.len() >= BLOCK_BYTES { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> Result<(), Error> {
        let Some(line) = self.lines.last().filter(|_| self.count > 0) else { return Ok(()) };
        let mut block = std::mem::take(&mut self.block);
        seal(&mut block, self.kind, line.state.shard, self.count);
        self.write(&block)?;
        block.truncate(BLOCK_HEADER_BYTES);
        block.shrink_to(2 * BLOCK_BYTES);
        self.block = block;
        self.count = 0;
        Ok(())
    }

    fn end_shard(&mut self) -> Result<(), Error> {
        self.end_block()?;
        if let Some(line) = self.lines.last_mut() {
            line.bytes = self.offset - line.offset;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all_at(bytes, self.offset);
        written.map_err(Error::disk("write", &self.path))?;
        self.offset += bytes.len() as u64;
        if self.offset - self.synced >= SYNC_BYTES {
            self.file.sync_data().map_err(Error::disk("sync", &self.path))?;
            self.synced = self.offset;
            check_room(&*self.disk, &self.dir, 0)?;
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_finished {
            // What cannot be removed now, the next start removes.
            let _ = self.disk.remove(&self.path);
        }
    }
}
