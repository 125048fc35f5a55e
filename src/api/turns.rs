//! Whose turn it is: connections with little to do go before those that always have more.
//!
//! A turn is short. Whoever has used one up gets in line, and of those in line only as many go on at
//! once as there are processors. So whoever has little to do waits for that many turns, however many
//! connections are busy.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use super::watch::{Order, Watch};

/// Longest time that a connection which has always something to do goes on before others have their
/// turn.
const TURN_MAX: Duration = Duration::from_micros(300);

/// The line of those who always have more to do.
#[derive(Clone, Debug)]
pub(super) struct Line(Arc<Semaphore>);

impl Default for Line {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(available_parallelism().map_or(1, Into::into))))
    }
}

/// A connection's present turn.
#[derive(Debug)]
pub(super) struct Turn {
    made: Instant,
    /// When it began, in nanoseconds since this was made; 0 if nothing was done in it yet.
    began: AtomicU64,
    /// Times that something was read in it.
    reads: AtomicU32,
    used_up: AtomicBool,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            made: Instant::now(),
            began: AtomicU64::new(0),
            reads: AtomicU32::new(0),
            used_up: AtomicBool::new(false),
        }
    }
}

impl Turn {
    fn begin(&self) {
        self.began.store(0, Ordering::Relaxed);
        self.reads.store(0, Ordering::Relaxed);
        self.used_up.store(false, Ordering::Relaxed);
    }

    /// Whether it has lasted so long by now that others should have theirs.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let nanos = now.saturating_duration_since(self.made).as_nanos() as u64;
        let began = self.began.load(Ordering::Relaxed);
        if began == 0 {
            self.began.store(nanos.max(1), Ordering::Relaxed);
            return false;
        }
        let is_over = nanos.saturating_sub(began) > TURN_MAX.as_nanos() as u64;
        if is_over {
            self.use_up();
        }
        is_over
    }

    /// Notes that something is read; how many times it was in this turn.
    pub(super) fn reads(&self) -> u32 {
        self.reads.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The next one is had in line, however short this one was.
    pub(super) fn use_up(&self) {
        self.used_up.store(true, Ordering::Relaxed);
    }

    /// Lets others have theirs, and goes on after them.
    pub(super) fn give_way(&self, cx: &Context<'_>) {
        self.use_up();
        cx.waker().wake_by_ref();
    }
}

/// A connection's place in line.
#[derive(Debug)]
pub(super) struct Place {
    line: PollSemaphore,
    granted: Option<OwnedSemaphorePermit>,
}

impl Place {
    pub(super) fn new(line: &Line) -> Self {
        Self { line: PollSemaphore::new(Arc::clone(&line.0)), granted: None }
    }

    /// Goes on with another turn. Who used up the last one waits in line before.
    pub(super) fn turn<T>(
        &mut self,
        watch: &Watch,
        cx: &mut Context<'_>,
        go_on: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let turn = watch.turn();
        let waits = turn.used_up.load(Ordering::Relaxed) && watch.order() != Order::End;
        if waits && self.granted.is_none() {
            return self.poll_in_line(cx).map(|never| match never {});
        }
        turn.begin();
        let done = go_on(cx);
        self.granted = None;
        done
    }

    /// Waits for one turn more, which lasts until what is returned is dropped.
    pub(super) async fn last(&mut self) -> Option<OwnedSemaphorePermit> {
        poll_fn(|cx| match self.granted.take() {
            Some(granted) => Poll::Ready(Some(granted)),
            None => self.poll_in_line(cx).map(|never| match never {}),
        })
        .await
    }

    /// Pending until a turn is granted, and once more: a runtime lets go first who was woken last,
    /// and those with little to do are to go before.
    fn poll_in_line(&mut self, cx: &mut Context<'_>) -> Poll<Infallible> {
        self.granted = ready!(self.line.poll_acquire(cx));
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
