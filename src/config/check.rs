//! Checks between keys, and against the machine: what no single value can show to be wrong.
//!
//! All that is wrong is found in one pass. A check is left out where a key it needs is already
//! known to be wrong, so that one slip is reported once.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::address::HostPort;
use super::keys::Config;
use super::layers::{Origins, byte_order_mark};
use super::problem::Problem;
use super::secret::{Secret, Secrets};
use super::setting::{Quorum, TlsClientAuth};
use super::{tls_files, tokens};
use crate::logging;

/// Shortest token or gossip secret that passes without a warning, in bytes.
pub(super) const SECRET_BYTES_ADVISED: usize = 32;

/// Largest file of secrets that is read, in bytes.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Longest node id, zone or region, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// A pass over one configuration, and what it has found so far.
pub(super) struct Check<'a> {
    config: &'a Config,
    origins: &'a Origins,
    /// Keys already found wrong.
    broken: &'a BTreeSet<&'static str>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'a> Check<'a> {
    pub(super) fn new(
        config: &'a Config,
        origins: &'a Origins,
        broken: &'a BTreeSet<&'static str>,
    ) -> Self {
        Self { config, origins, broken, problems: Vec::new(), warnings: Vec::new() }
    }

    /// Runs every check; those of what only a start asks for if it is `to_start`.
    pub(super) fn run(mut self, to_start: bool) -> (Vec<Problem>, Vec<Problem>) {
        self.names();
        self.listeners();
        self.web_pages();
        self.memory();
        self.quorums();
        self.membership();
        self.secrets();
        self.tls(to_start);
        self.logs();
        self.regions();
        (self.problems, self.warnings)
    }

    fn problem(&mut self, key: &str, what: impl Into<String>, mend: impl Into<String>) {
        self.problems.push(Problem::with_key(key, self.origins.of(key), what, mend));
    }

    fn warning(&mut self, key: &str, what: impl Into<String>, mend: impl Into<String>) {
        self.warnings.push(Problem::with_key(key, self.origins.of(key), what, mend));
    }

    /// Whether none of `keys` is already known to be wrong.
    fn sound(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| !self.broken.contains(key))
    }

    fn names(&mut self) {
        let config = self.config;
        let names =
            [("node_id", &config.node_id), ("zone", &config.zone), ("region", &config.region)];
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        for (key, name) in names {
            if name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
                let mend = "use at most 255 letters, digits, dots, hyphens and underscores";
                self.problem(key, "holds characters that a name cannot have, or too many", mend);
            }
        }
        if config.node_id.is_empty() && self.sound(&["node_id"]) {
            let what = "is empty, and the machine's host name could not be read";
            self.problem("node_id", what, "give the node a name");
        }
    }

    fn listeners(&mut self) {
        let config = self.config;
        let listeners: [(&str, &HostPort); 3] = [
            ("bind_addr", &config.bind_addr),
            ("gossip_bind_addr", &config.gossip_bind_addr),
            ("health_addr", &config.health_addr),
        ];
        for (index, (key, address)) in listeners.iter().enumerate() {
            for (earlier, taken) in &listeners[..index] {
                if self.sound(&[key, earlier]) && address.clashes_with(taken) {
                    let what = format!("{address} is taken by {earlier} ({taken})");
                    self.problem(key, what, "give each listener a port of its own");
                }
            }
        }
    }

    fn web_pages(&mut self) {
        let is_name = |text: &str| {
            let name = text.strip_prefix('.').unwrap_or(text);
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            text == "*" || !name.is_empty() && name.bytes().all(fits)
        };
        let is_origin = |text: &str| {
            let host = text.split_once("://").map_or("", |(_, host)| host);
            let fits = |byte: u8| byte.is_ascii_graphic() && !b"/?#@".contains(&byte);
            matches!(text, "*" | "null") || !host.is_empty() && host.bytes().all(fits)
        };
        let config = self.config;
        if let Some(odd) = config.allowed_hosts.iter().find(|host| !is_name(host)) {
            let mend = "give names without scheme and port, like kv.example.com";
            self.problem("allowed_hosts", format!("{odd:?} is no host's name"), mend);
        }
        if let Some(odd) = config.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            let mend = "give scheme, host and port without a path, like https://app.example.com";
            self.problem("allowed_origins", format!("{odd:?} is no origin"), mend);
        }
    }

    fn memory(&mut self) {
        let config = self.config;
        let ratio = config.eviction_ratio;
        if !(ratio > 0.0 && ratio <= 1.0) {
            let mend = "give a number above 0 and at most 1";
            self.problem("eviction_ratio", format!("{ratio} is out of range"), mend);
        }
        if self.sound(&["replication_log_mb", "max_memory_mb"])
            && config.replication_log_bytes() > config.memory_bytes_max() / 2
        {
            let what =
                format!("{} MB are more than half of max_memory_mb", config.replication_log_mb);
            self.problem("replication_log_mb", what, "raise max_memory_mb, or lower this");
        }
        if self.sound(&["max_value_bytes", "max_memory_mb"])
            && config.max_value_bytes > config.memory_bytes_max()
        {
            let what = format!(
                "{} bytes are more than max_memory_mb allows in all",
                config.max_value_bytes
            );
            self.warning("max_value_bytes", what, "raise max_memory_mb, or lower this");
        }
    }

    fn quorums(&mut self) {
        let config = self.config;
        let copies = config.replication_factor;
        for (key, quorum) in
            [("write_quorum", config.write_quorum), ("read_quorum", config.read_quorum)]
        {
            if self.sound(&[key, "replication_factor"]) && quorum.of(copies) > copies {
                let what = format!("{} is above replication_factor ({copies})", quorum.of(copies));
                self.problem(key, what, format!("give at most {copies}, or -1 for all copies"));
            }
        }
        if config.read_quorum == Quorum::Count(0) {
            self.problem("read_quorum", "0 asks no copy", "give 1 or more, or -1 for all copies");
        }
    }

    fn membership(&mut self) {
        let config = self.config;
        if self.sound(&["suspect_timeout", "dead_timeout"])
            && config.dead_timeout <= config.suspect_timeout
        {
            let what = format!(
                "{} is not above suspect_timeout ({})",
                super::span::text(config.dead_timeout),
                super::span::text(config.suspect_timeout)
            );
            self.problem("dead_timeout", what, "give more than suspect_timeout");
        }
        if self.sound(&["suspect_timeout", "gossip_interval"])
            && config.suspect_timeout <= config.gossip_interval
        {
            let what = format!(
                "{} is not above gossip_interval ({})",
                super::span::text(config.suspect_timeout),
                super::span::text(config.gossip_interval)
            );
            self.problem("suspect_timeout", what, "give several times gossip_interval");
        }
    }

    fn secrets(&mut self) {
        for (key, secrets) in
            [("auth_token", &self.config.auth_token), ("gossip_secret", &self.config.gossip_secret)]
        {
            if secrets.iter().any(|secret| secret.expose() == Secret::REDACTED) {
                let what = "is the text that stands for a secret where it is not shown";
                self.problem(key, what, "give the secret itself");
            }
            if secrets.iter().any(|secret| secret.expose().len() < SECRET_BYTES_ADVISED) {
                let what = format!("is shorter than {SECRET_BYTES_ADVISED} characters");
                self.warning(key, what, "make a long one with `aegiskv token`");
            }
        }
        let in_a_header = |secret: &Secret| secret.expose().bytes().all(|b| b.is_ascii_graphic());
        let config = self.config;
        let named = config.auth_tokens.iter().map(|token| {
            let whose = format!("the file of {} ({}) ", token.name, shown(&token.file));
            ("auth_tokens", &token.secrets, whose)
        });
        for (key, secrets, whose) in
            [("auth_token", &config.auth_token, String::new())].into_iter().chain(named)
        {
            if !secrets.iter().all(in_a_header) {
                let what = "holds a space or another character that an HTTP header cannot carry";
                let mend = "use letters, digits and ASCII punctuation";
                self.problem(key, format!("{whose}{what}"), mend);
            }
        }
        for (what, mend) in tokens::oddities(&config.auth_tokens, &config.auth_token) {
            self.warning("auth_tokens", what, mend);
        }
        for (what, mend) in tokens::faults(&self.config.auth_tokens, &self.config.auth_token) {
            self.problem("auth_tokens", what, mend);
        }
        for name in tokens::short(&self.config.auth_tokens) {
            let what = format!("that of {name} is shorter than {SECRET_BYTES_ADVISED} characters");
            self.warning("auth_tokens", what, "make a long one with `aegiskv token`");
        }
    }

    fn tls(&mut self, to_start: bool) {
        let config = self.config;
        if config.tls_enabled {
            self.tls_files(to_start);
        }
        if config.tls_client_auth == TlsClientAuth::Required {
            if !config.tls_enabled && self.sound(&["tls_enabled"]) {
                let what = "is required, but tls_enabled is false";
                self.problem("tls_client_auth", what, "set tls_enabled to true");
            }
            if config.tls_ca_file.is_none() && self.sound(&["tls_ca_file"]) {
                let what = "is required, but tls_ca_file is not set";
                self.problem("tls_client_auth", what, "name the CA's PEM file in tls_ca_file");
            }
        }
    }

    fn tls_files(&mut self, to_start: bool) {
        let config = self.config;
        let certificates =
            self.tls_file("tls_cert_file", &config.tls_cert_file, tls_files::certificates);
        let key = self.tls_file("tls_key_file", &config.tls_key_file, tls_files::private_key);
        if to_start
            && let (Some(chain), Some(path)) = (&certificates, &config.tls_cert_file)
            && let Err(fault) = tls_files::in_time(path, &chain[0])
        {
            self.problem("tls_cert_file", fault.what, fault.mend);
        }
        if let (Some(certificates), Some(key)) = (certificates, key)
            && let Err((at_fault, fault)) = tls_files::pair(certificates, &key)
        {
            self.problem(at_fault, fault.what, fault.mend);
        }
        if config.tls_ca_file.is_some() {
            self.tls_file("tls_ca_file", &config.tls_ca_file, tls_files::authorities);
        }
    }

    /// What `read` finds in a file that TLS needs; notes what is wrong.
    fn tls_file<T>(
        &mut self,
        key: &'static str,
        file: &Option<PathBuf>,
        read: impl FnOnce(&Path) -> Result<T, tls_files::Fault>,
    ) -> Option<T> {
        match file {
            Some(path) => match read(path) {
                Ok(found) => return Some(found),
                Err(fault) => self.problem(key, fault.what, fault.mend),
            },
            None if self.sound(&[key]) => {
                self.problem(key, "is not set, but tls_enabled is true", "name the PEM file");
            }
            None => {}
        }
        None
    }

    fn logs(&mut self) {
        if let Err(error) = logging::check_level(&self.config.log_level) {
            let what = error.to_string();
            let mend = "give trace, debug, info, warn, error or off, as in info,aegiskv::wal=debug";
            self.problem("log_level", what, mend);
        }
    }

    fn regions(&mut self) {
        let config = self.config;
        if config.cross_dc_replication
            && config.cross_dc_seeds.is_empty()
            && self.sound(&["cross_dc_seeds"])
        {
            let what = "is on, but cross_dc_seeds names no other cluster";
            self.warning("cross_dc_replication", what, "name nodes of the other clusters");
        }
        if !config.cross_dc_replication
            && !config.cross_dc_seeds.is_empty()
            && self.sound(&["cross_dc_replication"])
        {
            let what = "has no effect while cross_dc_replication is off";
            self.warning("cross_dc_seeds", what, "set cross_dc_replication to true");
        }
    }
}

