//! How a command ends: its exit code, and what standard error says on the way out.
//!
//! Invariant: results go to standard output, everything else to standard error; a reader that
//! closes the pipe early is no failure.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Code 0.
    Done,
    /// Code 1: the command ran, and what it reports is bad news that it has already told.
    Failed,
    /// Code 3: the key is not there.
    NotFound,
}

/// The command line asks for something that makes no sense: code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}\nsee aegiskv --help")]
pub(crate) struct Usage(pub(crate) String);

/// The code for the shell; tells the error, if there is one.
pub(crate) fn code(result: anyhow::Result<Exit>) -> ExitCode {
    match result {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::Failed) => ExitCode::from(1),
        Ok(Exit::NotFound) => ExitCode::from(3),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note(format_args!("aegiskv: {error:#}"));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Says something on standard error; nobody listening is no failure.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Standard output, buffered; flush it before leaving.
pub(crate) fn output() -> io::BufWriter<io::StdoutLock<'static>> {
    io::BufWriter::new(io::stdout().lock())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
