//! Taking in a request's body: bounded in bytes and in time.

use std::pin::Pin;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};

use super::client::{Client, Gathered};
use super::problem::{Kind, Problem};
use super::settings::Limits;

/// What bounds a body, and the name of that limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) bytes_max: usize,
    pub(super) limit: &'static str,
}

/// Reads a body to its end. One that has arrived with its head is taken as it lies in the read
/// buffer, without a copy, a timer or a turn of the scheduler.
///
/// # Errors
/// A [`Problem`]: too large (at once, where `Content-Length` says so), too slow, or cut off.
pub(super) async fn whole<B: Body<Data = Bytes> + Unpin>(
    client: &Client,
    limits: Limits,
    mut body: B,
    bound: Bound,
) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > bound.bytes_max as u64 {
        return Err(too_large(bound));
    }
    let first = std::future::poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(Some(frame)),
        Poll::Pending => Poll::Ready(None),
    })
    .await;
    let start = match first {
        None => Bytes::new(),
        Some(None) => return Ok(Bytes::new()),
        Some(Some(frame)) => data(frame)?,
    };
    if start.len() > bound.bytes_max {
        return Err(too_large(bound));
    }
    if body.is_end_stream() {
        return Ok(start);
    }
    let rest = Box::pin(gather(client, body, start, bound));
    match tokio::time::timeout(limits.read_timeout, rest).await {
        Ok(gathered) => gathered,
        Err(_) => Err(too_slow()),
    }
}

async fn gather<B: Body<Data = Bytes> + Unpin>(
    client: &Client,
    mut body: B,
    start: Bytes,
    bound: Bound,
) -> Result<Bytes, Problem> {
    let mut counted = Gathered::none(&client.node);
    counted.add(start.len()).map_err(Problem::closing)?;
    let expected = body.size_hint().exact().unwrap_or(0) as usize;
    let mut gathered = BytesMut::with_capacity(start.len() + expected.min(bound.bytes_max));
    gathered.extend_from_slice(&start);
    drop(start);
    while let Some(frame) = body.frame().await {
        let piece = data(frame)?;
        if gathered.len() + piece.len() > bound.bytes_max {
            return Err(too_large(bound));
        }
        counted.add(piece.len()).map_err(Problem::closing)?;
        gathered.extend_from_slice(&piece);
    }
    Ok(gathered.freeze())
}

/// A frame's data; nothing for trailers.
///
/// # Errors
/// A [`Problem`] when the body ended before it should.
pub(super) fn data<E>(frame: Result<Frame<Bytes>, E>) -> Result<Bytes, Problem> {
    match frame {
        Ok(frame) => Ok(frame.into_data().unwrap_or_default()),
        Err(_) => Err(Problem::new(
            Kind::Malformed,
            "the body is cut off or not framed as its header fields say; send all of it",
        )
        .closing()),
    }
}

/// The body did not arrive in time.
pub(super) fn too_slow() -> Problem {
    Problem::new(
        Kind::Timeout,
        "the body did not arrive within read_timeout; send it faster, or in smaller pieces",
    )
    .closing()
}

fn too_large(bound: Bound) -> Problem {
    Problem::body_too_large(bound.bytes_max, bound.limit).closing()
}
