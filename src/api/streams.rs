//! HTTP/2: a connection's streams, each a request and its answer, RFC 9113.
//!
//! h2 frames and parses; what it holds is bounded here. A stream's state, its request and its answer
//! are charged to the connection until the last byte of the answer has gone to the socket. A value is
//! handed to h2 only as the client makes room for it. Progress is what streams deliver: one whose
//! client makes no room within `write_timeout` is reset, whatever else is sent meanwhile.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use hyper::body::Body as _;
use hyper::header::{CONTENT_LENGTH, DATE, HeaderValue};
use hyper::{HeaderMap, Request};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::answer::Response;
use super::client::Client;
use super::dispatch;
use super::frames::Counted;
use super::held::{Ahead, Charge};
use super::inbound::{Inbound, Pieces};
use super::turns::Place;
use super::watch::{Busy, Order, Reason as EndReason, Watch};
use super::wire::Wire;

/// Streams that one connection may have open.
const STREAMS_MAX: u32 = 256;
/// Requests that one connection may have under way: those of its streams, and of some that it reset.
const REQUESTS_MAX: usize = 2 * STREAMS_MAX as usize;
/// Whoever has more than so many under way has much to do, however little at a time.
const REQUESTS_LIGHT: usize = 16;
/// Bytes that a client may send ahead, on a stream and on the connection.
pub(super) const STREAM_WINDOW_BYTES: u32 = 1 << 20;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Longest list of header fields of a request, in bytes.
const FIELDS_BYTES_MAX: u32 = 64 << 10;
/// Bytes of an answer that a stream may have ahead of the socket.
const SEND_BUFFER_BYTES_MAX: usize = 64 << 10;

/// What a connection holds that has no streams: buffers of a frame each way, the tables of HPACK.
const CONNECTION_BYTES: usize = 48 << 10;
/// What a stream holds beside its request and its answer: its state in h2, its task.
const STREAM_BYTES: usize = 6 << 10;
/// What a header field holds beside its name and value.
const FIELD_BYTES: usize = 160;

/// Time for a client to hear why it is cut off.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves a connection until it ends, or is to end.
///
/// # Errors
/// Whatever ends it otherwise than in good order.
pub(super) async fn serve(
    wire: Wire,
    client: Arc<Client>,
    mut place: Place,
) -> Result<(), h2::Error> {
    let watch = Arc::clone(&client.watch);
    let _charge = Charge::new(&watch, CONNECTION_BYTES);
    let mut handshake = pin!(
        Builder::new()
            .max_concurrent_streams(STREAMS_MAX)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(FIELDS_BYTES_MAX)
            .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
            .handshake::<_, Bytes>(Counted::new(wire, Arc::clone(&watch)))
    );
    let opened = poll_fn(|cx| {
        watch.carried_out_by(cx.waker());
        match watch.order() {
            Order::End => Poll::Ready(None),
            Order::Serve | Order::Drain => handshake.as_mut().poll(cx).map(Some),
        }
    });
    let Some(connection) = opened.await else { return Ok(()) };
    let under_way = FuturesUnordered::new();
    let mut connection = Streams { connection: connection?, client, under_way };
    let ended = connection.run(&watch, &mut place).await;
    // So much to drop takes a turn as well.
    let _turn = place.last().await;
    drop(connection);
    ended
}

/// A connection and the requests under way on it, which are its own task's: so it has one turn among
/// others, however many requests it has.
struct Streams {
    connection: h2::server::Connection<Counted, Bytes>,
    client: Arc<Client>,
    under_way: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Streams {
    async fn run(&mut self, watch: &Watch, place: &mut Place) -> Result<(), h2::Error> {
        let mut draining = false;
        let mut go_on = |cx: &mut Context<'_>| {
            match watch.order() {
                Order::Serve => {}
                Order::Drain => {
                    if !std::mem::replace(&mut draining, true) {
                        self.connection.graceful_shutdown();
                    }
                }
                Order::End => return Poll::Ready(Ok(false)),
            }
            let polled = self.poll(cx);
            if self.under_way.len() > REQUESTS_LIGHT {
                watch.turn().use_up();
            }
            match watch.reason() {
                Some(EndReason::Flood) => Poll::Ready(Ok(true)),
                _ => polled.map_ok(|()| false),
            }
        };
        let floods = poll_fn(|cx| {
            watch.carried_out_by(cx.waker());
            place.turn(watch, cx, &mut go_on)
        });
        if floods.await? {
            self.under_way.clear();
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            let _ = timeout(FAREWELL, poll_fn(|cx| self.connection.poll_closed(cx))).await;
        }
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            let mut goes_on = false;
            loop {
                if self.client.watch.turn().is_over(Instant::now()) {
                    self.client.watch.turn().give_way(cx);
                    return Poll::Pending;
                }
                match self.connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) if self.has_room() => {
                        let stream = Stream::new(&self.client, &request, respond);
                        self.under_way.push(Box::pin(stream.serve(request)));
                        let _ = self.under_way.poll_next_unpin(cx);
                        goes_on = true;
                    }
                    Poll::Ready(Some(Ok(_))) => {
                        self.client.watch.floods();
                        return Poll::Pending;
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    // All heads that came were taken: there may be more to read.
                    Poll::Pending if self.client.watch.takes_heads() => {}
                    Poll::Pending => break,
                }
            }
            while let Poll::Ready(Some(())) = self.under_way.poll_next_unpin(cx) {
                goes_on = true;
                if self.client.watch.turn().is_over(Instant::now()) {
                    break;
                }
            }
            // What was made is to be sent, and there may be more.
            if !goes_on {
                return Poll::Pending;
            }
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < REQUESTS_MAX
    }
}

