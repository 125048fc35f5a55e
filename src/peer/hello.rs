//! The messages by which two nodes introduce themselves, as bytes.
//!
//! Every message, in this and all later versions of the protocol, begins alike, so that nodes of
//! different versions can tell each other so. Integers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `AEGISKV` and a line feed |
//! | 2 | version of the protocol that the sender speaks |
//! | 1 | type of message |
//! | 2 | length of what follows, at most 4,083 |
//!
//! Then, by type, in postcard: 1 a [`Hello`]; 2 the dialler's proofs, one for each of its secrets;
//! 3 the listener's welcome, with its proof for the secret that it chose; 4 the code of a
//! [`Refusal`](super::Refusal), or 0 to a node that has dialled itself.
//!
//! Never panics, whatever the bytes, and holds at most [`HELLO_BYTES_MAX`] of them.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::secret::{PROOF_BYTES, Proof, SECRETS_MAX};
use crate::topology::NodeId;

/// The version of the protocol that this code speaks.
pub(super) const VERSION: u16 = 1;

/// Longest message of an introduction, in bytes.
pub(super) const HELLO_BYTES_MAX: usize = 4 * 1024;

/// What every message begins with.
pub(super) const MAGIC: [u8; 8] = *b"AEGISKV\n";

const HEAD_BYTES: usize = MAGIC.len() + 5;

/// Longest name of a node or version that is accepted, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Longest address that is accepted: a host name and a port, in bytes.
const ADDR_BYTES_MAX: usize = 253 + 6;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its cluster; `None` for a newborn that is of none yet.
    pub cluster_id: Option<u128>,
    /// Its number there, once it is a member.
    pub node: Option<NodeId>,
    /// Its name (`node_id`).
    pub name: String,
    /// Changes when it loses its memory.
    pub life: u64,
    /// The version of AegisKV that it runs.
    pub version: String,
    /// How many shards it is set to.
    pub num_shards: u16,
    /// Where it is to be dialled: host:port.
    pub peer_addr: String,
}

impl Identity {
    /// Whether it has a cluster and a number in it.
    pub fn is_member(&self) -> bool {
        self.cluster_id.is_some() && self.node.is_some()
    }

    /// Whether its texts are such as may stand in a log line.
    pub(super) fn is_sound(&self) -> bool {
        let sound = |text: &str, bytes_max: usize| {
            !text.is_empty() && text.len() <= bytes_max && !text.contains(char::is_control)
        };
        sound(&self.name, NAME_BYTES_MAX)
            && sound(&self.version, NAME_BYTES_MAX)
            && sound(&self.peer_addr, ADDR_BYTES_MAX)
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// A member's connection to another, kept.
    Link,
    /// One request.
    Knock,
}

/// The first that each side says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Who it is.
    pub(super) identity: Identity,
    /// A random number of the process: tells two with the same identity apart.
    pub(super) instance: u64,
    /// Random, and fresh for this connection.
    pub(super) nonce: [u8; 32],
    /// What the dialler wants; the listener repeats it.
    pub(super) purpose: Purpose,
}

/// A message of an introduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Hello(Hello),
    Proofs(Vec<Proof>),
    /// The place, among the dialler's proofs, of the one that convinced, and the proof with the
    /// same secret; `None` where neither side has any.
    Welcome(Option<(u8, Proof)>),
    Refused(u8),
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HelloError {
    /// They begin otherwise.
    #[error("it begins with byte {first:#04x}")]
    Foreign {
        /// The first byte.
        first: u8,
    },
    /// It says that it is longer than it may be.
    #[error("an introduction of {bytes} bytes; the limit is {HELLO_BYTES_MAX}")]
    TooLong {
        /// What it says.
        bytes: usize,
    },
    /// Its content is not what its type says.
    #[error("a damaged introduction of type {kind}")]
    Damaged {
        /// Its type.
        kind: u8,
    },
    /// The connection ended within it.
    #[error("it ends in the middle of its introduction")]
    Ended,
}

/// Why no message was read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("protocol version {0}")]
    Version(u16),
    #[error(transparent)]
    Hello(#[from] HelloError),
}

impl Message {
    /// The message's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Hello(hello) => (1, postcard::to_stdvec(hello)),
            Self::Proofs(proofs) => (2, postcard::to_stdvec(proofs)),
            Self::Welcome(proof) => (3, postcard::to_stdvec(proof)),
            Self::Refused(code) => (4, postcard::to_stdvec(code)),
        };
        with_head(VERSION, kind, &body.expect("plain data goes into a Vec"))
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, HelloError> {
        let message = match kind {
            1 => postcard::from_bytes(body).map(Self::Hello),
            2 => postcard::from_bytes(body).map(Self::Proofs),
            3 => postcard::from_bytes(body).map(Self::Welcome),
            4 => postcard::from_bytes(body).map(Self::Refused),
            _ => return Err(HelloError::Damaged { kind }),
        };
        let sound = |message: &Self| match message {
            Self::Hello(hello) => hello.identity.is_sound(),
            Self::Proofs(proofs) => proofs.len() <= SECRETS_MAX,
            Self::Welcome(_) | Self::Refused(_) => true,
        };
        message.ok().filter(sound).ok_or(HelloError::Damaged { kind })
    }
}

