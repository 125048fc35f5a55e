//! The command line: the server's flags, the commands for clients and operators, their help.
//!
//! Invariant: results go to standard output, words to standard error; exit codes are 0 done,
//! 1 failed, 2 usage, 3 not found, 10 a server that was removed from its cluster. Completions, manual pages and `docs/cli.md` all come from the
//! one definition here. Nothing here touches a running node's data but through its HTTP APIs.

mod bench;
mod certs;
mod client;
mod connection;
mod dev;
mod draft;
mod exit;
mod flags;
mod kv;
mod lease;
mod list;
mod log;
mod node;
mod reference;
mod reload;
mod settings;
mod size;
mod status;
mod token;
mod transfer;

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use connection::Connection;
use exit::{Exit, Usage};
use flags::Flags;

/// A distributed in-memory key-value store for operators
///
/// Without a command this is the server. It reads its settings from --config, conf.d beside that
/// file, AEGIS_* variables and the flags below, each overriding the one before. With a command it
/// is a client, or a tool for operators.
#[derive(Parser, Debug)]
#[command(name = "aegiskv", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 10 the server was \
                        removed from its cluster.")]
struct Cli {
    #[command(flatten)]
    flags: Flags,

    /// Check the configuration, say all that is wrong with it, and exit
    #[arg(long)]
    validate: bool,

    /// Replay the write-ahead log into a fresh snapshot, say what was found, and exit
    #[arg(long, conflicts_with = "validate")]
    wal_replay: bool,

    #[command(flatten)]
    connection: Connection,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    Get(kv::Get),
    Put(kv::Put),
    Del(kv::Del),
    Incr(kv::Incr),
    List(list::List),
    Batch(transfer::Batch),
    Status(status::Status),
    Dump(transfer::Dump),
    Import(transfer::Import),
    Node(node::Node),
    Config(settings::Settings),
    Reload(reload::Reload),
    Certs(certs::Certs),
    Token(token::Token),
    Size(size::Size),
    Wal(log::Log),
    Bench(bench::Bench),
    Dev(dev::Dev),
    Completions(reference::Completions),
    Man(reference::Man),
}

impl Command {
    /// How the command reaches a node, if it does.
    fn connection(&mut self) -> Option<&mut Connection> {
        match self {
            Self::Get(command) => Some(&mut command.connection),
            Self::Put(command) => Some(&mut command.connection),
            Self::Del(command) => Some(&mut command.connection),
            Self::Incr(command) => Some(&mut command.connection),
            Self::List(command) => Some(&mut command.connection),
            Self::Batch(command) => Some(&mut command.connection),
            Self::Status(command) => Some(&mut command.connection),
            Self::Dump(command) => Some(&mut command.connection),
            Self::Import(command) => Some(&mut command.connection),
            Self::Bench(command) => Some(&mut command.connection),
            Self::Node(command) => command.connection(),
            Self::Config(_) | Self::Reload(_) | Self::Certs(_) | Self::Token(_) => None,
            Self::Size(_) | Self::Wal(_) | Self::Dev(_) => None,
            Self::Completions(_) | Self::Man(_) => None,
        }
    }

    fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Get(command) => wait(command.run()),
            Self::Put(command) => wait(command.run()),
            Self::Del(command) => wait(command.run()),
            Self::Incr(command) => wait(command.run()),
            Self::List(command) => wait(command.run()),
            Self::Batch(command) => wait(command.run()),
            Self::Status(command) => wait(command.run()),
            Self::Dump(command) => wait(command.run()),
            Self::Import(command) => wait(command.run()),
            Self::Node(command) => wait(command.run()),
            Self::Config(command) => command.run(),
            Self::Reload(command) => command.run(),
            Self::Certs(command) => command.run(),
            Self::Token(_) => token::Token::run(),
            Self::Size(command) => command.run(),
            Self::Wal(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Dev(command) => wait(command.run()),
            Self::Completions(command) => command.run(),
            Self::Man(command) => command.run(),
        }
    }
}

/// The command line's definition: what completions, manual pages and documents are made from.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    for id in Connection::IDS {
        // Before the command these work too, but they are told where they belong.
        command = command.mut_arg(id, |arg| arg.hide(true).env(clap::builder::Resettable::Reset));
    }
    command
}

/// Runs what the arguments ask for, the first being the program's name; the code is the process's.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = command();
    let arguments = flags::normalised(&command, arguments);
    match command.try_get_matches_from(arguments) {
        Ok(matches) => exit::code(dispatch(&matches)),
        Err(error) => {
            // Help and version go to standard output with code 0, faults to standard error with 2.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

fn dispatch(matches: &ArgMatches) -> anyhow::Result<Exit> {
    let cli = Cli::from_arg_matches(matches).context("cannot read the arguments")?;
    let Some(mut command) = cli.command else {
        if let Some(id) = Connection::typed(matches) {
            let text = format!("{id} is for client commands; the server's own is --bind-addr");
            return Err(Usage(text).into());
        }
        return serve(cli.flags, cli.validate, cli.wal_replay);
    };
    if let Some(flag) = Flags::given(matches) {
        let text = format!("{flag} is for the server, or belongs behind `config check` or `show`");
        return Err(Usage(text).into());
    }
    if cli.validate || cli.wal_replay {
        return Err(Usage("--validate and --wal-replay stand without a command".to_owned()).into());
    }
    if let Some(connection) = command.connection() {
        let mut leaf = matches;
        while let Some((_, inner)) = leaf.subcommand() {
            leaf = inner;
        }
        connection.settle(matches, leaf);
    }
    command.run()
}

fn serve(flags: Flags, validate: bool, wal_replay: bool) -> anyhow::Result<Exit> {
    let sources = flags.into_sources();
    if validate {
        return settings::tell(&crate::config::command::check(&sources));
    }
    if wal_replay {
        crate::server::replay_wal(sources)?;
    } else {
        crate::server::run(sources)?;
    }
    Ok(Exit::Done)
}

/// Runs a client command to its end.
fn wait(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let result = runtime.block_on(command);
    // A read of standard input may be under way that nothing will ever end.
    runtime.shutdown_background();
    result
}
