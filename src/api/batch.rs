//! Many operations in one request: `/v1/batch`, as one JSON document or as lines of JSON.
//!
//! Operations start in the order they are given, a bounded number of them at once, and never two
//! on the same key; results are answered in the same order, as they come. Nothing is atomic across
//! keys: a client that goes away stops its batch where it is.

mod run;
mod step;

use std::sync::Arc;

use bytes::Bytes;
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};

use self::run::{Framing, Run};
use self::step::{Batch, DocumentError};
use super::answer::{self, Body, Response};
use super::client::{Client, heavy};
use super::intake::{self, Bound};
use super::kv;
use super::params::{Fields, Query};
use super::problem::{Kind, Problem};
use super::settings::{KEYED_BATCH_OPS_MAX, Limits};
use super::standing::Standing;
use super::tokens::Grant;
use crate::coordinator::{Consistency, IdempotencyKey};
use crate::metrics::Op;

pub(super) use self::step::{FIELDS, OPS};

pub(super) const PATH: &str = "/v1/batch";
pub(super) const PARAMETERS: &[&str] = &["consistency"];

/// Media types of the lines' form, its own and the two names it also goes by.
const LINES: [&str; 3] = ["application/x-ndjson", "application/ndjson", "application/jsonl"];

/// What all operations of a batch share.
#[derive(Clone, Debug)]
struct Shared {
    limits: Limits,
    standing: Arc<Standing>,
    consistency: Consistency,
    idempotency: Option<IdempotencyKey>,
}

/// Answers a batch. The answer's status is 200 as soon as the batch is understood; each operation
/// has a status of its own.
pub(super) async fn answer(
    client: Arc<Client>,
    limits: Limits,
    grant: Grant,
    request: Request<axum::body::Body>,
) -> Result<Response, Problem> {
    grant.check_any()?;
    let (head, body) = request.into_parts();
    let fields = Fields::gather(&head.headers)?;
    fields.unconditional("if_match and if_none_match stand in the operations")?;
    fields.plain_body()?;
    let framing = framing(fields.content_type)?;
    let query = Query::parse(head.uri.query(), PARAMETERS)?;
    let consistency = query.consistency()?;
    let standing = Arc::new(Standing::new(head.headers.get(AUTHORIZATION)));
    let run = match framing {
        Framing::Lines => {
            kv::idempotency(&fields, &head, b"", b"")?;
            let header = fields.idempotency_key.map(|v| Bytes::copy_from_slice(v.as_bytes()));
            let shared = Shared { limits, standing, consistency, idempotency: None };
            Run::of_lines(client, shared, body, header)
        }
        Framing::Document => {
            let bound = Bound { bytes_max: limits.batch_bytes(), limit: BATCH_LIMIT };
            let (body, mut charge) = intake::whole(&client, limits, body, bound).await?;
            if let Some(charge) = &mut charge {
                // The operations are read from it, and then both are there.
                charge.set(2 * body.len());
            }
            let idempotency = kv::idempotency(&fields, &head, b"", &body)?;
            let shared = Shared { limits, standing, consistency, idempotency };
            let steps = match body.len() {
                0..HEAVY_BYTES_MIN => Batch::parse(&body)?.into_steps(&shared)?,
                _ => {
                    let shared = shared.clone();
                    heavy(move || Batch::parse(&body)?.into_steps(&shared)).await?
                }
            };
            if shared.idempotency.is_some() && steps.len() > KEYED_BATCH_OPS_MAX {
                return Err(DocumentError::TooManyKeyed { ops: steps.len() }.into());
            }
            client.spend(limits.rate, &grant, steps.len())?;
            Run::of_document(client, shared, steps, charge)
        }
    };
    let media_type = match framing {
        Framing::Lines => LINES[0],
        Framing::Document => "application/json",
    };
    let body = axum::body::Body::from_stream(run.into_stream());
    let mut response = answer::with_body(hyper::StatusCode::OK, Body::Streamed(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    Ok(response)
}

/// A document of so many bytes takes a while to read.
const HEAVY_BYTES_MIN: usize = 256 << 10;

const BATCH_LIMIT: &str = "twice max_value_bytes and 1 MiB; send lines of application/x-ndjson \
     for a batch of any length";

fn framing(content_type: Option<&HeaderValue>) -> Result<Framing, Problem> {
    let Some(value) = content_type.filter(|value| !kv::is_form(value.as_bytes())) else {
        return Ok(Framing::Document);
    };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => Ok(Framing::Document),
        lines if LINES.contains(&lines) => Ok(Framing::Lines),
        _ => Err(Problem::new(
            Kind::UnsupportedMediaType,
            "a batch is application/json (one document) or application/x-ndjson (one operation \
             a line)",
        )),
    }
}

impl From<DocumentError> for Problem {
    fn from(error: DocumentError) -> Self {
        let kind = match error {
            DocumentError::TooMany { .. } | DocumentError::TooManyKeyed { .. } => Kind::TooLarge,
            _ => Kind::Malformed,
        };
        Self::new(kind, error.to_string())
    }
}

/// Which operation a step is counted as.
fn counted_as(operation: &crate::shard::Operation) -> Op {
    use crate::shard::Operation;
    match operation {
        Operation::Put { .. } => Op::Put,
        Operation::Delete => Op::Delete,
        Operation::Incr { .. } => Op::Incr,
        Operation::Touch { .. } => Op::Touch,
        Operation::Note(_) => Op::Batch,
    }
}
