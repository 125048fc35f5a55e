//! What each connection of the bench does, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use hyper::{Method, StatusCode, Uri};
use tokio::sync::Semaphore;

use super::connection::{Endpoint, Error, Link};
use super::report::Samples;
use crate::cli::client::{Query, escape};

/// Pause before a broken connection is made anew.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// The pacer sleeps at least this long, so that at high rates it wakes for several operations.
const PACER_PAUSE_MIN: Duration = Duration::from_micros(50);

/// Operations that may be due and unsent; a server that falls further behind is overloaded, and
/// what becomes due beyond is counted and left out.
const DUE_MAX: u64 = 1_000_000;

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A read.
    Get,
    /// A write.
    Put,
}

impl Kind {
    /// As the report calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
        }
    }
}

/// Which operations there are.
#[derive(Debug)]
pub(super) struct Plan {
    path: String,
    query: Query,
    keys: u64,
    digits: usize,
    value: Bytes,
    gets: u32,
    puts: u32,
}

impl Plan {
    /// `gets` to `puts` on `keys` keys that begin with `prefix`, storing `value`.
    ///
    /// # Errors
    /// The prefix or the TTL makes no URL.
    pub(super) fn new(
        prefix: &str,
        keys: u64,
        value: Bytes,
        ttl: Option<&str>,
        gets: u32,
        puts: u32,
    ) -> anyhow::Result<Self> {
        let path = format!("/v1/kv/{}", escape(prefix.as_bytes()));
        let query = Query::default().with_some("ttl", ttl);
        let digits = (keys - 1).to_string().len();
        let plan = Self { path, query, keys, digits, value, gets, puts };
        plan.uri(Kind::Put, 0).context("--key-prefix and --ttl make no URL")?;
        Ok(plan)
    }

    fn uri(&self, kind: Kind, key: u64) -> Result<Uri, hyper::http::uri::InvalidUri> {
        let query = if kind == Kind::Put { self.query.as_str() } else { "" };
        let digits = self.digits;
        Uri::from_maybe_shared(Bytes::from(format!("{}{key:0digits$}{query}", self.path)))
    }

    /// Draws an operation.
    fn draw(&self, random: &mut Random) -> (Kind, u64) {
        let kind =
            if random.below(u64::from(self.gets) + u64::from(self.puts)) < u64::from(self.gets) {
                Kind::Get
            } else {
                Kind::Put
            };
        (kind, random.below(self.keys))
    }
}

/// When operations happen.
#[derive(Debug)]
pub(super) struct Phase {
    /// When the phase began.
    start: Instant,
    /// What is answered before is not recorded.
    measured_from: Instant,
    /// `None`: every key is put once, and that is all.
    end: Option<Instant>,
    /// Time from one operation to the next, in nanoseconds, where there is a rate.
    interval_nanos: Option<f64>,
    /// Operations taken so far, where there is a rate.
    taken: AtomicU64,
    /// A key could not be loaded, so that there is no point in going on.
    given_up: AtomicBool,
}

impl Phase {
    /// Puts every key once.
    pub(super) fn load() -> Self {
        let start = Instant::now();
        Self {
            start,
            measured_from: start,
            end: None,
            interval_nanos: None,
            taken: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
        }
    }

    /// Draws operations for `warmup` and then `duration`, at `rate` a second if given.
    pub(super) fn timed(
        start: Instant,
        warmup: Duration,
        duration: Duration,
        rate: Option<u64>,
    ) -> Self {
        Self {
            start,
            measured_from: start + warmup,
            end: Some(start + warmup + duration),
            interval_nanos: rate.map(|rate| 1e9 / rate as f64),
            taken: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
        }
    }

    /// How long was measured until now.
    pub(super) fn measured(&self) -> Duration {
        self.measured_from.elapsed()
    }

    /// Operations that connections have taken up.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Starts the thread that says when operations are due, where there is a rate; it returns how
    /// many there were. Async timers tick in milliseconds, which would swamp what is measured.
    pub(super) fn pacer(self: &Arc<Self>, due: Arc<Semaphore>) -> Option<thread::JoinHandle<u64>> {
        let (interval, end) = (self.interval_nanos?, self.end?);
        let phase = Arc::clone(self);
        Some(thread::spawn(move || {
            let total = ((end - phase.start).as_nanos() as f64 / interval) as u64;
            let mut released = 0;
            while released < total {
                let now = Instant::now();
                if now >= end {
                    break;
                }
                let reached = ((now - phase.start).as_nanos() as f64 / interval) as u64 + 1;
                let reached = reached.min(total).min(phase.taken() + DUE_MAX);
                due.add_permits(usize::try_from(reached.saturating_sub(released)).unwrap_or(0));
                released = released.max(reached);
                let next =
                    phase.due_at(released, interval).saturating_duration_since(Instant::now());
                thread::sleep(next.max(PACER_PAUSE_MIN));
            }
            thread::sleep(end.saturating_duration_since(Instant::now()));
            due.close();
            total
        }))
    }

