//! Refusals and failures as clients see them: `application/problem+json`, RFC 9457.
//!
//! Every answer of this port that is no success is made here, so that each carries its type, says
//! what, where and how to mend it, and claims `not-applied` only where nothing was ordered.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{
    ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, ETAG, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use serde::Serialize;

use super::answer::{self, ACKS, Body, Response};
use super::framing::Doubt;
use super::json;
use super::sites::Foreign;
use crate::coordinator::{Acks, Error};
use crate::entry::{KeyError, Version};

/// Media type of all of them.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// When a client that was refused for a passing reason should come back, at the earliest.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// What went wrong, as far as a client can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Malformed,
    Unauthorized,
    Forbidden,
    NoSuchRoute,
    Absent,
    MethodNotAllowed,
    Timeout,
    NotAnInteger,
    ConditionFailed,
    TooLarge,
    UnsupportedMediaType,
    NotImplemented,
    RateLimited,
    Unavailable,
    OutcomeUnknown,
    Full,
}

impl Kind {
    pub(super) const ALL: [Self; 16] = [
        Self::Malformed,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NoSuchRoute,
        Self::Absent,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::NotAnInteger,
        Self::ConditionFailed,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::NotImplemented,
        Self::RateLimited,
        Self::Unavailable,
        Self::OutcomeUnknown,
        Self::Full,
    ];

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NoSuchRoute | Self::Absent => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::NotAnInteger => StatusCode::CONFLICT,
            Self::ConditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::OutcomeUnknown => StatusCode::GATEWAY_TIMEOUT,
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// The problem's type: stable, for programs.
    pub(super) fn urn(self) -> &'static str {
        match self {
            Self::Malformed => "urn:aegiskv:problem:malformed",
            Self::Unauthorized => "urn:aegiskv:problem:unauthorized",
            Self::Forbidden => "urn:aegiskv:problem:forbidden",
            Self::NoSuchRoute => "urn:aegiskv:problem:no-such-route",
            Self::Absent => "urn:aegiskv:problem:absent",
            Self::MethodNotAllowed => "urn:aegiskv:problem:method-not-allowed",
            Self::Timeout => "urn:aegiskv:problem:timeout",
            Self::NotAnInteger => "urn:aegiskv:problem:not-an-integer",
            Self::ConditionFailed => "urn:aegiskv:problem:condition-failed",
            Self::TooLarge => "urn:aegiskv:problem:too-large",
            Self::UnsupportedMediaType => "urn:aegiskv:problem:unsupported-media-type",
            Self::NotImplemented => "urn:aegiskv:problem:not-implemented",
            Self::RateLimited => "urn:aegiskv:problem:rate-limited",
            Self::Unavailable => "urn:aegiskv:problem:unavailable",
            Self::OutcomeUnknown => "urn:aegiskv:problem:outcome-unknown",
            Self::Full => "urn:aegiskv:problem:full",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Malformed => "malformed request",
            Self::Unauthorized => "a valid token is needed",
            Self::Forbidden => "not allowed",
            Self::NoSuchRoute => "no such route",
            Self::Absent => "no such key",
            Self::MethodNotAllowed => "method not allowed here",
            Self::Timeout => "the request took too long to arrive",
            Self::NotAnInteger => "the value is not a 64-bit integer, or would leave its range",
            Self::ConditionFailed => "the condition did not hold",
            Self::TooLarge => "too large",
            Self::UnsupportedMediaType => "unsupported media type",
            Self::NotImplemented => "not implemented",
            Self::RateLimited => "rate limit reached",
            Self::Unavailable => "not available now",
            Self::OutcomeUnknown => "outcome unknown",
            Self::Full => "memory is full",
        }
    }

    fn retryable(self) -> bool {
        matches!(self, Self::Timeout | Self::RateLimited | Self::Unavailable | Self::OutcomeUnknown)
    }
}

/// A request that did not succeed.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) kind: Kind,
    detail: Cow<'static, str>,
    etag: Option<Version>,
    acks: Option<Acks>,
    retry_after: Option<Duration>,
    retryable: bool,
    /// Whether it may have been applied all the same.
    outcome_unknown: bool,
    allow: Option<&'static str>,
    /// The request's body went through a coding.
    coded: bool,
    /// For how long the copy that answered has been out of touch with its primary.
    stale: Option<Duration>,
    /// The request's body was left unread: the connection cannot go on.
    closes: bool,
}

/// What the document says of a problem; also a failed operation's result in a batch.
#[derive(Serialize)]
pub(super) struct Fields<'a> {
    #[serde(rename = "type")]
    urn: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    outcome: &'static str,
    retryable: bool,
    /// The live entry's version, where a condition failed on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_ms: Option<u64>,
}

