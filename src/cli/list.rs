//! Listing keys: the pages of `GET /v1/kv`, and the `list` command.
//!
//! Invariant: at most one page is held at a time, and pages shrink where values are large.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::client::{Client, Query};
use super::connection::Connection;
use super::exit::{Exit, output};
use crate::backup::Entry;
use crate::entry::{KEY_BYTES_CEILING, Key, Version};

/// Most keys the server gives in one page.
const PAGE_KEYS_MAX: usize = 1000;

/// Keys asked for in the first page when values come along.
const PAGE_KEYS_FIRST: usize = 100;

/// A page with values should not grow past this, in bytes.
const PAGE_BYTES_AIM: usize = 8 << 20;

/// The keys with a prefix, page by page.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    client: &'a Client,
    prefix: Vec<u8>,
    values: bool,
    limit: usize,
    cursor: Option<String>,
    ended: bool,
}

/// One page as the server sent it.
#[derive(Debug, Deserialize)]
pub(crate) struct Page<T> {
    /// Its keys.
    pub(crate) keys: Vec<T>,
    cursor: Option<String>,
}

/// One key of a page.
#[derive(Debug, Deserialize)]
pub(crate) struct Listed {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    /// How `value` is written: `utf8` or `base64`.
    encoding: Option<String>,
    content_type: Option<String>,
    ttl_ms: Option<u64>,
    version: Option<String>,
}

impl<'a> Pages<'a> {
    /// All keys that begin with `prefix`, with their values if `values`.
    pub(crate) fn new(client: &'a Client, prefix: &[u8], values: bool) -> Self {
        let limit = if values { PAGE_KEYS_FIRST } else { PAGE_KEYS_MAX };
        Self { client, prefix: prefix.to_vec(), values, limit, cursor: None, ended: false }
    }

    /// The next page, or `None` after the last. `wanted` bounds its keys, if given.
    ///
    /// # Errors
    /// The request failed, or its answer is no page.
    pub(crate) async fn next<T: DeserializeOwned>(
        &mut self,
        wanted: Option<usize>,
    ) -> anyhow::Result<Option<Page<T>>> {
        if self.ended {
            return Ok(None);
        }
        let limit = wanted.unwrap_or(usize::MAX).min(self.limit);
        let query = Query::default()
            .with("prefix", &self.prefix)
            .with("limit", limit.to_string())
            .with_some("values", self.values.then_some("1"))
            .with_some("cursor", self.cursor.as_ref());
        let request = self.client.request(Method::GET, &format!("/v1/kv{}", query.as_str()));
        let response = self.client.send_in_turn(request).await?;
        let body = self.client.body(response).await?;
        let page: Page<T> =
            serde_json::from_slice(&body).context("the server's answer is no page of keys")?;
        if self.values && !page.keys.is_empty() {
            let bytes_per_key = (body.len() / page.keys.len()).max(1);
            self.limit = (PAGE_BYTES_AIM / bytes_per_key).clamp(1, PAGE_KEYS_MAX);
        }
        self.cursor.clone_from(&page.cursor);
        self.ended = page.cursor.is_none();
        Ok(Some(page))
    }
}

impl Listed {
    /// The key's bytes.
    ///
    /// # Errors
    /// There is none, or it is not base64.
    pub(crate) fn key(&self) -> anyhow::Result<Vec<u8>> {
        match (&self.key, &self.key_base64) {
            (Some(text), _) => Ok(text.clone().into_bytes()),
            (None, Some(text)) => {
                BASE64.decode(text).context("the server's answer holds a key that is not base64")
            }
            (None, None) => bail!("the server's answer holds an item without a key"),
        }
    }

    /// The value's bytes.
    ///
    /// # Errors
    /// There is none, or it is not in the encoding that it names.
    pub(crate) fn value(&self) -> anyhow::Result<Vec<u8>> {
        let text = self.value.as_ref();
        let text = text.context("the server's answer holds a key without its value")?;
        match self.encoding.as_deref() {
            None | Some("utf8") => Ok(text.clone().into_bytes()),
            Some("base64") => {
                BASE64.decode(text).context("the server's answer holds a value that is not base64")
            }
            Some(other) => {
                bail!("the server's answer holds a value in an unknown encoding, {other}")
            }
        }
    }

    /// The item as a line of a dump; `None` if its time has just run out.
    ///
    /// # Errors
    /// The item has no value, or is otherwise not of the documented form.
    pub(crate) fn into_entry(self) -> anyhow::Result<Option<Entry>> {
        if self.ttl_ms == Some(0) {
            return Ok(None);
        }
        let value = self.value().context("the server's answer holds a key without its value")?;
        Ok(Some(Entry {
            key: Key::new(self.key()?, KEY_BYTES_CEILING)?,
            value: Bytes::from(value),
            content_type: self.content_type,
            ttl: self.ttl_ms.map(Duration::from_millis),
            version: self.version.and_then(|text| text.parse().ok()).map(Version),
        }))
    }
}

/// Lists keys, one a line, in no particular order
///
/// With --values each line is the key, a tab and the value, both as they are; use --json where
/// they may hold line ends.
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Only keys that begin with this
    #[arg(long, default_value = "")]
    prefix: OsString,

    /// At most so many keys (default: all)
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// With their values
    #[arg(long)]
    values: bool,

    /// One JSON object a line: key, size, TTL, version
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl List {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let mut pages = Pages::new(&client, self.prefix.as_bytes(), self.values);
        let mut wanted = self.limit.unwrap_or(usize::MAX);
        let mut out = output();
        while wanted > 0 {
            let printed = if self.json {
                let Some(page) = pages.next::<Json>(Some(wanted)).await? else {
                    break;
                };
                for object in page.keys.iter().take(wanted) {
                    writeln!(out, "{object}")?;
                }
                page.keys.len()
            } else {
                let Some(page) = pages.next::<Listed>(Some(wanted)).await? else {
                    break;
                };
                for listed in page.keys.iter().take(wanted) {
                    self.print(listed, &mut out)?;
                }
                page.keys.len()
            };
            wanted = wanted.saturating_sub(printed);
            out.flush()?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }

    fn print(&self, listed: &Listed, out: &mut impl Write) -> anyhow::Result<()> {
        out.write_all(&listed.key()?)?;
        if self.values {
            out.write_all(b"\t")?;
            out.write_all(&listed.value()?)?;
        }
        out.write_all(b"\n")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(json: &str) -> Listed {
        serde_json::from_str(json).expect("the test's JSON is right")
    }

    #[test]
    fn a_listed_key_becomes_a_dumped_entry() {
        let item = listed(
            r#"{"key_base64":"/w==","value":"AP4=","encoding":"base64","size":2,"content_type":"text/plain","ttl_ms":5,"version":"7"}"#,
        );
        let entry = item.into_entry().expect("well-formed").expect("still alive");
        assert_eq!(
            entry.to_line(),
            "{\"key_base64\":\"/w==\",\"value_base64\":\"AP4=\",\"content_type\":\"text/plain\",\"ttl_ms\":5,\"version\":\"7\"}\n"
        );
    }

    #[test]
    fn a_key_whose_time_has_run_out_is_not_dumped() {
        let item = listed(r#"{"key":"a","value":"v","ttl_ms":0,"version":"7"}"#);
        assert_eq!(item.into_entry().expect("well-formed"), None);
    }

    #[test]
    fn a_key_without_its_value_is_an_error() {
        let item = listed(r#"{"key":"a","ttl_ms":null,"version":"7"}"#);
        assert!(item.into_entry().is_err());
    }
}
