//! From a request to its answer: admission, the short way for single keys, the router for all
//! else, and the one place where operations are counted and timed.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Extension, Request as RoutedRequest};
use axum::response::Response as RoutedResponse;
use axum::routing;
use bytes::Bytes;
use hyper::body::Body as _;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use hyper::{Method, Request, Version};

use super::answer::{self, Body, Response};
use super::client::{Client, Node};
use super::framing::Doubt;
use super::inbound::Inbound;
use super::params::Query;
use super::problem::{Kind, Problem};
use super::settings::{Limits, Settings};
use super::tokens::Grant;
use super::upload::Upload;
use super::watch::Busy;
use super::{batch, framing, kv, listing, openapi};
use crate::metrics::Op;

/// Routes that anybody may read, token or not: they tell nothing of the data.
const OPEN: [&str; 2] = ["/", openapi::PATH];

/// Every address beside the keys' own, with the methods that it answers to.
pub(super) const ROUTES: [(&str, &str); 4] = [
    ("/", "GET, HEAD"),
    (openapi::PATH, "GET, HEAD"),
    (listing::PATH, "GET, HEAD, DELETE"),
    (batch::PATH, "POST"),
];

/// Answers a request.
pub(super) async fn answer(client: Arc<Client>, request: Request<Inbound>) -> Response {
    let started = Instant::now();
    // On HTTP/2 each request is a task of its own.
    if request.version() < Version::HTTP_2 && client.watch.turn().is_over(started) {
        tokio::task::yield_now().await;
    }
    let _busy = Busy::mark(&*client.watch);
    let op = op(&request);
    let seen = Seen {
        head: request.method() == Method::HEAD,
        has_body: !request.body().is_end_stream(),
        version: request.version(),
    };
    let lost = client.watch.has_lost_framing();
    let (limits, grant, admitted) = {
        let settings = client.node.settings.load();
        let judged = if lost { Err(Doubt::Before) } else { framing::check(&request) };
        let granted = judged
            .map_err(Problem::from)
            .and_then(|()| recognise(&client.node, &settings, &request));
        let (grant, admitted) = match granted {
            Ok(grant) => {
                let admitted = pace(&client, &settings, &grant, op);
                (grant, admitted)
            }
            Err(problem) => (Grant::default(), Err(problem)),
        };
        (settings.limits(), grant, admitted)
    };
    let chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let (head, incoming) = request.into_parts();
    let (upload, unread) = Upload::new(incoming, seen.version, chunked, &client.watch);
    let request = Request::from_parts(head, upload);
    let answered = match admitted {
        Err(problem) => {
            drop(request);
            Err(problem)
        }
        Ok(()) if request.uri().path().starts_with(kv::PREFIX) => {
            kv::answer(&client, limits, &grant, request).await
        }
        Ok(()) => Ok(Box::pin(routed(&client, limits, &grant, request)).await),
    };
    let response = finish(&client, seen, answered);
    grant.count(response.status());
    if let Some(rest) = unread.and_then(|unread| unread.take()) {
        client.read_on(rest, limits.read_timeout);
    }
    if let Some(op) = op {
        count(&client.node, op, started, &response);
    }
    response
}

/// What of a request matters after it has been consumed.
#[derive(Clone, Copy)]
struct Seen {
    head: bool,
    has_body: bool,
    version: Version,
}

/// Which operation a request is counted as.
fn op(request: &Request<Inbound>) -> Option<Op> {
    match request.uri().path() {
        path if path.starts_with(kv::PREFIX) => kv::op(request),
        listing::PATH if request.method() == Method::DELETE => Some(Op::DeletePrefix),
        listing::PATH => Some(Op::List),
        batch::PATH => Some(Op::Batch),
        _ => None,
    }
}

/// What a request may do by its token, or why it may do nothing.
fn recognise(
    node: &Node,
    settings: &Settings,
    request: &Request<Inbound>,
) -> Result<Grant, Problem> {
    if settings.tokens.is_empty() {
        settings.sites.check(request)?;
        return Ok(Grant::default());
    }
    if OPEN.contains(&request.uri().path()) {
        return Ok(Grant::default());
    }
    let header = request.headers().get(AUTHORIZATION);
    let holder = header.and_then(|header| settings.tokens.shown_in(header));
    holder.map(Grant::of).ok_or_else(|| {
        node.metrics.unauthorized.inc();
        let detail = match header {
            None => "send 'Authorization: Bearer TOKEN' with a token of this cluster",
            Some(_) => "the token in Authorization is none that this cluster accepts",
        };
        Problem::new(Kind::Unauthorized, detail)
    })
}

/// Whether the connection's rate and the token's let a request in now.
fn pace(
    client: &Client,
    settings: &Settings,
    grant: &Grant,
    op: Option<Op>,
) -> Result<(), Problem> {
    // A batch is charged for each of its operations, where they are known.
    if op == Some(Op::Batch) {
        return Ok(());
    }
    client.spend(settings.rate, grant, 1)
}

