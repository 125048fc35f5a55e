//! The lines of a dump: one entry a line, as JSON (NDJSON), and a last line that says how many there
//! are. Written by `aegiskv dump`, read by `aegiskv import`.
//!
//! Invariant: what [`Entry::to_line`] writes, [`Entry::parse`] reads back equal, whatever bytes
//! the key and the value hold; likewise [`End`]. Pure: no file and no connection is touched here.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::entry::{KEY_BYTES_CEILING, Key, KeyError, Version};

/// One key with all that a dump keeps of it.
///
/// # Format
/// A line is a JSON object with these members, and no others, ended by a line feed:
///
/// | member | meaning |
/// |---|---|
/// | `key` or `key_base64` | the key; the second (RFC 4648 §4) where it is not UTF-8 |
/// | `value` or `value_base64` | the value, likewise |
/// | `content_type` | as stored; absent if none was |
/// | `ttl_ms` | milliseconds that were left when the line was written; absent if it never expires |
/// | `version` | the version at that time, in decimal text; kept for the reader, not restored |
///
/// # Caveats
/// The time to live is relative: an entry imported a day after the dump lives a day longer than
/// the one that was dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value's bytes.
    pub value: Bytes,
    /// The stored content type, if any.
    pub content_type: Option<String>,
    /// Time left to live, in whole milliseconds, at least one; `None` if it never expires.
    pub ttl: Option<Duration>,
    /// The version at the time of the dump.
    pub version: Option<Version>,
}

/// The end of a dump: a dump without it is a part of one.
///
/// # Format
/// A JSON object with the member `dumped_keys`, how many entries there are before it, and no other,
/// ended by a line feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// How many entries the dump has.
    #[serde(rename = "dumped_keys")]
    pub keys: u64,
}

/// No [`End`] is longer, in bytes.
pub const END_BYTES_MAX: usize = 64;

/// Why a line is no [`Entry`].
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Not JSON, a member of the wrong type, or one that is not known.
    #[error("not a line of a dump")]
    Json(#[from] serde_json::Error),
    /// Neither or both of two members that exclude each other.
    #[error("give either {member} or {member}_base64, and not both")]
    OneOf {
        /// The member's plain name.
        member: &'static str,
    },
    /// A member is not base64.
    #[error("{member} is not base64 (RFC 4648, with padding)")]
    Base64 {
        /// The member's name.
        member: &'static str,
        /// What is wrong with it.
        source: base64::DecodeError,
    },
    /// The key is empty or too long.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A time to live of nothing.
    #[error("ttl_ms is 0; give at least 1, or leave it out for an entry that never expires")]
    NoTime,
    /// The version is not a number.
    #[error("version is not a decimal number in quotes")]
    Version(#[source] std::num::ParseIntError),
}

/// The line as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    content_type: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    version: Option<Cow<'a, str>>,
}

impl End {
    /// The end as a line, with its line feed.
    pub fn to_line(&self) -> String {
        let mut text = serde_json::to_string(self).expect("a number always serialises");
        text.push('\n');
        text
    }

    /// Reads a line, with or without its line feed; `None` if it is no end.
    pub fn parse(line: &[u8]) -> Option<Self> {
        if line.len() > END_BYTES_MAX { None } else { serde_json::from_slice(line).ok() }
    }
}

impl Entry {
    /// The entry as a line, with its line feed.
    pub fn to_line(&self) -> String {
        let (key, key_base64) = text_or_base64(self.key.as_bytes());
        let (value, value_base64) = text_or_base64(&self.value);
        let line = Line {
            key,
            key_base64,
            value,
            value_base64,
            content_type: self.content_type.as_deref().map(Cow::Borrowed),
            ttl_ms: self.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            version: self.version.map(|version| Cow::Owned(version.to_string())),
        };
        let mut text = serde_json::to_string(&line).expect("texts and numbers always serialise");
        text.push('\n');
        text
    }

    /// Reads a line, with or without its line feed.
    ///
    /// # Errors
    /// [`LineError`], which says what to correct.
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        let line: Line<'_> = serde_json::from_slice(line)?;
        let key = bytes_of(("key", line.key), ("key_base64", line.key_base64))?;
        let value = bytes_of(("value", line.value), ("value_base64", line.value_base64))?;
        if line.ttl_ms == Some(0) {
            return Err(LineError::NoTime);
        }
        let version = line.version.map(|text| text.parse().map(Version)).transpose();
        Ok(Self {
            key: Key::new(key, KEY_BYTES_CEILING)?,
            value,
            content_type: line.content_type.map(Cow::into_owned),
            ttl: line.ttl_ms.map(Duration::from_millis),
            version: version.map_err(LineError::Version)?,
        })
    }
}

