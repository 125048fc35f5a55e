//! The `reload` command: SIGHUP that waits for its outcome, for `ExecReload=` of the unit.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::exit::{Exit, note, output};
use crate::process::ReloadReport;

/// Pause between two looks at the report.
const PACE: Duration = Duration::from_millis(20);

/// Makes a running server read its configuration again, and waits for the outcome; code 1 if it is
/// refused
///
/// This is what `systemctl reload aegiskv` runs. The server must have been started by systemd, with
/// a directory for its report (RuntimeDirectory=).
#[derive(Args, Debug)]
pub(crate) struct Reload {
    /// The server's process
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(2..))]
    pid: i32,

    /// Where the server reports [default: $RUNTIME_DIRECTORY, or /run/aegiskv]
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,

    /// How long to wait for the outcome
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Reload {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let directory = self.runtime_dir.or_else(ReloadReport::directory);
        let directory = directory.unwrap_or_else(|| PathBuf::from("/run/aegiskv"));
        if !directory.is_dir() {
            bail!(
                "{} is not there, so no outcome could be told: set RuntimeDirectory= in the unit, \
                 or send the signal alone and read the server's log",
                directory.display()
            );
        }
        let asked = ReloadReport::now_usec().context("no monotonic clock")?;
        let process = Pid::from_raw(self.pid);
        kill(process, Signal::SIGHUP)
            .with_context(|| format!("cannot signal process {}", self.pid))?;
        let report = wait(&directory, process, asked, self.timeout)?;
        tell(&report)
    }
}

/// The report of a reload that began after `asked`.
fn wait(
    directory: &Path,
    process: Pid,
    asked: u64,
    timeout: Duration,
) -> anyhow::Result<ReloadReport> {
    let deadline = Instant::now() + timeout;
    loop {
        let report = ReloadReport::read(directory)
            .with_context(|| format!("cannot read the report in {}", directory.display()))?;
        if let Some(report) = report.filter(|report| report.begun_usec >= asked) {
            return Ok(report);
        }
        if kill(process, None) == Err(Errno::ESRCH) {
            bail!("process {process} ended while it was to reload; its log says why");
        }
        if Instant::now() >= deadline {
            bail!(
                "process {process} reported nothing in {} within {timeout:?}; its log may say why",
                directory.display()
            );
        }
        thread::sleep(PACE);
    }
}

fn tell(report: &ReloadReport) -> anyhow::Result<Exit> {
    for warning in &report.warnings {
        note(format_args!("warning: {warning}"));
    }
    if !report.problems.is_empty() {
        note("not reloaded; the old configuration stays in force");
        report.problems.iter().for_each(note);
        return Ok(Exit::Failed);
    }
    let mut out = output();
    match report.applied.as_slice() {
        [] => writeln!(out, "reloaded; nothing has changed")?,
        keys => writeln!(out, "reloaded: {}", keys.join(", "))?,
    }
    if !report.needs_restart.is_empty() {
        writeln!(out, "in force only after a restart: {}", report.needs_restart.join(", "))?;
    }
    out.flush()?;
    Ok(Exit::Done)
}
