//! One node of the throw-away cluster: its files, its process, its log.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, PipeReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::Context as _;
use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, getppid};
use serde_json::{Value as Json, json};

use super::scratch::Scratch;
use crate::cli::exit::note;

/// Memory for entries, in MB: several nodes share a machine that has other things to do.
const MEMORY_MB: u32 = 256;

/// Lines of a log that are shown when its node is in trouble.
const TAIL_LINES: usize = 15;

/// A node and its files. Dropped: killed.
pub(super) struct Node {
    pub(super) name: String,
    /// Where it serves clients; the ports above are told by [`super::PORTS`].
    pub(super) port: u16,
    config: PathBuf,
    log: PathBuf,
    verbose: bool,
    /// `None` once its end was noticed.
    process: Option<Process>,
    /// When to start it again.
    pub(super) due: Option<Instant>,
}

struct Process {
    child: Child,
    /// Copies the log to standard error; ends with the node, whose end of the pipe is the only one.
    reader: Option<JoinHandle<()>>,
}

impl Node {
    /// Writes the node's configuration and starts it; `ports` are all nodes' client ports.
    pub(super) fn start(
        scratch: &Scratch,
        name: String,
        port: u16,
        ports: &[u16],
        secret: &str,
        verbose: bool,
    ) -> anyhow::Result<Self> {
        let dir = scratch.dir();
        let (config, log) = (dir.join(format!("{name}.json")), dir.join(format!("{name}.log")));
        let settings = settings(&name, port, ports, secret, dir);
        std::fs::write(&config, format!("{settings:#}\n"))
            .with_context(|| format!("cannot write {}", config.display()))?;
        let mut node = Self { name, port, config, log, verbose, process: None, due: None };
        node.start_again()?;
        Ok(node)
    }

    /// Starts the process, after its end as before its beginning.
    pub(super) fn start_again(&mut self) -> anyhow::Result<()> {
        let file = File::options().create(true).append(true).open(&self.log);
        let file = file.with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = command(&self.config)?;
        let pipe = if self.verbose {
            let (reader, writer) = io::pipe().context("cannot make a pipe")?;
            command.stderr(writer);
            Some((reader, file))
        } else {
            command.stderr(file);
            None
        };
        let child = command.spawn().with_context(|| format!("cannot start {}", self.name))?;
        // The command holds the pipe's other end, and must not when the node ends.
        drop(command);
        let prefix = self.name.clone();
        let reader = pipe.map(|(pipe, file)| thread::spawn(move || copy(&prefix, pipe, file)));
        self.process = Some(Process { child, reader });
        self.due = None;
        Ok(())
    }

    /// The number of its process, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    /// How it ended, told once: when that is noticed.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let status = process
            .child
            .try_wait()
            .with_context(|| format!("cannot tell whether {} still runs", self.name))?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    /// Sends a signal, if it still runs.
    pub(super) fn signal(&self, signal: Signal) {
        let Some(pid) = self.pid() else { return };
        // Not waited for yet, so the number is still this node's.
        if let Err(error) = signal::kill(Pid::from_raw(pid.cast_signed()), signal) {
            note(format_args!("{} gets no {signal}: {error}", self.name));
        }
    }

    /// Asks it whether it is ready; else why not, in words.
    pub(super) async fn ready(&self, http: &reqwest::Client) -> Result<(), String> {
        let url = format!("http://127.0.0.1:{}/ready", self.port + 2);
        let Ok(answer) = http.get(url).send().await else {
            return Err("no answer yet".to_owned());
        };
        if answer.status().is_success() {
            return Ok(());
        }
        let body: Json = answer.json().await.unwrap_or_default();
        let checks = body["checks"].as_object();
        let troubles = checks.into_iter().flatten().filter(|(_, text)| {
            let text = text.as_str().unwrap_or_default();
            text != "ok" && !text.starts_with("ok:")
        });
        let troubles: Vec<String> = troubles
            .map(|(name, text)| format!("{name}: {}", text.as_str().unwrap_or_default()))
            .collect();
        Err(if troubles.is_empty() { "not ready yet".to_owned() } else { troubles.join("; ") })
    }

    /// The last lines of its log.
    pub(super) fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The node's configuration file.
fn settings(name: &str, port: u16, ports: &[u16], secret: &str, dir: &Path) -> Json {
    let at = |port: u16| format!("127.0.0.1:{port}");
    json!({
        "node_id": name,
        "bind_addr": at(port),
        "gossip_bind_addr": at(port + 1),
        "health_addr": at(port + 2),
        "addrs": ports.iter().map(|port| at(port + 1)).collect::<Vec<_>>(),
        "data_dir": dir.join(name),
        "gossip_secret": secret,
        // The cluster is born after three of these.
        "gossip_interval": "200ms",
        "max_memory_mb": MEMORY_MB,
        "drain_timeout": "5s",
    })
}

/// This same program as a server that ends with this process.
fn command(config: &Path) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = Command::new(program);
    command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null());
    // What the environment sets is for a server of the user's own.
    for (variable, _) in std::env::vars_os() {
        if variable.as_encoded_bytes().starts_with(b"AEGIS_") {
            command.env_remove(variable);
        }
    }
    // Ctrl-C in the terminal is for this process, which then stops its nodes.
    command.process_group(0);
    let parent = Pid::this();
    // SAFETY: between fork and exec only functions run that are safe there: two system calls, and
    // the making of an error from a number. Nothing is allocated and no lock taken.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // Were the parent gone already, its death would never be told.
            if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    Ok(command)
}

/// Copies a log, line by line, to its file and behind the node's name to standard error.
fn copy(name: &str, pipe: PipeReader, mut file: File) {
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    // An error is no more than an end here: the node's own end is noticed elsewhere.
    while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        let _ = file.write_all(&line);
        note(format_args!("{name} | {}", String::from_utf8_lossy(line.trim_ascii_end())));
        line.clear();
    }
}
