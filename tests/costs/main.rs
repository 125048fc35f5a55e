//! What a node alone costs, under literal ceilings, so that what was won is not lost unseen:
//! instructions and allocations of a request (callgrind), its system calls (strace), and resident
//! memory. Nothing here is timed. Where a ceiling is broken on purpose, it is raised with the reason.
//!
//! Counted is the program as it is published, from a parsed request to its answer:
//! what is done for a key, without the reading and writing of HTTP, which is hyper's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod node;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use node::{Node, get, put, run, wait_for};

/// Requests that are counted.
const REQUESTS: u64 = 1000;

const CALLGRIND: &str = "valgrind --tool=callgrind --toggle-collect=aegiskv::api::kv::answer::* \
                         --callgrind-out-file=DIR/counts";

/// What one request costs in the program, on the average.
#[derive(Debug)]
struct Counts {
    instructions: u64,
    /// In hundredths.
    allocations: u64,
}

impl Counts {
    /// Reads what callgrind wrote of so many requests: names are given once, by number, and a line
    /// `calls=N` follows the name of what was called.
    fn of(text: &str) -> Self {
        const ALLOCATING: [&str; 5] =
            ["_rjem_malloc", "_rjem_calloc", "_rjem_realloc", "_rjem_mallocx", "_rjem_rallocx"];
        let total = text.lines().find_map(|line| line.strip_prefix("summary: ")).unwrap();
        let mut allocating = Vec::new();
        let (mut callee, mut allocations) = ("", 0);
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn=")) {
                let (number, name) = name.split_once(' ').unwrap_or((name, ""));
                if ALLOCATING.contains(&name) {
                    allocating.push(number);
                }
                callee = number;
            } else if let Some(calls) = line.strip_prefix("calls=")
                && allocating.contains(&callee)
            {
                allocations += calls.split(' ').next().unwrap().parse::<u64>().unwrap();
            }
        }
        let instructions = total.trim().parse::<u64>().unwrap() / REQUESTS;
        Self { instructions, allocations: allocations * 100 / REQUESTS }
    }
}

#[test]
fn a_get_and_a_put_take_no_more_instructions_and_allocations() {
    let node = Node::start(CALLGRIND, 64);
    let pid = node.pid().to_string();
    let mut client = node.connect();
    let mut part = 0;
    let mut count = |requests: &dyn Fn(u64) -> Vec<u8>| {
        // Keys, buffers and caches are there before it is counted.
        client.ask((0..REQUESTS).map(requests));
        run("callgrind_control", &["--zero", &pid]);
        client.ask((0..REQUESTS).map(requests));
        run("callgrind_control", &["--dump=counted", &pid]);
        part += 1;
        let counts = node.dir.path().join(format!("counts.{part}"));
        Counts::of(&wait_for(&counts, "totals: "))
    };
    let of_put = count(&|key| put(key, 100));
    let of_get = count(&get);
    println!("PUT {of_put:?}\nGET {of_get:?}");
    assert!(of_put.instructions > of_get.instructions && of_get.instructions > 1000, "counted?");
    // The log's buffers grow anew after each sync, which comes by the clock.
    assert!(of_put.instructions <= 13_150 && of_put.allocations <= 1_750, "PUT: {of_put:?}");
    assert!(of_get.instructions <= 4_320 && of_get.allocations <= 402, "GET: {of_get:?}");
}

/// How often so many requests made each of these system calls, in hundredths of a call.
fn system_calls(node: &Node, names: &[&str], ask: impl FnOnce()) -> Vec<u64> {
    let (summary, log) = (node.dir.path().join("calls"), node.dir.path().join("strace"));
    let strace = Command::new("strace")
        .args(["-f", "-c", "-o", summary.to_str().unwrap(), "-p", &node.pid().to_string()])
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn();
    let mut strace =
        strace.unwrap_or_else(|e| panic!("strace: {e}; scripts/setup.sh test installs it"));
    wait_for(&log, "attached");
    ask();
    kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT).unwrap();
    strace.wait().unwrap();
    let text = wait_for(&summary, "total");
    let calls = |name: &&str| {
        let line = text.lines().find(|line| line.split_whitespace().next_back() == Some(*name));
        let calls = line.map_or(0, |l| l.split_whitespace().nth(3).unwrap().parse().unwrap());
        calls * 100 / REQUESTS
    };
    names.iter().map(calls).collect()
}

