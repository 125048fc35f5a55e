//! Completions, manual pages and `docs/cli.md`, all made from the one definition.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Arg, Args, Command};
use clap_complete::Shell;

use super::exit::{Exit, note, output};
use crate::config::Key;

/// What the binary is called.
const NAME: &str = "aegiskv";

/// Prints a shell's completions
///
/// For bash: aegiskv completions bash > /etc/bash_completion.d/aegiskv
#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), NAME, &mut script);
        let mut out = output();
        out.write_all(&script)?;
        out.flush()?;
        Ok(Exit::Done)
    }
}

/// Prints the manual page, or writes one for every command
#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Write aegiskv.1, aegiskv-get.1 and so on into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Print the reference of all commands as Markdown instead
    #[arg(long, conflicts_with = "dir")]
    markdown: bool,
}

impl Man {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let command = super::command().disable_help_subcommand(true);
        let mut out = output();
        if let Some(dir) = &self.dir {
            let shown = dir.display();
            fs::create_dir_all(dir).with_context(|| format!("cannot make {shown}"))?;
            write_pages(command, dir)
                .with_context(|| format!("cannot write manual pages into {shown}"))?;
            note(format_args!("wrote the manual pages into {shown}"));
        } else if self.markdown {
            out.write_all(markdown(command).as_bytes())?;
        } else {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            out.write_all(&page)?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }
}

/// Writes the pages into `dir`, each whole or not, in the place of those there were.
fn write_pages(command: Command, dir: &Path) -> io::Result<()> {
    let aside = dir.join(format!(".{NAME}.{}.part", std::process::id()));
    fs::create_dir(&aside)?;
    let write = || {
        clap_mangen::generate_to(command, &aside)?;
        for page in fs::read_dir(&aside)? {
            let page = page?;
            fs::rename(page.path(), dir.join(page.file_name()))?;
        }
        Ok(())
    };
    let written = write();
    fs::remove_dir_all(&aside)?;
    written
}

/// All commands with their options, as they stand in `docs/cli.md`.
fn markdown(mut command: Command) -> String {
    command.build();
    let mut text = "# The command line\n\n\
        Made by `aegiskv man --markdown`; do not edit by hand.\n"
        .to_owned();
    chapter(&command, &mut text);
    text
}

fn chapter(command: &Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(NAME);
    *text += &format!("\n## `{name}`\n\n");
    let about = command.get_long_about().or(command.get_about());
    *text += &format!("{}\n", about.map(ToString::to_string).unwrap_or_default().trim());
    let usage = command.clone().render_usage().to_string();
    *text += &format!("\n```text\n{}\n```\n", usage.trim_start_matches("Usage: ").trim());
    let is_root = name == NAME;
    let is_key = |arg: &Arg| Key::find(arg.get_id().as_str()).is_some();
    let shown = |arg: &&Arg| {
        let told_before = !is_root && is_key(arg);
        let id = arg.get_id().as_str();
        !arg.is_hide_set() && !told_before && !matches!(id, "help" | "version")
    };
    let mut heading = None;
    let mut arguments: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    // Arguments of one heading stand together, in the order in which the headings first come up.
    let order: Vec<_> = arguments.iter().map(|arg| arg.get_help_heading()).collect();
    arguments.sort_by_key(|arg| order.iter().position(|other| *other == arg.get_help_heading()));
    for (index, arg) in arguments.into_iter().enumerate() {
        if index == 0 || heading != arg.get_help_heading() {
            heading = arg.get_help_heading();
            if let Some(heading) = heading {
                *text += &format!("\n**{heading}**\n");
            }
            *text += "\n| option | meaning |\n|---|---|\n";
        }
        *text += &row(arg);
    }
    if !is_root && command.get_arguments().any(is_key) {
        *text += "\nIt takes the server's settings as well.\n";
    }
    let commands = || command.get_subcommands().filter(|command| !command.is_hide_set());
    let mut commands_here = commands().filter(|command| command.get_name() != "help").peekable();
    if commands_here.peek().is_some() {
        *text += "\n| command | what it does |\n|---|---|\n";
    }
    for command in commands_here {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        *text += &format!("| `{}` | {} |\n", command.get_name(), escaped(&about));
    }
    for command in commands().filter(|command| command.get_name() != "help") {
        chapter(command, text);
    }
}

fn row(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default();
    let value = values.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ");
    let takes_value = arg.get_num_args().is_some_and(|range| range.takes_values());
    let form = match arg.get_long() {
        Some(long) if takes_value && arg.is_require_equals_set() => format!("--{long}[={value}]"),
        Some(long) if takes_value => format!("--{long} {value}"),
        Some(long) => format!("--{long}"),
        None if arg.is_required_set() => value,
        None => format!("[{value}]"),
    };
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let choices: Vec<_> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set() && takes_value)
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !choices.is_empty() {
        help += &format!(" ({})", choices.join(", "));
    }
    let defaults: Vec<_> =
        arg.get_default_values().iter().filter_map(|value| value.to_str()).collect();
    if takes_value && defaults.iter().any(|value| !value.is_empty()) {
        help += &format!(" [default: {}]", defaults.join(" "));
    }
    if let Some(variable) = arg.get_env().and_then(|name| name.to_str()) {
        help += &format!(" [env: {variable}]");
    }
    format!("| `{}` | {} |\n", form.replace('|', "\\|"), escaped(&help))
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &Command, check: &mut impl FnMut(&Command)) {
        check(command);
        command.get_subcommands().for_each(|command| each(command, check));
    }

    #[test]
    fn the_definition_holds_together() {
        super::super::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        each(&super::super::command(), &mut |command| {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(about.len() > 10, "{} says {about:?}", command.get_name());
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty(), "{} {} has no help", command.get_name(), arg.get_id());
            }
        });
    }
}
