//! A disk in memory that fails the way disks do, on demand and repeatably.
//!
//! Invariant: the same seed and the same calls end in the same bytes. Only what was synced is
//! certain to be there after [`Faulty::crash`]; of the rest any part may be, in any order, and
//! within a directory the names change in the order in which they were changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, File};

/// What a crash keeps or loses at a time, in bytes.
const SECTOR_BYTES: usize = 512;

/// A file system in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct Faulty {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: u64,
    /// Rises when handles die: at a crash, or when the process is killed.
    life: u64,
    /// Rises when the machine crashes.
    boots: u64,
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    names_durable: BTreeMap<PathBuf, usize>,
    names_pending: Vec<NameChange>,
    inodes: Vec<Inode>,
    locked: BTreeSet<usize>,
    faults: Faults,
}

#[derive(Debug, Default)]
struct Faults {
    bytes_left: Option<u64>,
    short_writes: bool,
    writes_until_failure: Option<u64>,
    syncs_until_failure: Option<u64>,
    steps_until_power_cut: Option<u64>,
}

#[derive(Debug, Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Debug)]
enum NameChange {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

impl Faulty {
    /// An empty disk whose misfortunes follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: seed,
            life: 0,
            boots: 0,
            dirs: BTreeSet::new(),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            names_pending: Vec::new(),
            inodes: Vec::new(),
            locked: BTreeSet::new(),
            faults: Faults::default(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// From now on only so many more bytes can be written; then the disk is full.
    pub fn fill_after(&self, bytes: u64) {
        self.state.lock().faults.bytes_left = Some(bytes);
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

impl State {
    /// splitmix64: a well-mixed sequence from any seed.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.random() % bound.max(1) as u64) as usize
    }

    /// Counts a change down to the power cut.
    fn step(&mut self) -> io::Result<()> {
        match &mut self.faults.steps_until_power_cut {
            Some(0) => Err(io::Error::other("the power is cut")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn alive(&self) -> io::Result<()> {
        match self.faults.steps_until_power_cut {
            Some(0) => Err(io::Error::other("the power is cut")),
            _ => Ok(()),
        }
    }

    fn add_dirs(&mut self, dir: &Path) {
        self.dirs.extend(dir.ancestors().map(Path::to_owned));
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn link(&mut self, path: &Path) -> io::Result<usize> {
        match path.parent() {
            Some(dir) if dir.as_os_str().is_empty() || self.dirs.contains(dir) => {}
            _ => return Err(io::ErrorKind::NotFound.into()),
        }
        let inode = self.inodes.len();
        self.inodes.push(Inode::default());
        self.names.insert(path.to_owned(), inode);
        self.names_pending.push(NameChange::Link(path.to_owned(), inode));
        Ok(inode)
    }

    fn write(&mut self, inode: usize, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.step()?;
        match &mut self.faults.writes_until_failure {
            Some(0) => return Err(io::Error::from_raw_os_error(nix::libc::EIO)),
            Some(left) => *left -= 1,
            None => {}
        }
        let mut n = bytes.len();
        if self.faults.short_writes && n > 1 {
            n = 1 + self.below(n);
        }
        if let Some(left) = &mut self.faults.bytes_left {
            n = n.min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= n as u64;
            if n == 0 && !bytes.is_empty() {
                return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
            }
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let change = Change::Write { offset, bytes: bytes[..n].to_vec() };
        let inode = &mut self.inodes[inode];
        change.apply(&mut inode.data);
        inode.pending.push(change);
        Ok(n)
    }

    fn sync(&mut self, inode: usize) -> io::Result<()> {
        self.step()?;
        let failed = match &mut self.faults.syncs_until_failure {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        let inode = &mut self.inodes[inode];
        let pending = std::mem::take(&mut inode.pending);
        if failed {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        for change in pending {
            change.apply(&mut inode.durable);
        }
        Ok(())
    }

    fn crash_names(&mut self) {
        let mut names = std::mem::take(&mut self.names_durable);
        let pending = std::mem::take(&mut self.names_pending);
        let kept = self.below(pending.len() + 1);
        for change in pending.into_iter().take(kept) {
            change.apply(&mut names);
        }
        self.names = names.clone();
        self.names_durable = names;
    }

    fn crash_inodes(&mut self) {
        for index in 0..self.inodes.len() {
            let pending = std::mem::take(&mut self.inodes[index].pending);
            let mut data = std::mem::take(&mut self.inodes[index].durable);
            match self.below(4) {
                0 => {}
                1 => self.keep_prefix(pending, &mut data),
                2 => pending.iter().for_each(|change| change.apply(&mut data)),
                _ => self.keep_sectors(&pending, &mut data),
            }
            self.inodes[index].data = data.clone();
            self.inodes[index].durable = data;
        }
    }

    /// Keeps the first changes whole and one torn at any byte.
    fn keep_prefix(&mut self, pending: Vec<Change>, data: &mut Vec<u8>) {
        let whole = self.below(pending.len() + 1);
        for (i, change) in pending.into_iter().enumerate() {
            match change {
                change if i < whole => change.apply(data),
                Change::Write { offset, bytes } if i == whole => {
                    let kept = self.below(bytes.len() + 1);
                    Change::Write { offset, bytes: bytes[..kept].to_vec() }.apply(data);
                }
                _ => {}
            }
        }
    }

    /// Keeps each sector of each write, or not.
    fn keep_sectors(&mut self, pending: &[Change], data: &mut Vec<u8>) {
        for change in pending {
            let Change::Write { offset, bytes } = change else {
                change.apply(data);
                continue;
            };
            let mut from = 0;
            while from < bytes.len() {
                let to = (SECTOR_BYTES - (offset + from) % SECTOR_BYTES + from).min(bytes.len());
                if self.random() % 2 == 0 {
                    let part = bytes[from..to].to_vec();
                    Change::Write { offset: offset + from, bytes: part }.apply(data);
                }
                from = to;
            }
        }
    }
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[*offset..end].copy_from_slice(bytes);
            }
            Self::Length(length) => data.resize(*length, 0),
        }
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, inode) => {
                names.insert(path, inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(&from) {
                    names.insert(to, inode);
                }
            }
            Self::Unlink(path) => {
                names.remove(&path);
            }
        }
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
