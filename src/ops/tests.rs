use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::*;
use crate::entry::Timestamp;
use crate::metrics::{Readings, ShardCounts};

const LOCAL: &str = "127.0.0.1:5000";
const LOCAL_6: &str = "[::1]:5000";
const LOCAL_MAPPED: &str = "[::ffff:127.0.0.1]:5000";
const FAR: &str = "192.0.2.7:5000";

/// A node that says what a test wants to hear and notes what it is told to do.
struct Fake {
    status: Mutex<Status>,
    tokens: Arc<Tokens>,
    told: Mutex<Vec<String>>,
    reload: Mutex<Option<Result<Reloaded, ActionError>>>,
    snapshot_may_end: Notify,
    snapshot_waits: AtomicBool,
    snapshot_ended: Notify,
}

impl Fake {
    fn new() -> Self {
        Self {
            status: Mutex::new(serving()),
            tokens: Arc::default(),
            told: Mutex::default(),
            reload: Mutex::default(),
            snapshot_may_end: Notify::new(),
            snapshot_waits: AtomicBool::new(false),
            snapshot_ended: Notify::new(),
        }
    }

    fn with(change: impl FnOnce(&mut Status)) -> Self {
        let fake = Self::new();
        change(&mut fake.status.lock());
        fake
    }

    fn with_tokens(tokens: &[&str]) -> Self {
        Self {
            tokens: Arc::new(Tokens::new(tokens)),
            ..Self::new()
        }
    }

    fn tell(&self, what: impl Into<String>) {
        self.told.lock().push(what.into());
    }
}

impl Node for Fake {
    fn status(&self) -> Status {
        self.status.lock().clone()
    }

    fn shards(&self) -> Vec<Shard> {
        vec![Shard {
            shard: 7,
            epoch: 3,
            primary: Some("n1".to_owned()),
            voters: vec!["n1".to_owned()],
            learners: vec![],
            state: ShardState::UnderReplicated,
            positions: BTreeMap::from([("n1".to_owned(), Position { epoch: 3, seq: 99 })]),
        }]
    }

    fn config(&self) -> Value {
        json!({ "node_id": { "value": "n1", "source": "default", "live": false } })
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens)
    }

    async fn reload(&self) -> Result<Reloaded, ActionError> {
        self.tell("reload");
        self.reload
            .lock()
            .take()
            .unwrap_or_else(|| Ok(Reloaded::default()))
    }

    async fn snapshot(&self) -> Result<Snapshot, ActionError> {
        if self.snapshot_waits.load(Ordering::Relaxed) {
            self.tell("snapshot begun");
            self.snapshot_may_end.notified().await;
        }
        self.tell("snapshot");
        self.snapshot_ended.notify_one();
        Ok(Snapshot {
            items: 10,
            bytes: 2048,
            took: Duration::from_millis(1500),
        })
    }

    async fn truncate_wal(&self) -> Result<Truncated, ActionError> {
        self.tell("truncate");
        Ok(Truncated {
            segments: 2,
            bytes: 128,
        })
    }

    fn drain(&self) -> Drained {
        self.tell("drain");
        self.status.lock().phase = Phase::Draining;
        Drained {
            active_connections: 5,
        }
    }

    fn set_rate_limit(&self, limit: RateLimit) {
        self.tell(format!("rate limit {}", limit.map_or(0, NonZeroU32::get)));
    }

    fn set_log_level(&self, level: &str) -> Result<(), ActionError> {
        if level != "debug" {
            return Err(ActionError::Invalid {
                parameter: "level",
                expected: "debug, here",
            });
        }
        self.tell("log level");
        Ok(())
    }
}

