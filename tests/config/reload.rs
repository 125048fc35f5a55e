//! A reload applies what it may, names what waits, and changes nothing on any error.

use std::collections::BTreeMap;
use std::fs;

use aegiskv::config::{Sources, WalMode};

use super::{Pair, With, file};

#[test]
fn live_keys_change_and_the_others_wait_for_a_restart() {
    let old = file(r#"{"wal_mode": "async", "log_level": "info", "max_conns": 10}"#).loaded();
    let new = file(r#"{"wal_mode": "sync", "log_level": "debug", "max_conns": 20}"#)
        .with_variable("AEGIS_AUTH_TOKEN", "new")
        .loaded();
    let reloaded = old.replaced_by(new).expect("all is well");
    assert_eq!(reloaded.applied, ["max_conns", "auth_token", "log_level"]);
    assert_eq!(reloaded.needs_restart, ["wal_mode"]);
    let config = &reloaded.new.config;
    assert_eq!(config.wal_mode, WalMode::Async);
    assert_eq!(config.log_level, "debug");
    assert_eq!(config.max_conns, 20);
    assert_eq!(config.auth_token.first().expect("a token").expose(), "new");
    assert_eq!(reloaded.new.origins.of("auth_token"), "environment AEGIS_AUTH_TOKEN");
}

#[test]
fn a_key_that_waits_is_named_again_until_the_restart() {
    let old = file("{}").loaded();
    let wanted = file(r#"{"wal_mode": "sync"}"#);
    let first = old.replaced_by(wanted.loaded()).expect("all is well");
    assert_eq!(first.new.origins.of("wal_mode"), "default");
    let second = first.new.replaced_by(wanted.loaded()).expect("all is well");
    assert_eq!(second.needs_restart, ["wal_mode"]);
}

#[test]
fn a_quorum_follows_the_replication_factor_in_force() {
    let old = file(r#"{"replication_factor": 3}"#).loaded();
    let wider = old.replaced_by(file(r#"{"replication_factor": 5}"#).loaded());
    let wider = wider.expect("the majority of 3 stays in force");
    assert_eq!(wider.needs_restart, ["replication_factor"]);
    assert_eq!(wider.new.config.write_copies(), 2);

    let beyond = file(r#"{"replication_factor": 5, "write_quorum": 4}"#).loaded();
    let problems = old.replaced_by(beyond).expect_err("4 of 3 copies cannot be had");
    assert_eq!(
        problems.to_string(),
        "test.json: write_quorum: 4 is above replication_factor (3); give at most 3, or -1 for all \
         copies"
    );
}

#[test]
fn files_are_read_again_and_an_error_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.json");
    let token = dir.path().join("token");
    fs::write(&token, "first\n").expect("a file");
    fs::write(&path, format!(r#"{{"auth_token_file": "{}"}}"#, token.display())).expect("a file");
    let flags = BTreeMap::from([("node-id".to_owned(), "n1".to_owned())]);
    let sources = Sources { file: Some(path.clone()), flags, ..Sources::default() };
    let old = sources.load().expect("all is well");

    fs::write(&token, "second\nfirst\n").expect("a file");
    let reloaded = sources.reload(&old).expect("all is well");
    assert_eq!(reloaded.applied, ["auth_token"]);
    assert_eq!(reloaded.new.config.auth_token.iter().count(), 2);
    assert_eq!(reloaded.new.config.node_id, "n1");

    fs::write(&path, r#"{"max_conns": 5, "eviction_ratio": 2}"#).expect("a file");
    let problems = sources.reload(&reloaded.new).expect_err("the ratio is wrong");
    assert_eq!(problems.0.len(), 1);
    assert_eq!(problems.0[0].key.as_deref(), Some("eviction_ratio"));
    assert_eq!(reloaded.new.config.max_conns, 10_000);
}

#[test]
fn files_of_tls_are_named_when_their_content_is_new_and_tls_is_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = |name: &str| dir.path().join(name).display().to_string();
    let write = |pair: &Pair| {
        fs::write(name("crt"), &pair.certificate).expect("a file");
        fs::write(name("key"), &pair.key).expect("a file");
    };
    let (first, second) = (Pair::make(), Pair::make());
    write(&first);
    fs::write(name("ca"), &first.certificate).expect("a file");
    let tls = |enabled: bool| {
        let inputs = file(&format!(r#"{{"tls_enabled": {enabled}, "max_conns": 10}}"#));
        inputs
            .with_flag("tls-cert-file", &name("crt"))
            .with_flag("tls-key-file", &name("key"))
            .with_flag("tls-ca-file", &name("ca"))
    };
    let (on, off) = (tls(true).loaded(), tls(false).loaded());
    write(&second);
    let renewed = on.replaced_by(tls(true).loaded()).expect("all is well");
    assert_eq!(renewed.applied, ["tls_cert_file", "tls_key_file"]);
    let unused = off.replaced_by(tls(false).loaded()).expect("all is well");
    assert_eq!(unused.applied, [""; 0], "nobody reads them");
    fs::write(name("ca"), first.certificate + &second.certificate).expect("a file");
    let moved = tls(true).with_flag("max-conns", "20");
    let trusted = renewed.new.replaced_by(moved.loaded()).expect("all is well");
    assert_eq!(trusted.applied, ["max_conns", "tls_ca_file"]);
    let again = trusted.new.replaced_by(moved.loaded()).expect("all is well");
    assert_eq!(again.applied, [""; 0]);
}

#[test]
fn nothing_changed_is_nothing_applied() {
    let old = file(r#"{"zone": "a"}"#).loaded();
    let reloaded = old.replaced_by(old.clone()).expect("all is well");
    assert_eq!((reloaded.applied.len(), reloaded.needs_restart.len()), (0, 0));
}
