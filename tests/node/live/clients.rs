//! Keys that one node's clients notice.

use std::fs;

use super::*;

pub(super) async fn drain_timeout() {
    let mut home = Home::new(json!({ "drain_timeout": "10m" }));
    let mut node = home.start().await;
    reload(&mut home, &node, json!({ "drain_timeout": "200ms" })).await;
    let mut unfinished = Held::open(&node).await;
    unfinished.send("PUT /v1/kv/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nx").await;
    eventually(async || ops(&node, "/stats").await["connections"]["active"] != 0, "a client").await;
    node.signal(Signal::SIGTERM);
    assert!(node.wait(PATIENCE).success(), "{}", node.log());
}

/// Up and down, and by more than it was at the start.
pub(super) async fn max_conns() {
    let mut home = Home::new(json!({ "max_conns": 2 }));
    let node = home.start().await;
    let mut held = Vec::new();
    let one_more = async |held: &mut Vec<Held>| {
        let mut client = Held::open(&node).await;
        let status = client.ask().await;
        if status == Some(200) {
            held.push(client);
        }
        status
    };
    for status in [200, 200, 503] {
        assert_eq!(one_more(&mut held).await, Some(status));
    }
    reload(&mut home, &node, json!({ "max_conns": 5 })).await;
    for status in [200, 200, 200, 503] {
        assert_eq!(one_more(&mut held).await, Some(status));
    }
    assert_eq!(ops(&node, "/stats").await["connections"]["max"], 5);
    reload(&mut home, &node, json!({ "max_conns": 3 })).await;
    held.truncate(3);
    eventually(async || ops(&node, "/stats").await["connections"]["active"] == 3, "room").await;
    assert_eq!(one_more(&mut held).await, Some(503));
}

pub(super) async fn read_timeout() {
    let mut home = Home::new(json!({}));
    let node = home.start().await;
    let mut idle = Held::open(&node).await;
    assert!(!idle.is_closed_within(A_WHILE).await);
    reload(&mut home, &node, json!({ "read_timeout": "100ms" })).await;
    assert!(idle.is_closed_within(PATIENCE / 2).await);
}

