//! Frames: how messages follow each other in a connection's bytes.
//!
//! Invariant: [`split`] takes any bytes, never panics, and holds no more of them than one frame.
//! It knows nothing of sealing: the bytes come from [`super::record`], opened.
//!
//! A frame, integers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of all that follows |
//! | 1 | type |
//! | 1 | kind, which the handler gives a meaning: one-way and request only |
//! | 8 | number: request, answer (that of its request), ping, pong (that of its ping, or 0) |
//! | 8 | the sender's wall clock, milliseconds since 1970: ping and pong only |
//! | rest | body: one-way, request and answer only |
//!
//! A farewell has one byte behind its type: [`Refusal::code`](super::Refusal).

use bytes::{Buf as _, Bytes, BytesMut};

/// Longest frame, its length field not counted, in bytes.
pub const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of the length field.
pub(super) const LENGTH_BYTES: usize = 4;

const ONE_WAY: u8 = 1;
const REQUEST: u8 = 2;
const ANSWER: u8 = 3;
const PING: u8 = 4;
const PONG: u8 = 5;
const FAREWELL: u8 = 6;

/// A frame without the body that the types with a body have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Expects no answer.
    OneWay { kind: u8 },
    /// Expects the answer of the same number on this connection.
    Request { number: u64, kind: u8 },
    /// The answer to a request.
    Answer { number: u64 },
    /// Are you there?
    Ping { number: u64, wall_millis: u64 },
    /// I am. Number 0 answers no ping: it says only that bytes arrive.
    Pong { number: u64, wall_millis: u64 },
    /// Why the sender closes the connection.
    Farewell { code: u8 },
}

/// A frame that arrived.
pub(super) type Frame = (Head, Bytes);

/// Why bytes are no frame. The connection cannot go on: where the next frame starts is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// It says that it is longer than a frame may be.
    #[error("a frame of {bytes} bytes; the limit is {FRAME_BYTES_MAX}")]
    TooLong {
        /// What it says.
        bytes: usize,
    },
    /// It is of no known type, or shorter than its type.
    #[error("a frame of type {kind} with {bytes} bytes, which is none")]
    Malformed {
        /// The type; 0 where there is not even that.
        kind: u8,
        /// Length.
        bytes: usize,
    },
}

/// Takes the first whole frame off `bytes`; its body shares their memory. `None` while the frame
/// is incomplete: `bytes` then has the capacity for the rest of it.
///
/// # Errors
/// What follows is no frame.
pub(super) fn split(bytes: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { bytes: length });
    }
    let whole = LENGTH_BYTES + length;
    if bytes.len() < whole {
        // At once for all that is missing: growing step by step would copy it again and again.
        bytes.reserve(whole - bytes.len());
        return Ok(None);
    }
    let mut frame = bytes.split_to(whole).freeze();
    frame.advance(LENGTH_BYTES);
    let kind = frame.first().copied().unwrap_or(0);
    head(&mut frame)
        .map(|head| Some((head, frame)))
        .ok_or(FrameError::Malformed { kind, bytes: length })
}

/// Reads a frame's head off it; what has no body must end there.
fn head(frame: &mut Bytes) -> Option<Head> {
    let head = match frame.try_get_u8().ok()? {
        ONE_WAY => Head::OneWay { kind: frame.try_get_u8().ok()? },
        REQUEST => {
            let kind = frame.try_get_u8().ok()?;
            Head::Request { kind, number: frame.try_get_u64_le().ok()? }
        }
        ANSWER => Head::Answer { number: frame.try_get_u64_le().ok()? },
        PING => Head::Ping {
            number: frame.try_get_u64_le().ok()?,
            wall_millis: frame.try_get_u64_le().ok()?,
        },
        PONG => Head::Pong {
            number: frame.try_get_u64_le().ok()?,
            wall_millis: frame.try_get_u64_le().ok()?,
        },
        FAREWELL => Head::Farewell { code: frame.try_get_u8().ok()? },
        _ => return None,
    };
    let has_body = matches!(head, Head::OneWay { .. } | Head::Request { .. } | Head::Answer { .. });
    (has_body || frame.is_empty()).then_some(head)
}

/// Appends a frame to `out`, its body written by `body`, which only appends. Leaves `out` as it
/// was and returns false if the whole is longer than a frame may be or `bytes_max` allows, or if
/// `body` panics.
pub(super) fn append(
    out: &mut Vec<u8>,
    head: Head,
    bytes_max: usize,
    body: impl FnOnce(&mut Vec<u8>),
) -> bool {
    let start = out.len();
    let mut undo = Undo { out, start, kept: false };
    let out = &mut *undo.out;
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    write_head(out, head);
    let body_start = out.len();
    body(out);
    assert!(out.len() >= body_start, "the writer of a frame's body only appends");
    let whole = out.len() - start;
    let length = whole - LENGTH_BYTES;
    if whole > bytes_max || length > FRAME_BYTES_MAX {
        return false;
    }
    let length = u32::try_from(length).expect("FRAME_BYTES_MAX fits 32 bits");
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    undo.kept = true;
    true
}

fn write_head(out: &mut Vec<u8>, head: Head) {
    match head {
        Head::OneWay { kind } => out.extend_from_slice(&[ONE_WAY, kind]),
        Head::Request { number, kind } => {
            out.extend_from_slice(&[REQUEST, kind]);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Head::Answer { number } => {
            out.push(ANSWER);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Head::Ping { number, wall_millis } => {
            out.push(PING);
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&wall_millis.to_le_bytes());
        }
        Head::Pong { number, wall_millis } => {
            out.push(PONG);
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&wall_millis.to_le_bytes());
        }
        Head::Farewell { code } => out.extend_from_slice(&[FAREWELL, code]),
    }
}

