//! Batches that last while tokens are withdrawn, given other rights, or another rate.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use aegiskv::api::{Holder, Rate, Rights, Settings, Verb};
use aegiskv::metrics::{Metrics, Readings, TokenMetrics};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::harness::{Client, Node, node_with};

const LINES: &str = "Content-Type: application/x-ndjson";
const SHOP: &str = "Authorization: Bearer shop";

/// Settings with a token of `shop` and one of `all`; `rights` are those of `shop`.
fn settings(token: &str, verbs: &[Verb], prefixes: &[&str], rate: u32) -> Settings {
    let rate = NonZeroU32::new(rate).map(|n| Rate { per_second: n, burst: n });
    let prefixes = prefixes.iter().map(ToString::to_string).collect();
    let rights = Rights { verbs: verbs.to_vec(), prefixes, rate };
    let shop = Holder::new("shop", [token], Some(rights), TokenMetrics::default());
    let all = Holder::new("all", ["all"], None, TokenMetrics::default());
    Settings { tokens: [shop, all].into_iter().collect(), ..Settings::default() }
}

const BOTH: &[Verb] = &[Verb::Read, Verb::Write];

async fn open(node: &Node, headers: &[&str]) -> Client<TcpStream> {
    let mut client = node.connect().await;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    client
        .send(format!(
            "POST /v1/batch HTTP/1.1\r\nhost: node\r\n{LINES}\r\n{headers}\
             transfer-encoding: chunked\r\n\r\n"
        ))
        .await;
    client
}

async fn send(client: &mut Client<TcpStream>, text: &str) {
    client.send(format!("{:x}\r\n{text}\r\n", text.len())).await;
}

/// Sends a line, and gives its result.
async fn line(client: &mut Client<TcpStream>, operation: Value) -> Value {
    send(client, &format!("{operation}\n")).await;
    serde_json::from_slice(&client.chunk().await).expect("a result")
}

fn put(key: &str) -> Value {
    json!({ "op": "put", "key": key, "value": "1" })
}

#[tokio::test]
async fn a_line_after_its_token_was_withdrawn_is_refused_and_ends_the_stream() {
    // The file was rotated; the entry was removed; another one has its name.
    let without = {
        let all = Holder::new("all", ["all"], None, TokenMetrics::default());
        Settings { tokens: [all].into_iter().collect(), ..Settings::default() }
    };
    for after in [settings("rotated", BOTH, &[], 0), without] {
        let node = node_with(settings("shop", BOTH, &[], 0)).await;
        let mut client = open(&node, &[SHOP]).await;
        send(&mut client, &format!("{}\n", put("shop:1"))).await;
        client.head().await;
        let stored: Value = serde_json::from_slice(&client.chunk().await).unwrap();
        assert_eq!(stored["status"], 201);
        node.apply(after);
        send(&mut client, "\n\n").await;
        let refused = line(&mut client, put("shop:2")).await;
        assert_eq!((&refused["status"], &refused["retryable"]), (&json!(401), &json!(false)));
        assert_eq!(client.chunk().await, b"", "the stream goes on");
        client.closed().await;
        let asked = node.ask("GET /v1/kv/shop:2", &["Authorization: Bearer all"], "").await;
        asked.problem(404);
        assert_eq!(node.metric("aegis_unauthorized_requests_total"), 1.0);
    }
}

#[tokio::test]
async fn a_line_is_judged_by_the_verbs_prefixes_and_tokens_in_force() {
    let node = node_with(settings("shop", BOTH, &[], 0)).await;
    let mut client = open(&node, &[SHOP]).await;
    send(&mut client, &format!("{}\n", put("shop:1"))).await;
    client.head().await;
    client.chunk().await;
    let reply = line(&mut client, put("cart:1")).await;
    assert_eq!(reply["status"], 201);
    node.apply(settings("shop", BOTH, &["shop:"], 0));
    assert_eq!(line(&mut client, put("cart:1")).await["status"], 403);
    assert_eq!(line(&mut client, put("shop:1")).await["status"], 204);
    node.apply(settings("shop", &[Verb::Read], &[], 0));
    assert_eq!(line(&mut client, put("shop:1")).await["status"], 403);
    assert_eq!(line(&mut client, json!({ "op": "get", "key": "cart:1" })).await["status"], 200);
    // What is given is given at once, too.
    node.apply(settings("shop", BOTH, &[], 0));
    assert_eq!(line(&mut client, put("cart:1")).await["status"], 204);
}

#[tokio::test]
async fn a_stream_without_a_token_ends_once_one_is_asked_for() {
    let node = node_with(Settings::default()).await;
    let mut nobody = open(&node, &[]).await;
    let mut shop = open(&node, &[SHOP]).await;
    for client in [&mut nobody, &mut shop] {
        send(client, &format!("{}\n", put("a"))).await;
        client.head().await;
        client.chunk().await;
    }
    node.apply(settings("shop", BOTH, &[], 0));
    assert_eq!(line(&mut nobody, put("a")).await["status"], 401);
    assert_eq!(nobody.chunk().await, b"");
    // Whoever showed one that counts now goes on.
    assert_eq!(line(&mut shop, put("a")).await["status"], 204);
    node.apply(Settings::default());
    assert_eq!(line(&mut shop, put("a")).await["status"], 204);
}

