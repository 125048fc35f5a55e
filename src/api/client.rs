//! What the requests of one connection share: the node they talk to, and their rate limit.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use bytes::Bytes;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::dispatch;
use super::inbound::Inbound;
use super::openapi;
use super::pace::Pace;
use super::problem::Problem;
use super::settings::{Limits, Rate, Settings};
use super::tokens::Grant;
use super::watch::Watch;
use crate::coordinator::Coordinator;
use crate::metrics::Metrics;

/// What the requests of all connections share.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) coordinator: Coordinator,
    pub(super) metrics: Arc<Metrics>,
    pub(super) settings: ArcSwap<Settings>,
    /// The routes beside the keys' own.
    pub(super) router: Router,
    /// The API's description as it was last asked for, and what it was made for.
    document: Mutex<Option<(Limits, bool, Bytes)>>,
}

impl Node {
    pub(super) fn new(coordinator: Coordinator, metrics: Arc<Metrics>, settings: Settings) -> Self {
        Self {
            coordinator,
            metrics,
            settings: ArcSwap::from_pointee(settings),
            router: dispatch::router(),
            document: Mutex::default(),
        }
    }
}

impl Node {
    /// The API's description: made anew only when what it describes has changed, since anybody may
    /// ask for it.
    pub(super) fn document(&self, limits: Limits, needs_token: bool) -> Bytes {
        let mut last = self.document.lock();
        if let Some((of, asked, document)) = &*last
            && (*of, *asked) == (limits, needs_token)
        {
            return document.clone();
        }
        let document = openapi::document(limits, needs_token);
        *last = Some((limits, needs_token, document.clone()));
        document
    }
}

/// What takes milliseconds is done one at a time, beside the threads that all requests share.
static HEAVY: Semaphore = Semaphore::const_new(1);

/// Does what takes milliseconds.
///
/// # Panics
/// As `work` does.
pub(super) async fn heavy<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let _turn = HEAVY.acquire().await.expect("it is never closed");
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this with it.
            Err(_) => std::future::pending().await,
        },
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

    /// Takes the right to `count` operations, of this connection and of the token; where one has
    /// none, of neither.
    ///
    /// # Errors
    /// A [`Problem`] when a rate does not allow them now, or ever at once.
    pub(super) fn spend(
        &self,
        rate: Option<Rate>,
        grant: &Grant,
        count: usize,
    ) -> Result<(), Problem> {
        self.pace.spend(rate, count)?;
        grant.spend(count).inspect_err(|_| self.pace.give_back(count))
    }

    /// How long one more operation of a stream has to wait for the connection's rate.
    pub(super) fn pause(&self, rate: Option<Rate>) -> Option<Duration> {
        self.pace.pause(rate)
    }

    /// Reads and drops what a client is still sending, for so long at most, so that it gets to see
    /// the answer.
    pub(super) fn read_on(&self, mut rest: Inbound, within: Duration) {
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
}
