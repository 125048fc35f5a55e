//! The operations port, 7702: whatever is done to it, health checks are answered, and so is an operator.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Attack, Attacker, Bystander, Victim, attack, fetch, withstands};
use crate::wire::Peer;

/// Longest that 99 of 100 health checks may wait for their answers, and that any may.
const PROBE_P99_MAX: Duration = Duration::from_secs(1);
const PROBE_MAX: Duration = Duration::from_secs(3);
/// Between two health checks, and between two questions of an operator.
const PAUSE: Duration = Duration::from_millis(20);
/// What a log may come to while strangers do what they can for some time.
const LOG_BYTES_MAX: u64 = 256 << 10;

/// Somebody who asks, each time on a connection of its own, as a load balancer does.
struct Probe {
    gone: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Duration>>>,
    failures: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    fn start(addr: &str, paths: &'static [&'static str]) -> Self {
        let gone = Arc::new(AtomicBool::new(false));
        let (seen, failures) = (Arc::<Mutex<Vec<Duration>>>::default(), Arc::default());
        let thread = std::thread::spawn({
            let (addr, gone) = (addr.to_owned(), Arc::clone(&gone));
            let (seen, failures) = (Arc::clone(&seen), Arc::clone(&failures));
            move || {
                for path in paths.iter().cycle() {
                    if gone.load(Ordering::Relaxed) {
                        return;
                    }
                    let began = Instant::now();
                    let answer = fetch(&addr, &format!("GET {path}"), "");
                    let took = began.elapsed();
                    let failures: &Mutex<Vec<String>> = &failures;
                    match answer {
                        Ok((200, _)) if took <= PROBE_MAX => {}
                        Ok((status, _)) => {
                            failures
                                .lock()
                                .unwrap()
                                .push(format!("{path}: {status} in {took:.1?}"));
                        }
                        Err(error) => {
                            failures.lock().unwrap().push(format!("{path}: {error} in {took:.1?}"));
                        }
                    }
                    seen.lock().unwrap().push(took);
                    std::thread::sleep(PAUSE);
                }
            }
        });
        Self { gone, seen, failures, thread: Some(thread) }
    }

    /// Ends it, and panics if an answer did not come, or not in time.
    fn judge(mut self, what: &str) {
        self.gone.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let mut seen = self.seen.lock().unwrap();
        seen.sort_unstable();
        let (count, p99) = (seen.len(), seen[seen.len() * 99 / 100]);
        let failures = self.failures.lock().unwrap();
        println!(
            "{what}: {count} answers, p99 {p99:.1?}, {:.1?} at most, {} failed",
            seen[count - 1],
            failures.len()
        );
        assert!(p99 <= PROBE_P99_MAX, "{what}: p99 {p99:?}");
        assert!(failures.is_empty(), "{what}: {} of {count}: {failures:?}", failures.len());
        assert!(count > 50, "{what}: {count} only");
    }
}

/// Tries them all on a node of their own; the bytes of its log that they brought about.
fn try_all(attacks: &[Attack]) -> u64 {
    let mut victim = Victim::start(&json!({}));
    let bystander = Bystander::of_clients(&victim);
    let addr = victim.ops.clone();
    let said_before = fs::metadata(victim.stderr()).unwrap().len();
    let probe = Probe::start(&addr, &["/live", "/ready", "/health"]);
    let operator = Probe::start(&addr, &["/metrics", "/cluster"]);
    withstands(&mut victim, &addr, &bystander, attacks);
    probe.judge("health checks");
    operator.judge("an operator");
    let said = fs::metadata(victim.stderr()).unwrap().len() - said_before;
    println!("{said} bytes of log");
    assert!(said <= LOG_BYTES_MAX, "{said} bytes of log:\n{}", victim.log());
    said
}

