//! One operation of a batch: as it is written in JSON, and as it is carried out.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hyper::header::HeaderValue;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Unexpected, Visitor};

use super::super::conditions::{self, Etags};
use super::super::params;
use super::super::problem::{Kind, Problem};
use super::super::settings::{BATCH_OPS_MAX, KEYED_BATCH_OPS_MAX};
use super::Shared;
use crate::coordinator::Write;
use crate::entry::{CONTENT_TYPE_BYTES_MAX, Key};
use crate::shard::{Condition, Operation, Ttl};

/// The names of the operations that a batch may hold.
pub(in super::super) const OPS: [&str; 5] = ["put", "get", "delete", "incr", "touch"];

/// The fields that an operation may have beside `op`.
pub(in super::super) const FIELDS: [&str; 9] = [
    "key",
    "key_base64",
    "value",
    "value_base64",
    "ttl",
    "content_type",
    "if_match",
    "if_none_match",
    "by",
];

/// Why a batch was not begun.
#[derive(Debug, thiserror::Error)]
pub(super) enum DocumentError {
    #[error(
        "the body is no batch: {0}; it is {{\"ops\":[{{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}},…]}}"
    )]
    Json(#[from] serde_json::Error),
    #[error(
        "the batch has {ops} operations; the limit is {BATCH_OPS_MAX}; send lines of application/x-ndjson for any number"
    )]
    TooMany { ops: usize },
    #[error(
        "the batch has {ops} operations under one Idempotency-Key; the limit is \
         {KEYED_BATCH_OPS_MAX}; cut it up, each part under a key of its own"
    )]
    TooManyKeyed { ops: usize },
    #[error("ops[{index}]: {error}")]
    Op { index: usize, error: OpError },
}

/// What is wrong with one operation.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpError {
    #[error("it is no operation in JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it needs one of key and key_base64")]
    NoKey,
    #[error("{0}")]
    Key(#[from] crate::entry::KeyError),
    #[error("put needs one of value and value_base64")]
    NoValue,
    #[error("the value has {bytes} bytes; the limit is {bytes_max} (max_value_bytes)")]
    ValueTooLong { bytes: usize, bytes_max: usize },
    #[error("{field} is not standard base64 with padding")]
    Base64 { field: &'static str },
    #[error("{op} takes no {field}")]
    Stray { op: &'static str, field: &'static str },
    #[error("{field} is malformed; it is {expected}")]
    Field { field: &'static str, expected: &'static str },
}

impl OpError {
    fn kind(&self) -> Kind {
        match self {
            Self::ValueTooLong { .. } | Self::Key(crate::entry::KeyError::TooLong { .. }) => {
                Kind::TooLarge
            }
            _ => Kind::Malformed,
        }
    }
}

impl From<OpError> for Problem {
    fn from(error: OpError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OpName {
    Put,
    Get,
    Delete,
    Incr,
    Touch,
}

impl OpName {
    fn label(self) -> &'static str {
        OPS[self as usize]
    }
}

/// A time to live as text, or as a number of seconds.
#[derive(Debug)]
enum TtlField {
    Seconds(i64),
    Text(String),
}

/// An operation as it is written. `null` stands for a field that is left out: many clients write
/// every field that they know.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    op: OpName,
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    ttl: Option<TtlField>,
    content_type: Option<String>,
    if_match: Option<String>,
    if_none_match: Option<String>,
    by: Option<Whole>,
}

/// A whole number. JSON knows one kind of number only, so `5.0` is one as well.
#[derive(Debug)]
struct Whole(i64);

/// Takes a number in any of JSON's spellings; what else there may be, `text` takes.
struct Numbers<T> {
    expecting: &'static str,
    number: fn(i64) -> T,
    text: Option<fn(String) -> T>,
}

impl<T> Visitor<'_> for Numbers<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        Ok((self.number)(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        let wrong = |_| E::invalid_value(Unexpected::Unsigned(number), &self);
        i64::try_from(number).map_err(wrong).map(self.number)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        /// Up to here a float holds every whole number.
        const EXACT_MAX: f64 = (1_i64 << 53) as f64;
        if number.fract() != 0.0 || number.abs() > EXACT_MAX {
            return Err(E::invalid_value(Unexpected::Float(number), &self));
        }
        Ok((self.number)(number as i64))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        match self.text {
            Some(take) => Ok(take(text.to_owned())),
            None => Err(E::invalid_type(Unexpected::Str(text), &self)),
        }
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = "a 64-bit integer";
        deserializer.deserialize_any(Numbers { expecting, number: Self, text: None })
    }
}

