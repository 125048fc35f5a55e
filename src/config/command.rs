//! What `aegiskv config check|show|default` say, apart from the command line itself.

use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::Sources;
use super::keys::KEYS;
use super::problem::{Problem, Problems};

/// What a command prints, and the status it exits with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output; ends in a line end unless empty.
    pub stdout: String,
    /// For standard error; ends in a line end unless empty.
    pub stderr: String,
    /// 0 done, 1 the configuration is wrong.
    pub status: u8,
}

/// Checks everything and says all that is wrong at once.
pub fn check(sources: &Sources) -> Outcome {
    match sources.load_to_start() {
        Ok(loaded) => {
            let exposures = loaded.config.exposures();
            let mut stderr = warnings_text(&loaded.warnings);
            for exposure in &exposures {
                stderr += &format!("warning: {}\n", exposure.text);
            }
            let stdout = match loaded.warnings.len() + exposures.len() {
                0 => "the configuration is good\n".to_owned(),
                1 => "the configuration is good, with 1 warning\n".to_owned(),
                count => format!("the configuration is good, with {count} warnings\n"),
            };
            Outcome { stdout, stderr, status: 0 }
        }
        Err(problems) => refusal(&problems),
    }
}

/// Every key with its effective value and where it came from: a table, or JSON.
pub fn show(sources: &Sources, json: bool) -> Outcome {
    match sources.load() {
        Ok(loaded) => {
            let explanation = loaded.explain();
            let stdout = if json { pretty(&explanation) } else { explanation.table() };
            Outcome { stdout, stderr: warnings_text(&loaded.warnings), status: 0 }
        }
        Err(problems) => refusal(&problems),
    }
}

/// The built-in configuration, complete, as a file that can be loaded.
pub fn default() -> Outcome {
    struct Defaults;

    impl Serialize for Defaults {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let entry = |key: &super::Key| -> (&'static str, Json) {
                let json = if key.secret { Json::Null } else { key.default_json() };
                (key.name, json)
            };
            serializer.collect_map(KEYS.iter().map(entry))
        }
    }

    Outcome { stdout: pretty(&Defaults), stderr: String::new(), status: 0 }
}

fn refusal(problems: &Problems) -> Outcome {
    let count = match problems.0.len() {
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    };
    let stderr = format!("the configuration has {count}\n{problems}\n");
    Outcome { stdout: String::new(), stderr, status: 1 }
}

fn warnings_text(warnings: &[Problem]) -> String {
    warnings.iter().map(|warning| format!("warning: {warning}\n")).collect()
}

fn pretty(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).expect("maps with text keys are JSON");
    text + "\n"
}
