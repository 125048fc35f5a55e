//! The stop lease by the FleetLock protocol, as Zincati, airlock's clients and others speak it: an
//! operating system that wants to reboot asks first, and says when it is done.
//!
//! Its one deviation: after a reboot the lease is given back once the node is level again, however
//! often the client says before that it is done; until then it is told to ask again.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::actions::to_its_end;
use super::lease::{LEASE_TTL, LeaseRefusal, LeaseRequest};
use super::stop_lease::{checked_holder, read_json};
use super::{Node, Problem, Shared};

const HEADER: HeaderName = HeaderName::from_static("fleet-lock-protocol");

/// A problem of this port's own is shorter, in bytes.
const PROBLEM_BYTES_MAX: usize = 1 << 20;

const EXAMPLE: &str = r#"{"client_params":{"id":"kv1","group":"default"}}"#;

/// What a client sends. What it sends besides is its own affair.
#[derive(Deserialize)]
struct Ask {
    client_params: Client,
}

#[derive(Deserialize)]
struct Client {
    id: String,
    group: String,
}

/// A client, and the names by which it may mean a node.
struct Asked {
    holder: String,
    names: [String; 2],
}

/// An error in the protocol's words.
struct Refused {
    status: StatusCode,
    kind: &'static str,
    value: String,
}

pub(super) async fn pre_reboot<N: Node>(
    State(shared): State<Shared<N>>,
    request: Request,
) -> Response {
    let asked = match read(request).await {
        Ok(asked) => asked,
        Err(refused) => return refused.into_response(),
    };
    let Asked { holder, names } = asked;
    let granted = to_its_end(shared.node, |node| async move {
        let granted = of_known(names, |node_id| {
            let request = LeaseRequest { node_id, holder: holder.clone(), ttl: LEASE_TTL };
            let node = Arc::clone(&node);
            async move { node.acquire_lease(&request).await }
        });
        Ok::<_, Problem>(granted.await)
    });
    answer(granted.await.map(|granted| granted.map(drop)))
}

pub(super) async fn steady_state<N: Node>(
    State(shared): State<Shared<N>>,
    request: Request,
) -> Response {
    let asked = match read(request).await {
        Ok(asked) => asked,
        Err(refused) => return refused.into_response(),
    };
    let Asked { holder, names } = asked;
    let settled = to_its_end(shared.node, |node| async move {
        let settled = of_known(names, |name| {
            let (node, holder) = (Arc::clone(&node), holder.clone());
            async move { node.settle_lease(&name, &holder).await }
        });
        Ok::<_, Problem>(settled.await)
    });
    answer(settled.await)
}

/// What the first of these names comes to that a node has.
async fn of_known<T, F: Future<Output = Result<T, LeaseRefusal>>>(
    [id, group]: [String; 2],
    ask: impl Fn(String) -> F,
) -> Result<T, LeaseRefusal> {
    match ask(id.clone()).await {
        Err(LeaseRefusal::Unknown(_)) => {}
        other => return other,
    }
    match ask(group).await {
        Err(LeaseRefusal::Unknown(_)) => Err(LeaseRefusal::Unknown(id)),
        other => other,
    }
}

async fn read(request: Request) -> Result<Asked, Refused> {
    let bad =
        |value: String| Refused { status: StatusCode::BAD_REQUEST, kind: "bad_request", value };
    if !speaks_it(request.headers()) {
        return Err(bad(format!(
            "this is for clients of the FleetLock protocol: they send the header `{HEADER}: true`"
        )));
    }
    let body: Body = request.into_body();
    let as_refused = |problem: Problem| Refused::of(&problem, "bad_request");
    let Ask { client_params: Client { id, group } } =
        read_json(body, EXAMPLE).await.map_err(as_refused)?;
    // The group is for those clients whose id is the machine's and cannot be chosen.
    let holder = checked_holder(format!("FleetLock {id}")).map_err(as_refused)?;
    Ok(Asked { holder, names: [id, group] })
}

fn speaks_it(headers: &HeaderMap) -> bool {
    headers.get(HEADER).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

fn answer(done: Result<Result<(), LeaseRefusal>, Problem>) -> Response {
    match done {
        Ok(Ok(())) => StatusCode::OK.into_response(),
        Ok(Err(refusal)) => {
            let kind = match &refusal {
                LeaseRefusal::Unknown(_) => "unknown_node",
                LeaseRefusal::Held(_) => "held",
                LeaseRefusal::Unsafe(_) => "unsafe",
                LeaseRefusal::NotBack(_) => "not_back",
                LeaseRefusal::Elsewhere(_) => "elsewhere",
                LeaseRefusal::NotAgreed { .. } => "not_agreed",
            };
            Refused::of(&Problem::from(refusal), kind).into_response()
        }
        Err(problem) => Refused::of(&problem, "failed").into_response(),
    }
}

/// An answer that was given before the protocol had its turn, as the protocol has it.
pub(super) async fn in_its_words(response: Response) -> Response {
    let is_problem = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value == "application/problem+json");
    if !is_problem {
        return response;
    }
    let (head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, PROBLEM_BYTES_MAX).await.unwrap_or_default();
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let value = problem["detail"].as_str().unwrap_or_default().to_owned();
    let mut refused = Refused { status: head.status, kind: "not_allowed", value }.into_response();
    if let Some(challenge) = head.headers.get(WWW_AUTHENTICATE) {
        refused.headers_mut().insert(WWW_AUTHENTICATE, challenge.clone());
    }
    refused
}

impl Refused {
    fn of(problem: &Problem, kind: &'static str) -> Self {
        Self { status: problem.status(), kind, value: problem.detail().to_owned() }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "kind": self.kind, "value": self.value }))).into_response()
    }
}
