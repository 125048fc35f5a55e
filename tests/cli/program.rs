//! Running the binary once and looking at what it did.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

/// One call of the program.
pub(crate) struct Call {
    command: Command,
    input: Vec<u8>,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// A call with these arguments, in an environment without any of the program's variables.
pub(crate) fn aegiskv(arguments: &[&str]) -> Call {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aegiskv"));
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    Call { command, input: Vec::new() }
}

impl Call {
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    pub(crate) fn run(mut self) -> Outcome {
        let command = self.command.stdin(Stdio::piped());
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        let input = self.input;
        // A program that does not read its input closes the pipe; that is its right.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let Output { status, stdout, stderr } = child.wait_with_output().expect("the binary ends");
        writer.join().expect("the writer does not panic");
        Outcome {
            code: status.code().expect("no signal ended it"),
            stdout,
            stderr: String::from_utf8(stderr).expect("messages are UTF-8"),
        }
    }
}

impl Outcome {
    /// Standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("the output is UTF-8")
    }

    /// The outcome, after making sure that it is a success.
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }
}
