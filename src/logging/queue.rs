//! Lines on their way to somebody who may read slowly, or not at all.
//!
//! Invariant: whoever logs never waits for the reader. A line that finds no room is dropped and
//! counted, and once the reader has caught up a line of the log says how many were. The end of the
//! process waits for what is still under way, but not for long.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that come to so many bytes wait for a reader; further ones are dropped.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// How long the end waits for a reader.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// The way to one reader. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Where its lines go, for people.
    to: &'static str,
    state: Mutex<State>,
    changed: Condvar,
    /// Lines dropped since somebody last asked.
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Box<[u8]>>,
    /// Of all that wait, and of the one that is being written.
    bytes: usize,
    /// Lines dropped that the log does not tell of yet.
    untold: u64,
    is_ending: bool,
    has_ended: bool,
}

impl Queue {
    /// Has a thread write to `writer` what comes in.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(super) fn start(to: &'static str, writer: impl Write + Send + 'static) -> io::Result<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { to, state, changed, dropped: AtomicU64::new(0) });
        let queue = Self(shared.clone());
        thread::Builder::new()
            .name(format!("log-{to}"))
            .spawn(move || shared.write_all_to(writer))?;
        Ok(queue)
    }

    /// Where its lines go.
    pub(super) fn to(&self) -> &'static str {
        self.0.to
    }

    /// How many lines were dropped since this was asked last.
    pub(super) fn take_dropped(&self) -> u64 {
        self.0.dropped.swap(0, Ordering::Relaxed)
    }

    /// Writes what waits, and ends the thread; gives up on a reader that takes too long.
    pub(super) fn end(&self) {
        let deadline = Instant::now() + END_PATIENCE;
        let mut state = self.0.state.lock();
        state.is_ending = true;
        self.0.changed.notify_all();
        while !state.has_ended {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    fn put(&self, line: &[u8]) {
        let mut state = self.state.lock();
        if state.bytes + line.len() > WAITING_BYTES_MAX {
            state.untold += 1;
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += line.len();
        state.waiting.push_back(line.into());
        self.changed.notify_all();
    }

    fn write_all_to(&self, mut writer: impl Write) {
        while let Some(line) = self.next() {
            // Nobody can be told that the log cannot be written.
            let _ = writer.write_all(&line);
            self.state.lock().bytes -= line.len();
        }
    }

    /// The next line, once there is one; `None` at the end.
    fn next(&self) -> Option<Box<[u8]>> {
        let mut state = self.state.lock();
        loop {
            if let Some(line) = state.waiting.pop_front() {
                return Some(line);
            }
            if state.untold > 0 {
                let lines = std::mem::take(&mut state.untold);
                drop(state);
                tracing::warn!(
                    lines,
                    to = self.to,
                    "lines of the log were dropped: who reads it was too slow"
                );
                state = self.state.lock();
            } else if state.is_ending {
                state.has_ended = true;
                self.changed.notify_all();
                return None;
            } else {
                self.changed.wait(&mut state);
            }
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// A line comes in one piece.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Takes a line each time that it is allowed to.
    struct Slow {
        may: Receiver<()>,
        took: Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.may.recv();
            let _ = self.took.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Queue, Sender<()>, Receiver<Vec<u8>>) {
        let (allow, may) = channel();
        let (took, taken) = channel();
        let queue = Queue::start("test", Slow { may, took }).expect("a thread");
        (queue, allow, taken)
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_no_time() {
        let (queue, allow, taken) = slow();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..7 {
            (&queue).write_all(&line).expect("it never fails");
        }
        assert_eq!((queue.take_dropped(), queue.take_dropped()), (3, 0));
        // It reads on: those that waited are there, and there is room again.
        for _ in 0..4 {
            allow.send(()).expect("it waits");
            assert_eq!(taken.recv().expect("a line").len(), 1 << 20);
        }
        allow.send(()).expect("it waits");
        (&queue).write_all(b"after").expect("it never fails");
        assert_eq!(taken.recv().expect("a line"), b"after");
        assert_eq!(queue.take_dropped(), 0);
    }

    #[test]
    fn the_end_waits_for_what_is_under_way() {
        let (queue, allow, taken) = slow();
        for line in ["one", "two"] {
            (&queue).write_all(line.as_bytes()).expect("it never fails");
            allow.send(()).expect("it waits");
        }
        queue.end();
        assert_eq!(taken.try_iter().collect::<Vec<_>>(), [b"one", b"two"]);
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let (queue, _allow, _taken) = slow();
        (&queue).write_all(b"never read").expect("it never fails");
        let began = Instant::now();
        queue.end();
        assert!(began.elapsed() >= END_PATIENCE);
    }
}
