//! One node: its files, its settings, and its process of the moment.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::{PATIENCE, eventually};

pub(crate) const CLIENT_PORT: u16 = 7700;
pub(crate) const PEER_PORT: u16 = 7701;
pub(crate) const OPS_PORT: u16 = 7702;

/// Lines of its log that a node shows when a test fails.
const TAIL_LINES: usize = 60;

/// Variables that the tests look at.
const SAID_TO_TESTS: [&str; 4] =
    ["AEGIS_RACE_ROUNDS", "AEGIS_CHAOS_SECONDS", "AEGIS_CHAOS_SEED", "AEGIS_NETWORK_CASES"];

/// A node's home, across its lives. Dropped: killed.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) host: Ipv4Addr,
    dir: PathBuf,
    settings: Map<String, Value>,
    /// The network namespace that it lives in, if it is not the test's own.
    namespace: Option<String>,
    /// What is preloaded into its process.
    preload: Option<PathBuf>,
    child: Option<Child>,
    /// Where its log stood when it was started.
    started_at: usize,
}

impl Node {
    /// Lays out a node in `dir`, without starting it.
    pub(crate) fn new(dir: &Path, name: &str, host: Ipv4Addr, namespace: Option<String>) -> Self {
        let dir = dir.join(format!("{name}-{}", host.octets()[3]));
        fs::create_dir_all(&dir).unwrap();
        let settings = json!({
            "node_id": name,
            "data_dir": dir.join("data"),
            "max_memory_mb": 64,
            // A debug build takes seconds to read a large file to its end.
            "wal_max_size_mb": 8,
        });
        let Value::Object(settings) = settings else { unreachable!("it is one") };
        let (name, preload) = (name.to_owned(), None);
        let mut node =
            Self { name, host, dir, settings, namespace, preload, child: None, started_at: 0 };
        node.move_to(host, PEER_PORT);
        node
    }

    /// Gives it another address, for the next start.
    pub(crate) fn move_to(&mut self, host: Ipv4Addr, peer_port: u16) {
        assert!(self.child.is_none(), "{} runs", self.name);
        self.host = host;
        self.set(&json!({
            "bind_addr": format!("{host}:{CLIENT_PORT}"),
            "gossip_bind_addr": format!("{host}:{peer_port}"),
            "health_addr": format!("{host}:{OPS_PORT}"),
        }));
    }

    fn listens(&self, setting: &str) -> &str {
        self.settings[setting].as_str().unwrap()
    }

    /// Changes settings, for the next start or reload. `null` takes one back.
    pub(crate) fn set(&mut self, settings: &Value) {
        for (key, value) in settings.as_object().unwrap() {
            match value {
                Value::Null => self.settings.remove(key),
                value => self.settings.insert(key.clone(), value.clone()),
            };
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.client_addr())
    }

    pub(crate) fn ops_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listens("health_addr"))
    }

    pub(crate) fn client_addr(&self) -> String {
        self.listens("bind_addr").to_owned()
    }

    pub(crate) fn peer_addr(&self) -> String {
        self.listens("gossip_bind_addr").to_owned()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What `aegiskv status` says of it.
    pub(crate) fn status(&self) -> String {
        let (code, out, err) = self.command(&["status"]);
        assert_eq!(code, 0, "{err}");
        out
    }

    /// A command of `aegiskv` to it: the code, standard output and standard error.
    pub(crate) fn command(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aegiskv"));
        command.args(arguments).args(["--ops-addr", &format!("{}:{OPS_PORT}", self.host)]);
        command.args(["--addr", &self.client_addr()]);
        let done = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    }

    /// Has what `slow_disk` made preloaded from the next start on.
    pub(crate) fn preload(&mut self, shim: &Path) {
        self.preload = Some(shim.to_owned());
    }

    /// From now on an fsync takes so much longer.
    pub(crate) fn set_fsync(&self, takes: Duration) {
        assert!(self.preload.is_some(), "nothing is preloaded");
        let path = self.dir.join("fsync");
        fs::write(path.with_extension("new"), takes.as_millis().to_string()).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    /// Starts the process, without waiting for anything.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let config = self.dir.join("config.json");
        fs::write(&config, serde_json::to_vec_pretty(&self.settings).unwrap()).unwrap();
        let log = fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let binary = env!("CARGO_BIN_EXE_aegiskv");
        let mut command = match &self.namespace {
            // It becomes the node: the process is the same.
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, binary]);
                command
            }
            None => Command::new(binary),
        };
        command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.env_remove("RUST_LOG");
        if let Some(shim) = &self.preload {
            command.env("LD_PRELOAD", shim).env("SLOW_DISK", self.dir.join("fsync"));
        }
        // What is said to the tests is no setting of a node's.
        for told in SAID_TO_TESTS {
            command.env_remove(told);
        }
        self.started_at = self.log_mark();
        self.child = Some(command.spawn().unwrap());
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Waits until it is ready.
    pub(crate) async fn wait_ready(&mut self, http: &reqwest::Client) {
        let url = self.ops_url("/ready");
        eventually(&format!("{} is ready", self.name), PATIENCE, async || {
            self.assert_running();
            let answer = http.get(&url).send().await.map_err(|error| error.to_string())?;
            match answer.status().as_u16() {
                200 => Ok(()),
                _ => Err(answer.text().await.unwrap_or_default()),
            }
        })
        .await;
    }

    /// Panics if the process has ended by itself.
    pub(crate) fn assert_running(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended with {status}:\n{}", self.name, self.log_tail());
        }
    }

    /// Whether it runs, and has come so far as to serve.
    pub(crate) fn has_begun(&self) -> bool {
        self.is_running() && self.log_since(self.started_at).contains("serving clients")
    }

    /// How the process ended, if it did so by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("the node was started");
        child.try_wait().unwrap()
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the node runs");
        signal::kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    }

    /// Processor time that the process has taken so far (proc(5), `stat`).
    pub(crate) fn cpu(&self) -> Duration {
        let child = self.child.as_ref().unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
        // The kernel's ABI has a hundred ticks a second.
        Duration::from_millis(10 * ticks)
    }

    /// SIGKILL, and the end seen.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let status = self.child.take().expect("it runs").wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{} had ended: {}", self.name, self.log_tail());
    }

    /// SIGSTOP: it is there, and silent.
    pub(crate) fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGTERM, and its end in order, awaited so that load in this process goes on.
    pub(crate) async fn stop(&mut self, within: Duration) {
        self.signal(Signal::SIGTERM);
        let status = self.end(within).await;
        // Before it has said a word it does not listen yet: then any process ends like this.
        let is_newborn = self.log_mark() == self.started_at && status.signal() == Some(15);
        assert!(
            status.success() || is_newborn,
            "{} ended with {status}:\n{}",
            self.name,
            self.log_tail()
        );
    }

    /// Its end, awaited.
    pub(crate) async fn end(&mut self, within: Duration) -> ExitStatus {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            assert!(began.elapsed() < within, "{} still runs:\n{}", self.name, self.log_tail());
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.child = None;
        status
    }

    /// Takes all its data away.
    pub(crate) fn wipe(&self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        fs::remove_dir_all(self.data()).unwrap();
    }

    /// Where its log stands now; for [`Node::log_since`].
    pub(crate) fn log_mark(&self) -> usize {
        self.log().len()
    }

    /// What it has logged since then.
    pub(crate) fn log_since(&self, mark: usize) -> String {
        self.log().split_off(mark)
    }

    /// All that it ever logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
