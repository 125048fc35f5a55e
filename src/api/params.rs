//! What a request says beside its body: the key in its path, its query, its conditions.
//!
//! Pure. Keys are percent-decoded exactly once and never cleaned as paths are.

use std::borrow::Cow;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{
    CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH,
};

use super::conditions::{self, Etags, ReadCondition};
use super::problem::{Kind, Problem};
use crate::coordinator::Consistency;
use crate::entry::Version;
use crate::shard::{Condition, Ttl};

/// The longest time to live: 100 years.
pub(super) const TTL_MAX: Duration = Duration::from_secs(36_500 * 86_400);

/// Parameters that one kind of request may take.
const PARAMETERS_MAX: usize = 6;

/// How much of what a client sent is shown back to it, in characters.
const SHOWN_CHARS_MAX: usize = 64;

/// What is wrong with a request, in words for the one who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error(
        "{place} holds a '%' that is not followed by two hexadecimal digits; write '%25' for the sign itself"
    )]
    Escape { place: &'static str },
    #[error("unknown query parameter '{name}'; this request takes {known}")]
    UnknownParameter { name: String, known: String },
    #[error("the query parameter '{name}' is given more than once")]
    Repeated { name: &'static str },
    #[error("the query parameter '{name}' is not UTF-8")]
    NotText { name: &'static str },
    #[error("'{given}' is no {name}; it is {expected}")]
    Value { name: &'static str, given: String, expected: &'static str },
    #[error("the query parameter '{name}' is missing; {why}")]
    Missing { name: &'static str, why: &'static str },
    #[error("the header field {name} is given more than once")]
    RepeatedHeader { name: &'static str },
    #[error("If-Match and If-None-Match cannot both stand; send one of them")]
    TwoConditions,
    #[error("this request takes no If-Match and no If-None-Match; {instead}")]
    NoConditions { instead: &'static str },
    #[error("a value is stored whole; send all of it, without Content-Range")]
    Range,
    #[error("the content type has {bytes} bytes; the limit is {bytes_max}")]
    ContentType { bytes: usize, bytes_max: usize },
    #[error("Idempotency-Key has {bytes} bytes; it takes 1 to {bytes_max}")]
    IdempotencyKey { bytes: usize, bytes_max: usize },
}

impl From<Malformed> for Problem {
    fn from(malformed: Malformed) -> Self {
        Self::new(Kind::Malformed, malformed.to_string())
    }
}

pub(super) const TTL_FORMS: &str = "a whole number above 0 with a unit, as in 500ms, 30s, 15m, \
     2h, 7d, or without one for seconds, up to 100 years; or keep";
const ETAG_FORMS: &str = "an ETag as this server gave it out, such as \"123\"";
pub(super) const ETAGS_FORMS: &str = "* or a list of ETags, each in its quotes, such as \"123\"";

/// Shows bytes that a client sent, shortened.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN_CHARS_MAX)]);
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < bytes.len() {
        shown.push('…');
    }
    shown
}

/// Percent-decodes once. `plus` tells whether '+' stands for a space, as it does in queries.
fn decode<'a>(raw: &'a [u8], plus: bool, place: &'static str) -> Result<Cow<'a, [u8]>, Malformed> {
    if !raw.iter().any(|b| *b == b'%' || (plus && *b == b'+')) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw.iter();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                let (high, low) = digit().zip(digit()).ok_or(Malformed::Escape { place })?;
                (high << 4 | low) as u8
            }
            b'+' if plus => b' ',
            other => *other,
        });
    }
    Ok(Cow::Owned(decoded))
}

/// The key in what follows `/v1/kv/`.
pub(super) fn key(raw: &[u8]) -> Result<Cow<'_, [u8]>, Malformed> {
    decode(raw, false, "the key")
}

/// A query, split; its values still encoded.
#[derive(Debug)]
pub(super) struct Query<'a> {
    known: &'static [&'static str],
    raw: [Option<&'a str>; PARAMETERS_MAX],
}

