//! Client commands against a running node.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::program::aegiskv;
use crate::server::Server;

fn json(text: &str) -> Json {
    serde_json::from_str(text).expect("the output is JSON")
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_value_comes_back_byte_for_byte() {
    let server = Server::start(&[]);
    let value = b"\x00\xff line\nend".to_vec();
    server.call(&["put", "a//b/../c", "-"]).input(value.clone()).run().done();
    assert_eq!(server.call(&["get", "a//b/../c"]).run().done().stdout, value);
    server.call(&["put", "n", "-5"]).run().done();
    assert_eq!(server.call(&["get", "n"]).run().done().text(), "-5");
    let file = server.dir.path().join("value");
    fs::write(&file, "from a file").expect("written");
    let argument = format!("@{}", file.display());
    server.call(&["put", "f", &argument, "--content-type", "text/plain"]).run().done();
    let shown = json(server.call(&["get", "f", "--json"]).run().done().text());
    assert_eq!(shown["value"], "from a file");
    assert_eq!(shown["content_type"], "text/plain");
}

#[test]
fn an_absent_key_ends_with_code_3() {
    let server = Server::start(&[]);
    let outcome = server.call(&["get", "nobody"]).run();
    assert_eq!((outcome.code, outcome.stdout.len()), (3, 0));
    server.call(&["put", "k", "v"]).run().done();
    server.call(&["del", "k"]).run().done();
    assert_eq!(server.call(&["get", "k"]).run().code, 3);
    server.call(&["del", "k"]).run().done();
}

#[test]
fn a_lock_is_taken_once_and_given_back_by_its_version() {
    let server = Server::start(&[]);
    let take = ["put", "lock", "me", "--if-absent", "--ttl", "30s"];
    let version = server.call(&take).run().done().text().trim().to_owned();
    let again = server.call(&take).run();
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains(&version), "{}", again.stderr);
    assert_eq!(server.call(&["del", "lock", "--if-match", "1"]).run().code, 1);
    server.call(&["del", "lock", "--if-match", &version]).run().done();
    server.call(&take).run().done();
}

#[test]
fn numbers_are_added_up() {
    let server = Server::start(&[]);
    assert_eq!(server.call(&["incr", "n"]).run().done().text(), "1\n");
    assert_eq!(server.call(&["incr", "n", "--by", "-5"]).run().done().text(), "-4\n");
    server.call(&["put", "n", "word"]).run().done();
    let outcome = server.call(&["incr", "n"]).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("(409)"), "{}", outcome.stderr);
}

#[test]
fn listings_go_through_all_pages() {
    let server = Server::start(&[]);
    let puts: String = (0..2500)
        .map(|n| format!("{{\"op\":\"put\",\"key\":\"p/{n}\",\"value\":\"{n}\"}}\n"))
        .collect();
    let results = server.call(&["batch"]).input(puts).run().done();
    assert_eq!(results.text().lines().count(), 2500);
    server.call(&["put", "other", "x"]).run().done();
    let keys = server.call(&["list", "--prefix", "p/"]).run().done();
    assert_eq!(lines(keys.text()), (0..2500).map(|n| format!("p/{n}")).collect());
    let some = server.call(&["list", "--prefix", "p/", "--limit", "1200"]).run().done();
    assert_eq!(lines(some.text()).len(), 1200);
    let values = server.call(&["list", "--prefix", "p/7", "--values", "--limit", "1"]).run().done();
    let (key, value) = values.text().trim().split_once('\t').expect("key and value");
    assert_eq!(key.strip_prefix("p/"), Some(value));
    let counted = server.call(&["del", "--prefix", "p/", "--dry-run"]).run().done();
    assert_eq!(counted.text(), "2500\n");
    server.call(&["del", "--prefix", "p/"]).run().done();
    assert_eq!(server.call(&["list"]).run().done().text(), "other\n");
}