#[test]
fn a_request_makes_no_more_system_calls() {
    let node = Node::start("", 64);
    let mut client = node.connect();
    client.ask((0..REQUESTS).map(|key| put(key, 100)));
    let names = ["recvfrom", "writev", "sendto", "pwrite64", "sched_yield"];
    let of_get = system_calls(&node, &names, || client.ask((0..REQUESTS).map(get)));
    let of_put = system_calls(&node, &names, || {
        client.ask((0..REQUESTS).map(|key| put(key, 100)));
    });
    println!("of {names:?}: GET {of_get:?}, PUT {of_put:?}");
    assert!(of_get.iter().zip([105, 102, 0, 5, 2]).all(|(n, most)| *n <= most), "{of_get:?}");
    // A mark of the log goes with every sixteenth write.
    assert!(of_put.iter().zip([105, 102, 0, 112, 5]).all(|(n, most)| *n <= most), "{of_put:?}");
}

/// Writers that are ready together hand over what they logged together.
#[test]
fn many_writers_share_their_writes_to_the_log() {
    let node = Node::start("", 64);
    let calls = system_calls(&node, &["pwrite64", "sched_yield"], || {
        thread::scope(|scope| {
            for n in 0..20 {
                let mut client = node.connect();
                let keys = (n * REQUESTS / 20..(n + 1) * REQUESTS / 20).map(|key| put(key, 100));
                scope.spawn(move || client.ask(keys));
            }
        });
    });
    println!("of pwrite64, sched_yield: {calls:?}");
    assert!(calls[0] <= 70 && calls[1] <= 10, "{calls:?}");
}

/// `max_memory_mb` is what the process takes, but for 15 per cent and 40 MB: full, while entries of
/// all sizes come and go and snapshots run.
#[test]
fn a_full_node_keeps_to_its_memory_under_churn() {
    const MEMORY_MB: u64 = 32;
    let node = Node::start("", MEMORY_MB);
    let is_over = AtomicBool::new(false);
    let most = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                node.ops("POST", "/admin/snapshot");
            }
        });
        let watched = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(node.resident());
                thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let writers: Vec<_> = (0..4)
            .map(|n| {
                let mut client = node.connect();
                // Sizes from 20 to 1620 bytes, in no order.
                let size =
                    |key: u64| 20 + (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1600) as usize;
                scope.spawn(move || {
                    client.pour((0..60_000).map(|key| put(n * 60_000 + key, size(key))));
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        watched.join().unwrap()
    });
    let text = node.ops("GET", "/metrics");
    let sample = |name| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    let used: f64 = sample("aegis_cache_size_bytes ").parse().unwrap();
    println!("resident at most {most}, by its own account {used}");
    assert!(used > 28e6 && sample("aegis_snapshot_failures_total ") == "0", "{used}");
    // 1.15 x 32 MiB + 40 MiB.
    assert!(most <= 80_530_636, "{most} bytes resident");
}

#[test]
fn an_item_takes_no_more_resident_memory() {
    const ITEMS: u64 = 300_000;
    let node = Node::start("", 1024);
    node.connect().pour((0..1000).map(|key| put(key, 100)));
    let before = node.resident();
    let mut client = node.connect();
    client.pour((1000..1000 + ITEMS).map(|key| put(key, 100)));
    // What was freed on the way goes back within a second or two.
    thread::sleep(Duration::from_secs(4));
    let bytes = (node.resident() - before) / ITEMS;
    println!("{bytes} bytes an item of 116");
    assert!(bytes <= 116 + 64, "{bytes} bytes an item");
}
