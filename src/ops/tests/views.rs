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
            "gossip": "ok",
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
        status.lost_udp = vec!["no UDP from n2, TCP works: open 7701/udp between them".to_owned()];
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
            "gossip": "no UDP from n2, TCP works: open 7701/udp between them",
            "listeners": "exposed: clients need no token; set auth_token",
            "config": "the last reload was refused; the configuration before it is in force",
        }})
    );
}

/// A node that has done its whole part, and of so many shards sees so many served by nobody.
fn without(unavailable: u64) -> Arc<Fake> {
    Arc::new(Fake::with(|status| {
        status.was_whole = true;
        status.readings.shards =
            ShardCounts { healthy: 256 - unavailable, unavailable, ..ShardCounts::default() };
    }))
}

#[tokio::test]
async fn a_node_is_ready_as_long_as_it_can_do_anything_for_clients() {
    for (unavailable, code, text) in
        [(0, 200, "ok"), (1, 200, "1 unavailable"), (255, 200, "255 unavailable")]
    {
        let answer = get(&without(unavailable), "/ready").await;
        assert_eq!(answer.status, code);
        assert_eq!(answer.json()["checks"]["shards"], text);
    }
    let answer = get(&without(256), "/ready").await;
    assert_eq!(answer.status, 503, "it reaches no primary, so others are better asked");
    assert_eq!(answer.json()["checks"]["shards"], "256 unavailable");
}

/// A node that has served for so long, with so many copies behind, of which so many are brought
/// level; some shards are not served.
fn started(seconds: u64, behind: u64, coming: u64, unavailable: u64) -> Arc<Fake> {
    Arc::new(Fake::with(|status| {
        status.serving_for = Duration::from_secs(seconds);
        status.was_whole = false;
        (status.copies_behind, status.copies_coming) = (behind, coming);
        status.readings.shards =
            ShardCounts { healthy: 256 - unavailable, unavailable, ..ShardCounts::default() };
    }))
}

#[tokio::test]
async fn a_node_that_has_just_started_is_ready_once_it_does_its_part() {
    for (seconds, behind, coming, unavailable, code, why) in [
        (0, 0, 0, 0, 200, "all is well"),
        (1, 5, 5, 0, 503, "its copies are being brought level"),
        (3_600, 5, 5, 0, 503, "for however long that takes"),
        (29, 0, 0, 3, 503, "it has not heard yet who serves these"),
        (30, 0, 0, 3, 200, "nobody does"),
        (29, 5, 0, 5, 503, "their primaries may come"),
        (30, 5, 0, 5, 200, "nobody brings these level"),
        (30, 5, 1, 4, 503, "one of them somebody does"),
    ] {
        let answer = get(&started(seconds, behind, coming, unavailable), "/ready").await;
        assert_eq!(answer.status, code, "{why}: {}", answer.text);
    }
}

#[tokio::test]
async fn copies_that_fall_behind_later_are_told_and_keep_nobody_from_being_served() {
    let node = Arc::new(Fake::with(|status| {
        status.was_whole = true;
        (status.copies_behind, status.copies_coming) = (5, 5);
        status.readings.shards =
            ShardCounts { healthy: 244, catching_up: 12, ..ShardCounts::default() };
    }));
    let answer = get(&node, "/ready").await;
    assert_eq!(answer.status, 200, "what they lack is asked of the primaries");
    assert_eq!(answer.json()["checks"]["shards"], "12 catching up, 5 copies here not level yet");
}

#[tokio::test]
async fn a_node_whose_log_failed_or_that_drains_or_was_removed_is_not_ready() {
    let failed = Arc::new(Fake::with(|status| status.wal.failed = true));
    let answer = get(&failed, "/ready").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["checks"]["wal"], "cannot be written; the node is stopping");
    let why = "this node was removed from its cluster".to_owned();
    for (phase, text) in [
        (Phase::Draining, "draining: takes no new work"),
        (Phase::Removed { why }, "removed: this node was removed from its cluster"),
    ] {
        let node = Arc::new(Fake::with(|status| status.phase = phase));
        let answer = get(&node, "/ready").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json()["checks"]["node"], text);
    }
}

#[tokio::test]
async fn a_slow_disk_is_named_and_keeps_nobody_away() {
    let with_delay = |millis| {
        Arc::new(Fake::with(|status| {
            status.readings.disk_delay = std::time::Duration::from_millis(millis);
        }))
    };
    let answer = get(&with_delay(499), "/ready").await;
    assert_eq!(answer.json()["checks"]["wal"], "ok");
    let answer = get(&with_delay(3_070), "/ready").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["checks"]["wal"], "slow: writes wait 3.1 s for the disk");
}

