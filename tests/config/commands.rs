//! What is shown: `config check|show|default`, the hash, the listeners open to the network.

use std::collections::BTreeMap;
use std::fs;

use aegiskv::config::{KEYS, Loaded, Sources, command};
use serde_json::Value;

use super::{Pair, With, file};

fn flags(pairs: &[(&str, &str)]) -> Sources {
    let flags = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Sources { flags: flags.collect(), ..Sources::default() }
}

#[test]
fn check_says_all_and_exits_with_1() {
    let wrong = command::check(&flags(&[("wal-mode", "none"), ("zone", "a b"), ("max-con", "1")]));
    assert_eq!((wrong.status, wrong.stdout.as_str()), (1, ""));
    assert_eq!(
        wrong.stderr,
        "the configuration has 3 problems\n\
         flag --max-con: unknown key; did you mean max_conns?\n\
         flag --wal-mode: wal_mode: \"none\" does not fit; give one of off, async (also: write), \
         sync (also: fsync)\n\
         flag --zone: holds characters that a name cannot have, or too many; use at most \
         255 letters, digits, dots, hyphens and underscores\n"
    );
    let good = command::check(&flags(&[]));
    assert_eq!((good.status, good.stdout.as_str()), (0, "the configuration is good\n"));
    let open = command::check(&flags(&[("bind-addr", ":7700")]));
    assert_eq!(open.status, 0);
    assert_eq!(open.stdout, "the configuration is good, with 1 warning\n");
    assert_eq!(
        open.stderr,
        "warning: clients on 0.0.0.0:7700 need no token, so whoever reaches it can read and write \
         everything; set auth_token, or listen on 127.0.0.1\n"
    );
}

#[test]
fn default_prints_a_file_that_loads_as_the_defaults() {
    let printed = command::default();
    assert_eq!(printed.status, 0);
    assert!(printed.stdout.starts_with("{\n  \"node_id\": \"\",\n"), "{}", printed.stdout);
    assert!(printed.stdout.contains("\n  \"write_quorum\": \"majority\",\n"));
    assert!(printed.stdout.contains("\n  \"max_conns\": 10000,\n"));
    let object: Value = serde_json::from_str(&printed.stdout).expect("JSON");
    assert_eq!(object.as_object().expect("an object").len(), KEYS.len());

    let loaded = file(&printed.stdout).loaded();
    assert_eq!(loaded.config, file("{}").loaded().config);
    assert_eq!(loaded.warnings, []);
}

#[test]
fn show_gives_each_value_with_its_source() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.json");
    fs::write(&path, r#"{"max_conns": 7, "addrs": ["a:1", "b:2"]}"#).expect("a file");
    let sources = Sources {
        bootstrap: false,
        file: Some(path.clone()),
        environment: vec![("AEGIS_AUTH_TOKEN".into(), "x".repeat(32).into())],
        flags: BTreeMap::from([("data-dir".to_owned(), "/d".to_owned())]),
    };
    let shown = command::show(&sources, true);
    assert_eq!((shown.status, shown.stderr.as_str()), (0, ""));
    let json: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!(json["max_conns"]["value"], 7);
    assert_eq!(json["max_conns"]["source"], path.to_str().expect("UTF-8"));
    assert_eq!(json["max_conns"]["live"], true);
    assert_eq!(json["auth_token"]["value"], "<redacted>");
    assert_eq!(json["auth_token"]["source"], "environment AEGIS_AUTH_TOKEN");
    assert_eq!(json["data_dir"]["source"], "flag --data-dir");
    assert_eq!(json["wal_dir"]["value"], "/d/wal");
    assert_eq!(json["wal_dir"]["source"], "default");
    assert_eq!(json["write_quorum"]["value"], 2);
    assert_eq!(json["gossip_secret"]["value"], "");

    let table = command::show(&sources, false).stdout;
    assert_eq!(table.lines().count(), KEYS.len());
    let line = |key: &str| {
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(key));
        line.expect("each key has a line").split_whitespace().skip(1).collect::<Vec<_>>()
    };
    assert_eq!(line("addrs"), ["a:1,b:2", path.to_str().expect("UTF-8")]);
    assert_eq!(line("data_dir"), ["/d", "flag", "--data-dir"]);
    assert_eq!(line("zone"), ["-", "default"]);

    assert_eq!(command::show(&flags(&[("zone", "a b")]), false).status, 1);
}

