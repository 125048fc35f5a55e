//! A node's durable word on who founds the cluster, and its file.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, read, replace};

/// The newest version of the file that this AegisKV reads, and the one it writes.
const FORMAT_VERSION: u32 = 1;

const FILE: &str = "birth.json";

/// The largest file that is looked into, in bytes; a word has some hundred.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Whom a node lets found the cluster. It has one word, and keeps it over restarts.
///
/// A word to oneself is an **attempt** to found: it asks everybody else for theirs. Attempts of a
/// node are numbered upwards, one is open at a time, and one that was given up never founds.
/// That is what lets a word be taken back: its founder says that the attempt has been given up,
/// or asks again with a higher number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Whose word it is.
    pub giver: String,
    /// The node that may found.
    pub founder: String,
    /// Where that node is reached: `host:port`.
    pub founder_addr: String,
    /// Which attempt of the founder's.
    pub attempt: u64,
    /// Whether the founder was started with `--bootstrap`.
    pub bootstrap: bool,
    /// The giver's own attempts up to this one have been given up.
    pub given_up: u64,
    /// Whether the giver, being the founder, has everybody's word and founds. There is no way back.
    pub decided: bool,
}

/// Why the word on disk cannot be used or kept.
#[derive(Debug, thiserror::Error)]
pub enum WordError {
    /// The disk refused.
    #[error("{path} cannot be read or written: {source}; make it accessible for the user that runs aegiskv, or set data_dir to another", path = path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// The file holds no word.
    #[error("{path} is damaged: {source}; if no node of this cluster has served yet, remove the file, and start this node once the others run", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The file is far too long for a word.
    #[error("{path} has {length} bytes, far too many; if no node of this cluster has served yet, remove the file, and start this node once the others run", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// A newer AegisKV wrote it.
    #[error("{path} has format {found}, this aegiskv reads up to {FORMAT_VERSION}; start it with the newer version again", path = path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },
    /// It is another node's.
    #[error("{path} is the word of node {found:?}, not of {expected:?}; set node_id to {found:?}, or give this node an empty data directory", path = path.display())]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
}

/// What stands in the file, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format_version: u32,
    #[serde(flatten)]
    word: Word,
}

