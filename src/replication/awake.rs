//! Notices that this process stood still: it was stopped, or frozen with its container, or its
//! machine was paused or suspended.
//!
//! # Caveats
//! A virtual machine whose clocks stand still with it cannot tell. It learns of what it missed from
//! the others, as one does that was cut off.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::entry::Timestamp;

/// How often it is noted that the process runs.
pub(super) const PACE: Duration = Duration::from_millis(100);

/// Who was away for so long asks before it answers: as long as a copy may be out of touch with its
/// primary without saying so.
pub(super) const AWAY_MIN: Duration = Duration::from_secs(1);

/// When this process was last seen to run.
#[derive(Debug, Default)]
pub(super) struct Awake {
    /// On a clock that cannot be set, in milliseconds; 0 while nobody takes note.
    last: AtomicU64,
    /// On the wall clock, which reads of keys look at anyway.
    wall: AtomicU64,
}

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) wall: Timestamp,
    /// On a clock that goes on while the machine is suspended.
    pub(super) boot: Duration,
}

impl Moment {
    pub(super) fn now() -> Self {
        // In this order: who stands still in between is seen to.
        let wall = Timestamp::now();
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME);
        Self { wall, boot: boot.expect("Linux has had this clock since 2.6.39").into() }
    }
}

impl Awake {
    /// The process ran at `now`. Not to be told before what an absence until then means is done.
    pub(super) fn note(&self, now: Moment) {
        self.last.fetch_max(millis(now.boot), Ordering::Release);
        self.wall.store(now.wall.0, Ordering::Release);
    }

    /// Whether the wall clock speaks for an absence, or was set. Costs a load.
    pub(super) fn may_have_been_away(&self, wall: Timestamp) -> bool {
        let noted = self.wall.load(Ordering::Acquire);
        // Set back it looks like an age.
        wall.0.wrapping_sub(noted) >= AWAY_MIN.as_millis() as u64
    }

    /// For how long it was away, if it was, as far as is known at `now`.
    pub(super) fn absence(&self, now: Moment) -> Option<Duration> {
        let last = self.last.load(Ordering::Acquire);
        let absence = Duration::from_millis(millis(now.boot).saturating_sub(last));
        (last > 0 && absence >= AWAY_MIN).then_some(absence)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: u64 = 1_800_000_000_000;

    fn span(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn at(millis: u64) -> Moment {
        Moment { wall: Timestamp(WALL + millis), boot: span(millis) }
    }

    #[test]
    fn who_was_away_for_a_second_knows_until_that_is_noted() {
        let awake = Awake::default();
        awake.note(at(5_000));
        assert_eq!(awake.absence(at(5_999)), None);
        assert_eq!(awake.absence(at(13_000)), Some(span(8_000)));
        awake.note(at(13_000));
        assert_eq!(awake.absence(at(13_100)), None);
        // Who stood still between reading the clock and noting it has not been here since.
        awake.note(at(12_000));
        assert_eq!(awake.absence(at(14_000)), Some(span(1_000)));
    }

    #[test]
    fn the_wall_clock_raises_the_question_and_the_other_decides() {
        let awake = Awake::default();
        awake.note(at(5_000));
        let asks = |wall: u64| awake.may_have_been_away(Timestamp(WALL + wall));
        assert!(!asks(5_000) && !asks(5_999) && asks(6_000) && asks(13_000));
        assert!(asks(4_999) && asks(0), "it was set back");
        let set_on = Moment { wall: Timestamp(WALL + 90_000), ..at(5_100) };
        assert_eq!(awake.absence(set_on), None);
        awake.note(set_on);
        assert!(!asks(90_100));
    }

    #[test]
    fn where_nobody_takes_note_nobody_was_away() {
        assert_eq!(Awake::default().absence(at(5_000)), None);
    }

    #[test]
    fn the_clock_goes_on() {
        let before = Moment::now();
        std::thread::sleep(span(2));
        assert!(Moment::now().boot - before.boot >= span(2));
    }
}