impl<'de> Deserialize<'de> for TtlField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Numbers {
            expecting: "a ttl such as \"30s\", or a number of seconds",
            number: Self::Seconds,
            text: Some(Self::Text),
        })
    }
}

/// An operation, ready to be carried out.
#[derive(Debug)]
pub(super) enum Step {
    Get(Key),
    Write(Write),
    /// It was no operation, or not one that may be; only to be answered.
    Refused(Problem),
}

impl Step {
    /// The key that it is about.
    pub(super) fn key(&self) -> Option<&Key> {
        match self {
            Self::Get(key) => Some(key),
            Self::Write(write) => Some(&write.key),
            Self::Refused(_) => None,
        }
    }

    /// Reads a line.
    pub(super) fn of_line(line: &[u8], index: u64, shared: &Shared) -> Self {
        let parsed = serde_json::from_slice::<Written>(line).map_err(OpError::from);
        let step = parsed.and_then(|written| written.into_step(index, shared));
        step.unwrap_or_else(|error| Self::Refused(error.into()))
    }
}

/// A batch as one document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Batch {
    ops: Ops,
}

#[derive(Debug)]
struct Ops {
    written: Vec<Written>,
    /// Also those beyond the limit, which are not kept.
    count: usize,
}

impl<'de> Deserialize<'de> for Ops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;

        impl<'de> Visitor<'de> for Bounded {
            type Value = Ops;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of operations")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Ops, A::Error> {
                let mut written = Vec::new();
                while written.len() < BATCH_OPS_MAX
                    && let Some(op) = seq.next_element()?
                {
                    written.push(op);
                }
                let mut count = written.len();
                if count == BATCH_OPS_MAX {
                    while seq.next_element::<IgnoredAny>()?.is_some() {
                        count += 1;
                    }
                }
                Ok(Ops { written, count })
            }
        }

        deserializer.deserialize_seq(Bounded)
    }
}

impl Batch {
    pub(super) fn parse(body: &[u8]) -> Result<Self, DocumentError> {
        let batch: Self = serde_json::from_slice(body)?;
        match batch.ops.count {
            ops if ops > BATCH_OPS_MAX => Err(DocumentError::TooMany { ops }),
            _ => Ok(batch),
        }
    }

    /// All operations, checked before the first is begun.
    pub(super) fn into_steps(self, shared: &Shared) -> Result<Vec<Step>, Problem> {
        let steps = self.ops.written.into_iter().enumerate().map(|(index, written)| {
            written.into_step(index as u64, shared).map_err(|error| {
                let kind = error.kind();
                Problem::new(kind, DocumentError::Op { index, error }.to_string())
            })
        });
        steps.collect()
    }
}

impl Written {
    fn into_step(mut self, index: u64, shared: &Shared) -> Result<Step, OpError> {
        let key = Key::new(self.take_key()?, shared.limits.key_bytes)?;
        let condition = self.take_condition()?;
        let (ttl, by) = (self.take_ttl()?, self.by.take().map(|Whole(by)| by));
        let op = self.op;
        let operation = match op {
            OpName::Get => None,
            OpName::Put => Some(Operation::Put {
                value: self.take_value(shared.limits.value_bytes)?,
                content_type: self.take_content_type()?,
                ttl: ttl.unwrap_or(Ttl::Unlimited),
            }),
            OpName::Delete => Some(Operation::Delete),
            OpName::Touch => Some(Operation::Touch { ttl: ttl.unwrap_or(Ttl::Unlimited) }),
            OpName::Incr => Some(Operation::Incr {
                by: by.unwrap_or(1),
                ttl: match ttl {
                    None | Some(Ttl::Unlimited) => None,
                    Some(Ttl::For(span)) => Some(span),
                    Some(Ttl::Keep) => {
                        let expected = "a time without keep: it counts at creation only";
                        return Err(OpError::Field { field: "ttl", expected });
                    }
                },
            }),
        };
        let timed = matches!(op, OpName::Put | OpName::Incr | OpName::Touch);
        let strays = [
            ("ttl", ttl.is_some() && !timed),
            ("by", by.is_some() && op != OpName::Incr),
            ("value", self.value.is_some()),
            ("value_base64", self.value_base64.is_some()),
            ("content_type", self.content_type.is_some()),
            ("condition", op == OpName::Get && condition != Condition::Always),
        ];
        if let Some((field, _)) = strays.into_iter().find(|(_, stray)| *stray) {
            return Err(OpError::Stray { op: op.label(), field });
        }
        Ok(match operation {
            None => Step::Get(key),
            Some(operation) => Step::Write(Write {
                key,
                operation,
                condition,
                idempotency: shared.idempotency.map(|id| id.step(index)),
                consistency: shared.consistency,
            }),
        })
    }

