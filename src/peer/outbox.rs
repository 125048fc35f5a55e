//! What waits to be written to one connection.
//!
//! Two buffers: frames gather in one while the other is written, so whatever gathers during a
//! write goes out together with the next. Invariants: frames leave in the order they came; both
//! buffers together hold at most [`OUTBOX_BYTES_MAX`] and a few small frames; the lock is held for
//! copying one frame or swapping the buffers, never across an await.

use std::io;
use std::pin::pin;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::frame::{self, Head};
use super::record::{RECORD_BYTES_MAX, Sealer};

/// Most bytes that wait for one connection. What would exceed it is dropped.
pub const OUTBOX_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Further bytes that pings, pongs and farewells may take.
const URGENT_BYTES_MAX: usize = 64 * 1024;

/// Largest buffer that is kept for the next batch; a larger one is given back.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// Frames on their way out of one connection.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
    room: Notify,
}

#[derive(Default)]
struct State {
    gathering: Vec<u8>,
    /// Bytes of the other buffer that are not written yet.
    writing: usize,
    closed: bool,
}

impl State {
    fn push(&mut self, bytes_max: usize, head: Head, body: impl FnOnce(&mut Vec<u8>)) -> bool {
        let used = self.gathering.len() + self.writing;
        !self.closed
            && used < bytes_max
            && frame::append(&mut self.gathering, head, bytes_max - used, body)
    }
}

impl Outbox {
    /// Appends a frame. False, and nothing appended, if it does not fit or the outbox is closed.
    pub(super) fn push(&self, head: Head, body: impl FnOnce(&mut Vec<u8>)) -> bool {
        let pushed = self.state.lock().push(OUTBOX_BYTES_MAX, head, body);
        if pushed {
            self.filled.notify_one();
        }
        pushed
    }

    /// Appends a small frame without a body, also to an outbox that is full.
    pub(super) fn push_urgent(&self, head: Head) {
        let bytes_max = OUTBOX_BYTES_MAX + URGENT_BYTES_MAX;
        if self.state.lock().push(bytes_max, head, |_| {}) {
            self.filled.notify_one();
        }
    }

