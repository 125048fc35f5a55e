//! The commands for one key: `get`, `put`, `del`, `incr`.
//!
//! Invariant: a value passes through unchanged, byte for byte, in both directions.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use reqwest::header::{CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH};
use reqwest::{Method, RequestBuilder};

use super::client::{self, Client, Query, version_of};
use super::connection::Connection;
use super::exit::{Exit, Usage, note, output};

/// How many copies must take part in a request.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Consistency {
    /// Do not wait for any copy
    Async,
    /// One copy
    One,
    /// A majority
    Quorum,
    /// Every copy
    All,
    /// As if there were one copy
    Linearizable,
}

impl Consistency {
    fn name(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::One => "one",
            Self::Quorum => "quorum",
            Self::All => "all",
            Self::Linearizable => "linearizable",
        }
    }
}

/// Writes a key's value to standard output, byte for byte
///
/// Ends with code 3, and no output, if the key is absent.
#[derive(Args, Debug)]
pub(crate) struct Get {
    /// The key
    key: OsString,

    /// Print a JSON object with the value, its content type, version and TTL
    #[arg(long)]
    json: bool,

    /// How many copies must agree (default: the server's read_quorum)
    #[arg(long, value_enum, value_name = "LEVEL")]
    consistency: Option<Consistency>,

    /// Show at least the write that answered with this version
    #[arg(long, value_name = "VERSION")]
    min_version: Option<String>,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Get {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let query = Query::default()
            .with_some("format", self.json.then_some("json"))
            .with_some("consistency", self.consistency.map(Consistency::name))
            .with_some("min_version", self.min_version.as_ref());
        let request = client.key_request(Method::GET, self.key.as_bytes(), &query)?;
        let mut response = match client.send(request).await {
            Ok(response) => response,
            Err(client::Error::Refused(problem)) if problem.status == 404 => {
                return Ok(Exit::NotFound);
            }
            Err(error) => return Err(error.into()),
        };
        let origin = self.connection.addr;
        let mut out = output();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| client.explain(&origin, error))?
        {
            out.write_all(&chunk)?;
        }
        if self.json {
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }
}

/// Stores a value, and prints the version it got
///
/// Without VALUE, or with `-`, the value is read from standard input; `@FILE` reads a file. A
/// lock is `put KEY NAME --if-absent --ttl 30s`; the version printed is its fencing token, and
/// `del KEY --if-match VERSION` gives it back. If a condition fails, nothing is changed and the
/// code is 1.
#[derive(Args, Debug)]
pub(crate) struct Put {
    /// The key
    key: OsString,

    /// The value, `-` for standard input, or `@FILE`
    #[arg(allow_negative_numbers = true)]
    value: Option<OsString>,

    /// Time to live: 500ms, 30s, 15m, 2h, 7d, seconds, or `keep` for what the key had
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,

    /// Only if there is no such key yet
    #[arg(long, conflicts_with = "if_match")]
    if_absent: bool,

    /// Only if the key is at this version
    #[arg(long, value_name = "VERSION")]
    if_match: Option<String>,

    /// Content type to store with the value
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    /// How many copies must have it (default: the server's write_quorum)
    #[arg(long, value_enum, value_name = "LEVEL")]
    consistency: Option<Consistency>,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Put {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let query = Query::default()
            .with_some("ttl", self.ttl.as_ref())
            .with_some("consistency", self.consistency.map(Consistency::name));
        let mut request = client.key_request(Method::PUT, self.key.as_bytes(), &query)?;
        if self.if_absent {
            request = request.header(IF_NONE_MATCH, "*");
        }
        request = with_version(request, self.if_match.as_deref());
        if let Some(content_type) = &self.content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let request = request.body(value(self.value)?);
        let what = if self.if_absent { "not stored: the key exists" } else { "not stored" };
        let response = match client.send(request).await {
            Ok(response) => response,
            Err(error) => return condition_failed(what, error),
        };
        if let Some(version) = version_of(&response) {
            let mut out = output();
            writeln!(out, "{version}")?;
            out.flush()?;
        }
        Ok(Exit::Done)
    }
}

