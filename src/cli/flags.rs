//! The server's flags: one for every configuration key, made from the table of keys.
//!
//! Invariant: a key in the table has its flag, and a flag its key; nothing is listed twice. What a
//! value must be is judged by the configuration, which can name all faults at once.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{ALIASES, KEYS, Key, OBSOLETE, Shape, Sources};

/// Every key's name as a flag writes it.
static SPELLINGS: LazyLock<BTreeMap<&'static str, String>> = LazyLock::new(|| {
    let aliases = ALIASES.iter().map(|(alias, _)| *alias);
    let names = KEYS.iter().map(|key| key.name).chain(OBSOLETE.iter().copied()).chain(aliases);
    names.map(|name| (name, name.replace('_', "-"))).collect()
});

/// The id of `--config`; the keys' own ids are their names.
const FILE: &str = "config_file";

/// The id and the name of the flag that is no key: it is meant for one start.
const BOOTSTRAP: &str = "bootstrap";

/// Where the configuration comes from, as far as the command line says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    file: Option<PathBuf>,
    values: BTreeMap<String, String>,
    bootstrap: bool,
}

impl Flags {
    /// The sources that these flags and the environment make.
    pub(crate) fn into_sources(self) -> Sources {
        let bootstrap = self.bootstrap;
        Sources { bootstrap, ..Sources::of_process(self.file, self.values) }
    }

    /// The flag of the server that was given first, as it is written, if there was any.
    pub(crate) fn given(matches: &ArgMatches) -> Option<String> {
        let typed = |id: &str| {
            matches.try_contains_id(id).is_ok()
                && matches.value_source(id) == Some(ValueSource::CommandLine)
        };
        if typed(FILE) {
            return Some("--config".to_owned());
        }
        if typed(BOOTSTRAP) {
            return Some("--bootstrap".to_owned());
        }
        KEYS.iter().find(|key| typed(key.name)).map(|key| format!("--{}", key.flag()))
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE)
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Configuration file (JSON); conf.d/*.json beside it is read after it");
        let bootstrap = Arg::new(BOOTSTRAP).long(BOOTSTRAP).action(ArgAction::SetTrue).help(
            "Found a new cluster although nodes in addrs are silent; for the first start of one \
             node, when the others will never come",
        );
        let obsolete = OBSOLETE.iter().map(|name| Arg::new(*name).long(spelling(name)).hide(true));
        command.arg(file).arg(bootstrap).args(KEYS.iter().map(flag)).args(obsolete)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut values = BTreeMap::new();
        for name in KEYS.iter().map(|key| key.name).chain(OBSOLETE.iter().copied()) {
            if let Some(given) = matches.get_many::<String>(name) {
                let given: Vec<&str> = given.map(String::as_str).collect();
                values.insert(name.to_owned(), given.join(","));
            }
        }
        let bootstrap = matches.get_flag(BOOTSTRAP);
        Ok(Self { file: matches.get_one(FILE).cloned(), values, bootstrap })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn spelling(name: &str) -> &'static str {
    SPELLINGS.get(name).expect("every name in the tables has its spelling")
}

fn flag(key: &'static Key) -> Arg {
    let mut help = key.help.trim().trim_end_matches('.').to_owned();
    if !key.default.is_empty() {
        help += &format!(" [default: {}]", key.default);
    }
    let aliases = ALIASES.iter().filter(|(_, name)| *name == key.name);
    let arg = Arg::new(key.name)
        .long(spelling(key.name))
        .visible_aliases(aliases.map(|(alias, _)| spelling(alias)))
        .help(help)
        .help_heading(key.section)
        .hide_short_help(true)
        .allow_negative_numbers(true);
    match key.shape {
        Shape::Switch => arg
            .value_name("true|false")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Shape::List => arg.value_name("LIST").action(ArgAction::Append),
        // Durations, and quorums such as `majority`, are numbers only in part.
        Shape::Number if key.default.parse::<f64>().is_ok() => arg.value_name("NUMBER"),
        Shape::Number => arg.value_name("VALUE"),
        Shape::Text => arg.value_name("VALUE"),
        Shape::Json => arg.value_name("JSON"),
    }
}

/// Turns Go's way of writing a long option, `-config F` or `-wal_mode=sync`, into `--config F`.
///
/// Only names of options that `command` itself has are touched, and nothing behind `--`.
pub(crate) fn normalised(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let known = |name: &str| {
        matches!(name, "help" | "version")
            || command.get_arguments().any(|arg| {
                let aliases = arg.get_all_aliases().unwrap_or_default();
                arg.get_long() == Some(name) || aliases.contains(&name)
            })
    };
    let mut arguments = arguments.into_iter();
    let mut result: Vec<OsString> = arguments.next().into_iter().collect();
    for argument in arguments.by_ref() {
        if argument == "--" {
            result.push(argument);
            break;
        }
        let changed = long_option(&argument, known);
        result.push(changed.unwrap_or(argument));
    }
    result.extend(arguments);
    result
}

fn long_option(argument: &OsStr, known: impl Fn(&str) -> bool) -> Option<OsString> {
    let rest = argument.as_bytes().strip_prefix(b"-")?;
    let rest = rest.strip_prefix(b"-").unwrap_or(rest);
    let end = rest.iter().position(|byte| *byte == b'=').unwrap_or(rest.len());
    let (name, value) = rest.split_at(end);
    // A single letter is a short option.
    let name = std::str::from_utf8(name).ok().filter(|name| name.len() > 1)?.replace('_', "-");
    known(&name).then(|| {
        let mut option = b"--".to_vec();
        option.extend_from_slice(name.as_bytes());
        option.extend_from_slice(value);
        OsString::from_vec(option)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Flags::augment_args(Command::new("aegiskv"))
    }

    fn normal(arguments: &[&str]) -> Vec<String> {
        let arguments = ["aegiskv"].iter().chain(arguments).map(OsString::from);
        let result = normalised(&command(), arguments).into_iter().skip(1);
        result.map(|argument| argument.into_string().expect("the test's text")).collect()
    }

    fn values(arguments: &[&str]) -> BTreeMap<String, String> {
        let arguments = ["aegiskv"].iter().chain(arguments).map(OsString::from);
        let matches = command().get_matches_from(normalised(&command(), arguments));
        Flags::from_arg_matches(&matches).expect("flags are free in form").values
    }

    #[test]
    fn go_style_options_gain_their_second_hyphen() {
        assert_eq!(
            normal(&["-config", "f.json", "-wal_mode=sync", "--max_conns", "7"]),
            ["--config", "f.json", "--wal-mode=sync", "--max-conns", "7"]
        );
    }

    #[test]
    fn everything_else_is_left_alone() {
        let untouched = ["-h", "-x", "-5", "-unknown", "put", "wal_mode", "--", "-config"];
        assert_eq!(normal(&untouched), untouched);
    }

    #[test]
    fn every_key_has_a_flag() {
        for key in KEYS {
            let given = values(&[&format!("--{}=1", key.flag())]);
            assert_eq!(given, BTreeMap::from([(key.name.to_owned(), "1".to_owned())]));
        }
    }

    #[test]
    fn switches_stand_alone_and_lists_add_up() {
        let given = values(&["-tls-enabled", "-addrs", "a:1,b:1", "--seeds", "c:1"]);
        assert_eq!(given["tls_enabled"], "true");
        assert_eq!(given["addrs"], "a:1,b:1,c:1");
        assert_eq!(values(&["-tls_enabled=false"])["tls_enabled"], "false");
    }
}
