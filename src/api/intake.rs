//! Taking in a request's body: bounded in bytes and in time.

use std::pin::Pin;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};

use super::client::Client;
use super::held::{Charge, NoRoom};
use super::problem::{Kind, Problem};
use super::settings::Limits;

/// What bounds a body, and the name of that limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) bytes_max: usize,
    pub(super) limit: &'static str,
}

/// Room that a body gets before more of it is there than that; and how much it grows by at a time.
/// What is announced is not believed: it would hold memory that never fills.
const GATHERED_BYTES_MIN: usize = 64 << 10;
const GROWTH: usize = 4;

/// Reads a body to its end; with it, what it is charged where it had to be gathered. One that has arrived with its head is taken as it lies in the read
/// buffer, without a copy, a timer or a turn of the scheduler.
///
/// # Errors
/// A [`Problem`]: too large (at once, where `Content-Length` says so), too slow, or cut off.
pub(super) async fn whole<B: Body<Data = Bytes> + Unpin>(
    client: &Client,
    limits: Limits,
    mut body: B,
    bound: Bound,
) -> Result<(Bytes, Option<Charge>), Problem> {
    if body.is_end_stream() {
        return Ok((Bytes::new(), None));
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
        Some(None) => return Ok((Bytes::new(), None)),
        Some(Some(frame)) => data(frame)?,
    };
    if start.len() > bound.bytes_max {
        return Err(too_large(bound));
    }
    if body.is_end_stream() {
        return Ok((start, None));
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
) -> Result<(Bytes, Option<Charge>), Problem> {
    let mut charge = Charge::new(&client.watch, 0);
    let hint = body.size_hint().exact().map_or(usize::MAX, |rest| rest as usize);
    let bytes_max = start.len().saturating_add(hint).min(bound.bytes_max);
    let mut gathered = BytesMut::new();
    make_room(&mut gathered, &mut charge, start.len(), bytes_max)?;
    gathered.extend_from_slice(&start);
    drop(start);
    while let Some(frame) = body.frame().await {
        let piece = data(frame)?;
        if gathered.len() + piece.len() > bound.bytes_max {
            return Err(too_large(bound));
        }
        make_room(&mut gathered, &mut charge, piece.len(), bytes_max)?;
        gathered.extend_from_slice(&piece);
    }
    client.watch.held().budget().stirs(gathered.len());
    Ok((gathered.freeze(), Some(charge)))
}

/// Makes room for so many bytes more of a body that has no more than `bytes_max` in all.
///
/// # Errors
/// A [`Problem`] to be tried again when too much is held already.
fn make_room(
    gathered: &mut BytesMut,
    charge: &mut Charge,
    more: usize,
    bytes_max: usize,
) -> Result<(), Problem> {
    let needed = gathered.len() + more;
    if needed <= gathered.capacity() {
        return Ok(());
    }
    let room = needed.saturating_mul(GROWTH).min(bytes_max).max(GATHERED_BYTES_MIN).max(needed);
    charge.grow(room).map_err(|NoRoom| {
        let detail = "too many large requests are arriving at once; try again shortly";
        Problem::unavailable(detail).closing()
    })?;
    gathered.reserve(room - gathered.len());
    Ok(())
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
