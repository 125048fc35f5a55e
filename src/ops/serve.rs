//! The socket of port 7702: HTTP/1.1, few connections, none for ever.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::Peer;
use super::lanes::Lane;
use super::places::{Entered, Held, Patience, Place, Places};
use super::wire::Wire;
use crate::complaint::{Kind, brief_error, complain};

/// Connections open at once; for the next one room is made. Monitoring and operators need a handful.
pub const CONNECTIONS_MAX: usize = 128;

/// What a connection is waited for. Above a minute between two requests, so that who scrapes each
/// minute keeps its connection.
const PATIENCE: Patience = Patience {
    first_head: Duration::from_secs(10),
    next_head: Duration::from_secs(75),
    answer: Duration::from_secs(10),
};

/// A connection's age at which it takes no further request.
const AGE_MAX: Duration = Duration::from_secs(600);

/// Time that a connection has for the answers it owes, once it takes no further request.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A request's head, in bytes and in headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// What the system holds of a connection, each way.
const RECV_BUFFER_BYTES: u32 = 32 * 1024;
const SEND_BUFFER_BYTES: u32 = 64 * 1024;

/// Connections that the system holds until they are taken in; the next one would try again only after
/// a second.
const BACKLOG: u32 = 4096;

/// Connections that are taken in before others have their turn.
const ACCEPTED_AT_ONCE_MAX: u32 = 16;

/// Pause after the system refused to hand over a connection (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// `health_addr`.
    pub addr: SocketAddr,
}

/// Why port 7702 cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr} (health_addr); is another process there?")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// The open port.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    addr: SocketAddr,
    patience: Patience,
}

impl Listener {
    /// Opens the port.
    ///
    /// # Errors
    /// [`Error::Bind`] when it is taken or not this machine's.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let bind = |source| Error::Bind { addr: config.addr, source };
        let listener = listen(config.addr).map_err(bind)?;
        let addr = listener.local_addr().map_err(bind)?;
        Ok(Self { listener, addr, patience: PATIENCE })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    #[cfg(test)]
    pub(super) fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Answers with `router` until `stop`, then until the answers under way are given.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let places = Places::new(CONNECTIONS_MAX);
        let connections = TaskTracker::new();
        let newcomers = Lane::of_newcomers();
        let mut at_once = 0;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let entered = places.enter(peer.ip().to_canonical(), |held| {
                        let router = router.clone();
                        let one =
                            connection(stream, peer, held, router, self.patience, stop.clone());
                        connections.spawn(one).abort_handle()
                    });
                    tell(&entered, peer);
                    newcomers.pass().await;
                    at_once += 1;
                    while at_once >= ACCEPTED_AT_ONCE_MAX || places.are_swamped() {
                        at_once = 0;
                        yield_now().await;
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    let kind = Kind::new("operations", "accept");
                    complain!(WARN, kind, %error, "operations port could not accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        connections.close();
        connections.wait().await;
    }
}

/// Listens, so that what the system holds of each connection is bounded as well.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Another process may have held it a moment ago.
    socket.set_reuseaddr(true)?;
    socket.set_recv_buffer_size(RECV_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Errors of `accept` that concern the connection alone which was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn tell(entered: &Entered, peer: SocketAddr) {
    let (kind, limit) = (Kind::new("operations", "full"), CONNECTIONS_MAX);
    match entered {
        Entered::Free => {}
        Entered::InsteadOf(ip) => complain!(
            WARN,
            kind,
            %peer,
            limit,
            "operations port is full: a connection from {ip} was cut off for another"
        ),
        Entered::Not => complain!(
            WARN,
            kind,
            %peer,
            limit,
            "operations port is full of connections that just came: another was turned away"
        ),
    }
}

/// Why a connection ended otherwise than in good order.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("it took too long over its first request, or over an answer")]
    Overdue,
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    held: Held,
    router: Router,
    patience: Patience,
    stop: CancellationToken,
) {
    let place = Arc::clone(held.place());
    // A fresh socket can be written to: once that is known, so is whether there is something to read,
    // and the first look at it is not in vain.
    if stream.writable().await.is_err() {
        return;
    }
    let service = service_fn(|request| answer(router.clone(), peer, &held, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.next_head)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Wire::new(stream, Arc::clone(&place))), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = while_in_time(connection.as_mut(), &place, patience) => Some(ended),
        () = sleep(AGE_MAX) => None,
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_ANSWER_TIMEOUT, while_in_time(connection, &place, patience)).await
        }
    };
    if let Ok(Err(error)) = ended {
        let kind = Kind::new("operations", "ended");
        complain!(DEBUG, kind, %peer, error = %brief_error(error), "operations connection ended early");
    }
}

/// Serves a connection until it ends, or until its time is over.
async fn while_in_time(
    mut connection: Pin<&mut impl Future<Output = Result<(), hyper::Error>>>,
    place: &Place,
    patience: Patience,
) -> Result<(), End> {
    let mut alarm = pin!(sleep(patience.first_head));
    poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended.map_err(End::from));
        }
        place.seen();
        let Some(deadline) = place.deadline(patience) else { return Poll::Pending };
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        alarm.as_mut().poll(cx).map(|()| Err(End::Overdue))
    })
    .await
}

fn answer(
    mut router: Router,
    peer: SocketAddr,
    held: &Held,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> + use<> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    request.extensions_mut().insert(held.asks());
    router.call(request)
}
