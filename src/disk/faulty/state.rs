//! What the disk in memory holds: files and names as they are seen, and as they would be found.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// What a crash keeps or loses at a time, in bytes.
const SECTOR_BYTES: usize = 512;

/// The whole disk.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) random: u64,
    /// Rises when handles die: at a crash, or when the process is killed.
    pub(super) life: u64,
    /// Rises when the machine crashes.
    pub(super) boots: u64,
    pub(super) dirs: BTreeSet<PathBuf>,
    pub(super) names: BTreeMap<PathBuf, usize>,
    pub(super) names_durable: BTreeMap<PathBuf, usize>,
    pub(super) names_pending: Vec<NameChange>,
    pub(super) inodes: Vec<Inode>,
    pub(super) locked: BTreeSet<usize>,
    pub(super) faults: Faults,
}

/// What is to go wrong.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) bytes_left: Option<u64>,
    pub(super) room: Option<u64>,
    pub(super) short_writes: bool,
    pub(super) writes_until_failure: Option<u64>,
    pub(super) syncs_until_failure: Option<u64>,
    pub(super) steps_until_power_cut: Option<u64>,
}

/// A file: as it is read, as a crash would leave it at least, and what lies between.
#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) data: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) pending: Vec<Change>,
}

#[derive(Debug)]
pub(super) enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Debug)]
pub(super) enum NameChange {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

impl State {
    /// splitmix64: a well-mixed sequence from any seed.
    pub(super) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.random() % bound.max(1) as u64) as usize
    }

    /// Counts a change down to the power cut.
    pub(super) fn step(&mut self) -> io::Result<()> {
        match &mut self.faults.steps_until_power_cut {
            Some(0) => Err(io::Error::other("the power is cut")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn alive(&self) -> io::Result<()> {
        match self.faults.steps_until_power_cut {
            Some(0) => Err(io::Error::other("the power is cut")),
            _ => Ok(()),
        }
    }

    pub(super) fn add_dirs(&mut self, dir: &Path) {
        self.dirs.extend(dir.ancestors().map(Path::to_owned));
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn link(&mut self, path: &Path) -> io::Result<usize> {
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

    pub(super) fn write(&mut self, inode: usize, bytes: &[u8], offset: u64) -> io::Result<usize> {
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

    pub(super) fn sync(&mut self, inode: usize) -> io::Result<()> {
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

    pub(super) fn crash_names(&mut self) {
        let mut names = std::mem::take(&mut self.names_durable);
        let pending = std::mem::take(&mut self.names_pending);
        let in_order = self.below(2) == 0;
        let first = self.below(pending.len() + 1);
        for (i, change) in pending.into_iter().enumerate() {
            let kept = if in_order { i < first } else { self.below(2) == 0 };
            if kept {
                change.apply(&mut names);
            }
        }
        self.names = names.clone();
        self.names_durable = names;
    }

    pub(super) fn crash_inodes(&mut self) {
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
    pub(super) fn keep_prefix(&mut self, pending: Vec<Change>, data: &mut Vec<u8>) {
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
    pub(super) fn keep_sectors(&mut self, pending: &[Change], data: &mut Vec<u8>) {
        for change in pending {
            let Change::Write { offset, bytes } = change else {
                change.apply(data);
                continue;
            };
            let mut from = 0;
            while from < bytes.len() {
                let to = (SECTOR_BYTES - (offset + from) % SECTOR_BYTES + from).min(bytes.len());
                if self.random().is_multiple_of(2) {
                    let part = bytes[from..to].to_vec();
                    Change::Write { offset: offset + from, bytes: part }.apply(data);
                }
                from = to;
            }
        }
    }
}

impl Change {
    pub(super) fn apply(&self, data: &mut Vec<u8>) {
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
    pub(super) fn apply(self, names: &mut BTreeMap<PathBuf, usize>) {
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
