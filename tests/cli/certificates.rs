//! Certificates: who may read the keys, what they are good for, and what OpenSSL thinks of them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::program::{Outcome, aegiskv};

/// A directory with an authority and the certificate of one node, kv1.
fn issued() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    certs(&dir, &["init"]).done();
    certs(&dir, &["issue", "kv1", "--san", "kv1.example.com,10.0.0.1", "--san", "::1"]).done();
    dir
}

fn certs(dir: &TempDir, arguments: &[&str]) -> Outcome {
    let mut all = vec!["certs"];
    all.extend(arguments);
    all.extend(["--dir", dir.path().to_str().expect("its path is text")]);
    aegiskv(&all).run()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("the file is there").permissions().mode() & 0o777
}

/// What `openssl` says, or `None` on a machine without it.
fn openssl(dir: &TempDir, arguments: &[&str]) -> Option<String> {
    let output = Command::new("openssl").current_dir(dir.path()).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}{text}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

#[test]
fn keys_are_their_owners_alone() {
    let dir = issued();
    for (file, expected) in
        [("ca.key", 0o600), ("kv1.key", 0o600), ("ca.crt", 0o644), ("kv1.crt", 0o644)]
    {
        assert_eq!(mode(&dir.path().join(file)), expected, "{file}");
    }
}

#[test]
fn openssl_trusts_what_the_authority_issued() {
    let dir = issued();
    let purposes = ["sslserver", "sslclient"];
    for purpose in purposes {
        let arguments =
            ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.crt", "kv1.crt"];
        let Some(text) = openssl(&dir, &arguments) else {
            return;
        };
        assert_eq!(text.trim(), "kv1.crt: OK", "{purpose}");
    }
    let hosts = ["-verify_hostname", "kv1.example.com"];
    openssl(&dir, &[&["verify", "-CAfile", "ca.crt"], &hosts[..], &["kv1.crt"]].concat());
    let text = openssl(&dir, &["x509", "-in", "kv1.crt", "-noout", "-text"]).unwrap_or_default();
    for word in [
        "DNS:kv1, DNS:kv1.example.com, IP Address:10.0.0.1, IP Address:0:0:0:0:0:0:0:1",
        "CA:FALSE",
        "Digital Signature",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "prime256v1",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn certificates_last_as_long_as_asked_but_not_longer_than_their_authority() {
    let dir = tempfile::tempdir().expect("a directory");
    certs(&dir, &["init", "--days", "10", "--name", "Test CA"]).done();
    certs(&dir, &["issue", "short", "--days", "5"]).done();
    let long = certs(&dir, &["issue", "long"]).done();
    assert!(long.stderr.contains("the authority runs out on"), "{}", long.stderr);
    let days = |days: u32| (days * 86_400).to_string();
    let lasts = |file: &str, seconds: &str| {
        let status = Command::new("openssl")
            .current_dir(dir.path())
            .args(["x509", "-noout", "-checkend", seconds, "-in", file])
            .output();
        status.map(|output| output.status.success()).ok()
    };
    if lasts("short.crt", "0").is_none() {
        return;
    }
    assert_eq!(lasts("short.crt", &days(4)), Some(true));
    assert_eq!(lasts("short.crt", &days(6)), Some(false));
    assert_eq!(lasts("long.crt", &days(9)), Some(true));
    assert_eq!(lasts("long.crt", &days(11)), Some(false));
}

#[test]
fn nothing_is_overwritten() {
    let dir = issued();
    let before = fs::read(dir.path().join("ca.key")).expect("the key is there");
    let again = certs(&dir, &["init"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("ca.crt exists"), "{}", again.stderr);
    assert_eq!(fs::read(dir.path().join("ca.key")).expect("still there"), before);
    assert_eq!(certs(&dir, &["issue", "kv1"]).code, 1);
}

#[test]
fn the_settings_printed_are_good_settings() {
    let dir = tempfile::tempdir().expect("a directory");
    certs(&dir, &["init"]).done();
    let issued = certs(&dir, &["issue", "kv1"]).done();
    let file = dir.path().join("config.json");
    fs::write(&file, &issued.stdout).expect("written");
    let file = file.to_str().expect("its path is text");
    aegiskv(&["config", "check", "--config", file]).run().done();
}

#[test]
fn an_authority_that_is_missing_or_mixed_up_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let outcome = certs(&dir, &["issue", "kv1"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("certs init"), "{}", outcome.stderr);

    let (one, other) = (issued(), issued());
    fs::copy(other.path().join("ca.key"), one.path().join("ca.key")).expect("copied");
    let outcome = certs(&one, &["issue", "kv2"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("is not the key of"), "{}", outcome.stderr);

    fs::copy(other.path().join("kv1.crt"), other.path().join("ca.crt")).expect("copied");
    let outcome = certs(&other, &["issue", "kv2"]);
    assert!(outcome.stderr.contains("no authority's certificate"), "{}", outcome.stderr);
}
