//! Connections: taken in, served, refused, drained.
//!
//! Invariant: at most `max_conns` connections are served at once, and the next one is told so and
//! closed, never queued. Nothing here belongs to one runtime: [`Server::serve`] may run on a
//! work-stealing runtime, or once on each of several single-threaded ones.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::client::{Client, Node};
use super::dispatch;
use super::held::{Budget, Charge};
use super::inbound::Inbound;
use super::settings::Settings;
use super::streams;
use super::tls::Material;
use super::tokens::Tokens;
use super::turns::Place;
use super::watch::{Entered, Order, Registry, Watch, tick_interval};
use super::wire::{Protocol, Stream, Wire};
use crate::complaint::{Kind, brief_error, complain};
use crate::coordinator::Coordinator;
use crate::metrics::Metrics;
use crate::tls::Own;

/// How long to wait after a failed accept: it means that file descriptors or memory are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest time that a refused client is given to read why.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);
/// Refused clients that are given that time at once; more are cut off at once.
const REFUSED_MAX: usize = 128;
/// Longest time that cut-off connections take to notice.
const END_GRACE: Duration = Duration::from_secs(1);

/// Longest head of an HTTP/1 request, and the piece in which bodies are read, in bytes.
const HTTP1_BUFFER_BYTES_MAX: usize = 256 << 10;
/// What a TLS handshake that is not through may hold: a message of the greatest length.
const HANDSHAKE_BYTES: usize = 64 << 10;

/// What a client hears that is one too many.
const REFUSAL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\n",
    "content-type: application/problem+json\r\n",
    "x-content-type-options: nosniff\r\n",
    "content-security-policy: sandbox\r\n",
    "retry-after: 1\r\n",
    "connection: close\r\n",
    "content-length: 217\r\n",
    "\r\n",
    "{\"type\":\"urn:aegiskv:problem:unavailable\",\"title\":\"not available now\",\"status\":503,",
    "\"detail\":\"this node serves as many connections as max_conns allows; close some, or raise it\",",
    "\"outcome\":\"not-applied\",\"retryable\":true}"
);

/// The client API's server. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: Arc<Node>,
    budget: Arc<Budget>,
    tls: ArcSwapOption<Material>,
    active: AtomicUsize,
    refused: AtomicUsize,
}

impl Server {
    /// A server of `coordinator`'s keys. With `tls`, every connection must be TLS.
    pub fn new(
        coordinator: Coordinator,
        metrics: Arc<Metrics>,
        settings: Settings,
        tls: Option<Material>,
    ) -> Self {
        let (bytes_max, each) = (settings.held_bytes_max, settings.held_bytes_each());
        Self(Arc::new(Shared {
            budget: Arc::new(Budget::new(bytes_max, each)),
            node: Arc::new(Node::new(coordinator, metrics, settings)),
            tls: ArcSwapOption::from_pointee(tls),
            active: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        }))
    }

    /// The tokens in force.
    pub fn tokens(&self) -> Tokens {
        self.0.node.settings.load().tokens.clone()
    }

    /// Puts new settings in force, for open connections as well.
    pub fn apply(&self, mut settings: Settings) {
        settings.tokens.keep_pace(&self.0.node.settings.load().tokens);
        self.0.budget.configure(settings.held_bytes_max, settings.held_bytes_each());
        self.0.node.settings.store(Arc::new(settings));
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.0.node.settings.load_full()
    }

    /// Puts new certificates in force, for new connections; open ones go on under the old.
    pub fn set_tls(&self, tls: Option<Material>) {
        self.0.tls.store(tls.map(Arc::new));
    }

    /// Connections being served.
    pub fn active_connections(&self) -> usize {
        self.0.active.load(Ordering::Relaxed)
    }

    /// The certificate in force, if there is one.
    pub fn certificate(&self) -> Option<Own> {
        self.0.tls.load().as_ref().map(|tls| tls.own().clone())
    }

