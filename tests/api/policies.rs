//! Who may, how often, and what is answered when it is not possible.

use std::num::NonZeroU32;

use aegiskv::api::{Rate, Settings, Sites};
use aegiskv::store::{self, EvictionPolicy};

use crate::harness::{self, Setup, node, node_with, start};

fn with_tokens(tokens: &[&str]) -> Settings {
    Settings { tokens: harness::tokens(tokens), ..Settings::default() }
}

#[tokio::test]
async fn without_the_token_nothing_is_told_and_nothing_is_done() {
    let node = node_with(with_tokens(&["s3cret"])).await;
    for header in [
        "X: y",
        "Authorization: Bearer wrong!",
        "Authorization: Bearer s3cre",
        "Authorization: Bearer s3cret2",
        "Authorization: Bearer",
        "Authorization: s3cret",
        "Authorization: Basic czNjcmV0",
    ] {
        for line in ["GET /v1/kv/a", "PUT /v1/kv/a", "GET /v1/kv", "POST /v1/batch", "GET /nowhere"]
        {
            let refused = node.ask(line, &[header], "").await;
            refused.problem(401);
            assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"aegiskv\""));
        }
    }
    assert_eq!(node.get("/").await.status, 200);
    assert_eq!(node.get("/openapi.json").await.status, 200);
    for header in ["Authorization: Bearer s3cret", "authorization: bearer  s3cret"] {
        node.ask("GET /v1/kv/a", &[header], "").await.problem(404);
    }
}

#[tokio::test]
async fn tokens_rotate_on_an_open_connection() {
    let node = node_with(with_tokens(&["old"])).await;
    let mut client = node.connect().await;
    let (old, new) = ("Authorization: Bearer old", "Authorization: Bearer new");
    client.ask("GET /v1/kv/a", &[new], "").await.problem(401);
    node.apply(with_tokens(&["new", "old"]));
    client.ask("GET /v1/kv/a", &[new], "").await.problem(404);
    client.ask("GET /v1/kv/a", &[old], "").await.problem(404);
    node.apply(with_tokens(&["new"]));
    client.ask("GET /v1/kv/a", &[old], "").await.problem(401);
}