fn serving() -> Status {
    Status {
        phase: Phase::Serving,
        cluster_id: Some("c0ffee".to_owned()),
        node_id: "n1".to_owned(),
        epoch: 4,
        client_addr: Some("127.0.0.1:7700".parse().unwrap()),
        gossip_addr: None,
        zone: "z1".to_owned(),
        region: String::new(),
        uptime: Duration::from_secs(61),
        wal: Wal {
            mode: "sync",
            segments: 3,
        },
        exposures: vec![],
        readings: Readings {
            cache_size_bytes: 1000,
            cache_items: 10,
            cache_max_bytes: 5000,
            wal_bytes: 4096,
            active_connections: 2,
            max_connections: 100,
            shards: ShardCounts {
                healthy: 256,
                ..ShardCounts::default()
            },
            shards_owned: 256,
            shard_primaries: 256,
            cluster_members: 1,
            config_reload_success: true,
            ..Readings::default()
        },
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn detail(&self) -> String {
        assert_eq!(
            self.headers[CONTENT_TYPE], "application/problem+json",
            "{}",
            self.text
        );
        let body = self.json();
        assert_eq!(body["status"], self.status.as_u16());
        body["detail"].as_str().unwrap().to_owned()
    }
}

async fn ask(
    node: &Arc<Fake>,
    peer: &str,
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let mut request = axum::http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(Peer(peer.parse().unwrap()));
    let response = router(Arc::clone(node), Arc::new(Metrics::new()))
        .call(request)
        .await
        .unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer {
        status: head.status,
        headers: head.headers,
        text: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

async fn get(node: &Arc<Fake>, uri: &str) -> Answer {
    ask(node, FAR, Method::GET, uri, &[]).await
}

async fn post(node: &Arc<Fake>, uri: &str) -> Answer {
    ask(node, LOCAL, Method::POST, uri, &[]).await
}

#[tokio::test]
async fn health_and_live_are_ok_in_every_phase() {
    for phase in [
        Phase::Starting {
            progress: "replaying the log: 3 of 12 segments".to_owned(),
        },
        Phase::Serving,
        Phase::Draining,
    ] {
        let word = phase.word();
        let node = Arc::new(Fake::with(|status| status.phase = phase));
        for uri in ["/health", "/live"] {
            let answer = get(&node, uri).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.json()["status"], "ok");
            assert_eq!(answer.json()["phase"], word);
            assert_eq!(answer.headers["cache-control"], "no-store");
        }
    }
}

#[tokio::test]
async fn a_starting_node_is_not_ready_and_says_how_far_it_is() {
    let node = Arc::new(Fake::with(|status| {
        status.phase = Phase::Starting {
            progress: "replaying the log: 3 of 12 segments".to_owned(),
        };
        status.cluster_id = None;
        status.readings = Readings {
            config_reload_success: true,
            ..Readings::default()
        };
    }));
    let answer = get(&node, "/ready").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json(),
        json!({"ready": false, "checks": {
            "node": "starting: replaying the log: 3 of 12 segments",
            "wal": "not open yet",
            "shards": "not open yet",
            "listeners": "ok",
            "config": "ok",
        }})
    );
    assert_eq!(
        get(&node, "/health").await.json()["progress"],
        "replaying the log: 3 of 12 segments"
    );
    assert_eq!(
        get(&node, "/cluster").await.json()["cluster_id"],
        Value::Null
    );
    assert_eq!(get(&node, "/ready?for=stop").await.status, 503);
}

#[tokio::test]
async fn a_serving_node_is_ready_and_names_what_an_operator_should_know() {
    let node = Arc::new(Fake::with(|status| {
        status.exposures = vec!["clients need no token; set auth_token".to_owned()];
        status.readings.config_reload_success = false;
        status.readings.shards = ShardCounts {
            under_replicated: 256,
            ..ShardCounts::default()
        };
        status.wal.mode = "off";
    }));
    let answer = get(&node, "/ready").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({"ready": true, "checks": {
            "node": "ok",
            "wal": "ok: off, nothing outlives the process",
            "shards": "256 under replicated",
            "listeners": "insecure: clients need no token; set auth_token",
            "config": "the last reload was refused; the configuration before it is in force",
        }})
    );
}

#[tokio::test]
async fn shards_that_cannot_answer_make_the_node_unready() {
    let node = Arc::new(Fake::with(|status| {
        status.readings.shards = ShardCounts {
            healthy: 243,
            catching_up: 12,
            unavailable: 1,
            ..ShardCounts::default()
        };
    }));
    let answer = get(&node, "/ready").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json()["checks"]["shards"],
        "12 catching up, 1 unavailable"
    );
}

