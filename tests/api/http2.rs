//! HTTP/2 with prior knowledge; under TLS see [`crate::tls`].

use std::time::Duration;

use aegiskv::api::Settings;
use futures_util::StreamExt as _;
use reqwest::{Client, StatusCode, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{node, node_with};

fn client() -> Client {
    Client::builder().http2_prior_knowledge().no_proxy().build().unwrap()
}

#[tokio::test]
async fn keys_are_served_over_http2_with_prior_knowledge() {
    let node = node().await;
    let client = client();
    let url = format!("http://{}/v1/kv/a", node.address);
    let value = vec![7_u8; 3 << 20];
    let put = client.put(&url).body(value.clone()).send().await.unwrap();
    assert_eq!((put.version(), put.status()), (Version::HTTP_2, StatusCode::CREATED));
    let got = client.get(&url).send().await.unwrap();
    assert_eq!(got.headers()["x-content-type-options"], "nosniff");
    assert!(got.bytes().await.unwrap() == value);
    let head = client.head(&url).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "3145728");
    assert!(head.bytes().await.unwrap().is_empty());
    let absent = client.head(format!("{url}b")).send().await.unwrap();
    assert_eq!(absent.status(), StatusCode::NOT_FOUND);
    assert_eq!(node.server.active_connections(), 1);
}

