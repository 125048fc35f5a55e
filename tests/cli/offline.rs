//! What needs no server: usage, help, tokens, configuration, completions, manual pages.

use std::collections::BTreeSet;
use std::fs;

use crate::program::aegiskv;

/// The commands, as `docs/cli.md` names them in its headings.
fn commands() -> Vec<Vec<String>> {
    let markdown = aegiskv(&["man", "--markdown"]).run().done();
    let headings = markdown.text().lines().filter_map(|line| line.strip_prefix("## `aegiskv"));
    let words = headings.map(|rest| rest.trim_end_matches('`').split_whitespace());
    words.map(|words| words.map(str::to_owned).collect()).collect()
}

#[test]
fn every_command_explains_itself() {
    let commands = commands();
    assert!(commands.len() >= 28, "{commands:?}");
    for mut command in commands {
        command.push("--help".to_owned());
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        let help = aegiskv(&arguments).run().done();
        let about = help.text().lines().next().unwrap_or_default();
        assert!(about.len() > 10, "{command:?} begins with {about:?}");
        assert!(help.text().contains("Usage:"), "{command:?}");
        assert_eq!(help.stderr, "");
    }
}

#[test]
fn the_reference_is_what_the_binary_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
    let written = fs::read_to_string(path).expect("the reference is there");
    let made = aegiskv(&["man", "--markdown"]).run().done();
    assert!(written == made.text(), "renew it: aegiskv man --markdown > docs/cli.md");
}

#[test]
fn the_reference_does_not_depend_on_who_asks() {
    let made = aegiskv(&["man", "--markdown"]).run().done();
    let call = aegiskv(&["man", "--markdown"]).env("AEGISKV_ADDR", "kv9:1");
    let other = call.env("AEGISKV_TOKEN", "hunter2").env("COLUMNS", "40").run().done();
    assert_eq!(made.text(), other.text());
}

#[test]
fn completions_come_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = aegiskv(&["completions", shell]).run().done();
        assert!(script.text().contains("import"), "{shell}");
    }
}

#[test]
fn a_manual_page_is_written_for_every_command() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("its path is text");
    aegiskv(&["man", "--dir", path]).run().done();
    let pages: BTreeSet<String> = fs::read_dir(dir.path())
        .expect("it can be listed")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    let expected: BTreeSet<String> = commands()
        .into_iter()
        .map(|command| {
            format!("aegiskv{}.1", command.iter().fold(String::new(), |all, word| all + "-" + word))
        })
        .collect();
    assert_eq!(pages, expected);
    let page = fs::read_to_string(dir.path().join("aegiskv-put.1")).expect("it is there");
    assert!(page.contains(".TH"), "{page}");
}

#[test]
fn mistakes_in_usage_end_with_code_2() {
    let mistakes: &[&[&str]] = &[
        &["nonsense"],
        &["get"],
        &["get", "k", "--nonsense"],
        &["get", ".."],
        &["put", "k", "v", "--if-absent", "--if-match", "1"],
        &["del"],
        &["del", "k", "--prefix", "p"],
        &["--addr", "kv1"],
        &["--wal-mode", "sync", "token"],
        &["--validate", "token"],
        &["get", "k", "--addr", "http://kv1/v1"],
        &["bench", "--ratio", "0:0"],
        &["certs", "issue", "--dir", "/nonexistent", "../ca"],
        &["wal", "verify", "/nonexistent", "--config", "f"],
    ];
    for arguments in mistakes {
        let outcome = aegiskv(arguments).run();
        assert_eq!(outcome.code, 2, "{arguments:?}: {}", outcome.stderr);
        assert!(!outcome.stderr.is_empty(), "{arguments:?}");
        assert_eq!(outcome.text(), "", "{arguments:?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let port = crate::server::free_ports()[0];
    let addr = format!("127.0.0.1:{port}");
    for call in [
        aegiskv(&["get", "k", "--addr", &addr]),
        aegiskv(&["--addr", &addr, "get", "k"]),
        aegiskv(&["get", "k"]).env("AEGISKV_ADDR", &addr),
        aegiskv(&["get", "k", "--addr", &addr]).env("AEGISKV_ADDR", "elsewhere:1"),
        aegiskv(&["--addr", &addr, "get", "k"]).env("AEGISKV_ADDR", "elsewhere:1"),
        aegiskv(&["bench", "--addr", &addr]),
    ] {
        let outcome = call.run();
        assert_eq!(outcome.code, 1);
        assert!(outcome.stderr.contains(&addr), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("refused"), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.matches("refused").count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn tokens_are_long_and_never_the_same() {
    let tokens: BTreeSet<String> =
        (0..5).map(|_| aegiskv(&["token"]).run().done().text().trim().to_owned()).collect();
    assert_eq!(tokens.len(), 5);
    for token in tokens {
        assert_eq!(token.len(), 43, "{token}");
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(token.chars().all(allowed), "{token}");
    }
}

#[test]
fn the_default_configuration_is_a_good_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.json");
    fs::write(&path, aegiskv(&["config", "default"]).run().done().stdout).expect("written");
    let path = path.to_str().expect("its path is text");
    aegiskv(&["config", "check", "--config", path]).run().done();
    // As the Go prototype's users write it.
    aegiskv(&["-config", path, "-validate"]).run().done();
    let bad = aegiskv(&["-config", path, "-validate", "-wal_mode=never"]).run();
    assert_eq!(bad.code, 1);
    assert!(bad.stderr.contains("wal_mode"), "{}", bad.stderr);
}

#[test]
fn every_value_is_shown_with_its_origin() {
    let call = aegiskv(&["config", "show", "--json", "--max-conns", "77"]);
    let shown = call.env("AEGIS_ZONE", "z1").run().done();
    for word in ["77", "flag --max-conns", "z1", "environment AEGIS_ZONE", "default"] {
        assert!(shown.text().contains(word), "{word} in {}", shown.text());
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_aegiskv"))
        .args(["man", "--markdown"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let outcome = child.wait_with_output().expect("the binary ends");
    assert_eq!(outcome.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), "");
}

#[test]
fn a_directory_that_holds_no_node_has_no_log_to_look_at() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("its path is text");
    let outcome = aegiskv(&["wal", "verify", path]).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("no node's data directory"), "{}", outcome.stderr);
}

#[test]
fn recovery_asks_whether_it_is_meant_and_says_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let outcome = aegiskv(&["node", "recover", "--data-dir", path]).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("--others-are-gone"), "{}", outcome.stderr);
    let outcome = aegiskv(&["node", "recover", "--data-dir", path, "--others-are-gone"]).run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("no identity.json"), "{}", outcome.stderr);
}
