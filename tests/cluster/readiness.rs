//! Whom a load balancer sends clients to.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, eventually};

/// A dead node's reports are forgotten by then, and gossip has given it up.
const NOTICED_AFTER: Duration = Duration::from_secs(6);

/// Whether a node is ready, and its line about shards.
async fn ready(cluster: &Cluster, index: usize) -> (u16, String) {
    let answer = cluster.http.get(cluster.nodes[index].ops_url("/ready")).send().await.unwrap();
    let status = answer.status().as_u16();
    let checks: Value = answer.json().await.unwrap();
    (status, checks["checks"]["shards"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_stay_in_service_though_nobody_serves_some_shards() {
    let settings = json!({ "gossip_interval": "200ms", "replication_factor": 1 });
    let mut cluster = Cluster::start(3, settings).await;
    cluster.nodes[2].kill();
    tokio::time::sleep(NOTICED_AFTER).await;
    for index in [0, 1] {
        let (status, shards) = ready(&cluster, index).await;
        assert!(shards.contains("unavailable"), "{shards}");
        assert_eq!(status, 200, "node{}: {shards}", index + 1);
    }
    cluster.nodes[1].kill();
    tokio::time::sleep(NOTICED_AFTER).await;
    let (status, shards) = ready(&cluster, 0).await;
    assert_eq!(status, 200, "it writes its own third: {shards}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_reaches_no_primary_is_out_of_service_until_it_does() {
    let mut cluster = Cluster::start(3, json!({ "gossip_interval": "200ms" })).await;
    cluster.nodes[1].pause();
    cluster.nodes[2].kill();
    let reaches_none = async || match ready(&cluster, 0).await {
        (503, _) => Ok(()),
        (status, shards) => Err(format!("{status}: {shards}")),
    };
    eventually("node1 is not ready", PATIENCE, reaches_none).await;
    cluster.nodes[1].resume();
    let reaches = async || match ready(&cluster, 0).await {
        (200, _) => Ok(()),
        (status, shards) => Err(format!("{status}: {shards}")),
    };
    eventually("node1 is ready", PATIENCE, reaches).await;
}
