//! Seals datagrams with the cluster's secrets, and opens them.
//!
//! The key of a session is HKDF-SHA256 (RFC 5869) over a secret, salted with the cluster's id, with
//! the session in the info. A session is 128 random bits drawn at each start, so no two processes
//! and no two runs share a key; within a session the nonce is the datagram's counter, which never
//! repeats. So no pair of key and nonce is used twice, which is all that AES-GCM asks for.
//!
//! # Caveats
//! A virtual machine that is set back to an earlier state of its memory repeats counters. Its peers
//! refuse them as replays until the counter has caught up, but two texts under one nonce may have
//! been seen on the wire by then: restart the process after such a step.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};

use super::datagram::{
    DATAGRAM_BYTES_MAX, Envelope, Form, Frame, HEADER_BYTES, Header, Session, TRAILER_BYTES_MAX,
    write_body,
};
use super::identity::WireError;

/// What the derived keys are for; another use of the same secret has another label.
const LABEL: &[u8] = b"aegiskv gossip 1";

/// The cluster's secrets, the first for sending.
pub(super) struct Keyring {
    cluster_id: u128,
    secrets: Vec<Prk>,
}

/// Why a datagram cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// It is sealed with none of the secrets, or was changed on its way.
    WrongSecret,
    /// It is in the clear, and this node has a secret.
    Plain,
    /// Its checksum does not fit.
    Damaged,
}

impl Keyring {
    /// The secrets of a cluster; empty ones count as none.
    pub(super) fn new(cluster_id: u128, secrets: &[Vec<u8>]) -> Self {
        let salt = Salt::new(HKDF_SHA256, &cluster_id.to_be_bytes());
        let secrets = secrets.iter().filter(|secret| !secret.is_empty());
        Self { cluster_id, secrets: secrets.map(|secret| salt.extract(secret)).collect() }
    }

    /// The keys of a session, one for each secret.
    pub(super) fn keys(&self, session: Session) -> Keys {
        let session = session.0.to_be_bytes();
        let key = |secret: &Prk| {
            let info = [LABEL, &session];
            let okm = secret.expand(&info, &AES_256_GCM).expect("HKDF-SHA256 gives 32 bytes");
            LessSafeKey::new(UnboundKey::from(okm))
        };
        Keys(self.secrets.iter().map(key).collect())
    }

    /// Writes a datagram, sealed if there is a secret. `keys` are those of `session`.
    ///
    /// # Errors
    /// When the frame is too long for a datagram.
    pub(super) fn seal(
        &self,
        keys: &Keys,
        session: Session,
        counter: u64,
        envelope: Envelope,
        frame: &Frame,
    ) -> Result<Vec<u8>, WireError> {
        let key = keys.0.first();
        let form = if key.is_some() { Form::Sealed } else { Form::Plain };
        let header = Header { form, cluster_id: self.cluster_id, session, counter };
        let mut datagram = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        header.write(&mut datagram);
        write_body(envelope, frame, &mut datagram)?;
        match key {
            None => {
                let sum = crc32c::crc32c(&datagram);
                datagram.extend_from_slice(&sum.to_be_bytes());
            }
            Some(key) => {
                let (head, body) = datagram.split_at_mut(HEADER_BYTES);
                let tag = key
                    .seal_in_place_separate_tag(nonce(counter), Aad::from(head), body)
                    .expect("a datagram is far below what AES-GCM seals at once");
                datagram.extend_from_slice(tag.as_ref());
            }
        }
        Ok(datagram)
    }
}

/// The keys of one session, in the order of the secrets; none where there is no secret.
pub(super) struct Keys(Vec<LessSafeKey>);

