//! A disk that is slow, or stuck: who waits for it leads nothing while others can.

use std::time::Duration;

use serde_json::json;

use crate::support::{Cluster, Load, Node, PATIENCE, eventually, slow_disk};

/// What an fsync takes on the slow disk.
const SLOW: Duration = Duration::from_secs(3);

/// A disk is slow after three seconds; the rest is for an fsync that is under way, and for the
/// machine.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(15);

/// How long it is watched how quick writes are when others lead.
const WATCHED: Duration = Duration::from_secs(6);

/// Well below what the slow disk takes, on a machine that does other things too.
const QUICK: Duration = Duration::from_millis(1_500);

/// Waits until a node is ready, which it is but for the moment of a hand-over, and says this of its
/// log.
async fn is_ready_and_says(cluster: &Cluster, node: usize, says: impl Fn(&str) -> bool) {
    eventually("what /ready says of the log", HANDED_OVER_WITHIN, async || {
        let answer = cluster.http.get(cluster.nodes[node].ops_url("/ready")).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: serde_json::Value = answer.json().await.unwrap();
        match says(body["checks"]["wal"].as_str().unwrap()) && status == 200 {
            true => Ok(()),
            false => Err(format!("{status}: {body}")),
        }
    })
    .await;
}

async fn delay_shown(cluster: &Cluster, node: usize) -> f64 {
    let answer = cluster.http.get(cluster.nodes[node].ops_url("/metrics")).send().await.unwrap();
    let text = answer.text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("aegis_disk_delay_seconds "));
    line.unwrap().parse().unwrap()
}

/// How many shards a node leads, as another one knows.
async fn leads(cluster: &Cluster, node: usize) -> Result<usize, String> {
    let name = &cluster.nodes[node].name;
    let shards = cluster.shards(cluster.others(node)[0]).await?;
    Ok(shards.iter().filter(|shard| shard.primary.as_ref() == Some(name)).count())
}

/// Waits until some node's log says so.
async fn is_logged(cluster: &Cluster, marks: &[usize], says: &str) {
    eventually("why is logged", PATIENCE, async || {
        let mut logs = cluster.nodes.iter().zip(marks).map(|(node, mark)| node.log_since(*mark));
        let found = logs.any(|log| log.contains(says));
        found.then_some(()).ok_or_else(|| format!("nobody says {says:?}"))
    })
    .await;
}

/// Makes a node's disk slow under load, and well again.
async fn leads_nothing_while_its_disk_is_slow(cluster: Cluster, node: usize) {
    let cluster = &cluster;
    let leader = cluster.leader().await;
    println!("slow is node{}, node{} leads the topology", node + 1, leader + 1);
    let load = Load::start(cluster).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(leads(cluster, node).await.unwrap() > 0);
    let marks: Vec<usize> = cluster.nodes.iter().map(Node::log_mark).collect();
    let slow_since = load.now();
    cluster.nodes[node].set_fsync(SLOW);
    eventually("others lead its shards", HANDED_OVER_WITHIN, async || {
        match leads(cluster, node).await? {
            0 => Ok(()),
            left => Err(format!("it leads {left} shards")),
        }
    })
    .await;
    let from = load.now();
    println!("others lead after {:?}", from - slow_since);
    let is_slow =
        |line: &str| line.starts_with("slow: writes wait ") && line.ends_with(" s for the disk");
    is_ready_and_says(cluster, node, is_slow).await;
    let shown = delay_shown(cluster, node).await;
    assert!(shown > 0.5, "{shown}");
    let name = &cluster.nodes[node].name;
    is_logged(cluster, &marks, &format!("{name} has a slow disk that takes ")).await;
    tokio::time::sleep(WATCHED).await;
    let to = load.now();
    cluster.nodes[node].set_fsync(Duration::ZERO);
    eventually("it leads again", PATIENCE, async || match leads(cluster, node).await? {
        0 => Err("it leads nothing".to_owned()),
        _ => Ok(()),
    })
    .await;
    println!("it leads again after {:?}", load.now() - to);
    is_ready_and_says(cluster, node, |line| line == "ok").await;
    let record = load.stop().await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(cluster).await;
    // What was ordered before the others led may have waited on.
    let settled = from + Duration::from_secs(1);
    let (before, while_slow) = (record.p99(slow_since, from), record.p99(settled, to));
    println!("p99 {before:?} until others led, {while_slow:?} from then on");
    assert!(while_slow < QUICK, "{while_slow:?}");
}

/// Three nodes that wait for their disks, each of which can be made slow.
async fn on_disks(test: &str) -> Option<Cluster> {
    let shim = slow_disk(test)?;
    let mut cluster = Cluster::lay_out(3, json!({ "wal_mode": "sync" })).await;
    cluster.nodes.iter_mut().for_each(|node| node.preload(&shim));
    Some(cluster.started().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_slow_leads_nothing_until_it_is_well() {
    let Some(cluster) = on_disks("a node whose disk is slow").await else { return };
    let node = cluster.others(cluster.leader().await)[0];
    leads_nothing_while_its_disk_is_slow(cluster, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_the_topology_whose_disk_is_slow_leads_nothing_either() {
    let Some(cluster) = on_disks("a leader whose disk is slow").await else { return };
    let node = cluster.leader().await;
    leads_nothing_while_its_disk_is_slow(cluster, node).await;
}