    /// Serves `listener` until `stop` resolves to the instant by which all must be over. Then no
    /// connection is taken in any more, requests under way are finished, idle connections are
    /// closed. Returns how many connections had to be cut off at that instant.
    pub async fn serve(
        &self,
        listener: TcpListener,
        stop: impl Future<Output = std::time::Instant>,
    ) -> usize {
        let registry = Arc::new(Registry::new(Arc::clone(&self.0.budget)));
        let tracker = TaskTracker::new();
        let deadline = self.accept(listener, &registry, &tracker, stop).await;
        tracker.close();
        registry.order_all(Order::Drain);
        let drained = async {
            loop {
                let pause = self.tick(&registry);
                if timeout(pause, tracker.wait()).await.is_ok() {
                    return;
                }
            }
        };
        if timeout_at(Instant::from_std(deadline), drained).await.is_ok() {
            return 0;
        }
        let left = registry.len();
        registry.order_all(Order::End);
        // They end at their next turn; one that does not is abandoned to the runtime's end.
        let _ = timeout(END_GRACE, tracker.wait()).await;
        left
    }

    async fn accept(
        &self,
        listener: TcpListener,
        registry: &Arc<Registry>,
        tracker: &TaskTracker,
        stop: impl Future<Output = std::time::Instant>,
    ) -> std::time::Instant {
        let mut stop = pin!(stop);
        let mut tick = pin!(tokio::time::sleep(self.tick(registry)));
        loop {
            tokio::select! {
                biased;
                deadline = &mut stop => return deadline,
                () = &mut tick => {
                    let pause = self.tick(registry);
                    tick.as_mut().reset(Instant::now() + pause);
                }
                () = self.0.budget.look.notified() => {
                    self.tick(registry);
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.take_in(stream, peer, registry, tracker),
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        complain!(WARN, Kind::new("clients", "accept"), %error, "cannot accept connections; check the limit of open files");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Ends what is overdue. Returns when to look again.
    fn tick(&self, registry: &Registry) -> Duration {
        let settings = self.0.node.settings.load();
        let ended = registry.tick(settings.read_timeout, settings.write_timeout);
        if ended > 0 {
            debug!(connections = ended, "ended for want of progress, or of room");
        }
        tick_interval(settings.read_timeout, settings.write_timeout)
    }

    fn take_in(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        registry: &Arc<Registry>,
        tracker: &TaskTracker,
    ) {
        let settings = self.0.node.settings.load();
        let Some(active) = Counted::below(&self.0, |s| &s.active, settings.max_conns) else {
            self.0.node.metrics.rejected_connections.inc();
            self.refuse(stream, tracker);
            return;
        };
        // Small answers must not wait for the acknowledgement of the last one.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "cannot switch off Nagle's algorithm");
        }
        let handshake_timeout = settings.read_timeout;
        drop(settings);
        let connection = Connection {
            node: Arc::clone(&self.0.node),
            tls: self.0.tls.load_full(),
            entered: registry.enter(),
            handshake_timeout,
        };
        tracker.spawn(async move {
            let _active = active;
            let (node, watch) =
                (Arc::clone(&connection.node), Arc::clone(connection.entered.watch()));
            if let Err(error) = connection.run(stream).await {
                complain!(DEBUG, Kind::new("clients", "ended"), %peer, error = %brief_error(&error), "connection ended");
            }
            if let Some(reason) = watch.reason() {
                node.metrics.ended_connection(reason.label());
            }
        });
    }

    /// Tells a client that it is one too many, in the time that a write to a fresh socket takes.
    fn refuse(&self, stream: TcpStream, tracker: &TaskTracker) {
        if self.0.tls.load().is_some() {
            return;
        }
        let Ok(mut stream) = stream.into_std() else {
            return;
        };
        if stream.write_all(REFUSAL.as_bytes()).is_err() {
            return;
        }
        let Some(place) = Counted::below(&self.0, |s| &s.refused, REFUSED_MAX) else {
            return;
        };
        let Ok(mut stream) = TcpStream::from_std(stream) else {
            return;
        };
        tracker.spawn(async move {
            let _place = place;
            // Closed with its request unread, the socket would be reset and the refusal lost.
            let _ = timeout(REFUSAL_LINGER, async {
                stream.shutdown().await?;
                let mut scratch = [0; 4096];
                while stream.read(&mut scratch).await? > 0 {}
                Ok::<_, io::Error>(())
            })
            .await;
        });
    }
}

/// Errors of `accept` that concern the connection alone which was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// One of a bounded number, until it is dropped.
struct Counted {
    shared: Arc<Shared>,
    which: fn(&Shared) -> &AtomicUsize,
}

impl Counted {
    fn below(shared: &Arc<Shared>, which: fn(&Shared) -> &AtomicUsize, max: usize) -> Option<Self> {
        let one_more = |n: usize| (n < max).then_some(n + 1);
        which(shared).fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self { shared: Arc::clone(shared), which })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.shared).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a connection ended otherwise than in good order. Nobody can do anything about it here.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("TLS handshake: {0}")]
    Handshake(#[source] io::Error),
    #[error("no TLS handshake in time")]
    HandshakeTimeout,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Http1(#[from] hyper::Error),
    #[error("{0}")]
    Http2(#[from] h2::Error),
}

/// A connection that was taken in.
struct Connection {
    node: Arc<Node>,
    tls: Option<Arc<Material>>,
    entered: Entered,
    handshake_timeout: Duration,
}

impl Connection {
    async fn run(self, stream: TcpStream) -> Result<(), ConnectionError> {
        let watch = Arc::clone(self.entered.watch());
        let opened = until_ended(&watch, async {
            let stream = match &self.tls {
                None => Stream::Plain(stream),
                Some(tls) => {
                    let _charge = Charge::new(&watch, HANDSHAKE_BYTES);
                    let acceptor = TlsAcceptor::from(Arc::clone(tls.config()));
                    let handshake = timeout(self.handshake_timeout, acceptor.accept(stream));
                    let stream = handshake.await.map_err(|_| ConnectionError::HandshakeTimeout)?;
                    Stream::Tls(Box::new(stream.map_err(ConnectionError::Handshake)?))
                }
            };
            Ok::<_, ConnectionError>(Wire::open(stream, Arc::clone(&watch)).await?)
        });
        let Some(opened) = opened.await else {
            return Ok(());
        };
        let (wire, protocol) = match opened {
            Ok(opened) => opened,
            Err(ConnectionError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let place = self.entered.place();
        let client = Arc::new(Client::new(self.node, Arc::clone(&watch)));
        match protocol {
            Protocol::Http1 => http1(wire, client, &watch, place).await?,
            Protocol::Http2 => streams::serve(wire, client, place).await?,
        }
        Ok(())
    }
}

async fn http1(
    wire: Wire,
    client: Arc<Client>,
    watch: &Watch,
    place: Place,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let client = Arc::clone(&client);
        let request = request.map(Inbound::Http1);
        async move { Ok::<_, Infallible>(dispatch::answer(client, request).await) }
    });
    // Without `pipeline_flush`: it leaves the refusal of a malformed head unsent.
    let connection =
        http1::Builder::new().max_buf_size(HTTP1_BUFFER_BYTES_MAX).serve_connection(wire, service);
    obeying(watch, place, pin!(connection), |c| c.graceful_shutdown()).await
}

/// Runs a connection under its watch's orders.
async fn obeying<C: Future<Output = Result<(), hyper::Error>>>(
    watch: &Watch,
    mut place: Place,
    mut connection: Pin<&mut C>,
    drain: impl Fn(Pin<&mut C>),
) -> Result<(), hyper::Error> {
    let mut draining = false;
    let mut go_on = |cx: &mut Context<'_>| {
        match watch.order() {
            Order::Serve => {}
            Order::Drain => {
                if !std::mem::replace(&mut draining, true) {
                    drain(connection.as_mut());
                }
            }
            Order::End => return Poll::Ready(Ok(())),
        }
        connection.as_mut().poll(cx)
    };
    poll_fn(|cx| {
        watch.carried_out_by(cx.waker());
        place.turn(watch, cx, &mut go_on)
    })
    .await
}

/// Runs what comes before a connection's first byte, unless the connection is to end or drain.
async fn until_ended<T>(watch: &Watch, opening: impl Future<Output = T>) -> Option<T> {
    let mut opening = pin!(opening);
    poll_fn(|cx| {
        watch.carried_out_by(cx.waker());
        match watch.order() {
            Order::Serve => opening.as_mut().poll(cx).map(Some),
            Order::Drain | Order::End => Poll::Ready(None),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says_and_valid_json() {
        let (head, body) = REFUSAL.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["status"], 503);
    }
}
