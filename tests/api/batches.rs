//! Batches: as a document, as lines.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use aegiskv::api::{Rate, Settings};
use serde_json::{Value, json};

use crate::harness::{Node, Reply, node, node_with};

const JSON: &str = "Content-Type: application/json";
const LINES: &str = "Content-Type: application/x-ndjson";

async fn batch(node: &Node, ops: Value) -> Vec<Value> {
    let reply = node.ask("POST /v1/batch", &[JSON], json!({"ops": ops}).to_string()).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    reply.assert_hardened();
    reply.json()["results"].as_array().unwrap().clone()
}

fn statuses(results: &[Value]) -> Vec<u64> {
    results.iter().map(|result| result["status"].as_u64().unwrap()).collect()
}

fn lines(reply: &Reply) -> Vec<Value> {
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn operations_are_carried_out_and_answered_in_order() {
    let node = node().await;
    let results = batch(
        &node,
        json!([
            {"op": "put", "key": "a", "value": "1", "ttl": "30s", "content_type": "text/plain"},
            {"op": "get", "key": "a"},
            {"op": "get", "key": "b"},
            {"op": "put", "key_base64": "/w==", "value_base64": "AP8="},
            {"op": "get", "key_base64": "/w=="},
            {"op": "incr", "key": "a", "by": 41},
            {"op": "put", "key": "a", "value": "x", "if_none_match": "*"},
            {"op": "touch", "key": "a", "ttl": 60},
            {"op": "delete", "key": "a"},
            {"op": "get", "key": "a"},
            {"op": "touch", "key": "a", "ttl": 60},
        ]),
    )
    .await;
    assert_eq!(statuses(&results), [201, 200, 404, 201, 200, 200, 412, 204, 204, 404, 404]);
    assert_eq!(results[0]["acks"], "1/1");
    assert_eq!(
        (&results[1]["value"], &results[1]["content_type"]),
        (&json!("1"), &json!("text/plain"))
    );
    assert_eq!(results[1]["version"], results[0]["version"]);
    assert!(results[1]["ttl_ms"].as_u64().unwrap() <= 30_000);
    assert_eq!((&results[4]["value"], &results[4]["value_base64"]), (&Value::Null, &json!("AP8=")));
    assert_eq!(results[5]["value"], "42");
    assert_eq!(results[6]["version"], results[5]["version"]);
    assert_eq!(results[6]["type"], "urn:aegiskv:problem:condition-failed");
    assert_eq!(node.metric("aegis_ops_total{op=\"batch\"}"), 1.0);
    assert_eq!(node.metric("aegis_ops_total{op=\"get\"}"), 4.0);
}

#[tokio::test]
async fn a_version_from_one_operation_is_a_condition_of_another() {
    let node = node().await;
    let etag = node.put("a", "1").await;
    for version in [etag.clone(), etag.trim_matches('"').to_owned()] {
        let put = json!({"op": "put", "key": "a", "value": "1", "if_match": version});
        let held = batch(&node, json!([{"op": "touch", "key": "a", "if_match": "1"}, put])).await;
        let expected = if version == etag { [412, 204] } else { [412, 412] };
        assert_eq!(statuses(&held), expected);
    }
}

#[tokio::test]
async fn a_batch_that_is_malformed_anywhere_is_refused_before_it_begins() {
    let node = node().await;
    for (ops, named) in [
        (json!([{"op": "put", "key": "a", "value": "1"}, {"op": "put", "key": "b"}]), "ops[1]"),
        (json!([{"op": "put", "key": "a", "value": "1", "ttl": "0"}]), "ttl"),
        (json!([{"op": "drop", "key": "a"}]), "drop"),
        (json!([{"op": "put", "key": "a", "value": "1", "ttll": "1s"}]), "ttll"),
        (json!("a"), "list"),
    ] {
        let body = json!({"ops": ops}).to_string();
        let detail = node.ask("POST /v1/batch", &[JSON], body).await.problem(400);
        assert!(detail.contains(named), "{detail}");
    }
    for body in ["", "{", "[]", "{}", "{\"ops\":[],\"x\":1}", "null", "\u{0}"] {
        node.ask("POST /v1/batch", &[JSON], body).await.problem(400);
    }
    node.get("/v1/kv/a").await.problem(404);
    assert_eq!(batch(&node, json!([])).await.len(), 0);
}

#[tokio::test]
async fn a_batch_of_another_type_is_refused_and_curls_own_counts_as_json() {
    let node = node().await;
    let refused = node.ask("POST /v1/batch", &["Content-Type: text/xml"], "<a/>").await;
    assert!(refused.problem(415).contains("application/x-ndjson"));
    for headers in [&[][..], &["Content-Type: application/x-www-form-urlencoded"]] {
        let reply = node.ask("POST /v1/batch", headers, "{\"ops\":[]}").await;
        assert_eq!(reply.text(), "{\"results\":[]}");
    }
}

#[tokio::test]
async fn batches_too_large_are_refused_naming_the_limit() {
    let node = node_with(Settings { max_value_bytes: 10, ..Settings::default() }).await;
    let many = json!({"ops": vec![json!({"op": "get", "key": "a"}); 10_001]}).to_string();
    let reply = node.ask("POST /v1/batch", &[JSON], many).await;
    assert!(reply.problem(413).contains("10000"));
    let many = json!({"ops": vec![json!({"op": "get", "key": "a"}); 1_001]}).to_string();
    let reply = node.ask("POST /v1/batch", &[JSON, "Idempotency-Key: k"], &many).await;
    assert!(reply.problem(413).contains("1000"));
    assert_eq!(node.ask("POST /v1/batch", &[JSON], &many).await.status, 200);
    let long = json!({"ops": [{"op": "put", "key": "a", "value": "x".repeat(11)}]}).to_string();
    assert!(
        node.ask("POST /v1/batch", &[JSON], long).await.problem(413).contains("max_value_bytes")
    );
    let huge = format!("{{\"ops\":[{}]}}", " ".repeat(1_048_600));
    assert!(node.ask("POST /v1/batch", &[JSON], huge).await.problem(413).contains("1048596"));
}

#[tokio::test]
async fn lines_are_answered_line_by_line_while_more_are_sent() {
    let node = node().await;
    let mut client = node.connect().await;
    client
        .send(format!(
            "POST /v1/batch HTTP/1.1\r\nhost: n\r\n{LINES}\r\ntransfer-encoding: chunked\r\n\r\n"
        ))
        .await;
    let line = b"{\"op\":\"incr\",\"key\":\"n\"}\n";
    for n in 1..=3 {
        client.send(format!("{:x}\r\n", line.len())).await;
        client.send(line).await;
        client.send("\r\n").await;
        if n == 1 {
            let head = client.head().await;
            assert!(head.contains("content-type: application/x-ndjson"), "{head}");
        }
        let result: Value = serde_json::from_slice(&client.chunk().await).unwrap();
        assert_eq!(result["value"], n.to_string());
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
    // The connection goes on.
    assert_eq!(client.ask("GET /v1/kv/n", &[], "").await.text(), "3");
}

#[tokio::test]
async fn a_bad_line_fails_alone_and_the_last_needs_no_line_end() {
    let node = node_with(Settings { max_value_bytes: 10, ..Settings::default() }).await;
    let body = concat!(
        "{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\n",
        "nonsense\n",
        "\n",
        "{\"op\":\"put\",\"key\":\"a\",\"value\":\"12345678901\"}\r\n",
        "{\"op\":\"get\",\"key\":\"a\"}",
    );
    let results = lines(&node.ask("POST /v1/batch", &[LINES], body).await);
    assert_eq!(statuses(&results), [201, 400, 413, 200]);
    assert!(results[2]["detail"].as_str().unwrap().contains("max_value_bytes"));
    assert_eq!(lines(&node.ask("POST /v1/batch", &[LINES], "\n").await).len(), 0);
}

#[tokio::test]
async fn many_lines_go_through_in_order() {
    let node = node().await;
    let body: String = (0..20_000)
        .map(|n| format!("{{\"op\":\"put\",\"key\":\"k{}\",\"value\":\"{n}\"}}\n", n % 7000))
        .collect();
    let results = lines(&node.ask("POST /v1/batch", &[LINES], body).await);
    assert_eq!(results.len(), 20_000);
    assert!(results[..7000].iter().all(|r| r["status"] == 201));
    assert!(results[7000..].iter().all(|r| r["status"] == 204));
    assert_eq!(node.get("/v1/kv/k5999").await.text(), "19999");
}

#[tokio::test]
async fn a_line_without_end_is_cut_off_with_the_limit_named() {
    let node = node_with(Settings { max_value_bytes: 10, ..Settings::default() }).await;
    let reply = node.ask("POST /v1/batch", &[LINES], "x".repeat(3 << 20)).await;
    let results = lines(&reply);
    assert_eq!(statuses(&results), [413]);
    assert!(results[0]["detail"].as_str().unwrap().contains("1048596"));
}

#[tokio::test]
async fn a_stream_that_stalls_is_told_so_and_ended() {
    let settings = Settings { read_timeout: Duration::from_millis(80), ..Settings::default() };
    let node = node_with(settings).await;
    let mut client = node.connect().await;
    let line = "{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\n{\"op\":\"pu";
    client
        .send(format!(
            "POST /v1/batch HTTP/1.1\r\nhost: n\r\n{LINES}\r\ncontent-length: 999\r\n\r\n{line}"
        ))
        .await;
    let reply = client.reply().await;
    assert_eq!(statuses(&lines(&reply)), [201, 408]);
    client.closed().await;
    assert_eq!(node.get("/v1/kv/a").await.text(), "1");
}

#[tokio::test]
async fn a_repeated_batch_under_one_idempotency_key_applies_once() {
    let node = node().await;
    let ops = json!({"ops": [{"op": "incr", "key": "n"}, {"op": "incr", "key": "n"}]}).to_string();
    for (headers, body) in [
        ([JSON, "Idempotency-Key: document"], ops.clone()),
        ([LINES, "Idempotency-Key: lines"], "{\"op\":\"incr\",\"key\":\"m\"}\n".repeat(2)),
    ] {
        let first = node.ask("POST /v1/batch", &headers, &body).await;
        let again = node.ask("POST /v1/batch", &headers, &body).await;
        assert_eq!(first.text(), again.text());
    }
    assert_eq!(node.get("/v1/kv/n").await.text(), "2");
    assert_eq!(node.get("/v1/kv/m").await.text(), "2");
}

#[tokio::test]
async fn a_document_costs_as_many_operations_as_it_holds_and_lines_are_held_up() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let rate = Some(Rate { per_second: n(50), burst: n(5) });
    let node = node_with(Settings { rate, ..Settings::default() }).await;
    let ops = |count| json!({"ops": vec![json!({"op": "get", "key": "a"}); count]}).to_string();
    let mut client = node.connect().await;
    let never = client.ask("POST /v1/batch", &[JSON], ops(6)).await;
    never.problem(429);
    assert_eq!(never.json()["retryable"], false);
    assert_eq!(client.ask("POST /v1/batch", &[JSON], ops(5)).await.status, 200);
    let later = client.ask("POST /v1/batch", &[JSON], ops(5)).await;
    later.problem(429);
    assert_eq!(later.header("retry-after"), Some("1"));

    let began = Instant::now();
    let body = "{\"op\":\"get\",\"key\":\"a\"}\n".repeat(15);
    let results = lines(&node.ask("POST /v1/batch", &[LINES], body).await);
    assert_eq!(statuses(&results), [404; 15]);
    // Five at once, ten more at fifty a second.
    assert!(began.elapsed() >= Duration::from_millis(190), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_documents_answer_gets_no_values_beyond_its_bound_and_lines_have_none() {
    let node = node_with(Settings { max_value_bytes: 1 << 20, ..Settings::default() }).await;
    node.put("a", vec![b'x'; 1 << 20]).await;
    let mut ops = vec![json!({"op": "get", "key": "a"}); 18];
    ops.push(json!({"op": "put", "key": "b", "value": "1"}));
    ops.push(json!({"op": "get", "key": "c"}));
    let results = batch(&node, json!(ops)).await;
    let expected = [vec![200; 16], vec![413; 2], vec![201, 404]].concat();
    assert_eq!(statuses(&results), expected);
    assert!(results[17]["detail"].as_str().unwrap().contains("16777216 bytes"));
    let body: String = ops.iter().map(|op| format!("{op}\n")).collect();
    let reply = node.ask("POST /v1/batch", &[LINES], body).await;
    assert_eq!(statuses(&lines(&reply)), [vec![200; 18], vec![204, 404]].concat());
}
