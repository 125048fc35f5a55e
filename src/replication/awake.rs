//! Notices that this process stood still: it was stopped, or frozen with its container, or its
//! machine was paused or suspended.
//!
//! # Caveats
//! A virtual machine whose clocks stand still with it cannot tell. It learns of what it missed from
//! the others, as one does that was cut off.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How often it is noted that the process runs.
pub(super) const PACE: Duration = Duration::from_millis(100);

/// Who was away for so long asks before it answers: as long as a copy may be out of touch with its
/// primary without saying so.
pub(super) const AWAY_MIN: Duration = Duration::from_secs(1);

/// When this process was last seen to run.
#[derive(Debug, Default)]
pub(super) struct Awake {
    /// In milliseconds; 0 while nobody takes note.
    last: AtomicU64,
}

impl Awake {
    /// The process ran at `now`. Not to be told before what an absence until then means is done.
    pub(super) fn note(&self, now: Duration) {
        self.last.fetch_max(millis(now), Ordering::Release);
    }

    /// For how long it was away, if it was, as far as is known at `now`.
    pub(super) fn absence(&self, now: Duration) -> Option<Duration> {
        let last = self.last.load(Ordering::Acquire);
        let absence = Duration::from_millis(millis(now).saturating_sub(last));
        (last > 0 && absence >= AWAY_MIN).then_some(absence)
    }
}

/// The present moment, on a clock that goes on while the machine is suspended.
pub(super) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39").into()
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn who_was_away_for_a_second_knows_until_that_is_noted() {
        let awake = Awake::default();
        awake.note(at(5_000));
        assert_eq!(awake.absence(at(5_999)), None);
        assert_eq!(awake.absence(at(13_000)), Some(at(8_000)));
        awake.note(at(13_000));
        assert_eq!(awake.absence(at(13_100)), None);
        // Who stood still between reading the clock and noting it has not been here since.
        awake.note(at(12_000));
        assert_eq!(awake.absence(at(14_000)), Some(at(1_000)));
    }

    #[test]
    fn where_nobody_takes_note_nobody_was_away() {
        assert_eq!(Awake::default().absence(at(5_000)), None);
    }

    #[test]
    fn the_clock_goes_on() {
        let before = now();
        std::thread::sleep(at(2));
        assert!(now() - before >= at(2));
    }
}
