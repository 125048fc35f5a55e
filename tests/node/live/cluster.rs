//! Keys that only other nodes notice.

use std::fs;

use super::*;

/// Nodes that list each other.
async fn nodes(count: usize, settings: Value) -> (Vec<Home>, Vec<Node>) {
    let mut homes: Vec<Home> = (0..count).map(|_| Home::new(settings.clone())).collect();
    let addrs: Vec<String> = homes.iter().map(Home::peer_addr).collect();
    for (n, home) in homes.iter_mut().enumerate() {
        home.set(json!({ "node_id": format!("n{n}"), "addrs": addrs, "num_shards": 16 }));
    }
    let mut nodes: Vec<Node> = homes.iter().map(Home::spawn).collect();
    for node in &mut nodes {
        node.wait_ready().await;
    }
    for node in &nodes {
        let is_whole = async || {
            let cluster = ops(node, "/cluster").await;
            cluster["members"].as_array().unwrap().len() == count
                && cluster["shards"]["healthy"] == 16
        };
        eventually(is_whole, "a whole cluster").await;
    }
    (homes, nodes)
}

/// A sample of a node's metrics; 0 if there is none.
async fn sample(node: &Node, name: &str) -> f64 {
    let text = http().get(node.ops_url("/metrics")).send().await.unwrap().text().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |n| n.parse().unwrap())
}

/// How often a node refused others for that reason.
async fn refused(node: &Node, reason: &str) -> f64 {
    sample(node, &format!("aegis_peer_refusals_total{{reason=\"{reason}\"}}")).await
}

/// A node that is given another cluster's address knocks there, and is refused.
pub(super) async fn addrs() {
    let (mut a, b) = (Home::new(json!({ "node_id": "a" })), Home::new(json!({ "node_id": "b" })));
    let (node_a, node_b) = (a.start().await, b.start().await);
    assert_eq!(refused(&node_b, "other_cluster").await, 0.0);
    reload(&mut a, &node_a, json!({ "addrs": [b.peer_addr()] })).await;
    eventually(async || refused(&node_b, "other_cluster").await > 0.0, "a knock").await;
}

/// A node that is still being born has no part yet that the new settings could be told to.
#[tokio::test]
async fn what_changes_while_a_node_starts_holds_once_it_has_started() {
    let (mut a, b) = (Home::new(json!({ "node_id": "a" })), Home::new(json!({ "node_id": "b" })));
    let node_b = b.start().await;
    a.set(json!({ "gossip_interval": "1s" }));
    let mut node_a = a.spawn();
    let is_up = async || http().get(node_a.ops_url("/health")).send().await.is_ok();
    eventually(is_up, "the operations port").await;
    reload(&mut a, &node_a, json!({ "addrs": [b.peer_addr()] })).await;
    assert_eq!(http().get(node_a.ops_url("/ready")).send().await.unwrap().status(), 503);
    node_a.wait_ready().await;
    eventually(async || refused(&node_b, "other_cluster").await > 0.0, "a knock").await;
}

pub(super) async fn when_removed() {
    let (mut homes, mut nodes) = nodes(3, json!({ "when_removed": "stay" })).await;
    nodes.pop().unwrap().kill();
    let remove = || http().post(nodes[0].ops_url("/admin/nodes/n2/remove")).send();
    eventually(async || remove().await.unwrap().status() == 200, "its removal").await;
    let mut removed = homes[2].spawn();
    let knows = async || {
        let Ok(answer) = http().get(removed.ops_url("/ready")).send().await else { return false };
        answer.text().await.unwrap().contains("removed: ")
    };
    eventually(knows, "word of its removal").await;
    reload(&mut homes[2], &removed, json!({ "when_removed": "exit" })).await;
    assert_eq!(removed.wait(PATIENCE).code(), Some(10));
}

/// What a node keeps for others: so much as it is told, and nothing while it is alone.
pub(super) async fn replication_log_mb() {
    const KB: f64 = 1024.0;
    let fill = async |node: &Node| {
        for n in 0..64 {
            assert_eq!(put(node, &format!("k{n}"), 100 << 10).await / 100, 2);
        }
    };
    let kept = async |node: &Node| sample(node, "aegis_replication_log_bytes").await;
    let alone = Home::new(json!({}));
    let node = alone.start().await;
    fill(&node).await;
    assert_eq!(kept(&node).await, 0.0);

    let settings = json!({ "replication_factor": 2, "replication_log_mb": 16 });
    let (mut homes, nodes) = nodes(2, settings).await;
    fill(&nodes[0]).await;
    assert!(kept(&nodes[0]).await > 6000.0 * KB, "{}", kept(&nodes[0]).await);
    assert!(sample(&nodes[0], "aegis_cache_size_bytes").await > 12_000.0 * KB);
    reload(&mut homes[0], &nodes[0], json!({ "replication_log_mb": 2 })).await;
    eventually(async || kept(&nodes[0]).await <= 2048.0 * KB, "less").await;
}

