//! What is known of each open connection from outside: since when it waits, and for whom.
//!
//! A connection arms no timer of its own. It notes when it began to wait, by a clock that is
//! advanced a few times a second; whoever accepts connections looks over the notes at each advance
//! and orders those to end that have waited too long.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

/// How often the clock is advanced, at most and at least.
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_millis(250);

/// A clock that costs one load to read, and is as exact as its ticks are frequent.
#[derive(Debug)]
pub(super) struct CoarseClock {
    started: Instant,
    /// Never 0, so that 0 can stand for "not waiting".
    millis: AtomicU64,
}

impl Default for CoarseClock {
    fn default() -> Self {
        Self { started: Instant::now(), millis: AtomicU64::new(1) }
    }
}

impl CoarseClock {
    fn now(&self) -> u64 {
        self.millis.load(Ordering::Relaxed)
    }

    fn advance(&self) -> u64 {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.millis.fetch_max(millis, Ordering::Relaxed).max(millis)
    }
}

/// What a connection has been told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    /// Go on.
    Serve,
    /// Finish what is under way, take nothing new, close.
    Drain,
    /// Close now.
    End,
}

/// One connection, seen from outside.
#[derive(Debug)]
pub(super) struct Watch {
    clock: Arc<CoarseClock>,
    order: AtomicU8,
    waker: AtomicWaker,
    /// Requests being answered.
    busy: AtomicU32,
    /// When the connection last had something to do.
    idle_since: AtomicU64,
    /// Since when the peer takes no more bytes; 0 while it does.
    write_blocked_since: AtomicU64,
    /// A request was answered before all of it was read.
    unread: AtomicBool,
    /// Where the next request begins is not known any more.
    framing_lost: AtomicBool,
}

impl Watch {
    fn new(clock: Arc<CoarseClock>) -> Self {
        let now = clock.now();
        Self {
            clock,
            order: AtomicU8::new(Order::Serve as u8),
            waker: AtomicWaker::new(),
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(now),
            write_blocked_since: AtomicU64::new(0),
            unread: AtomicBool::new(false),
            framing_lost: AtomicBool::new(false),
        }
    }

    /// Names the task that carries out orders.
    pub(super) fn carried_out_by(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    /// What is to be done now.
    pub(super) fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Serve,
            1 => Order::Drain,
            _ => Order::End,
        }
    }

    fn give(&self, order: Order) {
        if self.order.fetch_max(order as u8, Ordering::AcqRel) < order as u8 {
            self.waker.wake();
        }
    }

    /// The peer took bytes.
    pub(super) fn write_went_on(&self) {
        self.idle_since.store(self.clock.now(), Ordering::Relaxed);
        if self.write_blocked_since.load(Ordering::Relaxed) != 0 {
            self.write_blocked_since.store(0, Ordering::Relaxed);
        }
    }

    /// The peer takes no bytes at the moment.
    pub(super) fn write_is_blocked(&self) {
        if self.write_blocked_since.load(Ordering::Relaxed) == 0 {
            self.write_blocked_since.store(self.clock.now(), Ordering::Relaxed);
        }
    }

    /// Notes whether the peer may still be sending what nobody will read.
    pub(super) fn leaves_unread(&self, unread: bool) {
        self.unread.store(unread, Ordering::Relaxed);
    }

    /// Whether the peer may still be sending what nobody will read.
    pub(super) fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Notes that whatever follows cannot be told to be a request.
    pub(super) fn loses_framing(&self) {
        self.framing_lost.store(true, Ordering::Relaxed);
    }

    /// Whether nothing more may be taken for a request.
    pub(super) fn has_lost_framing(&self) -> bool {
        self.framing_lost.load(Ordering::Relaxed)
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    fn is_overdue(&self, now: u64, read_timeout: Duration, write_timeout: Duration) -> bool {
        let longer =
            |since: u64, limit: Duration| u128::from(now.saturating_sub(since)) > limit.as_millis();
        match self.write_blocked_since.load(Ordering::Relaxed) {
            0 => {
                self.busy.load(Ordering::Relaxed) == 0
                    && longer(self.idle_since.load(Ordering::Relaxed), read_timeout)
            }
            since => longer(since, write_timeout),
        }
    }
}

