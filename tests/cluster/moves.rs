//! Copies that move: away from a node that is to leave, to another when one is gone for good, and
//! in one piece when little would not do.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Cluster, Load, PATIENCE, eventually};

fn quick() -> Value {
    json!({ "gossip_interval": "200ms" })
}

/// Three that are well, and a fourth that has joined them.
async fn four(settings: &Value) -> Cluster {
    let mut cluster = Cluster::start(3, settings.clone()).await;
    let mut settings = settings.clone();
    settings["addrs"] = json!([cluster.nodes[0].peer_addr()]);
    let fourth = cluster.add("node4", &settings);
    cluster.restart(fourth).await;
    cluster.wait_healthy(PATIENCE).await;
    cluster
}

/// Waits until a member has no copy any more.
async fn wait_empty(cluster: &Cluster, asked: usize, name: &str) {
    eventually(&format!("{name} has no copies"), PATIENCE, async || {
        let shards = cluster.shards(asked).await?;
        let named = |seats: &[String]| seats.iter().any(|seat| seat == name);
        let left = shards.iter().filter(|s| named(&s.voters) || named(&s.learners)).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} shards")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_to_leave_is_emptied_and_removed_and_clients_notice_nothing() {
    let mut cluster = four(&quick()).await;
    let mut load = Load::start(&cluster).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let call = |path: &str| cluster.http.post(cluster.nodes[0].ops_url(path)).send();
    let refused = call("/admin/nodes/node3/remove").await.unwrap();
    assert_eq!(refused.status(), 409, "a living member is not removed just so");
    let answer = call("/admin/nodes/node3/decommission").await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    wait_empty(&cluster, 0, "node3").await;
    // A restart does not make it stay.
    load.disturbance_begins(2);
    cluster.nodes[2].stop(PATIENCE).await;
    load.clients_are_told(2);
    cluster.restart(2).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let view = cluster.ops(0, "/cluster").await.unwrap();
    let mut members = view["members"].as_array().unwrap().iter();
    let leaving = members.find(|member| member["node_id"] == "node3").unwrap();
    assert_eq!((&leaving["status"], &leaving["shards"]), (&json!("leaving"), &json!(0)));
    let record = load.stop().await;
    record.assert_only_in_flight_failed();
    let answer = cluster.http.post(cluster.nodes[0].ops_url("/admin/nodes/node3/remove"));
    let answer = answer.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    let status = cluster.nodes[2].end(PATIENCE).await;
    assert_eq!(status.code(), Some(10), "it learns that it was removed, and ends");
    cluster.nodes.remove(2);
    cluster.wait_healthy(PATIENCE).await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decommission_is_called_off_and_the_node_has_its_copies_again() {
    let mut cluster = Cluster::start(3, quick()).await;
    let call = async |index: usize, action: &str| {
        let path = format!("/admin/nodes/node3/{action}");
        cluster.http.post(cluster.nodes[index].ops_url(&path)).send().await.unwrap()
    };
    let refused = call(0, "recommission").await;
    assert_eq!(refused.status(), 409, "{}", refused.text().await.unwrap());
    assert_eq!(call(0, "decommission").await.status(), 202);
    wait_empty(&cluster, 0, "node3").await;
    eventually("two copies of three are too few", PATIENCE, async || {
        let view = cluster.ops(0, "/cluster").await?;
        if view["shards"]["under_replicated"] == 16 { Ok(()) } else { Err(view.to_string()) }
    })
    .await;
    let stays = call(1, "recommission").await;
    assert_eq!(stays.status(), 200, "{}", stays.text().await.unwrap());
    eventually("node3 leads its part again", PATIENCE, async || {
        let primaries = cluster.primaries().await;
        if primaries[2] >= 4 { Ok(()) } else { Err(format!("{primaries:?}")) }
    })
    .await;
    for shard in cluster.shards(0).await.unwrap() {
        assert_eq!(shard.voters.len(), 3, "{shard:?}");
    }
    cluster.wait_healthy(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_places_of_a_node_that_is_gone_for_good_go_to_another() {
    let mut settings = quick();
    settings["rebalance_delay"] = json!("2s");
    let mut cluster = four(&settings).await;
    let mut load = Load::start(&cluster).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.disturb(1, || cluster.nodes[1].kill());
    wait_empty(&cluster, 0, "node2").await;
    let record = load.stop().await;
    record.assert_only_in_flight_failed();
    for shard in cluster.shards(0).await.unwrap() {
        assert_eq!(shard.voters.len(), 3, "{shard:?}");
    }
    let answer = cluster.http.post(cluster.nodes[0].ops_url("/admin/nodes/node2/remove"));
    let answer = answer.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    cluster.nodes.remove(1);
    cluster.wait_healthy(PATIENCE).await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
}
