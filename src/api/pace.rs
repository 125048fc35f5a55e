//! How fast operations may come: a rate limiter that follows the settings.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::problem::Problem;
use super::settings::Rate;

/// Whether operations may go ahead.
#[derive(Debug, PartialEq, Eq)]
enum Pass {
    Granted,
    After(Duration),
    /// They are more than the burst allows at once.
    Never,
}

/// A rate limiter: when all that was taken will have come back, by the rate that it was taken at. It
/// begins anew when the rate changes.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Option<(Rate, Instant)>>);

/// The time in which the rate brings so many operations.
fn time_for(rate: Rate, count: u32) -> Duration {
    Duration::from_secs(1) * count / rate.per_second.get()
}

impl Pace {
    /// Takes the right to `count` operations.
    ///
    /// # Errors
    /// A [`Problem`] when the rate does not allow them now, or ever at once.
    pub(super) fn spend(&self, rate: Option<Rate>, count: usize) -> Result<(), Problem> {
        let Some(rate) = rate else { return Ok(()) };
        match self.take(rate, count) {
            Pass::Granted => Ok(()),
            Pass::After(wait) => Err(Problem::rate_limited(wait)),
            Pass::Never => Err(Problem::beyond_rate(count, rate.burst)),
        }
    }

    /// Takes the right to one more operation of a stream, or says how long to wait before it asks
    /// again.
    pub(super) fn pause(&self, rate: Option<Rate>) -> Option<Duration> {
        match self.take(rate?, 1) {
            Pass::After(wait) => Some(wait),
            Pass::Granted | Pass::Never => None,
        }
    }

    /// Gives back the right to `count` operations that came to nothing.
    pub(super) fn give_back(&self, count: usize) {
        if let Some((rate, back_at)) = &mut *self.0.lock() {
            *back_at -= time_for(*rate, u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    fn take(&self, rate: Rate, count: usize) -> Pass {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if count > rate.burst.get() {
            return Pass::Never;
        }
        let now = Instant::now();
        let mut pace = self.0.lock();
        let back_at = pace.filter(|(taken_at, _)| *taken_at == rate).map_or(now, |(_, at)| at);
        let back_at = back_at.max(now) + time_for(rate, count);
        let room = time_for(rate, rate.burst.get());
        match (back_at - now).checked_sub(room).filter(|wait| !wait.is_zero()) {
            Some(wait) => Pass::After(wait),
            None => {
                *pace = Some((rate, back_at));
                Pass::Granted
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        let n = |n| NonZeroU32::new(n).unwrap();
        Rate { per_second: n(per_second), burst: n(burst) }
    }

    #[test]
    fn a_burst_passes_then_one_waits_and_a_batch_beyond_the_burst_never_passes() {
        let pace = Pace::default();
        assert_eq!(pace.take(rate(1, 3), 4), Pass::Never);
        assert_eq!(pace.take(rate(1, 3), 3), Pass::Granted);
        match pace.take(rate(1, 3), 1) {
            Pass::After(wait) => assert!(wait <= Duration::from_secs(1)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_rate_holds_at_once() {
        let pace = Pace::default();
        assert_eq!(pace.take(rate(1, 1), 1), Pass::Granted);
        assert_eq!(pace.take(rate(1, 2), 2), Pass::Granted);
    }

    #[test]
    fn what_is_taken_comes_back_with_time_and_what_is_given_back_at_once() {
        let pace = Pace::default();
        let a_second = rate(1000, 10);
        assert_eq!(pace.take(a_second, 10), Pass::Granted);
        assert!(matches!(pace.take(a_second, 10), Pass::After(_)));
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(pace.take(a_second, 10), Pass::Granted);
        pace.give_back(10);
        assert_eq!(pace.take(a_second, 10), Pass::Granted);
        assert_eq!(pace.take(a_second, 0), Pass::Granted, "no operations need no right");
    }
}