/// Deletes a key, or every key with a prefix
///
/// Deleting a key that is not there succeeds as well. With --prefix it prints how many keys went.
#[derive(Args, Debug)]
pub(crate) struct Del {
    /// The key
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    key: Option<OsString>,

    /// Delete every key that begins with this instead
    #[arg(long, conflicts_with = "if_match")]
    prefix: Option<OsString>,

    /// Only count what --prefix would delete
    #[arg(long, requires = "prefix")]
    dry_run: bool,

    /// Only if the key is at this version
    #[arg(long, value_name = "VERSION")]
    if_match: Option<String>,

    /// How many copies must have it (default: the server's write_quorum)
    #[arg(long, value_enum, value_name = "LEVEL")]
    consistency: Option<Consistency>,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Del {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let query =
            Query::default().with_some("consistency", self.consistency.map(Consistency::name));
        if let Some(prefix) = &self.prefix {
            let query = query
                .with("prefix", prefix.as_bytes())
                .with_some("dry_run", self.dry_run.then_some("1"));
            let path = format!("/v1/kv{}", query.as_str());
            let response = client.send(client.request(Method::DELETE, &path)).await?;
            let body = client.body(response).await?;
            let mut out = output();
            writeln!(out, "{}", deleted(&body).context("the server's answer has no count")?)?;
            out.flush()?;
            return Ok(Exit::Done);
        }
        let key = self.key.unwrap_or_default();
        let request = client.key_request(Method::DELETE, key.as_bytes(), &query)?;
        match client.send(with_version(request, self.if_match.as_deref())).await {
            Ok(_) => Ok(Exit::Done),
            Err(error) => condition_failed("not deleted", error),
        }
    }
}

/// Adds to a number, atomically, and prints the result
///
/// A key that is not there counts as 0.
#[derive(Args, Debug)]
pub(crate) struct Incr {
    /// The key
    key: OsString,

    /// How much to add; may be negative
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    by: i64,

    /// Time to live, if this creates the key: 500ms, 30s, 15m, 2h, 7d or seconds
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Incr {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let query = Query::default()
            .with("op", "incr")
            .with("by", self.by.to_string())
            .with_some("ttl", self.ttl.as_ref());
        let request = client.key_request(Method::POST, self.key.as_bytes(), &query)?;
        let response = client.send(request).await?;
        let body = client.body(response).await?;
        let mut out = output();
        out.write_all(&body)?;
        out.write_all(b"\n")?;
        out.flush()?;
        Ok(Exit::Done)
    }
}

fn with_version(request: RequestBuilder, version: Option<&str>) -> RequestBuilder {
    match version {
        Some(version) => request.header(IF_MATCH, format!("\"{}\"", version.trim_matches('"'))),
        None => request,
    }
}

/// Tells of a condition that failed; anything else stays an error.
fn condition_failed(what: &str, error: client::Error) -> anyhow::Result<Exit> {
    match error {
        client::Error::Refused(problem) if problem.status == 412 => {
            match problem.version {
                Some(version) => note(format_args!("aegiskv: {what}; it is at version {version}")),
                None => note(format_args!("aegiskv: {what}; the key is absent")),
            }
            Ok(Exit::Failed)
        }
        error => Err(error.into()),
    }
}

fn deleted(body: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(body).ok()?.get("deleted")?.as_u64()
}

/// The bytes that the command line means by VALUE.
fn value(argument: Option<OsString>) -> anyhow::Result<Vec<u8>> {
    let bytes = argument.as_deref().map(OsStr::as_bytes);
    match bytes {
        None if io::stdin().is_terminal() => {
            Err(Usage("give a VALUE, @FILE, or - to type it until Ctrl-D".to_owned()).into())
        }
        None | Some(b"-") => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            Ok(bytes)
        }
        Some([b'@', path @ ..]) => client::read(Path::new(OsStr::from_bytes(path)), "the value"),
        Some(_) => Ok(argument.unwrap_or_default().into_vec()),
    }
}
