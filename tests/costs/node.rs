//! A node as it is published, alone under a tool that counts, and requests to it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// A program starts slowly under a tool that counts instructions.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Requests sent ahead of their answers.
const AHEAD: usize = 64;

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    child: Child,
    client: u16,
    ops: u16,
}

impl Node {
    /// Starts a node with so much memory; `tool` has `DIR` where its folder stands.
    pub(crate) fn start(tool: &str, max_memory_mb: u64) -> Self {
        let program = std::env::var("AEGIS_TEST_PROGRAM").expect(
            "ceilings hold for what is published: scripts/dist.sh build, then \
             AEGIS_TEST_PROGRAM=$PWD/target/dist/aegiskv",
        );
        let dir = tempfile::tempdir().unwrap();
        let [client, gossip, ops] = free_ports();
        let config = dir.path().join("config.json");
        let settings = json!({
            "node_id": "costs",
            "bind_addr": format!("127.0.0.1:{client}"),
            "gossip_bind_addr": format!("127.0.0.1:{gossip}"),
            "health_addr": format!("127.0.0.1:{ops}"),
            "data_dir": dir.path().join("data"),
            "gossip_interval": "50ms",
            "max_memory_mb": max_memory_mb,
        });
        fs::write(&config, settings.to_string()).unwrap();
        let tool = tool.replace("DIR", dir.path().to_str().unwrap());
        let mut words = tool.split_whitespace().map(str::to_owned).chain([program]);
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(words.next().unwrap())
            .args(words)
            .env_remove("AEGIS_TEST_PROGRAM")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{tool}: {e}; scripts/setup.sh test installs it"));
        let mut node = Self { dir, child, client, ops };
        let began = Instant::now();
        while !node.ops("GET", "/ready").starts_with("HTTP/1.1 200") {
            let ended = node.child.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < START_TIMEOUT, "{}", node.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        node
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// What port 7702 answers; nothing while it does not.
    pub(crate) fn ops(&self, method: &str, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.ops)) {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                 content-length: 0\r\n\r\n"
            );
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", self.client)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(stream)
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// A connection, kept alive.
pub(crate) struct Client(TcpStream);

impl Client {
    /// Sends these one after the other, each when the one before was answered.
    pub(crate) fn ask(&mut self, requests: impl Iterator<Item = Vec<u8>>) {
        requests.for_each(|request| self.send(&request, 1));
    }

    /// Sends these in groups, each when the group before was answered.
    pub(crate) fn pour(&mut self, mut requests: impl Iterator<Item = Vec<u8>>) {
        loop {
            let group: Vec<Vec<u8>> = requests.by_ref().take(AHEAD).collect();
            match group.len() {
                0 => return,
                n => self.send(&group.concat(), n),
            }
        }
    }

    fn send(&mut self, requests: &[u8], mut answers: usize) {
        const DONE: &[u8] = b"HTTP/1.1 20";
        self.0.write_all(requests).unwrap();
        let mut buffer = [0; 64 << 10];
        while answers > 0 {
            let n = self.0.read(&mut buffer).unwrap();
            assert!(n > 0, "the node hung up");
            // An answer's head is never split here: it is written at once, and groups are small.
            answers -= buffer[..n].windows(DONE.len()).filter(|bytes| *bytes == DONE).count();
        }
    }
}

pub(crate) fn put(key: u64, value_bytes: usize) -> Vec<u8> {
    let head = format!(
        "PUT /v1/kv/key:{key:012} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {value_bytes}\r\n\r\n"
    );
    [head.as_bytes(), &vec![b'x'; value_bytes]].concat()
}

pub(crate) fn get(key: u64) -> Vec<u8> {
    format!("GET /v1/kv/key:{key:012} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

/// Runs a command to its end; what it wrote, if it went well.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|e| panic!("{program}: {e}; scripts/setup.sh test installs it"));
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until a file is there and has this in it.
pub(crate) fn wait_for(path: &Path, words: &str) -> String {
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if text.contains(words) {
            return text;
        }
        assert!(began.elapsed() < START_TIMEOUT, "no {words} in {}: {text}", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn free_ports() -> [u16; 3] {
    let listeners = [0; 3].map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
