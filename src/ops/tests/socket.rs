use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;

/// Longest that a test waits for what should come at once.
const PATIENCE: Duration = Duration::from_secs(10);

async fn open(node: &Arc<Fake>) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = Listener::bind(Config { addr: "127.0.0.1:0".parse().unwrap() }).await.unwrap();
    let addr = listener.local_addr();
    let stop = CancellationToken::new();
    let router = router(Arc::clone(node), Arc::new(Metrics::new()));
    let serving = tokio::spawn(listener.serve(router, stop.clone()));
    (addr, stop, serving)
}

async fn exchange(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_port_answers_over_a_socket_and_closes_when_told() {
    let node = Arc::new(Fake::new());
    let (addr, stop, serving) = open(&node).await;
    let close = "Host: localhost\r\nConnection: close\r\n\r\n";
    let health = exchange(addr, &format!("GET /health HTTP/1.1\r\n{close}")).await;
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n"), "{health}");
    let action = exchange(addr, &format!("POST /admin/snapshot HTTP/1.1\r\n{close}")).await;
    assert!(action.starts_with("HTTP/1.1 200 OK\r\n"), "{action}");

    let mut idle = TcpStream::connect(addr).await.unwrap();
    idle.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut some = [0; 15];
    idle.read_exact(&mut some).await.unwrap();
    stop.cancel();
    serving.await.unwrap();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let error = Listener::bind(Config { addr }).await.unwrap_err();
    assert!(error.to_string().contains(&addr.to_string()));
    assert!(error.to_string().contains("health_addr"));
}

#[tokio::test]
async fn an_action_runs_to_its_end_when_its_asker_hangs_up() {
    let node = Arc::new(Fake::new());
    node.snapshot_waits.store(true, Ordering::Relaxed);
    let (addr, _stop, _serving) = open(&node).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"POST /admin/snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    while node.told.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(stream);
    // The server sees the hang-up and gives up the connection; only then may the snapshot end.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    node.snapshot_may_end.notify_one();
    timeout(PATIENCE, node.snapshot_ended.notified()).await.expect("the snapshot went on");
    assert_eq!(*node.told.lock(), ["snapshot begun", "snapshot"]);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let node = Arc::new(Fake::new());
    let (addr, _stop, _serving) = open(&node).await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut some = [0; 15];
        stream.read_exact(&mut some).await.unwrap();
        held.push(stream);
    }
    let mut beyond = TcpStream::connect(addr).await.unwrap();
    let mut rest = Vec::new();
    // A reset is as good as an end.
    let _ = beyond.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    drop(held.pop());
    loop {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(b"GET /live HTTP/1.0\r\n\r\n").await;
        let mut answer = String::new();
        if stream.read_to_string(&mut answer).await.is_ok() && answer.contains("200 OK") {
            break;
        }
    }
}

#[tokio::test]
async fn a_head_that_never_ends_loses_its_connection() {
    let listener = Listener::bind(Config { addr: "127.0.0.1:0".parse().unwrap() }).await.unwrap();
    let addr = listener.local_addr();
    let listener = listener.with_head_timeout(Duration::from_millis(20));
    let router = router(Arc::new(Fake::new()), Arc::new(Metrics::new()));
    let _serving = tokio::spawn(listener.serve(router, CancellationToken::new()));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nHost:").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.contains("200"), "{answer}");
}
