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
async fn etags_of_others_are_compared_and_do_not_match() {
    let node = node().await;
    let etag = node.put("a", "1").await;
    let weak = format!("W/{etag}");
    let gzip = format!("{}-gzip\"", etag.trim_end_matches('"'));
    let foreign =
        ["\"5d8c72a5edda8-14\"", "\"a,b\"", "\"\"", "W/\"x\"", "\"99999999999999999999\""];
    for other in foreign.into_iter().chain([weak.as_str(), &gzip, "\"x\", W/\"y\", \"7\""]) {
        let wanted = [&*format!("If-Match: {other}")];
        let refused = node.ask("PUT /v1/kv/a", &wanted, "2").await;
        refused.problem(412);
        assert_eq!(refused.header("etag"), Some(etag.as_str()), "{other}");
        node.ask("DELETE /v1/kv/a", &wanted, "").await.problem(412);
        node.ask("POST /v1/kv/a?op=incr", &wanted, "").await.problem(412);
        node.ask("GET /v1/kv/a", &wanted, "").await.problem(412);
        node.ask("PUT /v1/kv/b", &wanted, "2").await.problem(412);
        if other != weak {
            let unwanted = [&*format!("If-None-Match: {other}")];
            assert_eq!(node.ask("GET /v1/kv/a", &unwanted, "").await.status, 200, "{other}");
        }
    }
    assert_eq!(node.get("/v1/kv/a").await.text(), "1");
}

#[tokio::test]
async fn a_write_may_bring_several_etags_and_several_lines() {
    let node = node().await;
    let etag = node.put("a", "1").await;
    let list = format!("If-Match: \"7\", {etag}, W/\"x\"");
    assert_eq!(node.ask("PUT /v1/kv/a", &[&list], "2").await.status, 204);
    node.ask("PUT /v1/kv/a", &[&list], "3").await.problem(412);
    let etag = node.put("a", "4").await;
    let lines = ["If-Match: \"7\"", &format!("If-Match: {etag}")];
    let got = node.ask("GET /v1/kv/a", &lines, "").await;
    assert_eq!((got.status, got.text()), (200, "4"));
    assert_eq!(node.ask("PUT /v1/kv/a", &lines, "5").await.status, 204);
    let etag = node.put("a", "6").await;
    let lines = ["If-None-Match: \"7\"", &format!("If-None-Match: W/{etag}")];
    assert_eq!(node.ask("GET /v1/kv/a", &lines, "").await.status, 304);
    assert_eq!(node.ask("HEAD /v1/kv/a", &lines, "").await.status, 304);
}

#[tokio::test]
async fn a_write_with_if_none_match_spares_the_version_it_names() {
    let node = node().await;
    assert_eq!(node.ask("PUT /v1/kv/a", &["If-None-Match: \"x\""], "1").await.status, 201);
    assert_eq!(node.ask("PUT /v1/kv/a", &["If-None-Match: \"7\""], "2").await.status, 204);
    let etag = node.put("a", "3").await;
    for named in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}")] {
        let header = format!("If-None-Match: {named}");
        node.ask("PUT /v1/kv/a", &[&header], "4").await.problem(412);
        node.ask("DELETE /v1/kv/a", &[&header], "").await.problem(412);
    }
    assert_eq!(node.get("/v1/kv/a").await.text(), "3");
}

#[tokio::test]
async fn what_is_no_etag_is_refused() {
    let node = node().await;
    node.put("a", "1").await;
    for bad in ["", "7", "seven", "\"7", "w/\"7\"", "\"7\" \"8\"", "*, \"7\""] {
        for (line, name) in [
            ("PUT /v1/kv/a", "If-Match"),
            ("DELETE /v1/kv/a", "If-None-Match"),
            ("GET /v1/kv/a", "If-Match"),
            ("GET /v1/kv/a", "If-None-Match"),
        ] {
            let reply = node.ask(line, &[&format!("{name}: {bad}")], "").await;
            assert!(reply.problem(400).contains(name), "{line} {name}: {bad}");
        }
    }
    node.ask("PUT /v1/kv/a", &["If-None-Match: *", "If-Match: *"], "2").await.problem(400);
    node.ask("PUT /v1/kv/a", &["If-Match: *", "If-Match: *"], "2").await.problem(400);
    assert_eq!(node.get("/v1/kv/a").await.text(), "1");
}

#[tokio::test]
async fn a_condition_is_never_passed_over() {
    let node = node().await;
    node.put("a", "1").await;
    for header in ["If-Match: \"7\"", "If-None-Match: *"] {
        let deleted = node.ask("DELETE /v1/kv?prefix=a", &[header], "").await;
        assert!(deleted.problem(400).contains("If-Match"));
        let body = "{\"ops\":[{\"op\":\"delete\",\"key\":\"a\"}]}";
        let batch = node.ask("POST /v1/batch", &[header], body).await;
        assert!(batch.problem(400).contains("if_match"));
    }
    assert_eq!(node.get("/v1/kv/a").await.text(), "1");
}

#[tokio::test]
async fn operations_of_a_batch_compare_as_header_fields_do() {
    let node = node().await;
    let etag = node.put("a", "1").await;
    let version = etag.trim_matches('"');
    let statuses = async |field: &str, text: &str| {
        let put = serde_json::json!({"op": "put", "key": "a", "value": "1", field: text});
        let body = serde_json::json!({"ops": [put]}).to_string();
        let reply = node.ask("POST /v1/batch", &[], body).await.json();
        let result = &reply["results"][0];
        (result["status"].as_u64().unwrap(), result["version"].as_str().unwrap().to_owned())
    };
    for foreign in ["\"x\"", &format!("W/{etag}"), "\"7\", \"x\"", "7"] {
        assert_eq!(statuses("if_match", foreign).await, (412, version.to_owned()), "{foreign}");
    }
    let (status, version) = statuses("if_match", &format!("\"7\", {etag}")).await;
    assert_eq!(status, 204);
    assert_eq!(statuses("if_none_match", &version).await, (412, version));
    assert_eq!(statuses("if_none_match", "\"x\"").await.0, 204);
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