pub(super) async fn write_timeout() {
    let mut home = Home::new(json!({}));
    let node = home.start().await;
    assert_eq!(put(&node, "a", 8 << 20).await, 201);
    let mut reader = Held::open(&node).await;
    for _ in 0..4 {
        reader.send("GET /v1/kv/a HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    }
    let is_served = async || ops(&node, "/stats").await["connections"]["active"] != 0;
    eventually(is_served, "a client").await;
    tokio::time::sleep(A_WHILE).await;
    assert!(is_served().await);
    reload(&mut home, &node, json!({ "write_timeout": "100ms" })).await;
    let began = Instant::now();
    eventually(async || !is_served().await, "the end of who takes nothing").await;
    assert!(began.elapsed() < PATIENCE / 2);
}

pub(super) async fn rate_limit() {
    let mut home = Home::new(json!({ "rate_burst": 1 }));
    let node = home.start().await;
    let mut client = Held::open(&node).await;
    for _ in 0..3 {
        assert_eq!(client.ask().await, Some(200));
    }
    reload(&mut home, &node, json!({ "rate_limit": 1 })).await;
    assert_eq!(client.ask().await, Some(200));
    assert_eq!(client.ask().await, Some(429));
}

pub(super) async fn rate_burst() {
    let mut home = Home::new(json!({ "rate_limit": 1, "rate_burst": 1 }));
    let node = home.start().await;
    let mut client = Held::open(&node).await;
    assert_eq!(client.ask().await, Some(200));
    assert_eq!(client.ask().await, Some(429));
    reload(&mut home, &node, json!({ "rate_burst": 20 })).await;
    for _ in 0..10 {
        assert_eq!(client.ask().await, Some(200));
    }
}

/// What both ports answer to a request with that header field.
async fn with_header(node: &Node, name: &str, value: &str) -> [u16; 2] {
    let urls = [node.url("none"), node.ops_url("/stats")];
    let mut statuses = [0; 2];
    for (status, url) in statuses.iter_mut().zip(urls) {
        *status = http().get(url).header(name, value).send().await.unwrap().status().as_u16();
    }
    statuses
}

pub(super) async fn allowed_hosts() {
    let mut home = Home::new(json!({}));
    let node = home.start().await;
    assert_eq!(with_header(&node, "host", "kv.example").await, [403, 403]);
    reload(&mut home, &node, json!({ "allowed_hosts": ["kv.example"] })).await;
    assert_eq!(with_header(&node, "host", "kv.example").await, [404, 200]);
    assert_eq!(with_header(&node, "host", "evil.example").await, [403, 403]);
}

pub(super) async fn allowed_origins() {
    let mut home = Home::new(json!({}));
    let node = home.start().await;
    assert_eq!(with_header(&node, "origin", "https://app.example").await, [403, 403]);
    reload(&mut home, &node, json!({ "allowed_origins": ["https://app.example"] })).await;
    assert_eq!(with_header(&node, "origin", "https://app.example").await, [404, 200]);
    assert_eq!(with_header(&node, "origin", "https://evil.example").await, [403, 403]);
}

/// A node that holds half of what it may, and gives up nothing.
async fn half_full() -> (Home, Node) {
    let home = Home::new(json!({ "max_memory_mb": 4, "eviction_policy": "none" }));
    let node = home.start().await;
    assert_eq!(put(&node, "a", 2 << 20).await, 201);
    assert_eq!(put(&node, "b", 3 << 20).await, 507);
    (home, node)
}

pub(super) async fn max_memory_mb() {
    let (mut home, node) = half_full().await;
    reload(&mut home, &node, json!({ "max_memory_mb": 16 })).await;
    assert_eq!(put(&node, "b", 3 << 20).await, 201);
    reload(&mut home, &node, json!({ "max_memory_mb": 4 })).await;
    assert_eq!(put(&node, "c", 1 << 20).await, 507);
}

pub(super) async fn eviction_policy() {
    let (mut home, node) = half_full().await;
    reload(&mut home, &node, json!({ "eviction_policy": "s3fifo" })).await;
    assert_eq!(put(&node, "b", 3 << 20).await, 201);
}

pub(super) async fn eviction_ratio() {
    let mut home = Home::new(json!({ "max_memory_mb": 16 }));
    let node = home.start().await;
    for n in 0..40 {
        assert_eq!(put(&node, &format!("k{n}"), 200 << 10).await, 201);
    }
    assert_eq!(ops(&node, "/stats").await["items"], 40);
    reload(&mut home, &node, json!({ "eviction_ratio": 0.25 })).await;
    eventually(
        async || {
            put(&node, "one", 1).await;
            ops(&node, "/stats").await["bytes"].as_u64().unwrap() < 5 << 20
        },
        "eviction",
    )
    .await;
}

pub(super) async fn write_quorum() {
    let mut home = Home::new(json!({}));
    let node = home.start().await;
    assert_eq!(put(&node, "a", 1).await, 201);
    reload(&mut home, &node, json!({ "write_quorum": 0 })).await;
    assert_eq!(put(&node, "b", 1).await, 202);
}

const TOKENS: [&str; 2] =
    ["first-token-of-this-test-0123456789", "second-token-of-this-test-012345678"];

/// What each of the tokens opens on the client port, and of the actions.
async fn opened(node: &Node) -> [[u16; 2]; 2] {
    let mut statuses = [[0; 2]; 2];
    for (statuses, token) in statuses.iter_mut().zip(TOKENS) {
        let got = http().get(node.url("none")).bearer_auth(token);
        let level = http().post(node.ops_url("/admin/log-level?level=info")).bearer_auth(token);
        for (status, request) in statuses.iter_mut().zip([got, level]) {
            *status = request.send().await.unwrap().status().as_u16();
        }
    }
    statuses
}

/// The first token is in force, and after a reload the second.
async fn replaces_tokens(mut home: Home, [first, second]: [Value; 2]) {
    home.set(first);
    let node = home.start().await;
    assert_eq!(opened(&node).await, [[404, 200], [401, 401]]);
    reload(&mut home, &node, second).await;
    assert_eq!(opened(&node).await, [[401, 401], [404, 200]]);
}

pub(super) async fn auth_token() {
    let settings = TOKENS.map(|token| json!({ "auth_token": token }));
    replaces_tokens(Home::new(json!({})), settings).await;
}

pub(super) async fn auth_token_file() {
    let home = Home::new(json!({}));
    let files = [0, 1].map(|n| home.dir.path().join(format!("token{n}")));
    for (file, token) in files.iter().zip(TOKENS) {
        fs::write(file, token).unwrap();
    }
    replaces_tokens(home, files.map(|file| json!({ "auth_token_file": file }))).await;
}

pub(super) async fn auth_tokens() {
    let mut home = Home::new(json!({}));
    let file = home.dir.path().join("shop");
    fs::write(&file, TOKENS[0]).unwrap();
    let shop = |verbs: &[&str]| json!({ "auth_tokens": [{ "name": "shop", "file": file, "verbs": verbs }] });
    home.set(shop(&["read"]));
    let node = home.start().await;
    assert_eq!(opened(&node).await, [[404, 403], [401, 401]]);
    reload(&mut home, &node, shop(&["admin"])).await;
    assert_eq!(opened(&node).await, [[403, 200], [401, 401]]);
    // Rotated by overlap.
    fs::write(&file, TOKENS.map(|token| format!("{token}\n")).concat()).unwrap();
    reload(&mut home, &node, json!({})).await;
    assert_eq!(opened(&node).await, [[403, 200], [403, 200]]);
    fs::write(&file, TOKENS[1]).unwrap();
    reload(&mut home, &node, json!({})).await;
    assert_eq!(opened(&node).await, [[401, 401], [403, 200]]);
}

pub(super) async fn log_level() {
    let mut home = Home::new(json!({}));
    let node = home.start().await;
    let is_talkative = async || {
        put(&node, "a", 1).await;
        // A connection that ends in the middle is worth a word to those who look closely.
        let mut client = Held::open(&node).await;
        client.send("GET").await;
        drop(client);
        node.log().contains("DEBUG")
    };
    assert!(!is_talkative().await);
    reload(&mut home, &node, json!({ "log_level": "debug" })).await;
    eventually(is_talkative, "a line of level debug").await;
}