/// A request being answered, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy<W: Deref<Target = Watch>>(W);

impl<W: Deref<Target = Watch>> Busy<W> {
    /// Marks a request as being answered.
    pub(super) fn mark(watch: W) -> Self {
        watch.busy.fetch_add(1, Ordering::Relaxed);
        Self(watch)
    }
}

impl<W: Deref<Target = Watch>> Drop for Busy<W> {
    fn drop(&mut self) {
        let watch = &*self.0;
        watch.idle_since.store(watch.clock.now(), Ordering::Relaxed);
        watch.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The open connections of one listener.
#[derive(Debug, Default)]
pub(super) struct Registry {
    clock: Arc<CoarseClock>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    watches: HashMap<u64, Arc<Watch>>,
}

impl Registry {
    /// Enters a new connection.
    pub(super) fn enter(self: &Arc<Self>) -> Entered {
        let watch = Arc::new(Watch::new(Arc::clone(&self.clock)));
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        open.watches.insert(number, Arc::clone(&watch));
        Entered { watch, number, registry: Arc::clone(self) }
    }

    /// Advances the clock, and ends what has waited too long. Returns how many that were.
    pub(super) fn tick(&self, read_timeout: Duration, write_timeout: Duration) -> usize {
        let now = self.clock.advance();
        let mut ended = 0;
        for watch in self.open.lock().watches.values() {
            if watch.is_overdue(now, read_timeout, write_timeout) {
                watch.give(Order::End);
                ended += 1;
            }
        }
        ended
    }

    /// Gives an order to all.
    pub(super) fn order_all(&self, order: Order) {
        for watch in self.open.lock().watches.values() {
            watch.give(order);
        }
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open.lock().watches.len()
    }
}

/// The time between two ticks that keeps both timeouts to about an eighth.
pub(super) fn tick_interval(read_timeout: Duration, write_timeout: Duration) -> Duration {
    (read_timeout.min(write_timeout) / 8).clamp(TICK_MIN, TICK_MAX)
}

/// A connection's place in the registry, until it is dropped.
#[derive(Debug)]
pub(super) struct Entered {
    watch: Arc<Watch>,
    number: u64,
    registry: Arc<Registry>,
}

impl Entered {
    /// The connection's watch.
    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.registry.open.lock().watches.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Duration = Duration::from_millis(100);
    const WRITE: Duration = Duration::from_millis(300);

    fn watch_at(millis: u64) -> (Arc<CoarseClock>, Watch) {
        let clock = Arc::new(CoarseClock::default());
        clock.millis.store(millis, Ordering::Relaxed);
        (Arc::clone(&clock), Watch::new(clock))
    }

    #[test]
    fn a_connection_that_sends_nothing_is_overdue_after_the_read_timeout() {
        let (_, watch) = watch_at(1_000);
        assert!(!watch.is_overdue(1_100, READ, WRITE));
        assert!(watch.is_overdue(1_101, READ, WRITE));
    }

    #[test]
    fn a_request_being_answered_is_never_overdue_and_the_wait_begins_anew_after_it() {
        let (clock, watch) = watch_at(1_000);
        let busy = Busy::mark(&watch);
        assert!(!watch.is_overdue(9_000, READ, WRITE));
        clock.millis.store(9_000, Ordering::Relaxed);
        drop(busy);
        assert!(!watch.is_overdue(9_100, READ, WRITE));
        assert!(watch.is_overdue(9_101, READ, WRITE));
    }

    #[test]
    fn a_reader_that_takes_nothing_is_overdue_after_the_write_timeout_alone() {
        let (_, watch) = watch_at(1_000);
        let _busy = Busy::mark(&watch);
        watch.write_is_blocked();
        assert!(!watch.is_overdue(1_300, READ, WRITE));
        assert!(watch.is_overdue(1_301, READ, WRITE));
        watch.write_went_on();
        assert!(!watch.is_overdue(1_301, READ, WRITE));
    }

    #[test]
    fn an_order_is_never_taken_back() {
        let (_, watch) = watch_at(1);
        watch.give(Order::End);
        watch.give(Order::Drain);
        assert_eq!(watch.order(), Order::End);
    }
}
