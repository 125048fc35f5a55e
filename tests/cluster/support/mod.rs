//! What the tests share: nodes, clusters of them, networks to cut, and load that keeps account.

mod cluster;
mod load;
mod losses;
mod network;
mod node;
mod record;
mod stalls;
mod trial;
mod view;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) use cluster::Cluster;
pub(crate) use load::{Load, Targets, in_words, problem};
pub(crate) use losses::{Loss, Traffic};
pub(crate) use network::{Cut, Network};
pub(crate) use node::Node;
pub(crate) use record::{Disturbance, Record};
pub(crate) use trial::{Trial, wants_all_cases};

/// Longest wait for a cluster to be born, or to be whole again, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at whether something has come about.
const LOOK_PACE: Duration = Duration::from_millis(50);

/// Asks again and again until there is an answer; panics with the last complaint.
pub(crate) async fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(complaint) => assert!(
                began.elapsed() < within,
                "{what}: not within {within:?}; the last complaint: {complaint}"
            ),
        }
        tokio::time::sleep(LOOK_PACE).await;
    }
}

/// What makes the disk of a node slow (`Node::preload`, `Node::set_fsync`), compiled; `None`, and
/// said so, where that cannot be.
pub(crate) fn slow_disk(test: &str) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/support/slow_disk.c");
    let shim = Path::new(env!("CARGO_TARGET_TMPDIR")).join("slow_disk.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(&source);
    match compiler.status() {
        _ if !cfg!(target_env = "gnu") => println!("SKIP {test}: nothing can be preloaded here"),
        Ok(status) => {
            assert!(status.success(), "cc: {status}");
            return Some(shim);
        }
        Err(error) => println!("SKIP {test}: no C compiler (cc): {error}"),
    }
    None
}

/// A client that keeps its connections and asks nobody but those it is told to.
pub(crate) fn http() -> reqwest::Client {
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(30));
    client.build().unwrap()
}
