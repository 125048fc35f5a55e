//! What follows from knowing the cluster's secret: proofs, and a connection's keys.
//!
//! Both sides prove that they know one secret by HMAC-SHA256 (RFC 2104) over their own role and
//! all that was said before: both hellos with their fresh random nonces and, under TLS, the
//! session's exported key (RFC 5705), so that a proof fits one connection and one side of it
//! only. Keys are HKDF-SHA256 (RFC 5869) of the secret, salted with the hash of the same.
//!
//! It never compares proofs in time that depends on them, and never shows a secret.
//!
//! # Caveats
//! Who records connections without TLS and learns the secret later can read them. Who answers or
//! dials in a node's place sees a proof, and can try weak secrets on it; 16 random bytes are
//! beyond that.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::hmac::{self, HMAC_SHA256};

use super::record::{KEY_BYTES, Opener, Sealer};

/// Bytes of a proof.
pub(super) const PROOF_BYTES: usize = 32;

/// Most secrets that are tried; of a longer list the first count.
pub(super) const SECRETS_MAX: usize = 8;

const PROOF_LABEL: &[u8] = b"aegiskv peer proof 1";
const KEY_LABEL: &[u8] = b"aegiskv peer key 1";

/// A proof of knowing a secret, for one side of one connection.
pub(super) type Proof = [u8; PROOF_BYTES];

/// Which side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Dialler,
    Listener,
}

impl Role {
    fn byte(self) -> u8 {
        match self {
            Self::Dialler => b'd',
            Self::Listener => b'l',
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Listener,
            Self::Listener => Self::Dialler,
        }
    }
}

/// The cluster's secrets, the preferred one first. None: whoever reaches the port may talk.
#[derive(Clone, Default)]
pub(super) struct Secrets(Arc<[Vec<u8>]>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// An empty secret is none.
    pub(super) fn new(mut secrets: Vec<Vec<u8>>) -> Self {
        secrets.retain(|secret| !secret.is_empty());
        secrets.truncate(SECRETS_MAX);
        Self(secrets.into())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        self.0.get(index).map(Vec::as_slice)
    }

    /// A proof with each of them.
    pub(super) fn proofs(&self, role: Role, transcript: &[u8]) -> Vec<Proof> {
        self.0.iter().map(|secret| prove(secret, role, transcript)).collect()
    }

    /// The first proof of the other side that one of these secrets confirms: its index and the
    /// secret.
    pub(super) fn confirm(
        &self,
        proofs: &[Proof],
        role: Role,
        transcript: &[u8],
    ) -> Option<(usize, &[u8])> {
        proofs.iter().enumerate().find_map(|(index, proof)| {
            let known = self.0.iter().find(|secret| is_proved(secret, role, transcript, proof))?;
            Some((index, known.as_slice()))
        })
    }
}

/// What both sides have said, as proofs and keys depend on it.
pub(super) fn transcript(dialler: &[u8], listener: &[u8], binding: &[u8]) -> Vec<u8> {
    let mut transcript = Vec::with_capacity(dialler.len() + listener.len() + binding.len() + 24);
    for part in [dialler, listener, binding] {
        transcript.extend_from_slice(&(part.len() as u64).to_le_bytes());
        transcript.extend_from_slice(part);
    }
    transcript
}

fn context(role: Role, transcript: &[u8]) -> Vec<u8> {
    [PROOF_LABEL, &[role.byte()], transcript].concat()
}

/// The proof of one side that it knows `secret`.
pub(super) fn prove(secret: &[u8], role: Role, transcript: &[u8]) -> Proof {
    let key = hmac::Key::new(HMAC_SHA256, secret);
    let tag = hmac::sign(&key, &context(role, transcript));
    tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
}

/// Whether the other side, in `role`, knows `secret`. Takes the same time for every wrong proof.
pub(super) fn is_proved(secret: &[u8], role: Role, transcript: &[u8], proof: &Proof) -> bool {
    let key = hmac::Key::new(HMAC_SHA256, secret);
    hmac::verify(&key, &context(role, transcript), proof).is_ok()
}

/// What seals the bytes of the side `role`, and what opens those of the other side.
pub(super) fn keys(secret: &[u8], role: Role, transcript: &[u8]) -> (Sealer, Opener) {
    (
        Sealer::new(&key(secret, role, transcript)),
        Opener::new(&key(secret, role.other(), transcript)),
    )
}

struct KeyBytes;

impl KeyType for KeyBytes {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

/// The key of the bytes that the side `from` writes.
fn key(secret: &[u8], from: Role, transcript: &[u8]) -> [u8; KEY_BYTES] {
    let salt = Salt::new(HKDF_SHA256, digest(&SHA256, transcript).as_ref());
    let mut key = [0; KEY_BYTES];
    salt.extract(secret)
        .expand(&[KEY_LABEL, &[from.byte()]], KeyBytes)
        .and_then(|okm| okm.fill(&mut key))
        .expect("32 bytes are within what HKDF-SHA256 gives");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_secret_role_and_connection_alone() {
        let said = transcript(b"hello", b"hello back", b"");
        let proof = prove(b"secret", Role::Dialler, &said);
        assert!(is_proved(b"secret", Role::Dialler, &said, &proof));
        assert!(!is_proved(b"secret", Role::Listener, &said, &proof));
        assert!(!is_proved(b"other", Role::Dialler, &said, &proof));
        for other in
            [transcript(b"hell", b"ohello back", b""), transcript(b"hello", b"hello back", b"tls")]
        {
            assert!(!is_proved(b"secret", Role::Dialler, &other, &proof));
        }
    }

    #[test]
    fn one_common_secret_is_enough() {
        let both = Secrets::new(vec![b"new".to_vec(), b"old".to_vec()]);
        let old = Secrets::new(vec![b"old".to_vec()]);
        let confirmed = old.confirm(&both.proofs(Role::Dialler, b"said"), Role::Dialler, b"said");
        assert_eq!(confirmed, Some((1, &b"old"[..])));
        let confirmed = both.confirm(&old.proofs(Role::Dialler, b"said"), Role::Dialler, b"said");
        assert_eq!(confirmed, Some((0, &b"old"[..])));
        let other = Secrets::new(vec![b"other".to_vec()]);
        assert_eq!(other.confirm(&both.proofs(Role::Dialler, b""), Role::Dialler, b""), None);
    }

    #[test]
    fn each_direction_and_each_connection_has_its_own_key() {
        let mut keys = vec![
            key(b"secret", Role::Dialler, b"one"),
            key(b"secret", Role::Listener, b"one"),
            key(b"secret", Role::Dialler, b"two"),
            key(b"other", Role::Dialler, b"one"),
        ];
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 4);
    }

    #[test]
    fn an_empty_secret_is_none_and_no_secret_is_shown() {
        assert!(Secrets::new(vec![Vec::new()]).is_empty());
        assert_eq!(format!("{:?}", Secrets::new(vec![b"hush".to_vec()])), "Secrets(1)");
    }
}