pub(super) async fn read_quorum() {
    let (mut homes, mut nodes) = nodes(2, json!({ "replication_factor": 2 })).await;
    assert_eq!(put(&nodes[0], "a", 1).await, 201);
    nodes.pop().unwrap().kill();
    assert_eq!(get(&nodes[0], "a").await, 200);
    reload(&mut homes[0], &nodes[0], json!({ "read_quorum": -1 })).await;
    assert_eq!(get(&nodes[0], "a").await, 503);
    reload(&mut homes[0], &nodes[0], json!({ "read_quorum": 1 })).await;
    assert_eq!(get(&nodes[0], "a").await, 200);
}

/// What the first of two nodes takes the other for.
async fn seems(nodes: &[Node]) -> String {
    let cluster = ops(&nodes[0], "/cluster").await;
    let members = cluster["members"].as_array().unwrap();
    let other = members.iter().find(|member| member["node_id"] == "n1").unwrap();
    other["status"].as_str().unwrap().to_owned()
}

pub(super) async fn suspect_timeout() {
    let (mut homes, nodes) =
        nodes(2, json!({ "suspect_timeout": "10m", "dead_timeout": "20m" })).await;
    nodes[1].signal(Signal::SIGSTOP);
    tokio::time::sleep(2 * A_WHILE).await;
    assert_eq!(seems(&nodes).await, "alive");
    reload(&mut homes[0], &nodes[0], json!({ "suspect_timeout": "200ms" })).await;
    eventually(async || seems(&nodes).await == "suspect", "suspicion").await;
}

pub(super) async fn dead_timeout() {
    let (mut homes, nodes) =
        nodes(2, json!({ "suspect_timeout": "200ms", "dead_timeout": "20m" })).await;
    nodes[1].signal(Signal::SIGSTOP);
    eventually(async || seems(&nodes).await == "suspect", "suspicion").await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(seems(&nodes).await, "suspect");
    reload(&mut homes[0], &nodes[0], json!({ "dead_timeout": "300ms" })).await;
    eventually(async || seems(&nodes).await == "dead", "certainty").await;
}

pub(super) async fn rebalance_delay() {
    let settings = json!({
        "replication_factor": 3,
        "suspect_timeout": "200ms",
        "dead_timeout": "400ms",
        "rebalance_delay": "10m",
    });
    let (mut homes, mut nodes) = nodes(4, settings).await;
    let is_spread = async || {
        let cluster = ops(&nodes[0], "/cluster").await;
        let members = cluster["members"].as_array().unwrap();
        members.iter().all(|member| member["shards"] != 0) && cluster["shards"]["healthy"] == 16
    };
    eventually(is_spread, "copies on every node").await;
    let healthy = async |nodes: &[Node]| {
        ops(&nodes[0], "/cluster").await["shards"]["healthy"].as_u64().unwrap()
    };
    nodes.pop().unwrap().kill();
    eventually(async || healthy(&nodes).await < 16, "missing copies").await;
    tokio::time::sleep(4 * A_WHILE).await;
    assert!(healthy(&nodes).await < 16);
    for (home, node) in homes.iter_mut().zip(&nodes) {
        reload(home, node, json!({ "rebalance_delay": "0s" })).await;
    }
    eventually(async || healthy(&nodes).await == 16, "copies elsewhere").await;
}

const SECRETS: [&str; 2] =
    ["first-secret-of-this-test-012345678", "second-secret-of-this-test-01234567"];

pub(super) async fn gossip_secret() {
    let (mut homes, nodes) = nodes(2, json!({ "gossip_secret": SECRETS[0] })).await;
    assert_eq!(refused(&nodes[0], "wrong_secret").await, 0.0);
    reload(&mut homes[1], &nodes[1], json!({ "gossip_secret": SECRETS[1] })).await;
    eventually(async || refused(&nodes[0], "wrong_secret").await > 0.0, "a stranger").await;
}

pub(super) async fn gossip_secret_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = [0, 1].map(|n| dir.path().join(format!("secret{n}")));
    for (file, secret) in files.iter().zip(SECRETS) {
        fs::write(file, secret).unwrap();
    }
    let (mut homes, nodes) = nodes(2, json!({ "gossip_secret_file": files[0] })).await;
    assert_eq!(refused(&nodes[0], "wrong_secret").await, 0.0);
    reload(&mut homes[1], &nodes[1], json!({ "gossip_secret_file": files[1] })).await;
    eventually(async || refused(&nodes[0], "wrong_secret").await > 0.0, "a stranger").await;
}
