//! Links between single nodes that are cut while others hold: what goes between the two goes by way
//! of a third, and nobody who uses the cluster is the worse for it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Cluster, Cut, Network, PATIENCE};

/// A cut may cost so much once: until the connection counts as silent, and a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(3);

/// How long it is watched what a cut does: longer than a leader stays that others are better
/// connected than.
const WATCHED: Duration = Duration::from_secs(16);

/// Puts a key through a node, on a majority of its copies; how long that took.
async fn put(cluster: &Cluster, node: usize, key: &str, value: &str) -> Duration {
    let began = Instant::now();
    let url = cluster.nodes[node].url(&format!("/v1/kv/{key}?consistency=quorum"));
    let answer = cluster.http.put(url).body(value.to_owned()).send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    assert!(status.is_success(), "{key} through node{}: {status} {text}", node + 1);
    began.elapsed()
}

/// Writes every key through every node, again and again; the longest that a write took, in the
/// first round and in the later ones.
async fn write_through_all(cluster: &Cluster, keys: &[String]) -> (Duration, Duration) {
    let began = Instant::now();
    let (mut first, mut later) = (Duration::ZERO, Duration::ZERO);
    for round in 0.. {
        let mut writes = Vec::new();
        for key in keys {
            for node in 0..cluster.nodes.len() {
                writes.push(put(cluster, node, key, "while cut"));
            }
        }
        let longest = futures_util::future::join_all(writes).await.into_iter().max().unwrap();
        if round == 0 {
            first = longest
        } else {
            later = later.max(longest)
        }
        if began.elapsed() > WATCHED {
            break;
        }
    }
    (first, later)
}

/// The sum of a metric over its labels, as a node shows it.
async fn metric(cluster: &Cluster, node: usize, name: &str) -> f64 {
    let url = cluster.nodes[node].ops_url("/metrics");
    let text = cluster.http.get(url).send().await.unwrap().text().await.unwrap();
    let samples = text.lines().filter(|line| line.starts_with(name));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Cuts one pair of nodes, the leader of the topology and another, or the two that do not lead.
async fn a_cut_pair_costs_nothing(with_leader: bool, cut: Cut) {
    let what = if with_leader { "the leader's link" } else { "a link of followers" };
    let test = format!("{what} cut ({cut:?})");
    let Some(network) = Network::for_test(&test, 3) else { return };
    let mut cluster = Cluster::start_in(Some(network), 3, json!({})).await;
    let keys: Vec<String> = cluster.keys_of_shards(1).await.into_values().flatten().collect();
    let leader = cluster.leader().await;
    let others = cluster.others(leader);
    let (a, b) = if with_leader { (leader, others[0]) } else { (others[0], others[1]) };
    cluster.network().cut_from(a, &[b], cut);
    let (first, later) = write_through_all(&cluster, &keys).await;
    println!("{test}: the longest write took {first:?} at first, {later:?} later");
    assert!(first < NOTICED_WITHIN, "{first:?}");
    assert!(later < Duration::from_secs(1), "{later:?}");
    let now = cluster.leader().await;
    match with_leader {
        true => assert_eq!(now, others[1], "the node that reaches both leads by now"),
        false => assert_eq!(now, leader, "no other leader was elected"),
    }
    assert!(metric(&cluster, a, "aegis_relayed_messages_total").await > 0.0);
    for node in 0..3 {
        let url = cluster.nodes[node].url(&format!("/v1/kv/{}", keys[0]));
        let answer = cluster.http.get(url).send().await.unwrap();
        assert_eq!(answer.headers().get("aegis-stale"), None, "node{} is in touch", node + 1);
        assert_eq!(answer.text().await.unwrap(), "while cut");
    }
    let view: Value = cluster.ops(b, "/cluster").await.unwrap();
    assert_eq!(view["shards"]["healthy"], cluster.num_shards, "{view}");

    cluster.network().heal(a);
    cluster.wait_healthy(PATIENCE).await;
    cluster.wait_equal(PATIENCE).await;
    for node in 0..3 {
        assert!(metric(&cluster, node, "aegis_unclean_recovery_total").await == 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leaders_link_to_one_follower_is_cut_and_nobody_notices() {
    a_cut_pair_costs_nothing(true, Cut::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_link_between_two_followers_is_cut_and_nobody_notices() {
    a_cut_pair_costs_nothing(false, Cut::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_one_follower_does_not_hear_goes_on_leading() {
    a_cut_pair_costs_nothing(true, Cut::Speaking).await;
}
