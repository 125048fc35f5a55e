//! Many keys by their prefix: `/v1/kv?prefix=…`, to list or to delete.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode};

use super::answer::{self, ACKS, Body, Response, STALE};
use super::client::Client;
use super::held::{Charge, Outgoing};
use super::intake;
use super::json;
use super::kv;
use super::params::{Fields, Malformed, Query};
use super::problem::Problem;
use super::settings::Limits;
use super::tokens::{Grant, Verb};
use crate::coordinator::{Page, Phase};
use crate::entry::{Key, Timestamp};
use crate::store::Found;

pub(super) const PATH: &str = "/v1/kv";
pub(super) const LIST_PARAMETERS: &[&str] = &["prefix", "limit", "cursor", "values"];
pub(super) const DELETE_PARAMETERS: &[&str] = &["prefix", "dry_run", "consistency"];

/// Keys on a page, where the request does not say.
pub(super) const LIMIT_DEFAULT: usize = 100;
/// Most keys on a page.
pub(super) const LIMIT_MAX: usize = 1000;

/// Bytes of a listing that are made before they are sent.
const CHUNK_BYTES: usize = 64 << 10;

/// One page of keys.
pub(super) async fn list(
    client: &Client,
    grant: &Grant,
    query: Option<&str>,
) -> Result<Response, Problem> {
    let query = Query::parse(query, LIST_PARAMETERS)?;
    let prefix = query.bytes("prefix")?.unwrap_or_default();
    grant.check(Verb::Read, &prefix)?;
    let limit = query.value("limit", "a whole number from 1 to 1000", |text| {
        text.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n))
    })?;
    let cursor = query.text("cursor")?;
    let values = query.flag("values")?;
    let cursor = cursor.as_deref().filter(|cursor| !cursor.is_empty());
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    let page = client.node.coordinator.list(&prefix, cursor, limit).await?;
    let stale = page.stale.map(answer::stale);
    let body = if values { streamed(client, page) } else { whole(page) };
    let mut response = answer::with_body(StatusCode::OK, body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    stale.map(|stale| headers.insert(STALE, stale));
    Ok(response)
}

const HEAD: &[u8] = b"{\"keys\":[";

fn append_tail(out: &mut Vec<u8>, cursor: Option<&str>) {
    out.extend_from_slice(b"],\"cursor\":");
    json::append(out, &cursor);
    out.push(b'}');
}

fn whole(page: Page) -> Body {
    let now = Timestamp::now();
    let mut out = HEAD.to_vec();
    for (n, found) in page.entries.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        json::append_listed(&mut out, found, false, now);
    }
    append_tail(&mut out, page.cursor.as_deref());
    Body::Whole(Bytes::from(out))
}

/// A page with values may be gigabytes: it is written as the client takes it.
fn streamed(client: &Client, page: Page) -> Body {
    let now = Timestamp::now();
    let watch = Arc::clone(&client.watch);
    let held = |found: Found| (Outgoing::of(&client.watch, &found.entry), found);
    let entries: Vec<_> = page.entries.into_iter().map(held).collect();
    let entries = entries.into_iter().enumerate();
    let rest = (entries, Some(page.cursor));
    let chunks = stream::unfold(rest, move |(mut entries, mut cursor)| {
        let watch = Arc::clone(&watch);
        async move {
            let mut out = Vec::new();
            while out.len() < CHUNK_BYTES {
                let Some((n, (_outgoing, found))) = entries.next() else {
                    if entries.len() == 0
                        && let Some(cursor) = cursor.take()
                    {
                        append_tail(&mut out, cursor.as_deref());
                    }
                    break;
                };
                if n > 0 {
                    out.push(b',');
                }
                json::append_listed(&mut out, &found, true, now);
            }
            (!out.is_empty()).then(|| {
                let charge = Charge::new(&watch, out.capacity());
                (Ok::<_, Infallible>(charge.around(out)), (entries, cursor))
            })
        }
    });
    let head = stream::once(async { Ok(Bytes::from_static(HEAD)) });
    use futures_util::StreamExt;
    Body::Streamed(axum::body::Body::from_stream(head.chain(chunks)))
}

/// Deletes, or counts, all keys under a prefix.
pub(super) async fn delete(
    client: &Client,
    limits: Limits,
    grant: &Grant,
    request: Request<axum::body::Body>,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    intake::whole(client, limits, body, kv::NO_BODY).await?;
    let query = Query::parse(head.uri.query(), DELETE_PARAMETERS)?;
    let prefix = query.bytes("prefix")?.unwrap_or_default();
    if prefix.is_empty() {
        let why = "all keys are deleted only by naming their prefixes";
        return Err(Malformed::Missing { name: "prefix", why }.into());
    }
    grant.check(Verb::Write, &prefix)?;
    let prefix = Key::new(prefix.into_owned(), limits.key_bytes)?;
    let (dry_run, consistency) = (query.flag("dry_run")?, query.consistency()?);
    let fields = Fields::gather(&head.headers)?;
    fields.unconditional("delete keys one by one, where a version matters")?;
    let id = kv::idempotency(&fields, &head, prefix.as_bytes(), b"")?;
    // Counting changes nothing, so there is nothing to remember.
    let id = id.filter(|_| !dry_run);
    let coordinator = &client.node.coordinator;
    let serving = coordinator.phase() == Phase::Serving;
    let counted = coordinator.delete_prefix(&prefix, dry_run, id, consistency).await;
    // Once begun, it may have deleted some before it failed.
    let counted = counted.map_err(|error| match Problem::from(error) {
        problem if serving && !dry_run => problem.with_outcome_unknown(),
        problem => problem,
    })?;
    let mut response = answer::json(Bytes::from(format!("{{\"deleted\":{}}}", counted.count)));
    match counted.acks {
        Some(acks) => {
            response.headers_mut().insert(ACKS, answer::acks(acks));
        }
        None if dry_run => {}
        None => *response.status_mut() = StatusCode::ACCEPTED,
    }
    Ok(response)
}
