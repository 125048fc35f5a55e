//! Tokens that open a part only: by what is done, by the keys, and how fast.

use std::num::NonZeroU32;

use aegiskv::api::{Holder, Rate, Rights, Settings, Verb};
use aegiskv::metrics::Metrics;
use serde_json::{Value, json};

use crate::harness::{Node, Reply, node_with};

const ALL: &str = "Authorization: Bearer all";
const SHOP: &str = "Authorization: Bearer shop-1";
const READER: &str = "Authorization: Bearer reader-1";
const OPERATOR: &str = "Authorization: Bearer operator-1";

fn holder(metrics: &Metrics, name: &str, rights: Option<Rights>) -> Holder {
    let tokens = match rights {
        None => vec![name.to_owned()],
        Some(_) => [1, 2].map(|n| format!("{name}-{n}")).to_vec(),
    };
    Holder::new(name, tokens, rights, metrics.of_token(name))
}

/// One token for everything, one for all of `shop:` and `cart:`, one that reads, one for operators.
fn settings(rate: Option<Rate>) -> (Settings, Metrics) {
    let metrics = Metrics::new();
    let rights = |verbs: &[Verb], prefixes: &[&str]| {
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        Some(Rights { verbs: verbs.to_vec(), prefixes, rate })
    };
    let tokens = [
        holder(&metrics, "all", None),
        holder(&metrics, "shop", rights(&[Verb::Read, Verb::Write], &["shop:", "cart:"])),
        holder(&metrics, "reader", rights(&[Verb::Read], &[])),
        holder(&metrics, "operator", rights(&[Verb::Admin, Verb::Metrics], &[])),
    ];
    (Settings { tokens: tokens.into_iter().collect(), ..Settings::default() }, metrics)
}

async fn with_keys() -> Node {
    let node = node_with(settings(None).0).await;
    for key in ["shop:1", "ship:1", "cart:1"] {
        assert_eq!(node.ask(&format!("PUT /v1/kv/{key}"), &[ALL], "1").await.status, 201);
    }
    node
}

fn forbidden(reply: &Reply, what: &str) {
    let detail = reply.problem(403);
    assert!(detail.contains(what) && detail.contains("auth_tokens"), "{detail}");
}

#[tokio::test]
async fn whoever_reads_changes_nothing_and_operators_see_no_keys() {
    let node = with_keys().await;
    assert_eq!(node.ask("GET /v1/kv/shop:1", &[READER], "").await.status, 200);
    assert_eq!(node.ask("HEAD /v1/kv/ship:1", &[READER], "").await.status, 200);
    assert_eq!(
        node.ask("GET /v1/kv", &[READER], "").await.json()["keys"].as_array().unwrap().len(),
        3
    );
    for line in [
        "PUT /v1/kv/shop:1",
        "PUT /v1/kv/new",
        "DELETE /v1/kv/shop:1",
        "POST /v1/kv/shop:1?op=incr",
        "POST /v1/kv/shop:1?op=touch&ttl=1ms",
        "DELETE /v1/kv?prefix=s",
        "DELETE /v1/kv?prefix=s&dry_run=true",
    ] {
        forbidden(&node.ask(line, &[READER], "").await, "the verb write; that of reader has read");
        forbidden(&node.ask(line, &[OPERATOR], "").await, "that of operator has admin, metrics");
    }
    for line in ["GET /v1/kv/shop:1", "GET /v1/kv/none", "GET /v1/kv?prefix=shop:"] {
        forbidden(&node.ask(line, &[OPERATOR], "").await, "the verb read");
    }
    assert_eq!(node.ask("GET /v1/kv/shop:1", &[ALL], "").await.body, b"1");
    // Whoever nobody knows is told nothing of rights.
    node.ask("GET /v1/kv/shop:1", &["Authorization: Bearer shop-3"], "").await.problem(401);
}

#[tokio::test]
async fn prefixes_bound_keys_listings_and_deletions() {
    let node = with_keys().await;
    for token in [SHOP, "Authorization: Bearer shop-2"] {
        assert_eq!(node.ask("GET /v1/kv/shop:1", &[token], "").await.status, 200);
    }
    assert_eq!(node.ask("PUT /v1/kv/cart:2", &[SHOP], "1").await.status, 201);
    // The key as it is, however it is spelled.
    assert_eq!(node.ask("GET /v1/kv/%73hop%3A1", &[SHOP], "").await.status, 200);
    for outside in ["ship:1", "shop", "SHOP:1", "%00shop:1", "x%2Fshop:1", "../kv/ship:1"] {
        let reply = node.ask(&format!("GET /v1/kv/{outside}"), &[SHOP], "").await;
        forbidden(&reply, "keys that begin with \"shop:\" or \"cart:\"");
        forbidden(&node.ask(&format!("PUT /v1/kv/{outside}"), &[SHOP], "2").await, "shop");
    }
    let listed = node.ask("GET /v1/kv?prefix=shop:&limit=1", &[SHOP], "").await.json();
    assert_eq!(listed["keys"][0]["key"], "shop:1");
    for query in ["", "?prefix=", "?prefix=s", "?prefix=shop", "?prefix=ship:"] {
        forbidden(&node.ask(&format!("GET /v1/kv{query}"), &[SHOP], "").await, "begin with");
    }
    // A page's cursor leads nowhere else.
    let page = node.ask("GET /v1/kv?limit=1", &[ALL], "").await.json();
    let cursor = page["cursor"].as_str().unwrap();
    let next = node.ask(&format!("GET /v1/kv?prefix=shop:&cursor={cursor}"), &[SHOP], "").await;
    if next.status == 200 {
        let keys = next.json()["keys"].as_array().unwrap().clone();
        assert!(
            keys.iter().all(|key| key["key"].as_str().unwrap().starts_with("shop:")),
            "{keys:?}"
        );
    } else {
        next.problem(400);
    }
    forbidden(&node.ask("DELETE /v1/kv?prefix=s", &[SHOP], "").await, "begin with");
    assert_eq!(node.ask("DELETE /v1/kv?prefix=shop:", &[SHOP], "").await.json()["deleted"], 1);
    assert_eq!(node.ask("GET /v1/kv/ship:1", &[ALL], "").await.body, b"1");
}

