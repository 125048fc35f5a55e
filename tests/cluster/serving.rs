//! Any node serves any key, and says how many copies have it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, eventually};

/// Enough keys that every shard has some.
const KEYS: usize = 100;

fn acks(answer: &reqwest::Response) -> &str {
    answer.headers()["aegis-acks"].to_str().unwrap()
}

fn etag(answer: &reqwest::Response) -> String {
    answer.headers()["etag"].to_str().unwrap().to_owned()
}

async fn post(cluster: &Cluster, node: usize, path: &str) -> (u16, String) {
    let answer = cluster.http.post(cluster.nodes[node].url(path)).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn batch(cluster: &Cluster, node: usize, ops: Value) -> Vec<Value> {
    let request = cluster.http.post(cluster.nodes[node].url("/v1/batch"));
    let answer = request.json(&json!({ "ops": ops })).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut body: Value = answer.json().await.unwrap();
    serde_json::from_value(body["results"].take()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_serves_any_key() {
    let cluster = Cluster::start(3, json!({})).await;
    for n in 0..KEYS {
        let (key, node) = (format!("k{n}"), n % 3);
        let answer = cluster.put(node, &key, "first").await;
        assert_eq!(answer.status(), 201, "{key}");
        let of_three = acks(&answer);
        assert!(["2/3", "3/3"].contains(&of_three), "{key}: Aegis-Acks: {of_three}");
        for reader in 0..3 {
            let value = cluster.get(reader, &key).await;
            assert_eq!(value.as_deref(), Some("first"), "{key} through node {}", reader + 1);
        }
        // An overwritten value may be some milliseconds old elsewhere, unless asked for.
        let answer = cluster.put((n + 1) % 3, &key, "second").await;
        assert_eq!(answer.status(), 204, "{key}");
        let version = etag(&answer);
        for reader in 0..3 {
            let number = version.trim_matches('"');
            let path = format!("/v1/kv/{key}?min_version={number}");
            let answer = cluster.http.get(cluster.nodes[reader].url(&path)).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{key} through node {}", reader + 1);
            assert_eq!(etag(&answer), version, "{key} through node {}", reader + 1);
            assert_eq!(answer.text().await.unwrap(), "second");
        }
    }
    cluster.wait_equal(PATIENCE).await;
    assert_eq!(cluster.dump(1).await.len(), KEYS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_operations_work_through_any_node_too() {
    let cluster = Cluster::start(3, json!({})).await;
    for n in 0..30_u64 {
        let node = (n % 3) as usize;
        let path = format!("/v1/kv/counter{}?op=incr&by=2", n % 5);
        let (status, sum) = post(&cluster, node, &path).await;
        assert_eq!((status, sum), (200, (2 * (n / 5 + 1)).to_string()), "increment {n}");
    }
    for node in 0..3 {
        let (lock, other) = (format!("/v1/kv/lock{node}"), (node + 1) % 3);
        let take = |node: usize| {
            let request = cluster.http.put(cluster.nodes[node].url(&lock)).body("mine");
            request.header("If-None-Match", "*").send()
        };
        let taken = take(node).await.unwrap();
        assert_eq!(taken.status(), 201);
        let refused = take(other).await.unwrap();
        assert_eq!((refused.status().as_u16(), etag(&refused)), (412, etag(&taken)));
        let free = cluster.http.delete(cluster.nodes[other].url(&lock));
        let freed = free.header("If-Match", etag(&taken)).send().await.unwrap();
        assert_eq!(freed.status(), 204);
    }
    for node in 0..3 {
        let ops: Vec<Value> = (0..50)
            .map(|n| json!({ "op": "put", "key": format!("batch{node}-{n}"), "value": "v" }))
            .chain([json!({ "op": "incr", "key": format!("sum{node}") })])
            .collect();
        let results = batch(&cluster, node, Value::from(ops)).await;
        assert_eq!(results.len(), 51);
        assert!(results[..50].iter().all(|result| result["status"] == 201), "{results:?}");
        assert_eq!(results[50]["value"], "1");
        let gets: Vec<Value> =
            (0..50).map(|n| json!({ "op": "get", "key": format!("batch{node}-{n}") })).collect();
        let results = batch(&cluster, (node + 1) % 3, Value::from(gets)).await;
        assert!(results.iter().all(|result| result["value"] == "v"), "{results:?}");
    }
    cluster.wait_level(PATIENCE).await;
    for node in 0..3 {
        let keys: BTreeSet<String> = cluster.dump(node).await.into_keys().collect();
        assert_eq!(keys.iter().filter(|key| key.starts_with("batch")).count(), 150);
    }
    for node in 0..3 {
        let url = cluster.nodes[node].url(&format!("/v1/kv?prefix=batch{node}-"));
        let answer = cluster.http.delete(url).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.json::<Value>().await.unwrap()["deleted"], 50);
    }
    cluster.wait_equal(PATIENCE).await;
    assert!(cluster.dump(2).await.into_keys().all(|key| !key.starts_with("batch")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_may_ask_for_more_copies_or_fewer() {
    let cluster = Cluster::start(3, json!({})).await;
    for (consistency, status, copies) in [
        ("all", 201, &["3/3"][..]),
        ("quorum", 201, &["2/3", "3/3"]),
        ("linearizable", 201, &["2/3", "3/3"]),
        ("one", 201, &["1/3", "2/3", "3/3"]),
    ] {
        for node in 0..3 {
            let path = format!("/v1/kv/{consistency}{node}?consistency={consistency}");
            let request = cluster.http.put(cluster.nodes[node].url(&path)).body("v");
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), status, "{consistency} through node {}", node + 1);
            assert!(copies.contains(&acks(&answer)), "{consistency}: {}", acks(&answer));
            for reads in ["one", "quorum", "all", "linearizable"] {
                let path = format!("/v1/kv/{consistency}{node}?consistency={reads}");
                let answer = cluster.http.get(cluster.nodes[(node + 1) % 3].url(&path)).send();
                assert_eq!(answer.await.unwrap().status(), 200, "{consistency}, read as {reads}");
            }
        }
    }
    let path = "/v1/kv/async?consistency=async";
    let answer = cluster.http.put(cluster.nodes[1].url(path)).body("v").send().await.unwrap();
    assert_eq!(answer.status(), 202);
    cluster.wait_equal(PATIENCE).await;
    assert_eq!(cluster.get(0, "async").await.as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_shows_its_members_and_spreads_its_primaries() {
    let cluster = Cluster::start(3, json!({ "zone": "z1" })).await;
    // A fair share is five or six of sixteen.
    eventually("primaries are spread", PATIENCE, async || {
        let primaries = cluster.primaries().await;
        let is_fair = primaries.iter().all(|count| (5..=6).contains(count));
        if is_fair { Ok(()) } else { Err(format!("{primaries:?}")) }
    })
    .await;
    let first = cluster.ops(0, "/cluster").await.unwrap();
    assert!(first["cluster_id"].as_str().is_some_and(|id| id.len() >= 16), "{first}");
    for node in 0..3 {
        let view = cluster.ops(node, "/cluster").await.unwrap();
        assert_eq!(view["cluster_id"], first["cluster_id"]);
        let members = view["members"].as_array().unwrap();
        assert_eq!(members.iter().filter(|member| member["leader"] == true).count(), 1, "{view}");
        let mut primaries = 0;
        for member in members {
            let name = member["node_id"].as_str().unwrap();
            let own = cluster.nodes.iter().find(|node| node.name == name).expect("it is a node");
            assert_eq!(member["status"], "alive");
            assert_eq!(member["client_addr"], own.client_addr());
            assert_eq!(member["gossip_addr"], own.peer_addr());
            assert_eq!(member["zone"], "z1");
            assert_eq!(member["version"], env!("CARGO_PKG_VERSION"));
            assert_eq!(member["shards"], cluster.num_shards, "three copies on three nodes");
            primaries += member["primaries"].as_u64().unwrap();
        }
        assert_eq!(primaries, u64::from(cluster.num_shards));
        let answer = cluster.ops(node, "/ready?for=stop").await.unwrap();
        assert_eq!(answer["ready"], true, "two of three are a quorum: {answer}");
    }
    for shard in cluster.shards(0).await.unwrap() {
        assert_eq!(shard.state, "healthy");
        assert_eq!(shard.voters.len(), 3, "{shard:?}");
        assert!(shard.epoch > 0, "{shard:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_node_down_the_next_may_not_be_stopped_and_the_answer_says_why() {
    let mut cluster = Cluster::start(3, json!({})).await;
    cluster.nodes[2].kill();
    let refused = eventually("a stop is advised against", PATIENCE, async || {
        let answer = cluster.ops(0, "/ready?for=stop").await?;
        if answer["ready"] == false { Ok(answer) } else { Err(answer.to_string()) }
    })
    .await;
    let why = refused["checks"]["write_quorum"].as_str().unwrap();
    assert!(why.contains("shard"), "{why}");
    cluster.restart(2).await;
    cluster.wait_healthy(PATIENCE).await;
    assert_eq!(cluster.ops(0, "/ready?for=stop").await.unwrap()["ready"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_is_a_cluster_that_nobody_stands_in_for() {
    let cluster = Cluster::start(1, json!({ "addrs": [] })).await;
    let answer = cluster.put(0, "k", "v").await;
    assert_eq!((answer.status().as_u16(), acks(&answer)), (201, "1/1"));
    let refused = cluster.ops(0, "/ready?for=stop").await.unwrap();
    assert_eq!(refused["ready"], false);
    let why = refused["checks"]["write_quorum"].as_str().unwrap();
    assert!(why.contains("only member") && why.contains("16 shards"), "{why}");
    cluster.wait_equal(PATIENCE).await;
}

/// Unoptimised, with all that a node says to others each tenth of a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_nobody_asks_anything_of_hardly_work() {
    let mut cluster = Cluster::start(3, json!({})).await;
    cluster.wait_healthy(PATIENCE).await;
    let spent = |cluster: &Cluster| -> Vec<Duration> {
        cluster.nodes.iter().map(|node| node.cpu()).collect()
    };
    let before = spent(&cluster);
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (node, (before, after)) in before.into_iter().zip(spent(&cluster)).enumerate() {
        let took = after - before;
        println!("node{} took {took:?} of 5 s", node + 1);
        assert!(took < Duration::from_millis(1_000), "node{} took {took:?} of 5 s", node + 1);
    }
}
