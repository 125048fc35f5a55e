//! One key: stored, read, changed, deleted; and what is no key.

use std::time::Duration;

use aegiskv::api::Settings;

use crate::harness::{node, node_with};

#[tokio::test]
async fn what_is_put_comes_back_byte_for_byte_with_its_type_etag_and_ttl() {
    let node = node().await;
    let value: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let put = node.ask("PUT /v1/kv/a?ttl=15m", &["Content-Type: image/x-thing"], &value).await;
    assert_eq!(put.status, 201);
    assert_eq!(put.header("aegis-acks"), Some("1/1"));
    put.assert_hardened();

    let got = node.get("/v1/kv/a").await;
    assert_eq!(got.status, 200);
    assert_eq!(got.body, value);
    assert_eq!(got.header("content-type"), Some("image/x-thing"));
    assert_eq!(got.header("etag"), put.header("etag"));
    assert_eq!(got.header("aegis-ttl"), Some("900"));
    got.assert_hardened();

    let again = node.ask("PUT /v1/kv/a", &[], "x").await;
    assert_eq!(again.status, 204);
    let version = |etag: Option<&str>| etag.unwrap().trim_matches('"').parse::<u64>().unwrap();
    assert!(version(again.header("etag")) > version(put.header("etag")));
    let got = node.get("/v1/kv/a").await;
    assert_eq!((got.text(), got.header("aegis-ttl")), ("x", None));
    assert_eq!(got.header("content-type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn what_curl_says_of_every_form_counts_as_no_type() {
    let node = node().await;
    for form in ["application/x-www-form-urlencoded", "Application/X-WWW-Form-Urlencoded; a=b"] {
        node.ask("PUT /v1/kv/a", &[&format!("Content-Type: {form}")], "{}").await;
        let got = node.get("/v1/kv/a").await;
        assert_eq!(got.header("content-type"), Some("application/octet-stream"));
    }
}

#[tokio::test]
async fn an_empty_value_is_a_value() {
    let node = node().await;
    assert_eq!(node.ask("PUT /v1/kv/a", &["content-length: 0"], "").await.status, 201);
    let got = node.get("/v1/kv/a").await;
    assert_eq!((got.status, got.header("content-length")), (200, Some("0")));
}

#[tokio::test]
async fn head_says_what_get_would_without_the_body() {
    let node = node().await;
    node.put("a", "12345").await;
    let mut client = node.connect().await;
    let head = client.ask("HEAD /v1/kv/a", &[], "").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("5")));
    let absent = client.ask("HEAD /v1/kv/b", &[], "").await;
    assert_eq!(absent.status, 404);
    absent.assert_hardened();
    // Had a body been sent, the next answer would begin with it.
    assert_eq!(client.ask("GET /v1/kv/a", &[], "").await.text(), "12345");
}

#[tokio::test]
async fn a_deleted_key_is_gone_and_deleting_it_again_succeeds() {
    let node = node().await;
    node.put("a", "1").await;
    for _ in 0..2 {
        let deleted = node.ask("DELETE /v1/kv/a", &[], "").await;
        assert_eq!(deleted.status, 204);
        assert_eq!(deleted.header("aegis-acks"), Some("1/1"));
    }
    node.get("/v1/kv/a").await.problem(404);
}

#[tokio::test]
async fn keys_are_decoded_once_and_never_cleaned_as_paths() {
    let node = node().await;
    for (written, json) in [
        ("a//b", "a//b"),
        ("a/../b", "a/../b"),
        ("..", ".."),
        (".", "."),
        ("/", "/"),
        ("a/", "a/"),
        ("a%2Fb", "a/b"),
        ("a%252Fb", "a%2Fb"),
        ("a+b", "a+b"),
        ("%20", " "),
        ("%C3%A4", "ä"),
        ("ä", "ä"),
        ("%00", "\0"),
    ] {
        node.put(written, written).await;
        let got = node.get(&format!("/v1/kv/{written}?format=json")).await.json();
        assert_eq!((got["key"].as_str(), got["value"].as_str()), (Some(json), Some(written)));
    }
    assert_eq!(node.get("/v1/kv/a/b").await.text(), "a%2Fb");
    node.get("/v1/kv/b").await.problem(404);
}

