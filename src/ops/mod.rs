//! Port 7702: health, metrics, the cluster's view and the operator's actions.
//!
//! It owns routes, JSON shapes and status codes of this port, and who may act. It answers from the
//! first moment of the process, long before the node serves clients, and until its last.
//! It decides nothing: it shows what [`Node`] says and passes actions on to it, and an action once
//! begun runs to its end even if its asker hangs up.

mod access;
mod actions;
mod fleet_lock;
mod lease;
mod node;
mod problem;
mod readiness;
mod serve;
mod status;
mod stop_lease;
mod views;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, HeaderValue};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::metrics::Metrics;

pub use lease::{
    HOLDER_BYTES_MAX, LEASE_TTL, LEASE_TTL_MAX, LEASE_TTL_MIN, Lease, LeaseRefusal, LeaseRequest,
    LeaseUnsafe,
};
pub use node::{ActionError, Drained, Node, RateLimit, Reloaded, Snapshot, Truncated};
pub use serve::{CONNECTIONS_MAX, Config, Error, HEAD_TIMEOUT, Listener};
pub use status::{Member, MemberStatus, Outlook, Phase, Position, Shard, Status, Wal};

use problem::Problem;

/// Who is at the other end; put into each request by [`Listener::serve`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) std::net::SocketAddr);

/// What the handlers share.
struct Shared<N> {
    node: Arc<N>,
    metrics: Arc<Metrics>,
}

impl<N> Clone for Shared<N> {
    fn clone(&self) -> Self {
        Self { node: Arc::clone(&self.node), metrics: Arc::clone(&self.metrics) }
    }
}

/// The routes of port 7702, over `node`.
pub fn router<N: Node>(node: Arc<N>, metrics: Arc<Metrics>) -> Router {
    let shared = Shared { node, metrics };
    let admin = Router::new()
        .route("/admin/reload", post(actions::reload::<N>))
        .route("/admin/snapshot", post(actions::snapshot::<N>))
        .route("/admin/wal/truncate", post(actions::truncate::<N>))
        .route("/admin/drain", post(actions::drain::<N>))
        .route("/admin/rate-limit", post(actions::rate_limit::<N>))
        .route("/admin/log-level", post(actions::log_level::<N>))
        .route("/admin/nodes/{id}/decommission", post(actions::decommission::<N>))
        .route("/admin/nodes/{id}/recommission", post(actions::recommission::<N>))
        .route("/admin/nodes/{id}/remove", post(actions::remove::<N>))
        .route(
            "/admin/stop-lease",
            post(stop_lease::acquire::<N>)
                .get(stop_lease::look::<N>)
                .delete(stop_lease::release::<N>),
        )
        .route_layer(from_fn_with_state(shared.clone(), access::guard::<N>));
    let fleet_lock = Router::new()
        .route("/v1/pre-reboot", post(fleet_lock::pre_reboot::<N>))
        .route("/v1/steady-state", post(fleet_lock::steady_state::<N>))
        .route_layer(from_fn_with_state(shared.clone(), access::guard::<N>))
        .route_layer(map_response(fleet_lock::in_its_words));
    let metrics = Router::new()
        .route("/metrics", get(views::metrics::<N>))
        .route_layer(from_fn_with_state(shared.clone(), access::guard_metrics::<N>));
    Router::new()
        .route("/health", get(views::health::<N>))
        .route("/live", get(views::health::<N>))
        .route("/ready", get(views::ready::<N>))
        .route("/cluster", get(views::cluster::<N>))
        .route("/cluster/shards", get(views::shards::<N>))
        .route("/stats", get(views::stats::<N>))
        .route("/config", get(views::config::<N>))
        .merge(admin)
        .merge(fleet_lock)
        .merge(metrics)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(shared.clone(), access::admit::<N>))
        .layer(map_response(never_cached))
        .with_state(shared)
}

async fn no_such_path(request: Request) -> Response {
    Problem::not_found(format!(
        "port 7702 has no {}; it has /health /live /ready /metrics /cluster /cluster/shards \
         /stats /config and, for POST, /admin/... and FleetLock's /v1/pre-reboot /v1/steady-state",
        request.uri().path()
    ))
    .into_response()
}

async fn no_such_method(request: Request) -> Response {
    Problem::method_not_allowed(format!(
        "{} does not take {}; the header Allow says what it takes",
        request.uri().path(),
        request.method()
    ))
    .into_response()
}

async fn never_cached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
