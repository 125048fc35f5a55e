//! A network that is cut: the smaller part refuses what it cannot promise, the larger goes on, and
//! after it is mended all copies are equal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Cluster, Cut, Network, PATIENCE, Shard, eventually, impatient};

/// The larger part takes writes again so soon.
const MAJORITY_WITHIN: Duration = Duration::from_secs(3);

/// What a look at the cut-off node may add: it is asked shard by shard.
const MACHINE_SLACK: Duration = Duration::from_millis(500);

/// All copies are equal so soon after the network is mended.
const EQUAL_WITHIN: Duration = Duration::from_secs(60);

/// A client on a busy machine may give up before it is answered, and neighbours forget each other.
const WHOLE_WITHIN: Duration = Duration::from_secs(5);

/// Keys of each shard that are written.
const KEYS_PER_SHARD: usize = 1;

struct Written {
    status: u16,
    outcome: String,
}

async fn put(cluster: &Cluster, node: usize, key: &str, value: &str) -> Written {
    let url = cluster.nodes[node].url(&format!("/v1/kv/{key}?consistency=quorum"));
    let answer = cluster.http.put(url).body(value.to_owned()).send().await.unwrap();
    let status = answer.status().as_u16();
    let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default();
    Written { status, outcome: body["outcome"].as_str().unwrap_or_default().to_owned() }
}

/// Writes every key through a node of the larger part until that is done; how long it took.
async fn majority_writes(cluster: &Cluster, node: usize, keys: &[String], value: &str) -> Duration {
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for key in keys {
        let asked = Instant::now();
        let written = put(cluster, node, key, value).await;
        assert_eq!(written.status, 204, "{key} through node{}: {}", node + 1, written.outcome);
        slowest = slowest.max(asked.elapsed());
    }
    println!("the larger part wrote {} keys, the slowest in {slowest:?}", keys.len());
    began.elapsed()
}

/// No write that needs a quorum is acknowledged by the node that is cut off. The keys of which it
/// says that it does not know.
async fn minority_refuses(
    cluster: &Cluster,
    node: usize,
    keys: &[String],
    value: &str,
) -> BTreeSet<String> {
    let writes = keys.iter().map(|key| put(cluster, node, key, value));
    let mut came_to: BTreeMap<(u16, String), usize> = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    for (key, written) in keys.iter().zip(futures_util::future::join_all(writes).await) {
        if written.status == 504 {
            unknown.insert(key.clone());
        }
        *came_to.entry((written.status, written.outcome)).or_default() += 1;
    }
    println!("the node that is cut off answered {came_to:?}");
    for (status, outcome) in came_to.keys() {
        let is_honest = match status {
            503 => outcome == "not-applied",
            504 => outcome == "unknown",
            _ => false,
        };
        assert!(is_honest, "{status} {outcome}");
    }
    unknown
}

/// What follows stands on this: that the network is cut as told, and the test reaches every node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_cut_as_told_and_mended_again() {
    let Some(network) = Network::for_test("a network that is cut", 3) else { return };
    // Each a cluster of its own; here only the network matters.
    let mut cluster = Cluster::lay_out_in(Some(network), 3, json!({})).await;
    for node in &mut cluster.nodes {
        node.set(&json!({ "addrs": [] }));
        node.spawn();
    }
    cluster.wait_ready().await;
    let reaches =
        |from: usize, to: usize| cluster.network().reaches(from, &cluster.nodes[to].client_addr());
    let is_whole = async |pairs: &[(usize, usize)]| {
        eventually("the network is whole", WHOLE_WITHIN, async || {
            let broken = pairs.iter().find(|(from, to)| !reaches(*from, *to));
            broken.map_or(Ok(()), |pair| Err(format!("{pair:?}")))
        })
        .await;
    };
    is_whole(&[(0, 1), (1, 0), (2, 0)]).await;
    for cut in [Cut::Both, Cut::Hearing, Cut::Speaking] {
        cluster.network().cut(0, cut);
        assert!(!reaches(0, 1) && !reaches(1, 0) && !reaches(2, 0), "{cut:?}: no exchange");
        is_whole(&[(1, 2), (2, 1)]).await;
        assert_eq!(cluster.put(0, &format!("{cut:?}"), "v").await.status(), 201, "the test's leg");
        cluster.network().heal(0);
        is_whole(&[(0, 1), (1, 0)]).await;
    }
    cluster.network().unplug(1);
    assert!(!reaches(1, 2) && !reaches(2, 1));
    let url = cluster.nodes[1].url("/v1/kv/k");
    let asked = cluster.http.get(url).timeout(Duration::from_secs(1)).send().await;
    assert!(asked.is_err(), "nobody reaches it, the test included");
    cluster.network().plug(1);
    is_whole(&[(1, 2), (2, 1)]).await;
    assert_eq!(cluster.put(1, "k", "v").await.status(), 201);
}

