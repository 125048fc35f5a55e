//! A node of the test's own, on free ports of loopback, with its data in a temporary directory.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::program::{Call, aegiskv};

/// Longest wait for a node to be ready.
const START_WAIT: Duration = Duration::from_secs(20);

/// A running node; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) dir: TempDir,
    pub(crate) addr: String,
    pub(crate) ops_addr: String,
}

/// Three ports that nobody listens on just now: for clients, gossip and operations.
pub(crate) fn free_ports() -> [u16; 3] {
    // All are held at once, so that they differ.
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("it is bound").port())
}

impl Server {
    /// Starts a node with these flags beside those for its addresses and its directory.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let [client, gossip, ops] = free_ports();
        let at = |port: u16| format!("127.0.0.1:{port}");
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_aegiskv"));
        command
            .args(["--bind-addr", &at(client), "--gossip-bind-addr", &at(gossip)])
            .args(["--health-addr", &at(ops), "--data-dir"])
            .arg(dir.path().join("data"))
            .args(flags)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        // The log is read to the end, so that a full pipe never stops the node.
        let log = BufReader::new(child.stderr.take().expect("it is piped"));
        std::thread::spawn(move || {
            log.lines().map_while(Result::ok).for_each(|line| eprintln!("{line}"))
        });
        let mut server = Self { child, dir, addr: at(client), ops_addr: at(ops) };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&mut self) {
        let start = Instant::now();
        while !is_ready(&self.ops_addr) {
            let status = self.child.try_wait().expect("it can be asked");
            assert_eq!(status, None, "the node ended before it was ready");
            assert!(start.elapsed() < START_WAIT, "the node is not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A client command to this node.
    pub(crate) fn call(&self, arguments: &[&str]) -> Call {
        aegiskv(arguments).env("AEGISKV_ADDR", &self.addr).env("AEGISKV_OPS_ADDR", &self.ops_addr)
    }

    /// Ends the node at once, and gives back its directory.
    pub(crate) fn kill(mut self) -> TempDir {
        self.end();
        std::mem::replace(&mut self.dir, tempfile::tempdir().expect("a directory"))
    }

    /// Ends the node in order, and gives back its directory.
    pub(crate) fn stop(mut self) -> TempDir {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("it runs");
        assert!(self.child.wait().expect("it ends").success());
        std::mem::replace(&mut self.dir, tempfile::tempdir().expect("a directory"))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn is_ready(ops_addr: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(ops_addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
