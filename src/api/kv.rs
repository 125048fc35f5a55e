//! One key: `/v1/kv/{key}`.
//!
//! This is the way that most requests take, so nothing on it allocates, copies or waits without
//! need: the path is matched before any router, and values go through as [`Bytes`].

use std::borrow::Cow;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, ETAG, HeaderValue};
use hyper::{Method, Request, StatusCode};

use super::answer::{self, ACKS, Body, OCTET_STREAM, Response, STALE, TTL};
use super::client::Client;
use super::conditions::ReadCondition;
use super::held::Outgoing;
use super::intake::{self, Bound};
use super::json;
use super::params::{Fields, IDEMPOTENCY_KEY_BYTES_MAX, Malformed, Query, key, min_version, ttl};
use super::problem::Problem;
use super::settings::Limits;
use super::tokens::{Grant, Verb};
use super::upload::Upload;
use crate::coordinator::{IdempotencyKey, Read, Write, Written};
use crate::entry::{CONTENT_TYPE_BYTES_MAX, Key, Timestamp, Verdict};
use crate::metrics::Op;
use crate::shard::{Operation, Ttl};
use crate::store::{Found, Lookup};

/// What a single key's address begins with.
pub(super) const PREFIX: &str = "/v1/kv/";

pub(super) const GET_PARAMETERS: &[&str] = &["format", "consistency", "min_version"];
pub(super) const PUT_PARAMETERS: &[&str] = &["ttl", "consistency"];
pub(super) const DELETE_PARAMETERS: &[&str] = &["consistency"];
pub(super) const POST_PARAMETERS: &[&str] = &["op", "by", "ttl", "consistency"];

/// The methods that a key answers to.
pub(super) const ALLOW: &str = "GET, HEAD, PUT, DELETE, POST";

const OP_FORMS: &str = "incr or touch";

/// Which operation a request for a key is counted as, if its method is known.
pub(super) fn op<B>(request: &Request<B>) -> Option<Op> {
    match *request.method() {
        Method::GET | Method::HEAD => Some(Op::Get),
        Method::PUT => Some(Op::Put),
        Method::DELETE => Some(Op::Delete),
        Method::POST => {
            let query = request.uri().query().unwrap_or_default();
            let touch = query.split('&').any(|pair| pair == "op=touch");
            Some(if touch { Op::Touch } else { Op::Incr })
        }
        _ => None,
    }
}

/// Answers a request for a key.
///
/// # Errors
/// The [`Problem`] to answer instead.
pub(super) async fn answer(
    client: &Client,
    limits: Limits,
    grant: &Grant,
    request: Request<Upload>,
) -> Result<Response, Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => get(client, limits, grant, &request).await,
        Method::PUT => put(client, limits, grant, request).await,
        Method::DELETE => delete(client, limits, grant, request).await,
        Method::POST => post(client, limits, grant, request).await,
        _ => Err(Problem::method_not_allowed(ALLOW)),
    }
}

/// The key in a request's path, decoded.
fn key_of<B>(request: &Request<B>) -> Result<Cow<'_, [u8]>, Malformed> {
    key(&request.uri().path().as_bytes()[PREFIX.len()..])
}

fn checked(key: Cow<'_, [u8]>, limits: Limits) -> Result<Key, Problem> {
    let bytes = match key {
        Cow::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
        Cow::Owned(bytes) => Bytes::from(bytes),
    };
    Ok(Key::new(bytes, limits.key_bytes)?)
}

async fn get<B>(
    client: &Client,
    limits: Limits,
    grant: &Grant,
    request: &Request<B>,
) -> Result<Response, Problem> {
    let key = key_of(request)?;
    grant.check(Verb::Read, &key)?;
    if key.is_empty() || key.len() > limits.key_bytes {
        checked(key.clone(), limits)?;
    }
    let query = Query::parse(request.uri().query(), GET_PARAMETERS)?;
    let as_json = query.value("format", "json or raw", |text| match text {
        "json" => Some(true),
        "raw" => Some(false),
        _ => None,
    })?;
    let read = Read { consistency: query.consistency()?, min_version: min_version(&query)? };
    let condition = Fields::gather(request.headers())?.read_condition()?;
    let got = client.node.coordinator.get(&key, read).await?;
    let answer = match got.lookup {
        Lookup::Hit(found) if as_json == Some(true) => conditional(&condition, &found, |found| {
            answer::json(json::entry(found, Timestamp::now()))
        }),
        Lookup::Hit(found) => conditional(&condition, &found, |found| raw(client, found)),
        Lookup::Miss(_) if condition.fails_on_absence() => Err(Problem::condition_failed(None)),
        Lookup::Miss(_) => Err(Problem::absent()),
    };
    match got.stale {
        None => answer,
        Some(span) => {
            let mut response = answer.unwrap_or_else(Problem::into_response);
            response.headers_mut().insert(STALE, answer::stale(span));
            Ok(response)
        }
    }
}

