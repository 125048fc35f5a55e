//! The operator's actions: `POST /admin/...`.
//!
//! Each that takes time runs as a task of its own, so that it is not cut off half way when the
//! asker hangs up.

use std::error::Error as StdError;
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ActionError, Node, Problem, Shared};

type Answer = Result<Json<Value>, Problem>;

pub(super) async fn reload<N: Node>(State(shared): State<Shared<N>>) -> Answer {
    let reloaded = to_its_end(shared.node, |node| async move { node.reload().await }).await?;
    Ok(Json(json!({
        "applied": reloaded.applied,
        "needs_restart": reloaded.needs_restart,
        "warnings": reloaded.warnings,
    })))
}

pub(super) async fn snapshot<N: Node>(State(shared): State<Shared<N>>) -> Answer {
    let snapshot = to_its_end(shared.node, |node| async move { node.snapshot().await }).await?;
    Ok(Json(json!({
        "items": snapshot.items,
        "bytes": snapshot.bytes,
        "took_seconds": snapshot.took.as_secs_f64(),
    })))
}

pub(super) async fn truncate<N: Node>(State(shared): State<Shared<N>>) -> Answer {
    let freed = to_its_end(shared.node, |node| async move { node.truncate_wal().await }).await?;
    Ok(Json(json!({ "segments_removed": freed.segments, "bytes_freed": freed.bytes })))
}

pub(super) async fn drain<N: Node>(State(shared): State<Shared<N>>) -> (StatusCode, Json<Value>) {
    let drained = shared.node.drain();
    let body = json!({ "phase": "draining", "active_connections": drained.active_connections });
    (StatusCode::ACCEPTED, Json(body))
}

#[derive(Deserialize)]
pub(super) struct RateLimitQuery {
    ops_per_sec: u32,
}

pub(super) async fn rate_limit<N: Node>(
    State(shared): State<Shared<N>>,
    query: Result<Query<RateLimitQuery>, QueryRejection>,
) -> Answer {
    let Ok(Query(RateLimitQuery { ops_per_sec })) = query else {
        return Err(Problem::bad_request(
            "say ?ops_per_sec=N, operations per second for each connection; 0 lifts the limit",
        ));
    };
    shared.node.set_rate_limit(NonZeroU32::new(ops_per_sec));
    tracing::info!(ops_per_sec, "rate limit set until the next reload or start");
    Ok(Json(json!({ "ops_per_sec": ops_per_sec })))
}

#[derive(Deserialize)]
pub(super) struct LogLevelQuery {
    level: String,
}

pub(super) async fn log_level<N: Node>(
    State(shared): State<Shared<N>>,
    query: Result<Query<LogLevelQuery>, QueryRejection>,
) -> Answer {
    let Ok(Query(LogLevelQuery { level })) = query else {
        return Err(Problem::bad_request("say ?level=error, warn, info, debug or trace"));
    };
    shared.node.set_log_level(&level)?;
    tracing::info!(level, "log level set until the next reload or start");
    Ok(Json(json!({ "level": level })))
}

pub(super) async fn decommission<N: Node>(
    State(shared): State<Shared<N>>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let name = id.clone();
    to_its_end(shared.node, |node| async move { node.decommission(&name).await }).await?;
    let body = json!({ "node_id": id, "status": "leaving" });
    Ok((StatusCode::ACCEPTED, Json(body)))
}

pub(super) async fn recommission<N: Node>(
    State(shared): State<Shared<N>>,
    Path(id): Path<String>,
) -> Answer {
    let name = id.clone();
    to_its_end(shared.node, |node| async move { node.recommission(&name).await }).await?;
    Ok(Json(json!({ "node_id": id, "status": "member" })))
}

pub(super) async fn remove<N: Node>(
    State(shared): State<Shared<N>>,
    Path(id): Path<String>,
) -> Answer {
    let name = id.clone();
    to_its_end(shared.node, |node| async move { node.remove(&name).await }).await?;
    Ok(Json(json!({ "node_id": id, "status": "removed" })))
}

/// Runs an action in a task of its own and waits for it.
pub(super) async fn to_its_end<N, T, E, F>(
    node: Arc<N>,
    action: impl FnOnce(Arc<N>) -> F + Send + 'static,
) -> Result<T, Problem>
where
    N: Node,
    T: Send + 'static,
    E: Into<Problem> + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    match tokio::spawn(action(node)).await {
        Ok(result) => result.map_err(Into::into),
        Err(broken) => {
            tracing::error!(error = %broken, "an action did not come to its end");
            Err(Problem::failed("the action did not come to its end; the log says why"))
        }
    }
}

impl From<ActionError> for Problem {
    fn from(error: ActionError) -> Self {
        match error {
            ActionError::Conflict(why) => Self::conflict(why),
            ActionError::Unknown { .. } => Self::not_found(error.to_string()),
            ActionError::Invalid { .. } => Self::bad_request(error.to_string()),
            ActionError::Refused { problems } => Self::refused(
                "the new configuration has mistakes; the old one stays in force",
                problems,
            ),
            ActionError::NotAgreed { .. } => Self::unavailable(chain(&error)),
            ActionError::Failed { .. } => {
                let chain = chain(&error);
                tracing::error!(error = chain, "an operator's request failed");
                Self::failed(chain)
            }
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
