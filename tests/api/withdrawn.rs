//! Batches that last while tokens are withdrawn, given other rights, or another rate.

use std::num::NonZeroU32;

use aegiskv::api::{Holder, Rate, Rights, Settings, Verb};
use aegiskv::metrics::TokenMetrics;
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
