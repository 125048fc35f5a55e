//! Keys by prefix: listed, deleted.

use std::collections::BTreeSet;

use crate::harness::{Node, node};

async fn all_keys(node: &Node, query: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut cursor = String::new();
    loop {
        let page = node.get(&format!("/v1/kv?{query}&cursor={cursor}")).await.json();
        for key in page["keys"].as_array().unwrap() {
            assert!(keys.insert(key["key"].as_str().unwrap().to_owned()), "{key} is seen twice");
        }
        match page["cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return keys,
        }
    }
}

#[tokio::test]
async fn every_key_under_a_prefix_is_listed_page_by_page() {
    let node = node().await;
    for n in 0..57 {
        node.put(&format!("user:{n}"), "v").await;
        node.put(&format!("other:{n}"), "v").await;
    }
    let keys = all_keys(&node, "prefix=user:&limit=10").await;
    assert_eq!(keys, (0..57).map(|n| format!("user:{n}")).collect());
    assert_eq!(all_keys(&node, "limit=1000").await.len(), 114);
    let page = node.get("/v1/kv?prefix=user:&limit=10").await.json();
    assert_eq!(page["keys"].as_array().unwrap().len(), 10);
}

#[tokio::test]
async fn a_listed_key_shows_size_ttl_and_version_and_its_value_if_asked() {
    let node = node().await;
    let etag = node.put("a%ff", [0xff, 0xfe]).await;
    let version = etag.trim_matches('"');
    let plain = node.get("/v1/kv?prefix=a%ff").await;
    assert_eq!(plain.header("content-type"), Some("application/json"));
    let listed = serde_json::json!({
        "key_base64": "Yf8=", "size": 2, "ttl_ms": null, "version": version,
    });
    assert_eq!(plain.json(), serde_json::json!({"keys": [listed], "cursor": null}));
    let valued = node.get("/v1/kv?prefix=a%ff&values=1").await.json();
    let listed = serde_json::json!({
        "key_base64": "Yf8=", "size": 2, "ttl_ms": null, "version": version, "value": "//4=",
        "encoding": "base64", "content_type": null,
    });
    assert_eq!(valued, serde_json::json!({"keys": [listed], "cursor": null}));
    let empty = node.get("/v1/kv?prefix=b&values=1").await.json();
    assert_eq!(empty, serde_json::json!({"keys": [], "cursor": null}));
}

#[tokio::test]
async fn a_page_of_large_values_is_streamed_whole() {
    let node = node().await;
    let value = "x".repeat(300_000);
    for n in 0..10 {
        node.put(&format!("k{n}"), &value).await;
    }
    let page = node.get("/v1/kv?values=1").await;
    assert_eq!(page.header("transfer-encoding"), Some("chunked"));
    let page = page.json();
    let keys = page["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 10);
    assert!(keys.iter().all(|key| key["value"].as_str() == Some(&value)));
}

#[tokio::test]
async fn limits_and_cursors_out_of_range_are_refused() {
    let node = node().await;
    for query in
        ["limit=0", "limit=1001", "limit=-1", "limit=", "limit=x", "cursor=nonsense", "values=2"]
    {
        node.get(&format!("/v1/kv?{query}")).await.problem(400);
    }
    node.ask("PUT /v1/kv", &[], "x").await.problem(405);
}

#[tokio::test]
async fn a_prefix_is_counted_then_deleted() {
    let node = node().await;
    for n in 0..5 {
        node.put(&format!("a:{n}"), "v").await;
    }
    node.put("b", "v").await;
    let counted = node.ask("DELETE /v1/kv?prefix=a:&dry_run=1", &[], "").await;
    assert_eq!((counted.status, counted.text()), (200, "{\"deleted\":5}"));
    assert_eq!(all_keys(&node, "").await.len(), 6);
    let deleted = node.ask("DELETE /v1/kv?prefix=a:", &["Idempotency-Key: once"], "").await;
    assert_eq!((deleted.status, deleted.text()), (200, "{\"deleted\":5}"));
    assert_eq!(deleted.header("aegis-acks"), Some("1/1"));
    let retry = node.ask("DELETE /v1/kv?prefix=a:", &["Idempotency-Key: once"], "").await;
    assert_eq!(retry.text(), "{\"deleted\":5}");
    assert_eq!(all_keys(&node, "").await.len(), 1);
    for bad in ["/v1/kv", "/v1/kv?prefix=", "/v1/kv?dry_run=1"] {
        assert!(node.ask(&format!("DELETE {bad}"), &[], "").await.problem(400).contains("prefix"));
    }
    let later = node.ask("DELETE /v1/kv?prefix=b&consistency=async", &[], "").await;
    assert_eq!((later.status, later.header("aegis-acks")), (202, None));
}

#[tokio::test]
async fn a_page_ends_once_it_has_many_bytes_of_values() {
    let node = node().await;
    let value = "x".repeat(2 << 20);
    for n in 0..12 {
        node.put(&format!("k{n}"), &value).await;
    }
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), String::new(), 1);
    loop {
        let page = node.get(&format!("/v1/kv?limit=1000&cursor={cursor}")).await.json();
        for key in page["keys"].as_array().unwrap() {
            seen.insert(key["key"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["cursor"].as_str() else { break };
        next.clone_into(&mut cursor);
        pages += 1;
    }
    // 24 MiB, of which a page holds 16 and what the last shard added.
    assert_eq!((seen.len(), pages), (12, 2));
}