    /// Appends a frame as soon as it fits. False if it never will: it is too long, or the outbox
    /// is closed.
    pub(super) async fn push_when_room(&self, head: Head, body: &[u8]) -> bool {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            if self.push(head, |out| out.extend_from_slice(body)) {
                return true;
            }
            {
                let state = self.state.lock();
                if state.closed || state.gathering.len() + state.writing == 0 {
                    return false;
                }
            }
            room.await;
        }
    }

    /// Whether it takes no more frames.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Takes no more frames. Those that are in it are still written, and the writer ends then.
    pub(super) fn finish(&self) {
        self.state.lock().closed = true;
        self.filled.notify_one();
        self.room.notify_waiters();
    }

    /// Takes no more frames, and gives back those of which certainly nothing was written.
    pub(super) fn close(&self) -> Vec<u8> {
        let unsent = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.gathering)
        };
        self.filled.notify_one();
        self.room.notify_waiters();
        unsent
    }

    /// The next batch, as soon as there is one; `spare` gathers the one after it. `None` when the
    /// outbox is closed and empty.
    async fn take(&self, spare: Vec<u8>) -> Option<Vec<u8>> {
        loop {
            {
                let mut state = self.state.lock();
                if !state.gathering.is_empty() {
                    state.writing = state.gathering.len();
                    return Some(std::mem::replace(&mut state.gathering, spare));
                }
                if state.closed {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }

    fn written(&self, bytes: usize) {
        self.state.lock().writing -= bytes;
        self.room.notify_waiters();
    }

    /// Writes batch after batch to `stream` until the outbox is closed and empty.
    ///
    /// # Errors
    /// The connection broke, or took nothing of a record for as long as `stall_max`.
    pub(super) async fn write_to(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        mut sealer: Option<Sealer>,
        stall_max: Duration,
    ) -> io::Result<()> {
        let mut spare = Vec::new();
        while let Some(mut batch) = self.take(spare).await {
            for piece in batch.chunks(RECORD_BYTES_MAX) {
                let bytes = match &mut sealer {
                    Some(sealer) => sealer.seal(piece),
                    None => piece,
                };
                timeout(stall_max, stream.write_all(bytes)).await??;
                self.written(piece.len());
            }
            timeout(stall_max, stream.flush()).await??;
            batch.clear();
            spare = if batch.capacity() > KEPT_BYTES_MAX { Vec::new() } else { batch };
        }
        timeout(stall_max, stream.shutdown()).await?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    const STALL: Duration = Duration::from_secs(5);

    fn one_way(outbox: &Outbox, bytes: usize) -> bool {
        outbox.push(Head::OneWay { kind: 1 }, |out| out.resize(out.len() + bytes, 7))
    }

    #[test]
    fn what_exceeds_the_bound_is_dropped_but_pings_are_not() {
        let outbox = Outbox::default();
        assert!(one_way(&outbox, OUTBOX_BYTES_MAX / 2));
        assert!(!one_way(&outbox, OUTBOX_BYTES_MAX / 2));
        assert!(one_way(&outbox, OUTBOX_BYTES_MAX / 2 - 12));
        assert!(!one_way(&outbox, 0));
        outbox.push_urgent(Head::Ping { number: 1, wall_millis: 2 });
        assert_eq!(outbox.close().len(), OUTBOX_BYTES_MAX + 21);
    }

    #[test]
    fn a_closed_outbox_gives_back_what_was_not_taken_and_takes_nothing() {
        let outbox = Outbox::default();
        assert!(one_way(&outbox, 3));
        assert_eq!(outbox.close(), [5, 0, 0, 0, 1, 1, 7, 7, 7]);
        assert!(!one_way(&outbox, 3));
        assert!(outbox.close().is_empty());
    }

    #[tokio::test]
    async fn frames_are_written_in_order_and_the_writer_ends_after_the_last() {
        let outbox = Arc::new(Outbox::default());
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let writer = {
            let outbox = Arc::clone(&outbox);
            tokio::spawn(async move { outbox.write_to(&mut ours, None, STALL).await })
        };
        for byte in 0..200_u8 {
            assert!(outbox.push(Head::OneWay { kind: 1 }, |out| out.push(byte)));
            if byte % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
        outbox.finish();
        let mut written = Vec::new();
        theirs.read_to_end(&mut written).await.unwrap();
        let bodies: Vec<u8> = written.chunks(7).map(|frame| frame[6]).collect();
        assert_eq!(bodies, (0..200).collect::<Vec<u8>>());
        writer.await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_waits_for_room_and_one_that_can_never_fit_does_not() {
        let outbox = Arc::new(Outbox::default());
        assert!(one_way(&outbox, OUTBOX_BYTES_MAX - 10));
        let answer = {
            let outbox = Arc::clone(&outbox);
            tokio::spawn(async move {
                outbox.push_when_room(Head::Answer { number: 1 }, b"answer").await
            })
        };
        tokio::task::yield_now().await;
        assert!(!answer.is_finished());
        let batch = outbox.take(Vec::new()).await.unwrap();
        outbox.written(batch.len());
        assert!(answer.await.unwrap());
        let batch = outbox.take(Vec::new()).await.unwrap();
        outbox.written(batch.len());
        let too_long = vec![0; OUTBOX_BYTES_MAX];
        assert!(!outbox.push_when_room(Head::Answer { number: 2 }, &too_long).await);
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_ends_the_writer() {
        let outbox = Outbox::default();
        let (mut ours, _theirs) = tokio::io::duplex(64);
        assert!(one_way(&outbox, 100));
        let stalled = outbox.write_to(&mut ours, None, Duration::from_millis(20)).await;
        assert_eq!(stalled.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