#[test]
fn a_batch_with_a_failure_ends_with_code_1() {
    let server = Server::start(&[]);
    let ops = "{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\n{\"op\":\"get\",\"key\":\"none\"}\n";
    server.call(&["batch"]).input(ops).run().done();
    let ops = "{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\",\"if_none_match\":\"*\"}\n";
    let outcome = server.call(&["batch"]).input(ops).run();
    assert_eq!(outcome.code, 1);
    assert_eq!(json(outcome.text())["status"], 412);
}

#[test]
fn what_was_dumped_is_imported_the_same() {
    let server = Server::start(&[]);
    let ops = "{\"op\":\"put\",\"key\":\"text\",\"value\":\"grün\",\"content_type\":\"text/plain\"}\n\
        {\"op\":\"put\",\"key_base64\":\"/w==\",\"value_base64\":\"AP4=\"}\n\
        {\"op\":\"put\",\"key\":\"gone soon\",\"value\":\"\",\"ttl\":\"1h\"}\n";
    server.call(&["batch"]).input(ops).run().done();
    let large = "x".repeat(3_000_000);
    server.call(&["put", "large", "-"]).input(large.clone()).run().done();
    let file = server.dir.path().join("dump.ndjson");
    let file = file.to_str().expect("its path is text");
    server.call(&["dump", file]).run().done();
    assert_eq!(server.call(&["dump", file]).run().code, 1, "a dump overwrites nothing");

    let other = Server::start(&[]);
    let outcome = other.call(&["import", file]).run().done();
    assert!(outcome.stderr.contains("imported 4 keys"), "{}", outcome.stderr);
    assert_eq!(other.call(&["get", "large"]).run().done().text(), large);
    let without_versions = |server: &Server| -> BTreeSet<String> {
        let dump = server.call(&["dump"]).run().done();
        let strip = |line: &str| {
            let mut entry = json(line);
            entry["version"] = Json::Null;
            entry["ttl_ms"] = entry["ttl_ms"].as_u64().map_or(Json::Null, |ms| {
                assert!((3_500_000..=3_600_000).contains(&ms), "{ms} of an hour are left");
                Json::from("an hour")
            });
            entry.to_string()
        };
        let lines = dump.text().trim_end().rsplit_once('\n');
        let (entries, end) = lines.expect("a dump has more than a line");
        assert_eq!(end, "{\"dumped_keys\":4}");
        entries.lines().map(strip).collect()
    };
    assert_eq!(without_versions(&server), without_versions(&other));
}

