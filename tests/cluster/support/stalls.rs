//! How long the machine kept the test itself from running: what it may have taken away from the
//! nodes as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A sleep that is watched for how much longer it takes.
const SLEEP: Duration = Duration::from_millis(5);

/// Shorter stalls are not noted.
const NOTED_FROM: Duration = Duration::from_millis(10);

/// A stall: when it ended, and how long it was.
pub(crate) type Stall = (Duration, Duration);

/// Watches the machine until asked what it saw.
pub(crate) struct Stalls {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Stall>>,
}

impl Stalls {
    /// Times count from `began`.
    pub(crate) fn watch(began: Instant) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = thread::spawn(move || {
            let mut stalls = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                let slept = Instant::now();
                thread::sleep(SLEEP);
                let stall = slept.elapsed().saturating_sub(SLEEP);
                if stall >= NOTED_FROM {
                    stalls.push((began.elapsed(), stall));
                }
            }
            stalls
        });
        Self { over, thread }
    }

    pub(crate) fn seen(self) -> Vec<Stall> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