async fn a_cut_is_survived(cut: Cut) {
    let test = format!("a network cut in one way ({cut:?})");
    let Some(network) = Network::for_test(&test, 3) else { return };
    let mut cluster = Cluster::start_in(network, 3, json!({})).await;
    let keys: Vec<String> =
        cluster.keys_of_shards(KEYS_PER_SHARD).await.into_values().flatten().collect();
    let victim = cluster.leader().await;
    let led = cluster.primaries().await[victim];
    println!("{cut:?}: node{} is cut off, the leader and primary of {led} shards", victim + 1);
    cluster.network().cut(victim, cut);
    let majority = cluster.others(victim)[0];
    let took = majority_writes(&cluster, majority, &keys, "while cut").await;
    // Shards fail over side by side, so that all together take hardly longer than one.
    assert!(took <= MAJORITY_WITHIN + MACHINE_SLACK, "the larger part needed {took:?}");
    let mut unknown = BTreeSet::new();
    if cut == Cut::Both {
        unknown = minority_refuses(&cluster, victim, &keys, "from the smaller part").await;
        let url = cluster.nodes[victim].url(&format!("/v1/kv/{}", keys[0]));
        let answer = cluster.http.get(url).send().await.unwrap();
        assert_eq!(answer.status(), 200, "a copy answers reads all the same");
        let stale = answer.headers().get("aegis-stale").map(|age| age.to_str().unwrap());
        assert!(stale.is_some_and(|age| age.ends_with('s')), "and says so: {stale:?}");
    }
    majority_writes(&cluster, majority, &keys, "still cut").await;

    cluster.network().heal(victim);
    let healed = Instant::now();
    cluster.wait_healthy(EQUAL_WITHIN).await;
    cluster.wait_equal(EQUAL_WITHIN.saturating_sub(healed.elapsed())).await;
    println!("equal {:?} after the network was mended", healed.elapsed());
    for key in &keys {
        let value = cluster.get(victim, key).await;
        // A write of which the smaller part does not know may have been applied after all.
        let is_right = match value.as_deref() {
            Some("from the smaller part") => unknown.contains(key),
            value => value == Some("still cut"),
        };
        assert!(is_right, "{key}: {value:?}");
    }
    majority_writes(&cluster, victim, &keys, "whole again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_smaller_part_refuses_and_the_larger_goes_on() {
    a_cut_is_survived(Cut::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_only_hears_is_replaced() {
    a_cut_is_survived(Cut::Speaking).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_only_speaks_is_replaced() {
    a_cut_is_survived(Cut::Hearing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_quorum_refuses_and_recovers_when_one_other_is_back() {
    let mut cluster = Cluster::start(3, json!({})).await;
    let keys: Vec<String> =
        cluster.keys_of_shards(KEYS_PER_SHARD).await.into_values().flatten().collect();
    cluster.nodes[0].pause();
    cluster.nodes[2].kill();
    minority_refuses(&cluster, 1, &keys, "alone").await;
    cluster.nodes[0].resume();
    for key in &keys {
        eventually("two of three write again", PATIENCE, async || {
            let written = put(&cluster, 1, key, "two").await;
            if written.status == 204 { Ok(()) } else { Err(written.outcome) }
        })
        .await;
    }
    cluster.restart(2).await;
    cluster.wait_healthy(PATIENCE).await;
    cluster.wait_equal(PATIENCE).await;
    for key in &keys {
        assert_eq!(cluster.get(2, key).await.as_deref(), Some("two"), "{key}");
    }
}

/// A host that is off takes no connections, so nothing on it merely hangs: nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_of_which_two_copies_were_on_hosts_that_are_off_go_on_with_the_third() {
    let Some(network) = Network::for_test("hosts that are off", 5) else { return };
    let cluster = Cluster::start_in(network, 5, impatient()).await;
    let leader = cluster.leader().await;
    let shards = cluster.shards(leader).await.unwrap();
    let voters = |shard: &Shard| {
        let others = cluster.others(leader).into_iter();
        others.filter(|other| shard.voters.contains(&cluster.nodes[*other].name)).collect()
    };
    let off: Vec<usize> = voters(&shards[0]);
    let off = &off[..2];
    off.iter().for_each(|node| cluster.network().unplug(*node));
    eventually("every shard is served again", PATIENCE, async || {
        let view = cluster.ops(leader, "/cluster").await?;
        let mut recovered = 0;
        for node in (0..5).filter(|node| !off.contains(node)) {
            recovered += cluster.metric(node, "aegis_unclean_recovery_total").await?;
        }
        let is_served = view["shards"]["unavailable"] == 0 && recovered > 0;
        is_served.then_some(()).ok_or_else(|| format!("{recovered} recovered: {view}"))
    })
    .await;
}
