//! The numbers that a coordinator gives its requests to one shard, and which it still waits for.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::entry::RequestId;

/// The requests to one shard.
#[derive(Debug, Default)]
pub(super) struct Tickets(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    /// Counter of the first in `waiting`.
    from: u64,
    /// By counter: whether somebody still waits.
    waiting: VecDeque<bool>,
}

/// One request's number. While it lives the coordinator waits for the answer.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    tickets: &'a Tickets,
    counter: u64,
    waits_from: u64,
}

impl Tickets {
    /// The next number.
    pub(super) fn take(&self) -> Ticket<'_> {
        let mut open = self.0.lock();
        let counter = open.from + open.waiting.len() as u64;
        open.waiting.push_back(true);
        Ticket { tickets: self, counter, waits_from: open.from }
    }
}

impl Ticket<'_> {
    /// The request id that goes into the record.
    pub(super) fn id(&self, incarnation: u64) -> RequestId {
        RequestId::Counted { incarnation, counter: self.counter, waits_from: self.waits_from }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut open = self.tickets.0.lock();
        let index = (self.counter - open.from) as usize;
        open.waiting[index] = false;
        while open.waiting.front() == Some(&false) {
            open.waiting.pop_front();
            open.from += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_number_still_waited_for_goes_along() {
        let tickets = Tickets::default();
        let (a, b) = (tickets.take(), tickets.take());
        assert_eq!((a.counter, a.waits_from), (0, 0));
        assert_eq!((b.counter, b.waits_from), (1, 0));
        drop(b);
        assert_eq!(tickets.take().waits_from, 0);
        drop(a);
        let last = tickets.take();
        assert_eq!((last.counter, last.waits_from), (3, 3));
    }
}
