//! One request over a connection of its own, to whoever is at an address.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::connect::{self, OpenError};
use super::frame::Head;
use super::handshake::Failure;
use super::hello::{Identity, Purpose};
use super::outbox::Outbox;
use super::record::{Inbound, InboundError};
use super::refusal::{Objection, Refusal};
use super::shared::Shared;
use super::tls;

/// Why a knock was not answered.
#[derive(Debug, thiserror::Error)]
pub enum KnockError {
    /// Nobody can be reached at the address. The request was not delivered.
    #[error("nobody can be reached there: {0}")]
    Unreachable(#[source] io::Error),
    /// One of the two does not want to talk to the other. The request was not delivered.
    #[error("{0}")]
    Rejected(Refusal),
    /// It is this node's own address.
    #[error("the address is this node's own")]
    Myself,
    /// The request is longer than any may be.
    #[error("the request is too long to be sent")]
    TooLong,
    /// The connection broke; the request may have been carried out.
    #[error("the connection broke before the answer came")]
    Lost,
    /// The time is up; the request may have been carried out.
    #[error("there was no answer in time")]
    TimedOut,
}

pub(super) async fn knock(
    shared: &Shared,
    addr: &str,
    kind: u8,
    body: &[u8],
    time_max: Duration,
) -> Result<(Identity, Bytes), KnockError> {
    tokio::select! {
        answer = timeout(time_max, ask(shared, addr, kind, body)) => {
            answer.unwrap_or(Err(KnockError::TimedOut))
        }
        () = shared.ended.cancelled() => Err(KnockError::Lost),
    }
}

async fn ask(
    shared: &Shared,
    addr: &str,
    kind: u8,
    body: &[u8],
) -> Result<(Identity, Bytes), KnockError> {
    let us = shared.standing().identity;
    let opened = connect::open(shared, &us, addr, Purpose::Knock).await;
    let (stream, agreed) = opened.map_err(|error| not_opened(shared, addr, error))?;
    let (sealer, opener) = agreed.keys.unzip();
    let (reader, mut writer) = tls::split(stream);
    let outbox = Outbox::default();
    if !outbox.push(Head::Request { number: 1, kind }, |out| out.extend_from_slice(body)) {
        return Err(KnockError::TooLong);
    }
    let mut inbound = Inbound::new(reader, opener);
    // The outbox is not finished: to close this direction would look like giving up.
    let answer = tokio::select! {
        written = outbox.write_to(&mut writer, sealer, shared.timing.close_after) => {
            written.map_err(|_| KnockError::Lost)?;
            return Err(KnockError::Lost);
        }
        answer = answer(&mut inbound) => answer,
    };
    let objection = match answer {
        Ok((Head::Answer { number: 1 }, body)) => return Ok((agreed.identity, body)),
        Ok((Head::Farewell { code }, _)) => {
            let refusal = shared.farewell(code, addr, &agreed.identity.name);
            return Err(refusal.map_or(KnockError::Lost, KnockError::Rejected));
        }
        Ok(_) => Objection::Unexpected("frame that is no answer"),
        Err(InboundError::Io(_)) => return Err(KnockError::Lost),
        Err(error) => Objection::Inbound(error),
    };
    shared.object(&objection, addr, addr);
    Err(KnockError::Rejected(objection.refusal()))
}

async fn answer(inbound: &mut Inbound<tls::Reader>) -> Result<super::frame::Frame, InboundError> {
    loop {
        inbound.fill().await?;
        if let Some(frame) = inbound.next()? {
            return Ok(frame);
        }
    }
}

fn not_opened(shared: &Shared, addr: &str, error: OpenError) -> KnockError {
    match error {
        OpenError::Connect(error) => KnockError::Unreachable(error),
        OpenError::Silent => KnockError::Unreachable(io::ErrorKind::TimedOut.into()),
        OpenError::Failure(Failure::Io(error)) => KnockError::Unreachable(error),
        OpenError::Failure(Failure::Myself) => KnockError::Myself,
        OpenError::Failure(Failure::Objection(objection)) => {
            shared.object(&objection, addr, addr);
            KnockError::Rejected(objection.refusal())
        }
        OpenError::Failure(Failure::Told(refusal)) => {
            shared.told(refusal, addr, addr);
            KnockError::Rejected(refusal)
        }
    }
}