#[tokio::test]
async fn operations_beyond_the_rate_are_refused_per_connection() {
    let n = |n| NonZeroU32::new(n).unwrap();
    let rate = Some(Rate { per_second: n(1), burst: n(3) });
    let node = node_with(Settings { rate, ..Settings::default() }).await;
    let mut client = node.connect().await;
    for _ in 0..3 {
        client.ask("GET /v1/kv/a", &[], "").await.problem(404);
    }
    let refused = client.ask("GET /v1/kv/a", &[], "").await;
    assert!(refused.problem(429).contains("rate_limit"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.json()["retryable"], true);
    node.get("/v1/kv/a").await.problem(404);
    node.apply(Settings::default());
    client.ask("GET /v1/kv/a", &[], "").await.problem(404);
}

#[tokio::test]
async fn other_methods_are_refused_with_those_that_serve() {
    let node = node().await;
    for (path, allow) in [
        ("/v1/kv/a", "GET, HEAD, PUT, DELETE, POST"),
        ("/v1/kv", "GET, HEAD, DELETE"),
        ("/v1/batch", "POST"),
        ("/", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ] {
        for method in ["PATCH", "OPTIONS", "TRACE", "BREW"] {
            let refused = node.ask(&format!("{method} {path}"), &[], "").await;
            refused.problem(405);
            assert_eq!(refused.header("allow"), Some(allow), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn elsewhere_there_is_nothing() {
    let node = node().await;
    for path in
        ["/nowhere", "/v1", "/v1/", "/v2/kv/a", "/v1/batch/", "/v1/kvs", "//", "/openapi.json/"]
    {
        assert!(node.get(path).await.problem(404).contains("/openapi.json"), "{path}");
    }
    let welcome = node.get("/").await;
    welcome.assert_hardened();
    assert_eq!(welcome.json()["name"], "aegiskv");
    assert_eq!(welcome.json()["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_full_node_says_so_and_still_deletes() {
    let store = store::Config {
        max_memory: 600_000,
        eviction_policy: EvictionPolicy::None,
        ..store::Config::default()
    };
    let node = start(Setup { store, ..Setup::default() }).await;
    node.put("a", vec![b'x'; 400_000]).await;
    let refused = node.ask("PUT /v1/kv/b", &[], vec![b'x'; 400_000]).await;
    assert!(refused.problem(507).contains("max_memory_mb"));
    assert_eq!(refused.json()["outcome"], "not-applied");
    assert_eq!(refused.json()["retryable"], false);
    assert_eq!(node.metric("aegis_ops_errors_total{op=\"put\"}"), 1.0);
    assert_eq!(node.ask("DELETE /v1/kv/a", &[], "").await.status, 204);
    node.put("b", vec![b'x'; 400_000]).await;
}

#[tokio::test]
async fn a_node_that_starts_or_drains_says_when_to_come_back() {
    let node = start(Setup { has_data: false, ..Setup::default() }).await;
    for line in ["GET /v1/kv/a", "PUT /v1/kv/a", "GET /v1/kv", "DELETE /v1/kv?prefix=a"] {
        let refused = node.ask(line, &[], "").await;
        refused.problem(503);
        assert_eq!(refused.json()["outcome"], "not-applied", "{line}");
        assert_eq!(refused.json()["retryable"], true);
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    let node = start(Setup::default()).await;
    node.coordinator.drain();
    node.get("/v1/kv/a").await.problem(503);
    let batch = node.ask("POST /v1/batch", &[], "{\"ops\":[{\"op\":\"get\",\"key\":\"a\"}]}").await;
    assert_eq!(batch.json()["results"][0]["status"], 503);
}

#[tokio::test]
async fn operations_are_counted_under_their_names() {
    let node = node().await;
    node.put("a", "1").await;
    node.get("/v1/kv/a").await;
    node.get("/v1/kv/b").await;
    node.ask("HEAD /v1/kv/a", &[], "").await;
    node.ask("POST /v1/kv/n?op=incr", &[], "").await;
    node.ask("POST /v1/kv/n?ttl=1m&op=touch", &[], "").await;
    node.ask("DELETE /v1/kv/a", &[], "").await;
    node.get("/v1/kv").await;
    node.ask("DELETE /v1/kv?prefix=a", &[], "").await;
    let count = |op| node.metric(&format!("aegis_ops_total{{op=\"{op}\"}}"));
    assert_eq!(
        ["put", "get", "incr", "touch", "delete", "list", "delete_prefix"].map(count),
        [1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    );
    assert_eq!(node.metric("aegis_ops_errors_total{op=\"get\"}"), 0.0);
    assert_eq!(node.metric("aegis_misses_total{reason=\"absent\"}"), 1.0);
}

/// Without a token: what a browser says of a page's request, or of the name that a page made up.
#[tokio::test]
async fn without_a_token_no_web_page_may_ask() {
    let sites = Sites::new(["kv.example".to_owned()], ["https://app.example".to_owned()]);
    let node = node_with(Settings { sites: sites.clone(), ..Settings::default() }).await;
    let ask = async |line: &str, headers: &str| {
        let mut client = node.connect().await;
        client.send(format!("{line} HTTP/1.1\r\n{headers}content-length: 0\r\n\r\n")).await;
        client.reply_to(line).await
    };
    let everything = ["PUT /v1/kv/a", "GET /v1/kv/a", "GET /v1/kv", "POST /v1/batch", "GET /"];
    for headers in [
        "host: evil.example\r\n",
        "host: localhost\r\norigin: https://evil.example\r\n",
        "host: localhost\r\norigin: null\r\n",
        "host: localhost\r\nsec-fetch-site: cross-site\r\n",
    ] {
        for line in everything {
            assert!(
                ask(line, headers).await.problem(403).contains("auth_token"),
                "{line} {headers}"
            );
        }
    }
    for headers in [
        "host: kv.example:7700\r\n",
        "host: 127.0.0.1:7700\r\n",
        "host: localhost\r\nsec-fetch-site: none\r\n",
        "host: localhost\r\norigin: https://app.example\r\nsec-fetch-site: cross-site\r\n",
    ] {
        assert_ne!(ask("PUT /v1/kv/a", headers).await.status, 403, "{headers}");
    }
    node.server.apply(Settings { sites, ..with_tokens(&["token"]) });
    let page = "host: evil.example\r\norigin: https://evil.example\r\n";
    ask("GET /v1/kv/a", page).await.problem(401);
    let allowed = format!("{page}authorization: Bearer token\r\n");
    assert_eq!(ask("GET /v1/kv/a", &allowed).await.status, 200);
}
