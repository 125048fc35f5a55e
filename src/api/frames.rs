//! The frames of HTTP/2 that a client sends, counted as they are read: RFC 9113 §4.1.
//!
//! Most frames cost their sender nothing and bring about no request or answer. So each of those
//! spends of an allowance, which grows with time, with requests begun and with bytes that the peer
//! took. A client that goes about its business never comes near the bound; one that has spent all is
//! read no further, and ended. And however fast frames come, others have their turn between them.
//!
//! A head of a kilobyte may hold a hundred once h2 has gone through it. So nothing is read behind one
//! until it was taken from h2, and charged.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::watch::{Reason, Watch};
use super::wire::{HTTP2_PREFACE, Wire};

/// What a connection may spend at once, and gains again each second.
const ALLOWANCE_MAX: u32 = 4_000;
const ALLOWANCE_PER_SECOND: u32 = 1_000;
/// Gained with each request: windows of its answer are widened, its priority is told.
const GAIN_OF_REQUEST: u32 = 2;
/// Bytes taken for which one more is gained. Clients with little memory have windows of a kilobyte, and
/// widen both for half of it.
const BYTES_PER_GAIN: usize = 128;

/// What they cost: a frame that says little, one that undoes what a request began, one that all
/// streams are gone through for.
const COST: u32 = 1;
const COST_OF_RESET: u32 = 8;
const COST_OF_SETTINGS: u32 = 8;

/// A piece of a body that is smaller says little; the last one may be.
const DATA_BYTES_MIN: usize = 16;

/// Bytes that are read at once where frames begin. The rest of a long one is read with it.
const PIECE_BYTES: usize = 1 << 10;

const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Where a reading of frames stands.
#[derive(Debug)]
struct Frames {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that are there.
    read: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
    allowance: u32,
    /// When the allowance last grew with time, by the coarse clock.
    grew: u64,
    /// Bytes taken that have brought nothing yet.
    taken: usize,
    /// What is still to come of the payload ends a head.
    ends_head: bool,
    /// A head has come whole since this was looked at last.
    head_came: bool,
}

impl Frames {
    fn new(now: u64) -> Self {
        Self {
            head: [0; HEAD_BYTES],
            read: 0,
            // What it begins with is no frame.
            payload: HTTP2_PREFACE.len(),
            allowance: ALLOWANCE_MAX,
            grew: now,
            taken: 0,
            ends_head: false,
            head_came: false,
        }
    }

    /// Goes through what arrived; how many frames began there, or nothing when the allowance is
    /// spent.
    fn pass(&mut self, mut bytes: &[u8], now: u64) -> Option<u32> {
        let passed = now.saturating_sub(self.grew);
        let gain = u64::from(ALLOWANCE_PER_SECOND) * passed / 1000;
        if gain > 0 {
            self.grew = now;
            self.gain(u32::try_from(gain).unwrap_or(u32::MAX));
        }
        let mut frames = 0;
        loop {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            if self.payload == 0 {
                self.head_came |= std::mem::take(&mut self.ends_head);
            }
            if bytes.is_empty() {
                return Some(frames);
            }
            let part = bytes.len().min(HEAD_BYTES - self.read);
            self.head[self.read..self.read + part].copy_from_slice(&bytes[..part]);
            self.read += part;
            bytes = &bytes[part..];
            if self.read == HEAD_BYTES {
                self.read = 0;
                frames += 1;
                self.begin()?;
            }
        }
    }

    /// A frame whose head is there.
    fn begin(&mut self) -> Option<()> {
        let [a, b, c, kind, flags, ..] = self.head;
        self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
        self.ends_head = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0;
        let cost = match kind {
            DATA if self.payload >= DATA_BYTES_MIN || flags & END_STREAM != 0 => 0,
            HEADERS => {
                self.gain(GAIN_OF_REQUEST);
                0
            }
            RST_STREAM => COST_OF_RESET,
            SETTINGS => COST_OF_SETTINGS,
            _ => COST,
        };
        self.allowance = self.allowance.checked_sub(cost)?;
        Some(())
    }

    fn gain(&mut self, gain: u32) {
        self.allowance = self.allowance.saturating_add(gain).min(ALLOWANCE_MAX);
    }

    /// The peer took so many bytes.
    fn sent(&mut self, bytes: usize) {
        self.taken += bytes;
        self.gain((self.taken / BYTES_PER_GAIN) as u32);
        self.taken %= BYTES_PER_GAIN;
    }
}