impl Keys {
    /// The body of a datagram whose header is `header`.
    ///
    /// # Errors
    /// [`Unopened`] when it was not sealed as this cluster seals.
    pub(super) fn open(&self, header: &Header, datagram: &[u8]) -> Result<Vec<u8>, Unopened> {
        let (head, rest) = datagram.split_at(HEADER_BYTES);
        match header.form {
            Form::Plain if !self.0.is_empty() => Err(Unopened::Plain),
            Form::Plain => {
                let (body, sum) = rest.split_at(rest.len() - 4);
                let expected = crc32c::crc32c(&datagram[..datagram.len() - 4]);
                if sum == expected.to_be_bytes() {
                    Ok(body.to_vec())
                } else {
                    Err(Unopened::Damaged)
                }
            }
            Form::Sealed => {
                let (body, tag) = rest.split_at(rest.len() - TRAILER_BYTES_MAX);
                let mut opened = vec![0; body.len()];
                // Not in place: a key that does not fit leaves what it worked on in ruins.
                let fits = |key: &LessSafeKey| {
                    let aad = Aad::from(head);
                    key.open_separate_gather(nonce(header.counter), aad, body, tag, &mut opened)
                        .is_ok()
                };
                if self.0.iter().any(fits) { Ok(opened) } else { Err(Unopened::WrongSecret) }
            }
        }
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::NodeId;

    const BYE: Frame = Frame::Bye { generation: 5 };

    fn ring(cluster_id: u128, secrets: &[&str]) -> Keyring {
        let secrets: Vec<Vec<u8>> = secrets.iter().map(|s| s.as_bytes().to_vec()).collect();
        Keyring::new(cluster_id, &secrets)
    }

    fn sealed(ring: &Keyring, counter: u64) -> Vec<u8> {
        let envelope = Envelope { from: NodeId(1), life: 2, to: Some(NodeId(3)), token: Some(4) };
        ring.seal(&ring.keys(Session(6)), Session(6), counter, envelope, &BYE).unwrap()
    }

    fn opened(ring: &Keyring, datagram: &[u8]) -> Result<Frame, Unopened> {
        let header = Header::parse(datagram).unwrap();
        let body = ring.keys(header.session).open(&header, datagram)?;
        Ok(super::super::datagram::read_body(&body).unwrap().1)
    }

    #[test]
    fn whoever_has_the_secret_opens_whoever_has_not_does_not() {
        let datagram = sealed(&ring(1, &["new", "old"]), 1);
        assert_eq!(opened(&ring(1, &["new"]), &datagram), Ok(BYE));
        assert_eq!(opened(&ring(1, &["other", "new"]), &datagram), Ok(BYE));
        assert_eq!(opened(&ring(1, &["old"]), &datagram), Err(Unopened::WrongSecret));
        assert_eq!(opened(&ring(1, &[]), &datagram), Err(Unopened::WrongSecret));
    }

    #[test]
    fn a_cluster_without_a_secret_checks_a_sum_and_one_with_a_secret_takes_nothing_plain() {
        let mut datagram = sealed(&ring(1, &[]), 1);
        assert_eq!(opened(&ring(1, &[]), &datagram), Ok(BYE));
        assert_eq!(opened(&ring(1, &[""]), &datagram), Ok(BYE));
        assert_eq!(opened(&ring(1, &["s"]), &datagram), Err(Unopened::Plain));
        datagram[60] ^= 1;
        assert_eq!(opened(&ring(1, &[]), &datagram), Err(Unopened::Damaged));
    }

    #[test]
    fn no_bit_of_a_sealed_datagram_can_be_changed() {
        let ring = ring(1, &["s"]);
        let datagram = sealed(&ring, 1);
        for bit in 32..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&ring, &changed), Err(Unopened::WrongSecret), "bit {bit}");
        }
    }

    #[test]
    fn neither_counter_nor_cluster_shares_a_key_stream() {
        let ring = ring(1, &["s"]);
        let body = |datagram: &[u8]| datagram[HEADER_BYTES..].to_vec();
        assert_ne!(body(&sealed(&ring, 1)), body(&sealed(&ring, 2)));
        assert_ne!(body(&sealed(&ring, 1)), body(&sealed(&self::ring(2, &["s"]), 1)));
    }
}
