//! A node that was removed from its cluster, and comes back with what it had.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Cluster, PATIENCE, eventually};

/// A node that was removed refuses clients at once, instead of holding them for seven seconds.
const REFUSES_WITHIN: Duration = Duration::from_secs(2);

/// Three nodes, of which the third is dead and removed.
async fn two_of_three() -> Cluster {
    let mut cluster = Cluster::start(3, json!({ "gossip_interval": "200ms" })).await;
    cluster.nodes[2].kill();
    eventually("node3 is removed", PATIENCE, async || {
        let url = cluster.nodes[0].ops_url("/admin/nodes/node3/remove");
        let answer = cluster.http.post(url).send().await.map_err(|error| error.to_string())?;
        match answer.status().as_u16() {
            200 => Ok(()),
            _ => Err(answer.text().await.unwrap_or_default()),
        }
    })
    .await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_that_comes_back_is_told_so_and_ends() {
    let mut cluster = two_of_three().await;
    let mark = cluster.nodes[2].log_mark();
    cluster.nodes[2].spawn();
    let status = cluster.nodes[2].end(PATIENCE).await;
    assert_eq!(status.code(), Some(10));
    let unit = include_str!("../../systemd/aegiskv.service");
    assert!(unit.contains("\nRestartPreventExitStatus=10\n"), "or systemd starts it for ever");
    let log = cluster.nodes[2].log_since(mark);
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    for words in ["was removed from its cluster, as node", "to let it join anew, move its data"] {
        assert!(errors[0].contains(words), "{}", errors[0]);
    }
    // Emptied, it is welcome.
    cluster.nodes[2].wipe();
    cluster.restart(2).await;
    cluster.wait_healthy(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_that_is_to_stay_serves_nobody_and_takes_nothing() {
    let mut cluster = two_of_three().await;
    cluster.nodes[2].set(&json!({ "when_removed": "stay" }));
    cluster.nodes[2].spawn();
    let ready = eventually("node3 says that it was removed", PATIENCE, async || {
        let ready = cluster.ops(2, "/ready").await?;
        let node = ready["checks"]["node"].as_str().unwrap_or_default().to_owned();
        if node.starts_with("removed: ") { Ok(ready) } else { Err(node) }
    })
    .await;
    assert_eq!(ready["ready"], false);
    assert_eq!(cluster.ops(2, "/live").await.unwrap()["phase"], "removed");
    let asked = Instant::now();
    let answer = cluster.put(2, "through-node3", "v").await;
    assert_eq!(answer.status(), 503);
    let problem: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(problem["outcome"], "not-applied");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("removed from its cluster"), "{detail}");
    let answer = cluster.http.get(cluster.nodes[2].url("/v1/kv/probe")).send().await.unwrap();
    assert_eq!(answer.status(), 503, "it has nothing to say");
    assert!(asked.elapsed() < REFUSES_WITHIN, "{:?}", asked.elapsed());
    let view = cluster.ops(2, "/cluster").await.unwrap();
    assert_eq!((&view["members"], &view["leader"]), (&json!([]), &json!(null)));
    eventually("node3 does not listen to nodes", PATIENCE, async || {
        match std::net::TcpStream::connect(cluster.nodes[2].peer_addr()) {
            Err(_) => Ok(()),
            Ok(_) => Err("it does".to_owned()),
        }
    })
    .await;
    assert_eq!(cluster.get(0, "through-node3").await, None);
    cluster.nodes[2].assert_running();
    cluster.nodes[2].stop(PATIENCE).await;
}
