//! The data directory: whose it is, who uses it, and whether what it holds can be vouched for.
//!
//! Invariant: one process at a time; and until [`Home::enter`] nothing in it is changed, so that a
//! refused start leaves it as it was, but for temporary files, of which none outlasts a start. It
//! does not know what logs and snapshots contain, only how their files are named.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Disk, File, read, replace};
use crate::entry::{Timestamp, Version};

/// The newest version of the directory's layout that this AegisKV reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;

const IDENTITY: &str = "identity.json";
const LOCK: &str = "lock";

/// What the names of files begin with that are written under a name ending in `.tmp` first.
const TEMPORARY: [&str; 6] = ["identity", "birth", "topology", "snapshot", "copy-", "mark"];

/// What the start expects of the directory.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The log's directory.
    pub wal_dir: PathBuf,
    /// The node's name.
    pub node_id: String,
    /// The cluster's number of shards.
    pub num_shards: u16,
    /// The mode in which the log will be kept: `off`, `async` or `sync`.
    pub wal_mode: String,
    /// The cluster that the node is to belong to, where that is known beforehand.
    pub cluster_id: Option<u128>,
}

/// Who this directory is. Stored as `identity.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the directory's layout.
    pub format_version: u32,
    /// The cluster's, drawn at its birth.
    #[serde(with = "hex")]
    pub cluster_id: u128,
    /// The cluster's secret: keys are hashed to shards with it.
    #[serde(with = "hex")]
    pub hash_seed: u128,
    /// Fixed at the cluster's birth.
    pub num_shards: u16,
    /// The node's name.
    pub node_id: String,
    /// This life of the node's memory. Rises, and changes whenever memory was lost.
    #[serde(with = "hex")]
    pub incarnation: u64,
    /// The run of the machine in which the directory was last used.
    pub boot_id: String,
    /// How the log was kept then.
    pub wal_mode: String,
    /// Where the log ended when the node was shut down in order; absent while it runs.
    pub clean_at: Option<u64>,
    /// The node's number in its cluster; absent in a directory from before there were clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
}

/// Why a node cannot vouch for all that it once acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// The directory was empty.
    Newborn,
    /// There were data, but no identity.
    IdentityMissing,
    /// No log was kept.
    WalOff,
    /// The machine went down, and the log was not synced before each acknowledgement.
    MachineCrashed,
    /// Part of the log, or of the snapshot, was damaged or missing.
    Corruption,
}

/// Why the directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process uses it.
    #[error("{path} is in use by {holder}; stop that one first, or give this node a data_dir of its own", path = path.display(), holder = Holder(*pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other process, if it has left its number.
        pid: Option<u32>,
    },
    /// It cannot be written to.
    #[error("{path} cannot be written to: {source}; make it writable for the user that runs aegiskv, or set data_dir to another", path = path.display())]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// Its identity cannot be read.
    #[error("{path} is damaged: {source}; restore it from a backup, or move the data directory away to start empty", path = path.display())]
    Damaged {
        /// The identity file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A newer AegisKV wrote it.
    #[error("{path} has format {found}, this aegiskv reads up to {FORMAT_VERSION}; start it with the newer version again", path = path.display())]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },
    /// It belongs to another cluster.
    #[error("{path} belongs to cluster {found:032x}, not to {expected:032x}; give this node the directory it had before, or an empty one", path = path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        found: u128,
        /// The one expected.
        expected: u128,
    },
    /// It belongs to another node.
    #[error("{path} belongs to node {found:?}, not to {expected:?}; set node_id to {found:?}, or give this node the directory it had before", path = path.display())]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Its node.
        found: String,
        /// The one expected.
        expected: String,
    },
    /// The cluster was born with another number of shards.
    #[error("{path} has {found} shards, num_shards is {expected}; the number is fixed at a cluster's birth: set num_shards to {found}, or dump, start empty, and import", path = path.display())]
    OtherShards {
        /// The directory.
        path: PathBuf,
        /// Its number of shards.
        found: u16,
        /// The one expected.
        expected: u16,
    },
}

