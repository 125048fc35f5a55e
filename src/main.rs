//! The `aegiskv` program: hands its arguments to [`aegiskv::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    aegiskv::cli::run(std::env::args_os())
}