#[tokio::test]
async fn streams_of_one_connection_run_side_by_side() {
    let node = node().await;
    let client = client();
    let url = format!("http://{}/v1/kv/n?op=incr", node.address);
    client.post(&url).send().await.unwrap();
    let many: Vec<_> = (0..200)
        .map(|_| {
            tokio::spawn({
                let request = client.post(&url);
                async move { request.send().await.unwrap().status() }
            })
        })
        .collect();
    for one in many {
        assert_eq!(one.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(node.get("/v1/kv/n").await.text(), "201");
    node.until_connections(1).await;
}

#[tokio::test]
async fn a_value_too_large_ends_its_stream_and_not_the_connection() {
    let node = node_with(Settings { max_value_bytes: 10, ..Settings::default() }).await;
    let client = client();
    let url = format!("http://{}/v1/kv/a", node.address);
    let refused = client.put(&url).body("x".repeat(11)).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(refused.headers().get("connection").is_none());
    assert!(refused.text().await.unwrap().contains("max_value_bytes"));
    assert_eq!(client.put(&url).body("x").send().await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(node.server.active_connections(), 1);
}

#[tokio::test]
async fn an_idle_connection_is_ended_and_draining_ends_all() {
    let read_timeout = Duration::from_millis(120);
    let mut node = node_with(Settings { read_timeout, ..Settings::default() }).await;
    let client = client();
    let url = format!("http://{}/", node.address);
    client.get(&url).send().await.unwrap();
    node.until_connections(0).await;
    client.get(&url).send().await.unwrap();
    assert_eq!(node.stop(Duration::from_secs(5)).await.unwrap(), 0);
}

/// A client that reads no answer before it has sent everything, as some do.
#[tokio::test]
async fn a_refusal_reaches_a_client_that_sends_on() {
    let settings = Settings { max_value_bytes: 10, ..Settings::default() };
    let node = node_with(settings).await;
    let stream = tokio::net::TcpStream::connect(&node.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let (ended, end) = tokio::sync::oneshot::channel();
    let mut ended = Some(ended);
    let body = futures_util::stream::iter(0..160).map(move |n| {
        if n == 159 {
            ended.take().unwrap().send(()).unwrap();
        }
        let piece = hyper::body::Frame::data(bytes::Bytes::from(vec![b'x'; 64 << 10]));
        Ok::<_, std::convert::Infallible>(piece)
    });
    let request = hyper::Request::put(format!("http://{}/v1/kv/a", node.address))
        .body(http_body_util::StreamBody::new(body))
        .unwrap();
    let refused = sender.send_request(request).await.unwrap();
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    // Reset, the stream takes no more of it.
    end.await.expect("the whole body was taken");
}

/// A client that says what a test tells it, frame by frame.
struct Raw(tokio::net::TcpStream);

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

impl Raw {
    /// Begins, with so large a window for each answer.
    async fn begin(address: &str, window: u32) -> Self {
        let mut raw = Self(tokio::net::TcpStream::connect(address).await.unwrap());
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        raw.send(&frame(SETTINGS, 0, 0, &settings)).await.unwrap();
        raw
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Asks for a path without taking the answer.
    async fn get(&mut self, stream: u32, path: &str) {
        let mut block = vec![0x82, 0x86, 0x41, 4];
        block.extend(b"node");
        block.extend([0x04, path.len() as u8]);
        block.extend(path.as_bytes());
        self.send(&frame(HEADERS, 5, stream, &block)).await.unwrap();
    }

    /// The next frame: kind, stream, payload; nothing at the end.
    async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((kind, u32::from_be_bytes(stream), payload))
    }

    /// Sends a PING every few milliseconds until a frame of that kind comes, or the end.
    async fn pinging_until(&mut self, kind: u8) -> Option<(u8, u32, Vec<u8>)> {
        for _ in 0..2000 {
            let _ = self.send(&frame(PING, 0, 0, b"harmless")).await;
            let until = tokio::time::Instant::now() + Duration::from_millis(10);
            loop {
                match tokio::time::timeout_at(until, self.next()).await {
                    Ok(None) => return None,
                    Ok(Some(frame)) if frame.0 == kind => return Some(frame),
                    Ok(Some(_)) => {}
                    Err(_) => break,
                }
            }
        }
        panic!("neither came");
    }
}

const SHORT: Duration = Duration::from_millis(150);

#[tokio::test]
async fn a_stream_whose_client_makes_no_room_is_reset_whatever_frames_come() {
    let node = node_with(Settings { write_timeout: SHORT, ..Settings::default() }).await;
    node.put("a", vec![b'x'; 1 << 20]).await;
    for (path, window) in [("/v1/kv/a", 0), ("/v1/kv/a", 1000), ("/", 0), ("/v1/kv/none", 0)] {
        let mut raw = Raw::begin(&node.address, window).await;
        raw.get(1, path).await;
        let (_, stream, reason) = raw.pinging_until(RST_STREAM).await.expect("a reset");
        assert_eq!((stream, &reason[..]), (1, &[0, 0, 0, 8][..]), "{path} {window}");
        // The connection goes on.
        raw.get(3, "/").await;
        assert_eq!(raw.pinging_until(HEADERS).await.expect("an answer").1, 3);
    }
}

#[tokio::test]
async fn room_that_is_taken_back_does_not_keep_a_stream() {
    let node = node_with(Settings { write_timeout: SHORT, ..Settings::default() }).await;
    node.put("a", vec![b'x'; 1000]).await;
    let mut raw = Raw::begin(&node.address, 0).await;
    raw.get(1, "/v1/kv/a").await;
    let more = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0]);
    let none = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    raw.send(&[more, none].concat()).await.unwrap();
    assert_eq!(raw.pinging_until(RST_STREAM).await.expect("a reset").1, 1);
}

#[tokio::test]
async fn a_connection_without_a_request_is_ended_whatever_frames_come() {
    let node = node_with(Settings { read_timeout: SHORT, ..Settings::default() }).await;
    let mut raw = Raw::begin(&node.address, 0).await;
    let began = std::time::Instant::now();
    assert_eq!(raw.pinging_until(GOAWAY).await, None);
    assert!(began.elapsed() >= SHORT && began.elapsed() < Duration::from_secs(5));
    node.until_connections(0).await;
    assert_eq!(node.metric("aegis_ended_connections_total{reason=\"idle\"}"), 1.0);
}

#[tokio::test]
async fn who_floods_is_told_to_calm_down_and_ended() {
    let node = node().await;
    let mut raw = Raw::begin(&node.address, 0).await;
    raw.send(&frame(PING, 0, 0, b"harmless").repeat(20_000)).await.ok();
    let told = async {
        loop {
            match raw.next().await {
                Some((GOAWAY, _, payload)) => return payload,
                Some(_) => {}
                None => panic!("ended without a word"),
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    // ENHANCE_YOUR_CALM.
    assert_eq!(told[4..8], [0, 0, 0, 11]);
    node.until_connections(0).await;
    assert_eq!(node.metric("aegis_ended_connections_total{reason=\"flood\"}"), 1.0);
}

#[tokio::test]
async fn replaced_values_that_are_not_taken_are_bounded() {
    let node = node_with(Settings { held_bytes_max: 48 << 20, ..Settings::default() }).await;
    let mut raw = Raw::begin(&node.address, 0).await;
    for stream in 0..20 {
        node.put("a", vec![b'x'; 8 << 20]).await;
        raw.get(2 * stream + 1, "/v1/kv/a").await;
        let _ = raw.pinging_until(HEADERS).await;
        if node.metric("aegis_ended_connections_total{reason=\"memory\"}") > 0.0 {
            assert!(stream > 2, "ended at {stream}");
            return;
        }
    }
    panic!("20 values of 8 MiB are held");
}

#[tokio::test]
async fn a_value_that_stays_may_be_read_by_many_at_once() {
    let node = node_with(Settings { held_bytes_max: 48 << 20, ..Settings::default() }).await;
    node.put("a", vec![b'x'; 8 << 20]).await;
    let mut raw = Raw::begin(&node.address, 0).await;
    for stream in 0..100 {
        raw.get(2 * stream + 1, "/v1/kv/a").await;
        assert!(raw.pinging_until(HEADERS).await.is_some());
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    raw.get(301, "/").await;
    assert_eq!(raw.pinging_until(HEADERS).await.expect("an answer").1, 301);
}