#[tokio::test]
async fn a_malformed_key_is_refused_in_words() {
    let node = node_with(Settings { max_key_bytes: 8, ..Settings::default() }).await;
    for bad in ["%zz", "%4", "%", "a%"] {
        for method in ["GET", "PUT", "DELETE", "POST"] {
            let op = if method == "POST" { "?op=incr" } else { "" };
            let reply = node.ask(&format!("{method} /v1/kv/{bad}{op}"), &[], "").await;
            assert!(reply.problem(400).contains("'%'"), "{method} {bad}");
        }
    }
    for method in ["GET", "PUT", "DELETE"] {
        let reply = node.ask(&format!("{method} /v1/kv/"), &[], "").await;
        assert!(reply.problem(400).contains("empty"), "{method}");
        let reply = node.ask(&format!("{method} /v1/kv/123456789"), &[], "").await;
        assert!(reply.problem(413).contains("max_key_bytes"), "{method}");
    }
    // Decoded, it is as long as it may be.
    node.put("%31%32%33%34%35%36%37%38", "v").await;
    assert_eq!(node.get("/v1/kv/12345678").await.text(), "v");
}

#[tokio::test]
async fn json_shows_bytes_that_are_no_text_in_base64() {
    let node = node().await;
    let etag = node.put("%ff", [0, 0xff]).await;
    let got = node.get("/v1/kv/%ff?format=json").await;
    assert_eq!(got.header("content-type"), Some("application/json"));
    assert_eq!(
        got.json(),
        serde_json::json!({
            "key_base64": "/w==", "value": "AP8=", "encoding": "base64", "content_type": null,
            "version": etag.trim_matches('"'), "ttl_ms": null,
        })
    );
    node.ask("PUT /v1/kv/t?ttl=2h", &["Content-Type: text/plain"], "hi").await;
    let got = node.get("/v1/kv/t?format=json").await.json();
    assert_eq!((got["key"].as_str(), got["encoding"].as_str()), (Some("t"), Some("utf8")));
    assert_eq!(got["content_type"], "text/plain");
    let left = got["ttl_ms"].as_u64().unwrap();
    assert!((7_190_000..=7_200_000).contains(&left), "{left}");
}

#[tokio::test]
async fn a_ttl_runs_out() {
    let node = node().await;
    node.ask("PUT /v1/kv/a?ttl=30ms", &[], "1").await;
    assert_eq!(node.get("/v1/kv/a").await.header("aegis-ttl"), Some("1"));
    tokio::time::sleep(Duration::from_millis(60)).await;
    node.get("/v1/kv/a").await.problem(404);
}

#[tokio::test]
async fn keep_keeps_the_ttl_and_absent_means_for_ever() {
    let node = node().await;
    node.ask("PUT /v1/kv/a?ttl=1h", &[], "1").await;
    node.ask("PUT /v1/kv/a?ttl=keep", &[], "2").await;
    assert_eq!(node.get("/v1/kv/a").await.header("aegis-ttl"), Some("3600"));
    node.ask("PUT /v1/kv/a", &[], "3").await;
    assert_eq!(node.get("/v1/kv/a").await.header("aegis-ttl"), None);
}

#[tokio::test]
async fn nonsense_for_a_ttl_is_refused_and_stores_nothing() {
    let node = node().await;
    for bad in
        ["0", "0s", "-1", "-5m", "1.5s", "", "5x", "999999999d", "18446744073709551616", "%zz"]
    {
        let reply = node.ask(&format!("PUT /v1/kv/a?ttl={bad}"), &[], "1").await;
        let detail = reply.problem(400);
        assert!(detail.contains("ttl"), "{bad}: {detail}");
        node.get("/v1/kv/a").await.problem(404);
    }
}

#[tokio::test]
async fn unknown_parameters_and_values_are_named() {
    let node = node().await;
    for (line, named) in [
        ("PUT /v1/kv/a?tll=5", "'tll'"),
        ("GET /v1/kv/a?ttl=5", "'ttl'"),
        ("DELETE /v1/kv/a?ttl=5", "'ttl'"),
        ("GET /v1/kv/a?format=xml", "'xml'"),
        ("GET /v1/kv/a?consistency=two", "'two'"),
        ("GET /v1/kv/a?min_version=new", "'new'"),
        ("PUT /v1/kv/a?ttl=1&ttl=2", "'ttl'"),
        ("POST /v1/kv/a?op=decr", "'decr'"),
        ("POST /v1/kv/a", "'op'"),
        ("GET /v1/kv?prefx=a", "'prefx'"),
        ("POST /v1/batch?prefix=a", "'prefix'"),
        ("GET /?a=b", "'a'"),
        ("GET /openapi.json?a=b", "'a'"),
    ] {
        let detail = node.ask(line, &[], "").await.problem(400);
        assert!(detail.contains(named), "{line}: {detail}");
    }
}

