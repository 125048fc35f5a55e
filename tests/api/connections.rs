//! Connections: kept alive, refused, timed out, drained; and heads that are none.

use std::time::{Duration, Instant};

use aegiskv::api::Settings;
use tokio::time::sleep;

use crate::harness::{node, node_with};

const SHORT: Duration = Duration::from_millis(120);

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let node = node().await;
    let mut client = node.connect().await;
    let put = |n| format!("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ncontent-length: 1\r\n\r\n{n}");
    let get = "GET /v1/kv/a HTTP/1.1\r\nhost: n\r\n\r\n";
    client.send(format!("{}{get}{}{get}", put(1), put(2))).await;
    assert_eq!(client.reply().await.status, 201);
    assert_eq!(client.reply().await.text(), "1");
    assert_eq!(client.reply().await.status, 204);
    assert_eq!(client.reply().await.text(), "2");
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let node = node().await;
    let mut client = node.connect().await;
    for byte in b"PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ncontent-length: 3\r\n\r\nabc" {
        client.send([*byte]).await;
    }
    assert_eq!(client.reply().await.status, 201);
    assert_eq!(client.ask("GET /v1/kv/a", &[], "").await.text(), "abc");
}

#[tokio::test]
async fn http_1_0_and_connection_close_are_understood() {
    let node = node().await;
    node.put("a", "1").await;
    for request in [
        "GET /v1/kv/a HTTP/1.0\r\n\r\n",
        "GET /v1/kv/a HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n",
    ] {
        let mut client = node.connect().await;
        client.send(request).await;
        assert_eq!(client.reply().await.text(), "1");
        client.closed().await;
    }
}

#[tokio::test]
async fn a_hundred_thousand_headers_are_refused_and_the_node_goes_on() {
    let node = node().await;
    let mut client = node.connect().await;
    client.send("GET /v1/kv/a HTTP/1.1\r\nhost: n\r\n").await;
    client.send("x-a: b\r\n".repeat(100_000)).await;
    client.send("\r\n").await;
    assert_eq!(client.reply().await.status, 431);
    client.closed().await;
    node.get("/v1/kv/a").await.problem(404);
}

#[tokio::test]
async fn heads_too_long_or_malformed_are_refused() {
    let node = node().await;
    for (head, status) in [
        (format!("GET /v1/kv/{} HTTP/1.1\r\nhost: n\r\n\r\n", "a".repeat(70_000)), 414),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1 << 20)), 431),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}hello\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nbad header: x\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nx: \0\r\n\r\n".to_owned(), 400),
    ] {
        let mut client = node.connect().await;
        client.send(&head).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, status, "{}", &head[..head.len().min(40)]);
        client.closed().await;
    }
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_counted_and_never_queued() {
    let node = node_with(Settings { max_conns: 2, ..Settings::default() }).await;
    let mut first = node.connect().await;
    let mut second = node.connect().await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.ask("GET /", &[], "").await.status, 200);
    }
    let mut third = node.connect().await;
    third.send("GET / HTTP/1.1\r\nhost: n\r\n\r\n").await;
    let refused = third.reply().await;
    assert!(refused.problem(503).contains("max_conns"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    third.closed().await;
    assert_eq!(node.metric("aegis_rejected_connections_total"), 1.0);
    assert_eq!(node.server.active_connections(), 2);

    drop(first);
    node.until_connections(1).await;
    assert_eq!(node.get("/").await.status, 200);
    // Raised while it serves.
    node.until_connections(1).await;
    node.apply(Settings { max_conns: 3, ..Settings::default() });
    let (mut a, mut b) = (node.connect().await, node.connect().await);
    assert_eq!(a.ask("GET /", &[], "").await.status, 200);
    assert_eq!(b.ask("GET /", &[], "").await.status, 200);
}

#[tokio::test]
async fn connections_that_send_no_request_in_time_are_ended() {
    let node = node_with(Settings { read_timeout: SHORT, ..Settings::default() }).await;
    let began = Instant::now();
    let mut silent = node.connect().await;
    let mut half = node.connect().await;
    half.send("GET / HTTP/1.1\r\nhost: n\r\n").await;
    let mut idle = node.connect().await;
    assert_eq!(idle.ask("GET /", &[], "").await.status, 200);
    silent.closed().await;
    half.closed().await;
    idle.closed().await;
    assert!(began.elapsed() >= SHORT - Duration::from_millis(20));
    node.until_connections(0).await;
}

#[tokio::test]
async fn a_head_sent_drop_by_drop_does_not_outlast_the_timeout() {
    let node = node_with(Settings { read_timeout: SHORT, ..Settings::default() }).await;
    let mut client = node.connect().await;
    let began = Instant::now();
    let drops = async {
        client.send("GET / HTTP/1.1\r\n").await;
        loop {
            client.send("x: y\r\n").await;
            sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = node.until_connections(0);
    tokio::select! {
        () = drops => {}
        () = async { node.until_connections(1).await; ended.await } => {}
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_ended() {
    let write_timeout = SHORT;
    let node = node_with(Settings { write_timeout, ..Settings::default() }).await;
    node.put("a", vec![b'x'; 8 << 20]).await;
    node.until_connections(0).await;
    let mut client = node.connect().await;
    for _ in 0..8 {
        client.send("GET /v1/kv/a HTTP/1.1\r\nhost: n\r\n\r\n").await;
    }
    node.until_connections(1).await;
    node.until_connections(0).await;
}

#[tokio::test]
async fn a_connection_in_use_outlives_the_read_timeout() {
    let node = node_with(Settings { read_timeout: SHORT, ..Settings::default() }).await;
    let mut client = node.connect().await;
    for _ in 0..6 {
        sleep(SHORT / 3).await;
        assert_eq!(client.ask("GET /", &[], "").await.status, 200);
    }
}

#[tokio::test]
async fn draining_closes_idle_connections_and_finishes_requests_under_way() {
    let mut node = node().await;
    let mut idle = node.connect().await;
    assert_eq!(idle.ask("GET /", &[], "").await.status, 200);
    let mut sending = node.connect().await;
    sending.send("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ncontent-length: 5\r\n\r\nhel").await;
    node.until_connections(2).await;
    sleep(Duration::from_millis(20)).await;

    let served = node.stop(Duration::from_secs(10));
    idle.closed().await;
    sending.send("lo").await;
    let reply = sending.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (201, Some("close")));
    sending.closed().await;
    assert_eq!(served.await.unwrap(), 0);
    assert!(tokio::net::TcpStream::connect(&node.address).await.is_err());
}

#[tokio::test]
async fn draining_is_bounded_by_its_deadline() {
    let mut node = node().await;
    let mut stuck = node.connect().await;
    stuck.send("PUT /v1/kv/a HTTP/1.1\r\nhost: n\r\ncontent-length: 5\r\n\r\nhel").await;
    node.until_connections(1).await;
    sleep(Duration::from_millis(20)).await;
    let began = Instant::now();
    assert_eq!(node.stop(SHORT).await.unwrap(), 1);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    stuck.closed().await;
}
