use axum::http::StatusCode;

use super::*;

async fn acquire(node: &Arc<Fake>, body: impl Into<Body>) -> Answer {
    send(node, LOCAL, Method::POST, "/admin/stop-lease", &[], body.into()).await
}

async fn fleet(node: &Arc<Fake>, path: &str, body: &str) -> Answer {
    let header = [("fleet-lock-protocol", "true")];
    send(node, LOCAL, Method::POST, path, &header, Body::from(body.to_owned())).await
}

/// What a client of the FleetLock protocol sends, and the answer's status, kind and value.
async fn in_protocol(node: &Arc<Fake>, path: &str, body: &str) -> (u16, String, String) {
    let answer = fleet(node, path, body).await;
    let json = answer.json();
    let word = |name: &str| json[name].as_str().unwrap().to_owned();
    (answer.status.as_u16(), word("kind"), word("value"))
}

const CLIENT: &str = r#"{"client_params":{"id":"node2","group":"default"}}"#;

fn not_safe() -> LeaseRefusal {
    LeaseRefusal::Unsafe(Box::new(LeaseUnsafe {
        why: "node2 cannot be stopped safely now: node3 is missing".to_owned(),
        shards_without_quorum: vec![4, 5],
        shards_not_level: vec![6],
        members_missing: vec!["node3".to_owned()],
    }))
}