/// Completes an answer with what depends on the request and the connection.
fn finish(client: &Client, seen: Seen, answered: Result<Response, Problem>) -> Response {
    let failed = answered.as_ref().map_or(true, |response| response.status().as_u16() >= 400);
    client.watch.leaves_unread(seen.has_body && failed);
    let mut response = answered.unwrap_or_else(Problem::into_response);
    // HTTP/2 ends streams one by one; its connections have no such field.
    if seen.version >= Version::HTTP_2 {
        response.headers_mut().remove(CONNECTION);
    } else if client.watch.has_lost_framing() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if seen.head {
        if let Some(length) = response.body().size_hint().exact() {
            response.headers_mut().insert(CONTENT_LENGTH, answer::number(length));
        }
        *response.body_mut() = Body::Whole(Bytes::new());
    }
    client.watch.held().answers(response.body().charged_bytes());
    response
}

/// Counts an operation. Errors are the node's or the cluster's: 500 and above.
pub(super) fn count(node: &Node, op: Op, started: Instant, response: &Response) {
    // A batch under way counts itself when it is through.
    if op == Op::Batch && response.status().is_success() {
        return;
    }
    node.metrics.op(op).record(started.elapsed(), !response.status().is_server_error());
}

/// The router's way.
async fn routed(
    client: &Arc<Client>,
    limits: Limits,
    grant: &Grant,
    request: Request<Upload>,
) -> Response {
    use tower_service::Service;

    let mut request = request.map(axum::body::Body::new);
    request.extensions_mut().insert(Arc::clone(client));
    request.extensions_mut().insert(limits);
    request.extensions_mut().insert(grant.clone());
    let response: RoutedResponse = match client.node.router.clone().call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let mut response = response.map(|body| match body.size_hint().exact() {
        Some(0) => Body::Whole(Bytes::new()),
        _ => Body::Streamed(body),
    });
    answer::harden(response.headers_mut());
    response
}

/// The routes beside the keys' own.
pub(super) fn router() -> Router {
    Router::new()
        .route("/", routing::get(welcome))
        .route(openapi::PATH, routing::get(document))
        .route(listing::PATH, routing::get(list).delete(delete_prefix))
        .route(batch::PATH, routing::post(run_batch))
        .method_not_allowed_fallback(wrong_method)
        .fallback(nowhere)
}

type OfClient = Extension<Arc<Client>>;
type InLimits = Extension<Limits>;
type Granted = Extension<Grant>;

fn respond(answered: Result<Response, Problem>) -> RoutedResponse {
    answered.unwrap_or_else(Problem::into_response).map(axum::body::Body::new)
}

async fn welcome(request: RoutedRequest) -> RoutedResponse {
    let takes_nothing = Query::parse(request.uri().query(), &[]);
    respond(takes_nothing.map_err(Problem::from).map(|_| answer::json(WELCOME.into())))
}

const WELCOME: &str = concat!(
    "{\"name\":\"aegiskv\",\"version\":\"",
    env!("CARGO_PKG_VERSION"),
    "\",\"api\":\"/openapi.json\",\"docs\":\"docs/api.md, and the manual: man aegiskv\"}"
);

async fn document(
    Extension(client): OfClient,
    Extension(limits): InLimits,
    request: RoutedRequest,
) -> RoutedResponse {
    let needs_token = !client.node.settings.load().tokens.is_empty();
    let takes_nothing = Query::parse(request.uri().query(), &[]);
    respond(
        takes_nothing
            .map_err(Problem::from)
            .map(|_| answer::json(client.node.document(limits, needs_token))),
    )
}

async fn list(
    Extension(client): OfClient,
    Extension(grant): Granted,
    request: RoutedRequest,
) -> RoutedResponse {
    let (head, _) = request.into_parts();
    respond(listing::list(&client, &grant, head.uri.query()).await)
}

async fn delete_prefix(
    Extension(client): OfClient,
    Extension(limits): InLimits,
    Extension(grant): Granted,
    request: RoutedRequest,
) -> RoutedResponse {
    respond(listing::delete(&client, limits, &grant, request).await)
}

async fn run_batch(
    Extension(client): OfClient,
    Extension(limits): InLimits,
    Extension(grant): Granted,
    request: RoutedRequest,
) -> RoutedResponse {
    respond(batch::answer(client, limits, grant, request).await)
}

async fn wrong_method(request: RoutedRequest) -> RoutedResponse {
    let path = request.uri().path();
    let allow = ROUTES.iter().find(|(route, _)| *route == path).map_or("GET", |(_, allow)| allow);
    respond(Err(Problem::method_not_allowed(allow)))
}

async fn nowhere() -> RoutedResponse {
    let detail = "keys are at /v1/kv/{key}, listings at /v1/kv?prefix=, batches at /v1/batch; \
                  /openapi.json describes them all";
    respond(Err(Problem::new(Kind::NoSuchRoute, detail)))
}
