//! How fast operations may come: a rate limiter that follows the settings.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
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

/// A rate limiter, made when it is first needed and anew when the rate changes.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Option<(Rate, DefaultDirectRateLimiter)>>);

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

    fn take(&self, rate: Rate, count: usize) -> Pass {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let Some(count) = NonZeroU32::new(count) else {
            return Pass::Granted;
        };
        let mut pace = self.0.lock();
        if pace.as_ref().is_none_or(|(made_for, _)| *made_for != rate) {
            let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
            *pace = Some((rate, RateLimiter::direct(quota)));
        }
        let (_, limiter) = pace.as_ref().expect("made just above");
        match limiter.check_n(count) {
            Ok(Ok(())) => Pass::Granted,
            Ok(Err(not_until)) => {
                Pass::After(not_until.wait_time_from(DefaultClock::default().now()))
            }
            Err(_) => Pass::Never,
        }
    }
}

#[cfg(test)]
mod tests {
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
}
