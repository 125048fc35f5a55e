//! What is wrong is told at once, with the words that mend it.

use std::fs;

use aegiskv::config::Inputs;
use serde_json::json;

use super::{Pair, With, file, warnings};

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let inputs = file(
        r#"{
            "wal_mdoe": "sync",
            "bind_addr": "0.0.0.0",
            "addrs": ["10.0.1.10:7701", "10.0.1.11"],
            "num_shards": 5000,
            "replication_factor": 3,
            "write_quorum": 4,
            "eviction_ratio": 1.5,
            "read_timeout": "soon",
            "suspect_timeout": "10s",
            "dead_timeout": "5s",
            "max_key_bytes": 70000,
            "tls_client_auth": "required",
            "log_level": "loud",
            "auth_token": 12345678
        }"#,
    )
    .with_variable("AEGIS_REGION_INDEX", "8")
    .with_variable("AEGIS_TLS_ENABLED", "maybe")
    .with_flag("max-conns", "many")
    .with_flag("colour", "red");
    assert_eq!(
        inputs.problems(),
        [
            "test.json: wal_mdoe: unknown key; did you mean wal_mode?",
            "flag --colour: unknown key; `aegiskv config default` prints every key",
            "test.json: bind_addr: \"0.0.0.0\" does not fit; give an address to listen on, \
             host:port, like 127.0.0.1:7700",
            "test.json: addrs: a list with \"10.0.1.11\" does not fit; give a list of addresses \
             that this node can reach, each host:port, like 10.0.1.10:7701",
            "flag --max-conns: max_conns: \"many\" does not fit; give a whole number",
            "test.json: read_timeout: \"soon\" does not fit; give a duration like 30s, 500ms or \
             1m30s, or a number of seconds",
            "test.json: max_key_bytes: 70000 is out of range; give 1 to 65535",
            "test.json: num_shards: 5000 is out of range; give 1 to 4096",
            "test.json: auth_token: a number does not fit; give a string or a list of strings",
            "environment AEGIS_TLS_ENABLED: tls_enabled: \"maybe\" does not fit; give true or \
             false",
            "environment AEGIS_REGION_INDEX: region_index: 8 is out of range; give 0 to 7",
            "test.json: eviction_ratio: 1.5 is out of range; give a number above 0 and at most 1",
            "test.json: write_quorum: 4 is above replication_factor (3); give at most 3, or -1 \
             for all copies",
            "test.json: dead_timeout: 5s is not above suspect_timeout (10s); give more than \
             suspect_timeout",
            "test.json: tls_client_auth: is required, but tls_ca_file is not set; name the CA's \
             PEM file in tls_ca_file",
            "test.json: log_level: \"loud\" is no level; give trace, debug, info, warn, error or \
             off, as in info,aegiskv::wal=debug",
        ]
    );
}

#[test]
fn a_file_that_is_not_json_is_named_with_line_and_column() {
    let trailing = file("{\n  \"zone\": \"a\",\n}");
    assert_eq!(
        trailing.problems(),
        ["test.json: line 3, column 1: not JSON: trailing comma; correct the file there"]
    );
    assert_eq!(
        file("").problems(),
        [
            "test.json: line 1, column 1: not JSON: EOF while parsing a value; correct the file there"
        ]
    );
    assert_eq!(
        file("\"hush\"").problems(),
        ["test.json: line 1, column 6: the file holds no object; put all keys inside { and }"]
    );
    let position = trailing.evaluate().expect_err("wrong").0[0].position;
    assert_eq!(position, Some((3, 1)));
}