impl<'a> Query<'a> {
    /// Splits a query of a request that takes the parameters `known`.
    pub(super) fn parse(
        query: Option<&'a str>,
        known: &'static [&'static str],
    ) -> Result<Self, Malformed> {
        let mut raw = [None; PARAMETERS_MAX];
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(place) = known.iter().position(|k| *k == name) else {
                let known = known.join(", ");
                let known = if known.is_empty() { "none".to_owned() } else { known };
                return Err(Malformed::UnknownParameter { name: shown(name.as_bytes()), known });
            };
            if raw[place].replace(value).is_some() {
                return Err(Malformed::Repeated { name: known[place] });
            }
        }
        Ok(Self { known, raw })
    }

    /// Whether a parameter is given at all.
    pub(super) fn has(&self, name: &'static str) -> bool {
        self.raw(name).is_some()
    }

    fn raw(&self, name: &'static str) -> Option<&'a str> {
        self.known.iter().position(|k| *k == name).and_then(|place| self.raw[place])
    }

    /// A parameter's bytes, decoded.
    pub(super) fn bytes(&self, name: &'static str) -> Result<Option<Cow<'a, [u8]>>, Malformed> {
        self.raw(name).map(|raw| decode(raw.as_bytes(), true, name)).transpose()
    }

    /// A parameter as text, decoded.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<Cow<'a, str>>, Malformed> {
        let text = match self.bytes(name)? {
            None => return Ok(None),
            Some(Cow::Borrowed(bytes)) => std::str::from_utf8(bytes).map(Cow::Borrowed).ok(),
            Some(Cow::Owned(bytes)) => String::from_utf8(bytes).map(Cow::Owned).ok(),
        };
        text.map(Some).ok_or(Malformed::NotText { name })
    }

    /// A parameter that is one of a few words or numbers.
    pub(super) fn value<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Malformed> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let wrong = || Malformed::Value { name, given: shown(text.as_bytes()), expected };
        parse(&text).map(Some).ok_or_else(wrong)
    }

    /// `consistency`.
    pub(super) fn consistency(&self) -> Result<Consistency, Malformed> {
        let expected = "one of async, one, quorum, all, linearizable";
        let given = self.value("consistency", expected, |text| match text {
            "async" => Some(Consistency::Async),
            "one" => Some(Consistency::One),
            "quorum" => Some(Consistency::Quorum),
            "all" => Some(Consistency::All),
            "linearizable" => Some(Consistency::Linearizable),
            _ => None,
        })?;
        Ok(given.unwrap_or_default())
    }

    /// `ttl`; absent, there is no expiry.
    pub(super) fn ttl(&self) -> Result<Ttl, Malformed> {
        Ok(self.value("ttl", TTL_FORMS, ttl)?.unwrap_or(Ttl::Unlimited))
    }

    /// A parameter that is on or off.
    pub(super) fn flag(&self, name: &'static str) -> Result<bool, Malformed> {
        let given = self.value(name, "1 or 0", |text| match text {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        })?;
        Ok(given.unwrap_or(false))
    }
}

/// Reads a time to live.
pub(super) fn ttl(text: &str) -> Option<Ttl> {
    if text == "keep" {
        return Some(Ttl::Keep);
    }
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    if digits.starts_with('0') {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    let unit_millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let span = Duration::from_millis(number.checked_mul(unit_millis)?);
    (span <= TTL_MAX).then_some(Ttl::For(span))
}

/// Reads a version, with or without the quotes of an ETag.
pub(super) fn version(text: &str) -> Option<Version> {
    digits(match text.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => text,
    })
}

/// Reads a version as this server writes it, and in no other way.
pub(super) fn digits(text: &str) -> Option<Version> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    plain.then(|| text.parse().ok().map(Version)).flatten()
}

/// `min_version`.
pub(super) fn min_version(query: &Query<'_>) -> Result<Option<Version>, Malformed> {
    query.value("min_version", ETAG_FORMS, version)
}

