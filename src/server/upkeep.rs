//! What goes on beside the requests: expiry, snapshots, the watchdog.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::entry::Timestamp;
use crate::process::Watchdog;
use crate::replica::{Sweep, Work};
use crate::store::EvictionPolicy;
use crate::wal;

use super::cluster::Cluster;
use super::pressure;

/// Pause between two turns of the sweeper.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);

/// Longest turn of the sweeper: with [`SWEEP_PAUSE`], a twentieth of one core.
const SWEEP_TURN: Duration = Duration::from_millis(5);

/// Longest turn while much expires: a third of one core.
const SWEEP_TURN_BUSY: Duration = Duration::from_millis(50);

/// From so many expired entries in a turn on the next turn may be a long one.
const SWEEP_BUSY: usize = 1000;

/// Removes what has expired, in a thread of its own, until dropped.
#[derive(Debug)]
pub(super) struct Sweeper {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// Starts sweeping.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn start(cluster: Arc<Cluster>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let stop = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), turns.clone());
        let run = move || {
            let mut sweep = Sweep::default();
            let mut turn = SWEEP_TURN;
            let _runtime = runtime.enter();
            while !stopped.load(Ordering::Relaxed) {
                // A log that has failed stops the whole node; nothing is left to do here.
                let Ok(expired) = sweep_for(&cluster, &mut sweep, turn) else { return };
                turn = if expired < SWEEP_BUSY { SWEEP_TURN } else { SWEEP_TURN_BUSY };
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(SWEEP_PAUSE);
            }
        };
        let thread = thread::Builder::new().name("sweeper".into()).spawn(run)?;
        Ok(Self { stop, turns, thread: Some(thread) })
    }

    /// Turns so far: rises as long as shards and log can be worked with.
    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the sweeper is in the log already.
            let _ = thread.join();
        }
    }
}

/// Sweeps for `turn`, or once around; answers how many entries had expired.
fn sweep_for(cluster: &Cluster, sweep: &mut Sweep, turn: Duration) -> Result<usize, wal::Error> {
    let began = Instant::now();
    let replication = cluster.replication();
    let replica = replication.replica();
    let mut expired = 0;
    let excess = pressure::own_part(cluster, replica.budget().excess());
    if excess > 0 && replica.budget().policy() == EvictionPolicy::S3Fifo {
        // Also where writes alone would not make room: after a start, and for what others order.
        let mut work = Work::default();
        replica.evict(excess, Timestamp::now(), &mut work)?;
        replication.carry_out_soon(work);
    }
    while began.elapsed() < turn {
        let mut work = Work::default();
        let swept = replica.sweep(sweep, Timestamp::now(), &mut work)?;
        replication.carry_out_soon(work);
        expired += swept.expired;
        if swept.round_done {
            break;
        }
    }
    if expired > 0 {
        let wal = replica.wal();
        wal.settle_blocking(wal.last_lsn())?;
    }
    Ok(expired)
}

/// Feeds systemd's watchdog as long as the sweeper gets on: it takes every shard's lock and the
/// log's, so a node that hangs on either is restarted.
pub(super) async fn feed(mut watchdog: Watchdog, sweeper: Arc<Sweeper>) {
    let mut pace = tokio::time::interval(watchdog.period());
    loop {
        pace.tick().await;
        watchdog.feed(sweeper.turns());
    }
}
