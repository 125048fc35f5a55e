//! The configuration: read from all its sources, checked, explained, read again.
//!
//! Sources, each overriding the one before: the defaults of [`KEYS`]; the JSON file; every
//! `conf.d/*.json` beside it, by name; the environment's `AEGIS_*`; flags. Without a file's path no
//! file is read.
//!
//! Invariant: a [`Config`] that anybody sees has passed every check, and a reload that finds
//! anything wrong changes nothing. All that is wrong is told at once. This module opens no
//! listener, makes no directory, and shows no secret.

mod address;
mod check;
pub mod command;
mod explain;
mod exposure;
mod keys;
mod layers;
mod problem;
mod reference;
mod repeated;
mod secret;
mod setting;
mod span;
mod tls_files;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

pub use address::HostPort;
pub use explain::{Explained, Explanation};
pub use exposure::Exposure;
pub use keys::{ALIASES, Config, KEYS, Key, OBSOLETE};
pub use layers::{Document, Origins};
pub use problem::{Problem, Problems};
pub use reference::key_reference;
pub use secret::{Secret, Secrets};
pub use setting::{
    EvictionPolicy, Quorum, Shape, TlsClientAuth, UncleanRecovery, WalMode, WhenRemoved,
};
pub use tokens::{EVERYTHING, NamedToken};

use check::Check;
use layers::Layers;

/// Largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Most files read from `conf.d`.
const CONF_D_FILES_MAX: usize = 1000;

/// Where the configuration is read from, now and at every reload.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file named by `--config`; `None` reads no file.
    pub file: Option<PathBuf>,
    /// Variables; those that do not begin with `AEGIS_` are passed over.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags: a key's name, with hyphens or underscores, and its value.
    pub flags: BTreeMap<String, String>,
    /// Found a cluster though nodes in `addrs` are silent (`--bootstrap`): no setting, since it is
    /// meant for one start.
    pub bootstrap: bool,
}

/// All inputs as they were read: the point from which loading touches no configuration file.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Files, in the order in which they override one another.
    pub documents: Vec<Document>,
    /// As in [`Sources`].
    pub environment: Vec<(OsString, OsString)>,
    /// As in [`Sources`].
    pub flags: BTreeMap<String, String>,
    /// The machine's host name; empty if unknown.
    pub host_name: String,
}

/// A configuration in force.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Where each came from.
    pub origins: Origins,
    /// What deserves a warning but stops nothing.
    pub warnings: Vec<Problem>,
    /// What was in the files of certificates and keys.
    contents: tls_files::Contents,
}

/// What a reload came to.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// What is in force from now on.
    pub new: Loaded,
    /// Keys whose new value is in force.
    pub applied: Vec<&'static str>,
    /// Keys that were changed but keep their old value until a restart.
    pub needs_restart: Vec<&'static str>,
}

impl Sources {
    /// The sources of this process: its environment, the file and the flags given.
    pub fn of_process(file: Option<PathBuf>, flags: BTreeMap<String, String>) -> Self {
        Self { file, environment: std::env::vars_os().collect(), flags, bootstrap: false }
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn load(&self) -> Result<Loaded, Problems> {
        self.load_for(false)
    }

    /// As [`Self::load`], and whether a node would start with it: the time of its certificate, which
    /// a node that serves already outlives.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn load_to_start(&self) -> Result<Loaded, Problems> {
        self.load_for(true)
    }

    fn load_for(&self, to_start: bool) -> Result<Loaded, Problems> {
        let mut problems = Vec::new();
        let inputs = Inputs {
            documents: self.documents(&mut problems),
            environment: self.environment.clone(),
            flags: self.flags.clone(),
            host_name: host_name(),
        };
        inputs.evaluate_after(problems, to_start)
    }

    /// Reads and checks everything again. `old` stays as it is, whatever happens.
    ///
    /// # Errors
    /// All that is wrong, at once; then `old` is to stay in force.
    pub fn reload(&self, old: &Loaded) -> Result<Reloaded, Problems> {
        old.replaced_by(self.load()?)
    }