/// The header fields that matter to a request for a key, gathered in one pass.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    headers: &'a HeaderMap,
    conditional: bool,
    /// The body went through a coding (`Content-Encoding`).
    coded: bool,
    /// The body is a part of something (`Content-Range`).
    ranged: bool,
    pub(super) content_type: Option<&'a HeaderValue>,
    pub(super) idempotency_key: Option<&'a HeaderValue>,
}

/// The client's own id for a write.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest `Idempotency-Key`, in bytes.
pub(super) const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

impl<'a> Fields<'a> {
    /// Picks them out of `headers`.
    pub(super) fn gather(headers: &'a HeaderMap) -> Result<Self, Malformed> {
        let mut fields = Self {
            headers,
            conditional: false,
            coded: false,
            ranged: false,
            content_type: None,
            idempotency_key: None,
        };
        for (name, value) in headers {
            let (place, name) = if name == CONTENT_TYPE {
                (&mut fields.content_type, "Content-Type")
            } else if name == IDEMPOTENCY_KEY {
                (&mut fields.idempotency_key, "Idempotency-Key")
            } else {
                fields.conditional |= name == IF_MATCH || name == IF_NONE_MATCH;
                fields.coded |= name == CONTENT_ENCODING && !is_identity(value);
                fields.ranged |= name == CONTENT_RANGE;
                continue;
            };
            if place.replace(value).is_some() {
                return Err(Malformed::RepeatedHeader { name });
            }
        }
        Ok(fields)
    }

    /// The lines of both conditions, to tell one request from another.
    pub(super) fn condition_lines(&self) -> impl Iterator<Item = &'a [u8]> {
        let lines = |name| self.headers.get_all(name).iter().map(HeaderValue::as_bytes);
        lines(IF_MATCH).chain(std::iter::once(&b""[..])).chain(lines(IF_NONE_MATCH))
    }

    fn etags(&self, name: HeaderName, shown_as: &'static str) -> Result<Option<Etags>, Malformed> {
        let lines = self.headers.get_all(name);
        let Some(first) = lines.iter().next() else { return Ok(None) };
        let etags = Etags::parse(lines.iter().map(HeaderValue::as_bytes));
        let (given, expected) = (shown(first.as_bytes()), ETAGS_FORMS);
        etags.map(Some).ok_or(Malformed::Value { name: shown_as, given, expected })
    }

    /// What must hold for a write.
    pub(super) fn condition(&self) -> Result<Condition, Malformed> {
        if !self.conditional {
            return Ok(Condition::Always);
        }
        conditions::of_write(
            self.etags(IF_MATCH, "If-Match")?,
            self.etags(IF_NONE_MATCH, "If-None-Match")?,
        )
    }

    /// What a reader has already, or insists on.
    pub(super) fn read_condition(&self) -> Result<ReadCondition, Malformed> {
        if !self.conditional {
            return Ok(ReadCondition::default());
        }
        Ok(ReadCondition {
            wanted: self.etags(IF_MATCH, "If-Match")?,
            known: self.etags(IF_NONE_MATCH, "If-None-Match")?,
        })
    }

    /// Refuses a body that is not what it stands for. Stored without what its header fields say of
    /// it, it would be served as something else.
    pub(super) fn plain_body(&self) -> Result<(), Problem> {
        match self {
            Self { coded: true, .. } => Err(Problem::coded()),
            Self { ranged: true, .. } => Err(Malformed::Range.into()),
            _ => Ok(()),
        }
    }

    /// Refuses a condition where there is nothing that could be compared.
    pub(super) fn unconditional(&self, instead: &'static str) -> Result<(), Malformed> {
        if self.conditional { Err(Malformed::NoConditions { instead }) } else { Ok(()) }
    }
}

