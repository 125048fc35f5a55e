//! Records: how a connection's bytes are sealed where a secret is set and TLS does not do it.
//!
//! A record is 4 bytes of length, little-endian, then that many bytes of AES-256-GCM ciphertext
//! with its tag of 16 bytes at the end (NIST SP 800-38D). The length is authenticated with it. The
//! nonce is the record's number in its direction, from 0, so a record that was dropped, repeated
//! or moved does not open. Each direction of each connection has a key of its own, and the number
//! is never repeated under it: 64 bits do not run out. Frames may lie across records.
//!
//! Without sealing the bytes travel as they are, and this module only buffers them.

use std::io;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::frame::{self, Frame, FrameError};

/// Most bytes that are sealed into one record, or written at once.
pub(super) const RECORD_BYTES_MAX: usize = 256 * 1024;

/// Least room that a read finds.
const READ_BYTES: usize = 64 * 1024;

const LENGTH_BYTES: usize = 4;
const TAG_BYTES: usize = 16;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;

/// Why what arrives makes no sense. The connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum InboundError {
    /// The connection is over.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A record whose length is not one of a record.
    #[error("a record of {bytes} bytes, which is none")]
    Length {
        /// What it says.
        bytes: usize,
    },
    /// A record that was not sealed with the connection's key, or not in this place.
    #[error("a record that does not open: the bytes were changed on their way")]
    Unsealed,
    /// No frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// One direction's key, and the number of its next record.
struct Direction {
    key: LessSafeKey,
    number: u64,
}

impl Direction {
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key is as long as AES-256 needs");
        Self { key: LessSafeKey::new(key), number: 0 }
    }

    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.number.to_be_bytes());
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Seals what goes out.
pub(super) struct Sealer {
    direction: Direction,
    record: Vec<u8>,
}

impl Sealer {
    /// With the key of the direction out.
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self { direction: Direction::new(key), record: Vec::new() }
    }

    /// The record of at most [`RECORD_BYTES_MAX`] bytes.
    pub(super) fn seal(&mut self, plain: &[u8]) -> &[u8] {
        let sealed = plain.len() + TAG_BYTES;
        let length = u32::try_from(sealed).expect("RECORD_BYTES_MAX fits 32 bits").to_le_bytes();
        self.record.resize(LENGTH_BYTES + sealed, 0);
        self.record[..LENGTH_BYTES].copy_from_slice(&length);
        let (text, tag) = self.record[LENGTH_BYTES..].split_at_mut(plain.len());
        let nonce = self.direction.next_nonce();
        let aad = Aad::from(length);
        self.direction
            .key
            .seal_out_of_place_scatter(nonce, aad, plain, text, &[], tag)
            .expect("the output is as long as the input and the tag");
        &self.record
    }
}

/// Opens what comes in.
pub(super) struct Opener {
    direction: Direction,
    raw: BytesMut,
}

impl Opener {
    /// With the key of the direction in.
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self { direction: Direction::new(key), raw: BytesMut::new() }
    }

    /// Opens the whole records that have arrived, and appends what was in them to `plain`.
    fn open(&mut self, plain: &mut BytesMut) -> Result<(), InboundError> {
        while let Some(length) = self.raw.first_chunk::<LENGTH_BYTES>() {
            let length = *length;
            let sealed = u32::from_le_bytes(length) as usize;
            if !(TAG_BYTES..=RECORD_BYTES_MAX + TAG_BYTES).contains(&sealed) {
                return Err(InboundError::Length { bytes: sealed });
            }
            let whole = LENGTH_BYTES + sealed;
            if self.raw.len() < whole {
                self.raw.reserve(whole - self.raw.len());
                return Ok(());
            }
            self.open_one(length, whole, plain).map_err(|Unspecified| InboundError::Unsealed)?;
            self.raw.advance(whole);
        }
        Ok(())
    }

    fn open_one(
        &mut self,
        length: [u8; LENGTH_BYTES],
        whole: usize,
        plain: &mut BytesMut,
    ) -> Result<(), Unspecified> {
        let (text, tag) = self.raw[LENGTH_BYTES..whole].split_at(whole - LENGTH_BYTES - TAG_BYTES);
        let nonce = self.direction.next_nonce();
        let start = plain.len();
        plain.resize(start + text.len(), 0);
        let aad = Aad::from(length);
        self.direction.key.open_separate_gather(nonce, aad, text, tag, &mut plain[start..])
    }
}

