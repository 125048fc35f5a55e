//! Starts and ends the built binary, on free loopback ports and in a folder of the test's own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A node's configuration and data, across its lives.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) client: u16,
    pub(crate) ops: u16,
    config: Map<String, Value>,
}

/// One life of a node. Dropped: killed.
pub(crate) struct Node {
    child: Child,
    pub(crate) client: u16,
    pub(crate) ops: u16,
    pub(crate) stderr: PathBuf,
}

impl Home {
    pub(crate) fn new(settings: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [client, gossip, ops] = free_ports();
        let mut config = Map::new();
        for (key, value) in [
            ("node_id", json!("test")),
            ("bind_addr", json!(format!("127.0.0.1:{client}"))),
            ("gossip_bind_addr", json!(format!("127.0.0.1:{gossip}"))),
            ("health_addr", json!(format!("127.0.0.1:{ops}"))),
            ("data_dir", json!(dir.path().join("data"))),
            ("max_conns", json!(200)),
            // A node with a new directory listens for three of these before it founds a cluster.
            ("gossip_interval", json!("10ms")),
        ] {
            config.insert(key.into(), value);
        }
        let mut home = Self { dir, client, ops, config };
        home.set(settings);
        home
    }

    /// Changes settings; a running node sees them when it reloads.
    pub(crate) fn set(&mut self, settings: Value) {
        for (key, value) in settings.as_object().unwrap() {
            self.config.insert(key.clone(), value.clone());
        }
        fs::write(self.config_path(), serde_json::to_vec_pretty(&self.config).unwrap()).unwrap();
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("config.json")
    }

    pub(crate) fn peer_addr(&self) -> String {
        self.config["gossip_bind_addr"].as_str().unwrap().to_owned()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aegiskv"));
        command.arg("-config").arg(self.config_path()).stdin(Stdio::null());
        command
    }

    /// Starts the node without waiting for it.
    pub(crate) fn spawn(&self) -> Node {
        self.spawn_with(self.command())
    }

    /// As [`Home::spawn`], by a command made from [`Home::command`].
    pub(crate) fn spawn_with(&self, mut command: Command) -> Node {
        let stderr = self.dir.path().join("stderr");
        let log = fs::File::options().create(true).append(true).open(&stderr).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.node_of(child, stderr)
    }

    /// A node that was started otherwise, and what is known of its standard error.
    pub(crate) fn node_of(&self, child: Child, stderr: PathBuf) -> Node {
        Node { child, client: self.client, ops: self.ops, stderr }
    }

    /// Starts the node and waits until it is ready.
    pub(crate) async fn start(&self) -> Node {
        let mut node = self.spawn();
        node.wait_ready().await;
        node
    }

    /// Runs the node until it ends by itself; its status and all it ever wrote to stderr.
    pub(crate) fn run_to_end(&self) -> (ExitStatus, String) {
        let mut node = self.spawn();
        let status = node.wait(START_TIMEOUT);
        (status, node.log())
    }
}

impl Node {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn url(&self, key: &str) -> String {
        format!("http://127.0.0.1:{}/v1/kv/{key}", self.client)
    }

    pub(crate) fn ops_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ops)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    pub(crate) async fn wait_ready(&mut self) {
        let began = Instant::now();
        let http = http();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the node ended with {status}:\n{}", self.log());
            }
            if let Ok(answer) = http.get(self.ops_url("/ready")).send().await
                && answer.status() == 200
            {
                return;
            }
            assert!(began.elapsed() < START_TIMEOUT, "not ready in time:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// SIGKILL, and the end seen.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(9),
            "the node ended before it was killed:\n{}",
            self.log()
        );
    }

    /// SIGTERM; the node must end well within `within`.
    pub(crate) fn stop(mut self, within: Duration) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.wait(within);
        assert!(status.success(), "ended with {status}:\n{}", self.log());
    }

    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < within, "still running after {within:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client; making one anew would read the system's certificates each time. Tests have runtimes
/// of their own, so nothing is kept open between requests of different ones.
pub(crate) fn http() -> reqwest::Client {
    let client = reqwest::Client::builder().tls_certs_only([]).build();
    client.unwrap()
}

pub(crate) async fn put(node: &Node, key: &str, value: impl Into<reqwest::Body>) -> u16 {
    let request = http().put(node.url(key)).body(value);
    request.send().await.unwrap().status().as_u16()
}

pub(crate) async fn get(node: &Node, key: &str) -> Option<String> {
    let answer = http().get(node.url(key)).send().await.unwrap();
    match answer.status().as_u16() {
        200 => Some(answer.text().await.unwrap()),
        404 => None,
        other => panic!("{key}: {other}"),
    }
}

pub(crate) async fn metric(node: &Node, name: &str) -> f64 {
    let text = http().get(node.ops_url("/metrics")).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|l| l.starts_with(&format!("{name} ")) || *l == name);
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Three ports that were free a moment ago.
fn free_ports() -> [u16; 3] {
    let listeners = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|l| l.local_addr().unwrap().port())
}

/// Every file below `dir`, with its size.
pub(crate) fn files(dir: &Path) -> Vec<(String, u64)> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()))
        .collect();
    found.sort();
    found
}

/// A file system that goes when it is dropped.
pub(crate) struct Unmount(pub(crate) PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
