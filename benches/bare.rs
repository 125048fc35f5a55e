//! The two servers AegisKV is measured against in the side-by-side run: hyper alone and
//! axum alone, answering GET and PUT with as many bytes and headers as AegisKV does, on
//! the same runtime and allocator, and storing nothing. What AegisKV loses against them
//! is what keeping data costs.
//!
//! `bare hyper|axum ADDRESS [BYTES]` serves until it is killed; BYTES are a value's, 100 if unsaid.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::OnceLock;

use axum::Router;
use axum::extract::Path;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What every GET answers: as many bytes as the values that the run stores.
static VALUE: OnceLock<Bytes> = OnceLock::new();

fn value() -> Full<Bytes> {
    Full::new(VALUE.get().cloned().unwrap_or_default())
}

/// The headers of a GET beside `Content-Length` and `Date`.
const READ_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (hyper::header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
    (hyper::header::ETAG, HeaderValue::from_static("\"252012345678901234\"")),
    (HeaderName::from_static("aegis-ttl"), HeaderValue::from_static("3600")),
    (hyper::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (hyper::header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox")),
];

/// The headers of a PUT beside `Date`.
const WRITE_HEADERS: [(HeaderName, HeaderValue); 4] = [
    (hyper::header::ETAG, HeaderValue::from_static("\"252012345678901234\"")),
    (HeaderName::from_static("aegis-acks"), HeaderValue::from_static("1/1")),
    (hyper::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (hyper::header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox")),
];

fn answer<B>(
    status: StatusCode,
    headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    body: B,
) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().extend(headers);
    response
}

async fn serve_hyper(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service_fn(bare_answer));
            // A load generator drops its connections when its time is up.
            let _dropped = connection.await;
        });
    }
}

async fn bare_answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == Method::GET {
        return Ok(answer(StatusCode::OK, READ_HEADERS, value()));
    }
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    let status = if body.is_ok() { StatusCode::NO_CONTENT } else { StatusCode::BAD_REQUEST };
    Ok(answer(status, WRITE_HEADERS, Full::default()))
}

async fn serve_axum(listener: TcpListener) -> std::io::Result<()> {
    let read = async |Path(_key): Path<String>| {
        answer(StatusCode::OK, READ_HEADERS, value()).into_response()
    };
    let write = async |Path(_key): Path<String>, _value: Bytes| {
        answer(StatusCode::NO_CONTENT, WRITE_HEADERS, Full::<Bytes>::default()).into_response()
    };
    let router: Router = Router::new().route("/v1/kv/{*key}", get(read).put(write));
    axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |stream| {
            // Without it small answers wait for acknowledgements; failing costs only speed.
            let _slower = stream.set_nodelay(true);
        }),
        router,
    )
    .await
}

fn arguments() -> Option<(String, SocketAddr, usize)> {
    let mut arguments = std::env::args().skip(1);
    let (server, address) = (arguments.next()?, arguments.next()?.parse().ok()?);
    Some((server, address, arguments.next().map_or(Some(100), |bytes| bytes.parse().ok())?))
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some((server, address, bytes)) = arguments() else {
        eprintln!("usage: bare hyper|axum ADDRESS [BYTES]");
        return ExitCode::from(2);
    };
    VALUE.get_or_init(|| vec![b'v'; bytes].into());
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on {address}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let served = match server.as_str() {
        "hyper" => serve_hyper(listener).await,
        "axum" => serve_axum(listener).await,
        _ => {
            eprintln!("no server is called {server}; there are hyper and axum");
            return ExitCode::from(2);
        }
    };
    served.map_or_else(
        |error| {
            eprintln!("stopped serving: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