#[test]
fn the_hash_tells_configurations_apart_and_stays_the_same() {
    let hash = |text: &str| file(text).loaded().hash();
    let token = |token: &str| hash(&format!(r#"{{"auth_token": {token}}}"#));
    assert_eq!(hash("{}"), hash(r#"{"wal_mode": "write", "wal_dir": "./data/wal"}"#));
    assert_ne!(hash("{}"), hash(r#"{"zone": "a"}"#));
    assert_ne!(token(r#""one""#), token(r#""two""#));
    assert_ne!(token(r#"["ab", "c"]"#), token(r#"["a", "bc"]"#));
    assert!(hash("{}") < 1 << 48);
    // A new key or a new default changes it, and then this number.
    assert_eq!(format!("{:012x}", hash("{}")), "dc61962e5e02");
}

#[test]
fn the_hash_of_named_tokens_is_of_what_they_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let token = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (one, two) = ("1".repeat(40), "2".repeat(40));
    let (a, b) = (token("a", &format!("{one}\n{two}\n")), token("b", &"3".repeat(40)));
    let moved = token("moved", &format!("{two}\n{one}\n"));
    let entry = |name: &str, file: &str, more: &str| {
        format!(r#"{{"name": "{name}", "file": "{file}", {more}}}"#)
    };
    let hash = |entries: &[String]| {
        let loaded = file(&format!(r#"{{"auth_tokens": [{}]}}"#, entries.join(","))).loaded();
        loaded.shared_hash()
    };
    let shop = r#""verbs": ["read", "write"], "prefixes": ["x", "y"], "rate": 5"#;
    let turned = r#""rate": 5, "prefixes": ["y", "x"], "verbs": ["write", "read"]"#;
    let first = hash(&[entry("shop", &a, shop), entry("b", &b, r#""verbs": ["admin"]"#)]);
    let other = hash(&[entry("b", &b, r#""verbs": ["admin"]"#), entry("shop", &moved, turned)]);
    assert_eq!(first, other);
    for differs in [
        r#""verbs": ["read"], "prefixes": ["x", "y"], "rate": 5"#,
        r#""verbs": ["read", "write"], "prefixes": ["x"], "rate": 5"#,
        r#""verbs": ["read", "write"], "prefixes": ["x", "y"], "rate": 6"#,
    ] {
        let entries = [entry("shop", &a, differs), entry("b", &b, r#""verbs": ["admin"]"#)];
        assert_ne!(first, hash(&entries), "{differs}");
    }
    // The same tokens, in each other's place.
    let swapped = [entry("shop", &b, shop), entry("b", &a, r#""verbs": ["admin"]"#)];
    assert_ne!(first, hash(&swapped));
}

#[test]
fn the_shared_hash_leaves_out_what_is_a_nodes_own() {
    let node = |text: &str| file(text).loaded();
    let (one, two) = (
        node(r#"{"node_id": "n1", "bind_addr": "10.0.0.1:7700", "zone": "a"}"#),
        node(r#"{"node_id": "n2", "bind_addr": "10.0.0.2:7700", "zone": "b"}"#),
    );
    assert_eq!(one.shared_hash(), two.shared_hash());
    assert_ne!(one.hash(), two.hash());
    assert_ne!(one.shared_hash(), node(r#"{"max_memory_mb": 1}"#).shared_hash());
}

#[test]
fn listeners_open_to_the_network_are_told() {
    let exposed = |loaded: &Loaded| -> Vec<(&'static str, bool)> {
        let exposures = loaded.config.exposures();
        exposures.iter().map(|exposure| (exposure.listener, exposure.insecure)).collect()
    };
    let open = r#""bind_addr": "0.0.0.0:7700", "gossip_bind_addr": "10.0.0.1:7701",
                  "health_addr": "[::]:7702""#;
    let long = "x".repeat(32);
    assert_eq!(exposed(&file("{}").loaded()), []);
    let all = file(&format!("{{{open}}}")).loaded();
    assert_eq!(exposed(&all), [("client", true), ("peer", true), ("operations", false)]);
    let texts: Vec<_> = all.config.exposures().into_iter().map(|one| one.text).collect();
    assert_eq!(
        texts,
        [
            "clients on 0.0.0.0:7700 need no token, so whoever reaches it can read and write \
             everything; set auth_token, or listen on 127.0.0.1",
            "nodes on 10.0.0.1:7701 are not protected from outsiders on the network; set \
             gossip_secret and tls_enabled, or listen on 127.0.0.1",
            "health and metrics on [::]:7702 are open to all, and without auth_token the admin \
             requests answer to loopback only",
        ]
    );
    let token = file(&format!(r#"{{{open}, "auth_token": "{long}"}}"#)).loaded();
    assert_eq!(exposed(&token), [("peer", true)]);
    let secret =
        file(&format!(r#"{{{open}, "auth_token": "{long}", "gossip_secret": "{long}"}}"#)).loaded();
    assert_eq!(exposed(&secret), [("peer", true)]);
    assert!(secret.config.exposures()[0].text.contains("set tls_enabled, or"));
    let dir = tempfile::tempdir().expect("a directory");
    let pem = dir.path().join("pem");
    let pair = Pair::make();
    fs::write(&pem, pair.certificate + &pair.key).expect("a file");
    let pem = pem.display();
    let closed = file(&format!(
        r#"{{{open}, "auth_token": "{long}", "gossip_secret": "{long}", "tls_enabled": true,
             "tls_cert_file": "{pem}", "tls_key_file": "{pem}"}}"#
    ));
    assert_eq!(exposed(&closed.loaded()), []);
}
