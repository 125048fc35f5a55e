//! Strangers at the door: each is refused in a line that an operator understands, and the cluster
//! goes on as if nobody had come.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE};

/// How long a stranger knocks before it is looked at what the others made of it.
const KNOCKS_FOR: Duration = Duration::from_secs(3);

/// Lines about one stranger that are one complaint, told once a minute, on its way and the other's.
const LINES_MAX: usize = 4;

/// The three members as a node sees them: name, status, address.
async fn members(cluster: &Cluster, index: usize) -> BTreeMap<String, (String, String)> {
    let view = cluster.ops(index, "/cluster").await.unwrap();
    let members = view["members"].as_array().unwrap().iter().map(|member| {
        let text = |field: &str| member[field].as_str().unwrap_or_default().to_owned();
        (text("node_id"), (text("status"), text("gossip_addr")))
    });
    members.collect()
}

/// Starts a stranger with these settings beside three that are well, and sees that it is not let
/// in, that `words` stand in a warning of one of the members or in the stranger's own log, and that
/// the three go on.
async fn is_refused(name: &str, settings: Value, words: &[&str]) {
    let mut cluster = Cluster::start(3, json!({ "gossip_interval": "200ms" })).await;
    let addrs: Vec<String> = cluster.nodes.iter().map(crate::support::Node::peer_addr).collect();
    let stranger = cluster.add(name, &json!({ "gossip_interval": "200ms", "addrs": addrs }));
    cluster.nodes[stranger].set(&settings);
    knock(&mut cluster, stranger, words).await;
}

/// The part of [`is_refused`] after the stranger was laid out.
async fn knock(cluster: &mut Cluster, stranger: usize, words: &[&str]) {
    let before = members(cluster, 0).await;
    assert_eq!(before.len(), 3, "{before:?}");
    let marks: Vec<usize> = cluster.nodes.iter().map(crate::support::Node::log_mark).collect();
    cluster.nodes[stranger].spawn();
    let is_it = |line: &str| {
        let is_loud = line.contains("WARN") || line.contains("ERROR") || line.contains("aegiskv:");
        is_loud && words.iter().all(|word| line.to_lowercase().contains(word))
    };
    let said = |cluster: &Cluster| -> Vec<String> {
        let nodes = cluster.nodes.iter().zip(&marks);
        let logs = nodes.map(|(node, mark)| (&node.name, node.log_since(*mark)));
        logs.flat_map(|(name, log)| {
            let lines = log.lines().filter(|line| is_it(line));
            lines.map(|line| format!("{name}: {line}")).collect::<Vec<_>>()
        })
        .collect()
    };
    crate::support::eventually(&format!("a warning with {words:?}"), PATIENCE, async || {
        if said(cluster).is_empty() { Err("none yet".to_owned()) } else { Ok(()) }
    })
    .await;
    tokio::time::sleep(KNOCKS_FOR).await;
    let lines = said(cluster);
    println!("{}", lines.join("\n"));
    assert!(lines.len() <= LINES_MAX * 3, "{} lines, no log for people: {lines:#?}", lines.len());
    for index in 0..3 {
        assert_eq!(members(cluster, index).await, before, "as node{} sees it", index + 1);
        let answer = cluster.put(index, &format!("goes-on{index}"), "v").await;
        assert_eq!(answer.status(), 201);
    }
    if cluster.nodes[stranger].ended().is_none() {
        let key = format!("stranger-{stranger}");
        let url = cluster.nodes[stranger].url(&format!("/v1/kv/{key}"));
        // Whether it serves at all is its own affair; it does not serve this cluster.
        let _ = cluster.http.put(url).body("v").timeout(Duration::from_secs(5)).send().await;
        assert_eq!(cluster.get(0, &key).await, None, "written through the stranger");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_secret() {
    let settings = json!({ "gossip_secret": "another-secret-than-that-of-the-cluster-01234" });
    is_refused("node4", settings, &["secret"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_number_of_shards() {
    is_refused("node4", json!({ "num_shards": 32 }), &["num_shards"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_node_of_the_same_name() {
    is_refused("node2", json!({}), &["node2"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster() {
    let mut cluster = Cluster::start(3, json!({ "gossip_interval": "200ms" })).await;
    let addrs: Vec<String> = cluster.nodes.iter().map(crate::support::Node::peer_addr).collect();
    let stranger = cluster.add("node4", &json!({ "gossip_interval": "200ms", "addrs": [] }));
    cluster.restart(stranger).await;
    assert_eq!(cluster.put(stranger, "own", "v").await.status(), 201, "a cluster of its own");
    cluster.nodes[stranger].stop(PATIENCE).await;
    cluster.nodes[stranger].set(&json!({ "addrs": addrs }));
    knock(&mut cluster, stranger, &["cluster"]).await;
    assert_eq!(cluster.get(stranger, "own").await.as_deref(), Some("v"), "it keeps its own");
    assert_eq!(cluster.get(0, "own").await, None);
}
