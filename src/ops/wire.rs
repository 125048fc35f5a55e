//! A connection's bytes, and whether they are taken.
//!
//! Beneath hyper: a write that finds no room notes that an answer waits, and the flush at its end
//! that it has been taken. And no more is read for a request than one of this port has: hyper bounds
//! heads, but goes on for ever with a chunk's size that begins with zeros.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::places::Place;

/// Bytes that a request has at most: a head of 16 KiB, a body of 4, and what goes around that.
const REQUEST_BYTES_MAX: usize = 24 * 1024;

/// Bytes read at once; then others have their turn.
const PIECE_BYTES: usize = 4 * 1024;

/// A connection of this port.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    place: Arc<Place>,
    /// Which request was the last to begin, and what was read since.
    request: u64,
    read: usize,
    /// Others have had their turn since.
    rested: bool,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, place: Arc<Place>) -> Self {
        Self { stream, place, request: 0, read: 0, rested: true }
    }

    fn noted<T>(&self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() {
            self.place.stalls(true);
        }
        written
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &mut *self;
        let request = wire.place.last_request();
        if request != wire.request {
            (wire.request, wire.read) = (request, 0);
        }
        if wire.read > REQUEST_BYTES_MAX {
            return Poll::Ready(Err(io::Error::other("a request that does not end")));
        }
        if !std::mem::replace(&mut wire.rested, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut scratch = [0; PIECE_BYTES];
        let mut piece = ReadBuf::new(&mut scratch[..PIECE_BYTES.min(into.remaining())]);
        ready!(Pin::new(&mut wire.stream).poll_read(cx, &mut piece))?;
        into.put_slice(piece.filled());
        wire.read += piece.filled().len();
        wire.rested = piece.filled().len() < PIECE_BYTES;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has written all that it had.
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.place.stalls(false);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
