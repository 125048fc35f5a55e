//! The `aegiskv` program: hands its arguments to [`aegiskv::cli`].

use std::process::ExitCode;

/// Gives back memory under churn, and says what an allocation really takes.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    aegiskv::cli::run(std::env::args_os())
}
