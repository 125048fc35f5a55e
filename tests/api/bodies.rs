//! Bodies: too large, too slow, cut off, contradicting themselves.

use std::time::{Duration, Instant};

use aegiskv::api::Settings;

use crate::harness::{node, node_with};

fn small() -> Settings {
    Settings { max_value_bytes: 1000, ..Settings::default() }
}

#[tokio::test]
async fn a_value_of_the_limit_is_stored_and_one_byte_more_is_refused_naming_it() {
    let node = node_with(small()).await;
    node.put("a", "x".repeat(1000)).await;
    let refused = node.ask("PUT /v1/kv/a", &[], "x".repeat(1001)).await;
    let detail = refused.problem(413);
    assert!(detail.contains("1000 bytes") && detail.contains("max_value_bytes"), "{detail}");
    assert_eq!(refused.header("connection"), Some("close"));
    assert_eq!(node.get("/v1/kv/a").await.body.len(), 1000);
}

#[tokio::test]
async fn a_large_value_arrives_whole() {
    let node = node().await;
    let value: Vec<u8> = (0..8 << 20).map(|n: u32| (n % 251) as u8).collect();
    node.put("a", &value).await;
    assert!(node.get("/v1/kv/a").await.body == value);
    node.ask("PUT /v1/kv/a", &[], vec![0; (8 << 20) + 1]).await.problem(413);
}

#[tokio::test]
async fn an_announced_excess_is_refused_before_it_is_sent() {
    let node = node_with(small()).await;
    let mut client = node.connect().await;
    let head = "PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ncontent-length: 99999999999\r\nexpect: 100-continue\r\n\r\n";
    client.send(head).await;
    client.reply().await.problem(413);
    client.closed().await;
}

#[tokio::test]
async fn a_client_still_sending_gets_to_read_its_refusal() {
    let node = node_with(small()).await;
    let mut client = node.connect().await;
    client
        .send(format!("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ncontent-length: {}\r\n\r\n", 16 << 20))
        .await;
    client.send(vec![b'x'; 16 << 20]).await;
    client.reply().await.problem(413);
    client.closed().await;
}

#[tokio::test]
async fn a_chunked_body_without_end_is_stopped_at_the_limit() {
    let node = node_with(small()).await;
    let mut client = node.connect().await;
    client.send("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..200 {
        client.send("a\r\n0123456789\r\n").await;
    }
    client.reply().await.problem(413);
    client.closed().await;
    node.get("/v1/kv/a").await.problem(404);
}

