//! The throw-away cluster: it comes up, says what to try, and leaves nothing behind.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::program::aegiskv;

/// Longest wait for what should come in a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);

struct Dev {
    child: Child,
    port: u16,
    /// Where it keeps its temporary directory.
    tmp: TempDir,
    /// What it said when all was ready.
    words: String,
    /// Open, so that the command can go on writing.
    _stdout: BufReader<std::process::ChildStdout>,
}

impl Dev {
    fn start(flags: &[&str]) -> Self {
        let tmp = tempfile::tempdir().expect("a directory");
        let port = free_base();
        let mut command = Command::new(env!("CARGO_BIN_EXE_aegiskv"));
        command
            .args(["dev", "--nodes", "3", "--port", &port.to_string()])
            .args(flags)
            .env_clear()
            .env("TMPDIR", tmp.path())
            // A server's setting; not for these nodes.
            .env("AEGIS_NODE_ID", "somebody-elses")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(tmp.path().join("stderr")).expect("a file"));
        let mut child = command.spawn().expect("the binary starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut words = String::new();
        while !words.contains("Ctrl-C") {
            let bytes = stdout.read_line(&mut words).expect("it is text");
            assert!(bytes > 0, "it ended early: {}", said(&tmp));
        }
        Self { child, port, tmp, words, _stdout: stdout }
    }

    fn get(&self, port: u16, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).expect("it listens");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// The nodes' process numbers, as it says them.
    fn nodes(&self) -> Vec<Pid> {
        let numbers = self.words.lines().filter_map(|line| line.split_once("  process "));
        numbers.map(|(_, pid)| Pid::from_raw(pid.trim().parse().expect("a number"))).collect()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }

    fn wait(&mut self) -> ExitStatus {
        let status = wait_for("the command to end", || self.child.try_wait().expect("it is ours"));
        let gone = || self.nodes().iter().all(|pid| kill(*pid, None).is_err()).then_some(());
        wait_for("the nodes to end", gone);
        status
    }

    /// Its temporary directories that are there.
    fn left_over(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.tmp.path()).expect("it is ours");
        let paths = entries.map(|entry| entry.expect("it is ours").path());
        paths.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(tmp: &TempDir) -> String {
    std::fs::read_to_string(tmp.path().join("stderr")).unwrap_or_default()
}

fn wait_for<T>(what: &str, mut is_there: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = is_there() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port such that nobody listens on what three nodes need from there on. Below the range from
/// which the system gives out ports, so that other tests' do not come in between.
fn free_base() -> u16 {
    let start = 12_000 + u16::try_from(std::process::id() % 500).expect("it is small") * 36;
    let free = |base: &u16| {
        let mut ports = (0..3).flat_map(|node| (0..3).map(move |offset| base + node * 10 + offset));
        ports.all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
    };
    (start..31_000).step_by(36).find(free).expect("some ports are free")
}

fn log(dir: &Path, node: &str) -> String {
    std::fs::read_to_string(dir.join(format!("{node}.log"))).expect("it logs")
}

#[test]
fn three_nodes_come_up_as_told_and_leave_nothing_behind() {
    let mut dev = Dev::start(&[]);
    for (index, name) in ["node1", "node2", "node3"].into_iter().enumerate() {
        let port = dev.port + 10 * u16::try_from(index).expect("it is small");
        assert!(dev.get(port + 2, "/ready").starts_with("HTTP/1.1 200"), "{name}");
        assert!(dev.get(port + 2, "/health").contains(&format!("\"node_id\":\"{name}\"")));
        assert!(dev.get(port, "/").starts_with("HTTP/1.1 200"), "{name}");
        assert!(dev.words.contains(&format!("http://127.0.0.1:{port}")), "{}", dev.words);
    }
    let [dir] = dev.left_over().try_into().expect("one directory");
    assert!(dev.words.contains(dir.to_str().expect("its path is text")), "{}", dev.words);
    assert!(log(&dir, "node2").contains("serving"));
    let listing = Command::new("ps").args(["-eo", "args"]).output();
    let listing = listing.map(|ps| String::from_utf8_lossy(&ps.stdout).into_owned());
    let config = std::fs::read_to_string(dir.join("node1.json")).expect("its configuration");
    let config: serde_json::Value = serde_json::from_str(&config).expect("it is JSON");
    let secret = config["gossip_secret"].as_str().expect("there is a secret");
    assert!(secret.len() >= 32, "it cannot be guessed");
    assert!(!listing.unwrap_or_default().contains(secret), "nor seen");

    dev.signal(Signal::SIGTERM);
    assert!(dev.wait().success(), "{}", said(&dev.tmp));
    assert_eq!(dev.left_over(), [] as [PathBuf; 0]);
}

#[test]
fn no_node_outlives_the_command_even_if_it_is_killed() {
    let mut dev = Dev::start(&["--verbose"]);
    assert_eq!(dev.nodes().len(), 3);
    assert!(said(&dev.tmp).contains("node3 | "), "{}", said(&dev.tmp));
    let [dir] = dev.left_over().try_into().expect("one directory");
    assert!(log(&dir, "node3").contains("serving"), "the file has it too");
    dev.signal(Signal::SIGKILL);
    dev.wait();
}

#[test]
fn a_node_that_is_killed_is_started_again() {
    let mut dev = Dev::start(&[]);
    let victim = dev.nodes()[1];
    kill(victim, Signal::SIGKILL).expect("it runs");
    let port = dev.port + 12;
    wait_for("its end", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err().then_some(())
    });
    wait_for("its return", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(())
    });
    assert!(said(&dev.tmp).contains("node2 ended with signal: 9"), "{}", said(&dev.tmp));
    dev.signal(Signal::SIGINT);
    assert!(dev.wait().success(), "{}", said(&dev.tmp));
}

#[test]
fn a_taken_port_is_named_before_anything_is_started() {
    let base = free_base();
    let _taken = TcpListener::bind(("127.0.0.1", base + 11)).expect("it is free");
    let tmp = tempfile::tempdir().expect("a directory");
    let tmp_path = tmp.path().to_str().expect("its path is text");
    let call = aegiskv(&["dev", "--port", &base.to_string()]).env("TMPDIR", tmp_path);
    let outcome = call.run();
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains(&(base + 11).to_string()), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--port"), "{}", outcome.stderr);
    assert_eq!(std::fs::read_dir(tmp.path()).expect("it is ours").count(), 0);
}
