//! TLS between nodes: both show a certificate, and both check that an authority of theirs signed
//! the other's.
//!
//! Host names are not compared: a node is whom the cluster's authority made one, wherever it runs
//! and whatever it is called. Sessions are not resumed, so that each connection checks anew.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::either::Either;

use crate::entry::Timestamp;
use crate::tls::{Own, TlsError, authorities, certificates, private_key, unusable};

/// What both sides must speak inside (ALPN, RFC 7301).
const ALPN: &[u8] = b"aegiskv-peer";

/// The label of the key that is exported for the proofs (RFC 5705).
const BINDING_LABEL: &[u8] = b"EXPORTER-aegiskv-peer";

/// Bytes of it.
const BINDING_BYTES: usize = 32;

/// What a TLS handshake begins with (RFC 8446 §5.1).
pub(super) const HANDSHAKE_BYTE: u8 = 0x16;

/// The alert that tells who speaks TLS that this side does not: fatal, handshake_failure.
pub(super) const NOT_HERE: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

/// A connection to another node.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// What is read of it.
pub(super) type Reader = Either<OwnedReadHalf, ReadHalf<Box<TlsStream<TcpStream>>>>;

/// Where it is written.
pub(super) type Writer = Either<OwnedWriteHalf, WriteHalf<Box<TlsStream<TcpStream>>>>;

/// Parts a connection into its directions.
pub(super) fn split(stream: Stream) -> (Reader, Writer) {
    match stream {
        Either::Left(stream) => {
            let (reader, writer) = stream.into_split();
            (Either::Left(reader), Either::Left(writer))
        }
        Either::Right(stream) => {
            let (reader, writer) = tokio::io::split(stream);
            (Either::Right(reader), Either::Right(writer))
        }
    }
}

/// The node's certificate and key, and the authorities that it trusts.
#[derive(Clone, Debug)]
pub struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    own: Own,
}

impl Tls {
    /// Reads and checks the PEM files: the node's certificate chain, its key, and the authorities
    /// that sign nodes. `in_force`: the certificate that the node shows at present.
    ///
    /// # Errors
    /// A [`TlsError`] that names the file and what is wrong with it.
    pub fn load(
        cert: &Path,
        key: &Path,
        ca: &Path,
        in_force: Option<&Own>,
    ) -> Result<Self, TlsError> {
        let chain = certificates(cert)?;
        let own = Own::judge(cert, &chain[0], in_force)?;
        let private = private_key(key)?;
        let roots = Arc::new(authorities(ca)?);
        let provider = Arc::new(aws_lc_rs::default_provider());

        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|source| TlsError::Verifier { path: ca.to_owned(), source })?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider supports TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private.clone_key())
            .map_err(|source| unusable(cert, key, source))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider supports TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName { roots, provider }))
            .with_client_auth_cert(chain, private)
            .map_err(|source| unusable(cert, key, source))?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Self { server: Arc::new(server), client: Arc::new(client), own })
    }

    /// When the node's certificate expires.
    pub fn not_after(&self) -> Timestamp {
        self.own.not_after()
    }

    /// Opens TLS as the side that dialled: the stream, and what binds proofs to its session.
    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<(Stream, Vec<u8>)> {
        let nobody = ServerName::try_from("node.invalid").expect("it is a host name");
        let stream = TlsConnector::from(Arc::clone(&self.client)).connect(nobody, stream).await?;
        let binding = stream
            .get_ref()
            .1
            .export_keying_material(vec![0; BINDING_BYTES], BINDING_LABEL, None)
            .map_err(io::Error::other)?;
        Ok((Either::Right(Box::new(stream.into())), binding))
    }

    /// Opens TLS as the side that was dialled. When it fails, gives the stream back.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<(Stream, Vec<u8>), (io::Error, TcpStream)> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.server));
        let stream = acceptor.accept(stream).into_fallible().await?;
        let exported =
            stream.get_ref().1.export_keying_material(vec![0; BINDING_BYTES], BINDING_LABEL, None);
        match exported {
            Ok(binding) => Ok((Either::Right(Box::new(stream.into())), binding)),
            Err(error) => Err((io::Error::other(error), stream.into_inner().0)),
        }
    }
}

/// What TLS made of the other side, if the error is one of TLS.
pub(super) fn error_of(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref::<Error>()
}

/// Takes whatever certificate an authority signed, for whatever name.
#[derive(Debug)]
struct AnyName {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