#[tokio::test]
async fn a_lone_node_with_shards_may_not_be_stopped_without_loss_of_service() {
    let node = Arc::new(Fake::new());
    let answer = get(&node, "/ready?for=stop").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json()["checks"]["write_quorum"],
        "this node is the only member of its cluster: while it is stopped, none of its 256 shards \
         can be read or written"
    );
    let empty = Arc::new(Fake::with(|status| status.readings.shards_owned = 0));
    assert_eq!(get(&empty, "/ready?for=stop").await.status, 200);
    assert!(
        get(&node, "/ready?for=lunch")
            .await
            .detail()
            .contains("?for=stop")
    );
}

#[tokio::test]
async fn the_cluster_is_this_node_alone_in_the_shape_of_the_contract() {
    let node = Arc::new(Fake::new());
    assert_eq!(
        get(&node, "/cluster").await.json(),
        json!({
            "cluster_id": "c0ffee",
            "epoch": 4,
            "leader": "n1",
            "members": [{
                "node_id": "n1", "status": "alive", "client_addr": "127.0.0.1:7700",
                "gossip_addr": null, "zone": "z1", "region": "",
                "version": env!("CARGO_PKG_VERSION"), "shards": 256, "primaries": 256,
                "leader": true,
            }],
            "shards": {
                "total": 256, "healthy": 256, "under_replicated": 0, "catching_up": 0,
                "moving": 0, "unavailable": 0,
            },
        })
    );
    assert_eq!(
        get(&node, "/cluster/shards").await.json(),
        json!({"shards": [{
            "shard": 7, "epoch": 3, "primary": "n1", "voters": ["n1"], "learners": [],
            "state": "under_replicated", "positions": {"n1": {"epoch": 3, "seq": 99}},
        }]})
    );
}

#[tokio::test]
async fn stats_and_config_show_this_node() {
    let node = Arc::new(Fake::with(|status| {
        status.readings.snapshot_finished_at = Some(Timestamp(1_800_000_000_123));
    }));
    let stats = get(&node, "/stats").await.json();
    assert_eq!(stats["items"], 10);
    assert_eq!(stats["bytes_max"], 5000);
    assert_eq!(
        stats["wal"],
        json!({"mode": "sync", "bytes": 4096, "segments": 3, "corruptions": 0})
    );
    assert_eq!(
        stats["connections"],
        json!({"active": 2, "max": 100, "rejected": 0})
    );
    assert_eq!(stats["snapshot"]["finished_at_ms"], 1_800_000_000_123_u64);
    assert_eq!(stats["uptime_seconds"], 61);
    assert_eq!(
        get(&node, "/config").await.json()["node_id"]["source"],
        "default"
    );
}