    fn take_key(&mut self) -> Result<Bytes, OpError> {
        match (self.key.take(), self.key_base64.take()) {
            (Some(text), None) => Ok(Bytes::from(text)),
            (None, Some(text)) => decoded(&text, "key_base64"),
            _ => Err(OpError::NoKey),
        }
    }

    fn take_value(&mut self, bytes_max: usize) -> Result<Bytes, OpError> {
        let value = match (self.value.take(), self.value_base64.take()) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(text)) => decoded(&text, "value_base64")?,
            _ => return Err(OpError::NoValue),
        };
        if value.len() > bytes_max {
            return Err(OpError::ValueTooLong { bytes: value.len(), bytes_max });
        }
        Ok(value)
    }

    fn take_content_type(&mut self) -> Result<Bytes, OpError> {
        let Some(text) = self.content_type.take() else {
            return Ok(Bytes::new());
        };
        // It will stand in a header field.
        if text.len() > CONTENT_TYPE_BYTES_MAX || HeaderValue::from_str(&text).is_err() {
            let expected = "at most 255 visible characters";
            return Err(OpError::Field { field: "content_type", expected });
        }
        Ok(Bytes::from(text))
    }

    fn take_ttl(&mut self) -> Result<Option<Ttl>, OpError> {
        let text = match self.ttl.take() {
            None => return Ok(None),
            Some(TtlField::Text(text)) => text,
            Some(TtlField::Seconds(seconds)) => seconds.to_string(),
        };
        let malformed = OpError::Field { field: "ttl", expected: params::TTL_FORMS };
        params::ttl(&text).map(Some).ok_or(malformed)
    }

    fn take_condition(&mut self) -> Result<Condition, OpError> {
        let if_match = etags(self.if_match.take(), "if_match")?;
        let if_none_match = etags(self.if_none_match.take(), "if_none_match")?;
        conditions::of_write(if_match, if_none_match).map_err(|_| OpError::Field {
            field: "if_match",
            expected: "sent without if_none_match: only one condition can stand",
        })
    }
}

/// ETags as in the header fields, or a version without quotes.
fn etags(text: Option<String>, field: &'static str) -> Result<Option<Etags>, OpError> {
    let Some(text) = text else { return Ok(None) };
    let etags = match params::digits(&text) {
        Some(version) => Some(Etags::of(version)),
        None => Etags::parse(std::iter::once(text.as_bytes())),
    };
    let expected = "* or versions as this server gave them out";
    etags.map(Some).ok_or(OpError::Field { field, expected })
}

