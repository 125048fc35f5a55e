mod actions;
mod leases;
mod socket;
mod views;

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
use tokio::sync::Notify;
use tower_service::Service;

use super::places::Patience;
use super::*;
use crate::api::{Holder, Sites, Tokens};
use crate::controller::ShardState;
use crate::entry::Timestamp;
use crate::metrics::{Readings, ShardCounts, TokenMetrics};

const LOCAL: &str = "127.0.0.1:5000";
const LOCAL_6: &str = "[::1]:5000";
const LOCAL_MAPPED: &str = "[::ffff:127.0.0.1]:5000";
const FAR: &str = "192.0.2.7:5000";

/// A node that says what a test wants to hear and notes what it is told to do.
struct Fake {
    status: Mutex<Status>,
    stoppable: Mutex<Result<(), String>>,
    tokens: Arc<Tokens>,
    sites: Arc<Sites>,
    told: Mutex<Vec<String>>,
    reload: Mutex<Option<Result<Reloaded, ActionError>>>,
    /// What is answered to the next that asks for the stop lease; else it is granted.
    refusal: Mutex<Option<LeaseRefusal>>,
    lease: Mutex<Option<Lease>>,
    snapshot_may_end: Notify,
    snapshot_waits: AtomicBool,
    snapshot_ended: Notify,
}

impl Fake {
    fn new() -> Self {
        Self {
            status: Mutex::new(serving()),
            stoppable: Mutex::new(Ok(())),
            tokens: Arc::default(),
            sites: Arc::default(),
            told: Mutex::default(),
            reload: Mutex::default(),
            refusal: Mutex::default(),
            lease: Mutex::default(),
            snapshot_may_end: Notify::new(),
            snapshot_waits: AtomicBool::new(false),
            snapshot_ended: Notify::new(),
        }
    }

    fn known(&self, name: &str) -> Result<(), ActionError> {
        match name {
            "node2" => Ok(()),
            _ => Err(ActionError::Unknown { what: "member" }),
        }
    }

    fn with(change: impl FnOnce(&mut Status)) -> Self {
        let fake = Self::new();
        change(&mut fake.status.lock());
        fake
    }

    fn with_tokens(tokens: &[&str]) -> Self {
        Self::with_holders([Holder::new("auth_token", tokens, None, TokenMetrics::default())])
    }

    fn with_holders(holders: impl IntoIterator<Item = Holder>) -> Self {
        Self { tokens: Arc::new(holders.into_iter().collect()), ..Self::new() }
    }

    fn tell(&self, what: impl Into<String>) {
        self.told.lock().push(what.into());
    }
}

impl Node for Fake {
    fn life(&self) -> Life {
        let Status { node_id, phase, uptime, .. } = self.status();
        Life { node_id, phase, uptime }
    }

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

    async fn decommission(&self, name: &str) -> Result<(), ActionError> {
        self.known(name)?;
        self.told.lock().push(format!("decommission {name}"));
        Ok(())
    }

    async fn recommission(&self, name: &str) -> Result<(), ActionError> {
        self.known(name)?;
        self.told.lock().push(format!("recommission {name}"));
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), ActionError> {
        self.known(name)?;
        self.told.lock().push(format!("remove {name}"));
        Ok(())
    }

    fn stoppable(&self) -> Result<(), String> {
        self.stoppable.lock().clone()
    }

