//! Which requests are taken at all, and who may act on the node: whoever has a token, or, while
//! none is set, whoever is on the machine.

use super::places::Visit;
use super::{Node, Peer, Problem, Shared};
use crate::api::{Tokens, Verb, framing};
use crate::complaint::{brief, complain};
use axum::extract::{Extension, Request, State};
use axum::http::header::{
    AUTHORIZATION, CONNECTION, FORWARDED, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Takes a request in, or says what is wrong with its head.
pub(super) async fn admit<N: Node>(
    State(shared): State<Shared<N>>,
    visit: Option<Extension<Visit>>,
    request: Request,
    next: Next,
) -> Response {
    let is_probe = matches!(request.uri().path(), "/live" | "/health" | "/ready");
    let is_known = shows_token(&shared.node.tokens(), request.headers());
    let _weight = visit.and_then(|Extension(visit)| match (is_known, is_probe) {
        (true, _) => Some(visit.trust()),
        (false, true) => Some(visit.probe()),
        (false, false) => None,
    });
    // Who is known waits for no stranger.
    match is_probe {
        true => shared.lanes.probes.pass().await,
        false if is_known => {}
        false => shared.lanes.others.pass().await,
    }
    let judged = framing::check(&request).map_err(Problem::doubtful).and_then(|()| {
        if !shared.node.tokens().is_empty() {
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

fn shows_token(tokens: &Tokens, headers: &HeaderMap) -> bool {
    headers.get(AUTHORIZATION).is_some_and(|value| tokens.shown_in(value).is_some())
}

/// Lets a request through to the actions, or says what it lacks.
pub(super) async fn guard<N: Node>(
    State(shared): State<Shared<N>>,
    Extension(Peer(peer)): Extension<Peer>,
    visit: Option<Extension<Visit>>,
    request: Request,
    next: Next,
) -> Response {
    let tokens = shared.node.tokens();
    let allowed = if tokens.is_empty() {
        let is_loopback = peer.ip().to_canonical().is_loopback();
        from_this_machine(is_loopback, request.headers()).map(|()| None)
    } else {
        with_token(&shared, &tokens, Verb::Admin, request.headers()).map(Some)
    };
    match allowed {
        Ok(token) => {
            let action = brief(request.uri().path());
            tracing::info!(%peer, %action, token, "operator's request");
            let _trusted = visit.map(|Extension(visit)| visit.trust());
            next.run(request).await
        }
        Err(problem) => {
            let (kind, action) = (problem.kind(), brief(request.uri().path()));
            // Of a token that is known, which lacks the right.
            let shown = request.headers().get(AUTHORIZATION);
            let token = shown.and_then(|value| tokens.shown_in(value)).map(|holder| holder.name());
            complain!(WARN, kind, %peer, %action, token, "operator's request refused");
            problem.into_response()
        }
    }
}

/// Lets a request through to the metrics, or says what it lacks. They are open to all until a token
/// is for them by name.
pub(super) async fn guard_metrics<N: Node>(
    State(shared): State<Shared<N>>,
    request: Request,
    next: Next,
) -> Response {
    let tokens = shared.node.tokens();
    if tokens.guard_metrics()
        && let Err(problem) = with_token(&shared, &tokens, Verb::Metrics, request.headers())
    {
        return problem.into_response();
    }
    next.run(request).await
}

/// The name of the token that a request shows, if it is for `verb`.
fn with_token<N>(
    shared: &Shared<N>,
    tokens: &Tokens,
    verb: Verb,
    headers: &HeaderMap,
) -> Result<String, Problem> {
    let unauthorized = |detail| {
        shared.metrics.unauthorized.inc();
        Problem::unauthorized(detail)
    };
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Err(unauthorized(
            "this needs the header `Authorization: Bearer TOKEN` with one of the node's tokens",
        ));
    };
    let Some(holder) = tokens.shown_in(value) else {
        return Err(unauthorized("the token is none that this node accepts"));
    };
    let judged = holder.may(verb).map_err(Problem::forbidden);
    holder.count(judged.as_ref().map_or(StatusCode::FORBIDDEN, |()| StatusCode::OK));
    judged.map(|()| holder.name().to_owned())
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
