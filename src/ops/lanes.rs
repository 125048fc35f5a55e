//! How many requests are answered in a second, whoever asks.
//!
//! Health checks have a lane of their own, and operators with a token wait in none. In a lane who
//! comes first goes first, and a connection waits with one request at a time: so each gets its turn,
//! however fast others ask.

use std::num::NonZeroU32;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Mutex;
use tokio::time::sleep;

/// Health checks in a second.
const PROBES_PER_SECOND: NonZeroU32 = NonZeroU32::new(1_000).expect("1000 is not 0");

/// All else that strangers may ask for, and refusals, in a second.
const OTHERS_PER_SECOND: NonZeroU32 = NonZeroU32::new(200).expect("200 is not 0");

/// Connections that are taken in, in a second: who finds as many waiting as the system holds waits a
/// second.
const NEWCOMERS_PER_SECOND: NonZeroU32 = NonZeroU32::new(4_000).expect("4000 is not 0");

/// The lanes of this port.
#[derive(Debug)]
pub(super) struct Lanes {
    /// For `/live`, `/health`, `/ready`.
    pub(super) probes: Lane,
    /// For all others who show no token.
    pub(super) others: Lane,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { probes: Lane::new(PROBES_PER_SECOND), others: Lane::new(OTHERS_PER_SECOND) }
    }
}

/// One lane.
#[derive(Debug)]
pub(super) struct Lane {
    first: Mutex<()>,
    limiter: DefaultDirectRateLimiter,
}

impl Lane {
    /// One for connections that are to be taken in.
    pub(super) fn of_newcomers() -> Self {
        Self::new(NEWCOMERS_PER_SECOND)
    }

    /// As many may come at once as in a second.
    fn new(per_second: NonZeroU32) -> Self {
        let limiter = RateLimiter::direct(Quota::per_second(per_second));
        Self { first: Mutex::new(()), limiter }
    }

    /// Waits for a turn.
    pub(super) async fn pass(&self) {
        let _first = self.first.lock().await;
        while let Err(not_until) = self.limiter.check() {
            sleep(not_until.wait_time_from(DefaultClock::default().now())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn a_burst_passes_at_once_and_then_so_many_a_second_in_the_order_in_which_they_came() {
        let lane = Lane::new(NonZeroU32::new(100).unwrap());
        let began = Instant::now();
        join_all((0..100).map(|_| lane.pass())).await;
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
        let times = join_all((0..20).map(|_| async {
            lane.pass().await;
            began.elapsed()
        }));
        let times = times.await;
        assert!(times.is_sorted(), "{times:?}");
        assert!(times[19] >= Duration::from_millis(150), "{times:?}");
    }
}