struct Holder(Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// The data directory, held.
#[derive(Debug)]
pub struct Home {
    disk: Arc<dyn Disk>,
    config: Config,
    identity: Identity,
    boot_id: String,
    before: Before,
    /// Open for as long as the directory is held.
    _locks: Vec<Arc<dyn File>>,
}

/// In what state the directory was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Empty,
    Nameless,
    Known,
}

impl Home {
    /// Locks the directory and reads who it is; a directory without an identity is given a new one
    /// (in memory: see [`Home::enter`]).
    ///
    /// # Errors
    /// [`Error`]; nothing in the directory was changed then, except that it, and the lock file in
    /// it, may have been created, and that temporary files of earlier runs may be gone.
    pub fn open(disk: Arc<dyn Disk>, config: Config) -> Result<Self, Error> {
        let mut locks = vec![lock(&*disk, &config.data_dir)?];
        if config.wal_dir != config.data_dir {
            locks.push(lock(&*disk, &config.wal_dir)?);
        }
        // First of all: on a full disk there is no room for anything before they are gone.
        sweep(&*disk, &config)?;
        let boot_id = disk.boot_id().map_err(not_writable(&config.data_dir))?;
        let (identity, before) = match read_identity(&*disk, &config.data_dir)? {
            Some(identity) => (identity, Before::Known),
            None => {
                let files = data_files(&*disk, &config)?;
                let before = if files.is_empty() { Before::Empty } else { Before::Nameless };
                (Identity::born(&config, &boot_id), before)
            }
        };
        identity.check(&config)?;
        for lock in &locks {
            let pid = format!("{}\n", std::process::id());
            let write = lock.truncate(0).and_then(|()| lock.write_all_at(pid.as_bytes(), 0));
            write.map_err(not_writable(&config.data_dir.join(LOCK)))?;
        }
        Ok(Self { disk, config, identity, boot_id, before, _locks: locks })
    }

    /// Who the directory is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the directory had no identity when it was opened.
    pub fn is_new(&self) -> bool {
        self.before != Before::Known
    }

    /// Makes it the directory of member `node` of a cluster; durable with [`Home::enter`].
    pub fn belong(&mut self, cluster_id: u128, hash_seed: u128, num_shards: u16, node: u64) {
        self.identity.cluster_id = cluster_id;
        self.identity.hash_seed = hash_seed;
        self.identity.num_shards = num_shards;
        self.identity.node = Some(node);
    }

    /// Gives the node another number in its cluster, durably.
    ///
    /// # Errors
    /// [`Error::NotWritable`].
    pub fn renumber(&mut self, node: u64) -> Result<(), Error> {
        self.identity.node = Some(node);
        self.write()
    }

    /// Whether the machine has not been down since the directory was last used.
    pub fn same_boot(&self) -> bool {
        self.identity.boot_id == self.boot_id
    }

    /// Whether the last run left data that may be loaded. If not, whatever files there are would
    /// bring old values back: they belong aside ([`Home::set_data_aside`]).
    pub fn loads(&self) -> bool {
        self.before == Before::Known && self.identity.wal_mode != "off"
    }

    /// Where the log is known to have ended; 0 if the last run did not end in order.
    pub fn clean_at(&self) -> u64 {
        self.identity.clean_at.unwrap_or(0)
    }

    /// What the directory itself says was lost; the load may find more.
    pub fn loss(&self) -> Option<Loss> {
        match self.before {
            Before::Empty => return Some(Loss::Newborn),
            Before::Nameless => return Some(Loss::IdentityMissing),
            Before::Known => {}
        }
        match self.identity.wal_mode.as_str() {
            "off" => Some(Loss::WalOff),
            "sync" => None,
            _ if self.same_boot() || self.identity.clean_at.is_some() => None,
            _ => Some(Loss::MachineCrashed),
        }
    }

