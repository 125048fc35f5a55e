//! How long a write has lately waited for the disk, or waits now.
//!
//! What is under way counts as it ages: a disk that is stuck ends nothing that could be measured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What took less is not worth being kept.
const KEPT_MIN: Duration = Duration::from_millis(10);

/// The longest is kept by periods of this length: it is forgotten after one to two of them.
const PERIOD: Duration = Duration::from_secs(1);

/// Measures what writes wait for, one thing at a time.
#[derive(Debug)]
pub(super) struct Delay {
    began: Instant,
    /// When what is under way began, in nanoseconds since `began`; 0: nothing is.
    since: AtomicU64,
    longest: Mutex<Longest>,
}

/// Something that a write waits for is under way.
pub(super) struct Running<'a> {
    delay: &'a Delay,
    from: Instant,
}

/// The longest of this period, and of the one before.
#[derive(Debug, Default)]
struct Longest {
    period: u128,
    present: Duration,
    before: Duration,
}

impl Delay {
    pub(super) fn new(began: Instant) -> Self {
        Self { began, since: AtomicU64::new(0), longest: Mutex::default() }
    }

    /// Begins now. Whatever begins holds what keeps all others from beginning.
    pub(super) fn begin(&self) -> Running<'_> {
        let from = Instant::now();
        self.since.store(self.nanos(from).max(1), Ordering::Relaxed);
        Running { delay: self, from }
    }

    /// The longest that anything took that ended lately, or has taken already, as of `now`.
    pub(super) fn at(&self, now: Instant) -> Duration {
        let since = self.since.load(Ordering::Relaxed);
        let age = if since == 0 { 0 } else { self.nanos(now).saturating_sub(since) };
        self.longest.lock().at(self.period(now)).max(Duration::from_nanos(age))
    }

    fn end(&self, from: Instant, now: Instant) {
        self.since.store(0, Ordering::Relaxed);
        let took = now.saturating_duration_since(from);
        if took >= KEPT_MIN {
            self.longest.lock().note(self.period(now), took);
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn period(&self, now: Instant) -> u128 {
        now.saturating_duration_since(self.began).as_nanos() / PERIOD.as_nanos()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.delay.end(self.from, Instant::now());
    }
}

impl Longest {
    fn note(&mut self, period: u128, took: Duration) {
        if period != self.period {
            self.before = if period == self.period + 1 { self.present } else { Duration::ZERO };
            (self.period, self.present) = (period, Duration::ZERO);
        }
        self.present = self.present.max(took);
    }

    fn at(&self, period: u128) -> Duration {
        match period.saturating_sub(self.period) {
            0 => self.present.max(self.before),
            1 => self.present,
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_longest_of_late_counts_and_is_forgotten_after_a_while() {
        let began = Instant::now();
        let delay = Delay::new(began);
        assert_eq!(delay.at(began), Duration::ZERO);
        delay.end(began + at(100), began + at(800));
        delay.end(began + at(900), began + at(950));
        delay.end(began + at(1_000), began + at(1_200));
        assert_eq!(delay.at(began + at(1_300)), at(700));
        assert_eq!(delay.at(began + at(1_999)), at(700));
        assert_eq!(delay.at(began + at(2_000)), at(200));
        assert_eq!(delay.at(began + at(3_000)), Duration::ZERO);
        delay.end(began + at(9_000), began + at(9_300));
        assert_eq!(delay.at(began + at(9_400)), at(300));
    }

    #[test]
    fn what_does_not_end_counts_as_it_ages() {
        let began = Instant::now();
        let delay = Delay::new(began);
        let running = delay.begin();
        let from = running.from;
        assert_eq!(delay.at(from + at(3_000)), at(3_000));
        assert_eq!(delay.at(from + at(60_000)), at(60_000));
        drop(running);
        assert!(delay.at(Instant::now()) < at(3_000));
    }
}
