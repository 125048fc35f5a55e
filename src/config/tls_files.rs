//! Whether the TLS files hold what their keys say, and belong together.
//!
//! Invariant: no error repeats a file's content, which may be a private key.

use std::path::{Path, PathBuf};

use ::aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls::{Error as RustlsError, InconsistentKeys};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::check::{read_regular, shown};
use super::keys::Config;
use crate::tls::{Own, TlsError};

/// Largest file of certificates or keys that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What stands in the files that keys name, as digests: enough to see that it has changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents(Vec<(&'static str, digest::Digest)>);

impl Contents {
    /// Reads the files. One that cannot be read just now is left out.
    pub(super) fn of(config: &Config) -> Self {
        let files: [(&str, &Option<PathBuf>); 3] = [
            ("tls_cert_file", &config.tls_cert_file),
            ("tls_key_file", &config.tls_key_file),
            ("tls_ca_file", &config.tls_ca_file),
        ];
        let digests = files.into_iter().filter_map(|(key, path)| {
            let content = read_regular(path.as_ref()?, FILE_BYTES_MAX).ok()?;
            Some((key, digest::digest(&digest::SHA256, &content)))
        });
        Self(digests.collect())
    }

    /// The keys whose files have another content in `other`, where they have one.
    pub(super) fn differences(&self, other: &Self) -> Vec<&'static str> {
        let of = |contents: &Self, wanted: &str| {
            let found = contents.0.iter().find(|(key, _)| *key == wanted);
            found.map(|(_, digest)| digest.as_ref().to_vec())
        };
        let keys = other.0.iter().map(|(key, _)| *key);
        keys.filter(|key| of(self, key) != of(other, key)).collect()
    }
}

/// What is wrong with a file, and how to mend it.
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) mend: &'static str,
}

/// Reads a file's certificates; there is at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let pem = read(path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    certificates.ok().filter(|certificates| !certificates.is_empty()).ok_or_else(|| Fault {
        what: format!("{} holds no certificate in PEM", shown(path)),
        mend: "name a file that begins with -----BEGIN CERTIFICATE-----",
    })
}

/// Whether a node can start with this certificate of the file now.
pub(super) fn in_time(path: &Path, certificate: &CertificateDer<'static>) -> Result<(), Fault> {
    let judged = Own::judge(path, certificate, None);
    judged.map(drop).map_err(|error| match &error {
        TlsError::Expired { path, on } => Fault {
            what: format!("the certificate in {} expired on {on}", shown(path)),
            mend: "renew it",
        },
        TlsError::NotYetValid { path, on } => Fault {
            what: format!("the certificate in {} is not valid before {on}", shown(path)),
            mend: "check this machine's clock",
        },
        other => Fault { what: other.to_string(), mend: "name another certificate" },
    })
}

/// Reads a file's private key.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Fault> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| Fault {
        what: format!("{} holds no private key in PEM", shown(path)),
        mend: "name a file with an unencrypted PKCS#8, SEC1 or PKCS#1 key",
    })
}

/// Whether the key is one that can sign, and the certificate's own; else the setting at fault, too.
pub(super) fn pair(
    certificates: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<(), (&'static str, Fault)> {
    let fault = |key, what: &str, mend| Err((key, Fault { what: what.to_owned(), mend }));
    let Ok(key) = any_supported_type(key) else {
        let mend = "make an ECDSA, Ed25519 or RSA key of 2048 bits or more";
        return fault("tls_key_file", "is of a kind that TLS cannot use here", mend);
    };
    match CertifiedKey::new(certificates, key).keys_match() {
        Ok(()) | Err(RustlsError::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(RustlsError::InconsistentKeys(_)) => fault(
            "tls_key_file",
            "does not belong to the certificate in tls_cert_file",
            "name the key that the certificate was made for",
        ),
        Err(_) => fault(
            "tls_cert_file",
            "begins with a certificate that TLS cannot use, such as one of X.509 version 1",
            "make one of version 3 with its host names as subjectAltName; `aegiskv certs` does",
        ),
    }
}

/// Whether others' certificates can be checked against those in the file.
pub(super) fn authorities(path: &Path) -> Result<(), Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|_| Fault {
            what: format!("{} holds a certificate that cannot be used", shown(path)),
            mend: "name the CA's own X.509 certificates",
        })?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    read_regular(path, FILE_BYTES_MAX).map_err(|error| Fault {
        what: format!("{} cannot be read: {error}", shown(path)),
        mend: "name a file that this user can read",
    })
}
