//! Certificates and keys from PEM files, for clients' connections and for those between nodes.
//!
//! Invariant: what is returned was read whole, understood and, where it has a time, is valid now or
//! in force already.
//! It never keeps a file's content, and no error repeats any of it.

use std::fs;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::server::VerifierBuilderError;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::error::X509Error;
use x509_parser::nom;

use crate::entry::Timestamp;

/// Why files cannot serve for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; check tls_cert_file, tls_key_file, tls_ca_file and the files' permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not PEM where it should be.
    #[error("{} is damaged at {part}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Which part of it.
        part: String,
        /// Why.
        source: pem::Error,
    },
    /// A file lacks what it is named for.
    #[error("{} holds no {what} in PEM ('-----BEGIN …')", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
    /// A certificate is not X.509.
    #[error("the certificate in {} cannot be understood: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: nom::Err<X509Error>,
    },
    /// The certificate's time is over.
    #[error("the certificate in {} expired on {on}; renew it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        on: String,
    },
    /// The certificate's time has not come.
    #[error("the certificate in {} is not valid before {on}; check this machine's clock", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// From when on.
        on: String,
    },
    /// Certificate and key are of different pairs.
    #[error("the key in {} does not belong to the certificate in {}", key.display(), cert.display())]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// Certificate and key cannot be used.
    #[error("the certificate in {} and the key in {} cannot be used: {source}", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A certificate of the CA file cannot be an authority.
    #[error("certificate {number} in {} cannot be an authority: {source}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Which of its certificates, from 1.
        number: usize,
        /// Why.
        source: rustls::Error,
    },
    /// The authorities cannot verify anyone.
    #[error("others cannot be verified by the authorities in {}: {source}", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
    /// Client certificates are required, and nothing says whose.
    #[error(
        "tls_client_auth is required, but tls_ca_file is not set; name the file of the authorities that sign clients"
    )]
    NoAuthorities,
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// The certificates in a PEM file, the node's own first. There is at least one.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let mut chain = Vec::new();
    for (n, parsed) in CertificateDer::pem_slice_iter(&bytes).enumerate() {
        chain.push(parsed.map_err(|source| TlsError::Pem {
            path: path.to_owned(),
            part: format!("certificate {}", n + 1),
            source,
        })?);
    }
    match chain.is_empty() {
        true => Err(TlsError::Missing { path: path.to_owned(), what: "certificate" }),
        false => Ok(chain),
    }
}

/// The private key in a PEM file.
///
/// # Errors
/// The file cannot be read, or holds no key.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|source| match source {
        pem::Error::NoItemsFound => {
            TlsError::Missing { path: path.to_owned(), what: "private key" }
        }
        source => {
            TlsError::Pem { path: path.to_owned(), part: "the private key".to_owned(), source }
        }
    })
}

/// The authorities in a PEM file. There is at least one.
///
/// # Errors
/// The file cannot be read, or holds something else than authorities' certificates.
pub fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (n, certificate) in certificates(path)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|source| TlsError::Authority {
            path: path.to_owned(),
            number: n + 1,
            source,
        })?;
    }
    Ok(roots)
}

/// A node's own certificate.
#[derive(Clone, Debug)]
pub struct Own {
    certificate: CertificateDer<'static>,
    not_after: Timestamp,
}

impl Own {
    /// Takes the certificate, read from `path`, with which a node is to show itself. The one that
    /// is in force already is taken whatever the time: refusing it would mend nothing.
    ///
    /// # Errors
    /// It is not X.509, or its time has not come or is over.
    pub fn judge(
        path: &Path,
        certificate: &CertificateDer<'static>,
        in_force: Option<&Self>,
    ) -> Result<Self, TlsError> {
        if let Some(same) = in_force.filter(|own| own.certificate == *certificate) {
            return Ok(same.clone());
        }
        let not_after = validity(path, certificate)?;
        Ok(Self { certificate: certificate.clone(), not_after })
    }

    /// When it expires.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// Checks that a certificate is valid now; until when it is.
fn validity(path: &Path, certificate: &CertificateDer<'_>) -> Result<Timestamp, TlsError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|source| TlsError::Certificate { path: path.to_owned(), source })?;
    let validity = parsed.validity();
    let (from, until) = (validity.not_before, validity.not_after);
    let now = i64::try_from(Timestamp::now().0 / 1000).unwrap_or(i64::MAX);
    if until.timestamp() < now {
        return Err(TlsError::Expired { path: path.to_owned(), on: until.to_string() });
    }
    if from.timestamp() > now {
        return Err(TlsError::NotYetValid { path: path.to_owned(), on: from.to_string() });
    }
    Ok(Timestamp(u64::try_from(until.timestamp()).unwrap_or(0).saturating_mul(1000)))
}

/// Why rustls takes no certificate and key together that came from those files.
pub fn unusable(cert: &Path, key: &Path, source: rustls::Error) -> TlsError {
    let (cert, key) = (cert.to_owned(), key.to_owned());
    match source {
        rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch { cert, key },
        source => TlsError::Unusable { cert, key, source },
    }
}
