//! Taking connections in: from the socket to a node that has introduced itself.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::debug;

use super::accepted::{self, Accepted};
use super::connect::tls_failure;
use super::handshake::{self, Agreed, Failure, Side};
use super::hello::{HelloError, Identity, MAGIC, Purpose};
use super::intake::AnyHandler;
use super::record;
use super::refusal::Objection;
use super::registry::Place;
use super::shared::{ACCEPTED_MAX, Shared, Standing};
use super::strangers::{STRANGERS_MAX, Stranger};
use super::tls::{self, Stream};
use crate::complaint::{Kind, brief_error, complain};

/// How long to wait when no connection can be accepted, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection that was refused stays open, for the refusal to arrive.
const REFUSAL_LINGER: Duration = Duration::from_millis(300);

/// Accepts connections until the transport stops, and keeps the handler until then.
pub(super) async fn listen(
    shared: Arc<Shared>,
    listener: TcpListener,
    _handler: Arc<dyn AnyHandler>,
) {
    loop {
        let accepted = tokio::select! {
            () = shared.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => take_in(&shared, stream, from),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                complain!(WARN, Kind::new("nodes", "accept"), %error, "cannot accept other nodes' connections; check the limit of open files");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors of `accept` that concern the connection alone which was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn take_in(shared: &Arc<Shared>, stream: TcpStream, from: SocketAddr) {
    let ip = from.ip().to_canonical();
    let cut_off = shared.strangers.enter(ip, |stranger| {
        let meeting = meet(Arc::clone(shared), stream, ip, stranger);
        shared.tracker.spawn(meeting).abort_handle()
    });
    if let Some(cut_off) = cut_off {
        let cut_off = cut_off.to_string();
        shared.object(&Objection::TooMany(STRANGERS_MAX), &cut_off, &cut_off);
    }
}

/// One connection, from its first byte to its last.
async fn meet(shared: Arc<Shared>, stream: TcpStream, ip: IpAddr, stranger: Stranger) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%ip, %error, "cannot switch off Nagle's algorithm");
    }
    let ended = shared.ended.clone();
    let mut claimed = None;
    let introduced = introduce(&shared, stream, &mut claimed);
    let met = tokio::select! {
        () = ended.cancelled() => return,
        met = timeout(shared.timing.handshake_max, introduced) => met,
    };
    let whom = match &claimed {
        Some(Identity { name, .. }) => format!("{name} ({ip})"),
        None => ip.to_string(),
    };
    let peer = ip.to_string();
    let met = match met {
        Ok(Ok(met)) => met,
        Ok(Err((failure, stream))) => {
            match &failure {
                Failure::Objection(objection) => {
                    // A stranger may claim any name: its address alone says who comes again.
                    let known = objection.refusal().is_of_one_known();
                    shared.object(objection, if known { &whom } else { &peer }, &whom);
                    // Lost only if the other side has gone already.
                    let _ = timeout(REFUSAL_LINGER, tell(stream, objection)).await;
                }
                Failure::Told(refusal) => shared.told(*refusal, &peer, &whom),
                Failure::Io(error) => {
                    let kind = Kind::new("nodes", "ended");
                    complain!(DEBUG, kind, %ip, error = %brief_error(error), "a connection ended before it began");
                }
                Failure::Myself => debug!("this node has dialled itself"),
            }
            return;
        }
        Err(_elapsed) => {
            let objection = Objection::Timeout(shared.timing.handshake_max);
            shared.object(&objection, &peer, &whom);
            return;
        }
    };
    drop(stranger);
    accepted::serve(shared, met.into_accepted(peer)).await;
}

/// A node that was let in.
struct Met {
    stream: Stream,
    agreed: Agreed,
    identity: Arc<Identity>,
    standing: Standing,
    place: Option<Place>,
    permit: OwnedSemaphorePermit,
}

