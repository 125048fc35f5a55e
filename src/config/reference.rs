//! The reference of all keys, as it stands in `docs/configure.md`.

use std::fmt::Write;

use super::keys::{KEYS, Key, OBSOLETE};

/// Every key under its section, as Markdown: name, default, meaning, and whether a reload applies
/// it.
pub fn key_reference() -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            write!(
                text,
                "\n### {section}\n\n| key | default | meaning | reload |\n|---|---|---|---|\n"
            )
            .expect("writing to a String cannot fail");
        }
        text += &row(key);
    }
    let obsolete: Vec<_> = OBSOLETE.iter().map(|key| format!("`{key}`")).collect();
    text + &format!(
        "\n### Keys without effect\n\nThese keys of the Go prototype are accepted with a warning: {}.\n",
        obsolete.join(", ")
    )
}

fn row(key: &Key) -> String {
    let default =
        if key.default.is_empty() { "empty".to_owned() } else { format!("`{}`", key.default) };
    let range = match (key.range, key.range_text) {
        (Some(range), Some(words)) => format!(" Range: {}.", words(range)),
        _ => String::new(),
    };
    let reload = if key.live { "applied" } else { "restart" };
    format!("| `{}` | {default} | {}{range} | {reload} |\n", key.name, key.help)
}