    /// Begins this run, durably: from here on the directory is in use under the present mode and
    /// boot, and under a new incarnation if memory was lost. To be called after the load, and
    /// before the log is opened for writing.
    ///
    /// # Errors
    /// [`Error::NotWritable`].
    pub fn enter(&mut self, lost: Option<Loss>) -> Result<&Identity, Error> {
        // A new directory's incarnation was drawn when it was opened.
        if lost.is_some() && !self.is_new() {
            self.identity.incarnation = incarnation_after(self.identity.incarnation);
        }
        // What the last run left with the kernel must not be lost in this one's name.
        for path in data_files(&*self.disk, &self.config)? {
            let synced = self.disk.open(&path).and_then(|file| file.sync_data());
            synced.map_err(not_writable(&path))?;
        }
        self.identity.boot_id.clone_from(&self.boot_id);
        self.identity.wal_mode.clone_from(&self.config.wal_mode);
        self.identity.clean_at = None;
        self.write()?;
        Ok(&self.identity)
    }

    /// Marks a shutdown in order: all that was acknowledged is in the snapshot, or in the log up
    /// to `lsn`, and durable.
    ///
    /// # Errors
    /// [`Error::NotWritable`].
    pub fn mark_clean(&mut self, lsn: u64) -> Result<(), Error> {
        self.identity.clean_at = Some(lsn);
        self.write()
    }

    /// Moves logs and snapshots into folders named for `now`, so that no later start serves what
    /// is in them; answers the folders. In mode `off` to be called after the load and before
    /// [`Home::enter`].
    ///
    /// # Errors
    /// [`Error::NotWritable`].
    pub fn set_data_aside(&self, now: Timestamp) -> Result<Vec<PathBuf>, Error> {
        let mut folders: Vec<PathBuf> = Vec::new();
        for path in data_files(&*self.disk, &self.config)? {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            let folder = dir.join(format!("set-aside-{}", date_and_time(now)));
            if !folders.contains(&folder) {
                self.disk.create_dir(&folder).map_err(not_writable(&folder))?;
                folders.push(folder.clone());
            }
            self.disk.rename(&path, &folder.join(name)).map_err(not_writable(&path))?;
        }
        for folder in &folders {
            let dir = folder.parent().unwrap_or(folder);
            let synced = self.disk.sync_dir(folder).and_then(|()| self.disk.sync_dir(dir));
            synced.map_err(not_writable(folder))?;
        }
        Ok(folders)
    }

    fn write(&self) -> Result<(), Error> {
        let path = self.config.data_dir.join(IDENTITY);
        let mut text = serde_json::to_vec_pretty(&self.identity)
            .expect("an identity has only strings, numbers and nothing that cannot be JSON");
        text.push(b'\n');
        replace(&*self.disk, &path, &text).map_err(not_writable(&path))
    }
}

impl Identity {
    fn born(config: &Config, boot_id: &str) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            cluster_id: config.cluster_id.unwrap_or_else(random),
            hash_seed: random(),
            num_shards: config.num_shards,
            node_id: config.node_id.clone(),
            incarnation: incarnation_after(0),
            boot_id: boot_id.to_owned(),
            wal_mode: config.wal_mode.clone(),
            clean_at: None,
            node: None,
        }
    }

    fn check(&self, config: &Config) -> Result<(), Error> {
        let path = || config.data_dir.clone();
        if let Some(expected) = config.cluster_id.filter(|id| *id != self.cluster_id) {
            return Err(Error::OtherCluster { path: path(), found: self.cluster_id, expected });
        }
        if self.node_id != config.node_id {
            let (found, expected) = (self.node_id.clone(), config.node_id.clone());
            return Err(Error::OtherNode { path: path(), found, expected });
        }
        if self.num_shards != config.num_shards {
            let (found, expected) = (self.num_shards, config.num_shards);
            return Err(Error::OtherShards { path: path(), found, expected });
        }
        Ok(())
    }
}

