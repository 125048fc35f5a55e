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

/// Asks on a connection that stays open, and reads the answer's first line.
async fn ask_on(stream: &mut TcpStream, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut line = [0; 15];
    stream.read_exact(&mut line).await?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// A health check, as it must go whatever strangers do.
async fn probe(addr: SocketAddr) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let answer = timeout(Duration::from_secs(1), ask_on(&mut stream, "/live")).await;
    assert_eq!(answer.expect("it answers at once").unwrap(), "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn whoever_holds_all_places_makes_room_for_the_next() {
    let node = Arc::new(Fake::new());
    let (addr, _stop, _serving) = open(&node).await;
    let mut silent = Vec::new();
    for _ in 0..3 * CONNECTIONS_MAX {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    for _ in 0..10 {
        probe(addr).await;
    }
    // The oldest are gone, the latest are not.
    assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(ask_on(silent.last_mut().unwrap(), "/live").await.unwrap(), "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn an_operators_action_keeps_its_connection_while_strangers_come() {
    let node = Arc::new(Fake::new());
    node.snapshot_waits.store(true, Ordering::Relaxed);
    let (addr, _stop, _serving) = open(&node).await;
    let mut operator = TcpStream::connect(addr).await.unwrap();
    operator.write_all(b"POST /admin/snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    while node.told.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    let mut strangers = Vec::new();
    for _ in 0..2 * CONNECTIONS_MAX {
        strangers.push(TcpStream::connect(addr).await.unwrap());
    }
    probe(addr).await;
    node.snapshot_may_end.notify_one();
    let mut line = [0; 15];
    timeout(PATIENCE, operator.read_exact(&mut line)).await.unwrap().unwrap();
    assert_eq!(&line, b"HTTP/1.1 200 OK");
}

async fn open_with(patience: Patience) -> SocketAddr {
    let listener = Listener::bind(Config { addr: "127.0.0.1:0".parse().unwrap() }).await.unwrap();
    let addr = listener.local_addr();
    let router = router(Arc::new(Fake::new()), Arc::new(Metrics::new()));
    tokio::spawn(listener.with_patience(patience).serve(router, CancellationToken::new()));
    addr
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_first_head_that_never_ends_loses_its_connection_and_an_idle_one_stays() {
    let patience = Patience { first_head: SHORT, next_head: LONG, answer: LONG };
    let addr = open_with(patience).await;
    let mut idle = TcpStream::connect(addr).await.unwrap();
    ask_on(&mut idle, "/live").await.unwrap();
    for sent in ["", "GET /live HTTP/1.1\r\nHost:"] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, "");
    }
    assert_eq!(ask_on(&mut idle, "/live").await.unwrap().len(), 15);
}

#[tokio::test]
async fn a_connection_without_a_further_request_is_closed() {
    let addr = open_with(Patience { first_head: LONG, next_head: SHORT, answer: LONG }).await;
    let mut idle = TcpStream::connect(addr).await.unwrap();
    ask_on(&mut idle, "/live").await.unwrap();
    let mut rest = String::new();
    timeout(PATIENCE, idle.read_to_string(&mut rest)).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_takes_no_answer_loses_its_connection() {
    let addr = open_with(Patience { first_head: LONG, next_head: LONG, answer: SHORT }).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(addr).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let asking = async { while stream.write_all(request.as_bytes()).await.is_ok() {} };
    timeout(PATIENCE, asking).await.expect("it was cut off");
}

#[tokio::test]
async fn health_checks_are_answered_while_others_ask_for_all_else() {
    let node = Arc::new(Fake::new());
    let (addr, _stop, _serving) = open(&node).await;
    let askers: Vec<_> = (0..CONNECTIONS_MAX - 1)
        .map(|_| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(addr).await.unwrap();
                while ask_on(&mut stream, "/nothing").await.is_ok() {
                    let mut rest = vec![0; 16_384];
                    let _ = stream.read(&mut rest).await;
                }
            })
        })
        .collect();
    // The lane for all else is full by now.
    tokio::time::sleep(Duration::from_millis(500)).await;
    // In theirs each would wait for more than half a second.
    let began = tokio::time::Instant::now();
    for _ in 0..20 {
        probe(addr).await;
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    askers.iter().for_each(tokio::task::JoinHandle::abort);
}