/// A byte stream as h2 wants it, with its frames counted.
#[derive(Debug)]
pub(super) struct Counted {
    io: TokioIo<Wire>,
    frames: Frames,
    watch: Arc<Watch>,
}

impl Counted {
    pub(super) fn new(wire: Wire, watch: Arc<Watch>) -> Self {
        let frames = Frames::new(watch.now());
        Self { io: TokioIo::new(wire), frames, watch }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.watch.reason() == Some(Reason::Flood) || this.watch.has_heads() {
            return Poll::Pending;
        }
        let fits = this.watch.held().budget().has_room(0);
        if !fits || this.watch.turn().is_over(Instant::now()) {
            this.watch.turn().give_way(cx);
            return Poll::Pending;
        }
        let room = buf.remaining().min(this.frames.payload + PIECE_BYTES);
        let mut piece = ReadBuf::new(buf.initialize_unfilled_to(room));
        ready!(Pin::new(&mut this.io).poll_read(cx, &mut piece))?;
        let read = piece.filled().len();
        match this.frames.pass(piece.filled(), this.watch.now()) {
            Some(_) => {
                buf.advance(read);
                if std::mem::take(&mut this.frames.head_came) {
                    this.watch.brings_heads();
                }
                Poll::Ready(Ok(()))
            }
            None => {
                this.watch.floods();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.frames.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        this.frames.sent(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod ordinary;

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, payload_bytes: usize) -> Vec<u8> {
        let mut frame = (payload_bytes as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.resize(HEAD_BYTES + payload_bytes, b'x');
        frame
    }

    fn begun() -> Frames {
        let mut frames = Frames::new(1);
        assert_eq!(frames.pass(HTTP2_PREFACE, 1), Some(0));
        frames
    }

    /// How many of them pass, at most a million.
    fn passing(frames: &mut Frames, frame: &[u8], now: u64) -> u32 {
        (0..1_000_000).find(|_| frames.pass(frame, now).is_none()).unwrap_or(1_000_000)
    }

    #[test]
    fn frames_are_found_however_they_arrive() {
        let bytes = [frame(HEADERS, 5, 30), frame(DATA, 1, 0), frame(DATA, 0, 16_384)].concat();
        let bytes = [&HTTP2_PREFACE[..], &bytes].concat();
        assert_eq!(Frames::new(1).pass(&bytes, 1), Some(3));
        let mut frames = Frames::new(1);
        let found = bytes.chunks(1).map(|byte| frames.pass(byte, 1).unwrap()).sum::<u32>();
        assert_eq!(found, 3);
    }

    #[test]
    fn frames_that_say_nothing_pass_up_to_the_allowance_which_grows_with_time() {
        for (frame, at_once, each_second) in [
            (frame(PING, 0, 8), 4_000, 1_000),
            (frame(DATA, 0, 0), 4_000, 1_000),
            (frame(DATA, 0, 1), 4_000, 1_000),
            (frame(RST_STREAM, 0, 4), 500, 125),
            (frame(SETTINGS, 0, 0), 500, 125),
            (frame(0xbb, 0, 0), 4_000, 1_000),
        ] {
            let mut frames = begun();
            for _ in 0..at_once {
                assert!(frames.pass(&frame, 1).is_some(), "{frame:?}");
            }
            assert_eq!(passing(&mut frames, &frame, 1_001), each_second, "{frame:?}");
            assert_eq!(passing(&mut begun(), &frame, 1), at_once, "{frame:?}");
        }
    }

    #[test]
    fn what_bodies_and_requests_are_made_of_passes_without_end() {
        for frame in [frame(DATA, 0, 16), frame(DATA, END_STREAM, 0), frame(HEADERS, 5, 30)] {
            assert_eq!(passing(&mut begun(), &frame, 1), 1_000_000, "{frame:?}");
        }
        // A client that widens both windows for every 4 KiB that it takes.
        let mut frames = begun();
        for _ in 0..100_000 {
            frames.sent(4 << 10);
            assert_eq!(frames.pass(&frame(8, 0, 4).repeat(2), 1), Some(2));
        }
        // Requests that are taken back at once do not pay for that.
        let both = [frame(HEADERS, 5, 30), frame(RST_STREAM, 0, 4)].concat();
        assert!(passing(&mut begun(), &both, 1) < 700);
    }
}
