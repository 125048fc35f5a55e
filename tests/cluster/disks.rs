//! A disk that is slow, or stuck: who waits for it leads nothing while others can, and who is slow to
//! start for it has not forgotten.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Cluster, Load, Node, PATIENCE, Shard, eventually, impatient, slow_disk};

/// What an fsync takes on the slow disk.
const SLOW: Duration = Duration::from_secs(3);

/// A disk is slow after three seconds; the rest is for an fsync that is under way, and for the
/// machine.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(15);

/// What an fsync takes for one that is slow to start.
const SLOW_START: Duration = Duration::from_secs(16);

/// Who is gone would be given up by then.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(14);

/// `drain_timeout`, five seconds for the topology, and some fsyncs.
const STOPPED_WITHIN: Duration = Duration::from_secs(26);

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

/// Nodes that wait for their disks, each of which can be made slow.
async fn on_disks(test: &str, nodes: usize, mut settings: Value) -> Option<Cluster> {
    let shim = slow_disk(test)?;
    settings["wal_mode"] = "sync".into();
    let mut cluster = Cluster::lay_out(nodes, settings).await;
    cluster.nodes.iter_mut().for_each(|node| node.preload(&shim));
    Some(cluster.started().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_slow_leads_nothing_until_it_is_well() {
    let Some(cluster) = on_disks("a node whose disk is slow", 3, json!({})).await else { return };
    let node = cluster.others(cluster.leader().await)[0];
    leads_nothing_while_its_disk_is_slow(cluster, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_the_topology_whose_disk_is_slow_leads_nothing_either() {
    let Some(cluster) = on_disks("a leader whose disk is slow", 3, json!({})).await else { return };
    let node = cluster.leader().await;
    leads_nothing_while_its_disk_is_slow(cluster, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_waits_for_its_disk_knows_that_its_majority_is_gone() {
    let Some(mut cluster) = on_disks("a leader that waits for its disk", 3, json!({})).await else {
        return;
    };
    let leader = cluster.leader().await;
    cluster.nodes[leader].set_fsync(SLOW_START);
    for other in cluster.others(leader) {
        cluster.nodes[other].kill();
    }
    eventually("it leads no more", SLOW_START / 2, async || {
        let view = cluster.ops(leader, "/cluster").await?;
        view["leader"].is_null().then_some(()).ok_or_else(|| format!("{view}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_for_its_disk_and_for_others_stops_in_time() {
    let settings = json!({ "drain_timeout": "1s" });
    let cluster = on_disks("a stop on a slow disk", 3, settings).await;
    let Some(mut cluster) = cluster else { return };
    let load = Load::start(&cluster).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let node = cluster.leader().await;
    cluster.nodes[node].set_fsync(SLOW);
    for other in cluster.others(node) {
        cluster.nodes[other].kill();
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (mark, began) = (cluster.nodes[node].log_mark(), Instant::now());
    cluster.nodes[node].stop(STOPPED_WITHIN).await;
    println!("stopped after {:?}", began.elapsed());
    let log = cluster.nodes[node].log_since(mark);
    assert!(!log.contains("stood still"), "{log}");
    let record = load.stop().await;
    cluster.nodes[node].set_fsync(Duration::ZERO);
    for node in 0..3 {
        cluster.nodes[node].spawn();
    }
    cluster.wait_ready().await;
    record.assert_nothing_lost(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_are_slow_to_start_are_waited_for() {
    let cluster = on_disks("voters that are slow to start", 5, impatient()).await;
    let Some(mut cluster) = cluster else { return };
    let load = Load::start(&cluster).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let record = load.stop().await;
    let leader = cluster.leader().await;
    let slow: [usize; 2] = cluster.others(leader)[..2].try_into().unwrap();
    let names = slow.map(|node| cluster.nodes[node].name.clone());
    let shards = cluster.shards(leader).await.unwrap();
    let is_theirs = |shard: &Shard| names.iter().all(|name| shard.voters.contains(name));
    assert!(shards.iter().any(is_theirs), "no shard's majority is theirs");
    for node in slow {
        cluster.nodes[node].kill();
        cluster.nodes[node].set_fsync(SLOW_START);
        cluster.nodes[node].spawn();
    }
    tokio::time::sleep(GIVEN_UP_AFTER).await;
    for node in slow {
        assert!(!cluster.nodes[node].has_begun(), "its start was not slow");
        cluster.nodes[node].set_fsync(Duration::ZERO);
    }
    cluster.wait_ready().await;
    cluster.wait_healthy(PATIENCE).await;
    cluster.assert_nothing_unclean("two of five were slow to start").await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
}
