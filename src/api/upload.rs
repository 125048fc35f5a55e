//! A request's body on its way to whoever reads it, and what becomes of a connection on which it
//! was not read to a clean end.
//!
//! **HTTP/1, in chunks.** hyper takes any byte behind the last chunk that is no CR for the start of a
//! trailer, and ends a line of trailers at CR LF alone. So `0\r\n\n`, or a trailer that ends in a
//! bare LF, makes a trailer of the request behind it, where a proxy that takes LF for a line's end
//! sees two requests. Nothing that follows such a body can be told apart any more: trailers are the
//! last that is read from a connection, and so is a body in chunks that nobody read to its end.
//!
//! **HTTP/2.** A body that is dropped unread resets its stream, and clients that are still sending
//! take the reset for the answer, although that is complete. What is left is handed back, to be read
//! and dropped for a while.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::Version;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use super::inbound::{Inbound, InboundError};
use super::watch::Watch;

/// Why a body cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error("{0}")]
    Inbound(#[from] InboundError),
    /// No sender of trailers sends none.
    #[error("something else than a line's end behind the last chunk")]
    Trailers,
}

/// A request's body.
#[derive(Debug)]
pub(super) struct Upload {
    /// Nothing once it was handed back.
    incoming: Option<Inbound>,
    ended: bool,
    framing: Framing,
}

#[derive(Debug)]
enum Framing {
    /// As long as its head says, or empty: hyper sees to what is left.
    Counted,
    Chunks(Arc<Watch>),
    Stream(Arc<Unread>),
}

/// Where the rest of an HTTP/2 body is found that nobody reads.
#[derive(Debug, Default)]
pub(super) struct Unread(Mutex<Option<Inbound>>);

impl Unread {
    /// Takes it, if there is any, once the request's body was dropped.
    pub(super) fn take(&self) -> Option<Inbound> {
        self.0.lock().take()
    }
}

impl Upload {
    /// The body of a request of that version; `chunked`: it has a `Transfer-Encoding`. With it, where
    /// what is left of it is to be found.
    pub(super) fn new(
        incoming: Inbound,
        version: Version,
        chunked: bool,
        watch: &Arc<Watch>,
    ) -> (Self, Option<Arc<Unread>>) {
        watch.begins_body(chunked && version < Version::HTTP_2);
        let (framing, unread) = if chunked {
            (Framing::Chunks(Arc::clone(watch)), None)
        } else if version >= Version::HTTP_2 && !incoming.is_end_stream() {
            let unread = Arc::new(Unread::default());
            (Framing::Stream(Arc::clone(&unread)), Some(unread))
        } else {
            (Framing::Counted, None)
        };
        (Self { incoming: Some(incoming), ended: false, framing }, unread)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let upload = self.get_mut();
        let Some(incoming) = &mut upload.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        upload.ended |= frame.is_none();
        if let (Framing::Chunks(watch), Some(Ok(frame))) = (&upload.framing, &frame) {
            watch.brings_piece();
            if let Some(trailers) = frame.trailers_ref() {
                watch.loses_framing();
                if trailers.is_empty() {
                    return Poll::Ready(Some(Err(UploadError::Trailers)));
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(UploadError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.ended || self.is_end_stream() {
            return;
        }
        match &self.framing {
            Framing::Counted => {}
            Framing::Chunks(watch) => watch.loses_framing(),
            Framing::Stream(unread) => *unread.0.lock() = self.incoming.take(),
        }
    }
}
