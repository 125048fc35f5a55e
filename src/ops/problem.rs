//! Errors of this port as `application/problem+json` (RFC 9457).

use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::api::framing::Doubt;

/// An error as its asker sees it.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    title: &'static str,
    detail: String,
    problems: Vec<String>,
    fields: Map<String, Value>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    problems: &'a [String],
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

impl Problem {
    fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        let (problems, fields) = (Vec::new(), Map::new());
        Self { status, title, detail: detail.into(), problems, fields }
    }

    /// The same with a field for whoever reads it by program.
    #[must_use]
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad request", detail)
    }

    /// A request whose end or addressee is in doubt.
    pub(super) fn doubtful(doubt: Doubt) -> Self {
        let status = match doubt {
            Doubt::Coding => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, "bad request", doubt.to_string())
    }

    pub(super) fn unauthorized(detail: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "token needed", detail)
    }

    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "not allowed", detail)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not found", detail)
    }

    pub(super) fn method_not_allowed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed", detail)
    }

    pub(super) fn large_body(bytes_max: usize) -> Self {
        let detail =
            format!("the body is longer than {bytes_max} bytes; what is asked for is less");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too large", detail)
    }

    pub(super) fn slow_body(within: Duration) -> Self {
        let detail = format!("the body did not arrive within {} s", within.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "too slow", detail)
    }

    pub(super) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "not now", detail)
    }

    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not now", detail)
    }

    pub(super) fn failed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail)
    }

    /// A configuration that was refused, with all that is wrong with it.
    pub(super) fn refused(detail: &'static str, problems: Vec<String>) -> Self {
        let mut refused = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", detail);
        refused.problems = problems;
        refused
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&Body {
            r#type: "about:blank",
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            problems: &self.problems,
            fields: &self.fields,
        })
        .expect("all of it is JSON, or has a form in it");
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