/// Whether a `Content-Encoding` names nothing that was done to the body.
fn is_identity(value: &HeaderValue) -> bool {
    let mut codings = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_decoded_once_and_not_cleaned() {
        let decoded = |raw: &'static str| key(raw.as_bytes()).unwrap().into_owned();
        assert_eq!(decoded("a//b/../c/"), b"a//b/../c/");
        assert_eq!(decoded("a%2Fb%252F+c"), b"a/b%2F+c");
        assert_eq!(decoded("%ff%00"), [0xff, 0]);
        for bad in ["%", "%4", "%zz", "a%4", "%+1", "%%41"] {
            assert_eq!(key(bad.as_bytes()), Err(Malformed::Escape { place: "the key" }), "{bad}");
        }
    }

    #[test]
    fn ttls_are_read_as_documented() {
        let millis = |text| match ttl(text) {
            Some(Ttl::For(span)) => Some(span.as_millis()),
            _ => None,
        };
        assert_eq!(millis("500ms"), Some(500));
        assert_eq!(millis("30s"), Some(30_000));
        assert_eq!(millis("30"), Some(30_000));
        assert_eq!(millis("15m"), Some(900_000));
        assert_eq!(millis("2h"), Some(7_200_000));
        assert_eq!(millis("7d"), Some(604_800_000));
        assert_eq!(millis("36500d"), Some(3_153_600_000_000));
        assert_eq!(ttl("keep"), Some(Ttl::Keep));
        for bad in [
            "",
            "0",
            "0s",
            "-1",
            "-5m",
            "+5",
            "1.5s",
            "5 m",
            "s",
            "ms",
            "5S",
            "1w",
            "36501d",
            "05",
            "18446744073709551616",
            "18446744073709551615d",
            "inf",
            "Keep",
            "٣s",
        ] {
            assert_eq!(ttl(bad), None, "{bad}");
        }
    }

    #[test]
    fn unknown_and_repeated_parameters_are_named() {
        let error = Query::parse(Some("ttl=5&tll=6"), &["ttl", "consistency"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown query parameter 'tll'; this request takes ttl, consistency"
        );
        let error = Query::parse(Some("ttl=5&ttl=6"), &["ttl"]).unwrap_err();
        assert_eq!(error, Malformed::Repeated { name: "ttl" });
        assert!(Query::parse(Some(""), &[]).is_ok());
        assert!(Query::parse(Some("&&ttl=1&"), &["ttl"]).is_ok());
    }

    #[test]
    fn query_values_are_decoded_with_plus_as_space() {
        let query = Query::parse(Some("prefix=a+b%2Bc%ff"), &["prefix"]).unwrap();
        assert_eq!(query.bytes("prefix").unwrap().unwrap().as_ref(), b"a b+c\xff");
        assert_eq!(query.text("prefix"), Err(Malformed::NotText { name: "prefix" }));
        let query = Query::parse(Some("prefix=%4"), &["prefix"]).unwrap();
        assert_eq!(query.bytes("prefix"), Err(Malformed::Escape { place: "prefix" }));
    }

    #[test]
    fn a_write_takes_one_condition() {
        let condition = |lines: &[(HeaderName, &'static str)]| {
            let pairs = lines.iter().map(|(n, v)| (n.clone(), HeaderValue::from_static(v)));
            Fields::gather(&pairs.collect()).unwrap().condition()
        };
        assert_eq!(condition(&[]), Ok(Condition::Always));
        assert_eq!(condition(&[(IF_MATCH, "\"7\"")]), Ok(Condition::Is(Version(7))));
        assert_eq!(condition(&[(IF_NONE_MATCH, "*")]), Ok(Condition::Absent));
        let both = [(IF_MATCH, "*"), (IF_NONE_MATCH, "\"7\"")];
        assert_eq!(condition(&both), Err(Malformed::TwoConditions));
        let wrong = condition(&[(IF_MATCH, "7")]).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "'7' is no If-Match; it is * or a list of ETags, each in its quotes, such as \"123\""
        );
    }
}
