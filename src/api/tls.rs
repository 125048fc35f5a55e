//! TLS for the client port: certificates from files, checked before they are used.
//!
//! A [`Material`] is complete and consistent or does not exist, so a reload either takes effect as
//! a whole or leaves the old one in force.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;

use crate::tls::{Own, authorities, certificates, private_key, unusable};

pub use crate::tls::TlsError;

/// Protocols offered under TLS, the preferred one first (ALPN, RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They need none.
    #[default]
    None,
    /// They need one that the CA file's authorities signed.
    Required,
}

/// Certificates and settings that connections are accepted with.
#[derive(Clone, Debug)]
pub struct Material {
    config: Arc<ServerConfig>,
    own: Own,
}

impl Material {
    /// Reads and checks the PEM files: the node's certificate chain, its key, and the authorities
    /// that sign clients. `in_force`: the certificate that the node shows at present.
    ///
    /// # Errors
    /// A [`TlsError`] that names the file and what is wrong with it: unreadable, damaged, expired,
    /// of another key, or missing where client certificates are required.
    pub fn load(
        cert: &Path,
        key: &Path,
        ca: Option<&Path>,
        client_auth: ClientAuth,
        in_force: Option<&Own>,
    ) -> Result<Self, TlsError> {
        let chain = certificates(cert)?;
        let own = Own::judge(cert, &chain[0], in_force)?;
        let private = private_key(key)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider supports TLS 1.2 and 1.3");
        let builder = match (client_auth, ca) {
            (ClientAuth::None, _) => builder.with_no_client_auth(),
            (ClientAuth::Required, None) => return Err(TlsError::NoAuthorities),
            (ClientAuth::Required, Some(ca)) => {
                let roots = Arc::new(authorities(ca)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|source| TlsError::Verifier { path: ca.to_owned(), source })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_single_cert(chain, private).map_err(|e| unusable(cert, key, e))?;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        Ok(Self { config: Arc::new(config), own })
    }

    /// The node's certificate.
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// What rustls takes.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}