#[tokio::test]
async fn limits_hold_for_the_lines_of_a_stream_from_when_they_are_set() {
    let node = node_with(Settings::default()).await;
    let mut client = open(&node, &[]).await;
    send(&mut client, &format!("{}\n", put("a"))).await;
    client.head().await;
    client.chunk().await;
    node.apply(Settings { max_key_bytes: 3, ..Settings::default() });
    assert_eq!(line(&mut client, put("abcd")).await["status"], 413);
    assert_eq!(line(&mut client, put("abc")).await["status"], 201);
}

#[tokio::test]
async fn reloads_do_not_multiply_a_tokens_rate() {
    let began = Instant::now();
    let node = node_with(settings("shop", BOTH, &[], 20)).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = open(&node, &[SHOP]).await;
        let gets = format!("{}\n", json!({ "op": "get", "key": "a" })).repeat(20);
        send(&mut client, &gets).await;
        client.send("0\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.apply(settings("shop", BOTH, &[], 20));
        clients.push(client);
    }
    for mut client in clients {
        let reply = client.reply().await;
        assert_eq!(reply.text().lines().count(), 20);
    }
    // Twenty at once, and forty more at twenty a second.
    assert!(began.elapsed() >= Duration::from_millis(1900), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_reload_gives_no_rest_to_a_token_that_keeps_its_rate_and_another_rate_holds_at_once() {
    let node = node_with(settings("shop", BOTH, &[], 2)).await;
    for _ in 0..2 {
        node.ask("GET /v1/kv/a", &[SHOP], "").await.problem(404);
        node.apply(settings("shop", BOTH, &["a"], 2));
    }
    node.ask("GET /v1/kv/a", &[SHOP], "").await.problem(429);
    node.apply(settings("shop", BOTH, &["a"], 3));
    node.ask("GET /v1/kv/a", &[SHOP], "").await.problem(404);
}

#[tokio::test]
async fn operations_of_a_batch_that_are_forbidden_are_counted() {
    let metrics = Metrics::new();
    let rights = Rights { verbs: BOTH.to_vec(), prefixes: vec!["shop:".to_owned()], rate: None };
    let shop = Holder::new("shop", ["shop"], Some(rights), metrics.of_token("shop"));
    let tokens = [shop].into_iter().collect();
    let node = node_with(Settings { tokens, ..Settings::default() }).await;
    let ops: Vec<_> = ["a", "shop:1", "b"].map(put).to_vec();
    let document = json!({ "ops": ops }).to_string();
    let json = "Content-Type: application/json";
    assert_eq!(node.ask("POST /v1/batch", &[SHOP, json], document).await.status, 200);
    let lines: String = ops.iter().map(|op| format!("{op}\n")).collect();
    assert_eq!(node.ask("POST /v1/batch", &[SHOP, LINES], lines).await.status, 200);
    let text = metrics.render(&Readings::default());
    for sample in [
        r#"aegis_token_requests_total{outcome="forbidden",token="shop"} 4"#,
        r#"aegis_token_requests_total{outcome="let_in",token="shop"} 2"#,
    ] {
        assert!(text.contains(sample), "{sample} is not in {text}");
    }
}

#[tokio::test]
async fn a_token_for_no_keys_sends_no_batch() {
    let node = node_with(settings("shop", &[Verb::Metrics], &[], 0)).await;
    for kind in [LINES, "Content-Type: application/json"] {
        // Nothing of the body is waited for.
        let mut client = node.connect().await;
        client
            .send(format!(
                "POST /v1/batch HTTP/1.1\r\nhost: node\r\n{SHOP}\r\n{kind}\r\ncontent-length: 99\r\n\r\n"
            ))
            .await;
        let detail = client.reply().await.problem(403);
        assert!(detail.contains("that of shop has metrics"), "{detail}");
    }
}

#[tokio::test]
async fn a_batch_beyond_what_the_rate_ever_allows_at_once_is_told_so() {
    let node = node_with(settings("shop", BOTH, &[], 5)).await;
    let document = json!({ "ops": vec![put("a"); 6] }).to_string();
    let reply =
        node.ask("POST /v1/batch", &[SHOP, "Content-Type: application/json"], document).await;
    let detail = reply.problem(429);
    assert!(detail.contains("6 operations") && detail.contains("at most 5"), "{detail}");
    assert!(!detail.contains("Retry-After"), "{detail}");
    assert_eq!((&reply.json()["retryable"], reply.header("retry-after")), (&json!(false), None));
}
