//! Answers: their bodies, and the header fields that all or many of them carry.
//!
//! Invariant: every answer made here carries `X-Content-Type-Options` and
//! `Content-Security-Policy`, so that a browser never runs what somebody stored.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, StatusCode};

use crate::coordinator::Acks;
use crate::entry::Version;

/// `Aegis-TTL`: seconds that the value still has to live.
pub(super) const TTL: HeaderName = HeaderName::from_static("aegis-ttl");
/// `Aegis-Acks`: how many copies had the write, of how many.
pub(super) const ACKS: HeaderName = HeaderName::from_static("aegis-acks");
/// `Aegis-Stale`: for how long the copy that answered has been out of touch with its primary.
pub(super) const STALE: HeaderName = HeaderName::from_static("aegis-stale");

/// What a value without a type is served as.
pub(super) const OCTET_STREAM: &str = "application/octet-stream";

/// Header fields that most answers fill.
const HEADERS_TYPICAL: usize = 8;

pub(super) type Response = hyper::Response<Body>;

/// An answer's body: whole, or streamed.
#[derive(Debug)]
pub(super) enum Body {
    /// The whole of it; empty once sent.
    Whole(Bytes),
    /// A large value as the table has it, of which account is kept ([`super::held::Outgoing`]).
    Value(Bytes),
    /// Made as it is sent.
    Streamed(axum::body::Body),
}

impl Body {
    /// Bytes that it holds for its client, if that is known before it is sent.
    pub(super) fn charged_bytes(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Value(_) => 0,
            Self::Streamed(body) => {
                hyper::body::Body::size_hint(body).exact().unwrap_or(0) as usize
            }
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) | Self::Value(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) | Self::Value(bytes) => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Self::Streamed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) | Self::Value(bytes) => bytes.is_empty(),
            Self::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) | Self::Value(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

/// An answer with `body` and the header fields that every answer carries.
pub(super) fn with_body(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(HEADERS_TYPICAL);
    harden(headers);
    response
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    with_body(status, Body::Whole(Bytes::new()))
}

/// A JSON document.
pub(super) fn json(document: Bytes) -> Response {
    let mut response = with_body(StatusCode::OK, Body::Whole(document));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Adds what keeps a browser from running a stored value.
pub(super) fn harden(headers: &mut HeaderMap) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
}

/// An entity tag, RFC 9110 §8.8.3: always strong.
pub(super) fn etag(version: Version) -> HeaderValue {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(version.0).as_bytes();
    // A quote, at most 20 digits, a quote.
    let mut quoted = [b'"'; 22];
    quoted[1..=digits.len()].copy_from_slice(digits);
    HeaderValue::from_bytes(&quoted[..digits.len() + 2]).expect("quotes and digits are visible")
}

/// A number as a header field's value.
pub(super) fn number(n: u64) -> HeaderValue {
    HeaderValue::from(n)
}

/// The value of `Aegis-Stale`: whole seconds, rounded up.
pub(super) fn stale(span: Duration) -> HeaderValue {
    let seconds = span.as_millis().div_ceil(1000);
    HeaderValue::try_from(format!("{seconds}s")).expect("digits are visible")
}

/// The value of `Aegis-Acks`.
pub(super) fn acks(acks: Acks) -> HeaderValue {
    match (acks.had, acks.of) {
        (1, 1) => HeaderValue::from_static("1/1"),
        (had, of) => HeaderValue::try_from(format!("{had}/{of}")).expect("digits are visible"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_the_version_in_quotes_for_the_shortest_and_the_longest() {
        assert_eq!(etag(Version(7)), "\"7\"");
        assert_eq!(etag(Version(u64::MAX)), "\"18446744073709551615\"");
    }
}
