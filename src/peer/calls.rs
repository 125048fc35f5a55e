//! Requests on their way over one connection, waiting for their answers.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::frame::{self, Head};

/// Most requests that wait for an answer on one connection.
pub(super) const CALLS_MAX: usize = 64 * 1024;

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was surely not delivered: there is no connection, or too much waits for it already.
    #[error("not sent: there is no connection to the node, or too much waits for it")]
    NotSent,
    /// The connection broke; the request may have been carried out.
    #[error("the connection to the node broke before the answer came")]
    Lost,
    /// The time is up; the request may have been carried out, or may be yet.
    #[error("the node did not answer in time")]
    TimedOut,
}

type Answer = Result<Bytes, CallError>;

/// The requests of one connection.
#[derive(Default)]
pub(super) struct Calls(Mutex<Table>);

#[derive(Default)]
struct Table {
    closed: bool,
    number: u64,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
}

/// A place for one answer; given up when dropped.
pub(super) struct Call<'a> {
    calls: &'a Calls,
    pub(super) number: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Calls {
    /// A place for one answer; `None` if there are too many, or the connection is over.
    pub(super) fn begin(&self) -> Option<Call<'_>> {
        let mut table = self.0.lock();
        if table.closed || table.waiting.len() >= CALLS_MAX {
            return None;
        }
        table.number += 1;
        let number = table.number;
        let (sender, answer) = oneshot::channel();
        table.waiting.insert(number, sender);
        drop(table);
        Some(Call { calls: self, number, answer })
    }

    /// Hands an answer to whoever still waits for it.
    pub(super) fn answer(&self, number: u64, body: Bytes) {
        let waiting = self.0.lock().waiting.remove(&number);
        if let Some(waiting) = waiting {
            // Whoever waited may have given up this very moment.
            let _ = waiting.send(Ok(body));
        }
    }

    /// Ends all that wait: whoever asked may ask again by another way.
    pub(super) fn lose(&self) {
        let waiting = std::mem::take(&mut self.0.lock().waiting);
        for sender in waiting.into_values() {
            let _ = sender.send(Err(CallError::Lost));
        }
    }

    /// Ends all: those in `unsent`, the bytes of frames that were never written, were surely not
    /// delivered.
    pub(super) fn close(&self, unsent: Vec<u8>) {
        let mut table = self.0.lock();
        table.closed = true;
        let mut waiting = std::mem::take(&mut table.waiting);
        drop(table);
        let mut unsent = BytesMut::from(Bytes::from(unsent));
        while let Ok(Some((head, _))) = frame::split(&mut unsent) {
            if let Head::Request { number, .. } = head
                && let Some(sender) = waiting.remove(&number)
            {
                let _ = sender.send(Err(CallError::NotSent));
            }
        }
        for sender in waiting.into_values() {
            let _ = sender.send(Err(CallError::Lost));
        }
    }
}

impl Call<'_> {
    /// Waits for the answer, or for the connection's end.
    pub(super) async fn wait(&mut self) -> Answer {
        (&mut self.answer).await.unwrap_or(Err(CallError::Lost))
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.calls.0.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_finds_its_call_and_a_late_one_nobody() {
        let calls = Calls::default();
        let (mut first, second) = (calls.begin().unwrap(), calls.begin().unwrap());
        let late = second.number;
        drop(second);
        calls.answer(late, Bytes::from_static(b"late"));
        calls.answer(first.number, Bytes::from_static(b"one"));
        assert_eq!(first.wait().await, Ok(Bytes::from_static(b"one")));
        drop(first);
        assert!(calls.0.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn what_was_not_written_is_told_from_what_may_have_arrived() {
        let calls = Calls::default();
        let (mut written, mut queued) = (calls.begin().unwrap(), calls.begin().unwrap());
        let mut unsent = Vec::new();
        frame::append(&mut unsent, Head::OneWay { kind: 1 }, 100, |_| {});
        let head = Head::Request { number: queued.number, kind: 1 };
        frame::append(&mut unsent, head, 100, |_| {});
        calls.close(unsent);
        assert_eq!(written.wait().await, Err(CallError::Lost));
        assert_eq!(queued.wait().await, Err(CallError::NotSent));
        assert!(calls.begin().is_none());
    }

    #[tokio::test]
    async fn calls_that_are_lost_make_room_for_others() {
        let calls = Calls::default();
        let mut first = calls.begin().unwrap();
        calls.lose();
        assert_eq!(first.wait().await, Err(CallError::Lost));
        let mut second = calls.begin().unwrap();
        calls.answer(second.number, Bytes::from_static(b"two"));
        assert_eq!(second.wait().await, Ok(Bytes::from_static(b"two")));
    }

    #[test]
    fn calls_are_bounded() {
        let calls = Calls::default();
        let all: Vec<_> = std::iter::from_fn(|| calls.begin()).collect();
        assert_eq!(all.len(), 65_536);
        drop(all);
        assert!(calls.begin().is_some());
    }
}
