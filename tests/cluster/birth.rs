//! How a cluster comes about, and how nodes come to it: together, one after the other, and empty.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Cluster, Load, Node, PATIENCE};

/// For tests that wait for a birth more than once.
fn quick() -> Value {
    json!({ "gossip_interval": "200ms" })
}

/// The cluster ids that the nodes tell.
async fn cluster_ids(cluster: &Cluster) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for index in 0..cluster.nodes.len() {
        ids.insert(cluster.ops(index, "/cluster").await.unwrap()["cluster_id"].to_string());
    }
    ids
}

/// Fills a cluster with keys that can be told from each other.
async fn fill(cluster: &Cluster, count: usize) {
    for n in 0..count {
        let answer = cluster.put(n % cluster.nodes.len(), &format!("k{n}"), &format!("v{n}")).await;
        assert_eq!(answer.status(), 201, "k{n}");
    }
}

async fn assert_full(cluster: &Cluster, count: usize) {
    for index in 0..cluster.nodes.len() {
        let dump = cluster.dump(index).await;
        assert_eq!(dump.len(), count, "through {}", cluster.nodes[index].name);
        for n in 0..count {
            assert_eq!(dump[&format!("k{n}")].value, format!("v{n}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_that_list_each_other_become_one_cluster() {
    let cluster = Cluster::start(3, json!({})).await;
    assert_eq!(cluster_ids(&cluster).await.len(), 1);
    fill(&cluster, 50).await;
    cluster.wait_equal(PATIENCE).await;
    assert_full(&cluster, 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_that_come_one_by_one_wait_for_each_other() {
    let mut cluster = Cluster::lay_out(3, quick()).await;
    cluster.nodes[2].spawn();
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.nodes[0].spawn();
    let (there, missing) = (cluster.nodes[0].peer_addr(), cluster.nodes[1].peer_addr());
    let names_the_missing = |line: &str| line.contains(&missing) && !line.contains(&there);
    let line = cluster.wait_log(2, 0, "whom it waits for", PATIENCE, names_the_missing).await;
    println!("{line}");
    assert_ne!(cluster.ops(2, "/ready").await.unwrap()["ready"], true, "two of three do not found");
    cluster.nodes[1].spawn();
    cluster.wait_ready().await;
    cluster.wait_healthy(PATIENCE).await;
    assert_eq!(cluster_ids(&cluster).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_three_configurations_of_the_deployment_guide_become_one_cluster() {
    for order in [[0, 1, 2], [2, 1, 0]] {
        let mut cluster = Cluster::lay_out(3, quick()).await;
        let addrs: Vec<String> = cluster.nodes.iter().map(Node::peer_addr).collect();
        for index in 0..3 {
            // The first lists nobody, the second the first, the third both.
            cluster.nodes[index].set(&json!({ "addrs": addrs[..index] }));
        }
        for index in order {
            cluster.nodes[index].spawn();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        cluster.wait_ready().await;
        cluster.wait_healthy(PATIENCE).await;
        assert_eq!(cluster_ids(&cluster).await.len(), 1, "started in the order {order:?}");
        fill(&cluster, 30).await;
        cluster.wait_equal(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_seed_that_lists_nobody_comes_back_to_its_cluster() {
    let mut cluster = Cluster::lay_out(3, quick()).await;
    let addrs: Vec<String> = cluster.nodes.iter().map(Node::peer_addr).collect();
    for index in 0..3 {
        cluster.nodes[index].set(&json!({ "addrs": addrs[..index] }));
    }
    cluster.nodes.iter_mut().for_each(Node::spawn);
    cluster.wait_ready().await;
    cluster.wait_healthy(PATIENCE).await;
    let before = cluster_ids(&cluster).await;
    fill(&cluster, 100).await;
    cluster.nodes[0].kill();
    cluster.nodes[0].wipe();
    cluster.restart(0).await;
    cluster.wait_healthy(PATIENCE).await;
    assert_eq!(cluster_ids(&cluster).await, before, "it founded no cluster of its own");
    cluster.wait_equal(PATIENCE).await;
    assert_full(&cluster, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_filled_again_under_load() {
    let mut cluster = Cluster::start(3, json!({})).await;
    fill(&cluster, 200).await;
    let mut load = Load::start(&cluster).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for node in [1, 0] {
        load.disturb(node, || cluster.nodes[node].kill());
        cluster.nodes[node].wipe();
        cluster.restart(node).await;
        cluster.wait_healthy(PATIENCE).await;
        load.is_over(node);
        let view = cluster.ops(2, "/cluster").await.unwrap();
        let names: BTreeSet<&str> = view["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|member| member["node_id"].as_str().unwrap())
            .collect();
        assert_eq!(names, BTreeSet::from(["node1", "node2", "node3"]), "in its old name");
    }
    let record = load.stop().await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
    record.assert_only_in_flight_failed();
    for n in 0..200 {
        assert_eq!(cluster.get(1, &format!("k{n}")).await, Some(format!("v{n}")));
    }
}

/// After orderly restarts nobody has records in memory that a newcomer could be brought level with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_given_whole_copies_where_no_recent_records_would_do() {
    let mut cluster = Cluster::start(3, json!({})).await;
    fill(&cluster, 1000).await;
    for node in 0..3 {
        cluster.nodes[node].stop(PATIENCE).await;
        cluster.restart(node).await;
        cluster.wait_healthy(PATIENCE).await;
    }
    let mut load = Load::start(&cluster).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for node in [1, 2, 0] {
        load.disturb(node, || cluster.nodes[node].kill());
        cluster.nodes[node].wipe();
        cluster.restart(node).await;
        cluster.wait_healthy(PATIENCE).await;
        load.is_over(node);
    }
    let record = load.stop().await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
    record.assert_only_in_flight_failed();
    for n in 0..1000 {
        assert_eq!(cluster.get(n % 3, &format!("k{n}")).await, Some(format!("v{n}")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_grows_to_three_with_its_data_and_clients_notice_nothing() {
    let mut cluster = Cluster::lay_out(1, quick()).await;
    cluster.nodes[0].set(&json!({ "addrs": [] }));
    cluster.nodes[0].spawn();
    cluster.wait_ready().await;
    fill(&cluster, 200).await;
    let load = Load::start(&cluster).await;
    let seed = cluster.nodes[0].peer_addr();
    for name in ["node2", "node3"] {
        let mut settings = quick();
        settings["addrs"] = json!([seed]);
        let index = cluster.add(name, &settings);
        cluster.restart(index).await;
    }
    cluster.wait_healthy(PATIENCE).await;
    let record = load.stop().await;
    record.assert_only_in_flight_failed();
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
    for shard in cluster.shards(1).await.unwrap() {
        assert_eq!(shard.voters.len(), 3, "{shard:?}");
    }
    for n in 0..200 {
        assert_eq!(cluster.get(2, &format!("k{n}")).await, Some(format!("v{n}")));
    }
}
