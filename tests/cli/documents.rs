//! What the documents tell operators to type, and the settings and metrics they name, exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use aegiskv::config::Key;
use clap::error::ErrorKind;
use serde_json::Value as Json;

/// The documents for operators: their names and texts. `cli.md` is made from the definition itself.
fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("README.md")];
    for folder in ["docs", "grafana", "grafana/runbooks"] {
        let entries = fs::read_dir(root.join(folder)).expect("the documents can be listed");
        paths.extend(entries.map(|entry| entry.expect("an entry").path()));
    }
    paths.retain(|path| {
        path.extension().is_some_and(|extension| extension == "md") && !path.ends_with("cli.md")
    });
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.strip_prefix(root).expect("listed from the root").display().to_string();
        (name, fs::read_to_string(path).expect("a document"))
    };
    paths.iter().map(read).collect()
}

/// A piece of code in a document.
#[derive(Debug, PartialEq)]
enum Code {
    /// Between fences: the language, and the lines with continued ones joined.
    Block(String, Vec<String>),
    /// Within a line.
    Inline(String),
}

fn code(text: &str) -> Vec<Code> {
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    let mut prose = String::new();
    for line in text.lines() {
        let fence = line.trim_start().strip_prefix("```");
        open = match (open, fence) {
            (None, Some(language)) => Some((language.to_owned(), String::new())),
            (None, None) => {
                prose += line.trim_start();
                prose.push(' ');
                None
            }
            (Some((language, body)), Some(_)) => {
                let lines = body.replace("\\\n", " ").lines().map(str::to_owned).collect();
                found.push(Code::Block(language, lines));
                None
            }
            (Some((language, body)), None) => Some((language, body + line + "\n")),
        };
    }
    found.extend(prose.split('`').skip(1).step_by(2).map(|code| Code::Inline(code.to_owned())));
    found
}

/// The calls of the program in a line of shell: their arguments, each.
fn calls(line: &str) -> Vec<Vec<String>> {
    let line = line.trim_start().trim_start_matches("$ ");
    let mut calls = Vec::new();
    for command in line.split(['|', ';', '&', '(', ')', '<', '>']) {
        let command = command.split(" #").next().unwrap_or_default();
        let words: Vec<String> =
            command.split_whitespace().map(|word| word.replace(['\'', '"'], "")).collect();
        let mut rest = words.iter().peekable();
        // What may stand before a program: sudo and ssh with whom and where, variables, a node of
        // compose.
        while let Some(word) = rest.next() {
            match word.as_str() {
                "-u" | "ssh" | "exec" => drop(rest.next()),
                "sudo" => {}
                word if word.contains('=') && !word.starts_with('-') => {}
                "docker" if words.contains(&"exec".to_owned()) => {
                    while rest.peek().is_some_and(|word| *word != "exec") {
                        rest.next();
                    }
                }
                word if word == "aegiskv" || word.ends_with("/aegiskv") => {
                    calls.push(rest.cloned().collect());
                    break;
                }
                _ => break,
            }
        }
    }
    calls
}

/// Why the program would not take these arguments, if it would not.
fn refusal(arguments: &[String], is_whole: bool) -> Option<String> {
    let arguments = ["aegiskv".to_owned()].into_iter().chain(arguments.iter().cloned());
    // As Go's users write it; the program itself turns it into two hyphens.
    let arguments = arguments.map(|word| match word.as_str() {
        "-wal-replay" => "--wal-replay".to_owned(),
        _ => word,
    });
    let error = aegiskv::cli::command().try_get_matches_from(arguments).err()?;
    let is_harmless = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => !is_whole,
        _ => false,
    };
    (!is_harmless).then(|| error.to_string())
}

#[test]
fn every_command_in_the_documents_is_one() {
    let (mut tried, mut wrong) = (0, Vec::new());
    for (name, text) in documents() {
        for code in code(&text) {
            let (lines, is_whole) = match code {
                Code::Block(language, _) if ["json", "ini"].contains(&language.as_str()) => {
                    continue;
                }
                Code::Block(_, lines) => (lines, true),
                Code::Inline(line) => (vec![line], false),
            };
            for arguments in lines.iter().flat_map(|line| calls(line)) {
                tried += 1;
                if let Some(why) = refusal(&arguments, is_whole) {
                    wrong.push(format!("{name}: aegiskv {}: {why}", arguments.join(" ")));
                }
            }
        }
    }
    assert!(tried > 60, "only {tried} commands found: wrong parse?");
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn a_command_that_is_none_is_found_wherever_it_stands() {
    let text = "run `aegiskv nonsense` or\n```\nsudo -u a A=b aegiskv get k \\\n  --nonsense\n\
                (umask 077 && aegiskv token | tee f)\nsystemctl start aegiskv\n```\n";
    let found = code(text);
    assert_eq!(found.len(), 2, "{found:?}");
    let Code::Block(_, lines) = &found[0] else { panic!("a block comes first: {found:?}") };
    let calls: Vec<_> = lines.iter().flat_map(|line| calls(line)).collect();
    assert_eq!(calls, [vec!["get", "k", "--nonsense"], vec!["token"]]);
    assert!(refusal(&calls[0], true).is_some_and(|why| why.contains("--nonsense")));
    assert_eq!(refusal(&calls[1], true), None);
    assert!(refusal(&["nonsense".to_owned()], false).is_some());
    assert!(refusal(&["get".to_owned()], true).is_some());
    assert_eq!(refusal(&["get".to_owned()], false), None);
}

/// Settings that a document names: members of its examples, and `key: value` within lines.
fn settings(text: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for code in code(text) {
        match code {
            Code::Block(language, lines) if language == "json" => {
                let json: Json = serde_json::from_str(&lines.concat())
                    .unwrap_or_else(|error| panic!("{error} in {lines:?}"));
                named.extend(json.as_object().into_iter().flat_map(|map| map.keys().cloned()));
            }
            Code::Inline(code) => {
                let key = code.split(": ").next().filter(|key| *key != code).unwrap_or_default();
                if key.contains('_') && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                    named.insert(key.to_owned());
                }
            }
            Code::Block(..) => {}
        }
    }
    named
}

#[test]
fn every_setting_in_the_documents_is_one() {
    let mut found = 0;
    for (name, text) in documents() {
        if name == "docs/api.md" {
            continue; // Its JSON is what the API says.
        }
        for key in settings(&text) {
            found += 1;
            assert!(Key::find(&key).is_some(), "{name} names the setting {key}");
        }
    }
    assert!(found > 20, "only {found} settings found: wrong parse?");
    let made_up = "`max_memori_mb: 1` and\n```json\n{\"nod_id\": \"a\"}\n```\n";
    assert_eq!(settings(made_up), ["max_memori_mb", "nod_id"].map(str::to_owned).into());
}

#[test]
fn every_metric_in_the_documents_is_listed() {
    let documents = documents();
    let is_list = |name: &str| name == "docs/metrics.md";
    let list = &documents.iter().find(|(name, _)| is_list(name)).expect("the list").1;
    let mut found = 0;
    for (name, text) in documents.iter().filter(|(name, _)| !is_list(name)) {
        for (at, _) in text.match_indices("aegis_") {
            let word: String =
                text[at..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let metric = word.trim_end_matches("_bucket");
            found += 1;
            assert!(list.contains(&format!("`{metric}`")), "{name} names the metric {word}");
        }
    }
    assert!(found > 30, "only {found} metrics found: wrong parse?");
}