/// Puts the secrets of `file`, if one is named, in the place of `secrets`, and gives its name.
pub(super) fn read_secret_file(
    key: &'static str,
    secrets: &mut Secrets,
    file: Option<&PathBuf>,
    origins: &Origins,
) -> Result<Option<String>, Problem> {
    let Some(path) = file else { return Ok(None) };
    let file_key = format!("{key}_file");
    let origin = origins.of(&file_key).to_owned();
    if !secrets.is_empty() {
        let what = format!("is given, and so is {key} (by {})", origins.of(key));
        return Err(Problem::with_key(file_key, origin, what, "keep one; null unsets a key"));
    }
    *secrets =
        secrets_in(path).map_err(|(what, mend)| Problem::with_key(file_key, origin, what, mend))?;
    Ok(Some(shown(path)))
}

/// The secrets in a file; there is one at least.
///
/// # Errors
/// What is wrong with the file, and how to mend it.
pub(super) fn secrets_in(path: &Path) -> Result<Secrets, (String, String)> {
    let fault = |what: String, mend: &str| (format!("{} {what}", shown(path)), mend.to_owned());
    let text = read_regular(path, SECRET_FILE_BYTES_MAX).map_err(|error| {
        let mend = "name a file that this user can read";
        if error.kind() == io::ErrorKind::NotFound && path.components().count() == 1 {
            // Somebody's slip: the secret itself.
            let what =
                "what is named is no file, and is not shown, since it may be the secret itself";
            return (what.to_owned(), mend.to_owned());
        }
        fault(format!("cannot be read: {error}"), mend)
    })?;
    if let Some((what, mend)) = byte_order_mark(&text) {
        return Err(fault(what.to_string(), mend));
    }
    // The bytes are not repeated: they are most likely a secret.
    let text = String::from_utf8(text)
        .map_err(|_| fault("is not UTF-8 text".to_owned(), "write one secret a line"))?;
    let secrets = Secrets::from_lines(&text);
    if secrets.is_empty() {
        return Err(fault("holds no secret".to_owned(), "write one secret a line"));
    }
    Ok(secrets)
}

/// A path as an error shows it, on one line whatever it holds.
pub(super) fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

/// Opens a file, unless it is a pipe or a device, which could keep the reader waiting for ever.
fn open_regular(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// Reads a file whole, up to `bytes_max`.
pub(super) fn read_regular(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let what = format!("larger than {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}
