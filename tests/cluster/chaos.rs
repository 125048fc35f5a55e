//! Anything goes down at any time, also more than a cluster can do without: what was acknowledged is
//! there in the end, and all copies are equal.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::support::{Cluster, Load, PATIENCE};

/// How long it goes on, unless `AEGIS_CHAOS_SECONDS` says otherwise.
const SECONDS: u64 = 20;

/// Kills, silences, wakes and restarts nodes at random for a while. All run in the end.
async fn storm(cluster: &mut Cluster, seed: u64, lasts: Duration) {
    let mut random = SmallRng::seed_from_u64(seed);
    let count = cluster.nodes.len();
    let (mut paused, began) = (vec![false; count], Instant::now());
    let mut done = [0; 4];
    while began.elapsed() < lasts {
        let node = random.random_range(0..count);
        let home = &mut cluster.nodes[node];
        match (home.is_running(), paused[node], random.random_range(0..3)) {
            (true, false, 0) => {
                home.kill();
                done[0] += 1;
            }
            (true, false, 1) => {
                home.pause();
                paused[node] = true;
                done[1] += 1;
            }
            (true, true, _) => {
                home.resume();
                paused[node] = false;
                done[2] += 1;
            }
            (false, _, _) => {
                home.spawn();
                done[3] += 1;
            }
            (true, false, _) => {}
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..1200))).await;
    }
    for (home, paused) in cluster.nodes.iter_mut().zip(paused) {
        if paused {
            home.resume();
        } else if !home.is_running() {
            home.spawn();
        }
    }
    let [killed, silenced, woken, restarted] = done;
    println!("{killed} killed, {silenced} silenced, {woken} woken, {restarted} restarted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_down_nothing_acknowledged_is_lost() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds: u64 = variable("AEGIS_CHAOS_SECONDS").unwrap_or(SECONDS);
    let seed: u64 = variable("AEGIS_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("AEGIS_CHAOS_SEED={seed}");
    let mut cluster = Cluster::start(3, json!({})).await;
    let load = Load::start(&cluster).await;
    storm(&mut cluster, seed, Duration::from_secs(seconds)).await;
    cluster.wait_ready().await;
    cluster.wait_healthy(PATIENCE).await;
    let record = load.stop().await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
    record.assert_right();
    let failed = record.ops.iter().filter(|op| op.failure.is_some()).count();
    println!("{} operations, {failed} without success", record.ops.len());
    // Many fail at once, where a majority is down; the others are what is checked.
    assert!(record.ops.len() - failed > 1000, "hardly anything worked");
}