#[test]
fn who_holds_connections_shuts_nobody_out() {
    try_all(&[
        attack("128 silent", 128, |a| Box::pin(silent(a))),
        attack("1000 silent", 1000, |a| Box::pin(silent(a))),
        attack("heads without end", 1000, |a| Box::pin(head_without_end(a))),
        attack("idle after an answer", 1000, |a| Box::pin(idle(a))),
        attack("128 who take no answer", 128, |a| Box::pin(never_read(a, "/metrics"))),
        attack("1000 who take no answer", 1000, |a| Box::pin(never_read(a, "/cluster/shards"))),
    ]);
}

#[test]
fn who_asks_in_a_loop_shuts_nobody_out() {
    try_all(&[
        attack("/metrics in a loop", 128, |a| Box::pin(in_a_loop(a, "GET /metrics"))),
        attack("/metrics in 1000 loops", 1000, |a| Box::pin(in_a_loop(a, "GET /metrics"))),
        attack("/metrics, each on a connection", 64, |a| Box::pin(each_anew(a, "/metrics"))),
        attack("shards in a loop", 128, |a| Box::pin(in_a_loop(a, "GET /cluster/shards"))),
        attack("/ready in a loop", 100, |a| Box::pin(in_a_loop(a, "GET /ready"))),
        attack("what is not there", 100, |a| Box::pin(in_a_loop(a, "GET /nothing"))),
        attack("nonsense", 100, |a| Box::pin(nonsense(a))),
    ]);
}

#[test]
fn who_is_refused_writes_no_more_than_so_much_into_the_log() {
    let said = try_all(&[
        attack("long actions", 4, |a| Box::pin(long_actions(a))),
        attack("long actions, many", 100, |a| Box::pin(long_actions(a))),
    ]);
    assert!(said > 1_000, "some of it is said: {said} bytes");
}

#[test]
fn what_was_left_out_of_the_log_is_counted() {
    let mut victim = Victim::start(&json!({}));
    let bystander = Bystander::of_clients(&victim);
    let addr = victim.ops.clone();
    withstands(
        &mut victim,
        &addr,
        &bystander,
        &[attack("long actions", 4, |a| Box::pin(long_actions(a)))],
    );
    let left_out = "aegis_log_lines_suppressed_total{about=\"unauthorized\",from=\"operations\"}";
    let counted = victim.metrics()[left_out];
    assert!(counted > 100.0, "{counted} lines");
    // The next line says so.
    std::thread::sleep(Duration::from_secs(2));
    let refused = act_without_token(&addr);
    assert_eq!(refused, 401);
    let log = victim.log();
    let last = log.lines().last().unwrap();
    assert!(last.contains("/admin/snapshot") && last.contains("dropped="), "{last}");
}

/// An action without a token; the answer's status.
fn act_without_token(addr: &str) -> u16 {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    let request = "POST /admin/snapshot HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn request(line: &str) -> String {
    format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n")
}

pub(crate) async fn silent(a: Attacker) -> io::Result<()> {
    let peer = Peer::open(&a.addr).await?;
    Peer::take_all(peer.read).await
}

async fn head_without_end(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(format!("GET /live HTTP/1.1\r\nx: {}", "x".repeat(8 << 10))).await?;
    Peer::take_all(peer.read).await
}

async fn idle(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(request("GET /live")).await?;
    Peer::take_all(peer.read).await
}

async fn never_read(a: Attacker, path: &str) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    loop {
        peer.send(request(&format!("GET {path}"))).await?;
    }
}

pub(crate) async fn in_a_loop(a: Attacker, line: &str) -> io::Result<()> {
    Peer::open(&a.addr).await?.flood(|_| request(line).into_bytes()).await
}

async fn each_anew(a: Attacker, path: &str) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await?;
    Peer::take_all(peer.read).await
}

async fn nonsense(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(b"\x16\x03\x01 what a port is this\r\n\r\n").await?;
    Peer::take_all(peer.read).await
}

async fn long_actions(a: Attacker) -> io::Result<()> {
    let line = format!("POST /admin/nodes/{}/remove", "x".repeat(12 << 10));
    Peer::open(&a.addr).await?.flood(|_| request(&line).into_bytes()).await
}