/// A request and its answer.
struct Stream {
    client: Arc<Client>,
    respond: SendResponse<Bytes>,
    busy: Busy<Arc<Watch>>,
    charge: Charge,
    ahead: Option<Ahead>,
}

/// How a stream ended that was not answered whole.
enum Broken {
    /// By the client, or with the connection.
    Gone,
    /// The client made no room in time.
    Untaken,
    /// The answer cannot be made to its end.
    Unfinished,
}

impl From<h2::Error> for Broken {
    fn from(_: h2::Error) -> Self {
        Self::Gone
    }
}

impl Stream {
    fn new(
        client: &Arc<Client>,
        request: &Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Self {
        let fields = fields_bytes(request.headers()) + request.uri().path().len();
        // As much of a body as may come ahead, if the head does not say less.
        let ahead = (!request.body().is_end_stream()).then(|| {
            let most = STREAM_WINDOW_BYTES as usize;
            let bytes = length(request.headers()).map_or(most, |length| most.min(length as usize));
            Ahead::new(&client.watch, bytes, CONNECTION_WINDOW_BYTES as usize)
        });
        Self {
            client: Arc::clone(client),
            respond,
            busy: Busy::mark(Arc::clone(&client.watch)),
            charge: Charge::new(&client.watch, STREAM_BYTES + fields),
            ahead,
        }
    }

    async fn serve(mut self, request: Request<RecvStream>) {
        let length = length(request.headers());
        let request = request.map(|body| Inbound::Http2(Pieces::new(body, length)));
        let answer = Box::pin(dispatch::answer(Arc::clone(&self.client), request));
        let Some(response) = self.unless_reset(answer).await else { return };
        drop(self.ahead);
        let mut respond = self.respond;
        let answered = answer_with(&self.client, response, &mut respond, self.busy, self.charge);
        match answered.await {
            Ok(()) | Err(Broken::Gone) => {}
            Err(Broken::Untaken) => respond.send_reset(Reason::CANCEL),
            Err(Broken::Unfinished) => respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    /// The answer, unless the client takes its request back before.
    async fn unless_reset(
        &mut self,
        mut answer: Pin<Box<impl Future<Output = Response>>>,
    ) -> Option<Response> {
        poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => self.respond.poll_reset(cx).map(|_| None),
        })
        .await
    }
}

/// Sends an answer, and waits until all of it has gone to the socket.
async fn answer_with(
    client: &Client,
    response: Response,
    respond: &mut SendResponse<Bytes>,
    busy: Busy<Arc<Watch>>,
    mut charge: Charge,
) -> Result<(), Broken> {
    let (mut head, mut body) = response.into_parts();
    head.headers.insert(DATE, date());
    let exact = body.size_hint().exact();
    if body.is_end_stream() {
        respond.send_response(hyper::Response::from_parts(head, ()), true)?;
        charge.set(STREAM_BYTES);
        charge.settle();
        return Ok(());
    }
    if let Some(bytes) = exact {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(bytes));
    }
    charge.set(STREAM_BYTES + body.charged_bytes());
    let mut send = respond.send_response(hyper::Response::from_parts(head, ()), false)?;
    let mut charge = Some((charge, busy));
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
            Poll::Pending => send.poll_reset(cx).map(|_| Err(Broken::Gone)),
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
        });
        let Some(frame) = frame.await? else { break };
        let Ok(mut piece) = frame.map_err(|_| Broken::Unfinished)?.into_data() else { continue };
        let is_last = body.is_end_stream();
        let mut done = None;
        if is_last && let Some(held) = charge.take() {
            let (sent, gone) = oneshot::channel();
            done = Some(gone);
            piece = Bytes::from_owner(Last { piece, _held: held, _sent: sent });
        }
        deliver(client, &mut send, piece, is_last).await?;
        if let Some(gone) = done {
            // It may have been given room and then lost it.
            let settled = timeout(write_timeout(client), gone).await;
            return settled.map(|_| ()).map_err(|_| Broken::Untaken);
        }
    }
    send.send_data(Bytes::new(), true)?;
    Ok(())
}

/// The last of an answer, and what goes with it.
struct Last {
    piece: Bytes,
    _held: (Charge, Busy<Arc<Watch>>),
    _sent: oneshot::Sender<Infallible>,
}

impl AsRef<[u8]> for Last {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

fn write_timeout(client: &Client) -> Duration {
    client.node.settings.load().write_timeout
}

/// Hands a piece of an answer over as the client makes room for it.
async fn deliver(
    client: &Client,
    send: &mut SendStream<Bytes>,
    mut piece: Bytes,
    is_last: bool,
) -> Result<(), Broken> {
    while !piece.is_empty() {
        send.reserve_capacity(piece.len());
        let mut room = send.capacity();
        if room == 0 {
            let more = timeout(write_timeout(client), poll_fn(|cx| send.poll_capacity(cx))).await;
            room = match more {
                Ok(Some(room)) => room?,
                Ok(None) => return Err(Broken::Gone),
                Err(_) => return Err(Broken::Untaken),
            };
        }
        let part = piece.split_to(room.min(piece.len()));
        send.send_data(part, is_last && piece.is_empty())?;
    }
    Ok(())
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Bytes that a request's header fields hold.
fn fields_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum()
}

/// The date of an answer, RFC 9110 §6.6.1; made anew once a second.
fn date() -> HeaderValue {
    thread_local! {
        static LAST: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|last| {
        if last.as_ref().is_none_or(|(of, _)| *of != second) {
            let text = httpdate::fmt_http_date(now);
            let text = HeaderValue::try_from(text).expect("a date is visible");
            *last = Some((second, text));
        }
        last.as_ref().expect("made just above").1.clone()
    })
}