    fn documents(&self, problems: &mut Vec<Problem>) -> Vec<Document> {
        let Some(file) = &self.file else {
            return Vec::new();
        };
        let mut paths = vec![file.clone()];
        let conf_d = file.parent().unwrap_or(Path::new("")).join("conf.d");
        match json_files(&conf_d) {
            Ok(files) => paths.extend(files),
            Err(error) => problems.push(Problem::with_source(
                conf_d.display().to_string(),
                format!("cannot be listed: {error}"),
                "let this user read the directory",
            )),
        }
        let mut documents = Vec::new();
        for path in paths {
            match check::read_regular(&path, FILE_BYTES_MAX) {
                Ok(text) => documents.push(Document { path, text }),
                Err(error) => problems.push(Problem::with_source(
                    path.display().to_string(),
                    format!("cannot be read: {error}"),
                    "name a file that this user can read",
                )),
            }
        }
        documents
    }
}

impl Inputs {
    /// Checks everything. Only files that keys name are read: secrets and certificates.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn evaluate(&self) -> Result<Loaded, Problems> {
        self.evaluate_after(Vec::new(), false)
    }

    fn evaluate_after(
        &self,
        mut problems: Vec<Problem>,
        to_start: bool,
    ) -> Result<Loaded, Problems> {
        let mut layers = Layers::default();
        for document in &self.documents {
            layers.add_document(document);
        }
        layers.add_environment(&self.environment);
        layers.add_flags(&self.flags);
        let (mut config, mut origins, mut broken) = layers.read();
        problems.append(&mut layers.problems);

        let files = [
            ("auth_token", &mut config.auth_token, &config.auth_token_file),
            ("gossip_secret", &mut config.gossip_secret, &config.gossip_secret_file),
        ];
        for (key, secrets, file) in files {
            match check::read_secret_file(key, secrets, file.as_ref(), &origins) {
                Ok(Some(path)) => origins.set(key, path),
                Ok(None) => {}
                Err(problem) => {
                    problems.push(problem);
                    broken.insert(key);
                }
            }
        }
        for (what, mend) in tokens::read_files(&mut config.auth_tokens) {
            let origin = origins.of("auth_tokens");
            problems.push(Problem::with_key("auth_tokens", origin, what, mend));
            broken.insert("auth_tokens");
        }
        if config.node_id.is_empty() {
            config.node_id.clone_from(&self.host_name);
        }

        let (found, more_warnings) = Check::new(&config, &origins, &broken).run(to_start);
        problems.extend(found);
        let mut warnings = layers.warnings;
        warnings.extend(more_warnings);
        if problems.is_empty() {
            let contents = tls_files::Contents::of(&config);
            Ok(Loaded { config, origins, warnings, contents })
        } else {
            Err(Problems(problems))
        }
    }
}

impl Loaded {
    /// What is in force after a reload found `fresh`: its live keys, and this one's others.
    ///
    /// # Errors
    /// When the live keys of the one and the other keys of the other do not go together.
    pub fn replaced_by(&self, mut fresh: Self) -> Result<Reloaded, Problems> {
        let mut changed = self.config.differences(&fresh.config);
        fresh.config.keep_until_restart(&self.config);
        if fresh.config.tls_enabled {
            // The names are what they were; what stands in the files is not.
            changed.extend(self.contents.differences(&fresh.contents));
            changed.sort_by_key(|name| KEYS.iter().position(|key| key.name == *name));
            changed.dedup();
        }
        for key in KEYS.iter().filter(|key| !key.live) {
            fresh.origins.set(key.name, self.origins.of(key.name).to_owned());
        }
        let live = |name: &&str| Key::find(name).is_some_and(|key| key.live);
        let (applied, needs_restart): (Vec<_>, Vec<_>) = changed.into_iter().partition(live);
        if !needs_restart.is_empty() {
            let (problems, _) =
                Check::new(&fresh.config, &fresh.origins, &BTreeSet::new()).run(false);
            if !problems.is_empty() {
                return Err(Problems(problems));
            }
        }
        Ok(Reloaded { new: fresh, applied, needs_restart })
    }
}

/// The files of a `conf.d` directory in the order in which they apply; none if there is no such
/// directory.
fn json_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries.take(CONF_D_FILES_MAX) {
        let path = entry?.path();
        // A dot-file is an editor's or a package manager's, never the operator's.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|extension| extension == "json") && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