#[tokio::test]
async fn metrics_come_in_the_type_that_prometheus_asks_for() {
    let answer = get(&Arc::new(Fake::new()), "/metrics").await;
    assert_eq!(
        answer.headers[CONTENT_TYPE],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(answer.text.contains("\naegis_cache_items 10\n"));
    assert!(
        answer
            .text
            .contains("\naegis_shards{state=\"healthy\"} 256\n")
    );
}

#[tokio::test]
async fn each_action_reaches_the_node_and_reports() {
    let node = Arc::new(Fake::new());
    assert_eq!(
        post(&node, "/admin/snapshot").await.json(),
        json!({"items": 10, "bytes": 2048, "took_seconds": 1.5})
    );
    assert_eq!(
        post(&node, "/admin/wal/truncate").await.json(),
        json!({"segments_removed": 2, "bytes_freed": 128})
    );
    assert_eq!(
        post(&node, "/admin/rate-limit?ops_per_sec=500")
            .await
            .json(),
        json!({"ops_per_sec": 500})
    );
    assert_eq!(
        post(&node, "/admin/rate-limit?ops_per_sec=0").await.status,
        200
    );
    assert_eq!(
        post(&node, "/admin/log-level?level=debug").await.json(),
        json!({"level": "debug"})
    );
    let drain = post(&node, "/admin/drain").await;
    assert_eq!(drain.status, 202);
    assert_eq!(
        drain.json(),
        json!({"phase": "draining", "active_connections": 5})
    );
    assert_eq!(get(&node, "/ready").await.status, 503);
    assert_eq!(
        get(&node, "/cluster").await.json()["members"][0]["status"],
        "leaving"
    );
    assert_eq!(
        *node.told.lock(),
        [
            "snapshot",
            "truncate",
            "rate limit 500",
            "rate limit 0",
            "log level",
            "drain"
        ]
    );
}

#[tokio::test]
async fn parameters_that_make_no_sense_are_refused_with_what_would() {
    let node = Arc::new(Fake::new());
    for (uri, expected) in [
        ("/admin/rate-limit", "?ops_per_sec=N"),
        ("/admin/rate-limit?ops_per_sec=-1", "?ops_per_sec=N"),
        ("/admin/rate-limit?ops_per_sec=4294967296", "?ops_per_sec=N"),
        ("/admin/log-level", "?level="),
        ("/admin/log-level?level=loud", "level: debug, here"),
    ] {
        let answer = post(&node, uri).await;
        assert_eq!(answer.status, 400, "{uri}");
        assert!(answer.detail().contains(expected), "{uri}: {}", answer.text);
    }
    assert!(node.told.lock().is_empty());
}

#[tokio::test]
async fn a_reload_says_what_it_applied_or_all_that_is_wrong() {
    let node = Arc::new(Fake::new());
    *node.reload.lock() = Some(Ok(Reloaded {
        applied: vec!["log_level".to_owned()],
        needs_restart: vec!["bind_addr".to_owned()],
        warnings: vec![],
    }));
    assert_eq!(
        post(&node, "/admin/reload").await.json(),
        json!({"applied": ["log_level"], "needs_restart": ["bind_addr"], "warnings": []})
    );
    *node.reload.lock() = Some(Err(ActionError::Refused {
        problems: vec!["a".to_owned(), "b".to_owned()],
    }));
    let refused = post(&node, "/admin/reload").await;
    assert_eq!(refused.status, 422);
    assert_eq!(refused.json()["problems"], json!(["a", "b"]));
    assert!(refused.detail().contains("the old one stays in force"));
    *node.reload.lock() = Some(Err(ActionError::Failed {
        what: "reading config.json",
        source: Box::new(std::io::Error::other("disk on fire")),
    }));
    let failed = post(&node, "/admin/reload").await;
    assert_eq!(failed.status, 500);
    assert_eq!(failed.detail(), "reading config.json failed: disk on fire");
    *node.reload.lock() = Some(Err(ActionError::Conflict("another reload is under way")));
    assert_eq!(post(&node, "/admin/reload").await.status, 409);
}

#[tokio::test]
async fn the_only_member_can_neither_leave_nor_be_removed() {
    let node = Arc::new(Fake::new());
    for uri in ["/admin/nodes/n1/decommission", "/admin/nodes/n1/remove"] {
        let answer = post(&node, uri).await;
        assert_eq!(answer.status, 409);
        assert!(answer.detail().contains("n1 is the only member"));
    }
    let unknown = post(&node, "/admin/nodes/n2/remove").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.detail().contains("its only member is n1"));
}

const ACTIONS: [&str; 8] = [
    "/admin/reload",
    "/admin/snapshot",
    "/admin/wal/truncate",
    "/admin/drain",
    "/admin/rate-limit?ops_per_sec=1",
    "/admin/log-level?level=debug",
    "/admin/nodes/n1/decommission",
    "/admin/nodes/n1/remove",
];

#[tokio::test]
async fn without_a_token_only_the_machine_itself_may_act() {
    let node = Arc::new(Fake::new());
    for uri in ACTIONS {
        let answer = ask(
            &node,
            FAR,
            Method::POST,
            uri,
            &[("authorization", "Bearer guess")],
        )
        .await;
        assert_eq!(answer.status, 403, "{uri}");
        assert!(answer.detail().contains("set auth_token"));
    }
    assert!(node.told.lock().is_empty());
    for peer in [LOCAL, LOCAL_6, LOCAL_MAPPED] {
        assert_eq!(
            ask(&node, peer, Method::POST, "/admin/snapshot", &[])
                .await
                .status,
            200
        );
    }
}

