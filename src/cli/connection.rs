//! Which node a client command talks to, and as whom: flags, the environment, addresses.
//!
//! Invariant: a secret is never part of a URL or an error text. A flag given anywhere on the
//! command line outranks the environment.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};

use super::exit::Usage;

/// The port of the client API where the address names none.
const CLIENT_PORT: u16 = 7700;

/// The operations port lies this far above the client port.
const OPS_PORT_OFFSET: u16 = 2;

/// How to reach a node.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Client API of any node: HOST, HOST:PORT or a URL
    #[arg(long, value_name = "ADDR", env = "AEGISKV_ADDR", hide_env_values = true)]
    #[arg(default_value = "127.0.0.1:7700")]
    pub(crate) addr: String,

    /// Operations API of that node (default: the client API's host and port + 2)
    #[arg(long, value_name = "ADDR", env = "AEGISKV_OPS_ADDR", hide_env_values = true)]
    pub(crate) ops_addr: Option<String>,

    /// Access token; others on this machine can see it here, so prefer the variable or --token-file
    #[arg(long, value_name = "TOKEN", env = "AEGISKV_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,

    /// File whose first line is the access token
    #[arg(long, value_name = "FILE", env = "AEGISKV_TOKEN_FILE", hide_env_values = true)]
    pub(crate) token_file: Option<PathBuf>,

    /// Certificates (PEM) that may sign the server's, instead of the system's own; implies https
    #[arg(long, value_name = "FILE", env = "AEGISKV_CA", hide_env_values = true)]
    pub(crate) ca: Option<PathBuf>,

    /// This client's certificate (PEM), where servers ask for one
    #[arg(long, value_name = "FILE", env = "AEGISKV_CERT", hide_env_values = true)]
    #[arg(requires = "key_file")]
    pub(crate) cert: Option<PathBuf>,

    /// The key (PEM) of --cert
    #[arg(id = "key_file", long = "key", value_name = "FILE", env = "AEGISKV_KEY")]
    #[arg(hide_env_values = true, requires = "cert")]
    pub(crate) key: Option<PathBuf>,

    /// Longest wait for a connection, and for each step of an answer
    #[arg(long, value_name = "TIME", default_value = "30s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

impl Connection {
    /// The flags that may also stand before the command.
    pub(crate) const IDS: &[&str] =
        &["addr", "ops_addr", "token", "token_file", "ca", "cert", "key_file", "timeout"];

    /// The flag of these that was given first, as it is written, if there was any.
    pub(crate) fn typed(matches: &ArgMatches) -> Option<String> {
        let typed = |id: &&&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let id = Self::IDS.iter().find(typed)?;
        Some(format!(
            "--{}",
            if *id == "key_file" { "key".to_owned() } else { id.replace('_', "-") }
        ))
    }

    /// Takes over what stood before the command on the command line (`early`), where the command's
    /// own flags (`late`) do not say otherwise.
    pub(crate) fn settle(&mut self, early: &ArgMatches, late: &ArgMatches) {
        let typed = |matches: &ArgMatches, id: &str| {
            matches.value_source(id) == Some(ValueSource::CommandLine)
        };
        let takes = |id: &str| typed(early, id) && !typed(late, id);
        let text = |id: &str| early.get_one::<String>(id).cloned();
        let path = |id: &str| early.get_one::<PathBuf>(id).cloned();
        if takes("addr") {
            self.addr = text("addr").unwrap_or_default();
        }
        if takes("ops_addr") {
            self.ops_addr = text("ops_addr");
        }
        if takes("token") {
            self.token = text("token");
        }
        if takes("token_file") {
            self.token_file = path("token_file");
        }
        if takes("ca") {
            self.ca = path("ca");
        }
        if takes("cert") {
            self.cert = path("cert");
        }
        if takes("key_file") {
            self.key = path("key_file");
        }
        if takes("timeout") {
            self.timeout = early.get_one("timeout").copied().unwrap_or(self.timeout);
        }
        let token_typed = typed(early, "token") || typed(late, "token");
        let file_typed = typed(early, "token_file") || typed(late, "token_file");
        if file_typed && !token_typed {
            self.token = None;
        }
    }

