//! What the last reload came to, in a file beside the running process.
//!
//! A signal brings no answer; this file does. `aegiskv reload` takes the time, sends SIGHUP, and
//! waits for the report of a reload that began after it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The file's name in the runtime directory.
const FILE: &str = "reload.json";

/// One reload, as it is told. The file's format: other versions of the program may read it, so
/// fields come with defaults and keep their meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadReport {
    /// When it began, in microseconds of the machine's monotonic clock.
    pub begun_usec: u64,
    /// Keys whose new value is in force.
    pub applied: Vec<String>,
    /// Keys whose new value waits for a restart.
    pub needs_restart: Vec<String>,
    /// What was noted about the new configuration and did not hinder it.
    pub warnings: Vec<String>,
    /// Why it was refused; empty if it was not.
    pub problems: Vec<String>,
}

impl ReloadReport {
    /// The directory where reports stand: what systemd made for the service (`RuntimeDirectory=`),
    /// if it did.
    pub fn directory() -> Option<PathBuf> {
        let directories = std::env::var_os("RUNTIME_DIRECTORY")?;
        // Several are separated by colons; the first is the service's own.
        std::env::split_paths(&directories).next()
    }

    /// The monotonic clock in microseconds, the same for all processes of the machine.
    ///
    /// # Errors
    /// The system has no such clock.
    pub fn now_usec() -> io::Result<u64> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let now = std::time::Duration::from(now);
        Ok(u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
    }

    /// Puts it in the place of the one before, whole or not at all.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let draft = directory.join(format!("{FILE}.new"));
        let written = fs::write(&draft, serde_json::to_vec(self)?);
        written.and_then(|()| fs::rename(&draft, directory.join(FILE))).inspect_err(|_| {
            // The first error tells more.
            let _ = fs::remove_file(&draft);
        })
    }

    /// The last one; `None` if there was no reload yet.
    ///
    /// # Errors
    /// What the system says, or that the file is no report.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        match fs::read(directory.join(FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_takes_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(ReloadReport::read(dir.path()).expect("an empty directory"), None);
        for problem in ["first", "second"] {
            let report =
                ReloadReport { problems: vec![problem.to_owned()], ..ReloadReport::default() };
            report.write(dir.path()).expect("a directory to write to");
            let read = ReloadReport::read(dir.path()).expect("a report").expect("one");
            assert_eq!(read.problems, [problem]);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 1);
    }

    #[test]
    fn fields_of_another_version_are_passed_over_or_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("reload.json"), r#"{"begun_usec":7,"took":1}"#).expect("a file");
        let read = ReloadReport::read(dir.path()).expect("a report");
        assert_eq!(read, Some(ReloadReport { begun_usec: 7, ..ReloadReport::default() }));
    }
}