#[test]
fn a_key_that_stands_twice_is_told() {
    assert_eq!(
        file(r#"{"wal_mode": "sync", "wal_mode": "off"}"#).problems(),
        ["test.json: wal_mode: stands there twice; keep one of them"]
    );
    let seeds = file("{}").with_variable("AEGIS_SEEDS", "a:1").with_variable("AEGIS_ADDRS", "b:1");
    assert_eq!(
        seeds.problems(),
        ["environment AEGIS_ADDRS: addrs: is given twice, under two names; keep one of them"]
    );
}

#[test]
fn an_unknown_key_gets_the_nearest_known_one() {
    let offered = |key: &str| file(&format!("{{\"{key}\": 1}}")).problems()[0].clone();
    assert_eq!(offered("maxconns"), "test.json: maxconns: unknown key; did you mean max_conns?");
    assert_eq!(offered("Zone"), "test.json: Zone: unknown key; did you mean zone?");
    assert_eq!(offered("seedz"), "test.json: seedz: unknown key; did you mean addrs?");
    assert_eq!(
        offered("password"),
        "test.json: password: unknown key; `aegiskv config default` prints every key"
    );
    assert_eq!(
        file("{}").with_variable("AEGIS_WAL_MODDE", "sync").problems(),
        ["environment AEGIS_WAL_MODDE: unknown key; did you mean wal_mode?"]
    );
}

#[test]
fn numbers_outside_their_range_are_told_with_the_range() {
    let told = |text: &str| file(text).problems().join("\n");
    assert_eq!(
        told(r#"{"num_shards": 0}"#),
        "test.json: num_shards: 0 is out of range; give 1 to 4096"
    );
    assert_eq!(
        told(r#"{"max_conns": -1}"#),
        "test.json: max_conns: -1 is out of range; give 1 to 10000000"
    );
    assert_eq!(
        told(r#"{"max_conns": 18446744073709551615}"#),
        "test.json: max_conns: 18446744073709551615 is out of range; give 1 to 10000000"
    );
    assert_eq!(
        told(r#"{"max_conns": 1.5}"#),
        "test.json: max_conns: 1.5 does not fit; give a whole number"
    );
    assert_eq!(
        told(r#"{"max_conns": "10000"}"#),
        "test.json: max_conns: \"10000\" does not fit; give a whole number"
    );
    assert_eq!(
        told(r#"{"read_timeout": "1ms"}"#),
        "test.json: read_timeout: \"1ms\" is out of range; give 10ms to 1h"
    );
    assert_eq!(
        told(r#"{"eviction_ratio": 0}"#),
        "test.json: eviction_ratio: 0 is out of range; give a number above 0 and at most 1"
    );
    assert_eq!(
        told(r#"{"write_quorum": -2}"#),
        "test.json: write_quorum: -2 is out of range; give -1 to 15"
    );
    assert_eq!(
        told(r#"{"read_quorum": 0}"#),
        "test.json: read_quorum: 0 asks no copy; give 1 or more, or -1 for all copies"
    );
    assert_eq!(
        told(r#"{"wal_mode": "maybe"}"#),
        "test.json: wal_mode: \"maybe\" does not fit; give one of off, async (also: write), sync \
         (also: fsync)"
    );
}

#[test]
fn listeners_on_one_port_clash() {
    assert_eq!(
        file(r#"{"bind_addr": "0.0.0.0:7702", "gossip_bind_addr": "10.0.0.1:7702"}"#).problems(),
        [
            "test.json: gossip_bind_addr: 10.0.0.1:7702 is taken by bind_addr (0.0.0.0:7702); \
             give each listener a port of its own",
            "default: health_addr: 127.0.0.1:7702 is taken by bind_addr (0.0.0.0:7702); give each \
             listener a port of its own",
        ]
    );
    // Port 0 is the system's choice, and two addresses of one machine do not meet.
    file(r#"{"bind_addr": "127.0.0.1:0", "health_addr": "127.0.0.1:0"}"#).loaded();
    file(r#"{"bind_addr": "10.0.0.1:7700", "health_addr": "10.0.0.2:7700"}"#).loaded();
}

#[test]
fn tls_needs_its_files() {
    assert_eq!(
        file(r#"{"tls_enabled": true, "tls_cert_file": "/nonexistent/c"}"#).problems(),
        [
            "test.json: tls_cert_file: /nonexistent/c cannot be read: No such file or directory \
             (os error 2); name a file that this user can read",
            "default: tls_key_file: is not set, but tls_enabled is true; name the PEM file",
        ]
    );
    assert_eq!(
        file(r#"{"tls_client_auth": "required"}"#).problems(),
        [
            "test.json: tls_client_auth: is required, but tls_enabled is false; set tls_enabled \
             to true",
            "test.json: tls_client_auth: is required, but tls_ca_file is not set; name the CA's \
             PEM file in tls_ca_file",
        ]
    );
}

#[test]
fn tls_files_must_hold_what_they_are_named_for_and_belong_together() {
    let dir = tempfile::tempdir().expect("a directory");
    let (one, other) = (Pair::make(), Pair::make());
    let name = |name: &str| dir.path().join(name).display().to_string();
    for (file, text) in [("1.crt", &one.certificate), ("1.key", &one.key), ("2.key", &other.key)] {
        fs::write(name(file), text).expect("a file");
    }
    fs::write(name("notes"), "-----BEGIN hush\nhush").expect("a file");
    let odd = "-----BEGIN CERTIFICATE-----\naHVzaA==\n-----END CERTIFICATE-----\n";
    fs::write(name("odd.crt"), odd).expect("a file");
    let tls = |certificate: &str, key: &str, ca: &str| {
        file(r#"{"tls_enabled": true}"#)
            .with_flag("tls-cert-file", &name(certificate))
            .with_flag("tls-key-file", &name(key))
            .with_flag("tls-ca-file", &name(ca))
    };
    let told = |inputs: Inputs| {
        inputs.problems().join("\n").replace(dir.path().to_str().expect("UTF-8"), "DIR")
    };
    tls("1.crt", "1.key", "1.crt").loaded();
    assert_eq!(
        told(tls("1.crt", "2.key", "1.crt")),
        "flag --tls-key-file: tls_key_file: does not belong to the certificate in tls_cert_file; \
         name the key that the certificate was made for"
    );
    assert_eq!(
        told(tls("odd.crt", "1.key", "1.crt")),
        "flag --tls-cert-file: tls_cert_file: begins with a certificate that TLS cannot use, such \
         as one of X.509 version 1; make one of version 3 with its host names as subjectAltName; \
         `aegiskv certs` does"
    );
    assert_eq!(
        told(tls("1.key", "1.crt", "notes")),
        "flag --tls-cert-file: tls_cert_file: DIR/1.key holds no certificate in PEM; name a file \
         that begins with -----BEGIN CERTIFICATE-----\n\
         flag --tls-key-file: tls_key_file: DIR/1.crt holds no private key in PEM; name a file \
         with an unencrypted PKCS#8, SEC1 or PKCS#1 key\n\
         flag --tls-ca-file: tls_ca_file: DIR/notes holds no certificate in PEM; name a file that \
         begins with -----BEGIN CERTIFICATE-----"
    );
}

#[test]
fn a_secret_and_its_file_at_once_are_a_problem() {
    assert_eq!(
        file(r#"{"auth_token": "hush", "auth_token_file": "/etc/token"}"#).problems(),
        ["test.json: auth_token_file: is given, and so is auth_token (by test.json); keep one; \
             null unsets a key"]
    );
}

#[test]
fn a_file_of_secrets_is_read_carefully() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    let told = || {
        let inputs = file("{}").with_flag("gossip-secret-file", path.to_str().expect("UTF-8"));
        inputs.problems().join("\n").replace(dir.path().to_str().expect("UTF-8"), "DIR")
    };
    let problem = |what: &str| format!("flag --gossip-secret-file: gossip_secret_file: {what}");
    assert_eq!(
        told(),
        problem(
            "DIR/secret cannot be read: No such file or directory (os error 2); name a file that \
             this user can read"
        )
    );
    fs::write(&path, "\n\n").expect("a file");
    assert_eq!(told(), problem("DIR/secret holds no secret; write one secret a line"));
    fs::write(&path, b"hush\xff").expect("a file");
    assert_eq!(told(), problem("DIR/secret is not UTF-8 text; write one secret a line"));
    fs::write(&path, "x".repeat(70_000)).expect("a file");
    assert_eq!(
        told(),
        problem(
            "DIR/secret cannot be read: larger than 65536 bytes; name a file that this user can \
             read"
        )
    );
    fs::remove_file(&path).expect("it was there");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    assert_eq!(
        told(),
        problem(
            "DIR/secret cannot be read: not a regular file; name a file that this user can read"
        )
    );
}

#[test]
fn no_error_and_no_print_gives_a_secret_away() {
    let secret = "hush-hush-hush-hush-hush-hush-hush-hush";
    let wrong = [
        format!(r#"{{"auth_token": {{"{secret}": "{secret}"}}}}"#),
        format!(r#"{{"auth_token": ["ok", ["{secret}"]]}}"#),
        format!(r#"{{"auth_token": "a {secret}"}}"#),
        format!(r#"{{"auth_token": "{secret}", "auth_token_file": "/x"}}"#),
        format!(r#"{{"gossip_secret": ["", "{secret}"]}}"#),
        format!("\"{secret}\""),
        format!("{{\"auth_token\": \"{secret}\n\"}}"),
    ];
    for text in wrong {
        let problems = file(&text).evaluate().expect_err(&text);
        let shown = format!("{problems} {problems:?}");
        assert!(!shown.contains("hush"), "{shown}");
    }
    let text = format!(r#"{{"auth_token": "{secret}", "gossip_secret": ["{secret}"]}}"#);
    let loaded = file(&text).loaded();
    let shown = format!(
        "{loaded:?} {} {}",
        serde_json::to_string(&loaded.explain()).expect("JSON"),
        loaded.explain().table()
    );
    assert!(!shown.contains("hush"), "{shown}");
    assert!(shown.contains("<redacted>"), "{shown}");
}

#[test]
fn a_token_must_fit_in_a_header() {
    assert_eq!(
        file(r#"{"auth_token": "a token with spaces, thirty-two long"}"#).problems(),
        ["test.json: auth_token: holds a space or another character that an HTTP header cannot \
             carry; use letters, digits and ASCII punctuation"]
    );
    assert_eq!(
        file(r#"{"auth_token": "<redacted>"}"#).problems(),
        ["test.json: auth_token: is the text that stands for a secret where it is not shown; \
             give the secret itself"]
    );
}

#[test]
fn warnings_stop_nothing() {
    let loaded = file(
        r#"{"auth_token": "short", "cross_dc_replication": true, "max_memory_mb": 1,
            "replication_factor": 1}"#,
    )
    .with_variable("AEGIS_GOSSIP_SECRET", "")
    .loaded();
    assert_eq!(
        warnings(&loaded),
        [
            "environment AEGIS_GOSSIP_SECRET: gossip_secret: is empty; give it, or unset the \
             variable or the flag",
            "default: max_value_bytes: 8388608 bytes are more than max_memory_mb allows in all; \
             raise max_memory_mb, or lower this",
            "test.json: auth_token: is shorter than 32 characters; make a long one with \
             `aegiskv token`",
            "test.json: cross_dc_replication: is on, but cross_dc_seeds names no other cluster; \
             name nodes of the other clusters",
        ]
    );
    assert_eq!(loaded.config.write_copies(), 1);
}

#[test]
fn an_empty_secret_is_warned_of_wherever_it_stands() {
    let loaded = file(r#"{"auth_token": "", "gossip_secret": null}"#)
        .with_variable("AEGIS_AUTH_TOKEN_FILE", "")
        .with_flag("gossip-secret", "")
        .loaded();
    assert_eq!(
        warnings(&loaded),
        [
            "test.json: auth_token: is empty; give it, or remove the key; null unsets it",
            "environment AEGIS_AUTH_TOKEN_FILE: auth_token_file: is empty; give it, or unset the \
             variable or the flag",
            "flag --gossip-secret: gossip_secret: is empty; give it, or unset the variable or the \
             flag",
        ]
    );
    assert_eq!(file(r#"{"auth_token_file": "", "auth_token": []}"#).loaded().warnings, []);
}

#[test]
fn a_byte_order_mark_is_named() {
    assert_eq!(
        file("\u{feff}{}").problems(),
        ["test.json: line 1, column 1: begins with a byte-order mark; save it as UTF-8 without \
            one (no BOM)"]
    );
    for mark in [[0xff, 0xfe], [0xfe, 0xff]] {
        let mut inputs = file("");
        inputs.documents[0].text = [&mark[..], b"{\0}\0"].concat();
        let said = "test.json: line 1, column 1: is UTF-16; save it as UTF-8";
        assert_eq!(inputs.problems(), [said]);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    fs::write(&path, "\u{feff}a-secret-of-more-than-32-characters").expect("a file");
    for key in ["auth-token-file", "gossip-secret-file"] {
        let inputs = file("{}").with_flag(key, path.to_str().expect("UTF-8"));
        let problems = inputs.problems();
        assert!(problems[0].contains("begins with a byte-order mark"), "{problems:?}");
    }
}

#[test]
fn names_of_hosts_and_pages_are_checked() {
    assert_eq!(
        file(r#"{"allowed_hosts": ["kv.example:7700"], "allowed_origins": ["app.example"]}"#)
            .problems(),
        [
            "test.json: allowed_hosts: \"kv.example:7700\" is no host's name; give names without \
             scheme and port, like kv.example.com",
            "test.json: allowed_origins: \"app.example\" is no origin; give scheme, host and port \
             without a path, like https://app.example.com",
        ]
    );
    for (key, bad) in [
        ("allowed_hosts", r#"["https://a"]"#),
        ("allowed_hosts", r#"[""]"#),
        ("allowed_hosts", r#"["*.a"]"#),
        ("allowed_hosts", r#"["a", 5]"#),
        ("allowed_hosts", r#""a""#),
        ("allowed_origins", r#"["https://a/"]"#),
        ("allowed_origins", r#"["https://"]"#),
        ("allowed_origins", r#"["https://a b"]"#),
    ] {
        let problems = file(&format!(r#"{{"{key}": {bad}}}"#)).problems();
        assert!(problems.len() == 1 && problems[0].contains(key), "{bad}: {problems:?}");
    }
    let good = r#"{"allowed_hosts": ["*", ".svc.local", "a_b-c.d"],
                   "allowed_origins": ["*", "null", "https://a:1", "chrome-extension://abc"]}"#;
    assert_eq!(file(good).loaded().warnings, []);
    let listed = file("{}").with_variable("AEGIS_ALLOWED_HOSTS", "a, .b").loaded().config;
    assert_eq!(listed.allowed_hosts, ["a", ".b"]);
}

#[test]
fn names_are_kept_plain() {
    assert_eq!(
        file(r#"{"node_id": "node 1"}"#).problems(),
        ["test.json: node_id: holds characters that a name cannot have, or too many; use at \
             most 255 letters, digits, dots, hyphens and underscores"]
    );
    let mut nameless = file("{}");
    nameless.host_name.clear();
    assert_eq!(
        nameless.problems(),
        ["default: node_id: is empty, and the machine's host name could not be read; give the \
             node a name"]
    );
}

#[test]
fn a_token_in_the_wrong_place_is_not_repeated() {
    const SECRET: &str = "hushhushhushhushhushhushhushhush";
    for settings in [
        json!({"auth_tokens": SECRET}),
        json!({"auth_tokens": [SECRET]}),
        json!({"auth_tokens": {"shop": SECRET}}),
        json!({"auth_tokens": [{"name": {"a": SECRET}, "file": "f", "verbs": []}]}),
        json!({"auth_tokens": [{"name": "x", "file": SECRET, "verbs": ["read"]}]}),
        json!({"auth_tokens": [{"name": "x", "file": [SECRET], "verbs": ["read"]}]}),
        json!({"auth_tokens": [{"name": "x", "file": "f", "verbs": [SECRET]}]}),
        json!({"auth_tokens": [{"name": "x", "file": "f", "verbs": SECRET}]}),
        json!({"auth_tokens": [{"name": "x", "file": "f", "verbs": ["read"], "rate": SECRET}]}),
        json!({"auth_tokens": [{"name": "x", "file": "f", "verbs": ["read"], "prefixes": SECRET}]}),
        json!({"auth_tokens": [{"name": "x", "file": "f", "verbs": ["read"], SECRET: "x"}]}),
        json!({"auth_token_file": SECRET}),
        json!({"gossip_secret_file": SECRET}),
    ] {
        let problems = file(&settings.to_string()).problems();
        assert!(!problems.is_empty(), "{settings}");
        assert!(!problems.concat().contains(SECRET), "{problems:?}");
    }
    let problems = file("{}").with_variable("AEGIS_AUTH_TOKENS", SECRET).problems();
    assert!(!problems.is_empty() && !problems.concat().contains(SECRET), "{problems:?}");
}

#[test]
fn named_tokens_are_checked_one_by_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let token = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (long, other) = ("l".repeat(40), "o".repeat(40));
    let (a, b, spaced) = (token("a", &long), token("b", &other), token("c", "with space"));
    let problems = |tokens: &str| file(&format!(r#"{{"auth_tokens": {tokens}}}"#)).problems();
    let expects = "give a list of objects, each with name, file and verbs (of read, write, admin, \
                   metrics), and if wanted prefixes and rate";
    for (given, what) in [
        (r#"{"name": "x"}"#, "an object does not fit"),
        (r#"["x"]"#, "its entry 1 does not fit: it is no object"),
        (r#"[{"name": "x", "verbs": ["read"]}]"#, "its entry 1 does not fit: it has no file"),
        (
            r#"[{"name": "x", "file": "f", "verbs": ["reed"]}]"#,
            "its entry 1 does not fit: its verbs are no list of read, write, admin, metrics",
        ),
        (
            r#"[{"name": "x", "file": "f", "verbs": [], "token": "t"}]"#,
            "its entry 1 does not fit: it has a field that is none of name, file, verbs, prefixes, \
             rate",
        ),
        (
            r#"[{"name": "x", "file": "f", "verbs": ["read"], "prefixes": []}]"#,
            "its entry 1 does not fit: its prefixes are an empty list; leave them out if it is for \
             all keys",
        ),
    ] {
        assert_eq!(problems(given), [format!("test.json: auth_tokens: {what}; {expects}")]);
    }
    assert_eq!(
        problems(r#"[{"name": "x", "file": "/nonexistent/x", "verbs": ["read"]}]"#),
        ["test.json: auth_tokens: the file of x: /nonexistent/x cannot be read: No such file or \
          directory (os error 2); name a file that this user can read"]
    );
    let faulty = format!(
        r#"[{{"name": "shop", "file": "{a}", "verbs": ["read"], "prefixes": [""]}},
            {{"name": "shop", "file": "{b}", "verbs": []}},
            {{"name": "a b", "file": "{a}", "verbs": ["admin"]}},
            {{"name": "auth_token", "file": "{spaced}", "verbs": ["metrics"]}}]"#
    );
    assert_eq!(
        problems(&faulty),
        [
            format!(
                "the file of auth_token ({spaced}) holds a space or another character that an HTTP \
                 header cannot carry; use letters, digits and ASCII punctuation"
            )
            .as_str(),
            "shop has an empty prefix; leave prefixes out if it is for all keys",
            "shop is taken already; give each token a name of its own",
            "shop has no verbs, so it is for nothing; give it some of read, write, admin, metrics",
            "\"a b\" is no name for a token; use 1 to 64 letters, digits, dots, hyphens and \
             underscores",
            "a b has a token that stands elsewhere as well; give each name a token of its own, \
             made with `aegiskv token`",
            "auth_token is taken already; give each token a name of its own",
        ]
        .map(|what| format!("test.json: auth_tokens: {what}"))
    );
    let short = token("d", "short");
    let sound = format!(
        r#"[{{"name": "shop", "file": "{short}", "verbs": ["read", "admin"], "rate": 5}}]"#
    );
    let loaded = file("{}").with_variable("AEGIS_AUTH_TOKENS", &sound).loaded();
    assert_eq!(
        warnings(&loaded),
        [
            "environment AEGIS_AUTH_TOKENS: auth_tokens: that of shop is shorter than 32 characters; \
          make a long one with `aegiskv token`"
        ]
    );
    let shown =
        serde_json::to_value(loaded.explain()).expect("JSON")["auth_tokens"]["value"].clone();
    assert_eq!(shown[0]["rate"], 5);
    assert!(!shown.to_string().contains("\"short\""), "{shown}");
}

#[test]
fn every_file_and_every_slip_of_named_tokens_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let token = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (long, other) = ("l".repeat(40), "o".repeat(40));
    let (a, b) = (token("a", &long), token("b", &other));
    let tokens = |entries: &str| file(&format!(r#"{{"auth_tokens": [{entries}]}}"#));
    let missing = tokens(
        r#"{"name": "x", "file": "/nonexistent/x", "verbs": ["read"]},
           {"name": "y", "file": "/nonexistent/y", "verbs": ["read"]}"#,
    )
    .problems();
    let named = |name: &str| missing.iter().any(|problem| problem.contains(name));
    assert!(missing.len() == 2 && named("the file of x: ") && named("the file of y: "));

    let list = tokens(&format!(r#"["a", "{a}", ["read"], [], 5]"#)).problems();
    assert!(list[0].contains("its entry 1 does not fit: it is no object; give a list of objects"));

    let twice = format!(r#"{{"name": "a", "file": "{a}", "verbs": ["read"], "verbs": ["admin"]}}"#);
    let told = "auth_tokens: holds an object in which \"verbs\" stands twice; keep one of them";
    assert_eq!(tokens(&twice).problems(), [format!("test.json: {told}")]);
    let variable = file("{}").with_variable("AEGIS_AUTH_TOKENS", &format!("[{twice}]"));
    assert_eq!(variable.problems(), [format!("environment AEGIS_AUTH_TOKENS: {told}")]);

    let again = token("again", &format!("{other}\n{other}\n"));
    let entry = format!(r#"{{"name": "a", "file": "{again}", "verbs": ["admin"]}}"#);
    assert_eq!(
        tokens(&entry).problems(),
        ["test.json: auth_tokens: the file of a holds a token twice; remove one of the two"]
    );

    let idle = tokens(&format!(
        r#"{{"name": "a", "file": "{a}", "verbs": ["metrics"], "prefixes": ["x"], "rate": 5}},
           {{"name": "b", "file": "{b}", "verbs": ["read"], "prefixes": ["x"], "rate": 5}}"#
    ));
    assert_eq!(
        warnings(&idle.loaded()),
        [
            "a has prefixes, which only count for read and write; remove it, or give the token \
             such a verb",
            "a has a rate, which only count for read and write; remove it, or give the token such \
             a verb",
            "give nobody the verb admin, so the actions of port 7702 are for nobody; give it to one \
             of them, or set auth_token",
        ]
        .map(|what| format!("test.json: auth_tokens: {what}"))
    );
}

#[test]
fn a_certificate_out_of_its_time_is_told_with_all_else_before_a_start_and_stops_no_reload() {
    let dir = tempfile::tempdir().expect("a directory");
    for (from, to, told) in [(2020, 2021, "expired on"), (2090, 2091, "is not valid before")] {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(["kv1".to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let certificate = params.self_signed(&key).expect("a certificate");
        let path = |name: &str, text: String| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("a file");
            path.to_str().expect("UTF-8").to_owned()
        };
        let (cert, key) = (path("c", certificate.pem()), path("k", key.serialize_pem()));
        let config = |more: &str| {
            let text = format!(
                r#"{{"tls_enabled": true, "tls_cert_file": "{cert}", "tls_key_file": "{key}"{more}}}"#
            );
            let file = Some(path("config.json", text).into());
            aegiskv::config::Sources { file, ..Default::default() }
        };
        let outcome = aegiskv::config::command::check(&config(r#", "zone": "a b""#));
        assert_eq!(outcome.status, 1, "{outcome:?}");
        assert!(outcome.stderr.contains("has 2 problems"), "{}", outcome.stderr);
        assert!(
            outcome.stderr.contains("tls_cert_file: the certificate in "),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains(told), "{}", outcome.stderr);
        // A node that serves outlives its certificate, and goes on reading its configuration.
        config("").load().expect("nothing else is wrong");
    }
}
