//! `/admin/stop-lease`: leave to stop a node, asked for, looked at, given back.
//!
//! These are the only requests of this port with a body, beside those of [`super::fleet_lock`]. It
//! is small, and read whole before anything is done.

use std::fmt::Display;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::actions::to_its_end;
use super::lease::{
    HOLDER_BYTES_MAX, LEASE_TTL, LEASE_TTL_MAX, LEASE_TTL_MIN, LeaseRefusal, LeaseRequest, rfc_3339,
};
use super::{Node, Problem, Shared};

/// The longest body that is read, in bytes.
const BODY_BYTES_MAX: usize = 4096;

/// How long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);

const EXAMPLE: &str = r#"{"node_id":"kv1","holder":"ops@host","ttl":"30m"}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    node_id: String,
    holder: String,
    #[serde(default)]
    ttl: Value,
}

pub(super) async fn acquire<N: Node>(
    State(shared): State<Shared<N>>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Ask { node_id, holder, ttl } = read_json(body, EXAMPLE).await?;
    let request = LeaseRequest { node_id, holder: checked_holder(holder)?, ttl: ttl_of(&ttl)? };
    let granted = to_its_end(shared.node, |node| async move { node.acquire_lease(&request).await });
    Ok(Json(json!(granted.await?)))
}

pub(super) async fn look<N: Node>(State(shared): State<Shared<N>>) -> Result<Json<Value>, Problem> {
    let lease = to_its_end(shared.node, |node| async move { node.lease().await }).await?;
    Ok(Json(json!({ "lease": lease })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Release {
    node_id: String,
    holder: Option<String>,
}

pub(super) async fn release<N: Node>(
    State(shared): State<Shared<N>>,
    query: Result<Query<Release>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Ok(Query(Release { node_id, holder })) = query else {
        return Err(Problem::bad_request(
            "say ?node_id=NODE, the node that the lease is held for, and &holder=NAME to give it \
             back only if that one holds it",
        ));
    };
    let released = to_its_end(shared.node, |node| async move {
        node.release_lease(&node_id, holder.as_deref()).await
    });
    let lease = released.await?;
    Ok(Json(json!({ "released": lease.is_some(), "lease": lease })))
}

/// Reads a body of JSON, whole and bounded.
pub(super) async fn read_json<T: DeserializeOwned>(
    body: Body,
    example: &str,
) -> Result<T, Problem> {
    read_json_within(body, example, BODY_WITHIN).await
}

pub(super) async fn read_json_within<T: DeserializeOwned>(
    body: Body,
    example: &str,
    within: Duration,
) -> Result<T, Problem> {
    let Ok(read) = timeout(within, Limited::new(body, BODY_BYTES_MAX).collect()).await else {
        return Err(Problem::slow_body(within));
    };
    let bytes = match read {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(Problem::large_body(BODY_BYTES_MAX));
        }
        Err(error) => {
            return Err(Problem::bad_request(format!("the body did not arrive: {error}")));
        }
    };
    let refused =
        |what: &dyn Display| Problem::bad_request(format!("{what}; send a body like {example}"));
    if bytes.is_empty() {
        return Err(refused(&"there is no body"));
    }
    // A list would be taken for the fields' values in their order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(refused(&"the body is a list"));
    }
    serde_json::from_slice(&bytes).map_err(|error| refused(&error))
}

/// A holder's name that can be shown everywhere.
pub(super) fn checked_holder(holder: String) -> Result<String, Problem> {
    let is_fine = !holder.trim().is_empty()
        && holder.len() <= HOLDER_BYTES_MAX
        && !holder.chars().any(char::is_control);
    if is_fine {
        return Ok(holder);
    }
    Err(Problem::bad_request(format!(
        "holder says who asks, as in \"ops@host\": 1 to {HOLDER_BYTES_MAX} bytes without control \
         characters"
    )))
}

/// `null`, a number of seconds, or text such as `30m`.
fn ttl_of(value: &Value) -> Result<Duration, Problem> {
    let ttl = match value {
        Value::Null => Some(LEASE_TTL),
        Value::Number(seconds) => {
            seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        }
        Value::String(text) => match text.parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => humantime::parse_duration(text).ok(),
        },
        _ => None,
    };
    ttl.filter(|ttl| (LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(ttl)).ok_or_else(|| {
        Problem::bad_request(
            "ttl says how long the lease lasts, as in \"30m\", or in seconds: from 1s to 24h",
        )
    })
}

impl From<LeaseRefusal> for Problem {
    fn from(refusal: LeaseRefusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            LeaseRefusal::Unknown(_) => Self::not_found(detail),
            LeaseRefusal::Elsewhere(_) => Self::conflict(detail),
            LeaseRefusal::NotBack(_) => Self::unavailable(detail),
            LeaseRefusal::Held(lease) => Self::conflict(detail)
                .with("held_by", lease.holder)
                .with("node_id", lease.node_id)
                .with("lease_id", lease.lease_id)
                .with("since", rfc_3339(lease.since))
                .with("until", rfc_3339(lease.until)),
            LeaseRefusal::Unsafe(found) => Self::unavailable(detail)
                .with("shards_without_quorum", found.shards_without_quorum)
                .with("shards_not_level", found.shards_not_level)
                .with("members_missing", found.members_missing),
            LeaseRefusal::NotAgreed { source } => {
                let why = source.map(|source| format!("{detail}: {source}"));
                Self::unavailable(why.unwrap_or(detail))
            }
        }
    }
}
