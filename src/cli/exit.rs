//! How a command ends: its exit code, and what standard error says on the way out.
//!
//! Invariant: results go to standard output, everything else to standard error; a reader that
//! closes that pipe early is no failure. A connection that breaks is one, whatever the system calls
//! it.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::logging::last_words;

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

/// The code of a server that was removed from its cluster: the unit does not start it again.
const REMOVED: u8 = 10;

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
        Err(error) if is_reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            last_words(format!("aegiskv: {}", in_words(&error)));
            ExitCode::from(failure(&error))
        }
    }
}

/// The code of a failure.
fn failure(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() {
        2
    } else if error.is::<crate::server::Removed>() {
        REMOVED
    } else {
        1
    }
}

/// Says something on standard error; nobody listening is no failure.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Standard output, buffered; flush it before leaving.
pub(crate) fn output() -> io::BufWriter<Output> {
    io::BufWriter::new(Output(io::stdout().lock()))
}

/// Standard output, whose errors can be told from those of connections.
#[derive(Debug)]
pub(crate) struct Output(io::StdoutLock<'static>);

/// Whoever read standard output does so no more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
struct ReaderGone;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(of_reader)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(of_reader)
    }
}

fn of_reader(error: io::Error) -> io::Error {
    match error.kind() {
        kind @ io::ErrorKind::BrokenPipe => io::Error::new(kind, ReaderGone),
        _ => error,
    }
}

/// An error and its causes, each told once.
pub(crate) fn in_words(error: &anyhow::Error) -> String {
    let mut words = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !words.contains(&cause) {
            words += ": ";
            words += &cause;
        }
    }
    words
}

fn is_reader_gone(error: &anyhow::Error) -> bool {
    let of_output =
        |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<ReaderGone>());
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(of_output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let cause = io::Error::other("no route");
        let error = anyhow::Error::new(cause).context("cannot reach kv1: no route\nis it up?");
        assert_eq!(in_words(&error), "cannot reach kv1: no route\nis it up?");
        let cause = io::Error::other("permission denied");
        let error = anyhow::Error::new(cause).context("cannot read f");
        assert_eq!(in_words(&error), "cannot read f: permission denied");
    }

    #[test]
    fn a_reader_that_is_gone_is_found_under_its_context_and_a_broken_connection_is_a_failure() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let of_list = |error: io::Error| anyhow::Error::new(error).context("list");
        assert!(is_reader_gone(&of_list(of_reader(broken()))));
        assert!(!is_reader_gone(&of_list(broken())));
        assert!(!is_reader_gone(&of_list(of_reader(io::Error::other("full")))));
    }
}