#[tokio::test]
async fn counters_add_create_and_keep_their_ttl() {
    let node = node().await;
    let incr = async |query: &str| {
        let reply = node.ask(&format!("POST /v1/kv/n?op=incr{query}"), &[], "").await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.header("etag").is_some() && reply.header("aegis-acks") == Some("1/1"));
        reply.text().to_owned()
    };
    assert_eq!(incr("&by=5&ttl=1h").await, "5");
    assert_eq!(incr("").await, "6");
    assert_eq!(incr("&by=-10&ttl=5m").await, "-4");
    let got = node.get("/v1/kv/n").await;
    assert_eq!((got.text(), got.header("aegis-ttl")), ("-4", Some("3600")));
}

#[tokio::test]
async fn counters_refuse_what_is_no_integer_and_what_overflows() {
    let node = node().await;
    node.put("n", "nine").await;
    let refused = node.ask("POST /v1/kv/n?op=incr", &[], "").await;
    refused.problem(409);
    assert_eq!(refused.header("aegis-acks"), Some("1/1"));
    node.put("n", "9223372036854775807").await;
    node.ask("POST /v1/kv/n?op=incr", &[], "").await.problem(409);
    for bad in ["9223372036854775808", "-9223372036854775809", "1.5", "", "one", "0x10"] {
        let reply = node.ask(&format!("POST /v1/kv/n?op=incr&by={bad}"), &[], "").await;
        assert!(reply.problem(400).contains("by"), "{bad}");
    }
    assert_eq!(node.get("/v1/kv/n").await.text(), "9223372036854775807");
}

#[tokio::test]
async fn touch_gives_a_new_ttl_and_keeps_value_and_type() {
    let node = node().await;
    node.ask("PUT /v1/kv/a", &["Content-Type: text/css"], "v").await;
    let touched = node.ask("POST /v1/kv/a?op=touch&ttl=5m", &[], "").await;
    assert_eq!((touched.status, touched.header("aegis-acks")), (204, Some("1/1")));
    let got = node.get("/v1/kv/a").await;
    assert_eq!((got.text(), got.header("aegis-ttl")), ("v", Some("300")));
    assert_eq!(got.header("content-type"), Some("text/css"));
    assert_eq!(got.header("etag"), touched.header("etag"));
    node.ask("POST /v1/kv/b?op=touch&ttl=5m", &[], "").await.problem(404);
    node.ask("POST /v1/kv/a?op=touch&by=1", &[], "").await.problem(400);
}

#[tokio::test]
async fn async_writes_are_accepted_and_every_word_of_consistency_works() {
    let node = node().await;
    let put = node.ask("PUT /v1/kv/a?consistency=async", &[], "1").await;
    assert_eq!((put.status, put.header("aegis-acks")), (202, None));
    let sum = node.ask("POST /v1/kv/n?op=incr&consistency=async", &[], "").await;
    assert_eq!((sum.status, sum.text()), (202, "1"));
    for word in ["one", "quorum", "all", "linearizable"] {
        let put = node.ask(&format!("PUT /v1/kv/a?consistency={word}"), &[], word).await;
        assert_eq!((put.status, put.header("aegis-acks")), (204, Some("1/1")));
        assert_eq!(node.get(&format!("/v1/kv/a?consistency={word}")).await.text(), word);
    }
}

#[tokio::test]
async fn min_version_takes_an_etag_with_its_quotes_or_without() {
    let node = node().await;
    let etag = node.put("a", "1").await;
    let quoted = etag.replace('"', "%22");
    for version in [&quoted, etag.trim_matches('"')] {
        assert_eq!(node.get(&format!("/v1/kv/a?min_version={version}")).await.text(), "1");
    }
}
