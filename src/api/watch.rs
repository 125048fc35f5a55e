//! What is known of each open connection from outside: since when it waits, and for whom.
//!
//! A connection arms no timer of its own. It notes when it began to wait, by a clock that is
//! advanced a few times a second; whoever accepts connections looks over the notes at each advance
//! and orders those to end that have waited too long, or for whom too much is held ([`super::held`]).

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::held::{Budget, Detached, Held};
use super::turns::{Line, Place, Turn};

/// Since when a connection holds more than this is remembered: who holds much for long goes first.
const MUCH_BYTES: usize = 64 << 10;

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

/// Why a connection was ended that would have gone on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reason {
    /// No request came within `read_timeout`.
    Idle,
    /// The peer took nothing of an answer within `write_timeout`.
    Untaken,
    /// Too much was held for it.
    Memory,
    /// It sent more frames, or more around a body's chunks, than requests and answers are made of.
    Flood,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Idle, Self::Untaken, Self::Memory, Self::Flood];

    /// Its name in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Untaken => "untaken",
            Self::Memory => "memory",
            Self::Flood => "flood",
        }
    }
}

/// One connection, seen from outside.
#[derive(Debug)]
pub(super) struct Watch {
    clock: Arc<CoarseClock>,
    order: AtomicU8,
    /// Why it is ended, by its place in [`Reason::ALL`] and one more; 0 if for no such reason.
    reason: AtomicU8,
    held: Held,
    /// Since when much is held for it.
    holds_much_since: AtomicU64,
    /// Requests that were begun.
    requests: AtomicU32,
    turn: Turn,
    waker: AtomicWaker,
    /// Heads of HTTP/2 came that may not have been taken, and charged, yet.
    heads: AtomicBool,
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
    /// A body in chunks is coming.
    chunks: AtomicBool,
    /// Bytes of it that were read since its last piece came.
    chunk_head: AtomicUsize,
}