#[tokio::test]
async fn without_a_token_neither_web_pages_nor_proxies_on_the_machine_may_act() {
    let node = Arc::new(Fake::new());
    for header in ["origin", "x-forwarded-for", "forwarded"] {
        let answer = ask(&node, LOCAL, Method::POST, "/admin/drain", &[(header, "x")]).await;
        assert_eq!(answer.status, 403);
        assert!(answer.detail().contains(header));
    }
    assert!(node.told.lock().is_empty());
}

#[tokio::test]
async fn with_a_token_set_it_is_asked_of_everyone_and_any_of_the_list_will_do() {
    let node = Arc::new(Fake::with_tokens(&["new", "old"]));
    for uri in ACTIONS {
        let answer = ask(&node, LOCAL, Method::POST, uri, &[]).await;
        assert_eq!(answer.status, 401, "{uri}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(answer.detail().contains("Authorization: Bearer TOKEN"));
    }
    for wrong in [
        "Bearer ne",
        "Bearer neww",
        "Bearer ",
        "Basic new",
        "new",
        "Bearer",
        "",
    ] {
        let headers = [("authorization", wrong)];
        let answer = ask(&node, LOCAL, Method::POST, "/admin/drain", &headers).await;
        assert_eq!(answer.status, 401, "{wrong:?}");
    }
    assert!(node.told.lock().is_empty());
    for right in ["Bearer new", "Bearer old", "bearer old"] {
        let headers = [("authorization", right)];
        let answer = ask(&node, FAR, Method::POST, "/admin/snapshot", &headers).await;
        assert_eq!(answer.status, 200, "{right:?}");
    }
    for uri in [
        "/health", "/ready", "/metrics", "/cluster", "/stats", "/config",
    ] {
        assert_eq!(get(&node, uri).await.status, 200, "{uri} is for looking");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_that_say_what_there_is() {
    let node = Arc::new(Fake::new());
    for uri in ["/", "/nothing", "/admin/nothing", "/admin"] {
        let answer = get(&node, uri).await;
        assert_eq!(answer.status, 404, "{uri}");
        assert!(answer.detail().contains("/ready"));
    }
    let answer = get(&node, "/admin/drain").await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.headers["allow"], "POST");
    assert!(answer.detail().contains("/admin/drain does not take GET"));
    assert_eq!(
        ask(&node, FAR, Method::POST, "/health", &[]).await.status,
        405
    );
    assert!(node.told.lock().is_empty());
}

async fn open(node: &Arc<Fake>) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = Listener::bind(Config {
        addr: "127.0.0.1:0".parse().unwrap(),
    })
    .await
    .unwrap();
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
    let close = "Host: x\r\nConnection: close\r\n\r\n";
    let health = exchange(addr, &format!("GET /health HTTP/1.1\r\n{close}")).await;
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n"), "{health}");
    let action = exchange(addr, &format!("POST /admin/snapshot HTTP/1.1\r\n{close}")).await;
    assert!(action.starts_with("HTTP/1.1 200 OK\r\n"), "{action}");

    let mut idle = TcpStream::connect(addr).await.unwrap();
    idle.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
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
    stream
        .write_all(b"POST /admin/snapshot HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    while node.told.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(stream);
    // The server sees the hang-up and gives up the connection; only then may the snapshot end.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    node.snapshot_may_end.notify_one();
    node.snapshot_ended.notified().await;
    assert_eq!(*node.told.lock(), ["snapshot begun", "snapshot"]);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let node = Arc::new(Fake::new());
    let (addr, _stop, _serving) = open(&node).await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream
            .write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
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
    let listener = Listener::bind(Config {
        addr: "127.0.0.1:0".parse().unwrap(),
    })
    .await
    .unwrap();
    let addr = listener.local_addr();
    let listener = listener.with_head_timeout(Duration::from_millis(20));
    let router = router(Arc::new(Fake::new()), Arc::new(Metrics::new()));
    let _serving = tokio::spawn(listener.serve(router, CancellationToken::new()));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream
        .write_all(b"GET /live HTTP/1.1\r\nHost:")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.contains("200"), "{answer}");
}
