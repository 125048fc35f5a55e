//! Commands of many requests, under a token's rate and rights.

use std::fs;
use std::time::{Duration, Instant};

use crate::program::Call;
use crate::server::Server;

/// A node with a token of `slow`, one operation a second, one of `shop`, for keys that begin with
/// `shop:`, and one for everything.
fn server() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let entry = |name: &str, more: &str| {
        let file = dir.path().join(name);
        fs::write(&file, format!("{name}-{}\n", "x".repeat(40))).expect("it can be written");
        format!(r#"{{"name":"{name}","file":"{}","verbs":["read","write"]{more}}}"#, file.display())
    };
    let entries = [
        entry("slow", r#","rate":1"#),
        entry("shop", r#","prefixes":["shop:"]"#),
        entry("all", ""),
    ];
    let server = Server::start(&["--auth-tokens", &format!("[{}]", entries.join(","))]);
    (server, dir)
}

fn call(server: &Server, dir: &tempfile::TempDir, who: &str, arguments: &[&str]) -> Call {
    let file = dir.path().join(who);
    server.call(arguments).env("AEGISKV_TOKEN_FILE", file.to_str().expect("its path is text"))
}

fn lines(prefix: &str, count: usize) -> String {
    (0..count).map(|n| format!("{{\"key\":\"{prefix}{n}\",\"value\":\"1\"}}\n")).collect()
}

#[test]
fn listings_and_dumps_wait_as_long_as_the_rate_asks_them_to() {
    let (server, dir) = server();
    let input = lines("k", 1500);
    call(&server, &dir, "all", &["import", "--partial"]).input(input).run().done();
    let began = Instant::now();
    let listed = call(&server, &dir, "slow", &["list"]).run().done();
    assert_eq!(listed.text().lines().count(), 1500);
    let dumped = call(&server, &dir, "slow", &["dump"]).run().done();
    assert!(dumped.text().ends_with("{\"dumped_keys\":1500}\n"));
    for outcome in [&listed, &dumped] {
        let said = outcome.stderr.matches("held up").count();
        assert_eq!(said, 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("(429)"), "{}", outcome.stderr);
    }
    // Two pages and three.
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn a_load_is_put_on_the_keys_that_the_token_is_for_or_says_what_it_lacks() {
    let (server, dir) = server();
    let bench = ["bench", "--duration", "200ms", "--warmup", "0s", "--keys", "10"];
    let own = [&bench[..], &["--key-prefix", "shop:load:"]].concat();
    call(&server, &dir, "shop", &own).run().done();
    let refused = call(&server, &dir, "shop", &bench).run();
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("lets this client read no keys"), "{}", refused.stderr);
}

#[test]
fn an_import_that_is_refused_half_way_says_what_is_stored() {
    let (server, dir) = server();
    let input = [lines("shop:", 5), lines("ship:", 1), lines("shop:x", 2)].concat();
    let outcome = call(&server, &dir, "shop", &["import", "--partial"]).input(input.clone()).run();
    assert_eq!(outcome.code, 1);
    for told in ["line 6: ", "(403)", "5 keys are stored, all before line 6", "--from-line 6"] {
        assert!(outcome.stderr.contains(told), "{told} is not in {}", outcome.stderr);
    }
    let arguments = ["import", "--partial", "--from-line", "6"];
    let again = call(&server, &dir, "shop", &arguments).input(input.clone()).run();
    assert!(again.stderr.contains("0 keys are stored, all before line 6"), "{}", again.stderr);
    let rest = call(&server, &dir, "all", &arguments).input(input).run().done();
    assert!(rest.stderr.contains("imported 3 keys"), "{}", rest.stderr);
}

#[test]
fn a_file_that_lacks_keys_is_known_before_any_of_it_is_stored() {
    let server = Server::start(&[]);
    let file = server.dir.path().join("short.ndjson");
    let path = file.to_str().expect("its path is text");
    let texts = [
        format!("{}{{\"dumped_keys\":5}}\n", lines("a", 2)),
        // The first of two that stand one after the other.
        format!("{}{{\"dumped_keys\":5}}\n{}{{\"dumped_keys\":1}}\n", lines("a", 2), lines("b", 1)),
    ];
    for text in &texts {
        fs::write(&file, text).expect("the file can be written");
        let outcome = server.call(&["import", path]).run();
        assert_eq!(outcome.code, 1);
        assert!(outcome.stderr.contains("line 3: there were 5 keys"), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("--partial"), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("--from-line"), "{}", outcome.stderr);
        assert_eq!(server.call(&["list"]).run().done().text(), "", "nothing is stored");
    }
    // What comes by a pipe is stored by then; there is no line to go on from.
    let outcome = server.call(&["import"]).input(texts[0].clone()).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("2 keys are stored"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("--from-line"), "{}", outcome.stderr);
}

#[test]
fn an_import_from_a_line_beyond_the_end_is_a_mistake() {
    let server = Server::start(&[]);
    let text = format!("{}{{\"dumped_keys\":2}}\n", lines("a", 2));
    let outcome = server.call(&["import", "--from-line", "99999"]).input(text.clone()).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("has 3 lines"), "{}", outcome.stderr);
    // The line that says how many there are is one of them.
    server.call(&["import", "--from-line", "3"]).input(text).run().done();
}
