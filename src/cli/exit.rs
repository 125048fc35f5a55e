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
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note(format_args!("aegiskv: {}", in_words(&error)));
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
pub(crate) fn output() -> io::BufWriter<io::StdoutLock<'static>> {
    io::BufWriter::new(io::stdout().lock())
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

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
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
    fn a_broken_pipe_is_found_under_its_context() {
        let error = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("list");
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("broken pipe")));
    }
}
