//! The `config` commands; what they do is in [`crate::config::command`].

use std::io::Write as _;

use clap::{Args, Subcommand};

use super::exit::{Exit, output};
use super::flags::Flags;
use crate::config::command::{self, Outcome};

/// Checks, shows and explains the server's configuration
#[derive(Args, Debug)]
pub(crate) struct Settings {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Says all that is wrong with a configuration; code 1 if anything is
    ///
    /// Reads what the server would: the file, conf.d, the environment, flags.
    Check {
        #[command(flatten)]
        flags: Flags,
    },
    /// Prints every effective value and where it comes from; secrets are not shown
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: Flags,
    },
    /// Prints the built-in configuration, complete, as a file to begin with
    Default,
}

impl Settings {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        tell(&match self.command {
            Command::Check { flags } => command::check(&flags.into_sources()),
            Command::Show { json, flags } => command::show(&flags.into_sources(), json),
            Command::Default => command::default(),
        })
    }
}

/// Prints what came of it.
pub(crate) fn tell(outcome: &Outcome) -> anyhow::Result<Exit> {
    let _ = std::io::stderr().write_all(outcome.stderr.as_bytes());
    let mut out = output();
    out.write_all(outcome.stdout.as_bytes())?;
    out.flush()?;
    Ok(if outcome.status == 0 { Exit::Done } else { Exit::Failed })
}