#[tokio::test]
async fn whether_a_node_may_be_stopped_is_said_with_the_reason() {
    let node = Arc::new(Fake::new());
    let answer = get(&node, "/ready?for=stop").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), json!({"ready": true, "checks": {"write_quorum": "ok"}}));
    let why = "shard 7 and 11 more would lose their write quorum: node3 is dead".to_owned();
    *node.stoppable.lock() = Err(why.clone());
    let answer = get(&node, "/ready?for=stop").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["checks"]["write_quorum"], why);
    assert!(answer.text.starts_with("{\"ready\":false,"), "the verdict comes first");
    assert_eq!(get(&node, "/ready").await.status, 200, "that is another question");
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
            "leaderless_since": null,
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
            "settled": true,
            "moves_left": 0,
            "settled_eta_seconds": 0,
            "stop_lease": null,
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
async fn what_is_still_to_be_moved_is_told_and_when_it_may_be_done() {
    let left = |eta| Outlook { settled: false, moves_left: 12, eta };
    let node =
        Arc::new(Fake::with(|status| status.outlook = left(Some(Duration::from_millis(90_500)))));
    let body = get(&node, "/cluster").await.json();
    assert_eq!((&body["settled"], &body["moves_left"]), (&json!(false), &json!(12)));
    assert_eq!(body["settled_eta_seconds"], 90);
    node.status.lock().outlook = left(None);
    assert_eq!(get(&node, "/cluster").await.json()["settled_eta_seconds"], Value::Null);
}

fn member(node_id: &str, status: MemberStatus, leader: bool) -> Member {
    Member {
        node_id: node_id.to_owned(),
        status,
        client_addr: Some(format!("{node_id}.internal:7700")),
        gossip_addr: None,
        zone: "z1".to_owned(),
        region: String::new(),
        version: "0.1.0".to_owned(),
        shards: 256,
        primaries: 86,
        leader,
    }
}

#[tokio::test]
async fn the_members_of_a_cluster_are_shown_as_the_node_knows_them() {
    let node = Arc::new(Fake::with(|status| {
        status.leader = Some("n2".to_owned());
        status.members = vec![
            member("n1", MemberStatus::Suspect, false),
            member("n2", MemberStatus::Alive, true),
            member("n3", MemberStatus::Dead, false),
        ];
    }));
    let cluster = get(&node, "/cluster").await.json();
    assert_eq!(cluster["leader"], "n2");
    assert_eq!(
        cluster["members"][0],
        json!({
            "node_id": "n1", "status": "suspect", "client_addr": "n1.internal:7700",
            "gossip_addr": null, "zone": "z1", "region": "", "version": "0.1.0",
            "shards": 256, "primaries": 86, "leader": false,
        })
    );
    assert_eq!(cluster["members"][1]["leader"], true);
    assert_eq!(cluster["members"][2]["status"], "dead");
    assert_eq!(cluster["members"].as_array().unwrap().len(), 3);
    assert_eq!(cluster["leaderless_since"], Value::Null);
    node.status.lock().leader = None;
    node.status.lock().leaderless_for = Some(Duration::from_secs(3_600));
    let cluster = get(&node, "/cluster").await.json();
    assert_eq!(cluster["leader"], Value::Null, "none is known");
    let since = cluster["leaderless_since"].as_str().unwrap();
    assert_eq!(since.len(), "2026-01-01T00:00:00Z".len(), "{since}");
    let since = humantime::parse_rfc3339(since).unwrap().elapsed().unwrap();
    assert!((3_599..3_660).contains(&since.as_secs()), "{since:?}");
    for (status, word) in [(MemberStatus::Joining, "joining"), (MemberStatus::Leaving, "leaving")] {
        assert_eq!(json!(status), word);
    }
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

/// What a web page's request can look like, and what a request can that names no address.
const FOREIGN: [(&str, &str); 4] = [
    ("host", "evil.example:7702"),
    ("origin", "https://evil.example"),
    ("origin", "null"),
    ("sec-fetch-site", "cross-site"),
];

#[tokio::test]
async fn without_a_token_no_web_page_sees_anything() {
    let node = Arc::new(Fake::new());
    for line in FOREIGN {
        for uri in ["/health", "/metrics", "/config", "/cluster", "/nowhere"] {
            let refused = ask(&node, LOCAL, Method::GET, uri, &[line]).await;
            assert_eq!(refused.status, 403, "{uri} {line:?}");
            assert!(refused.detail().contains("auth_token"));
        }
    }
    let sites = Sites::new(["evil.example".to_owned()], ["https://evil.example".to_owned()]);
    let open = Arc::new(Fake { sites: Arc::new(sites), ..Fake::new() });
    let page = &FOREIGN[..2];
    assert_eq!(ask(&open, LOCAL, Method::GET, "/metrics", page).await.status, 200);
    let closed = Arc::new(Fake::with_tokens(&["token"]));
    for line in FOREIGN {
        assert_eq!(ask(&closed, LOCAL, Method::GET, "/metrics", &[line]).await.status, 200);
    }
}

#[tokio::test]
async fn a_head_that_leaves_doubt_is_refused_and_ends_its_connection() {
    let node = Arc::new(Fake::new());
    for (lines, status) in [
        (&[("transfer-encoding", "gzip, chunked")][..], 501),
        (&[("transfer-encoding", "chunked, chunked")], 400),
        (&[("host", "localhost"), ("host", "localhost")], 400),
        (&[("host", "a b")], 400),
    ] {
        let refused = ask(&node, LOCAL, Method::GET, "/live", lines).await;
        assert_eq!(refused.status.as_u16(), status);
        assert_eq!(refused.headers["connection"], "close");
        refused.detail();
    }
    let chunked =
        ask(&node, LOCAL, Method::GET, "/live", &[("transfer-encoding", "chunked")]).await;
    assert_eq!(chunked.status, StatusCode::OK);
    assert_eq!(chunked.headers["connection"], "close");
    let plain = get(&node, "/live").await;
    assert_eq!((plain.status, plain.headers.get("connection")), (StatusCode::OK, None));
}