#[test]
fn an_import_names_the_line_at_fault_and_where_to_go_on() {
    let server = Server::start(&[]);
    let input = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n{\"key\":}\n";
    let outcome = server.call(&["import"]).input(input).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("line 3: "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--from-line 3"), "{}", outcome.stderr);
    assert_eq!(lines(server.call(&["list"]).run().done().text()).len(), 2);

    let long = format!("{{\"key\":\"{}\",\"value\":\"1\"}}\n", "k".repeat(2000));
    let outcome = server.call(&["import"]).input(format!("\n{long}")).run();
    assert!(outcome.stderr.contains("line 2: "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("(413)"), "{}", outcome.stderr);

    let input = "rubbish\n{\"key\":\"c\",\"value\":\"3\"}\n";
    server.call(&["import", "--partial", "--from-line", "2"]).input(input).run().done();
    assert_eq!(server.call(&["get", "c"]).run().done().text(), "3");
}

#[test]
fn a_part_of_a_dump_is_not_imported_for_the_whole() {
    let server = Server::start(&[]);
    let file = server.dir.path().join("part.ndjson");
    let path = file.to_str().expect("its path is text");
    let part = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n";
    for text in ["", part] {
        fs::write(&file, text).expect("the file can be written");
        let outcome = server.call(&["import", path]).run();
        assert_eq!(outcome.code, 1);
        assert!(outcome.stderr.contains("part of a dump"), "{}", outcome.stderr);
        assert_eq!(server.call(&["list"]).run().done().text(), "", "nothing is stored");
    }
    // What comes by a pipe is stored by the time that its end is seen.
    let outcome = server.call(&["import"]).input(part).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("part of a dump"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("2 keys are stored"), "{}", outcome.stderr);
    let outcome = server.call(&["import", "--partial", path]).run().done();
    assert!(outcome.stderr.contains("imported 2 keys"), "{}", outcome.stderr);
}

#[test]
fn a_missing_or_wrong_token_is_told_from_where_tokens_come() {
    let server = Server::start(&["--auth-token", "right"]);
    for call in [server.call(&["get", "k"]), server.call(&["get", "k", "--token", "wrong"])] {
        let outcome = call.run();
        assert_eq!(outcome.code, 1);
        assert!(outcome.stderr.contains("auth_token"), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("wrong"), "{}", outcome.stderr);
    }
    assert_eq!(server.call(&["get", "k", "--token", "right"]).run().code, 3);
    assert_eq!(server.call(&["--token", "right", "get", "k"]).run().code, 3);
    let file = server.dir.path().join("token");
    fs::write(&file, "right\n").expect("written");
    let file = file.to_str().expect("its path is text");
    let call = server.call(&["get", "k", "--token-file", file]).env("AEGISKV_TOKEN", "wrong");
    assert_eq!(call.run().code, 3, "what was typed outranks the environment");
}

#[test]
fn tls_works_with_issued_certificates_and_explains_itself_without() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().to_str().expect("its path is text");
    aegiskv(&["certs", "init", "--dir", at]).run().done();
    aegiskv(&["certs", "issue", "kv1", "--dir", at, "--san", "127.0.0.1"]).run().done();
    let path = |name: &str| format!("{at}/{name}");
    let server = Server::start(&[
        "--tls-enabled",
        "--tls-cert-file",
        &path("kv1.crt"),
        "--tls-key-file",
        &path("kv1.key"),
        "--tls-ca-file",
        &path("ca.crt"),
        "--tls-client-auth",
        "required",
    ]);
    let (ca, cert, key) = (path("ca.crt"), path("kv1.crt"), path("kv1.key"));
    let whole = ["--ca", &ca, "--cert", &cert, "--key", &key];
    server.call(&[&["put", "k", "v"], &whole[..]].concat()).run().done();
    assert_eq!(server.call(&[&["get", "k"], &whole[..]].concat()).run().done().text(), "v");
    let bench =
        ["bench", "--clients", "2", "--duration", "200ms", "--warmup", "0s", "--keys", "10"];
    server.call(&[&bench[..], &whole[..]].concat()).run().done();

    let without_ca = server.call(&["get", "k", "--addr", &format!("https://{}", server.addr)]);
    let outcome = without_ca.run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("--ca"), "{}", outcome.stderr);
    let outcome = server.call(&["get", "k", "--ca", &ca]).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("--cert"), "{}", outcome.stderr);
    let outcome = server.call(&["get", "k"]).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("tls_enabled"), "{}", outcome.stderr);
}

#[test]
fn a_system_without_certificates_is_good_enough_for_plain_http() {
    let server = Server::start(&[]);
    let nothing = tempfile::tempdir().expect("a directory");
    let bare = |arguments: &[&str]| {
        let dir = nothing.path().to_str().expect("its path is text");
        server.call(arguments).env("SSL_CERT_DIR", dir).env("SSL_CERT_FILE", "")
    };
    bare(&["put", "k", "v"]).run().done();
    bare(&["status"]).run().done();
    let outcome = bare(&["get", "k", "--addr", &format!("https://{}", server.addr)]).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("--ca"), "{}", outcome.stderr);
}

#[test]
fn status_shows_the_node_and_its_shards() {
    let server = Server::start(&["--node-id", "kv1", "--num-shards", "16"]);
    let table = server.call(&["status"]).run().done();
    assert!(table.text().contains("kv1"), "{}", table.text());
    assert!(table.text().contains("alive"), "{}", table.text());
    let cluster = json(server.call(&["status", "--json"]).run().done().text());
    assert_eq!(cluster["members"][0]["node_id"], "kv1");
    assert_eq!(cluster["shards"]["total"], 16);
}