#[tokio::test]
async fn a_chunked_body_is_a_value() {
    let node = node().await;
    let mut client = node.connect().await;
    client
        .send(
            "PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        )
        .await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    client.send("6\r\n world\r\n0\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 201);
    assert_eq!(client.ask("GET /v1/kv/a", &[], "").await.text(), "hello world");
}

#[tokio::test]
async fn malformed_chunks_are_refused() {
    let node = node().await;
    for chunk in ["zz\r\nhello\r\n", "-1\r\n", "fffffffffffffffff\r\n", "5hello\r\n"] {
        let mut client = node.connect().await;
        let head = "PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ntransfer-encoding: chunked\r\n\r\n";
        client.send(format!("{head}{chunk}")).await;
        if let Some(reply) = client.reply_or_close().await {
            assert_eq!(reply.status, 400, "{chunk}");
        }
        client.closed().await;
    }
    node.get("/v1/kv/a").await.problem(404);
}

#[tokio::test]
async fn a_body_cut_off_half_way_stores_nothing() {
    let node = node().await;
    for half in [
        "content-length: 10\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhel",
        "content-length: 10\r\n\r\n",
    ] {
        let mut client = node.connect().await;
        client.send(format!("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\n{half}")).await;
        drop(client);
    }
    node.until_connections(0).await;
    node.get("/v1/kv/a").await.problem(404);
}

#[tokio::test]
async fn a_slow_body_is_told_so_and_ended() {
    let read_timeout = Duration::from_millis(100);
    let node = node_with(Settings { read_timeout, ..Settings::default() }).await;
    let mut client = node.connect().await;
    client.send("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ncontent-length: 100\r\n\r\nx").await;
    let began = Instant::now();
    let reply = client.reply().await;
    assert!(reply.problem(408).contains("read_timeout"));
    assert_eq!(reply.json()["outcome"], "not-applied");
    assert!(began.elapsed() >= Duration::from_millis(90));
    client.closed().await;
    node.get("/v1/kv/a").await.problem(404);
}

#[tokio::test]
async fn conflicting_lengths_smuggle_nothing() {
    let node = node().await;
    let inner = "GET /v1/kv/smuggled HTTP/1.1\r\nhost: n\r\n\r\n";
    for (headers, statuses) in [
        ("content-length: 5\r\ncontent-length: 6\r\n", &[400][..]),
        ("content-length: 5, 6\r\n", &[400]),
        ("content-length: +5\r\n", &[400]),
        ("content-length: -5\r\n", &[400]),
        ("content-length: 5x\r\n", &[400]),
        ("transfer-encoding: chunked, identity\r\n", &[400]),
        ("transfer-encoding: xchunked\r\n", &[400]),
        // RFC 9112 §6.3: chunks decide, and nothing further is read from the connection.
        ("content-length: 5\r\ntransfer-encoding: chunked\r\n", &[201, 204, 400]),
        ("transfer-encoding: chunked\r\ncontent-length: 5\r\n", &[201, 204, 400]),
    ] {
        let mut client = node.connect().await;
        client
            .send(format!("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\n{headers}\r\n0\r\n\r\n{inner}"))
            .await;
        let reply = client.reply().await;
        assert!(statuses.contains(&reply.status), "{headers}: {reply:?}");
        client.closed().await;
    }
}

/// Each leaves doubt about where a body ends, or whom the request is for: it is refused, and nothing
/// more is read from the connection.
#[tokio::test]
async fn a_head_that_leaves_doubt_is_refused() {
    let node = node().await;
    let inner = "GET /v1/kv/smuggled HTTP/1.1\r\nhost: n\r\n\r\n";
    for (version, headers, status) in [
        ("1.1", "host: n\r\ntransfer-encoding: gzip, chunked\r\n", 501),
        ("1.1", "host: n\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n", 501),
        ("1.1", "host: n\r\ntransfer-encoding: identity, chunked\r\n", 501),
        ("1.1", "host: n\r\ntransfer-encoding: chunked, chunked\r\n", 400),
        ("1.1", "host: n\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", 400),
        ("1.1", "transfer-encoding: chunked\r\n", 400),
        ("1.1", "host: n\r\nhost: n\r\ntransfer-encoding: chunked\r\n", 400),
        ("1.1", "host: n, m\r\ntransfer-encoding: chunked\r\n", 400),
        ("1.1", "host: http://n\r\ntransfer-encoding: chunked\r\n", 400),
        ("1.0", "host: n\r\nhost: m\r\ncontent-length: 0\r\n", 400),
    ] {
        let mut client = node.connect().await;
        let request =
            format!("PUT /v1/kv/a HTTP/{version}\r\n{headers}\r\n5\r\nhello\r\n0\r\n\r\n");
        client.send(request + inner).await;
        let refused = client.reply().await;
        refused.problem(status);
        assert_eq!(refused.header("connection"), Some("close"), "{headers}");
        client.closed().await;
    }
    node.get("/v1/kv/a").await.problem(404);
    let mut client = node.connect().await;
    client.send("GET /v1/kv/a HTTP/1.1\r\n\r\n").await;
    client.reply().await.problem(400);
    client.closed().await;
}

/// What hyper takes for trailers may be a request to the proxy in front.
#[tokio::test]
async fn nothing_is_read_behind_trailers() {
    let node = node().await;
    let head =
        "PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n";
    let inner = "DELETE /v1/kv/b HTTP/1.1\r\nhost: n\r\n\r\n";
    node.put("b", "1").await;
    for (end, status) in [
        ("\n", 400),
        ("x: y\n\r\n", 204),
        ("x: y\n\n", 204),
        ("x: y\r\n\r\n", 204),
        ("X-Checksum: 1\r\nX-More: 2\r\n\r\n", 204),
    ] {
        node.put("a", "0").await;
        let mut client = node.connect().await;
        client.send(format!("{head}{end}{inner}{inner}")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("connection")), (status, Some("close")), "{end:?}");
        client.closed().await;
    }
    assert_eq!(node.get("/v1/kv/b").await.status, 200);
    let mut client = node.connect().await;
    client.send(format!("{head}\r\n{inner}")).await;
    assert_eq!(client.reply().await.status, 204);
    assert_eq!(client.reply().await.status, 204);
    node.get("/v1/kv/b").await.problem(404);
}

#[tokio::test]
async fn nothing_is_read_behind_chunks_that_nobody_wanted() {
    let node = node().await;
    node.put("a", "1").await;
    let inner = "DELETE /v1/kv/a HTTP/1.1\r\nhost: n\r\n\r\n";
    for line in ["GET /v1/kv/a", "GET /v1/kv", "GET /", "PUT /v1/kv/a?ttl=0", "BREW /v1/kv/a"] {
        let mut client = node.connect().await;
        let head = format!("{line} HTTP/1.1\r\nhost: n\r\ntransfer-encoding: chunked\r\n\r\n");
        client.send(format!("{head}1\r\nx\r\n0\r\n\n{inner}{inner}")).await;
        assert_eq!(client.reply().await.header("connection"), Some("close"), "{line}");
        client.closed().await;
    }
    assert_eq!(node.get("/v1/kv/a").await.status, 200);
}

#[tokio::test]
async fn lines_of_a_batch_that_end_in_trailers_are_the_last_of_a_connection() {
    let node = node().await;
    node.put("a", "1").await;
    let mut client = node.connect().await;
    let head = "POST /v1/batch HTTP/1.1\r\nhost: n\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
    let op = "{\"op\":\"get\",\"key\":\"a\"}\n";
    let inner = "DELETE /v1/kv/a HTTP/1.1\r\nhost: n\r\n\r\n";
    client.send(format!("{head}{:x}\r\n{op}\r\n0\r\nx: y\n\r\n{inner}{inner}", op.len())).await;
    assert_eq!(client.reply().await.json()["status"], 200);
    if let Some(refused) = client.reply_or_close().await {
        refused.problem(400);
        client.closed().await;
    }
    assert_eq!(node.get("/v1/kv/a").await.status, 200);
}

#[tokio::test]
async fn a_length_beyond_all_measure_is_a_body_too_large() {
    let node = node().await;
    for length in ["18446744073709551613", "18446744073709551615", "99999999999999999999999999"] {
        let mut client = node.connect().await;
        let head = format!("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ncontent-length: {length}\r\n\r\n");
        client.send(&head).await;
        assert!(client.reply().await.problem(413).contains("max_value_bytes"), "{length}");
        client.closed().await;
        let mut client = node.connect().await;
        assert_eq!(client.ask("GET /", &[], "").await.status, 200);
        client.send(&head).await;
        client.reply().await.problem(413);
        client.closed().await;
    }
    // A value may look like a head.
    let value = "x\r\nContent-Length: 18446744073709551615\r\n";
    node.put("a", value).await;
    assert_eq!(node.get("/v1/kv/a").await.text(), value);
}

#[tokio::test]
async fn a_body_that_is_not_what_it_stands_for_is_refused() {
    let node = node().await;
    for header in ["Content-Encoding: gzip", "content-encoding: identity, br"] {
        let refused = node.ask("PUT /v1/kv/a", &[header], "x").await;
        assert!(refused.problem(415).contains("Content-Type"));
        assert_eq!(refused.header("accept-encoding"), Some("identity"));
        node.ask("POST /v1/batch", &[header], "{\"ops\":[]}").await.problem(415);
    }
    node.ask("PUT /v1/kv/a", &["Content-Range: bytes 0-0/2"], "x").await.problem(400);
    node.get("/v1/kv/a").await.problem(404);
    assert_eq!(node.ask("PUT /v1/kv/a", &["Content-Encoding: identity"], "x").await.status, 201);
}

#[tokio::test]
async fn equal_lengths_given_twice_are_one() {
    let node = node().await;
    let mut client = node.connect().await;
    client
        .send("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx")
        .await;
    assert_eq!(client.reply().await.status, 201);
    assert_eq!(client.ask("GET /v1/kv/a", &[], "").await.text(), "x");
}

#[tokio::test]
async fn a_refusal_of_a_small_body_leaves_the_connection_open() {
    let node = node().await;
    let mut client = node.connect().await;
    client.ask("PUT /v1/kv/a?ttl=0", &[], "hello").await.problem(400);
    assert_eq!(client.ask("PUT /v1/kv/a", &[], "hello").await.status, 201);
}
