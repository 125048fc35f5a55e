//! HTTP/2 with prior knowledge; under TLS see [`crate::tls`].

use std::time::Duration;

use aegiskv::api::Settings;
use futures_util::StreamExt as _;
use reqwest::{Client, StatusCode, Version};

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
