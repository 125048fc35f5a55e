//! A temporary directory, gone when its owner is.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cli::exit::note;
use crate::cli::token::fill_randomly;

/// The directory. Dropped: removed with all that is in it.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes a new one that nobody else can look into.
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut number = [0; 8];
        fill_randomly(&mut number)?;
        let name = format!("aegiskv-dev-{:016x}", u64::from_le_bytes(number));
        let dir = std::env::temp_dir().join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make the temporary directory {}", dir.display()))?;
        Ok(Self(dir))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            note(format_args!("{} is left over: {error}", self.0.display()));
        }
    }
}
