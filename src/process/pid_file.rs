//! The pid file: says which process runs, and that only one does.
//!
//! Caveats: two processes that find the same stale file at the same moment both take it; the lock
//! on the data directory is what keeps them apart.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The name under which the system lists this program.
const PROGRAM: &str = "aegiskv";

/// Longest content that is read from a pid file, in bytes.
const BYTES_MAX: u64 = 64;

/// A pid file held by this process; removed when dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
}

/// Why no pid file was written.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another process holds it.
    #[error("pid_file {} names process {pid}, and that aegiskv is running; stop it first", path.display())]
    Running {
        /// The file.
        path: PathBuf,
        /// The other process.
        pid: u32,
    },
    /// There is something at that path that no pid file would be; it is left alone.
    #[error("pid_file {} exists and holds no process id; name another path", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("pid_file {} cannot be written; let this user write to its directory", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PidFile {
    /// Writes this process's id to `path`: whole or not at all. A file that a process left behind
    /// which no longer runs is replaced.
    ///
    /// # Errors
    /// [`PidFileError`].
    pub fn create(path: &Path) -> Result<Self, PidFileError> {
        Self::create_for(path, PROGRAM)
    }

    fn create_for(path: &Path, program: &str) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_owned(), source };
        let own = std::process::id();
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{own}.new"));
        let draft = Draft(path.with_file_name(name));
        fs::write(&draft.0, format!("{own}\n")).map_err(failed)?;
        // A link, unlike a rename, does not replace what another process wrote a moment ago.
        match fs::hard_link(&draft.0, path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                match read_pid(path).map_err(failed)? {
                    None => {
                        return Err(PidFileError::Foreign { path: path.to_owned() });
                    }
                    Some(pid) if pid != own && is_running(pid, program) => {
                        return Err(PidFileError::Running { path: path.to_owned(), pid });
                    }
                    Some(_) => fs::rename(&draft.0, path).map_err(failed)?,
                }
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let ours = matches!(read_pid(&self.path), Ok(Some(pid)) if pid == std::process::id());
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the pid file stays behind");
        }
    }
}

/// A file not yet in its place; removed when dropped, unless it was moved there.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // It is gone already where it was moved; where it cannot be removed it does no harm.
        let _ = fs::remove_file(&self.0);
    }
}

/// The id in a pid file. Empty counts as stale: a machine that lost power leaves such files.
fn read_pid(path: &Path) -> io::Result<Option<u32>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&fs::read(path)?).trim().to_owned();
    if text.is_empty() { Ok(Some(0)) } else { Ok(text.parse().ok()) }
}

/// Whether process `pid` runs `program`, by the format of proc_pid_stat(5).
fn is_running(pid: u32, program: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let Some((before, after)) = stat.rsplit_once(')') else {
        return false;
    };
    let name = before.split_once('(').map_or("", |(_, name)| name);
    let ended = matches!(after.trim_start().as_bytes().first(), Some(b'Z' | b'X'));
    name == program && !ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_file_holds_our_id_while_we_hold_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aegiskv.pid");
        let held = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft stays");
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn a_running_process_keeps_its_file_and_an_ended_one_loses_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = other.id();
        fs::write(&path, pid.to_string()).unwrap();

        // Between fork and exec the child still has its parent's name.
        while !is_running(pid, "sleep") {
            std::thread::yield_now();
        }
        let refused = PidFile::create_for(&path, "sleep").unwrap_err();
        assert!(matches!(refused, PidFileError::Running { pid: named, .. } if named == pid));
        assert_eq!(fs::read_to_string(&path).unwrap(), pid.to_string());

        // The same id on another program is a number used again.
        drop(PidFile::create_for(&path, "aegiskv").unwrap());
        fs::write(&path, pid.to_string()).unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        let held = PidFile::create_for(&path, "sleep").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(held);
    }

    #[test]
    fn a_file_that_is_no_pid_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        fs::write(&path, "do not lose this").unwrap();
        assert!(matches!(PidFile::create(&path), Err(PidFileError::Foreign { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "do not lose this");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft stays");
    }

    #[test]
    fn a_file_that_another_took_over_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let held = PidFile::create(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(held);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let refused = PidFile::create(Path::new("/nonexistent/dir/pid")).unwrap_err();
        assert!(refused.to_string().contains("/nonexistent/dir/pid"), "{refused}");
    }
}