fn conditional(
    condition: &ReadCondition,
    found: &Found,
    whole: impl FnOnce(&Found) -> Response,
) -> Result<Response, Problem> {
    if condition.fails(found.version) {
        return Err(Problem::condition_failed(Some(found.version)));
    }
    let mut response = if condition.knows(found.version) {
        answer::empty(StatusCode::NOT_MODIFIED)
    } else {
        whole(found)
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, answer::etag(found.version));
    if let Some(expires_at) = found.expires_at {
        // Rounded up, so that what lives shows no 0.
        let seconds = expires_at.millis_after(Timestamp::now()).div_ceil(1000);
        headers.insert(TTL, answer::number(seconds));
    }
    Ok(response)
}

fn raw(client: &Client, found: &Found) -> Response {
    let body = match Outgoing::value(&client.watch, &found.entry) {
        (value, true) => Body::Whole(value),
        (value, false) => Body::Value(value),
    };
    let mut response = answer::with_body(StatusCode::OK, body);
    let content_type = match found.entry.content_type() {
        b"" => None,
        // It came in a header field, or through a check that it could have.
        bytes => HeaderValue::from_bytes(bytes).ok(),
    };
    let content_type = content_type.unwrap_or(const { HeaderValue::from_static(OCTET_STREAM) });
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

async fn put(
    client: &Client,
    limits: Limits,
    grant: &Grant,
    request: Request<Upload>,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let key = checked(key(&head.uri.path().as_bytes()[PREFIX.len()..])?, limits)?;
    grant.check(Verb::Write, key.as_bytes())?;
    let query = Query::parse(head.uri.query(), PUT_PARAMETERS)?;
    let (ttl, consistency) = (query.ttl()?, query.consistency()?);
    let fields = Fields::gather(&head.headers)?;
    fields.plain_body()?;
    let (condition, content_type) = (fields.condition()?, content_type(&fields)?);
    let bound = Bound { bytes_max: limits.value_bytes, limit: "max_value_bytes" };
    let (value, _charge) = intake::whole(client, limits, body, bound).await?;
    let idempotency = idempotency(&fields, &head, key.as_bytes(), &value)?;
    let operation = Operation::Put { value, content_type, ttl };
    let write = Write { key, operation, condition, idempotency, consistency };
    written(client.node.coordinator.write(write).await?)
}

async fn delete(
    client: &Client,
    limits: Limits,
    grant: &Grant,
    request: Request<Upload>,
) -> Result<Response, Problem> {
    without_body(client, limits, grant, request, DELETE_PARAMETERS, |_| Ok(Operation::Delete)).await
}

async fn post(
    client: &Client,
    limits: Limits,
    grant: &Grant,
    request: Request<Upload>,
) -> Result<Response, Problem> {
    without_body(client, limits, grant, request, POST_PARAMETERS, posted).await
}

/// A write that says all it wants in its query and header fields.
async fn without_body(
    client: &Client,
    limits: Limits,
    grant: &Grant,
    request: Request<Upload>,
    parameters: &'static [&'static str],
    operation: impl FnOnce(&Query<'_>) -> Result<Operation, Problem>,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    intake::whole(client, limits, body, NO_BODY).await?;
    let key = checked(key(&head.uri.path().as_bytes()[PREFIX.len()..])?, limits)?;
    grant.check(Verb::Write, key.as_bytes())?;
    let query = Query::parse(head.uri.query(), parameters)?;
    let fields = Fields::gather(&head.headers)?;
    let write = Write {
        condition: fields.condition()?,
        idempotency: idempotency(&fields, &head, key.as_bytes(), b"")?,
        consistency: query.consistency()?,
        key,
        operation: operation(&query)?,
    };
    written(client.node.coordinator.write(write).await?)
}

/// Requests that take no body are refused one beyond this; a stray one is read and dropped.
pub(super) const NO_BODY: Bound =
    Bound { bytes_max: 64 << 10, limit: "this request takes no body" };

/// The operation that a POST asks for.
fn posted(query: &Query<'_>) -> Result<Operation, Problem> {
    let op = query.value("op", OP_FORMS, |text| match text {
        "incr" => Some(Op::Incr),
        "touch" => Some(Op::Touch),
        _ => None,
    })?;
    match op {
        Some(Op::Touch) => {
            if query.has("by") {
                let known = "op, ttl, consistency with op=touch".to_owned();
                return Err(Malformed::UnknownParameter { name: "by".to_owned(), known }.into());
            }
            Ok(Operation::Touch { ttl: query.ttl()? })
        }
        Some(_) => {
            let expected = "a 64-bit integer in decimal";
            let by = query.value("by", expected, |text| text.parse().ok())?;
            let expected = "a ttl without keep: it counts when the counter is created";
            let ttl = query.value("ttl", expected, |text| match ttl(text) {
                Some(Ttl::For(span)) => Some(span),
                _ => None,
            })?;
            Ok(Operation::Incr { by: by.unwrap_or(1), ttl })
        }
        None => Err(Malformed::Missing { name: "op", why: "it is one of incr, touch" }.into()),
    }
}

/// What a PUT stores beside the value. curl's `-d` says form-urlencoded of anything, so that
/// counts as unset.
fn content_type(fields: &Fields<'_>) -> Result<Bytes, Malformed> {
    let Some(value) = fields.content_type.map(HeaderValue::as_bytes) else {
        return Ok(Bytes::new());
    };
    if is_form(value) {
        return Ok(Bytes::new());
    }
    match value {
        b"application/json" => Ok(Bytes::from_static(b"application/json")),
        b"application/octet-stream" => Ok(Bytes::from_static(b"application/octet-stream")),
        b"text/plain" => Ok(Bytes::from_static(b"text/plain")),
        long if long.len() > CONTENT_TYPE_BYTES_MAX => {
            Err(Malformed::ContentType { bytes: long.len(), bytes_max: CONTENT_TYPE_BYTES_MAX })
        }
        other => Ok(Bytes::copy_from_slice(other)),
    }
}

/// Whether a content type is that of a submitted form.
pub(super) fn is_form(content_type: &[u8]) -> bool {
    let end = content_type.iter().position(|b| *b == b';').unwrap_or(content_type.len());
    content_type[..end].trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
}

/// The client's own id for a write, with a fingerprint of all that the write asks for.
pub(super) fn idempotency(
    fields: &Fields<'_>,
    head: &hyper::http::request::Parts,
    key: &[u8],
    body: &[u8],
) -> Result<Option<IdempotencyKey>, Malformed> {
    let Some(header) = fields.idempotency_key.map(HeaderValue::as_bytes) else {
        return Ok(None);
    };
    if header.is_empty() || header.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let bytes_max = IDEMPOTENCY_KEY_BYTES_MAX;
        return Err(Malformed::IdempotencyKey { bytes: header.len(), bytes_max });
    }
    let mut request: Vec<&[u8]> = vec![
        head.method.as_str().as_bytes(),
        key,
        head.uri.query().unwrap_or_default().as_bytes(),
        fields.content_type.map_or(b"", HeaderValue::as_bytes),
        body,
    ];
    request.extend(fields.condition_lines());
    Ok(Some(IdempotencyKey::new(header, &request)))
}

/// The answer to a write that was ordered.
pub(super) fn written(written: Written) -> Result<Response, Problem> {
    let accepted = |status| {
        if written.acks.is_some() { status } else { StatusCode::ACCEPTED }
    };
    let mut response = match written.verdict {
        Verdict::Created => answer::empty(accepted(StatusCode::CREATED)),
        Verdict::Replaced | Verdict::Deleted | Verdict::Touched | Verdict::Counted(_) => {
            answer::empty(accepted(StatusCode::NO_CONTENT))
        }
        Verdict::Number(number) => {
            let mut digits = itoa::Buffer::new();
            let text = Bytes::copy_from_slice(digits.format(number).as_bytes());
            let mut response = answer::with_body(accepted(StatusCode::OK), Body::Whole(text));
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, plain);
            response
        }
        Verdict::ConditionFailed(live) => {
            return Err(Problem::condition_failed(live).with_acks(written.acks));
        }
        Verdict::NotAnInteger => return Err(Problem::not_an_integer().with_acks(written.acks)),
        Verdict::Absent => return Err(Problem::absent().with_acks(written.acks)),
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, answer::etag(written.version));
    if let Some(acks) = written.acks {
        headers.insert(ACKS, answer::acks(acks));
    }
    Ok(response)
}