impl Word {
    /// Reads the word that node `name` has given, if it has; to be done at a start without an
    /// identity.
    ///
    /// # Errors
    /// Every [`WordError`]. Without its word a node must not take part in a birth.
    pub fn load(disk: &dyn Disk, data_dir: &Path, name: &str) -> Result<Option<Self>, WordError> {
        #[derive(Deserialize)]
        struct Format {
            format_version: u32,
        }
        let path = data_dir.join(FILE);
        let failed = |source| WordError::Disk { path: path.clone(), source };
        let length = match disk.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.and_then(|file| file.length()).map_err(failed)?,
        };
        if length > FILE_BYTES_MAX {
            return Err(WordError::TooLong { path, length });
        }
        let text = read(disk, &path).map_err(failed)?;
        let damaged = |source| WordError::Damaged { path: path.clone(), source };
        let Format { format_version: found } = serde_json::from_slice(&text).map_err(damaged)?;
        if found > FORMAT_VERSION {
            return Err(WordError::NewerFormat { path, found });
        }
        let Stored { word, .. } = serde_json::from_slice(&text).map_err(damaged)?;
        if word.giver != name {
            return Err(WordError::OtherNode { path, found: word.giver, expected: name.into() });
        }
        Ok(Some(word))
    }

    /// Makes the word durable; on return it outlives a power failure. Blocks.
    ///
    /// # Errors
    /// [`WordError::Disk`]; the word must then not be told to anybody.
    pub fn keep(&self, disk: &dyn Disk, data_dir: &Path) -> Result<(), WordError> {
        let path = data_dir.join(FILE);
        let stored = Stored { format_version: FORMAT_VERSION, word: self.clone() };
        let mut text =
            serde_json::to_vec_pretty(&stored).expect("a word has only strings, numbers and flags");
        text.push(b'\n');
        replace(disk, &path, &text).map_err(|source| WordError::Disk { path, source })
    }

    /// Removes the file: the node has an identity, and its word has served. Blocks.
    ///
    /// # Errors
    /// [`WordError::Disk`]; harmless, as a node with an identity does not look for a word.
    pub fn forget(disk: &dyn Disk, data_dir: &Path) -> Result<(), WordError> {
        let path = data_dir.join(FILE);
        match disk.remove(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.and_then(|()| disk.sync_dir(data_dir)),
        }
        .map_err(|source| WordError::Disk { path, source })
    }

    /// Whether it lets its giver found, nobody else.
    pub(super) fn is_own(&self) -> bool {
        self.giver == self.founder
    }

    /// Whether it is for that attempt.
    pub(super) fn is_for(&self, founder: &str, attempt: u64) -> bool {
        self.founder == founder && self.attempt == attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Faulty;

    const DIR: &str = "/data";

    fn word() -> Word {
        Word {
            giver: "node2".into(),
            founder: "node1".into(),
            founder_addr: "10.0.1.10:7701".into(),
            attempt: 3,
            bootstrap: false,
            given_up: 1,
            decided: false,
        }
    }

    fn disk() -> Faulty {
        let disk = Faulty::new(1);
        disk.create_dir(Path::new(DIR)).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        disk
    }

    fn load(disk: &Faulty) -> Result<Option<Word>, WordError> {
        Word::load(disk, Path::new(DIR), "node2")
    }

    #[test]
    fn a_word_outlives_a_power_failure_until_it_is_forgotten() {
        let disk = disk();
        assert_eq!(load(&disk).unwrap(), None);
        Word { attempt: 2, ..word() }.keep(&disk, Path::new(DIR)).unwrap();
        word().keep(&disk, Path::new(DIR)).unwrap();
        disk.crash();
        assert_eq!(load(&disk).unwrap(), Some(word()));
        Word::forget(&disk, Path::new(DIR)).unwrap();
        disk.crash();
        assert_eq!(load(&disk).unwrap(), None);
        Word::forget(&disk, Path::new(DIR)).unwrap();
    }

    #[test]
    fn at_whatever_step_the_power_fails_the_old_or_the_new_word_is_there() {
        for step in 0..12 {
            let disk = disk();
            let before = Word { attempt: 2, ..word() };
            before.keep(&disk, Path::new(DIR)).unwrap();
            disk.cut_power_after(step);
            let kept = word().keep(&disk, Path::new(DIR)).is_ok();
            disk.crash();
            let found = load(&disk).unwrap().expect("there was a word before");
            assert!(found == word() || (found == before && !kept), "step {step}: {found:?}");
        }
    }

    #[test]
    fn the_file_reads_as_it_always_did() {
        let disk = disk();
        let text = br#"{"format_version":1,"giver":"node2","founder":"node1","founder_addr":"10.0.1.10:7701","attempt":3,"bootstrap":false,"given_up":1,"decided":false}"#;
        disk.put(&Path::new(DIR).join("birth.json"), text);
        assert_eq!(load(&disk).unwrap(), Some(word()));
    }

    #[test]
    fn a_file_that_is_no_word_of_this_node_is_refused_with_a_way_out() {
        let disk = disk();
        let path = Path::new(DIR).join("birth.json");
        for (text, says) in [
            (&b"{}"[..], "/data/birth.json is damaged"),
            (b"\xff\x00", "/data/birth.json is damaged"),
            (br#"{"format_version":1,"giver":"node2"}"#, "/data/birth.json is damaged"),
            (br#"{"format_version":2}"#, "start it with the newer version again"),
            (&[b' '; 70_000], "far too many"),
        ] {
            disk.put(&path, text);
            let error = load(&disk).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        word().keep(&disk, Path::new(DIR)).unwrap();
        let error = Word::load(&disk, Path::new(DIR), "node5").unwrap_err().to_string();
        assert!(error.contains(r#"set node_id to "node2""#), "{error}");
    }
}