    fn due_at(&self, index: u64, interval_nanos: f64) -> Instant {
        self.start + Duration::from_nanos((index as f64 * interval_nanos) as u64)
    }
}

/// What a connection has done so far, for the progress line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Counts {
    /// Operations answered.
    pub(super) done: AtomicU64,
    /// Operations that failed.
    pub(super) errors: AtomicU64,
}

/// One connection's part of the load.
pub(super) struct Client {
    pub(super) index: u32,
    pub(super) clients: u32,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) plan: Arc<Plan>,
    pub(super) phase: Arc<Phase>,
    pub(super) counts: Arc<[Counts]>,
    pub(super) due: Arc<Semaphore>,
}

impl Client {
    /// Does operations until the phase ends.
    pub(super) async fn run(self) -> Samples {
        let mut samples = Samples::default();
        let mut random = Random::new(u64::from(self.index));
        let mut link = None;
        let mut next_key = u64::from(self.index);
        loop {
            let (kind, key, began) = match (self.phase.end, self.phase.interval_nanos) {
                (None, _) if next_key >= self.plan.keys || self.phase.given_up() => break,
                (None, _) => {
                    let key = next_key;
                    next_key += u64::from(self.clients);
                    (Kind::Put, key, Instant::now())
                }
                (Some(end), None) => {
                    let now = Instant::now();
                    if now >= end {
                        break;
                    }
                    let (kind, key) = self.plan.draw(&mut random);
                    (kind, key, now)
                }
                (Some(_), Some(interval)) => {
                    let Ok(permit) = self.due.acquire().await else {
                        break;
                    };
                    permit.forget();
                    let index = self.phase.taken.fetch_add(1, Ordering::Relaxed);
                    let (kind, key) = self.plan.draw(&mut random);
                    (kind, key, self.phase.due_at(index, interval))
                }
            };
            let result = self.operate(&mut link, kind, key).await;
            self.record(&mut samples, kind, began, result);
            if link.is_none() {
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
        samples
    }

    async fn operate<'a>(
        &'a self,
        link: &mut Option<Link<'a>>,
        kind: Kind,
        key: u64,
    ) -> Result<StatusCode, Error> {
        let open = match link {
            Some(open) => open,
            None => link.insert(self.endpoint.connect().await?),
        };
        let uri =
            self.plan.uri(kind, key).expect("only the number differs from the URL tried first");
        let result = match kind {
            Kind::Get => open.send(Method::GET, &uri, Bytes::new()).await,
            Kind::Put => open.send(Method::PUT, &uri, self.plan.value.clone()).await,
        };
        if !matches!(result, Ok(_) | Err(Error::Refused(_))) {
            *link = None;
        }
        result
    }

    fn record(
        &self,
        samples: &mut Samples,
        kind: Kind,
        began: Instant,
        result: Result<StatusCode, Error>,
    ) {
        let counts = &self.counts[self.index as usize];
        let counter = if result.is_ok() { &counts.done } else { &counts.errors };
        if result.is_err() && self.phase.end.is_none() {
            self.phase.given_up.store(true, Ordering::Relaxed);
        }
        counter.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        if now >= self.phase.measured_from {
            samples.record(kind, now - began, result);
        }
    }
}

/// A small generator of pseudo-random numbers: SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// A sequence of its own for each connection; the same one in every run.
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9)
    }

    /// A number from 0 to `bound` - 1.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The high half of the product spreads evenly over the range without a division.
        ((u128::from(mixed) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(gets: u32, puts: u32) -> Plan {
        let value = Bytes::from_static(b"v");
        Plan::new("b/", 1000, value, Some("30s"), gets, puts).expect("the test's plan is right")
    }

    #[test]
    fn keys_have_one_length_and_only_puts_carry_the_ttl() {
        let plan = plan(1, 1);
        let uri = |kind, key| plan.uri(kind, key).expect("a URL").to_string();
        assert_eq!(uri(Kind::Get, 7), "/v1/kv/b%2F007");
        assert_eq!(uri(Kind::Put, 999), "/v1/kv/b%2F999?ttl=30s");
    }

    #[test]
    fn operations_are_drawn_in_the_ratio_asked_for() {
        let plan = plan(9, 1);
        let mut random = Random::new(3);
        let draws: Vec<_> = (0..100_000).map(|_| plan.draw(&mut random)).collect();
        let gets = draws.iter().filter(|(kind, _)| *kind == Kind::Get).count();
        assert!((89_000..91_000).contains(&gets), "{gets} of 100000 are GETs");
        assert!(draws.iter().all(|(_, key)| *key < 1000));
    }

    #[test]
    fn operations_are_due_at_even_intervals() {
        let start = Instant::now();
        let phase = Phase::timed(start, Duration::ZERO, Duration::from_secs(1), Some(4));
        let due = |index| phase.due_at(index, phase.interval_nanos.expect("there is a rate"));
        assert_eq!(due(0) - start, Duration::ZERO);
        assert_eq!(due(3) - start, Duration::from_millis(750));
    }
}