/// The bytes as text if they are UTF-8, else in base64.
fn text_or_base64(bytes: &[u8]) -> (Option<Cow<'_, str>>, Option<Cow<'_, str>>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(Cow::Borrowed(text)), None),
        Err(_) => (None, Some(Cow::Owned(BASE64.encode(bytes)))),
    }
}

type Member<'a> = (&'static str, Option<Cow<'a, str>>);

fn bytes_of(plain: Member<'_>, encoded: Member<'_>) -> Result<Bytes, LineError> {
    match (plain, encoded) {
        ((_, Some(text)), (_, None)) => Ok(Bytes::from(text.into_owned())),
        ((_, None), (member, Some(text))) => match BASE64.decode(text.as_bytes()) {
            Ok(bytes) => Ok(Bytes::from(bytes)),
            Err(source) => Err(LineError::Base64 { member, source }),
        },
        ((member, _), _) => Err(LineError::OneOf { member }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(key: &'static [u8], value: &'static [u8]) -> Entry {
        Entry {
            key: Key::new(key, KEY_BYTES_CEILING).expect("the test's key is in range"),
            value: Bytes::from_static(value),
            content_type: None,
            ttl: None,
            version: None,
        }
    }

    #[test]
    fn text_stays_readable() {
        let full = Entry {
            content_type: Some("text/plain".to_owned()),
            ttl: Some(Duration::from_millis(1500)),
            version: Some(Version(77)),
            ..entry(b"a", b"x\"y")
        };
        assert_eq!(
            full.to_line(),
            "{\"key\":\"a\",\"value\":\"x\\\"y\",\"content_type\":\"text/plain\",\"ttl_ms\":1500,\"version\":\"77\"}\n"
        );
    }

    #[test]
    fn bytes_that_are_not_text_go_through_base64() {
        let line = entry(b"\xff", b"\x00\xfe").to_line();
        assert_eq!(line, "{\"key_base64\":\"/w==\",\"value_base64\":\"AP4=\"}\n");
        let read = Entry::parse(line.as_bytes()).expect("a line just written is read");
        assert_eq!(read, entry(b"\xff", b"\x00\xfe"));
    }

    #[test]
    fn the_end_says_how_many_there_were() {
        assert_eq!(End { keys: 3 }.to_line(), "{\"dumped_keys\":3}\n");
        assert_eq!(End::parse(b"{\"dumped_keys\":3}"), Some(End { keys: 3 }));
        assert_eq!(
            End::parse(End { keys: u64::MAX }.to_line().as_bytes()),
            Some(End { keys: u64::MAX })
        );
        for other in ["", "{}", r#"{"dumped_keys":-1}"#, r#"{"key":"a","value":"dumped_keys"}"#] {
            assert_eq!(End::parse(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn faults_are_told_apart() {
        let fault = |line: &str| Entry::parse(line.as_bytes()).expect_err("the line is at fault");
        assert!(matches!(fault("{"), LineError::Json(_)));
        assert!(matches!(fault(r#"{"key":"a","value":"b","tll_ms":5}"#), LineError::Json(_)));
        assert!(matches!(fault(r#"{"value":"b"}"#), LineError::OneOf { member: "key" }));
        assert!(matches!(
            fault(r#"{"key":"a","value":"b","value_base64":"Yg=="}"#),
            LineError::OneOf { member: "value" }
        ));
        assert!(matches!(
            fault(r#"{"key":"a","value_base64":"?"}"#),
            LineError::Base64 { member: "value_base64", .. }
        ));
        assert!(matches!(fault(r#"{"key":"","value":"b"}"#), LineError::Key(KeyError::Empty)));
        assert!(matches!(fault(r#"{"key":"a","value":"b","ttl_ms":0}"#), LineError::NoTime));
        assert!(matches!(
            fault(r#"{"key":"a","value":"b","version":"v1"}"#),
            LineError::Version(_)
        ));
    }

    proptest! {
        #[test]
        fn every_entry_survives_its_line(
            key in proptest::collection::vec(any::<u8>(), 1..40),
            value in proptest::collection::vec(any::<u8>(), 0..200),
            content_type in proptest::option::of(".{0,20}"),
            ttl in proptest::option::of(1..u64::MAX),
            version in proptest::option::of(any::<u64>()),
        ) {
            let entry = Entry {
                key: Key::new(key, KEY_BYTES_CEILING).expect("1 to 39 bytes"),
                value: Bytes::from(value),
                content_type,
                ttl: ttl.map(Duration::from_millis),
                version: version.map(Version),
            };
            let line = entry.to_line();
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert_eq!(Entry::parse(line.as_bytes()).expect("own line"), entry);
        }

        #[test]
        fn no_line_makes_the_reader_panic(line in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Entry::parse(&line);
        }
    }
}