impl Watch {
    fn new(clock: Arc<CoarseClock>, budget: Arc<Budget>) -> Self {
        let now = clock.now();
        Self {
            clock,
            order: AtomicU8::new(Order::Serve as u8),
            reason: AtomicU8::new(0),
            held: Held::new(budget),
            holds_much_since: AtomicU64::new(now),
            requests: AtomicU32::new(0),
            turn: Turn::default(),
            waker: AtomicWaker::new(),
            heads: AtomicBool::new(false),
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(now),
            write_blocked_since: AtomicU64::new(0),
            unread: AtomicBool::new(false),
            framing_lost: AtomicBool::new(false),
            chunks: AtomicBool::new(false),
            chunk_head: AtomicUsize::new(0),
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

    /// Ends the connection, and notes why.
    pub(super) fn end(&self, reason: Reason) {
        self.is_wrong_for(reason);
        self.give(Order::End);
    }

    /// Notes that more frames came than there is reason for; the connection's task ends it.
    pub(super) fn floods(&self) {
        self.is_wrong_for(Reason::Flood);
    }

    fn is_wrong_for(&self, reason: Reason) {
        let _ =
            self.reason.compare_exchange(0, reason as u8 + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Why it is ended, if it is for one of these reasons.
    pub(super) fn reason(&self) -> Option<Reason> {
        let place = self.reason.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Reason::ALL[usize::from(place)])
    }

    /// The present reading of the coarse clock, in milliseconds.
    pub(super) fn now(&self) -> u64 {
        self.clock.now()
    }

    /// What is held for it.
    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// Charges so many more bytes to it; ends it when they are too many.
    pub(super) fn holds(&self, bytes: usize) {
        let before = self.held.add(bytes);
        if before <= MUCH_BYTES && before + bytes > MUCH_BYTES {
            self.holds_much_since.store(self.clock.now(), Ordering::Relaxed);
        }
        if before + bytes > self.held.budget().connection_bytes_max() {
            self.end(Reason::Memory);
        }
    }

    /// The present turn of the connection's task.
    pub(super) fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Notes that heads of HTTP/2 came: nothing more is read until they are taken.
    pub(super) fn brings_heads(&self) {
        self.heads.store(true, Ordering::Relaxed);
    }

    /// Whether heads came that may not have been taken yet.
    pub(super) fn has_heads(&self) -> bool {
        self.heads.load(Ordering::Relaxed)
    }

    /// All heads that came are taken; whether there were any.
    pub(super) fn takes_heads(&self) -> bool {
        self.heads.swap(false, Ordering::Relaxed)
    }

    /// Requests that were begun.
    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes went to the peer, which keeps an HTTP/1 connection from being idle.
    pub(super) fn is_written_to(&self) {
        self.idle_since.store(self.clock.now(), Ordering::Relaxed);
    }

    /// The peer took bytes.
    pub(super) fn write_went_on(&self) {
        if self.write_blocked_since.load(Ordering::Relaxed) != 0 {
            self.write_blocked_since.store(0, Ordering::Relaxed);
            self.held.is_taken();
        }
    }

    /// The peer takes no bytes at the moment.
    pub(super) fn write_is_blocked(&self) {
        if self.write_blocked_since.load(Ordering::Relaxed) == 0 {
            self.write_blocked_since.store(self.clock.now(), Ordering::Relaxed);
            let answer = self.held.answer();
            if answer > 0 {
                self.holds(answer);
                self.held.leaves_untaken(answer);
            }
        }
    }

    /// Whether the peer takes no bytes at the moment.
    pub(super) fn is_write_blocked(&self) -> bool {
        self.write_blocked_since.load(Ordering::Relaxed) != 0
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

    /// A body begins, in chunks or not.
    pub(super) fn begins_body(&self, in_chunks: bool) {
        self.chunks.store(in_chunks, Ordering::Relaxed);
        self.chunk_head.store(0, Ordering::Relaxed);
    }

    /// A piece of a body in chunks has come.
    pub(super) fn brings_piece(&self) {
        self.chunk_head.store(0, Ordering::Relaxed);
    }

    /// Bytes of a body in chunks that have brought no piece of it; none if it is not in chunks.
    pub(super) fn chunk_head(&self) -> Option<usize> {
        let in_chunks = self.chunks.load(Ordering::Relaxed);
        in_chunks.then(|| self.chunk_head.load(Ordering::Relaxed))
    }

    /// So many more were read.
    pub(super) fn reads_chunk_head(&self, bytes: usize) {
        self.chunk_head.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Why it has waited too long, if it has.
    fn overdue(&self, now: u64, read_timeout: Duration, write_timeout: Duration) -> Option<Reason> {
        let longer =
            |since: u64, limit: Duration| u128::from(now.saturating_sub(since)) > limit.as_millis();
        match self.write_blocked_since.load(Ordering::Relaxed) {
            0 => {
                let is_idle = self.busy.load(Ordering::Relaxed) == 0
                    && longer(self.idle_since.load(Ordering::Relaxed), read_timeout);
                is_idle.then_some(Reason::Idle)
            }
            since => longer(since, write_timeout).then_some(Reason::Untaken),
        }
    }

    /// Bytes and time in one: how much it weighs among those who hold too much.
    fn weight(&self, bytes: usize, now: u64) -> u128 {
        let since = self.holds_much_since.load(Ordering::Relaxed);
        bytes as u128 * u128::from(now.saturating_sub(since) + 1000)
    }
}

/// A request being answered, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy<W: Deref<Target = Watch>>(W);

impl<W: Deref<Target = Watch>> Busy<W> {
    /// Marks a request as being answered.
    pub(super) fn mark(watch: W) -> Self {
        watch.busy.fetch_add(1, Ordering::Relaxed);
        watch.requests.fetch_add(1, Ordering::Relaxed);
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
#[derive(Debug)]
pub(super) struct Registry {
    clock: Arc<CoarseClock>,
    budget: Arc<Budget>,
    line: Line,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    watches: HashMap<u64, Arc<Watch>>,
}

impl Registry {
    /// One without connections, which are to share `budget`.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { clock: Arc::default(), budget, line: Line::default(), open: Mutex::default() }
    }

    /// Enters a new connection.
    pub(super) fn enter(self: &Arc<Self>) -> Entered {
        let watch = Arc::new(Watch::new(Arc::clone(&self.clock), Arc::clone(&self.budget)));
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        open.watches.insert(number, Arc::clone(&watch));
        Entered { watch, number, registry: Arc::clone(self) }
    }

    /// Advances the clock, and ends what has waited too long or holds too much. Returns how many
    /// that were.
    pub(super) fn tick(&self, read_timeout: Duration, write_timeout: Duration) -> usize {
        let now = self.clock.advance();
        let open = self.open.lock();
        let mut ended = 0;
        for watch in open.watches.values() {
            if let Some(reason) = watch.overdue(now, read_timeout, write_timeout) {
                watch.end(reason);
                ended += 1;
            }
        }
        ended + open.shed(&self.budget, now)
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

impl Open {
    /// Ends those who hold too much by themselves, and, while all together hold too much, those who
    /// hold most for longest. Returns how many that were.
    fn shed(&self, budget: &Budget, now: u64) -> usize {
        let has_values = budget.has_values();
        if !has_values && budget.held() <= budget.bytes_max() {
            return 0;
        }
        let detached = match has_values {
            true => Detached::among(self.watches.values().map(|watch| &watch.held)),
            false => Detached::default(),
        };
        let mut bytes = budget.held() + detached.bytes();
        let mut holders: Vec<(u128, usize, &Watch)> = Vec::new();
        for watch in self.watches.values() {
            let own = watch.held.bytes() + detached.of(&watch.held);
            if watch.order() == Order::End {
                // On its way out.
                bytes = bytes.saturating_sub(own);
            } else {
                holders.push((watch.weight(own, now), own, watch));
            }
        }
        holders.sort_unstable_by_key(|(weight, ..)| std::cmp::Reverse(*weight));
        let mut ended = 0;
        for (_, own, watch) in holders {
            let too_much = own > budget.connection_bytes_max();
            if too_much || bytes > budget.bytes_max() {
                watch.end(Reason::Memory);
                bytes = bytes.saturating_sub(own);
                ended += 1;
            }
        }
        ended
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

    /// A place among those who always have more to do.
    pub(super) fn place(&self) -> Place {
        Place::new(&self.registry.line)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.registry.open.lock().watches.remove(&self.number);
        self.watch.held.is_taken();
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
        (Arc::clone(&clock), Watch::new(clock, Arc::new(Budget::new(1 << 20, 1 << 20))))
    }

    #[test]
    fn a_connection_that_sends_nothing_is_overdue_after_the_read_timeout() {
        let (_, watch) = watch_at(1_000);
        assert_eq!(watch.overdue(1_100, READ, WRITE), None);
        assert_eq!(watch.overdue(1_101, READ, WRITE), Some(Reason::Idle));
    }

    #[test]
    fn a_request_being_answered_is_never_overdue_and_the_wait_begins_anew_after_it() {
        let (clock, watch) = watch_at(1_000);
        let busy = Busy::mark(&watch);
        assert_eq!(watch.overdue(9_000, READ, WRITE), None);
        clock.millis.store(9_000, Ordering::Relaxed);
        drop(busy);
        assert_eq!(watch.overdue(9_100, READ, WRITE), None);
        assert_eq!(watch.overdue(9_101, READ, WRITE), Some(Reason::Idle));
    }

    #[test]
    fn a_reader_that_takes_nothing_is_overdue_after_the_write_timeout_alone() {
        let (_, watch) = watch_at(1_000);
        let _busy = Busy::mark(&watch);
        watch.write_is_blocked();
        assert_eq!(watch.overdue(1_300, READ, WRITE), None);
        assert_eq!(watch.overdue(1_301, READ, WRITE), Some(Reason::Untaken));
        watch.write_went_on();
        assert_eq!(watch.overdue(1_301, READ, WRITE), None);
    }

    #[test]
    fn an_order_is_never_taken_back() {
        let (_, watch) = watch_at(1);
        watch.give(Order::End);
        watch.give(Order::Drain);
        assert_eq!(watch.order(), Order::End);
    }
}