#[tokio::test]
async fn each_operation_of_a_batch_is_judged_by_itself() {
    let node = with_keys().await;
    let ops = [
        json!({ "op": "get", "key": "shop:1" }),
        json!({ "op": "get", "key": "ship:1" }),
        json!({ "op": "put", "key": "shop:2", "value": "2" }),
        json!({ "op": "delete", "key": "ship:1" }),
        json!({ "op": "incr", "key": "cart:1" }),
    ];
    let statuses = |results: &[Value]| -> Vec<u64> {
        results.iter().map(|result| result["status"].as_u64().unwrap()).collect()
    };
    let document = json!({ "ops": ops }).to_string();
    let json = "Content-Type: application/json";
    let whole = node.ask("POST /v1/batch", &[SHOP, json], &document).await;
    let results = whole.json()["results"].as_array().unwrap().clone();
    assert_eq!(statuses(&results), [200, 403, 201, 403, 200]);
    assert_eq!(results[1]["type"], "urn:aegiskv:problem:forbidden");
    let read = node.ask("POST /v1/batch", &[READER, json], &document).await;
    assert_eq!(statuses(read.json()["results"].as_array().unwrap()), [200, 200, 403, 403, 403]);
    let lines: String = ops.iter().map(|op| format!("{op}\n")).collect();
    let lined =
        node.ask("POST /v1/batch", &[SHOP, "Content-Type: application/x-ndjson"], &lines).await;
    let text = String::from_utf8(lined.body).unwrap();
    let results: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(statuses(&results), [200, 403, 204, 403, 200]);
    assert_eq!(node.ask("GET /v1/kv/ship:1", &[ALL], "").await.body, b"1");
}

#[tokio::test]
async fn a_tokens_rate_is_for_all_its_connections() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let (settings, metrics) = settings(Some(Rate { per_second: n(1), burst: n(4) }));
    let node = node_with(settings).await;
    for _ in 0..2 {
        // On a connection each.
        node.ask("GET /v1/kv/a", &[READER], "").await.problem(404);
        node.ask("GET /v1/kv/a", &["Authorization: Bearer reader-2"], "").await.problem(404);
    }
    let refused = node.ask("GET /v1/kv/a", &[READER], "").await;
    assert!(refused.problem(429).contains("the token's rate"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    // The others have theirs.
    node.ask("GET /v1/kv/shop:1", &[SHOP], "").await.problem(404);
    node.ask("GET /v1/kv/a", &[ALL], "").await.problem(404);
    let batch = json!({ "ops": vec![json!({ "op": "get", "key": "shop:1" }); 5] }).to_string();
    node.ask("POST /v1/batch", &[SHOP], &batch).await.problem(429);
    let text = metrics.render(&aegiskv::metrics::Readings::default());
    for sample in [
        r#"aegis_token_requests_total{outcome="let_in",token="reader"} 4"#,
        r#"aegis_token_requests_total{outcome="limited",token="reader"} 1"#,
        r#"aegis_token_requests_total{outcome="limited",token="shop"} 1"#,
        r#"aegis_token_requests_total{outcome="forbidden",token="all"} 0"#,
    ] {
        assert!(text.contains(sample), "{sample} is not in {text}");
    }
}

#[tokio::test]
async fn what_a_tokens_rate_refuses_costs_the_connection_nothing() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let (settings, _) = settings(Some(Rate { per_second: n(1), burst: n(4) }));
    let rate = Some(Rate { per_second: n(1), burst: n(6) });
    let node = node_with(Settings { rate, ..settings }).await;
    let mut client = node.connect().await;
    let batch = json!({ "ops": vec![json!({ "op": "get", "key": "a" }); 5] }).to_string();
    client.ask("POST /v1/batch", &[READER], &batch).await.problem(429);
    for _ in 0..4 {
        client.ask("GET /v1/kv/a", &[READER], "").await.problem(404);
    }
    client.ask("GET /v1/kv/a", &[READER], "").await.problem(429);
    for _ in 0..2 {
        client.ask("GET /v1/kv/a", &[ALL], "").await.problem(404);
    }
    let refused = client.ask("GET /v1/kv/a", &[ALL], "").await;
    assert!(refused.problem(429).contains("rate_limit"), "six were let in");
}
