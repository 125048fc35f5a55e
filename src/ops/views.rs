//! What can be looked at: `GET /health`, `/ready`, `/metrics`, `/cluster` and so on.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::readiness::{Check, readiness};
use super::{Member, MemberStatus, Node, Phase, Problem, Shared, Status};
use crate::metrics;

const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn health<N: Node>(State(shared): State<Shared<N>>) -> Json<Value> {
    let status = shared.node.status();
    let mut body = json!({
        "status": "ok",
        "node_id": status.node_id,
        "version": env!("CARGO_PKG_VERSION"),
        "phase": status.phase.word(),
        "uptime_seconds": status.uptime.as_secs(),
    });
    if let Phase::Starting { progress } = status.phase {
        body["progress"] = progress.into();
    }
    Json(body)
}

pub(super) async fn ready<N: Node>(
    State(shared): State<Shared<N>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let status = shared.node.status();
    let checks = match query.as_deref().unwrap_or_default() {
        "" => readiness(&status),
        "for=stop" => vec![stop_check(&*shared.node, &status)],
        _ => return Err(Problem::bad_request("/ready takes ?for=stop or no query")),
    };
    let ready = checks.iter().all(|check| check.passed);
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((code, Json(Readiness { ready, checks })).into_response())
}

/// The body of `/ready`. The verdict comes first and the checks in their order: people read it.
#[derive(Serialize)]
struct Readiness {
    ready: bool,
    #[serde(serialize_with = "by_name")]
    checks: Vec<Check>,
}

fn by_name<S: Serializer>(checks: &[Check], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(checks.iter().map(|check| (check.name, &check.text)))
}

/// Whether every shard keeps its write quorum without this node.
fn stop_check<N: Node>(node: &N, status: &Status) -> Check {
    if matches!(status.phase, Phase::Starting { .. }) {
        return Check::failed("write_quorum", "not known before the node has started");
    }
    match node.stoppable() {
        Ok(()) => Check::passed("write_quorum", "ok"),
        Err(why) => Check::failed("write_quorum", why),
    }
}

pub(super) async fn metrics<N: Node>(
    State(shared): State<Shared<N>>,
) -> ([(HeaderName, &'static str); 1], String) {
    let readings = shared.node.status().readings;
    ([(CONTENT_TYPE, METRICS_TYPE)], shared.metrics.render(&readings))
}

pub(super) async fn cluster<N: Node>(State(shared): State<Shared<N>>) -> Json<Value> {
    let status = shared.node.status();
    let shards = &status.readings.shards;
    let (leader, members) = match status.phase {
        Phase::Removed { .. } => (None, Vec::new()),
        _ if status.members.is_empty() => (Some(status.node_id.clone()), vec![alone(&status)]),
        _ => (status.leader.clone(), status.members.clone()),
    };
    Json(json!({
        "cluster_id": status.cluster_id,
        "epoch": status.epoch,
        "leader": leader,
        "leaderless_since": status.leaderless_for.map(ago),
        "members": members,
        "shards": {
            "total": shards.total(),
            "healthy": shards.healthy,
            "under_replicated": shards.under_replicated,
            "catching_up": shards.catching_up,
            "moving": shards.moving,
            "unavailable": shards.unavailable,
        },
        "settled": status.outlook.settled,
        "moves_left": status.outlook.moves_left,
        "settled_eta_seconds": status.outlook.eta.map(|eta| eta.as_secs()),
        "stop_lease": status.stop_lease,
    }))
}

/// The moment so long ago, as RFC 3339 has it.
fn ago(span: Duration) -> String {
    let moment = SystemTime::now().checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(moment).to_string()
}

/// This node as the one member of its cluster, as long as it knows of no others.
fn alone(status: &Status) -> Member {
    Member {
        node_id: status.node_id.clone(),
        status: match status.phase {
            Phase::Starting { .. } => MemberStatus::Joining,
            Phase::Serving => MemberStatus::Alive,
            Phase::Draining | Phase::Removed { .. } => MemberStatus::Leaving,
        },
        client_addr: status.client_addr.map(|addr| addr.to_string()),
        gossip_addr: status.gossip_addr.map(|addr| addr.to_string()),
        zone: status.zone.clone(),
        region: status.region.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        shards: status.readings.shards_owned,
        primaries: status.readings.shard_primaries,
        leader: true,
    }
}

pub(super) async fn shards<N: Node>(State(shared): State<Shared<N>>) -> Json<Value> {
    Json(json!({ "shards": shared.node.shards() }))
}

pub(super) async fn stats<N: Node>(State(shared): State<Shared<N>>) -> Json<Value> {
    let status = shared.node.status();
    let now = &status.readings;
    let counted = &shared.metrics;
    Json(json!({
        "node_id": status.node_id,
        "version": env!("CARGO_PKG_VERSION"),
        "revision": metrics::revision(),
        "phase": status.phase.word(),
        "uptime_seconds": status.uptime.as_secs(),
        "items": now.cache_items,
        "bytes": now.cache_size_bytes,
        "bytes_max": now.cache_max_bytes,
        "evictions": counted.evictions.get(),
        "expired": counted.expired.get(),
        "wal": {
            "mode": status.wal.mode,
            "bytes": now.wal_bytes,
            "segments": status.wal.segments,
            "corruptions": counted.wal_corruptions.get(),
        },
        "snapshot": {
            "finished_at_ms": now.snapshot_finished_at.map(|at| at.0),
            "took_seconds": now.snapshot_duration.map(|took| took.as_secs_f64()),
            "failures": counted.snapshot_failures.get(),
        },
        "connections": {
            "active": now.active_connections,
            "max": now.max_connections,
            "rejected": counted.rejected_connections.get(),
        },
        "shards": now.shards_owned,
        "primaries": now.shard_primaries,
    }))
}

pub(super) async fn config<N: Node>(State(shared): State<Shared<N>>) -> Json<Value> {
    Json(shared.node.config())
}