fn decoded(text: &str, field: &'static str) -> Result<Bytes, OpError> {
    BASE64.decode(text).map(Bytes::from).map_err(|_| OpError::Base64 { field })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::api::settings::Settings;
    use crate::api::standing::Standing;
    use crate::coordinator::Consistency;
    use crate::entry::Version;

    fn step(line: &str) -> Result<Step, String> {
        let limits = Settings { max_value_bytes: 4, ..Settings::default() }.limits();
        let shared = Shared {
            limits,
            standing: Arc::new(Standing::new(None)),
            consistency: Consistency::One,
            idempotency: None,
        };
        match Step::of_line(line.as_bytes(), 0, &shared) {
            Step::Refused(problem) => {
                Err(serde_json::to_value(problem.fields()).unwrap()["detail"].to_string())
            }
            step => Ok(step),
        }
    }

    #[test]
    fn operations_are_read_with_all_their_fields() {
        let line = r#"{"op":"put","key":"a","value_base64":"AP8=","ttl":"30s","if_match":"\"7\"","content_type":"a/b"}"#;
        match step(line) {
            Ok(Step::Write(write)) => {
                assert_eq!(write.key.as_bytes(), b"a");
                assert_eq!(write.condition, Condition::Is(Version(7)));
                assert_eq!(
                    write.operation,
                    Operation::Put {
                        value: Bytes::from_static(&[0, 0xff]),
                        content_type: Bytes::from_static(b"a/b"),
                        ttl: Ttl::For(Duration::from_secs(30)),
                    }
                );
            }
            other => panic!("{other:?}"),
        }
        match step(r#"{"op":"incr","key_base64":"/w==","by":-3.0,"ttl":60}"#) {
            Ok(Step::Write(write)) => {
                assert_eq!(write.key.as_bytes(), [0xff]);
                let ttl = Some(Duration::from_secs(60));
                assert_eq!(write.operation, Operation::Incr { by: -3, ttl });
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn null_stands_for_a_field_that_is_left_out() {
        let nulls: String = FIELDS[1..].iter().map(|field| format!(",\"{field}\":null")).collect();
        let left_out = step(r#"{"op":"touch","key":"a"}"#).unwrap();
        let null = step(&format!(r#"{{"op":"touch","key":"a"{nulls}}}"#)).unwrap();
        assert_eq!(format!("{null:?}"), format!("{left_out:?}"));
    }

    #[test]
    fn what_is_wrong_with_an_operation_is_named() {
        for (line, named) in [
            (r#"{"op":"get"}"#, "key"),
            (r#"{"op":"get","key":"a","key_base64":"YQ=="}"#, "key"),
            (r#"{"op":"get","key":""}"#, "empty"),
            (r#"{"op":"put","key":"a"}"#, "value"),
            (r#"{"op":"put","key":"a","value":"12345"}"#, "max_value_bytes"),
            (r#"{"op":"put","key":"a","value_base64":"!"}"#, "value_base64"),
            (r#"{"op":"put","key":"a","value":"1","ttl":0}"#, "ttl"),
            (r#"{"op":"put","key":"a","value":"1","ttl":-1}"#, "ttl"),
            (r#"{"op":"put","key":"a","value":"1","ttl":1.5}"#, "ttl"),
            (r#"{"op":"put","key":null,"value":"1"}"#, "key"),
            (r#"{"op":"put","key":"a","value":null}"#, "value"),
            (r#"{"op":null,"key":"a"}"#, "column 7"),
            (r#"{"op":"get","key":"a","tll":null}"#, "tll"),
            (r#"{"op":"incr","key":"a","by":1.5}"#, "64-bit integer"),
            (r#"{"op":"incr","key":"a","by":"1"}"#, "64-bit integer"),
            (r#"{"op":"put","key":"a","value":"1","tll":"1s"}"#, "tll"),
            (r#"{"op":"put","key":"a","value":"1","content_type":"a\nb"}"#, "content_type"),
            (r#"{"op":"get","key":"a","value":"1"}"#, "value"),
            (r#"{"op":"delete","key":"a","ttl":"1s"}"#, "ttl"),
            (r#"{"op":"touch","key":"a","by":1}"#, "by"),
            (r#"{"op":"incr","key":"a","by":9223372036854775808}"#, "9223372036854775808"),
            (r#"{"op":"incr","key":"a","ttl":"keep"}"#, "keep"),
            (r#"{"op":"get","key":"a","if_match":"7"}"#, "condition"),
            (r#"{"op":"drop","key":"a"}"#, "drop"),
            ("[]", "op"),
            ("{", "EOF"),
        ] {
            let detail = step(line).unwrap_err();
            assert!(detail.contains(named), "{line}: {detail}");
        }
    }

    #[test]
    fn a_batch_beyond_the_limit_is_counted_and_not_kept() {
        let ops = vec![r#"{"op":"get","key":"a"}"#; 10_001].join(",");
        match Batch::parse(format!("{{\"ops\":[{ops}]}}").as_bytes()) {
            Err(DocumentError::TooMany { ops: 10_001 }) => {}
            other => panic!("{other:?}"),
        }
    }
}
