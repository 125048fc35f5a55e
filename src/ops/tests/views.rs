use serde_json::{Value, json};

use super::*;
use crate::entry::Timestamp;

#[tokio::test]
async fn health_and_live_are_ok_in_every_phase() {
    for phase in [
        Phase::Starting { progress: "replaying the log: 3 of 12 segments".to_owned() },
        Phase::Serving,
        Phase::Draining,
    ] {
        let word = phase.word();
        let node = Arc::new(Fake::with(|status| status.phase = phase));
        for uri in ["/health", "/live"] {
            let answer = get(&node, uri).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.json()["status"], "ok");
            assert_eq!(answer.json()["phase"], word);
            assert_eq!(answer.headers["cache-control"], "no-store");
        }
    }
}

#[tokio::test]
async fn a_starting_node_is_not_ready_and_says_how_far_it_is() {
    let node = Arc::new(Fake::with(|status| {
        status.phase =
            Phase::Starting { progress: "replaying the log: 3 of 12 segments".to_owned() };
        status.cluster_id = None;
        status.readings = Readings { config_reload_success: true, ..Readings::default() };
    }));
    let answer = get(&node, "/ready").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json(),
        json!({"ready": false, "checks": {
            "node": "starting: replaying the log: 3 of 12 segments",
            "wal": "not open yet",
            "shards": "not open yet",
            "listeners": "ok",
            "config": "ok",
        }})
    );
    assert_eq!(
        get(&node, "/health").await.json()["progress"],
        "replaying the log: 3 of 12 segments"
    );
    assert_eq!(get(&node, "/cluster").await.json()["cluster_id"], Value::Null);
    assert_eq!(get(&node, "/ready?for=stop").await.status, 503);
}

#[tokio::test]
async fn a_serving_node_is_ready_and_names_what_an_operator_should_know() {
    let node = Arc::new(Fake::with(|status| {
        status.exposures = vec!["clients need no token; set auth_token".to_owned()];
        status.readings.config_reload_success = false;
        status.readings.shards = ShardCounts { under_replicated: 256, ..ShardCounts::default() };
        status.wal.mode = "off";
    }));
    let answer = get(&node, "/ready").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({"ready": true, "checks": {
            "node": "ok",
            "wal": "ok: off, nothing outlives the process",
            "shards": "256 under replicated",
            "listeners": "exposed: clients need no token; set auth_token",
            "config": "the last reload was refused; the configuration before it is in force",
        }})
    );
}

#[tokio::test]
async fn shards_that_cannot_answer_make_the_node_unready() {
    let node = Arc::new(Fake::with(|status| {
        status.readings.shards =
            ShardCounts { healthy: 243, catching_up: 12, unavailable: 1, ..ShardCounts::default() };
    }));
    let answer = get(&node, "/ready").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["checks"]["shards"], "12 catching up, 1 unavailable");
}

#[tokio::test]
async fn a_lone_node_with_shards_may_not_be_stopped_without_loss_of_service() {
    let node = Arc::new(Fake::new());
    let answer = get(&node, "/ready?for=stop").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json()["checks"]["write_quorum"],
        "this node is the only member of its cluster: while it is stopped, none of its 256 shards \
         can be read or written"
    );
    let empty = Arc::new(Fake::with(|status| status.readings.shards_owned = 0));
    assert_eq!(get(&empty, "/ready?for=stop").await.status, 200);
    assert!(answer.text.starts_with("{\"ready\":false,"), "the verdict comes first");
    assert!(get(&node, "/ready?for=lunch").await.detail().contains("?for=stop"));
}

#[tokio::test]
async fn the_cluster_is_this_node_alone_in_the_shape_of_the_contract() {
    let node = Arc::new(Fake::new());
    assert_eq!(
        get(&node, "/cluster").await.json(),
        json!({
            "cluster_id": "c0ffee",
            "epoch": 4,
            "leader": "n1",
            "members": [{
                "node_id": "n1", "status": "alive", "client_addr": "127.0.0.1:7700",
                "gossip_addr": null, "zone": "z1", "region": "",
                "version": env!("CARGO_PKG_VERSION"), "shards": 256, "primaries": 256,
                "leader": true,
            }],
            "shards": {
                "total": 256, "healthy": 256, "under_replicated": 0, "catching_up": 0,
                "moving": 0, "unavailable": 0,
            },
        })
    );
    assert_eq!(
        get(&node, "/cluster/shards").await.json(),
        json!({"shards": [{
            "shard": 7, "epoch": 3, "primary": "n1", "voters": ["n1"], "learners": [],
            "state": "under_replicated", "positions": {"n1": {"epoch": 3, "seq": 99}},
        }]})
    );
}

#[tokio::test]
async fn stats_and_config_show_this_node() {
    let node = Arc::new(Fake::with(|status| {
        status.readings.snapshot_finished_at = Some(Timestamp(1_800_000_000_123));
    }));
    let stats = get(&node, "/stats").await.json();
    assert_eq!(stats["items"], 10);
    assert_eq!(stats["bytes_max"], 5000);
    assert_eq!(
        stats["wal"],
        json!({"mode": "sync", "bytes": 4096, "segments": 3, "corruptions": 0})
    );
    assert_eq!(stats["connections"], json!({"active": 2, "max": 100, "rejected": 0}));
    assert_eq!(stats["snapshot"]["finished_at_ms"], 1_800_000_000_123_u64);
    assert_eq!(stats["uptime_seconds"], 61);
    assert_eq!(get(&node, "/config").await.json()["node_id"]["source"], "default");
}

#[tokio::test]
async fn metrics_come_in_the_type_that_prometheus_asks_for() {
    let answer = get(&Arc::new(Fake::new()), "/metrics").await;
    assert_eq!(answer.headers[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    assert!(answer.text.contains("\naegis_cache_items 10\n"));
    assert!(answer.text.contains("\naegis_shards{state=\"healthy\"} 256\n"));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_that_say_what_there_is() {
    let node = Arc::new(Fake::new());
    for uri in ["/", "/nothing", "/admin/nothing", "/admin"] {
        let answer = get(&node, uri).await;
        assert_eq!(answer.status, 404, "{uri}");
        assert!(answer.detail().contains("/ready"));
    }
    let answer = get(&node, "/admin/drain").await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.headers["allow"], "POST");
    assert!(answer.detail().contains("/admin/drain does not take GET"));
    assert_eq!(ask(&node, FAR, Method::POST, "/health", &[]).await.status, 405);
    assert!(node.told.lock().is_empty());
}
