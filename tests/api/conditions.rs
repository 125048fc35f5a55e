//! `If-Match`, `If-None-Match`, `Idempotency-Key`.

use crate::harness::node;

#[tokio::test]
async fn a_lock_is_taken_once_and_given_back_by_its_etag() {
    let node = node().await;
    let taken = node.ask("PUT /v1/kv/lock?ttl=1m", &["If-None-Match: *"], "me").await;
    assert_eq!(taken.status, 201);
    let token = taken.header("etag").unwrap();

    let refused = node.ask("PUT /v1/kv/lock?ttl=1m", &["If-None-Match: *"], "you").await;
    refused.problem(412);
    assert_eq!(refused.header("etag"), Some(token));
    assert_eq!(refused.header("aegis-acks"), Some("1/1"));
    assert_eq!(refused.json()["outcome"], "not-applied");

    let stale = node.ask("DELETE /v1/kv/lock", &["If-Match: \"1\""], "").await;
    stale.problem(412);
    let given_back = node.ask("DELETE /v1/kv/lock", &[&format!("If-Match: {token}")], "").await;
    assert_eq!(given_back.status, 204);
    let next = node.ask("PUT /v1/kv/lock", &["If-None-Match: *"], "you").await;
    let number = |etag: &str| etag.trim_matches('"').parse::<u64>().unwrap();
    assert!(number(next.header("etag").unwrap()) > number(token));
}

#[tokio::test]
async fn if_match_replaces_only_what_it_names() {
    let node = node().await;
    let absent = node.ask("PUT /v1/kv/a", &["If-Match: *"], "1").await;
    absent.problem(412);
    assert_eq!(absent.header("etag"), None);
    let etag = node.put("a", "1").await;
    let replaced = node.ask("PUT /v1/kv/a", &[&format!("If-Match: {etag}")], "2").await;
    assert_eq!(replaced.status, 204);
    node.ask("PUT /v1/kv/a", &[&format!("If-Match: {etag}")], "3").await.problem(412);
    assert_eq!(node.ask("PUT /v1/kv/a", &["If-Match: *"], "4").await.status, 204);
    assert_eq!(node.ask("POST /v1/kv/a?op=incr", &["If-Match: *"], "").await.text(), "5");
    node.ask("POST /v1/kv/a?op=incr", &["If-None-Match: *"], "").await.problem(412);
}

#[tokio::test]
async fn a_reader_that_has_the_version_is_told_so() {
    let node = node().await;
    let etag = node.put("a", "1").await;
    for header in [
        format!("If-None-Match: {etag}"),
        format!("If-None-Match: W/{etag}"),
        format!("If-None-Match: \"1\", {etag}"),
        "If-None-Match: *".to_owned(),
    ] {
        let got = node.ask("GET /v1/kv/a", &[&header], "").await;
        assert_eq!((got.status, got.header("etag")), (304, Some(etag.as_str())), "{header}");
        got.assert_hardened();
    }
    assert_eq!(node.ask("GET /v1/kv/a", &["If-None-Match: \"1\""], "").await.status, 200);
    assert_eq!(node.ask("GET /v1/kv/a", &[&format!("If-Match: {etag}")], "").await.status, 200);
    node.ask("GET /v1/kv/a", &["If-Match: \"1\""], "").await.problem(412);
    node.ask("GET /v1/kv/b", &["If-Match: *"], "").await.problem(412);
}

#[tokio::test]
async fn weak_and_malformed_etags_are_refused() {
    let node = node().await;
    node.put("a", "1").await;
    for bad in ["W/\"7\"", "7", "\"seven\"", "\"7", "\"7\", \"8\"", "\"99999999999999999999\""] {
        let reply = node.ask("PUT /v1/kv/a", &[&format!("If-Match: {bad}")], "2").await;
        assert!(reply.problem(400).contains("If-Match"), "{bad}");
    }
    node.ask("PUT /v1/kv/a", &["If-None-Match: \"7\""], "2").await.problem(400);
    node.ask("PUT /v1/kv/a", &["If-None-Match: *", "If-Match: *"], "2").await.problem(400);
    node.ask("PUT /v1/kv/a", &["If-Match: *", "If-Match: *"], "2").await.problem(400);
    node.ask("GET /v1/kv/a", &["If-None-Match: seven"], "").await.problem(400);
    assert_eq!(node.get("/v1/kv/a").await.text(), "1");
}

#[tokio::test]
async fn a_retry_under_the_same_idempotency_key_gets_the_first_answer() {
    let node = node().await;
    let key = "Idempotency-Key: 6fa1-retry";
    let first = node.ask("POST /v1/kv/n?op=incr", &[key], "").await;
    let retry = node.ask("POST /v1/kv/n?op=incr", &[key], "").await;
    assert_eq!((first.text(), retry.text()), ("1", "1"));
    assert_eq!(first.header("etag"), retry.header("etag"));
    let other = node.ask("POST /v1/kv/n?op=incr&by=2", &[key], "").await;
    assert!(other.problem(400).contains("Idempotency-Key"));
    assert_eq!(node.get("/v1/kv/n").await.text(), "1");

    let create = ["Idempotency-Key: create", "If-None-Match: *"];
    assert_eq!(node.ask("PUT /v1/kv/a", &create, "1").await.status, 201);
    assert_eq!(node.ask("PUT /v1/kv/a", &create, "1").await.status, 201);
    for bad in [String::new(), "x".repeat(256)] {
        let header = format!("Idempotency-Key: {bad}");
        let reply = node.ask("PUT /v1/kv/a", &[&header], "1").await;
        assert!(reply.problem(400).contains("Idempotency-Key"));
    }
}
