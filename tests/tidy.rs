//! Holds the tree to its own rules: layering, file sizes, links, and documents that
//! agree with the code. Every rule is a pure function from sources to complaints, so
//! that a made-up tree can show that it does complain.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines a source file may have above its unit tests. Past 500 it is time to look for the
/// second concept; this is where looking away ends.
const FILE_LINES_MAX: usize = 600;

/// What lies in the folder without being part of the repository, from the root.
const FOREIGN: &[&str] = &[
    ".git",
    ".hypothesis",
    ".schemathesis",
    ".venv",
    "benches/out",
    "data",
    "dist",
    "fuzz/artifacts",
    "fuzz/corpus",
    "fuzz/target",
    "repo",
    "target",
];

/// A file of the repository: its path from the root, with `/`, and its text.
#[derive(Clone, Debug)]
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file of the repository whose path `wanted` accepts, in the order of paths.
fn sources(under: &str, wanted: impl Fn(&str) -> bool) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(under)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("a folder of the repository can be listed").path();
            let inside = path.strip_prefix(root()).expect("walked from the root");
            let inside = inside.to_string_lossy().into_owned();
            if FOREIGN.contains(&inside.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if wanted(&inside)
                && let Ok(text) = fs::read_to_string(&path)
            {
                found.push(Source { path: inside, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn rust_sources() -> Vec<Source> {
    sources("src", |name| name.ends_with(".rs"))
}

fn assert_no_complaints(rule: &str, complaints: &[String]) {
    let mut text = String::new();
    for complaint in complaints {
        writeln!(text, "  {complaint}").expect("a String takes all");
    }
    assert!(complaints.is_empty(), "{rule}:\n{text}");
}

// --- layering ---------------------------------------------------------------------------

/// The modules that `lib.rs` declares, lowest first.
fn declared_modules(lib: &str) -> Vec<String> {
    lib.lines()
        .filter_map(|line| {
            let line = line.trim();
            let line = line.strip_prefix("pub ").unwrap_or(line);
            let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
            line.strip_prefix("mod ")?.strip_suffix(';').map(str::to_owned)
        })
        .collect()
}

/// The top-level module that a file under `src/` belongs to; none for `lib.rs` and `main.rs`.
fn module_of(path: &str) -> Option<&str> {
    let inner = path.strip_prefix("src/")?;
    let first = inner.split('/').next()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (module != "lib" && module != "main").then_some(module)
}

/// What a source text names right after `crate::`, with the line: one name for a path,
/// each first name for a braced group. Comments name nothing.
fn crate_paths(text: &str) -> Vec<(usize, String)> {
    let code: String = text
        .lines()
        .map(|line| line.find("//").map_or(line, |comment| &line[..comment]))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut named = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        // `$crate::` in a macro names this crate as well; `other_crate::` does not.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(group) => named.extend(group_heads(group).into_iter().map(|name| (line, name))),
            None => named.push((line, identifier(rest))),
        }
    }
    named
}

/// The first name of each path in a `{…}` group, given the text after its opening brace.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut heads) = (0_usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                heads.push(identifier(&group[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                heads.push(identifier(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

fn identifier(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// A module names only itself and modules declared above it.
fn layering_complaints(lib: &str, files: &[Source]) -> Vec<String> {
    let modules = declared_modules(lib);
    let place: BTreeMap<&str, usize> =
        modules.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    let mut complaints = Vec::new();
    for line in lib.lines().filter(|line| line.trim_start().starts_with("pub use ")) {
        complaints.push(format!("src/lib.rs: `{}` hides which module is meant", line.trim()));
    }
    for file in files {
        let Some(own) = module_of(&file.path) else {
            continue;
        };
        let Some(&own_place) = place.get(own) else {
            complaints.push(format!("{}: `{own}` is not declared in src/lib.rs", file.path));
            continue;
        };
        for (line, named) in crate_paths(&file.text) {
            if place.get(named.as_str()).is_some_and(|&named_place| named_place > own_place) {
                complaints.push(format!(
                    "{}:{line}: `{own}` uses `{named}`, which is declared below it",
                    file.path
                ));
            }
        }
    }
    complaints
}

#[test]
fn a_module_uses_only_modules_declared_above_it() {
    let files = rust_sources();
    let lib = &files.iter().find(|file| file.path == "src/lib.rs").expect("src/lib.rs").text;
    assert!(declared_modules(lib).len() > 1, "src/lib.rs declares no modules: wrong parse?");
    assert_no_complaints("layering", &layering_complaints(lib, &files));
}

#[test]
fn a_use_of_a_module_declared_below_is_found_however_it_is_written() {
    let lib = "//! The plan.\npub mod entry;\n\nmod store;\npub(crate) mod api;\n";
    let files = [
        Source::new("src/entry.rs", "use crate::{api::{Router, kv}, store};\n"),
        Source::new("src/store/table.rs", "fn f() {\n    crate::api::serve();\n}\n"),
        Source::new("src/store/mod.rs", "use crate::entry::Key; // crate::api is above\n"),
        Source::new("src/api.rs", "use crate::{entry, store::Table};\nuse crate::api::kv;\n"),
        Source::new("src/main.rs", "use crate::api;\n"),
        Source::new("src/stray.rs", ""),
    ];
    assert_eq!(
        layering_complaints(lib, &files),
        [
            "src/entry.rs:1: `entry` uses `api`, which is declared below it",
            "src/entry.rs:1: `entry` uses `store`, which is declared below it",
            "src/store/table.rs:2: `store` uses `api`, which is declared below it",
            "src/stray.rs: `stray` is not declared in src/lib.rs",
        ]
    );
}

// --- sizes ------------------------------------------------------------------------------

/// Lines above the unit tests of a file.
fn lines_of_code(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "))
        .unwrap_or(lines.len())
}

fn size_complaints(files: &[Source]) -> Vec<String> {
    files
        .iter()
        .filter(|file| !file.path.ends_with("tests.rs"))
        .map(|file| (file, lines_of_code(&file.text)))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(file, lines)| format!("{}: {lines} lines; split it by concept", file.path))
        .collect()
}

/// Functions are held to 70 lines by `clippy::too_many_lines`; this is for files.
#[test]
fn no_source_file_has_outgrown_one_concept() {
    let complaints = size_complaints(&rust_sources());
    assert_no_complaints("files over 600 lines above their tests", &complaints);
}

#[test]
fn a_file_is_measured_without_its_unit_tests() {
    let code = "fn f() {}\n".repeat(600);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "// more\n".repeat(300));
    let fits = Source::new("src/a.rs", &format!("{code}{tests}"));
    let outgrown = Source::new("src/b.rs", &format!("{code}fn g() {{}}\n{tests}"));
    let complaints = ["src/b.rs: 601 lines; split it by concept"];
    assert_eq!(size_complaints(&[fits, outgrown]), complaints);
}

// --- metrics ----------------------------------------------------------------------------

/// Metrics that operators were promised, as far as one node has them: dashboards and alerts
/// elsewhere stand on these names.
const PROMISED_METRICS: &[&str] = &[
    "aegis_active_connections",
    "aegis_build_info",
    "aegis_cache_items",
    "aegis_cache_max_bytes",
    "aegis_cache_size_bytes",
    "aegis_cluster_members",
    "aegis_cluster_members_expected",
    "aegis_config_hash",
    "aegis_config_reload_success",
    "aegis_evictions_total",
    "aegis_expired_total",
    "aegis_max_connections",
    "aegis_misses_total",
    "aegis_op_duration_seconds",
    "aegis_ops_errors_total",
    "aegis_ops_total",
    "aegis_rejected_connections_total",
    "aegis_replica_fail_total",
    "aegis_replica_success_total",
    "aegis_serving",
    "aegis_shard_primaries",
    "aegis_shards",
    "aegis_shards_owned",
    "aegis_tls_cert_expiry_timestamp_seconds",
    "aegis_topology_leader",
    "aegis_unclean_recovery_total",
    "aegis_wal_bytes",
    "aegis_wal_corruptions_total",
    "aegis_wal_fsync_duration_seconds",
];

/// The public handles of `struct Metrics`: what the rest of the code records with.
fn metric_handles(text: &str) -> Vec<String> {
    text.lines()
        .skip_while(|line| !line.starts_with("pub struct Metrics"))
        .take_while(|line| *line != "}")
        .filter_map(|line| line.strip_prefix("    pub ")?.split_once(':'))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// A handle that nothing outside the metrics module touches shows zero for ever.
fn dead_metric_complaints(metrics: &str, files: &[Source]) -> Vec<String> {
    let used = |handle: &str| {
        files
            .iter()
            .filter(|file| module_of(&file.path) != Some("metrics"))
            .any(|file| names_field(&file.text, handle))
    };
    metric_handles(metrics)
        .into_iter()
        .filter(|handle| !used(handle))
        .map(|handle| format!("Metrics::{handle} is declared and recorded nowhere"))
        .collect()
}

/// Whether `.field` stands in the text as a whole word.
fn names_field(text: &str, field: &str) -> bool {
    text.match_indices(field).any(|(at, _)| {
        text[..at].ends_with('.')
            && !text[at + field.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

#[test]
fn every_metric_handle_is_recorded_with() {
    let files = rust_sources();
    let metrics = files
        .iter()
        .find(|file| file.path == "src/metrics/mod.rs")
        .expect("metrics are declared in src/metrics/mod.rs");
    assert!(!metric_handles(&metrics.text).is_empty(), "no handles: wrong parse?");
    assert_no_complaints("dead metrics", &dead_metric_complaints(&metrics.text, &files));
}

#[test]
fn a_metric_that_nothing_records_is_found() {
    let metrics =
        "pub struct Metrics {\n    table: T,\n    pub evictions: C,\n    pub expired: C,\n}\n";
    let files = [
        Source::new("src/metrics/mod.rs", "self.evictions.inc()"),
        Source::new("src/store.rs", "metrics.evictions_by.inc(); metrics.expired.inc()"),
    ];
    assert_eq!(
        dead_metric_complaints(metrics, &files),
        ["Metrics::evictions is declared and recorded nowhere"]
    );
}

#[test]
fn every_promised_metric_is_documented() {
    let page = fs::read_to_string(root().join("docs/metrics.md")).expect("docs/metrics.md");
    let complaints: Vec<String> = PROMISED_METRICS
        .iter()
        .filter(|name| !page.contains(&format!("`{name}`")))
        .map(|name| format!("docs/metrics.md does not list {name}"))
        .collect();
    assert_no_complaints("promised metrics", &complaints);
}

// --- documents --------------------------------------------------------------------------

/// The targets of Markdown links in a text, outside fenced code, with their lines.
fn markdown_links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut fenced = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for (open, found) in line.match_indices("](") {
            let rest = &line[open + found.len()..];
            if let Some(end) = rest.find(')') {
                links.push((at + 1, rest[..end].to_owned()));
            }
        }
    }
    links
}

/// The anchor that a heading gets: lower case, words joined by hyphens, no punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|heading| {
            heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

fn link_complaints(documents: &[Source], exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let texts: BTreeMap<&str, &str> =
        documents.iter().map(|d| (d.path.as_str(), d.text.as_str())).collect();
    let mut complaints = Vec::new();
    for document in documents {
        for (line, link) in markdown_links(&document.text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                PathBuf::from(&document.path)
            } else {
                resolve(Path::new(&document.path), file)
            };
            let reached = texts.get(target.to_string_lossy().as_ref());
            let missing = match reached {
                Some(text) => !anchor.is_empty() && !anchors(text).contains(anchor),
                None => !exists(&target),
            };
            if missing {
                complaints.push(format!("{}:{line}: `{link}` leads nowhere", document.path));
            }
        }
    }
    complaints
}

/// `link` as seen from the folder of `document`, without `.` and `..`.
fn resolve(document: &Path, link: &str) -> PathBuf {
    let mut path = document.parent().unwrap_or(Path::new("")).to_owned();
    for step in link.split('/') {
        match step {
            "." | "" => {}
            ".." => {
                path.pop();
            }
            name => path.push(name),
        }
    }
    path
}

fn documents() -> Vec<Source> {
    sources("", |name| name.ends_with(".md"))
}

#[test]
fn every_relative_link_in_the_documents_leads_somewhere() {
    let complaints = link_complaints(&documents(), |path| root().join(path).exists());
    assert_no_complaints("links", &complaints);
}

#[test]
fn a_link_to_a_missing_file_or_heading_is_found() {
    let documents = [
        Source::new("README.md", "[a](docs/a.md) [gone](docs/gone.md)\n```\n[x](no.md)\n```\n"),
        Source::new("docs/a.md", "# Big, bold\n[up](../README.md) [b](#big-bold) [c](#small)\n"),
    ];
    assert_eq!(
        link_complaints(&documents, |_| false),
        ["README.md:1: `docs/gone.md` leads nowhere", "docs/a.md:2: `#small` leads nowhere",]
    );
}

/// Paths of somebody's own machine; put together here so that this file is not one of them.
fn private_paths() -> [String; 2] {
    ["work", "root"].map(|name| format!("/{name}/"))
}

fn private_path_complaints(files: &[Source], private: &[String]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        for (at, line) in file.text.lines().enumerate() {
            for path in private {
                let own = line.match_indices(path.as_str()).any(|(start, _)| {
                    !line[..start].ends_with(|c: char| c.is_alphanumeric() || c == '.')
                });
                if own {
                    complaints.push(format!("{}:{}: mentions `{path}`", file.path, at + 1));
                }
            }
        }
    }
    complaints
}

#[test]
fn nothing_names_a_path_of_the_machine_it_was_written_on() {
    let files = sources("", |name| !name.ends_with(".lock"));
    let complaints = private_path_complaints(&files, &private_paths());
    assert_no_complaints("paths of one machine", &complaints);
}

#[test]
fn a_path_of_one_machine_is_told_from_a_path_that_only_contains_it() {
    let private = private_paths();
    let text = format!("cd {}x\nsee docs{}x\n", private[0], private[0]);
    assert_eq!(
        private_path_complaints(&[Source::new("a.sh", &text)], &private),
        [format!("a.sh:1: mentions `{}`", private[0])]
    );
}

/// Commits to src/ after which measured figures are taken for old.
const FIGURES_COMMITS_MAX: u64 = 100;

/// Whether figures are all of one commit, and not of one too old; `since` counts the commits to src/
/// since one, if it is known.
fn age_complaints(document: &str, since: impl Fn(&str) -> Option<u64>) -> Vec<String> {
    let of = |line: &str| Some(line.strip_prefix("| Commit | ")?.strip_suffix(" |")?.to_owned());
    let commits: BTreeSet<String> = document.lines().filter_map(of).collect();
    let mut complaints = Vec::new();
    if commits.len() != 1 {
        complaints.push(format!("figures of {commits:?}: run `make bench` once for all"));
    }
    for commit in commits {
        match since(&commit) {
            Some(count) if count <= FIGURES_COMMITS_MAX => {}
            Some(count) => complaints.push(format!(
                "{count} commits to src/ since {commit}: run `make bench`, at most {FIGURES_COMMITS_MAX}"
            )),
            None => complaints.push(format!("{commit} is no commit")),
        }
    }
    complaints
}

#[test]
fn the_benchmarks_are_of_one_commit_and_not_an_old_one() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(root()).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // Without the history nobody can count: in a tarball, or a shallow clone.
    if git(&["rev-parse", "--is-shallow-repository"]).is_none_or(|shallow| shallow == "true") {
        return;
    }
    let since = |commit: &str| {
        git(&["rev-list", "--count", &format!("{commit}..HEAD"), "--", "src"])?.parse().ok()
    };
    let document = fs::read_to_string(root().join("docs/benchmarks.md")).expect("it is there");
    assert_no_complaints("benchmarks", &age_complaints(&document, since));
}

#[test]
fn figures_that_are_mixed_or_old_are_found() {
    let since = |commit: &str| match commit {
        "a1" => Some(3),
        "b2" => Some(101),
        _ => None,
    };
    let of = |commits: &[&str]| {
        let lines: Vec<String> = commits.iter().map(|c| format!("| Commit | {c} |\n")).collect();
        age_complaints(&lines.concat(), since).len()
    };
    assert_eq!(of(&["a1", "a1"]), 0);
    assert_eq!([of(&[]), of(&["b2"]), of(&["a1-dirty"]), of(&["a1", "b2"])], [1, 1, 1, 2]);
}
