//! What a cluster says of those who are not there, and to those who no longer belong to it.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, Trial, eventually};

/// A removed node has met a member by then.
const TOLD_WITHIN: Duration = Duration::from_secs(15);

/// A leader notices so soon that nobody follows.
const LEADERLESS_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_that_comes_back_is_told_so_and_ends() {
    let mut cluster = Cluster::start(3, Trial::settings()).await;
    cluster.nodes[2].kill();
    let remove = cluster.nodes[0].ops_url("/admin/nodes/node3/remove");
    eventually("node3 is removed", PATIENCE, async || {
        let answer = cluster.http.post(&remove).send().await.map_err(|e| e.to_string())?;
        let status = answer.status().as_u16();
        let body = answer.text().await.unwrap_or_default();
        if status == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    let mark = cluster.nodes[2].log_mark();
    cluster.nodes[2].spawn();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = cluster.nodes[2].ended() {
            break status;
        }
        assert!(began.elapsed() < TOLD_WITHIN, "it still runs: {}", cluster.nodes[2].log_tail());
        let ready = cluster.ops(2, "/ready").await;
        assert!(!ready.is_ok_and(|ready| ready["ready"] == true), "it says that it is ready");
        let url = cluster.nodes[2].url("/v1/kv/k");
        let written = cluster.http.put(url).body("v").timeout(Duration::from_secs(1)).send().await;
        assert!(!written.is_ok_and(|answer| answer.status().is_success()), "it takes writes");
    };
    assert!(!status.success(), "{status}");
    let log = cluster.nodes[2].log_since(mark);
    assert!(log.contains("removed"), "{log}");
    for n in 0..50 {
        assert_eq!(cluster.put(n % 2, &format!("k{n}"), "v").await.status(), 201, "k{n}");
    }
}

/// What `aegiskv status` prints about a node's cluster.
fn status(cluster: &Cluster, node: usize) -> String {
    let addr = cluster.nodes[node].client_addr();
    let ops = cluster.nodes[node].ops_url("");
    let call = ["status", "--addr", &addr, "--ops-addr", &ops];
    let output = Command::new(env!("CARGO_BIN_EXE_aegiskv")).args(call).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_majority_is_left_nobody_is_called_the_leader() {
    let mut cluster = Cluster::start(3, json!({})).await;
    let survivor = cluster.leader().await;
    let others = cluster.others(survivor);
    for survivor in [survivor, others[0]] {
        for other in cluster.others(survivor) {
            cluster.nodes[other].kill();
        }
        eventually("nobody is called the leader", LEADERLESS_WITHIN, async || {
            let view = cluster.ops(survivor, "/cluster").await?;
            let is_led = |member: &Value| member["leader"] == true;
            let led = view["members"].as_array().unwrap().iter().any(is_led);
            if view["leader"].is_null() && !led { Ok(()) } else { Err(format!("{view:#}")) }
        })
        .await;
        let status = status(&cluster, survivor);
        assert!(status.contains("no leader") && !status.contains("(leader)"), "{status}");
        for other in cluster.others(survivor) {
            cluster.restart(other).await;
        }
        cluster.wait_healthy(PATIENCE).await;
        cluster.leader().await;
    }
}
