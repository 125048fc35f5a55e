//! What a node says of itself and its cluster: whom a load balancer sends clients to, who leads.

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
    eventually("each has its third", PATIENCE, async || {
        let primaries = cluster.primaries().await;
        if primaries.iter().all(|led| *led >= 5) { Ok(()) } else { Err(format!("{primaries:?}")) }
    })
    .await;
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

/// What a node says when two of three are killed; `survivor` picks the one left, given the leader.
async fn nobody_leads(survivor: impl Fn(usize) -> usize) {
    let mut cluster = Cluster::start(3, json!({ "gossip_interval": "200ms" })).await;
    let survivor = survivor(cluster.leader().await);
    let before = cluster.ops(survivor, "/cluster").await.unwrap();
    assert!(before["leader"].is_string() && before["leaderless_since"].is_null(), "{before}");
    for other in cluster.others(survivor) {
        cluster.nodes[other].kill();
    }
    let leaderless = async || {
        let view = cluster.ops(survivor, "/cluster").await?;
        let leads = |member: &Value| member["leader"] == true;
        let members = view["members"].as_array().cloned().unwrap_or_default();
        match view["leaderless_since"].as_str() {
            Some(since) if view["leader"].is_null() && !members.iter().any(leads) => {
                Ok(humantime::parse_rfc3339(since).unwrap())
            }
            _ => Err(view.to_string()),
        }
    };
    let since = eventually("nobody leads", PATIENCE, leaderless).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    // Elections go on, and nobody wins them: that changes nothing. Moments are told in seconds.
    let later = leaderless().await.unwrap();
    let moved = later.duration_since(since).unwrap_or_default();
    assert!(moved <= Duration::from_secs(1), "leaderless since {since:?}, later since {later:?}");
    let status = cluster.nodes[survivor].status();
    assert!(status.contains("no leader since 20"), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_left_alone_says_that_nobody_leads() {
    nobody_leads(|leader| (leader + 1) % 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_left_alone_says_that_nobody_leads() {
    nobody_leads(|leader| leader).await;
}
