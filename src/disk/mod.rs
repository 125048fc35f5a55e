//! The seam between AegisKV and the disk: the few operations that the log and the snapshots need.
//!
//! Invariant: whatever is to outlast a crash goes through [`Disk`] and [`File`], so that
//! [`Faulty`] can tear, flip, fill and fail it. Errors here are `std::io::Error`, untouched.
//! It never interprets a byte; formats belong to [`crate::wal`] and [`crate::snapshot`].

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub mod faulty;
pub mod home;
mod os;

pub use faulty::Faulty;
pub use os::Os;

/// A file system, as far as AegisKV needs one. Every call blocks.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a directory and those above it, if they are missing. Not durable before
    /// [`Disk::sync_dir`] of the one above.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable: creations, renames and removals.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// The names of the files and directories in `dir`, sorted. Names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a file that does not exist yet, for writing and reading.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens a file that exists, for reading only.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens a file that exists, for writing and reading.
    fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens a file, creating it if it is missing, and locks it until the handle is dropped.
    /// `None` when somebody else holds the lock.
    fn lock(&self, path: &Path) -> io::Result<Option<Arc<dyn File>>>;

    /// Renames, replacing what `to` named.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// How many bytes this process may still write below `dir`.
    fn room(&self, dir: &Path) -> io::Result<u64>;

    /// Names the machine's present run. While it stays the same, what was written is still there,
    /// synced or not.
    fn boot_id(&self) -> io::Result<String>;
}

/// An open file. Shared freely: every operation names its place.
pub trait File: Send + Sync + fmt::Debug {
    /// Writes some of `bytes` at `offset`; answers how many.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Reads up to `bytes.len()` bytes at `offset`; answers how many, 0 at the end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Makes durable what was written, and the length if it is needed to read that again.
    fn sync_data(&self) -> io::Result<()>;

    /// The file's length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Sets the length; content and length are durable on return.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// Reserves room up to `length`, as zeros, so that later writes need not grow the file.
    /// Errors are the disk's opinion only: a caller may go on without.
    fn allocate(&self, length: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads until `bytes` is full or the file ends; answers how many were read.
    fn read_full_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

/// Reads a whole file; for small ones.
pub fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    let n = file.read_full_at(&mut bytes, 0)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// Puts a small file in place as one durable step: after a crash it holds the old or the new. What
/// was begun of the new goes if it cannot be completed.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    remove_if_there(disk, &aside)?;
    let write = || {
        let file = disk.create(&aside)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        disk.rename(&aside, path)
    };
    write().inspect_err(|_| {
        // The first error tells more; the next start removes what cannot be removed now.
        let _ = disk.remove(&aside);
    })?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Removes a file, if there is one.
pub fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
