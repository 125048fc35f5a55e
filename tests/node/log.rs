//! A reader of the log that stalls.

use std::fs;
use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Home, Node, http, metric};

const SOON: Duration = Duration::from_secs(15);

/// A node whose standard error nobody reads; and the end at which it could be read.
async fn unread(home: &Home, log_level: &str) -> (Node, std::process::ChildStderr) {
    let mut command = home.command();
    command.arg(format!("-log_level={log_level}")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child: Child = command.spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let unread = home.dir.path().join("unread");
    fs::write(&unread, "").unwrap();
    let mut node = home.node_of(child, unread);
    node.wait_ready().await;
    (node, stderr)
}

/// Makes it log more than a pipe and the queue behind it hold: by reloads of a file with a thousand
/// faults, each of which it tells.
async fn fill(home: &Home, node: &Node) {
    let faults: serde_json::Map<String, serde_json::Value> =
        (0..1000).map(|n| (format!("{n:0300}"), json!(1))).collect();
    let sound = fs::read(home.config_path()).unwrap();
    fs::write(home.config_path(), json!(faults).to_string()).unwrap();
    let (began, http) = (Instant::now(), http());
    let dropped = "aegis_log_lines_dropped_total{to=\"stderr\"}";
    let before = metric(node, dropped).await;
    while metric(node, dropped).await == before {
        let reload = http.post(node.ops_url("/admin/reload")).timeout(SOON).send();
        assert!(!reload.await.unwrap().status().is_success());
        assert!(began.elapsed() < Duration::from_secs(120), "no line is dropped");
    }
    fs::write(home.config_path(), sound).unwrap();
    let put = http.put(node.url("k")).body("v").timeout(SOON).send();
    assert!(put.await.unwrap().status().is_success());
}

#[tokio::test]
async fn a_reader_of_the_log_that_stalls_costs_lines_and_nothing_else() {
    let home = Home::new(json!({ "wal_mode": "off" }));
    let (mut node, mut stderr) = unread(&home, "trace").await;
    fill(&home, &node).await;
    // Reloads go on, by signal and by request.
    node.signal(Signal::SIGHUP);
    let reload = http().post(node.ops_url("/admin/reload")).timeout(SOON).send();
    assert_eq!(reload.await.unwrap().status(), 200);

    // Once somebody reads, the log goes on, and says that it was interrupted.
    let level = http().post(node.ops_url("/admin/log-level?level=info")).timeout(SOON).send();
    assert_eq!(level.await.unwrap().status(), 200);
    let reader = std::thread::spawn(move || {
        let (mut text, mut some) = (String::new(), [0; 65_536]);
        while !text.contains("lines of the log were dropped") {
            let n = stderr.read(&mut some).unwrap();
            assert!(n > 0, "the log ends without a word on what was dropped");
            text = text.split_off(text.len().saturating_sub(200))
                + &String::from_utf8_lossy(&some[..n]);
        }
        stderr
    });
    let stderr = reader.join().unwrap();

    // And an end, with nobody reading.
    let level = http().post(node.ops_url("/admin/log-level?level=trace")).timeout(SOON).send();
    assert_eq!(level.await.unwrap().status(), 200);
    fill(&home, &node).await;
    node.signal(Signal::SIGTERM);
    let status = node.wait(SOON);
    assert!(status.success(), "{status}");
    drop(stderr);
}

#[tokio::test]
async fn a_node_that_fails_ends_though_nobody_reads_why() {
    let home = Home::new(json!({ "wal_mode": "sync" }));
    let (mut node, stderr) = unread(&home, "trace").await;
    fill(&home, &node).await;
    // A second one cannot have the ports or the directory, and its pipe is full from the start.
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut full = fs::File::from(writer);
    nix::fcntl::fcntl(&full, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    while std::io::Write::write(&mut full, &[b'x'; 4096]).is_ok() {}
    while std::io::Write::write(&mut full, b"x").is_ok() {}
    nix::fcntl::fcntl(&full, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    let mut command = home.command();
    let child = command.stdout(full.try_clone().unwrap()).stderr(full).spawn().unwrap();
    drop(command);
    let mut second = home.node_of(child, home.dir.path().join("unread"));
    assert_eq!(second.wait(SOON).code(), Some(1));
    drop(reader);
    node.signal(Signal::SIGTERM);
    assert!(node.wait(SOON).success());
    drop(stderr);
}