#[tokio::test]
async fn a_lease_is_granted_with_what_it_is_bound_to() {
    let node = Arc::new(Fake::new());
    let answer = acquire(&node, r#"{"node_id":"node2","holder":"ops@host"}"#).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({
            "lease_id": 7, "node_id": "node2", "holder": "ops@host",
            "since": "2026-11-30T00:53:20Z", "until": "2026-11-30T01:23:20Z",
            "ttl_seconds": 1800, "renewed": false,
        })
    );
    for (ttl, seconds) in [
        (r#""90s""#, 90),
        (r#""1h 30m""#, 5400),
        (r#""45""#, 45),
        ("60", 60),
        ("1800.0", 1800),
        (r#""24h""#, 86_400),
        ("null", 1800),
    ] {
        let body = format!(r#"{{"node_id":"node2","holder":"h","ttl":{ttl}}}"#);
        assert_eq!(acquire(&node, body).await.json()["ttl_seconds"], seconds, "{ttl}");
    }
}

#[tokio::test]
async fn a_body_that_makes_no_sense_is_refused_with_what_would() {
    let node = Arc::new(Fake::new());
    for (body, expected) in [
        ("", "there is no body; send a body like {\"node_id\""),
        ("{", "EOF"),
        ("[]", "the body is a list; send a body like"),
        (r#" ["node2","h"]"#, "the body is a list"),
        (r#"{"holder":"h"}"#, "missing field `node_id`"),
        (r#"{"node_id":"node2"}"#, "missing field `holder`"),
        (r#"{"node_id":"node2","holder":"h","zone":"a"}"#, "unknown field `zone`"),
        (r#"{"node_id":2,"holder":"h"}"#, "expected a string"),
        (r#"{"node_id":"node2","holder":" "}"#, "holder says who asks"),
        (r#"{"node_id":"node2","holder":"a\nb"}"#, "holder says who asks"),
        (r#"{"node_id":"node2","holder":"h","ttl":"24h 1s"}"#, "from 1s to 24h"),
        (r#"{"node_id":"node2","holder":"h","ttl":0}"#, "from 1s to 24h"),
        (r#"{"node_id":"node2","holder":"h","ttl":-5}"#, "from 1s to 24h"),
        (r#"{"node_id":"node2","holder":"h","ttl":"soon"}"#, "from 1s to 24h"),
        (r#"{"node_id":"node2","holder":"h","ttl":true}"#, "from 1s to 24h"),
    ] {
        let answer = acquire(&node, body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.detail().contains(expected), "{body}: {}", answer.text);
    }
    let long = format!(r#"{{"node_id":"node2","holder":"{}"}}"#, "h".repeat(257));
    assert_eq!(acquire(&node, long).await.status, 400);
    assert!(node.told.lock().is_empty());
}

#[tokio::test]
async fn a_body_that_is_too_long_is_not_read_to_its_end() {
    let node = Arc::new(Fake::new());
    let spaces = " ".repeat(4096 - 36);
    let fits = format!(r#"{{"node_id":"node2","holder":"h"}}{spaces}"#);
    assert_eq!(acquire(&node, fits.clone()).await.status, 200, "{} bytes", fits.len());
    let longer = format!("{fits}{}", " ".repeat(4097 - fits.len()));
    let answer = acquire(&node, longer).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.detail().contains("4096 bytes"));
    // Of unknown length: in chunks, without an end.
    let chunks = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("        "));
    assert_eq!(acquire(&node, Body::from_stream(chunks)).await.status, 413);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let never = Body::from_stream(futures_util::stream::pending::<std::io::Result<&'static str>>());
    let within = Duration::from_millis(20);
    let read = stop_lease::read_json_within::<Value>(never, "{}", within).await;
    assert_eq!(read.unwrap_err().status(), StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn who_holds_it_and_what_is_unsafe_can_be_read_by_program() {
    let node = Arc::new(Fake::new());
    let body = r#"{"node_id":"node2","holder":"h"}"#;
    *node.refusal.lock() = Some(LeaseRefusal::Held(Box::new(held())));
    let answer = acquire(&node, body).await;
    assert_eq!(answer.status, 409);
    assert_eq!(
        answer.detail(),
        "ops@host holds the stop lease for node2 until 2026-11-30T01:23:20Z; one node at a time \
         may be stopped"
    );
    let json = answer.json();
    assert_eq!((&json["held_by"], &json["node_id"]), (&json!("ops@host"), &json!("node2")));
    assert_eq!(json["since"], "2026-11-30T00:53:20Z");
    assert_eq!((&json["until"], &json["lease_id"]), (&json!("2026-11-30T01:23:20Z"), &json!(7)));
    *node.refusal.lock() = Some(not_safe());
    let answer = acquire(&node, body).await;
    assert_eq!(answer.status, 503);
    assert!(answer.detail().contains("node3 is missing"));
    let json = answer.json();
    assert_eq!(json["shards_without_quorum"], json!([4, 5]));
    assert_eq!(
        (&json["shards_not_level"], &json["members_missing"]),
        (&json!([6]), &json!(["node3"]))
    );
    *node.refusal.lock() = Some(LeaseRefusal::NotAgreed { source: None });
    let answer = acquire(&node, body).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["shards_not_level"]), (503, &Value::Null));
    assert_eq!(acquire(&node, r#"{"node_id":"n9","holder":"h"}"#).await.status, 404);
}

#[tokio::test]
async fn the_lease_is_shown_and_given_back() {
    let node = Arc::new(Fake::with(|status| status.stop_lease = Some(held())));
    *node.lease.lock() = Some(held());
    let look = ask(&node, LOCAL, Method::GET, "/admin/stop-lease", &[]).await.json();
    assert_eq!(look["lease"]["lease_id"], 7);
    assert_eq!(get(&node, "/cluster").await.json()["stop_lease"], look["lease"]);
    let release = async |query: &str| {
        ask(&node, LOCAL, Method::DELETE, &format!("/admin/stop-lease{query}"), &[]).await
    };
    for bad in ["", "?holder=h", "?node_id=node2&force=1"] {
        let answer = release(bad).await;
        assert_eq!(answer.status, 400, "{bad}");
        assert!(answer.detail().contains("?node_id=NODE"));
    }
    let done = release("?node_id=node2&holder=ops%40host").await.json();
    assert_eq!((&done["released"], &done["lease"]["node_id"]), (&json!(true), &json!("node2")));
    assert_eq!(release("?node_id=node2").await.json(), json!({ "released": false, "lease": null }));
    assert_eq!(*node.told.lock(), ["release node2 ops@host", "release node2 whoever"]);
    let none = ask(&node, LOCAL, Method::GET, "/admin/stop-lease", &[]).await.json();
    assert_eq!(none, json!({ "lease": null }));
}

#[tokio::test]
async fn the_lease_is_for_operators_by_either_protocol() {
    let far = Arc::new(Fake::new());
    let guarded = Arc::new(Fake::with_tokens(&["secret"]));
    for (method, path) in [
        (Method::POST, "/admin/stop-lease"),
        (Method::GET, "/admin/stop-lease"),
        (Method::DELETE, "/admin/stop-lease?node_id=node2"),
        (Method::POST, "/v1/pre-reboot"),
        (Method::POST, "/v1/steady-state"),
    ] {
        let fleet = [("fleet-lock-protocol", "true")];
        let answer = ask(&far, FAR, method.clone(), path, &fleet).await;
        assert_eq!(answer.status, 403, "{path}");
        let answer = ask(&guarded, LOCAL, method, path, &fleet).await;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        if path.starts_with("/v1/") {
            assert_eq!(answer.json()["kind"], "not_allowed");
            assert!(answer.json()["value"].as_str().unwrap().contains("Authorization: Bearer"));
        }
    }
    assert!(far.told.lock().is_empty() && guarded.told.lock().is_empty());
}

#[tokio::test]
async fn an_operating_system_asks_by_its_own_protocol() {
    let node = Arc::new(Fake::new());
    assert_eq!(fleet(&node, "/v1/pre-reboot", CLIENT).await.status, 200);
    assert_eq!(fleet(&node, "/v1/steady-state", CLIENT).await.status, 200);
    // One whose id is the machine's names the node by its group.
    let by_group = r#"{"client_params":{"id":"27e3ac02","group":"node2","more":1},"also":2}"#;
    assert_eq!(fleet(&node, "/v1/pre-reboot", by_group).await.status, 200);
    assert_eq!(
        *node.told.lock(),
        [
            "acquire node2 FleetLock node2 1800",
            "settle node2 FleetLock node2",
            "acquire 27e3ac02 FleetLock 27e3ac02 1800",
            "acquire node2 FleetLock 27e3ac02 1800",
        ]
    );
}

#[tokio::test]
async fn an_operating_system_is_refused_in_its_own_words() {
    let node = Arc::new(Fake::new());
    for path in ["/v1/pre-reboot", "/v1/steady-state"] {
        for headers in [&[][..], &[("fleet-lock-protocol", "yes")]] {
            let body = Body::from(CLIENT);
            let answer = send(&node, LOCAL, Method::POST, path, headers, body).await;
            assert_eq!(
                (answer.status.as_u16(), &answer.json()["kind"]),
                (400, &json!("bad_request"))
            );
            assert!(answer.text.contains("fleet-lock-protocol: true"));
        }
        for bad in ["", "{}", r#"{"client_params":{"id":"node2"}}"#, &"x".repeat(5000)] {
            let (status, kind, _) = in_protocol(&node, path, bad).await;
            assert_eq!(kind, "bad_request");
            assert!(status == 400 || status == 413, "{status}: {bad}");
        }
        assert!(node.told.lock().is_empty());
        let stranger = r#"{"client_params":{"id":"a","group":"b"}}"#;
        let (status, kind, value) = in_protocol(&node, path, stranger).await;
        assert_eq!((status, kind.as_str()), (404, "unknown_node"));
        assert!(value.contains("no member named \"a\""), "{value}");
        node.told.lock().clear();
    }
    *node.refusal.lock() = Some(LeaseRefusal::Held(Box::new(held())));
    let (status, kind, value) = in_protocol(&node, "/v1/pre-reboot", CLIENT).await;
    assert_eq!((status, kind.as_str()), (409, "held"));
    assert!(value.starts_with("ops@host holds the stop lease for node2"));
    *node.refusal.lock() = Some(not_safe());
    let (status, kind, _) = in_protocol(&node, "/v1/pre-reboot", CLIENT).await;
    assert_eq!((status, kind.as_str()), (503, "unsafe"));
    *node.refusal.lock() = Some(LeaseRefusal::NotBack("node2 is not back".to_owned()));
    let (status, kind, value) = in_protocol(&node, "/v1/steady-state", CLIENT).await;
    assert_eq!((status, kind.as_str(), value.as_str()), (503, "not_back", "node2 is not back"));
}

/// Everything that is answered on one connection to these bytes.
async fn answered(bytes: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = Listener::bind(Config { addr: "127.0.0.1:0".parse().unwrap() }).await.unwrap();
    let addr = listener.local_addr();
    let router = router(Arc::new(Fake::new()), Arc::new(Metrics::new()));
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = tokio::spawn(listener.serve(router, stop.clone()));
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is reset because not all was read has said what it had to say.
    let _ = stream.read_to_end(&mut answer).await;
    stop.cancel();
    serving.await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_body_ends_where_its_head_says_and_in_chunks_the_connection_ends_with_it() {
    let body = r#"{"node_id":"node2","holder":"h"}"#;
    let post = "POST /admin/stop-lease HTTP/1.1\r\nHost: localhost\r\n";
    let next = "GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let of_length = |body: &str| format!("{post}Content-Length: {}\r\n\r\n{body}", body.len());
    let answers = async |request: String| {
        let text = answered(&format!("{request}{next}")).await;
        let answers = text.split("HTTP/1.1 ").skip(1);
        answers.map(|answer| answer[..3].parse::<u16>().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(answers(of_length(body)).await, [200, 200]);
    let chunked =
        format!("{post}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(answers(chunked).await, [200]);
    // What is too long is not taken for the next request.
    let long = format!("{}{}", " ".repeat(5_000), next.repeat(1_000));
    assert_eq!(answers(of_length(&long)).await, [413]);
}