impl Problem {
    pub(super) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            etag: None,
            acks: None,
            retry_after: None,
            retryable: kind.retryable(),
            outcome_unknown: kind == Kind::OutcomeUnknown,
            allow: None,
            coded: false,
            stale: None,
            closes: false,
        }
    }

    pub(super) fn absent() -> Self {
        Self::new(Kind::Absent, "there is no live value under this key")
    }

    pub(super) fn condition_failed(live: Option<Version>) -> Self {
        let detail = match live {
            Some(_) => {
                "the live value does not meet the condition; its present version stands beside \
                 this: read it again, then decide"
            }
            None => "there is no live value, and the condition asks for one",
        };
        Self { etag: live, ..Self::new(Kind::ConditionFailed, detail) }
    }

    pub(super) fn not_an_integer() -> Self {
        Self::new(
            Kind::NotAnInteger,
            "the present value is not a 64-bit integer in decimal, or the sum would leave its \
             range; PUT an integer first, or add less",
        )
    }

    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(Kind::MethodNotAllowed, format!("this address answers to {allow}"))
        }
    }

    pub(super) fn rate_limited(wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..Self::new(
                Kind::RateLimited,
                "more operations than rate_limit and rate_burst allow on one connection, or the \
                 token's rate on all of its own; wait as long as Retry-After says",
            )
        }
    }

    /// More operations at once than the rate ever lets through.
    pub(super) fn beyond_rate(count: usize, at_once: NonZeroU32) -> Self {
        let detail = format!(
            "the batch has {count} operations, and the rate allows at most {at_once} at once \
             (rate_burst, or the token's rate); send fewer in one, or lines of \
             application/x-ndjson, which are slowed down instead"
        );
        Self::new(Kind::RateLimited, detail).final_answer()
    }

    /// A value or batch beyond its limit.
    pub(super) fn body_too_large(bytes_max: usize, limit: &'static str) -> Self {
        Self::new(
            Kind::TooLarge,
            format!("the body is larger than {bytes_max} bytes, the limit ({limit})"),
        )
    }

    /// A body that went through a coding. The field that says so is not kept with the value.
    pub(super) fn coded() -> Self {
        Self {
            coded: true,
            ..Self::new(
                Kind::UnsupportedMediaType,
                "Content-Encoding is not stored with a value, so nobody could tell what its bytes \
                 stand for; send them as they are, or name the coding in Content-Type \
                 (application/gzip) and leave Content-Encoding out",
            )
        }
    }

    pub(super) fn unavailable(detail: &'static str) -> Self {
        Self { retry_after: Some(RETRY_AFTER_MIN), ..Self::new(Kind::Unavailable, detail) }
    }

    /// Says that the request's body was not read to its end.
    pub(super) fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// Says that trying again as it is cannot help.
    pub(super) fn final_answer(mut self) -> Self {
        self.retryable = false;
        self.retry_after = None;
        self
    }

    /// Says that some of it may have been applied.
    pub(super) fn with_outcome_unknown(mut self) -> Self {
        self.outcome_unknown = true;
        self
    }

    pub(super) fn with_acks(mut self, acks: Option<Acks>) -> Self {
        self.acks = acks;
        self
    }

    /// Of a read: for how long the copy that answered has been out of touch with its primary.
    pub(super) fn with_stale(mut self, stale: Option<Duration>) -> Self {
        self.stale = stale;
        self
    }

    /// The members of the problem's document.
    pub(super) fn fields(&self) -> Fields<'_> {
        Fields {
            urn: self.kind.urn(),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            outcome: if self.outcome_unknown { "unknown" } else { "not-applied" },
            retryable: self.retryable,
            version: self.etag.map(|v| v.to_string()),
            stale_ms: self.stale.map(json::millis),
        }
    }

    /// The answer.
    pub(super) fn into_response(self) -> Response {
        let body = match self.kind {
            // The everyday answer of a cache is worth not being written anew each time.
            Kind::Absent => ABSENT.clone(),
            _ => self.document(),
        };
        let mut response = answer::with_body(self.kind.status(), Body::from(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(version) = self.etag {
            headers.insert(ETAG, answer::etag(version));
        }
        if let Some(acks) = self.acks {
            headers.insert(ACKS, answer::acks(acks));
        }
        if let Some(wait) = self.retry_after {
            let seconds = wait.max(RETRY_AFTER_MIN).as_millis().div_ceil(1000);
            headers.insert(RETRY_AFTER, answer::number(seconds as u64));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.coded {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.kind == Kind::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"aegiskv\""));
        }
        response
    }

    fn document(&self) -> Bytes {
        let document = serde_json::to_vec(&self.fields());
        Bytes::from(document.expect("plain fields always serialize"))
    }
}

static ABSENT: LazyLock<Bytes> = LazyLock::new(|| Problem::absent().document());

impl From<Doubt> for Problem {
    fn from(doubt: Doubt) -> Self {
        let kind = match doubt {
            Doubt::Coding => Kind::NotImplemented,
            _ => Kind::Malformed,
        };
        Self::new(kind, doubt.to_string()).closing()
    }
}

impl From<Foreign> for Problem {
    fn from(foreign: Foreign) -> Self {
        Self::new(Kind::Forbidden, foreign.to_string())
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        let kind = match error {
            KeyError::Empty => Kind::Malformed,
            KeyError::TooLong { .. } => Kind::TooLarge,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        match error {
            Error::Unavailable { retry_after, .. } => {
                Self { retry_after: Some(retry_after), ..Self::new(Kind::Unavailable, detail) }
            }
            Error::Unknown { .. } => Self::new(Kind::OutcomeUnknown, detail),
            Error::Full { .. } => Self::new(Kind::Full, detail),
            Error::IdempotencyMismatch | Error::Cursor => Self::new(Kind::Malformed, detail),
        }
    }
}