/// Reads who a data directory is, without locking it; for looking at it offline. `None` if it has
/// no identity.
///
/// # Errors
/// [`Error::Damaged`], [`Error::NewerFormat`], and [`Error::NotWritable`] if it cannot be read.
pub fn read_identity(disk: &dyn Disk, data_dir: &Path) -> Result<Option<Identity>, Error> {
    #[derive(Deserialize)]
    struct Format {
        format_version: u32,
    }
    let path = data_dir.join(IDENTITY);
    let text = match read(disk, &path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(not_writable(&path))?,
    };
    let damaged = |source| Error::Damaged { path: path.clone(), source };
    let Format { format_version: found } = serde_json::from_slice(&text).map_err(damaged)?;
    if found > FORMAT_VERSION {
        return Err(Error::NewerFormat { path: data_dir.to_owned(), found });
    }
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

fn lock(disk: &dyn Disk, dir: &Path) -> Result<Arc<dyn File>, Error> {
    let path = dir.join(LOCK);
    disk.create_dir(dir).map_err(not_writable(dir))?;
    if let Some(file) = disk.lock(&path).map_err(not_writable(&path))? {
        return Ok(file);
    }
    let holder = read(disk, &path).unwrap_or_default();
    let pid = std::str::from_utf8(&holder).ok().and_then(|text| text.trim().parse().ok());
    Err(Error::Locked { path: dir.to_owned(), pid })
}

/// The logs and snapshots there are.
fn data_files(disk: &dyn Disk, config: &Config) -> Result<Vec<PathBuf>, Error> {
    files(disk, config, |name| {
        name.ends_with(".wal") || name.starts_with("snapshot-") || name.starts_with("copy-")
    })
}

/// The files of this directory, and of the log's, that are so named.
fn files(
    disk: &dyn Disk,
    config: &Config,
    is_so_named: impl Fn(&str) -> bool,
) -> Result<Vec<PathBuf>, Error> {
    let mut dirs = vec![&config.data_dir];
    if config.wal_dir != config.data_dir {
        dirs.push(&config.wal_dir);
    }
    let mut files = Vec::new();
    for dir in dirs {
        let names = disk.list(dir).map_err(not_writable(dir))?;
        files.extend(names.iter().filter(|name| is_so_named(name)).map(|name| dir.join(name)));
    }
    Ok(files)
}

/// Removes what an earlier run was writing when it ended: nothing refers to it.
fn sweep(disk: &dyn Disk, config: &Config) -> Result<(), Error> {
    let is_ours = |name: &str| {
        let Some(stem) = name.strip_suffix(".tmp") else { return false };
        stem.ends_with(".wal") || TEMPORARY.iter().any(|begin| stem.starts_with(begin))
    };
    for path in files(disk, config, is_ours)? {
        disk.remove(&path).map_err(not_writable(&path))?;
        tracing::warn!(path = %path.display(), "removed a file that an earlier run did not complete");
    }
    Ok(())
}

fn not_writable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::NotWritable { path: path.to_owned(), source }
}

fn random() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    u128::from_le_bytes(bytes)
}

/// Higher than `before`, and unlike any that another life of this node may have drawn: the clock
/// above, chance below.
fn incarnation_after(before: u64) -> u64 {
    const CHANCE_BITS: u32 = 22;
    let millis = Timestamp::now().0.saturating_sub(Version::EPOCH_MILLIS);
    let chance = (random() as u64) >> (u64::BITS - CHANCE_BITS);
    (millis << CHANCE_BITS | chance).max(before + 1)
}

/// As `20250102T030405Z`.
fn date_and_time(now: Timestamp) -> String {
    let seconds = i64::try_from(now.0 / 1000).unwrap_or(i64::MAX);
    let Ok(t) = time::OffsetDateTime::from_unix_timestamp(seconds) else {
        return seconds.to_string();
    };
    let (year, month, day) = t.to_calendar_date();
    let (hour, minute, second) = t.to_hms();
    format!("{year:04}{:02}{day:02}T{hour:02}{minute:02}{second:02}Z", u8::from(month))
}

/// Numbers that JSON readers would round, as hexadecimal text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: std::fmt::LowerHex, S: Serializer>(
        number: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:0width$x}", width = 2 * size_of::<T>()))
    }

    pub(super) fn deserialize<'de, T: TryFrom<u128>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        let number = u128::from_str_radix(&text, 16).map_err(D::Error::custom)?;
        T::try_from(number).map_err(|_| D::Error::custom("the number is too large"))
    }
}