    fn config(&self) -> Value {
        json!({ "node_id": { "value": "n1", "source": "default", "live": false } })
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens)
    }

    fn sites(&self) -> Arc<Sites> {
        Arc::clone(&self.sites)
    }

    async fn reload(&self) -> Result<Reloaded, ActionError> {
        self.tell("reload");
        self.reload.lock().take().unwrap_or_else(|| Ok(Reloaded::default()))
    }

    async fn snapshot(&self) -> Result<Snapshot, ActionError> {
        if self.snapshot_waits.load(Ordering::Relaxed) {
            self.tell("snapshot begun");
            self.snapshot_may_end.notified().await;
        }
        self.tell("snapshot");
        self.snapshot_ended.notify_one();
        Ok(Snapshot { items: 10, bytes: 2048, took: Duration::from_millis(1500) })
    }

    async fn truncate_wal(&self) -> Result<Truncated, ActionError> {
        self.tell("truncate");
        Ok(Truncated { segments: 2, bytes: 128 })
    }

    async fn acquire_lease(&self, request: &LeaseRequest) -> Result<Lease, LeaseRefusal> {
        let LeaseRequest { node_id, holder, ttl } = request;
        self.tell(format!("acquire {node_id} {holder} {}", ttl.as_secs()));
        if let Some(refusal) = self.refusal.lock().take() {
            return Err(refusal);
        }
        if node_id != "node2" {
            return Err(LeaseRefusal::Unknown(node_id.clone()));
        }
        Ok(Lease { holder: holder.clone(), ttl_seconds: ttl.as_secs(), ..held() })
    }

    async fn lease(&self) -> Result<Option<Lease>, LeaseRefusal> {
        Ok(self.lease.lock().clone())
    }

    async fn release_lease(
        &self,
        name: &str,
        holder: Option<&str>,
    ) -> Result<Option<Lease>, LeaseRefusal> {
        self.tell(format!("release {name} {}", holder.unwrap_or("whoever")));
        Ok(self.lease.lock().take())
    }

    async fn settle_lease(&self, name: &str, holder: &str) -> Result<(), LeaseRefusal> {
        self.tell(format!("settle {name} {holder}"));
        if name != "node2" {
            return Err(LeaseRefusal::Unknown(name.to_owned()));
        }
        self.refusal.lock().take().map_or(Ok(()), Err)
    }

    fn drain(&self) -> Drained {
        self.tell("drain");
        self.status.lock().phase = Phase::Draining;
        Drained { active_connections: 5 }
    }

    fn set_rate_limit(&self, limit: RateLimit) {
        self.tell(format!("rate limit {}", limit.map_or(0, NonZeroU32::get)));
    }

    fn set_log_level(&self, level: &str) -> Result<(), ActionError> {
        if level != "debug" {
            return Err(ActionError::Invalid { parameter: "level", expected: "debug, here" });
        }
        self.tell("log level");
        Ok(())
    }
}

fn held() -> Lease {
    Lease {
        lease_id: 7,
        node_id: "node2".to_owned(),
        holder: "ops@host".to_owned(),
        since: Timestamp(1_796_000_000_000),
        until: Timestamp(1_796_001_800_000),
        ttl_seconds: 1800,
        renewed: false,
    }
}

fn serving() -> Status {
    Status {
        phase: Phase::Serving,
        cluster_id: Some("c0ffee".to_owned()),
        node_id: "n1".to_owned(),
        epoch: 4,
        members: vec![],
        leader: None,
        leaderless_for: None,
        copies_behind: 0,
        copies_coming: 0,
        serving_for: Duration::from_secs(61),
        was_whole: true,
        client_addr: Some("127.0.0.1:7700".parse().unwrap()),
        gossip_addr: None,
        zone: "z1".to_owned(),
        region: String::new(),
        uptime: Duration::from_secs(61),
        wal: Wal { mode: "sync", segments: 3, failed: false },
        lost_udp: vec![],
        exposures: vec![],
        outlook: Outlook { settled: true, moves_left: 0, eta: Some(Duration::ZERO) },
        stop_lease: None,
        readings: Readings {
            cache_size_bytes: 1000,
            replication_log_bytes: 100,
            cache_items: 10,
            cache_max_bytes: 5000,
            wal_bytes: 4096,
            active_connections: 2,
            max_connections: 100,
            shards: ShardCounts { healthy: 256, ..ShardCounts::default() },
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
        assert_eq!(self.headers[CONTENT_TYPE], "application/problem+json", "{}", self.text);
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
    send(node, peer, method, uri, headers, Body::empty()).await
}

async fn send(
    node: &Arc<Fake>,
    peer: &str,
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Answer {
    let mut request = axum::http::Request::builder().method(method).uri(uri);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "192.0.2.1:7702");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(body).unwrap();
    request.extensions_mut().insert(Peer(peer.parse().unwrap()));
    let response = router(Arc::clone(node), Arc::new(Metrics::new())).call(request).await.unwrap();
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
