//! Which requests are taken at all, and who may act on the node: whoever has a token, or, while
//! none is set, whoever is on the machine.

use super::places::Visit;
use super::{Node, Peer, Problem, Shared};
use crate::api::{Holder, Verb, framing};
use crate::complaint::{brief, complain};
use axum::extract::{Extension, Request, State};
use axum::http::header::{
    AUTHORIZATION, CONNECTION, FORWARDED, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Whose token a request shows.
#[derive(Clone)]
pub(super) struct Known(Option<Arc<Holder>>);

/// Takes a request in, or says what is wrong with its head.
pub(super) async fn admit<N: Node>(
    State(shared): State<Shared<N>>,
    visit: Option<Extension<Visit>>,
    mut request: Request,
    next: Next,
) -> Response {
    let is_probe = matches!(request.uri().path(), "/live" | "/health" | "/ready");
    let tokens = shared.node.tokens();
    let shown = request.headers().get(AUTHORIZATION);
    let known = shown.and_then(|value| tokens.shown_in(value)).cloned();
    let may = |verb| known.as_ref().is_some_and(|holder| holder.may(verb).is_ok());
    let is_operator = may(Verb::Admin);
    let is_known = is_operator || may(Verb::Metrics);
    request.extensions_mut().insert(Known(known));
    let _weight = visit.and_then(|Extension(visit)| match (is_operator, is_probe) {
        (true, _) => Some(visit.trust()),
        (false, true) => Some(visit.probe()),
        (false, false) => None,
    });
    // Who is known waits for no stranger; who has a token for keys is none here.
    match is_probe {
        true => shared.lanes.probes.pass().await,
        false if is_known => {}
        false => shared.lanes.others.pass().await,
    }
    let judged = framing::check(&request).map_err(Problem::doubtful).and_then(|()| {
        if !tokens.is_empty() {
            return Ok(());
        }
        shared
            .node
            .sites()
            .check(&request)
            .map_err(|foreign| Problem::forbidden(foreign.to_string()))
    });
    // A body in chunks need not be read to its end, and what hyper takes for that end need not be
    // what a proxy took for it.
    let last = judged.is_err() || request.headers().contains_key(TRANSFER_ENCODING);
    let mut response = match judged {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    if last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Lets a request through to the actions, or says what it lacks.
pub(super) async fn guard<N: Node>(
    State(shared): State<Shared<N>>,
    Extension(Peer(peer)): Extension<Peer>,
    Extension(Known(known)): Extension<Known>,
    visit: Option<Extension<Visit>>,
    request: Request,
    next: Next,
) -> Response {
    let allowed = if shared.node.tokens().is_empty() {
        let is_loopback = peer.ip().to_canonical().is_loopback();
        from_this_machine(is_loopback, request.headers())
    } else {
        with_token(&shared, known.as_deref(), Verb::Admin, request.headers())
    };
    // Refused, it is known but lacks the right.
    let token = known.as_ref().map(|holder| holder.name());
    match allowed {
        Ok(()) => {
            let action = brief(request.uri().path());
            tracing::info!(%peer, %action, token, "operator's request");
            let _trusted = visit.map(|Extension(visit)| visit.trust());
            next.run(request).await
        }
        Err(problem) => {
            let (kind, action) = (problem.kind(), brief(request.uri().path()));
            complain!(WARN, kind, %peer, %action, token, "operator's request refused");
            problem.into_response()
        }
    }
}

/// Lets a request through to the metrics, or says what it lacks. They are open to all until a token
/// is for them by name.
pub(super) async fn guard_metrics<N: Node>(
    State(shared): State<Shared<N>>,
    Extension(Known(known)): Extension<Known>,
    request: Request,
    next: Next,
) -> Response {
    if shared.node.tokens().guard_metrics()
        && let Err(problem) =
            with_token(&shared, known.as_deref(), Verb::Metrics, request.headers())
    {
        return problem.into_response();
    }
    next.run(request).await
}

/// Whether the token that a request shows is for `verb`.
fn with_token<N>(
    shared: &Shared<N>,
    known: Option<&Holder>,
    verb: Verb,
    headers: &HeaderMap,
) -> Result<(), Problem> {
    let unauthorized = |detail| {
        shared.metrics.unauthorized.inc();
        Problem::unauthorized(detail)
    };
    let Some(holder) = known else {
        return Err(unauthorized(match headers.contains_key(AUTHORIZATION) {
            true => "the token is none that this node accepts",
            false => {
                "this needs the header `Authorization: Bearer TOKEN` with one of the node's tokens"
            }
        }));
    };
    let judged = holder.may(verb).map_err(Problem::forbidden);
    holder.count(judged.as_ref().map_or(StatusCode::FORBIDDEN, |()| StatusCode::OK));
    judged
}

/// Without a token the machine's own users may act. Those for whom a proxy on this machine speaks
/// may not; nor may web pages ([`admit`]).
fn from_this_machine(is_loopback: bool, headers: &HeaderMap) -> Result<(), Problem> {
    if !is_loopback {
        return Err(Problem::forbidden(
            "while auth_token is not set, actions are taken from this machine only: run the \
             request there, or set auth_token and send it as `Authorization: Bearer TOKEN`",
        ));
    }
    for name in [FORWARDED, FORWARDED_FOR] {
        if headers.contains_key(&name) {
            return Err(Problem::forbidden(format!(
                "while auth_token is not set, actions are taken from this machine only, and the \
                 header `{name}` says that a proxy is asking for somebody: set auth_token and \
                 send it as `Authorization: Bearer TOKEN`"
            )));
        }
    }
    Ok(())
}
