//! What the requests of one connection share: the node they talk to, and their rate limit.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use bytes::Bytes;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::dispatch;
use super::problem::Problem;
use super::settings::{Rate, Settings};
use super::watch::Watch;
use crate::coordinator::Coordinator;
use crate::metrics::Metrics;

/// Most bytes of request bodies that are gathered at once, over all connections. Bodies that
/// arrive in one piece with their head are not gathered, and not counted.
const GATHERED_BYTES_MAX: usize = 512 << 20;

/// What the requests of all connections share.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) coordinator: Coordinator,
    pub(super) metrics: Arc<Metrics>,
    pub(super) settings: ArcSwap<Settings>,
    /// The routes beside the keys' own.
    pub(super) router: Router,
    gathered_bytes: AtomicUsize,
}

impl Node {
    pub(super) fn new(coordinator: Coordinator, metrics: Arc<Metrics>, settings: Settings) -> Self {
        Self {
            coordinator,
            metrics,
            settings: ArcSwap::from_pointee(settings),
            router: dispatch::router(),
            gathered_bytes: AtomicUsize::new(0),
        }
    }
}

/// Bytes of a body being gathered, counted against the node's bound.
#[derive(Debug)]
pub(super) struct Gathered<'a> {
    node: &'a Node,
    bytes: usize,
}

impl<'a> Gathered<'a> {
    pub(super) fn none(node: &'a Node) -> Self {
        Self { node, bytes: 0 }
    }

    /// Counts `bytes` more.
    ///
    /// # Errors
    /// A [`Problem`] to be tried again when all bodies together are too many bytes.
    pub(super) fn add(&mut self, bytes: usize) -> Result<(), Problem> {
        let before = self.node.gathered_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before.saturating_add(bytes) > GATHERED_BYTES_MAX {
            let detail = "too many large requests are arriving at once; try again shortly";
            return Err(Problem::unavailable(detail));
        }
        Ok(())
    }
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        self.node.gathered_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Most bytes of a refused request that are read and dropped.
const READ_ON_BYTES_MAX: usize = 64 << 20;

/// One connection's side of its requests.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) node: Arc<Node>,
    pub(super) watch: Arc<Watch>,
    pace: Pace,
    /// Bodies being read and dropped; HTTP/2 has a bound on streams, and so on these.
    reading_on: Mutex<JoinSet<()>>,
}

impl Client {
    pub(super) fn new(node: Arc<Node>, watch: Arc<Watch>) -> Self {
        Self { node, watch, pace: Pace::default(), reading_on: Mutex::default() }
    }

    /// Reads and drops what a client is still sending, for so long at most, so that it gets to see
    /// the answer.
    pub(super) fn read_on(&self, mut rest: Incoming, within: Duration) {
        let mut reading_on = self.reading_on.lock();
        while reading_on.try_join_next().is_some() {}
        reading_on.spawn(async move {
            let mut bytes_left = READ_ON_BYTES_MAX;
            let dropped = async {
                while let Some(Ok(frame)) = rest.frame().await {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    match bytes_left.checked_sub(bytes) {
                        Some(left) => bytes_left = left,
                        None => break,
                    }
                }
            };
            // Dropped unfinished, it resets the stream.
            let _ = tokio::time::timeout(within, dropped).await;
        });
    }

    /// Takes the right to `count` operations.
    ///
    /// # Errors
    /// A [`Problem`] when the connection's rate does not allow them now, or ever at once.
    pub(super) fn spend(&self, rate: Option<Rate>, count: usize) -> Result<(), Problem> {
        let Some(rate) = rate else { return Ok(()) };
        match self.pace.take(rate, count) {
            Pass::Granted => Ok(()),
            Pass::After(wait) => Err(Problem::rate_limited(wait)),
            Pass::Never => Err(Problem::rate_limited(Duration::ZERO).final_answer()),
        }
    }

    /// How long to wait before one more operation of a stream, if at all.
    pub(super) fn pause(&self, rate: Option<Rate>) -> Option<Duration> {
        match self.pace.take(rate?, 1) {
            Pass::After(wait) => Some(wait),
            Pass::Granted | Pass::Never => None,
        }
    }
}

/// Whether operations may go ahead.
#[derive(Debug, PartialEq, Eq)]
enum Pass {
    Granted,
    After(Duration),
    /// They are more than the burst allows at once.
    Never,
}

/// A connection's rate limiter, made when it is first needed and anew when the rate changes.
#[derive(Debug, Default)]
struct Pace(Mutex<Option<(Rate, DefaultDirectRateLimiter)>>);

impl Pace {
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
