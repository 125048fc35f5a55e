//! Nodes that come back without their memory: they learn from those that have it; where nobody has,
//! the cluster goes on with what is left.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Cluster, Load, Node, PATIENCE, eventually};

/// A cluster that lost everything serves again so soon after its processes do, by itself.
const RECOVERED_WITHIN: Duration = Duration::from_secs(20);

/// A lone node has nobody to wait for.
const LONE_WITHIN: Duration = Duration::from_secs(3);

async fn fill(cluster: &Cluster, count: usize) {
    for n in 0..count {
        let answer = cluster.put(n % cluster.nodes.len(), &format!("k{n}"), &format!("v{n}")).await;
        assert_eq!(answer.status(), 201, "k{n}");
    }
}

/// Waits until a key can be written in each shard through a node; how long it took.
async fn writes_again(cluster: &Cluster, node: usize, within: Duration) -> Duration {
    let began = Instant::now();
    for n in 0..4 * u32::from(cluster.num_shards) {
        eventually("writes go on", within, async || {
            let answer = cluster.put(node, &format!("after{n}"), "v").await;
            match answer.status().as_u16() {
                201 | 204 => Ok(()),
                _ => Err(answer.text().await.unwrap()),
            }
        })
        .await;
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_log_learns_again_after_its_restart_and_votes_again() {
    let mut cluster = Cluster::start(3, json!({ "wal_mode": "off" })).await;
    fill(&cluster, 200).await;
    let mut load = Load::start(&cluster).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for node in 0..3 {
        load.disturb(node, || cluster.nodes[node].kill());
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.restart(node).await;
        cluster.wait_healthy(PATIENCE).await;
        load.is_over(node);
    }
    let record = load.stop().await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
    record.assert_only_in_flight_failed();
    for n in 0..200 {
        assert_eq!(cluster.get(n % 3, &format!("k{n}")).await, Some(format!("v{n}")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_lost_all_its_memory_serves_again_by_itself() {
    let mut cluster = Cluster::start(3, json!({ "wal_mode": "off" })).await;
    fill(&cluster, 50).await;
    cluster.wait_level(PATIENCE).await;
    cluster.nodes.iter_mut().for_each(Node::kill);
    cluster.nodes.iter_mut().for_each(Node::spawn);
    cluster.wait_ready().await;
    let took = writes_again(&cluster, 1, RECOVERED_WITHIN).await;
    println!("written again {took:?} after all were ready");
    assert!(took <= RECOVERED_WITHIN, "{took:?}");
    cluster.wait_healthy(PATIENCE).await;
    cluster.wait_equal(PATIENCE).await;
    assert_eq!(cluster.get(0, "k0").await, None, "nothing was kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_without_a_log_serves_again_at_once() {
    let mut cluster = Cluster::start(1, json!({ "addrs": [], "wal_mode": "off" })).await;
    for _ in 0..2 {
        fill(&cluster, 20).await;
        cluster.nodes[0].kill();
        cluster.restart(0).await;
        let took = writes_again(&cluster, 0, LONE_WITHIN).await;
        println!("written again {took:?} after it was ready");
        assert!(took <= LONE_WITHIN, "{took:?}");
        assert_eq!(cluster.get(0, "k0").await, None, "nothing was kept");
    }
}

/// What an operator did on purpose has an end in time, whatever else is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_in_time_also_when_no_majority_is_left() {
    let settings: Value = json!({ "drain_timeout": "3s" });
    let mut cluster = Cluster::start(3, settings).await;
    fill(&cluster, 20).await;
    cluster.nodes[1].kill();
    cluster.nodes[2].pause();
    let began = Instant::now();
    cluster.nodes[0].stop(Duration::from_secs(10)).await;
    println!("stopped alone in {:?}", began.elapsed());
    cluster.nodes[2].resume();
    let began = Instant::now();
    cluster.nodes[2].stop(Duration::from_secs(10)).await;
    println!("the last stopped in {:?}", began.elapsed());
    for index in [0, 1, 2] {
        cluster.nodes[index].spawn();
    }
    cluster.wait_ready().await;
    cluster.wait_healthy(PATIENCE).await;
    cluster.wait_equal(PATIENCE).await;
    for n in 0..20 {
        assert_eq!(cluster.get(n % 3, &format!("k{n}")).await, Some(format!("v{n}")));
    }
}

/// A bit of a record in the middle of a node's log turns over while the node is down.
fn damage(node: &Node) {
    let wal = node.data().join("wal");
    let mut segments: Vec<_> =
        std::fs::read_dir(wal).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|e| e == "wal"));
    segments.sort();
    let path = &segments[0];
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(10).position(|w| w == b"damaged-it").unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_is_damaged_learns_from_others() {
    let mut cluster = Cluster::start(3, json!({})).await;
    assert_eq!(cluster.put(0, "in-the-middle", "damaged-it").await.status(), 201);
    fill(&cluster, 200).await;
    cluster.wait_level(PATIENCE).await;
    cluster.nodes[1].kill();
    damage(&cluster.nodes[1]);
    cluster.restart(1).await;
    cluster.wait_healthy(PATIENCE).await;
    cluster.wait_equal(PATIENCE).await;
    for n in 0..200 {
        assert_eq!(cluster.get(1, &format!("k{n}")).await, Some(format!("v{n}")));
    }
    assert_eq!(cluster.get(1, "in-the-middle").await.as_deref(), Some("damaged-it"));
}
