use serde_json::json;

use super::*;
use crate::api::{Rights, Verb};

#[tokio::test]
async fn each_action_reaches_the_node_and_reports() {
    let node = Arc::new(Fake::new());
    assert_eq!(
        post(&node, "/admin/snapshot").await.json(),
        json!({"items": 10, "bytes": 2048, "took_seconds": 1.5})
    );
    assert_eq!(
        post(&node, "/admin/wal/truncate").await.json(),
        json!({"segments_removed": 2, "bytes_freed": 128})
    );
    assert_eq!(
        post(&node, "/admin/rate-limit?ops_per_sec=500").await.json(),
        json!({"ops_per_sec": 500})
    );
    assert_eq!(post(&node, "/admin/rate-limit?ops_per_sec=0").await.status, 200);
    assert_eq!(post(&node, "/admin/log-level?level=debug").await.json(), json!({"level": "debug"}));
    let drain = post(&node, "/admin/drain").await;
    assert_eq!(drain.status, 202);
    assert_eq!(drain.json(), json!({"phase": "draining", "active_connections": 5}));
    assert_eq!(get(&node, "/ready").await.status, 503);
    assert_eq!(get(&node, "/cluster").await.json()["members"][0]["status"], "leaving");
    assert_eq!(
        *node.told.lock(),
        ["snapshot", "truncate", "rate limit 500", "rate limit 0", "log level", "drain"]
    );
}

#[tokio::test]
async fn parameters_that_make_no_sense_are_refused_with_what_would() {
    let node = Arc::new(Fake::new());
    for (uri, expected) in [
        ("/admin/rate-limit", "?ops_per_sec=N"),
        ("/admin/rate-limit?ops_per_sec=-1", "?ops_per_sec=N"),
        ("/admin/rate-limit?ops_per_sec=4294967296", "?ops_per_sec=N"),
        ("/admin/log-level", "?level="),
        ("/admin/log-level?level=loud", "level: debug, here"),
    ] {
        let answer = post(&node, uri).await;
        assert_eq!(answer.status, 400, "{uri}");
        assert!(answer.detail().contains(expected), "{uri}: {}", answer.text);
    }
    assert!(node.told.lock().is_empty());
}

#[tokio::test]
async fn a_reload_says_what_it_applied_or_all_that_is_wrong() {
    let node = Arc::new(Fake::new());
    *node.reload.lock() = Some(Ok(Reloaded {
        applied: vec!["log_level".to_owned()],
        needs_restart: vec!["bind_addr".to_owned()],
        warnings: vec![],
    }));
    assert_eq!(
        post(&node, "/admin/reload").await.json(),
        json!({"applied": ["log_level"], "needs_restart": ["bind_addr"], "warnings": []})
    );
    *node.reload.lock() =
        Some(Err(ActionError::Refused { problems: vec!["a".to_owned(), "b".to_owned()] }));
    let refused = post(&node, "/admin/reload").await;
    assert_eq!(refused.status, 422);
    assert_eq!(refused.json()["problems"], json!(["a", "b"]));
    assert!(refused.detail().contains("the old one stays in force"));
    *node.reload.lock() = Some(Err(ActionError::Failed {
        what: "reading config.json",
        source: Box::new(std::io::Error::other("disk on fire")),
    }));
    let failed = post(&node, "/admin/reload").await;
    assert_eq!(failed.status, 500);
    assert_eq!(failed.detail(), "reading config.json failed: disk on fire");
    *node.reload.lock() = Some(Err(ActionError::NotAgreed {
        what: "recommissioning",
        source: Box::new(std::io::Error::other("no node leads it")),
    }));
    let undecided = post(&node, "/admin/reload").await;
    assert_eq!(undecided.status, 503);
    assert_eq!(undecided.detail(), "recommissioning is not agreed on: no node leads it");
    *node.reload.lock() = Some(Err(ActionError::Conflict("another reload is under way")));
    assert_eq!(post(&node, "/admin/reload").await.status, 409);
}

#[tokio::test]
async fn members_are_sent_away_by_name_and_strangers_are_told_of() {
    let node = Arc::new(Fake::new());
    assert_eq!(post(&node, "/admin/nodes/node2/decommission").await.status, 202);
    let stays = post(&node, "/admin/nodes/node2/recommission").await;
    assert_eq!((stays.status.as_u16(), &stays.json()["status"]), (200, &json!("member")));
    assert_eq!(post(&node, "/admin/nodes/node2/remove").await.status, 200);
    assert_eq!(*node.told.lock(), ["decommission node2", "recommission node2", "remove node2"]);
    for action in ["decommission", "recommission", "remove"] {
        let unknown = post(&node, &format!("/admin/nodes/n9/{action}")).await;
        assert_eq!(unknown.status, 404, "{action}");
        assert!(unknown.detail().contains("no member of that name"));
    }
}

