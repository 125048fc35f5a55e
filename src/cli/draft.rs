//! A file that a command writes.
//!
//! Invariant: it has its name once it is whole and on the disk, and never before; a name that is
//! taken stays as it is. What is not finished leaves nothing behind, but where the process is
//! killed: then a file that ends in `.part`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// A file under way to its name.
#[derive(Debug)]
pub(crate) struct Draft {
    path: PathBuf,
    aside: PathBuf,
    file: BufWriter<File>,
}

impl Draft {
    /// Begins the file `path`, which must not exist yet, with the permissions `mode`.
    ///
    /// # Errors
    /// It exists, or cannot be written.
    pub(crate) fn create(path: &Path, mode: u32) -> anyhow::Result<Self> {
        let shown = path.display();
        // Told now rather than when all is written; whether it is so then counts.
        ensure!(fs::symlink_metadata(path).is_err(), "{}", taken(path));
        let cannot = || format!("cannot create {shown}");
        let mut name = path.file_name().with_context(cannot)?.to_owned();
        let chance = getrandom::u32().context("the system has no random numbers")?;
        name.push(format!(".{chance:08x}.part"));
        let aside = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside);
        let file = BufWriter::new(file.with_context(cannot)?);
        Ok(Self { path: path.to_owned(), aside, file })
    }

    /// Gives the file its name; durable on return.
    ///
    /// # Errors
    /// It cannot be completed, or the name is taken by now.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        let cannot = || format!("cannot write {}", self.path.display());
        self.file.flush().with_context(cannot)?;
        self.file.get_ref().sync_all().with_context(cannot)?;
        match rename_to_free(&self.aside, &self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(error).context(taken(&self.path));
            }
            renamed => renamed.with_context(cannot)?,
        }
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let synced = File::open(dir.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all());
        synced.with_context(cannot)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It is gone already where it was finished; where it cannot be removed it does no harm.
        let _ = fs::remove_file(&self.aside);
    }
}

fn taken(path: &Path) -> String {
    format!("{} exists, and is left as it is; move it away or name another", path.display())
}

/// A link, unlike a rename, does not replace what was there. Where there are no links a rename has
/// to do.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !to.exists() => {
            fs::rename(from, to)
        }
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir)
            .expect("it is there")
            .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned());
        names.collect()
    }

    #[test]
    fn a_file_has_its_name_once_it_is_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let mut draft = Draft::create(&path, 0o600).expect("it can be made");
        draft.write_all(b"half").expect("it can be written");
        draft.flush().expect("it can be written");
        assert!(!path.exists());
        draft.write_all(b" and half").expect("it can be written");
        draft.finish().expect("it can be finished");
        assert_eq!(fs::read(&path).expect("it is there"), b"half and half");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut draft = Draft::create(&dir.path().join("f"), 0o600).expect("it can be made");
        draft.write_all(b"half").expect("it can be written");
        drop(draft);
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn a_name_that_is_taken_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let draft = Draft::create(&path, 0o600).expect("it can be made");
        fs::write(&path, "theirs").expect("it can be written");
        let late = draft.finish().expect_err("it was made meanwhile").to_string();
        assert!(late.contains("exists, and is left as it is"), "{late}");
        let early = Draft::create(&path, 0o600).expect_err("it is there").to_string();
        assert!(early.contains("exists, and is left as it is"), "{early}");
        assert_eq!(fs::read(&path).expect("it is there"), b"theirs");
        assert_eq!(names(dir.path()), ["f"]);
    }
}
