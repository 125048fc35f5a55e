//! One HTTP/1.1 connection at a time to the node under load, over TCP or TLS.
//!
//! Invariant: a connection carries one request at a time, and is given up after any failure.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cli::client::{Query, bearer};
use crate::cli::connection::{Connection, Target};
use crate::cli::exit::Usage;

/// The node under load.
pub(super) struct Endpoint {
    target: Target,
    host: HeaderValue,
    token: Option<HeaderValue>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No connection came about.
    #[error("cannot reach {addr}: {source}")]
    Connect {
        /// Where to.
        addr: String,
        /// What the system says.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// No answer in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Slow(Duration),
    /// The server said no.
    #[error("the server answered {0}")]
    Refused(StatusCode),
}

/// An open connection.
pub(super) struct Link<'a> {
    endpoint: &'a Endpoint,
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Endpoint {
    /// Takes the address, token and certificates from `connection`. Connects to nothing yet.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub(super) fn new(connection: &Connection) -> anyhow::Result<Self> {
        let target = connection.target()?;
        let tls = if target.tls { Some(tls(connection, &target)?) } else { None };
        let host = HeaderValue::try_from(target.authority()).context("the host is no name")?;
        let token = connection.secret()?.map(|token| bearer(&token)).transpose()?;
        Ok(Self { target, host, token, tls, timeout: connection.timeout })
    }

    /// Makes sure that the node answers and lets keys under `prefix` be read, before any load.
    ///
    /// # Errors
    /// It does not.
    pub(super) async fn probe(&self, prefix: &str) -> anyhow::Result<()> {
        let query = Query::default().with("limit", "1").with("prefix", prefix);
        let uri = format!("/v1/kv{}", query.as_str()).parse().context("the prefix makes no URL")?;
        let mut link = self.connect().await?;
        match link.send(Method::GET, &uri, Bytes::new()).await {
            Ok(_) => Ok(()),
            Err(Error::Refused(StatusCode::UNAUTHORIZED)) => {
                anyhow::bail!(
                    "the server asks for a token; give one with AEGISKV_TOKEN or --token-file"
                )
            }
            Err(Error::Refused(StatusCode::FORBIDDEN)) => {
                anyhow::bail!(
                    "the server lets this client read no keys under {prefix:?} (403): a load needs \
                     a token with the verbs read and write for them; without tokens, it must come \
                     by an address or one of the server's allowed_hosts"
                )
            }
            Err(error) => Err(error).context("the node does not answer as an AegisKV node would"),
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::Slow`].
    pub(super) async fn connect(&self) -> Result<Link<'_>, Error> {
        let opening = timeout(self.timeout, self.open());
        let (sender, driver) = opening.await.map_err(|_| Error::Slow(self.timeout))??;
        Ok(Link { endpoint: self, sender, driver })
    }

    async fn open(&self) -> Result<(SendRequest<Full<Bytes>>, tokio::task::JoinHandle<()>), Error> {
        let addr = self.target.authority();
        let failed = |source| Error::Connect { addr: addr.clone(), source };
        let tcp = TcpStream::connect((self.target.host.as_str(), self.target.port)).await;
        let tcp = tcp.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        // The driver ends with the connection; what broke it is told to the request under way.
        if let Some((connector, name)) = &self.tls {
            let tls = connector.connect(name.clone(), tcp).await.map_err(failed)?;
            let (sender, driver) = http1::handshake(TokioIo::new(tls)).await?;
            Ok((sender, tokio::spawn(async { drop(driver.await) })))
        } else {
            let (sender, driver) = http1::handshake(TokioIo::new(tcp)).await?;
            Ok((sender, tokio::spawn(async { drop(driver.await) })))
        }
    }
}

impl Link<'_> {
    /// Sends a request and reads its answer to the end. `404` is an answer too.
    ///
    /// # Errors
    /// [`Error`]; only after [`Error::Refused`] is the connection still of use.
    pub(super) async fn send(
        &mut self,
        method: Method,
        uri: &Uri,
        body: Bytes,
    ) -> Result<StatusCode, Error> {
        let limit = self.endpoint.timeout;
        let exchange = timeout(limit, self.exchange(method, uri, body));
        let status = exchange.await.map_err(|_| Error::Slow(limit))??;
        if status.is_success() || status == StatusCode::NOT_FOUND {
            Ok(status)
        } else {
            Err(Error::Refused(status))
        }
    }

    async fn exchange(
        &mut self,
        method: Method,
        uri: &Uri,
        body: Bytes,
    ) -> hyper::Result<StatusCode> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri.clone();
        request.headers_mut().insert(HOST, self.endpoint.host.clone());
        if let Some(token) = &self.endpoint.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame?;
        }
        Ok(status)
    }
}

/// TLS that trusts the certificates of `--ca` alone.
fn tls(
    connection: &Connection,
    target: &Target,
) -> anyhow::Result<(TlsConnector, ServerName<'static>)> {
    let Some(ca) = &connection.ca else {
        return Err(Usage("bench over TLS needs --ca".to_owned()).into());
    };
    let mut roots = rustls::RootCertStore::empty();
    let unusable = || format!("{} holds no usable PEM certificate", ca.display());
    for certificate in CertificateDer::pem_file_iter(ca).with_context(unusable)? {
        roots.add(certificate.with_context(unusable)?).with_context(unusable)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")?
        .with_root_certificates(roots);
    let config = match (&connection.cert, &connection.key) {
        (Some(cert), Some(key)) => {
            let unusable = || format!("cannot use {} with {}", cert.display(), key.display());
            let chain = CertificateDer::pem_file_iter(cert).with_context(unusable)?;
            let chain = chain.collect::<Result<Vec<_>, _>>().with_context(unusable)?;
            let key = PrivateKeyDer::from_pem_file(key).with_context(unusable)?;
            builder.with_client_auth_cert(chain, key).with_context(unusable)?
        }
        _ => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from(target.host.clone())
        .with_context(|| format!("{} cannot be checked against a certificate", target.host))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}
