//! Waiting until a frame is durable: each waiter is woken once, by the sync that covers it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::shared::Shared;
use super::{Error, Lsn};

/// One who waits.
#[derive(Debug)]
pub(super) struct Waiter {
    ticket: u64,
    pub(super) lsn: Lsn,
    pub(super) waker: Waker,
}

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    next_ticket: u64,
    pub(super) waiting: Vec<Waiter>,
}

impl Waiters {
    /// Enters a waiter, or brings the waker of one who waits already up to date.
    fn enter(&mut self, ticket: Option<u64>, lsn: Lsn, waker: &Waker) -> u64 {
        let known = ticket.and_then(|t| self.waiting.iter_mut().rev().find(|w| w.ticket == t));
        if let Some(waiter) = known {
            waiter.waker.clone_from(waker);
            return waiter.ticket;
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.waiting.push(Waiter { ticket, lsn, waker: waker.clone() });
        ticket
    }
}

/// Ends when the frame `lsn` is durable, or the log has failed.
///
/// A waiter that is dropped early leaves its waker behind until the sync that covers it.
#[derive(Debug)]
pub(super) struct Durable<'a> {
    shared: &'a Shared,
    lsn: Lsn,
    ticket: Option<u64>,
}

impl<'a> Durable<'a> {
    pub(super) fn new(shared: &'a Shared, lsn: Lsn) -> Self {
        Self { shared, lsn, ticket: None }
    }

    fn outcome(&self) -> Option<Result<(), Error>> {
        if self.shared.durable.load(Ordering::Acquire) >= self.lsn.0 {
            return Some(Ok(()));
        }
        self.shared.failure().map(Err)
    }
}

impl Future for Durable<'_> {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(outcome) = this.outcome() {
            return Poll::Ready(outcome);
        }
        let mut waiters = this.shared.waiters.lock();
        // Asked again under the lock: whoever publishes does so before it takes the lock.
        if let Some(outcome) = this.outcome() {
            return Poll::Ready(outcome);
        }
        let ticket = waiters.enter(this.ticket, this.lsn, cx.waker());
        drop(waiters);
        if this.ticket.replace(ticket).is_none() {
            this.shared.demand();
        }
        Poll::Pending
    }
}

/// Waits for a future on a thread that may block.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
            return value;
        }
        thread::park();
    }
}
