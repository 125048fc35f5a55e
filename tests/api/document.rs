//! The OpenAPI document and what is served are one.

use std::collections::BTreeSet;

use aegiskv::api::Settings;
use serde_json::Value;

use crate::harness::{node, node_with, tokens};

const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH", "OPTIONS"];

#[tokio::test]
async fn every_documented_route_and_method_is_served_and_no_other() {
    let node = node().await;
    let document = node.get("/openapi.json").await;
    assert_eq!(document.header("content-type"), Some("application/json"));
    let document = document.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(
        paths.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        BTreeSet::from(["/", "/openapi.json", "/v1/batch", "/v1/kv", "/v1/kv/{key}"])
    );
    for (path, item) in paths {
        let served = path.replace("{key}", "a");
        let mut documented = BTreeSet::new();
        for method in METHODS {
            let reply = node.ask(&format!("{method} {served}"), &[], "").await;
            let described = item.get(method.to_lowercase());
            assert_eq!(reply.status == 405, described.is_none(), "{method} {path}");
            if let Some(described) = described {
                documented.insert(method);
                let statuses = described["responses"].as_object().unwrap();
                assert!(
                    statuses.contains_key(&reply.status.to_string()),
                    "{method} {path}: {reply:?}"
                );
            }
        }
        let refused = node.ask(&format!("PATCH {served}"), &[], "").await;
        let allowed: BTreeSet<_> = refused.header("allow").unwrap().split(", ").collect();
        assert_eq!(allowed, documented, "{path}");
    }
}

#[tokio::test]
async fn the_document_tells_this_nodes_limits_and_whether_it_wants_a_token() {
    let open = node().await.get("/openapi.json").await.json();
    assert_eq!(open["paths"]["/v1/kv/{key}"]["get"].get("security"), None);
    let settings = Settings { max_key_bytes: 77, tokens: tokens(&["t"]), ..Settings::default() };
    let document = node_with(settings).await.get("/openapi.json").await.json();
    let get = &document["paths"]["/v1/kv/{key}"]["get"];
    assert_eq!(get["parameters"][0]["schema"]["maxLength"], 77);
    assert!(get["security"][0].get("token").is_some());
    for status in ["401", "403", "501"] {
        assert!(get["responses"].get(status).is_some(), "{status}");
    }
}

/// Every `$ref` must lead somewhere.
#[tokio::test]
async fn every_reference_in_the_document_resolves() {
    fn visit(value: &Value, root: &Value, seen: &mut usize) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(root.pointer(pointer).is_some(), "{reference}");
                    *seen += 1;
                }
                members.values().for_each(|member| visit(member, root, seen));
            }
            Value::Array(items) => items.iter().for_each(|item| visit(item, root, seen)),
            _ => {}
        }
    }
    let document = node().await.get("/openapi.json").await.json();
    let mut seen = 0;
    visit(&document, &document, &mut seen);
    assert!(seen > 50, "{seen}");
}
