//! Clients that go about their business, and how little of the allowance they spend.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

use super::super::streams::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use super::{ALLOWANCE_MAX, Frames};

/// What an ordinary client leaves of the allowance, at the least: it is ten times off the bound.
const LEFT_MIN: u32 = ALLOWANCE_MAX / 10 * 9;

const SMALL: usize = 100;
const LARGE: usize = 4 << 20;

/// A byte stream whose frames are counted, and the least that was left of the allowance.
struct Heard<S> {
    io: S,
    frames: Frames,
    began: Instant,
    left: Arc<AtomicU32>,
}

impl<S> Heard<S> {
    fn new(io: S, left: &Arc<AtomicU32>) -> Self {
        Self { io, frames: Frames::new(1), began: Instant::now(), left: Arc::clone(left) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let now = this.began.elapsed().as_millis() as u64 + 1;
        let passed = this.frames.pass(&buf.filled()[before..], now);
        this.left.fetch_min(passed.map_or(0, |_| this.frames.allowance), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
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

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// Answers `/large` with a large body and everything else with a small one, once a request is whole.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: Heard<S>) {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .handshake::<_, Bytes>(io);
    let mut connection = handshake.await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let bytes = if request.uri().path() == "/large" { LARGE } else { SMALL };
            take(request.into_body()).await;
            let Ok(send) = respond.send_response(Response::new(()), false) else { return };
            give(send, bytes, 16 << 10).await;
        });
    }
}

/// Takes a body to its end; its bytes.
async fn take(mut body: RecvStream) -> usize {
    let mut bytes = 0;
    while let Some(Ok(piece)) = body.data().await {
        bytes += piece.len();
        let _ = body.flow_control().release_capacity(piece.len());
    }
    bytes
}

/// Sends a body in pieces of so many bytes, or of as many as there is room for.
async fn give(mut send: SendStream<Bytes>, bytes: usize, piece: usize) {
    let mut left = bytes;
    while left > 0 {
        let wanted = piece.min(left);
        send.reserve_capacity(wanted);
        while send.capacity() == 0 {
            if std::future::poll_fn(|cx| send.poll_capacity(cx)).await.is_none() {
                return;
            }
        }
        let fits = wanted.min(send.capacity());
        left -= fits;
        let piece = Bytes::from(vec![b'x'; fits]);
        if send.send_data(piece, left == 0).is_err() {
            return;
        }
    }
}

fn request(path: &str) -> Request<()> {
    Request::get(format!("http://localhost{path}")).body(()).unwrap()
}

fn ask(client: &mut SendRequest<Bytes>, path: &str) -> ResponseFuture {
    client.send_request(request(path), true).unwrap().0
}

async fn answer(response: ResponseFuture) -> usize {
    take(response.await.unwrap().into_body()).await
}

/// Runs what a client does on one connection; what it left of the allowance at the least.
async fn left_by<F: Future<Output = ()>>(does: impl FnOnce(SendRequest<Bytes>) -> F) -> u32 {
    left_with(65_535, does).await
}

/// The same of a client with so large a window for each answer.
async fn left_with<F: Future<Output = ()>>(
    window: u32,
    does: impl FnOnce(SendRequest<Bytes>) -> F,
) -> u32 {
    let left = Arc::new(AtomicU32::new(ALLOWANCE_MAX));
    let (near, far): (DuplexStream, DuplexStream) = duplex(64 << 10);
    tokio::spawn(serve(Heard::new(far, &left)));
    let (client, connection) =
        h2::client::Builder::new().initial_window_size(window).handshake(near).await.unwrap();
    tokio::spawn(async { connection.await.unwrap() });
    does(client.ready().await.unwrap()).await;
    left.load(Ordering::Relaxed)
}

#[tokio::test]
async fn many_small_requests_spend_next_to_nothing() {
    let left = left_by(async |mut client| {
        for _ in 0..100 {
            client = client.ready().await.unwrap();
            let asked: Vec<_> = (0..100).map(|_| ask(&mut client, "/small")).collect();
            for response in asked {
                assert_eq!(answer(response).await, SMALL);
            }
        }
    });
    let left = left.await;
    assert!(left >= LEFT_MIN, "{left}");
}

#[tokio::test]
async fn requests_given_up_now_and_then_spend_little() {
    let left = left_by(async |mut client| {
        for _ in 0..100 {
            client = client.ready().await.unwrap();
            let mut asked: Vec<_> = (0..50).map(|_| ask(&mut client, "/small")).collect();
            // Dropped, it is reset.
            drop(asked.pop());
            for response in asked {
                assert_eq!(answer(response).await, SMALL);
            }
        }
    });
    let left = left.await;
    assert!(left >= LEFT_MIN, "{left}");
}

#[tokio::test]
async fn large_answers_into_the_smallest_usual_windows_spend_little() {
    let left = left_by(async |mut client| {
        for _ in 0..4 {
            let asked: Vec<_> = (0..4).map(|_| ask(&mut client, "/large")).collect();
            let taken = futures_util::future::join_all(asked.into_iter().map(answer)).await;
            assert_eq!(taken, [LARGE; 4]);
        }
    });
    let left = left.await;
    assert!(left >= LEFT_MIN, "{left}");
}

#[tokio::test]
async fn a_large_answer_into_a_window_of_a_kilobyte_spends_little() {
    let left = left_with(1 << 10, async |mut client| {
        assert_eq!(answer(ask(&mut client, "/large")).await, LARGE);
    });
    let left = left.await;
    assert!(left >= LEFT_MIN, "{left}");
}

#[tokio::test]
async fn uploads_in_large_and_in_small_pieces_spend_next_to_nothing() {
    for (bytes, piece) in [(8 * LARGE, 16 << 10), (LARGE, 1000), (LARGE / 4, 20)] {
        let left = left_by(async |mut client| {
            let (response, send) = client.send_request(request("/small"), false).unwrap();
            give(send, bytes, piece).await;
            assert_eq!(answer(response).await, SMALL);
        });
        let left = left.await;
        assert!(left >= LEFT_MIN, "{piece}: {left}");
    }
}

#[test]
fn pings_that_keep_a_connection_alive_spend_next_to_nothing() {
    let mut frames = Frames::new(1);
    frames.pass(super::HTTP2_PREFACE, 1).unwrap();
    for seconds in 0..1000 {
        let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], b"are you?"].concat();
        frames.pass(&ping, 10_000 * seconds + 2).unwrap();
        assert!(frames.allowance >= ALLOWANCE_MAX - 1);
    }
}