/// What comes in over a connection, frame by frame.
pub(super) struct Inbound<R> {
    stream: R,
    opener: Option<Opener>,
    plain: BytesMut,
}

impl<R: AsyncRead + Unpin> Inbound<R> {
    /// Reads from `stream`, whose bytes `opener` opens if they are sealed.
    pub(super) fn new(stream: R, opener: Option<Opener>) -> Self {
        Self { stream, opener, plain: BytesMut::new() }
    }

    /// Reads once; take the frames that are whole thereafter with [`Inbound::next`]. May be
    /// dropped while it waits, without loss.
    ///
    /// # Errors
    /// The connection is over, or what arrived was not sealed as it should.
    pub(super) async fn fill(&mut self) -> Result<(), InboundError> {
        let buffer = match &mut self.opener {
            None => &mut self.plain,
            Some(opener) => &mut opener.raw,
        };
        if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
            buffer.reserve(READ_BYTES);
        }
        if self.stream.read_buf(buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match &mut self.opener {
            None => Ok(()),
            Some(opener) => opener.open(&mut self.plain),
        }
    }

    /// The next frame, if it is whole.
    ///
    /// # Errors
    /// What follows is no frame.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, InboundError> {
        Ok(frame::split(&mut self.plain)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; KEY_BYTES] = [7; KEY_BYTES];

    fn opened(bytes: &[u8]) -> Result<Vec<u8>, InboundError> {
        let mut opener = Opener::new(&KEY);
        let mut plain = BytesMut::new();
        for piece in bytes.chunks(5) {
            opener.raw.extend_from_slice(piece);
            opener.open(&mut plain)?;
        }
        Ok(plain.to_vec())
    }

    #[test]
    fn records_open_in_their_order_alone() {
        let mut sealer = Sealer::new(&KEY);
        let first = sealer.seal(b"first ").to_vec();
        let second = sealer.seal(b"second").to_vec();
        assert_eq!(first.len(), 4 + 6 + 16);
        assert!(!first.windows(5).any(|window| window == b"first"));
        assert_eq!(opened(&[first.clone(), second.clone()].concat()).unwrap(), b"first second");
        let swapped = opened(&[second.clone(), first.clone()].concat());
        assert!(matches!(swapped, Err(InboundError::Unsealed)));
        let repeated = opened(&[first.clone(), first].concat());
        assert!(matches!(repeated, Err(InboundError::Unsealed)));
    }

    #[test]
    fn a_changed_bit_anywhere_does_not_open() {
        let record = Sealer::new(&KEY).seal(b"value").to_vec();
        for at in 0..record.len() {
            let mut changed = record.clone();
            changed[at] ^= 1;
            match opened(&changed) {
                Ok(plain) => assert!(plain.is_empty(), "changed at {at}"),
                Err(InboundError::Unsealed | InboundError::Length { .. }) => {}
                Err(other) => panic!("changed at {at}: {other}"),
            }
        }
    }

    #[test]
    fn another_key_does_not_open() {
        let record = Sealer::new(&[8; KEY_BYTES]).seal(b"value").to_vec();
        assert!(matches!(opened(&record), Err(InboundError::Unsealed)));
    }

    #[test]
    fn a_length_that_no_record_has_is_refused_before_its_bytes_are_awaited() {
        for length in [0_u32, 15, 262_161, u32::MAX] {
            let error = opened(&length.to_le_bytes());
            assert!(matches!(error, Err(InboundError::Length { .. })), "{length}");
        }
        assert!(opened(&262_160_u32.to_le_bytes()).unwrap().is_empty());
    }
}
