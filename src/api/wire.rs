//! A client's byte stream, plain or under TLS, as hyper wants it.
//!
//! It tells the connection's [`Watch`] when the peer stops taking bytes, and closes so that the
//! last answer arrives: a socket closed with unread input is reset by the kernel, and the reset
//! may overtake the answer. So what the peer still sends is read and dropped for a short while.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use super::held::Charge;
use super::length;
use super::watch::{Reason, Watch};

/// How an HTTP/2 client begins, RFC 9113 §3.4.
pub(super) const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes read at once to learn the protocol.
const SNIFFED_BYTES: usize = 2 << 10;
/// Most bytes of a body in chunks that bring no piece of it: hyper bounds extensions and trailers, at
/// 16 KiB each, but not the zeros that a chunk's size begins with, nor spaces behind it.
const CHUNK_HEAD_BYTES_MAX: usize = 48 << 10;
/// Bytes read at once of a head, or of what is in chunks.
const HEAD_PIECE_BYTES: usize = 8 << 10;

/// Times that a body of HTTP/1 is read before others have their turn.
const TURN_READS_MAX: u32 = 16;

/// Bytes of a read buffer that an idle connection is known to have, and is not charged.
const BUFFER_BYTES_FREE: usize = 8 << 10;

/// Longest time that a closed connection is read on.
const LINGER_MAX: Duration = Duration::from_secs(2);
/// Most bytes that are read on after the close.
const LINGER_BYTES_MAX: usize = 64 << 20;
/// Bytes read and dropped at once.
const SCRATCH_BYTES: usize = 16 << 10;

/// What the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// The transport.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A client's byte stream.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TokioIo<Stream>,
    /// Read already, to learn the protocol.
    prefix: Bytes,
    protocol: Protocol,
    watch: Arc<Watch>,
    lingering: Option<Lingering>,
    buffered: Buffered,
}

/// What HTTP/1's parser has of a connection's bytes, and room for.
#[derive(Debug)]
struct Buffered {
    charge: Charge,
    /// Bytes of the head that is coming, or of the request that is being answered.
    head: usize,
    /// Requests begun when that was looked at last.
    requests: u32,
}

impl Buffered {
    /// Charges a buffer with so much room, beside what it has of a head.
    ///
    /// Returns whether there is room for it; if not, reading waits until there is.
    fn offers(&mut self, room: usize, watch: &Watch) -> bool {
        if self.requests != watch.requests() && !watch.is_busy() {
            self.requests = watch.requests();
            self.head = 0;
        }
        let bytes = (room + self.head).saturating_sub(BUFFER_BYTES_FREE);
        let fits = self.charge.grow(bytes).is_ok();
        self.charge.set(bytes);
        fits
    }
}

#[derive(Debug)]
struct Lingering {
    until: Pin<Box<Sleep>>,
    bytes_left: usize,
    /// The peer is known to be sending still.
    sending: bool,
}

impl Wire {
    /// Wraps a stream, and learns from its first bytes what the client speaks. Bytes that cannot
    /// begin HTTP/2 are left to HTTP/1's parser, to refuse or to understand.
    ///
    /// # Errors
    /// Whatever reading comes to, and `UnexpectedEof` when the client sent nothing.
    pub(super) async fn open(
        mut stream: Stream,
        watch: Arc<Watch>,
    ) -> io::Result<(Self, Protocol)> {
        let mut start = [0; SNIFFED_BYTES];
        let mut len = 0;
        let protocol = loop {
            match stream.read(&mut start[len..]).await? {
                0 if len == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => break Protocol::Http1,
                n => len += n,
            }
            let compared = len.min(HTTP2_PREFACE.len());
            if start[..compared] != HTTP2_PREFACE[..compared] {
                break Protocol::Http1;
            }
            if compared == HTTP2_PREFACE.len() {
                break Protocol::Http2;
            }
        };
        let sniffed = &mut start[..len];
        if protocol == Protocol::Http1 {
            length::shorten(sniffed);
        }
        let prefix = Bytes::copy_from_slice(sniffed);
        let stream = TokioIo::new(stream);
        let buffered = Buffered { charge: Charge::new(&watch, 0), head: 0, requests: 0 };
        Ok((Self { stream, prefix, protocol, watch, lingering: None, buffered }, protocol))
    }

    fn note<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(_) => {
                self.watch.write_went_on();
                // Frames of HTTP/2 that are no answer go out as well.
                if self.protocol == Protocol::Http1 {
                    self.watch.is_written_to();
                }
            }
            Poll::Pending => self.watch.write_is_blocked(),
        }
        written
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let len = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(len));
            return Poll::Ready(Ok(()));
        }
        if self.protocol == Protocol::Http2 {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let wire = &mut *self;
        let fits = wire.buffered.offers(buf.remaining(), &wire.watch);
        let (busy, chunk_head) = (wire.watch.is_busy(), wire.watch.chunk_head());
        let had_turn = match busy && chunk_head.is_none() {
            true => wire.watch.turn().reads() > TURN_READS_MAX,
            // What is gone through byte by byte, a head even again with each piece.
            false => wire.watch.turn().is_over(Instant::now()),
        };
        if !fits || had_turn {
            wire.watch.turn().give_way(cx);
            return Poll::Pending;
        }
        match chunk_head {
            None if busy => return Pin::new(&mut self.stream).poll_read(cx, buf),
            Some(bytes) if busy && bytes > CHUNK_HEAD_BYTES_MAX => {
                self.watch.end(Reason::Flood);
                return Poll::Pending;
            }
            _ => {}
        }
        let mut scratch = [MaybeUninit::uninit(); HEAD_PIECE_BYTES];
        let room = buf.remaining().min(HEAD_PIECE_BYTES);
        let mut piece = ReadBuf::uninit(&mut scratch[..room]);
        ready!(Pin::new(self.stream.inner_mut()).poll_read(cx, &mut piece))?;
        if busy {
            self.watch.reads_chunk_head(piece.filled().len());
        } else {
            length::shorten(piece.filled_mut());
            self.buffered.head += piece.filled().len();
        }
        buf.put_slice(piece.filled());
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.inner().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_pending() {
            self.watch.write_is_blocked();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = &mut *self;
        if wire.lingering.is_none() {
            ready!(Pin::new(&mut wire.stream).poll_shutdown(cx))?;
        }
        let sending = wire.watch.has_unread();
        let lingering = wire.lingering.get_or_insert_with(|| Lingering {
            until: Box::pin(tokio::time::sleep(LINGER_MAX)),
            bytes_left: LINGER_BYTES_MAX,
            sending,
        });
        lingering.poll(wire.stream.inner_mut(), cx)
    }
}

impl Lingering {
    /// Ready once the peer has nothing more to say, or has said it for long enough.
    fn poll(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0; SCRATCH_BYTES];
        while self.bytes_left > 0 {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.sending = true;
                    self.bytes_left = self.bytes_left.saturating_sub(buf.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending if self.sending => return self.until.as_mut().poll(cx).map(Ok),
                Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
        Poll::Ready(Ok(()))
    }
}