    /// The token to show, if any.
    ///
    /// # Errors
    /// The token file cannot be read, or is empty.
    pub(crate) fn secret(&self) -> anyhow::Result<Option<String>> {
        if let Some(token) = &self.token {
            return Ok(Some(token.clone()));
        }
        let Some(path) = &self.token_file else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the token file {}", path.display()))?;
        if text.starts_with('\u{feff}') {
            bail!("{} begins with a byte-order mark; save it as UTF-8 without one", path.display());
        }
        let first = text.lines().map(str::trim).find(|line| !line.is_empty());
        let first = first.with_context(|| format!("{} holds no token", path.display()))?;
        Ok(Some(first.to_owned()))
    }

    /// Where the client API is.
    ///
    /// # Errors
    /// [`Usage`] when the address is none.
    pub(crate) fn target(&self) -> Result<Target, Usage> {
        let tls = self.ca.is_some() || self.cert.is_some();
        Target::parse(&self.addr, tls).ok_or_else(|| {
            let addr = &self.addr;
            Usage(format!("{addr:?} is no address; give HOST, HOST:PORT or http(s)://HOST:PORT"))
        })
    }

    /// Where the operations API is.
    ///
    /// # Errors
    /// [`Usage`] when the address is none, or cannot be derived from the client API's.
    pub(crate) fn ops_target(&self) -> Result<Target, Usage> {
        match &self.ops_addr {
            Some(addr) => Target::parse(addr, false).ok_or_else(|| {
                Usage(format!("--ops-addr {addr:?} is no address; give HOST:PORT or a URL"))
            }),
            None => {
                let target = self.target()?;
                let port = target.port.checked_add(OPS_PORT_OFFSET).ok_or_else(|| {
                    Usage("no operations port lies above that one; give --ops-addr".to_owned())
                })?;
                // The operations API speaks plain HTTP.
                Ok(Target { tls: false, port, ..target })
            }
        }
    }
}

/// A server's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Whether to speak TLS.
    pub(crate) tls: bool,
    /// Host name or address; IPv6 without brackets.
    pub(crate) host: String,
    /// The port.
    pub(crate) port: u16,
}

impl Target {
    /// Reads HOST, HOST:PORT or a URL without a path; `tls` decides where no scheme does.
    fn parse(text: &str, tls: bool) -> Option<Self> {
        let (tls, rest, port) = match text.split_once("://") {
            None => (tls, text, CLIENT_PORT),
            Some(("http", rest)) => (false, rest, 80),
            Some(("https", rest)) => (true, rest, 443),
            Some(_) => return None,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) || rest.contains(char::is_whitespace) {
            return None;
        }
        let (host, port) = if let Some(bracketed) = rest.strip_prefix('[') {
            let (host, tail) = bracketed.split_once(']')?;
            (host, if tail.is_empty() { port } else { tail.strip_prefix(':')?.parse().ok()? })
        } else {
            match rest.split_once(':') {
                None => (rest, port),
                Some((_, tail)) if tail.contains(':') => (rest, port),
                Some((host, tail)) => (host, tail.parse().ok()?),
            }
        };
        let host = if host.is_empty() { "127.0.0.1" } else { host };
        Some(Self { tls, host: host.to_owned(), port })
    }

    /// `host:port`, as connections and the `Host` header want it.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The URL up to the path.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str, tls: bool) -> Option<String> {
        Target::parse(text, tls).map(|target| target.origin())
    }

    #[test]
    fn addresses_are_understood_as_people_write_them() {
        let is = |text, tls, expected: &str| {
            assert_eq!(origin(text, tls).as_deref(), Some(expected), "{text}");
        };
        is("kv1", false, "http://kv1:7700");
        is("kv1:7710", false, "http://kv1:7710");
        is(":7710", false, "http://127.0.0.1:7710");
        is("kv1", true, "https://kv1:7700");
        is("http://kv1:7710/", true, "http://kv1:7710");
        is("https://kv.example.com", false, "https://kv.example.com:443");
        is("[::1]:7710", false, "http://[::1]:7710");
        is("::1", false, "http://[::1]:7700");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["ftp://kv1", "kv1:port", "kv1:70000", "kv1/v1", "http://u:p@kv1", "[::1", "a b"]
        {
            assert_eq!(origin(text, false), None, "{text}");
        }
    }
}
