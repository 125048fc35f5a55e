//! Opening a connection to another node: resolve, connect, TLS, introduction.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::handshake::{self, Agreed, Failure, Side};
use super::hello::{Identity, Purpose};
use super::link::Down;
use super::refusal::{Objection, Refusal};
use super::shared::Shared;
use super::tls::{self, Stream};

/// Most addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The name cannot be resolved.
    #[error("the name does not resolve: {0}")]
    Unresolved(#[source] io::Error),
    /// The address cannot be connected to.
    #[error(transparent)]
    Connect(io::Error),
    /// The other side took the connection, and then said nothing.
    #[error("it does not answer")]
    Silent,
    /// The introduction failed.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl OpenError {
    /// What it says of the other node.
    pub(super) fn down(&self) -> Down {
        match self {
            Self::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Down::Refused
            }
            Self::Unresolved(_) | Self::Connect(_) => Down::Unreachable,
            Self::Silent => Down::Silent,
            Self::Failure(Failure::Io(_)) => Down::Reset,
            Self::Failure(Failure::Objection(objection)) => Down::Rejected(objection.refusal()),
            Self::Failure(Failure::Told(refusal)) => Down::Rejected(*refusal),
            Self::Failure(Failure::Myself) => Down::Rejected(Refusal::OtherNode),
        }
    }
}

/// Opens a connection to `addr` for `purpose`, in the name of `us`.
pub(super) async fn open(
    shared: &Shared,
    us: &Identity,
    addr: &str,
    purpose: Purpose,
) -> Result<(Stream, Agreed), OpenError> {
    let stream = connect(shared, addr).await?;
    enter(shared, us, stream, purpose).await
}

/// Introduces this node, `us`, on a connection that was just opened for `purpose`.
pub(super) async fn enter(
    shared: &Shared,
    us: &Identity,
    stream: TcpStream,
    purpose: Purpose,
) -> Result<(Stream, Agreed), OpenError> {
    let introduced = introduce(shared, us, stream, purpose);
    match timeout(shared.timing.handshake_max, introduced).await {
        Ok(introduced) => Ok(introduced?),
        Err(_elapsed) => Err(OpenError::Silent),
    }
}

/// Resolves `addr` and opens a bare connection to the first of its addresses that takes one.
pub(super) async fn connect(shared: &Shared, addr: &str) -> Result<TcpStream, OpenError> {
    let connect_max = shared.timing.connect_max;
    let found = timeout(connect_max, lookup_host(addr)).await;
    let found = found.unwrap_or_else(|elapsed| Err(elapsed.into()));
    let addresses: Vec<SocketAddr> =
        found.map_err(OpenError::Unresolved)?.take(ADDRESSES_MAX).collect();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(connect_max, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(OpenError::Connect)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failed = error,
            Err(elapsed) => failed = elapsed.into(),
        }
    }
    Err(OpenError::Connect(failed))
}

async fn introduce(
    shared: &Shared,
    us: &Identity,
    stream: TcpStream,
    purpose: Purpose,
) -> Result<(Stream, Agreed), Failure> {
    let secrets = shared.secrets.load_full();
    let (mut stream, binding) = match &*shared.tls.load() {
        None => (Stream::Left(stream), None),
        Some(tls) => {
            let (stream, binding) = tls.connect(stream).await.map_err(tls_failure)?;
            (stream, Some(binding))
        }
    };
    let side = Side {
        identity: us,
        instance: shared.instance,
        secrets: &secrets,
        binding: binding.as_deref(),
    };
    let agreed = handshake::dial(&mut stream, &side, purpose).await.map_err(|failure| {
        // Under TLS 1.3 the other side's refusal of this node's certificate comes this late.
        match failure {
            Failure::Io(error) => tls_failure(error),
            other => other,
        }
    })?;
    Ok((stream, agreed))
}

/// What an error says once TLS is taken into account.
pub(super) fn tls_failure(error: io::Error) -> Failure {
    match tls::error_of(&error) {
        None => Failure::Io(error),
        Some(rustls::Error::AlertReceived(_)) => Failure::Told(Refusal::Tls),
        Some(_) => Objection::Tls(error).into(),
    }
}