/// Takes a frame back that was not finished, also when the writer of its body panics.
struct Undo<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    kept: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.out.truncate(self.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn frame(head: Head, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(append(&mut out, head, usize::MAX, |out| out.extend_from_slice(body)));
        out
    }

    #[test]
    fn a_request_looks_as_documented() {
        let bytes = frame(Head::Request { number: 0x0102, kind: 7 }, b"ab");
        assert_eq!(bytes, [12, 0, 0, 0, 2, 7, 2, 1, 0, 0, 0, 0, 0, 0, b'a', b'b']);
    }

    #[test]
    fn every_frame_comes_out_as_it_went_in() {
        let frames = [
            (Head::OneWay { kind: 0 }, &b"x"[..]),
            (Head::Request { number: u64::MAX, kind: 255 }, b""),
            (Head::Answer { number: 3 }, b"answer"),
            (Head::Ping { number: 4, wall_millis: 5 }, b""),
            (Head::Pong { number: 0, wall_millis: u64::MAX }, b""),
            (Head::Farewell { code: 9 }, b""),
        ];
        let mut bytes = BytesMut::new();
        for (head, body) in frames {
            bytes.extend_from_slice(&frame(head, body));
        }
        for (head, body) in frames {
            assert_eq!(split(&mut bytes), Ok(Some((head, Bytes::from_static(body)))));
        }
        assert_eq!(split(&mut bytes), Ok(None));
    }

    #[test]
    fn room_for_the_rest_of_a_large_frame_is_made_once() {
        let mut bytes = BytesMut::from(&[0, 0, 0x10, 0, ONE_WAY, 1][..]);
        assert_eq!(split(&mut bytes), Ok(None));
        assert!(bytes.capacity() >= 4 + 0x10_0000);
        let start = bytes.as_ptr();
        bytes.resize(0x8_0000, 0);
        assert_eq!(split(&mut bytes), Ok(None));
        assert_eq!(bytes.as_ptr(), start);
    }

    #[test]
    fn what_cannot_be_a_frame_is_refused() {
        let too_long = &mut BytesMut::from(&[1, 0, 0, 4, ONE_WAY][..]);
        assert_eq!(split(too_long), Err(FrameError::TooLong { bytes: 67_108_865 }));
        for malformed in [
            &[0, 0, 0, 0][..],
            &[1, 0, 0, 0, 0],
            &[2, 0, 0, 0, 77, 1],
            &[1, 0, 0, 0, ONE_WAY],
            &[2, 0, 0, 0, REQUEST, 1],
            &[3, 0, 0, 0, FAREWELL, 1, 2],
        ] {
            let error = split(&mut BytesMut::from(malformed));
            assert!(matches!(error, Err(FrameError::Malformed { .. })), "{malformed:?}: {error:?}");
        }
    }

    #[test]
    fn a_frame_over_the_bound_leaves_no_trace() {
        let mut out = frame(Head::OneWay { kind: 1 }, b"first");
        let before = out.clone();
        let kind = Head::OneWay { kind: 2 };
        assert!(!append(&mut out, kind, 16, |out| out.extend_from_slice(&[0; 11])));
        assert_eq!(out, before);
        assert!(append(&mut out, kind, 16, |out| out.extend_from_slice(&[0; 10])));
        assert_eq!(out.len(), before.len() + 16);
    }

    #[test]
    fn a_writer_that_panics_leaves_no_half_frame() {
        let mut out = vec![1];
        let write = std::panic::AssertUnwindSafe(|| {
            append(&mut out, Head::OneWay { kind: 1 }, 100, |out| {
                out.push(1);
                panic!("as the test wants it");
            })
        });
        assert!(std::panic::catch_unwind(write).is_err());
        assert_eq!(out, [1]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_without_panic(chunks in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..40), 0..20,
        )) {
            let mut bytes = BytesMut::new();
            for chunk in chunks {
                bytes.extend_from_slice(&chunk);
                while let Ok(Some(_)) = split(&mut bytes) {}
            }
        }

        #[test]
        fn small_frames_of_any_content_are_split_without_panic(
            frames in prop::collection::vec(prop::collection::vec(0_u8..9, 0..24), 0..20),
        ) {
            let mut bytes = BytesMut::new();
            for frame in &frames {
                bytes.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_le_bytes());
                bytes.extend_from_slice(frame);
            }
            let mut left = frames.len();
            while left > 0 {
                left -= 1;
                prop_assert!(!matches!(split(&mut bytes), Ok(None)));
            }
            prop_assert_eq!(bytes.len(), 0);
        }

        #[test]
        fn frames_survive_any_partition_of_the_bytes(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..10),
            step in 1_usize..97,
        ) {
            let mut wire = Vec::new();
            for (number, body) in bodies.iter().enumerate() {
                wire.extend(frame(Head::Answer { number: number as u64 }, body));
            }
            let mut bytes = BytesMut::new();
            let mut seen = Vec::new();
            for chunk in wire.chunks(step) {
                bytes.extend_from_slice(chunk);
                while let Some((_, body)) = split(&mut bytes).unwrap() {
                    seen.push(body.to_vec());
                }
            }
            prop_assert_eq!(seen, bodies);
        }
    }
}