pub(super) fn with_head(version: u16, kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("an identity is far below HELLO_BYTES_MAX");
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Reads one message, and no byte beyond it: what it says, and its bytes.
///
/// # Errors
/// What arrives is no message, or one of another version; or the connection ended.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<(Message, Vec<u8>), ReadError> {
    let mut bytes = vec![0; HEAD_BYTES];
    stream.read_exact(&mut bytes[..1]).await?;
    if bytes[0] != MAGIC[0] {
        return Err(HelloError::Foreign { first: bytes[0] }.into());
    }
    read_rest(stream, &mut bytes[1..]).await?;
    if !bytes.starts_with(&MAGIC) {
        return Err(HelloError::Foreign { first: bytes[0] }.into());
    }
    let [.., version_low, version_high, kind, length_low, length_high] = bytes[..] else {
        unreachable!("the head was allocated with its length");
    };
    let version = u16::from_le_bytes([version_low, version_high]);
    if version != VERSION {
        return Err(ReadError::Version(version));
    }
    let whole = HEAD_BYTES + usize::from(u16::from_le_bytes([length_low, length_high]));
    if whole > HELLO_BYTES_MAX {
        return Err(HelloError::TooLong { bytes: whole }.into());
    }
    bytes.resize(whole, 0);
    read_rest(stream, &mut bytes[HEAD_BYTES..]).await?;
    let message = Message::decode(kind, &bytes[HEAD_BYTES..])?;
    Ok((message, bytes))
}

/// Reads further bytes of a message that has begun.
async fn read_rest(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut [u8],
) -> Result<(), ReadError> {
    match stream.read_exact(bytes).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(HelloError::Ended.into()),
        Err(error) => Err(error.into()),
    }
}

// A proof is as long as serde's arrays go, which is why it is an array.
const _: () = assert!(PROOF_BYTES == 32);

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    pub(crate) fn hello(name: &str) -> Hello {
        Hello {
            identity: Identity {
                cluster_id: Some(1),
                node: Some(NodeId(2)),
                name: name.to_owned(),
                life: 3,
                version: "0.1.0".to_owned(),
                num_shards: 16,
                peer_addr: "127.0.0.1:7701".to_owned(),
            },
            instance: 4,
            nonce: [5; 32],
            purpose: Purpose::Link,
        }
    }

    async fn read_all(bytes: &[u8]) -> Result<(Message, Vec<u8>), ReadError> {
        read(&mut &bytes[..]).await
    }

    #[tokio::test]
    async fn every_message_comes_out_as_it_went_in() {
        for message in [
            Message::Hello(hello("node1")),
            Message::Proofs(vec![[1; 32], [2; 32]]),
            Message::Proofs(Vec::new()),
            Message::Welcome(Some((1, [3; 32]))),
            Message::Welcome(None),
            Message::Refused(4),
        ] {
            let bytes = message.encode();
            let (read, whole) = read_all(&[&bytes[..], b"what follows"].concat()).await.unwrap();
            assert_eq!((read, whole), (message, bytes));
        }
    }

    #[tokio::test]
    async fn another_version_is_told_from_garbage() {
        let later = with_head(2, 9, b"whatever comes to be there");
        assert!(matches!(read_all(&later).await, Err(ReadError::Version(2))));
        let foreign = read_all(b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(matches!(foreign, Err(ReadError::Hello(HelloError::Foreign { first: b'G' }))));
        let similar = read_all(b"AEGISKX\n12345").await;
        assert!(matches!(similar, Err(ReadError::Hello(HelloError::Foreign { first: b'A' }))));
    }

    #[tokio::test]
    async fn no_more_than_the_limit_is_awaited() {
        let mut bytes = with_head(VERSION, 1, &[]);
        bytes[11..13].copy_from_slice(&4_084_u16.to_le_bytes());
        let too_long = read_all(&bytes).await;
        assert!(matches!(too_long, Err(ReadError::Hello(HelloError::TooLong { bytes: 4_097 }))));
    }

    #[tokio::test]
    async fn a_message_that_ends_early_is_told_from_a_connection_that_never_spoke() {
        let bytes = Message::Hello(hello("node1")).encode();
        assert!(matches!(read_all(b"").await, Err(ReadError::Io(_))));
        for end in 1..bytes.len() {
            let ended = read_all(&bytes[..end]).await;
            assert!(matches!(ended, Err(ReadError::Hello(HelloError::Ended))), "{end}");
        }
    }

    #[tokio::test]
    async fn a_name_that_would_forge_log_lines_is_refused() {
        for name in ["", "a\nb", "a\u{1b}[31m", &"a".repeat(256)] {
            let message = Message::Hello(hello(name));
            let read = read_all(&message.encode()).await;
            let damaged = ReadError::Hello(HelloError::Damaged { kind: 1 });
            assert_eq!(read.unwrap_err().to_string(), damaged.to_string(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn any_body_is_decoded_without_panic(
            kind in 0_u8..6,
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Message::decode(kind, &body);
        }

        #[test]
        fn a_changed_hello_is_decoded_without_panic(at in 0_usize..90, byte in any::<u8>()) {
            let mut bytes = Message::Hello(hello("node1")).encode();
            let at = HEAD_BYTES + at % (bytes.len() - HEAD_BYTES);
            bytes[at] = byte;
            let _ = Message::decode(1, &bytes[HEAD_BYTES..]);
        }
    }
}
