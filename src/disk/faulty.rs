//! A disk in memory that fails the way disks do, on demand and repeatably.
//!
//! Invariant: the same seed and the same calls end in the same bytes. Only what was synced is
//! certain to be there after [`Faulty::crash`]; of the rest any part may be, in any order.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, File};

mod state;

use state::{Change, Faults, Inode, NameChange, State};

/// A file system in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct Faulty {
    state: Arc<Mutex<State>>,
}

impl Faulty {
    /// An empty disk whose misfortunes follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State { random: seed, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// From now on only so many more bytes can be written; then the disk is full.
    pub fn fill_after(&self, bytes: u64) {
        self.state.lock().faults.bytes_left = Some(bytes);
    }

    /// From now on it says that it has room for so many bytes, whether it is so or not.
    pub fn tell_room(&self, bytes: u64) {
        self.state.lock().faults.room = Some(bytes);
    }

    /// From now on writes may take fewer bytes than they are given.
    pub fn shorten_writes(&self) {
        self.state.lock().faults.short_writes = true;
    }

    /// The write after the next `writes` fails, and all that follow.
    pub fn fail_write_after(&self, writes: u64) {
        self.state.lock().faults.writes_until_failure = Some(writes);
    }

    /// The sync after the next `syncs` fails, and all that follow. What it should have made
    /// durable never becomes so, though it can still be read: that is how kernels do it.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.state.lock().faults.syncs_until_failure = Some(syncs);
    }

    /// After the next `steps` changes the power is gone: every later operation fails until
    /// [`Faulty::crash`].
    pub fn cut_power_after(&self, steps: u64) {
        self.state.lock().faults.steps_until_power_cut = Some(steps);
    }

    /// The process dies: its handles and locks are gone, what it wrote is not. Ends all faults.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.life += 1;
        state.locked.clear();
        state.faults = Faults::default();
    }

    /// The machine dies and comes back under another boot id: what was not synced is there in part
    /// or not at all, as the seed decides. Ends all faults.
    pub fn crash(&self) {
        self.kill();
        let mut state = self.state.lock();
        state.boots += 1;
        state.crash_names();
        state.crash_inodes();
    }

    /// Flips the bits of `mask` in one byte of a file, as failing media do.
    ///
    /// # Panics
    /// When there is no such file or byte.
    pub fn flip(&self, path: &Path, offset: usize, mask: u8) {
        let mut state = self.state.lock();
        let inode = state.names[path];
        let inode = &mut state.inodes[inode];
        inode.data[offset] ^= mask;
        if let Some(byte) = inode.durable.get_mut(offset) {
            *byte ^= mask;
        }
    }

    /// Puts a file in place, durably, whatever was there.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state.lock();
        let inode = state.inodes.len();
        state.inodes.push(Inode {
            data: bytes.to_vec(),
            durable: bytes.to_vec(),
            pending: Vec::new(),
        });
        state.names.insert(path.to_owned(), inode);
        state.names_durable.insert(path.to_owned(), inode);
        if let Some(dir) = path.parent() {
            state.add_dirs(dir);
        }
    }

    /// A file's content as a reader sees it now, if there is such a file.
    pub fn get(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        state.names.get(path).map(|inode| state.inodes[*inode].data.clone())
    }

    fn handle(&self, inode: usize, holds_lock: bool) -> Arc<dyn File> {
        let life = self.state.lock().life;
        Arc::new(Handle { state: Arc::clone(&self.state), inode, life, holds_lock })
    }
}

impl Disk for Faulty {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.add_dirs(dir);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let inside = |path: &Path| path.parent() == Some(dir);
        let (now, later) = std::mem::take(&mut state.names_pending).into_iter().partition(
            |change: &NameChange| match change {
                NameChange::Link(path, _) | NameChange::Unlink(path) => inside(path),
                NameChange::Rename(from, to) => inside(from) || inside(to),
            },
        );
        state.names_pending = later;
        let now: Vec<NameChange> = now;
        for change in now {
            change.apply(&mut state.names_durable);
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        state.alive()?;
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.names.keys().chain(&state.dirs).filter(|p| p.parent() == Some(dir));
        let names: BTreeSet<String> =
            inside.filter_map(|p| p.file_name()?.to_str().map(str::to_owned)).collect();
        Ok(names.into_iter().collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        state.step()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.link(path)?;
        drop(state);
        Ok(self.handle(inode, false))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let state = self.state.lock();
        state.alive()?;
        let inode = state.find(path)?;
        drop(state);
        Ok(self.handle(inode, false))
    }

    fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Arc<dyn File>>> {
        let mut state = self.state.lock();
        state.step()?;
        let inode = match state.find(path) {
            Ok(inode) => inode,
            Err(_) => state.link(path)?,
        };
        let free = state.locked.insert(inode);
        drop(state);
        Ok(free.then(|| self.handle(inode, true)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.find(from)?;
        NameChange::Rename(from.to_owned(), to.to_owned()).apply(&mut state.names);
        state.names_pending.push(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.find(path)?;
        state.names.remove(path);
        state.names_pending.push(NameChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn room(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.state.lock().faults.room.unwrap_or(u64::MAX))
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(format!("boot-{}", self.state.lock().boots))
    }
}

#[derive(Debug)]
struct Handle {
    state: Arc<Mutex<State>>,
    inode: usize,
    life: u64,
    holds_lock: bool,
}

impl Handle {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        state.alive()?;
        if state.life != self.life {
            return Err(io::Error::other("the handle is of an earlier life"));
        }
        f(&mut state)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if self.holds_lock && state.life == self.life {
            state.locked.remove(&self.inode);
        }
    }
}

impl File for Handle {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.with(|state| state.write(self.inode, bytes, offset))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            let data = &state.inodes[self.inode].data;
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
            let n = bytes.len().min(data.len() - from);
            bytes[..n].copy_from_slice(&data[from..from + n]);
            Ok(n)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state| state.sync(self.inode))
    }

    fn length(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.inodes[self.inode].data.len() as u64))
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.with(|state| {
            let length = usize::try_from(length).map_err(io::Error::other)?;
            state.step()?;
            let inode = &mut state.inodes[self.inode];
            inode.data.resize(length, 0);
            inode.pending.push(Change::Length(length));
            state.sync(self.inode)
        })
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.with(|state| {
            state.step()?;
            let length = usize::try_from(length).map_err(io::Error::other)?;
            let inode = &mut state.inodes[self.inode];
            if inode.data.len() < length {
                inode.data.resize(length, 0);
                inode.pending.push(Change::Length(length));
            }
            Ok(())
        })
    }
}