impl Met {
    fn into_accepted(self, peer: String) -> Accepted {
        let (sealer, opener) = self.agreed.keys.unzip();
        let (reader, writer) = tls::split(self.stream);
        Accepted {
            from: self.identity,
            purpose: self.agreed.purpose,
            renewed: self.standing.renewed,
            place: self.place,
            permit: self.permit,
            inbound: record::Inbound::new(reader, opener),
            writer,
            sealer,
            peer,
        }
    }
}

/// Leads a connection through TLS and introduction. When that fails, gives the stream back, so
/// that the other side can be told.
async fn introduce(
    shared: &Shared,
    stream: TcpStream,
    claimed: &mut Option<Identity>,
) -> Result<Met, (Failure, Stream)> {
    let secrets = shared.secrets.load_full();
    let standing = shared.standing();
    let (mut stream, binding) = secure(shared, stream).await?;
    let side = Side {
        identity: &standing.identity,
        instance: shared.instance,
        secrets: &secrets,
        binding: binding.as_deref(),
    };
    let admitted = async {
        let greeted = handshake::accept(&mut stream, &side, claimed).await?;
        let permit = Arc::clone(&shared.accepted)
            .try_acquire_owned()
            .map_err(|_| Objection::TooMany(ACCEPTED_MAX))?;
        let them = Arc::new(greeted.agreed.identity.clone());
        let Agreed { instance, purpose, .. } = greeted.agreed;
        let patience = shared.timing.patience();
        let place =
            shared.registry.admit(&standing.identity, &them, instance, purpose, patience).await?;
        let agreed = greeted.welcome(&mut stream).await?;
        Ok::<_, Failure>((agreed, them, place, permit))
    };
    match admitted.await {
        Ok((agreed, identity, place, permit)) => {
            if let Some(node) = identity.node
                && let Some(dialler) = shared.diallers.load().get(&node)
            {
                dialler.met(shared, &identity);
                if agreed.purpose == Purpose::Link {
                    dialler.wake();
                }
            }
            Ok(Met { stream, agreed, identity, standing, place, permit })
        }
        Err(Failure::Io(error)) => Err((tls_failure(error), stream)),
        Err(failure) => Err((failure, stream)),
    }
}

/// Opens TLS if this node uses it, and sees to it that both sides or none do.
async fn secure(
    shared: &Shared,
    stream: TcpStream,
) -> Result<(Stream, Option<Vec<u8>>), (Failure, Stream)> {
    let mut first = [0];
    let first = match stream.peek(&mut first).await {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(first[0]),
        Err(error) => Err(error),
    };
    let first = match first {
        Ok(first) => first,
        Err(error) => return Err((Failure::Io(error), Stream::Left(stream))),
    };
    let objection = match (&*shared.tls.load(), first) {
        (None, tls::HANDSHAKE_BYTE) => Objection::TlsOursMissing,
        (None, _) => return Ok((Stream::Left(stream), None)),
        (Some(tls), tls::HANDSHAKE_BYTE) => {
            return match tls.accept(stream).await {
                Ok((stream, binding)) => Ok((stream, Some(binding))),
                Err((error, stream)) => Err((tls_failure(error), Stream::Left(stream))),
            };
        }
        (Some(_), first) if first == MAGIC[0] => Objection::TlsTheirsMissing,
        (Some(_), first) => HelloError::Foreign { first }.into(),
    };
    Err((objection.into(), Stream::Left(stream)))
}

/// Tells the other side why it is not let in, in a way that it understands, and waits until it
/// has closed: a connection closed with bytes unread is reset, and what was told is lost.
async fn tell(mut stream: Stream, objection: &Objection) -> io::Result<()> {
    match objection {
        // To strangers nothing is said.
        Objection::Hello(_) | Objection::Unexpected(_) => return Ok(()),
        // The alert is under way.
        Objection::Tls(_) => {}
        Objection::TlsOursMissing => stream.write_all(&tls::NOT_HERE).await?,
        _ => handshake::refuse(&mut stream, objection.refusal()).await?,
    }
    stream.shutdown().await?;
    let mut scratch = [0; 1024];
    while stream.read(&mut scratch).await? > 0 {}
    Ok(())
}