#[test]
fn a_single_node_can_be_drained_but_not_removed() {
    let server = Server::start(&["--node-id", "kv1"]);
    for command in ["decommission", "remove"] {
        let outcome = server.call(&["node", command, "kv1"]).run();
        assert_eq!(outcome.code, 1);
        assert!(outcome.stderr.contains("only member"), "{}", outcome.stderr);
    }
    let outcome = server.call(&["node", "recommission", "kv1"]).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("is not being decommissioned"), "{}", outcome.stderr);
    server.call(&["node", "drain"]).run().done();
    let outcome = server.call(&["put", "k", "v"]).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("(503)"), "{}", outcome.stderr);
}

#[test]
fn load_is_put_on_and_measured() {
    let server = Server::start(&[]);
    let small = ["--clients", "4", "--duration", "500ms", "--warmup", "100ms", "--keys", "100"];
    let closed = server.call(&[&["bench", "--json"], &small[..]].concat()).run().done();
    let report = json(closed.text());
    for op in ["get", "put"] {
        assert!(report["operations"][op]["count"].as_u64() > Some(0), "{report}");
        assert_eq!(report["operations"][op]["errors"], 0, "{report}");
    }
    assert_eq!(report["operations"]["get"]["misses"], 0, "every key was loaded: {report}");
    let open = server.call(&[&["bench", "--rate", "200"], &small[..]].concat()).run().done();
    assert!(open.text().contains("200 a second due"), "{}", open.text());
    assert!(open.text().contains("P99.9"), "{}", open.text());
}

#[test]
fn the_log_of_a_killed_node_is_sound_and_names_its_keys() {
    let server = Server::start(&["--wal-mode", "sync"]);
    server.call(&["put", "user:1", "secret value"]).run().done();
    let dir = server.kill();
    let data = dir.path().join("data");
    let data = data.to_str().expect("its path is text");
    let verified = aegiskv(&["wal", "verify", data]).run().done();
    assert!(verified.text().contains("the log is sound"), "{}", verified.text());
    let inspected = aegiskv(&["wal", "inspect", data]).run().done();
    assert!(inspected.text().contains("\"user:1\""), "{}", inspected.text());
    assert!(inspected.text().contains("put of 12 bytes"), "{}", inspected.text());
    assert!(!inspected.text().contains("secret"), "{}", inspected.text());
}

#[test]
fn a_log_whose_snapshot_is_gone_or_damaged_is_not_sound() {
    type Lose = fn(&Path);
    let losses: [(&str, Lose); 4] = [
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("emptied", |path| fs::write(path, "").unwrap()),
        ("halved", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("flipped", |path| {
            let mut bytes = fs::read(path).unwrap();
            let at = bytes.windows(5).position(|window| window == b"value").unwrap();
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
    ];
    let server = Server::start(&["--wal-mode", "sync"]);
    server.call(&["put", "user:1", "value"]).run().done();
    let dir = server.stop();
    let data = dir.path().join("data");
    let is_snapshot = |path: &PathBuf| path.to_string_lossy().contains("snapshot-");
    let mut paths = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path());
    let snapshot = paths.find(is_snapshot).expect("a stop in order writes one");
    let bytes = fs::read(&snapshot).unwrap();
    let verify = || aegiskv(&["wal", "verify", data.to_str().unwrap()]).run();
    assert!(verify().done().text().contains("the log is sound"));
    for (what, lose) in losses {
        lose(&snapshot);
        let outcome = verify();
        assert_eq!(outcome.code, 1, "{what}: {}", outcome.text());
        assert!(!outcome.text().contains("is sound"), "{what}: {}", outcome.text());
        let named = if what == "gone" { "records are missing" } else { "snapshot-" };
        assert!(outcome.text().contains(named), "{what}: {}", outcome.text());
        fs::write(&snapshot, &bytes).unwrap();
    }
    verify().done();
}
