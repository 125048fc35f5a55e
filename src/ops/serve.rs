//! The socket of port 7702: HTTP/1.1, few connections, none for ever.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::Peer;

/// Connections open at once; the next is closed at once. Monitoring and operators need a handful.
pub const CONNECTIONS_MAX: usize = 128;

/// Time for a request's head to arrive, and for a connection to be idle. Above a minute, so that
/// who scrapes each minute keeps its connection.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// A connection's age at which it takes no further request.
const AGE_MAX: Duration = Duration::from_secs(600);

/// Time that a connection has for the answers it owes, once it takes no further request.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A request's head, in bytes and in headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

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
    head_timeout: Duration,
}

impl Listener {
    /// Opens the port.
    ///
    /// # Errors
    /// [`Error::Bind`] when it is taken or not this machine's.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let bind = |source| Error::Bind { addr: config.addr, source };
        let listener = TcpListener::bind(config.addr).await.map_err(bind)?;
        let addr = listener.local_addr().map_err(bind)?;
        Ok(Self { listener, addr, head_timeout: HEAD_TIMEOUT })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    #[cfg(test)]
    pub(super) fn with_head_timeout(self, head_timeout: Duration) -> Self {
        Self { head_timeout, ..self }
    }

    /// Answers with `router` until `stop`, then until the answers under way are given.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        let mut full = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => match Arc::clone(&slots).try_acquire_owned() {
                    Ok(slot) => {
                        full = false;
                        let one = connection(
                            stream,
                            peer,
                            router.clone(),
                            self.head_timeout,
                            stop.clone(),
                        );
                        connections.spawn(async move {
                            one.await;
                            drop(slot);
                        });
                    }
                    // Said once for each time that it fills up, not for each connection.
                    Err(_) if full => {}
                    Err(_) => {
                        full = true;
                        tracing::warn!(%peer, limit = CONNECTIONS_MAX, "operations port is full");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "operations port could not accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        connections.close();
        connections.wait().await;
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    head_timeout: Duration,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| answer(router.clone(), peer, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = sleep(AGE_MAX) => None,
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_ANSWER_TIMEOUT, connection).await
        }
    };
    if let Ok(Err(error)) = ended {
        tracing::debug!(%peer, %error, "operations connection ended early");
    }
}

fn answer(
    mut router: Router,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    router.call(request)
}
