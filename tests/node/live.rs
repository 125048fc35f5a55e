//! Every key that a reload is said to apply is seen to take effect in a running node: by what the
//! node does, not by what it answers to the reload.

mod clients;
mod cluster;
mod tls;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aegiskv::config::KEYS;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Home, Node, http};

/// Longest that a test waits for what should come soon.
const PATIENCE: Duration = Duration::from_secs(60);

/// What would have happened by then, if it were going to.
const A_WHILE: Duration = Duration::from_millis(500);

/// One test for each key, and the list of them.
macro_rules! seen {
    ($($place:ident: $($key:ident),+;)+) => {
        const SEEN: &[&str] = &[$($(stringify!($key)),+),+];

        $($(
            #[tokio::test]
            async fn $key() {
                $place::$key().await;
            }
        )+)+
    };
}

seen! {
    clients: drain_timeout, max_conns, read_timeout, write_timeout, rate_limit, rate_burst,
        allowed_hosts, allowed_origins, max_memory_mb, eviction_ratio, eviction_policy,
        write_quorum, auth_token, auth_token_file, auth_tokens, log_level;
    cluster: addrs, when_removed, replication_log_mb, read_quorum, suspect_timeout, dead_timeout, rebalance_delay, gossip_secret,
        gossip_secret_file;
    tls: tls_cert_file, tls_key_file, tls_ca_file;
}

#[test]
fn every_live_key_is_seen() {
    let live: BTreeSet<&str> = KEYS.iter().filter(|key| key.live).map(|key| key.name).collect();
    assert_eq!(SEEN.iter().copied().collect::<BTreeSet<_>>(), live);
}

/// Changes settings of a running node, by port 7702; with a token in force, by a signal.
async fn reload(home: &mut Home, node: &Node, settings: Value) {
    let done = || node.log().matches("configuration reloaded").count();
    let before = done();
    home.set(settings);
    let answer = http().post(node.ops_url("/admin/reload")).send().await.unwrap();
    match answer.status().as_u16() {
        200 => {}
        401 => node.signal(Signal::SIGHUP),
        other => panic!("{other}: {}", answer.text().await.unwrap()),
    }
    eventually(async || done() > before, "the reload").await;
}

/// Waits until something holds.
async fn eventually(mut holds: impl AsyncFnMut() -> bool, what: &str) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn get(node: &Node, key: &str) -> u16 {
    http().get(node.url(key)).send().await.unwrap().status().as_u16()
}

async fn put(node: &Node, key: &str, bytes: usize) -> u16 {
    let request = http().put(node.url(key)).body(vec![b'x'; bytes]);
    request.send().await.unwrap().status().as_u16()
}

async fn ops(node: &Node, path: &str) -> Value {
    http().get(node.ops_url(path)).send().await.unwrap().json().await.unwrap()
}

/// A client that holds on to its connection.
struct Held(TcpStream);

impl Held {
    async fn open(node: &Node) -> Self {
        Self(TcpStream::connect(("127.0.0.1", node.client)).await.unwrap())
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// The status of a `GET /`; nothing if the connection is closed instead.
    async fn ask(&mut self) -> Option<u16> {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        // The answer ends in its document, or in the refusal's.
        while !answer.ends_with(b"}") {
            if timeout(PATIENCE, self.0.read_buf(&mut answer)).await.unwrap().ok()? == 0 {
                break;
            }
        }
        std::str::from_utf8(&answer).unwrap().split(' ').nth(1)?.parse().ok()
    }

    /// Whether the node closes it within that time.
    async fn is_closed_within(&mut self, within: Duration) -> bool {
        let mut rest = [0; 1024];
        matches!(timeout(within, self.0.read(&mut rest)).await, Ok(Ok(0) | Err(_)))
    }
}