const ACTIONS: [&str; 9] = [
    "/admin/reload",
    "/admin/snapshot",
    "/admin/wal/truncate",
    "/admin/drain",
    "/admin/rate-limit?ops_per_sec=1",
    "/admin/log-level?level=debug",
    "/admin/nodes/node2/decommission",
    "/admin/nodes/node2/recommission",
    "/admin/nodes/node2/remove",
];

#[tokio::test]
async fn without_a_token_only_the_machine_itself_may_act() {
    let node = Arc::new(Fake::new());
    for uri in ACTIONS {
        let answer = ask(&node, FAR, Method::POST, uri, &[("authorization", "Bearer guess")]).await;
        assert_eq!(answer.status, 403, "{uri}");
        assert!(answer.detail().contains("set auth_token"));
    }
    assert!(node.told.lock().is_empty());
    for peer in [LOCAL, LOCAL_6, LOCAL_MAPPED] {
        assert_eq!(ask(&node, peer, Method::POST, "/admin/snapshot", &[]).await.status, 200);
    }
}

#[tokio::test]
async fn without_a_token_neither_web_pages_nor_proxies_on_the_machine_may_act() {
    let node = Arc::new(Fake::new());
    for header in ["origin", "x-forwarded-for", "forwarded"] {
        let answer = ask(&node, LOCAL, Method::POST, "/admin/drain", &[(header, "x")]).await;
        assert_eq!(answer.status, 403);
        assert!(answer.detail().to_lowercase().contains(header), "{}", answer.text);
    }
    assert!(node.told.lock().is_empty());
}

#[tokio::test]
async fn actions_are_for_operators_and_metrics_for_whom_they_are_given() {
    let holder = |name: &str, verbs: &[Verb]| {
        let rights = Rights { verbs: verbs.to_vec(), prefixes: Vec::new(), rate: None };
        Holder::new(name, [name], Some(rights), TokenMetrics::default())
    };
    let node = Arc::new(Fake::with_holders([
        holder("shop", &[Verb::Read, Verb::Write]),
        holder("grafana", &[Verb::Metrics]),
        holder("operator", &[Verb::Admin]),
    ]));
    let status = async |method: Method, path: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        ask(&node, LOCAL, method, path, &[("authorization", &bearer)]).await.status.as_u16()
    };
    for (token, drained, metrics) in
        [("shop", 403, 403), ("grafana", 403, 200), ("operator", 200, 200), ("stranger", 401, 401)]
    {
        assert_eq!(
            status(Method::POST, "/admin/log-level?level=debug", token).await,
            drained,
            "{token}"
        );
        assert_eq!(status(Method::GET, "/metrics", token).await, metrics, "{token}");
        for open in ["/live", "/ready", "/cluster", "/stats"] {
            assert_eq!(status(Method::GET, open, token).await, 200, "{open} for {token}");
        }
    }
    assert_eq!(ask(&node, LOCAL, Method::GET, "/metrics", &[]).await.status, 401);
}

#[tokio::test]
async fn with_a_token_set_it_is_asked_of_everyone_and_any_of_the_list_will_do() {
    let node = Arc::new(Fake::with_tokens(&["new", "old"]));
    for uri in ACTIONS {
        let answer = ask(&node, LOCAL, Method::POST, uri, &[]).await;
        assert_eq!(answer.status, 401, "{uri}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(answer.detail().contains("Authorization: Bearer TOKEN"));
    }
    for wrong in ["Bearer ne", "Bearer neww", "Bearer ", "Basic new", "new", "Bearer", ""] {
        let headers = [("authorization", wrong)];
        let answer = ask(&node, LOCAL, Method::POST, "/admin/drain", &headers).await;
        assert_eq!(answer.status, 401, "{wrong:?}");
    }
    assert!(node.told.lock().is_empty());
    for right in ["Bearer new", "Bearer old", "bearer old"] {
        let headers = [("authorization", right)];
        let answer = ask(&node, FAR, Method::POST, "/admin/snapshot", &headers).await;
        assert_eq!(answer.status, 200, "{right:?}");
    }
    for uri in ["/health", "/ready", "/metrics", "/cluster", "/stats", "/config"] {
        assert_eq!(get(&node, uri).await.status, 200, "{uri} is for looking");
    }
}
