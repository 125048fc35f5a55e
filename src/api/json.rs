//! Entries as JSON. Bytes that are not UTF-8 show in base64, under a name or beside a mark that
//! says so.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::coordinator::Acks;
use crate::entry::{Timestamp, Version};
use crate::store::Found;

/// A key: `key`, or `key_base64`.
#[derive(Serialize)]
struct KeyText<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
}

impl<'a> KeyText<'a> {
    fn of(key: &'a [u8]) -> Self {
        match std::str::from_utf8(key) {
            Ok(text) => Self { key: Some(text), key_base64: None },
            Err(_) => Self { key: None, key_base64: Some(BASE64.encode(key)) },
        }
    }
}

/// A value: its text, and how that is to be read.
#[derive(Serialize)]
struct ValueText<'a> {
    value: Cow<'a, str>,
    encoding: &'static str,
    content_type: Option<Cow<'a, str>>,
}

impl<'a> ValueText<'a> {
    fn of(found: &'a Found) -> Self {
        let (value, encoding) = match std::str::from_utf8(found.entry.value_bytes()) {
            Ok(text) => (Cow::Borrowed(text), "utf8"),
            Err(_) => (Cow::Owned(BASE64.encode(found.entry.value_bytes())), "base64"),
        };
        Self { value, encoding, content_type: content_type(found) }
    }
}

fn content_type(found: &Found) -> Option<Cow<'_, str>> {
    let bytes = found.entry.content_type();
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes))
}

/// A version: digits in a string, since JavaScript's numbers end at 2^53.
pub(super) struct VersionText(pub(super) Version);

impl Serialize for VersionText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(itoa::Buffer::new().format(self.0.0))
    }
}

/// `1/1`.
pub(super) struct AcksText(pub(super) Acks);

impl Serialize for AcksText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{}", self.0.had, self.0.of))
    }
}

fn ttl_ms(found: &Found, now: Timestamp) -> Option<u64> {
    found.expires_at.map(|at| at.millis_after(now))
}

/// Appends `value` as JSON.
pub(super) fn append<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("plain fields into memory always serialize");
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    key: KeyText<'a>,
    #[serde(flatten)]
    value: ValueText<'a>,
    version: VersionText,
    ttl_ms: Option<u64>,
}

/// The document of `?format=json`.
pub(super) fn entry(found: &Found, now: Timestamp) -> Bytes {
    let mut out = Vec::with_capacity(found.entry.value_bytes().len() + 256);
    let value = ValueText::of(found);
    let (version, ttl_ms) = (VersionText(found.version), ttl_ms(found, now));
    append(&mut out, &Entry { key: KeyText::of(found.entry.key()), value, version, ttl_ms });
    Bytes::from(out)
}

#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    key: KeyText<'a>,
    size: usize,
    ttl_ms: Option<u64>,
    version: VersionText,
    #[serde(flatten)]
    value: Option<ValueText<'a>>,
}

/// Appends an entry as it stands in a listing.
pub(super) fn append_listed(out: &mut Vec<u8>, found: &Found, values: bool, now: Timestamp) {
    append(
        out,
        &Listed {
            key: KeyText::of(found.entry.key()),
            size: found.entry.value_bytes().len(),
            ttl_ms: ttl_ms(found, now),
            version: VersionText(found.version),
            value: values.then(|| ValueText::of(found)),
        },
    );
}

#[derive(Serialize)]
struct Got<'a> {
    status: u16,
    version: VersionText,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    content_type: Option<Cow<'a, str>>,
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_ms: Option<u64>,
}

/// A span in whole milliseconds.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The bytes that a value takes in JSON, and what stands around it.
pub(super) fn shown_bytes(value: &[u8]) -> usize {
    const AROUND: usize = 1 << 10;
    if std::str::from_utf8(value).is_err() {
        return value.len().div_ceil(3) * 4 + AROUND;
    }
    let escaped = |byte: &u8| match byte {
        b'"' | b'\\' | 8 | 9 | 10 | 12 | 13 => 2,
        0..32 => 6,
        _ => 1,
    };
    value.iter().map(escaped).sum::<usize>() + AROUND
}

/// Appends the result of a `get` in a batch.
pub(super) fn append_got(
    out: &mut Vec<u8>,
    found: &Found,
    stale: Option<Duration>,
    now: Timestamp,
) {
    let value = std::str::from_utf8(found.entry.value_bytes()).ok();
    append(
        out,
        &Got {
            status: 200,
            version: VersionText(found.version),
            value_base64: value.is_none().then(|| BASE64.encode(found.entry.value_bytes())),
            value,
            content_type: content_type(found),
            ttl_ms: ttl_ms(found, now),
            stale_ms: stale.map(millis),
        },
    );
}
