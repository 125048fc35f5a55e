//! What a datagram looks like.
//!
//! ```text
//!  0  magic "AG"          2
//!  2  version             1
//!  3  form                1   0: plain, CRC-32C behind; 1: AES-256-GCM, its tag behind
//!  4  cluster id         16
//! 20  session            16   random, drawn when the sender's process started
//! 36  counter             8   1, 2, 3 … for each datagram of the session
//! 44  body                    sealed where the form says so; bytes 0 to 43 are bound in
//!      0  from            8   the sender's node number
//!      8  life            8   and life
//!     16  to              8   the node it is meant for; 0: whoever is there
//!     24  token           8   what the receiver gave the sender's session; 0: nothing yet
//!     32  kind            1   [`Frame`]
//!     33  payload
//!      …  trailer      4/16
//! ```
//!
//! Numbers stand with their highest byte first. Parsing never panics and never allocates before
//! the seal was opened; payloads are postcard.

use serde::{Deserialize, Serialize};

use super::identity::{FullId, Id, WireError};
use crate::topology::NodeId;

/// Longest datagram: with the headers of IPv6 and UDP below the 1,280 bytes that every link takes.
pub(super) const DATAGRAM_BYTES_MAX: usize = 1_200;

/// Bytes before the body.
pub(super) const HEADER_BYTES: usize = 44;

/// Bytes of the body before the payload.
const ENVELOPE_BYTES: usize = 33;

/// Longest trailer: a tag of AES-GCM.
pub(super) const TRAILER_BYTES_MAX: usize = 16;

/// Longest payload of a frame.
pub(super) const PAYLOAD_BYTES_MAX: usize =
    DATAGRAM_BYTES_MAX - HEADER_BYTES - ENVELOPE_BYTES - TRAILER_BYTES_MAX;

const MAGIC: [u8; 2] = *b"AG";

/// The version of this format and of all that is said in it.
const VERSION: u8 = 1;

/// Most nodes that one beat tells of.
const BEAT_NODES_MAX: usize = 64;

/// One run of one process: random, so that two are never the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Session(pub(super) u128);

/// Whether the body is in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In the clear, with a checksum: a cluster without a secret.
    Plain,
    /// Encrypted and authenticated.
    Sealed,
}

/// What stands in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) form: Form,
    pub(super) cluster_id: u128,
    pub(super) session: Session,
    pub(super) counter: u64,
}

/// Why bytes are no datagram of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Something else altogether.
    Garbage,
    /// It starts well and ends too early.
    Truncated,
    /// Longer than any node sends.
    Oversized,
    /// A later version of the protocol.
    Newer,
    /// An earlier version of the protocol.
    Older,
}

impl Header {
    /// Reads the header of a datagram, which has room for a body and its trailer.
    pub(super) fn parse(datagram: &[u8]) -> Result<Self, Unreadable> {
        if datagram.len() < 4 || datagram[..2] != MAGIC {
            return Err(Unreadable::Garbage);
        }
        match datagram[2] {
            VERSION => {}
            0 => return Err(Unreadable::Garbage),
            version if version > VERSION => return Err(Unreadable::Newer),
            _ => return Err(Unreadable::Older),
        }
        let (form, trailer) = match datagram[3] {
            0 => (Form::Plain, 4),
            1 => (Form::Sealed, TRAILER_BYTES_MAX),
            _ => return Err(Unreadable::Garbage),
        };
        if datagram.len() > DATAGRAM_BYTES_MAX {
            return Err(Unreadable::Oversized);
        }
        if datagram.len() < HEADER_BYTES + ENVELOPE_BYTES + trailer {
            return Err(Unreadable::Truncated);
        }
        Ok(Self {
            form,
            cluster_id: u128::from_be_bytes(array(&datagram[4..20])),
            session: Session(u128::from_be_bytes(array(&datagram[20..36]))),
            counter: u64::from_be_bytes(array(&datagram[36..44])),
        })
    }

    /// Appends the header to a datagram.
    pub(super) fn write(&self, datagram: &mut Vec<u8>) {
        let form = match self.form {
            Form::Plain => 0,
            Form::Sealed => 1,
        };
        datagram.extend_from_slice(&MAGIC);
        datagram.extend_from_slice(&[VERSION, form]);
        datagram.extend_from_slice(&self.cluster_id.to_be_bytes());
        datagram.extend_from_slice(&self.session.0.to_be_bytes());
        datagram.extend_from_slice(&self.counter.to_be_bytes());
    }
}

/// A slice whose length the caller has checked, as an array.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the length was checked by the caller")
}

/// From whom to whom, inside the seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) from: NodeId,
    pub(super) life: u64,
    /// `None`: whoever is there.
    pub(super) to: Option<NodeId>,
    /// `None`: the receiver has given the sender's session none yet.
    pub(super) token: Option<u64>,
}

/// What a datagram says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Frame {
    /// Who I am, and what you must show me. The only frame that is heard without a token.
    Greet(Greeting),
    /// A message of foca's, in foca's own encoding.
    Swim(Vec<u8>),
    /// I am here, and these are the nodes that I have heard lately.
    Beat(Vec<Heard>),
    /// The node leaves for good reasons; its present generation is over.
    Bye {
        /// Which generation.
        generation: u64,
    },
}

/// How two processes get to know each other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Greeting {
    /// The sender.
    pub(super) me: Id,
    /// The receiver's session and the counter of the datagram that this answers; what makes it
    /// surely fresh. `None`: it answers nothing.
    pub(super) answers: Option<(Session, u64)>,
    /// What the receiver's session must show from now on. `None`: the sender knows of no session.
    pub(super) token: Option<u64>,
    /// The generation that the receiver must have at least to be believed alive, if it is of that
    /// life: others know it by this or a lower one.
    pub(super) at_least: Option<(u64, u64)>,
}

/// A node that the sender of a beat has heard itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Heard {
    /// Which.
    pub(super) node: u64,
    /// How long ago, in milliseconds.
    pub(super) millis: u32,
}

#[derive(Serialize, Deserialize)]
struct WireGreeting<'a> {
    #[serde(borrow)]
    me: FullId<'a>,
    answers: Option<(u128, u64)>,
    token: Option<u64>,
    at_least: Option<(u64, u64)>,
}

/// Appends envelope and frame to a datagram.
///
/// # Errors
/// When the payload is longer than [`PAYLOAD_BYTES_MAX`].
pub(super) fn write_body(
    envelope: Envelope,
    frame: &Frame,
    datagram: &mut Vec<u8>,
) -> Result<(), WireError> {
    datagram.extend_from_slice(&envelope.from.0.to_be_bytes());
    datagram.extend_from_slice(&envelope.life.to_be_bytes());
    datagram.extend_from_slice(&envelope.to.map_or(0, |to| to.0).to_be_bytes());
    datagram.extend_from_slice(&envelope.token.unwrap_or(0).to_be_bytes());
    let mut space = [0; PAYLOAD_BYTES_MAX];
    let (kind, payload): (u8, &[u8]) = match frame {
        Frame::Greet(Greeting { me, answers, token, at_least }) => {
            let answers = answers.map(|(session, counter)| (session.0, counter));
            let wire = WireGreeting { me: me.into(), answers, token: *token, at_least: *at_least };
            (0, postcard::to_slice(&wire, &mut space)?)
        }
        Frame::Swim(message) if message.len() > PAYLOAD_BYTES_MAX => return Err(WireError::Full),
        Frame::Swim(message) => (1, message),
        Frame::Beat(heard) => {
            let heard = &heard[..heard.len().min(BEAT_NODES_MAX)];
            (2, postcard::to_slice(heard, &mut space)?)
        }
        Frame::Bye { generation } => (3, postcard::to_slice(generation, &mut space)?),
    };
    datagram.push(kind);
    datagram.extend_from_slice(payload);
    Ok(())
}

/// Reads what [`write_body`] wrote.
///
/// # Errors
/// When the bytes are too few, or no frame, or name somebody as no node may be named.
pub(super) fn read_body(body: &[u8]) -> Result<(Envelope, Frame), WireError> {
    let Some((head, payload)) = body.split_at_checked(ENVELOPE_BYTES) else {
        return Err(WireError::Encoding(postcard::Error::DeserializeUnexpectedEnd));
    };
    let number = |at: usize| u64::from_be_bytes(array(&head[at..at + 8]));
    let some = |number: u64| (number != 0).then_some(number);
    let envelope = Envelope {
        from: NodeId(number(0)),
        life: number(8),
        to: some(number(16)).map(NodeId),
        token: some(number(24)),
    };
    let frame = match head[32] {
        0 => {
            let wire: WireGreeting<'_> = postcard::from_bytes(payload)?;
            let answers = wire.answers.map(|(session, counter)| (Session(session), counter));
            let (me, token, at_least) = (wire.me.checked()?, wire.token, wire.at_least);
            Frame::Greet(Greeting { me, answers, token, at_least })
        }
        1 => Frame::Swim(payload.to_vec()),
        2 => Frame::Beat(postcard::from_bytes(payload)?),
        3 => Frame::Bye { generation: postcard::from_bytes(payload)? },
        _ => return Err(WireError::Encoding(postcard::Error::DeserializeBadEnum)),
    };
    Ok((envelope, frame))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::gossip::Peer;

    fn greeting() -> Frame {
        let peer = Peer {
            node: NodeId(7),
            name: "node7".to_owned(),
            life: 3,
            addr: "10.0.0.7:7701".to_owned(),
        };
        Frame::Greet(Greeting {
            me: Id::new(&peer, 1_700_000_000_000),
            answers: Some((Session(9), 4)),
            token: Some(11),
            at_least: Some((3, 12)),
        })
    }

    fn envelope() -> Envelope {
        Envelope { from: NodeId(7), life: 3, to: Some(NodeId(2)), token: Some(u64::MAX) }
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        let beat = Frame::Beat(vec![Heard { node: 300, millis: 70_000 }; 3]);
        let frames = [greeting(), Frame::Swim(vec![1, 2, 3]), beat, Frame::Bye { generation: 5 }];
        for frame in frames {
            let mut body = Vec::new();
            write_body(envelope(), &frame, &mut body).unwrap();
            assert_eq!(read_body(&body).unwrap(), (envelope(), frame));
        }
    }

    #[test]
    fn a_header_has_its_fields_where_the_format_says() {
        let header = Header { form: Form::Sealed, cluster_id: 1, session: Session(2), counter: 3 };
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        let zeros = [0_u8; 15];
        let expected = [b"AG\x01\x01", &zeros[..], &[1], &zeros, &[2], &zeros[..7], &[3]].concat();
        assert_eq!(bytes, expected);
        bytes.resize(HEADER_BYTES + 49, 0);
        assert_eq!(Header::parse(&bytes), Ok(header));
        assert_eq!(Header::parse(&bytes[..92]), Err(Unreadable::Truncated));
    }

    #[test]
    fn other_versions_and_other_things_are_told_apart() {
        let mut bytes = vec![0; 200];
        assert_eq!(Header::parse(&bytes), Err(Unreadable::Garbage));
        assert_eq!(Header::parse(b""), Err(Unreadable::Garbage));
        bytes[..4].copy_from_slice(b"AG\x02\x09");
        assert_eq!(Header::parse(&bytes), Err(Unreadable::Newer));
        bytes[..4].copy_from_slice(b"AG\x01\x09");
        assert_eq!(Header::parse(&bytes), Err(Unreadable::Garbage));
        bytes[..4].copy_from_slice(b"AG\x01\x00");
        bytes.resize(1_201, 0);
        assert_eq!(Header::parse(&bytes), Err(Unreadable::Oversized));
    }

    #[test]
    fn a_name_that_could_forge_a_log_line_is_refused() {
        let peer = |name: &str| Peer {
            node: NodeId(1),
            name: name.to_owned(),
            life: 1,
            addr: "h:1".to_owned(),
        };
        let read = |name: &str| {
            let me = Id::new(&peer(name), 1);
            let greeting = Greeting { me, answers: None, token: None, at_least: None };
            let mut body = Vec::new();
            write_body(envelope(), &Frame::Greet(greeting), &mut body).unwrap();
            read_body(&body).map(|_| ())
        };
        assert!(read("node1").is_ok());
        assert!(matches!(read("node1\nERROR all is lost"), Err(WireError::Name)));
        assert!(matches!(read(""), Err(WireError::Name)));
    }

    #[test]
    fn a_beat_about_many_nodes_fits_a_datagram() {
        let heard = vec![Heard { node: u64::MAX, millis: u32::MAX }; 1_000];
        let mut body = Vec::new();
        write_body(envelope(), &Frame::Beat(heard), &mut body).unwrap();
        let Ok((_, Frame::Beat(read))) = read_body(&body) else { panic!("no beat") };
        assert_eq!(read.len(), 64);
        assert!(HEADER_BYTES + body.len() + TRAILER_BYTES_MAX <= 1_200);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..1_400)) {
            let _ = Header::parse(&bytes);
            let _ = read_body(&bytes);
        }

        #[test]
        fn no_payload_makes_the_parser_panic(
            kind in 0_u8..5,
            payload in prop::collection::vec(any::<u8>(), 0..1_200),
        ) {
            let mut body = vec![1; 32];
            body.push(kind);
            body.extend_from_slice(&payload);
            if let Ok((envelope, frame)) = read_body(&body) {
                let mut again = Vec::new();
                if write_body(envelope, &frame, &mut again).is_ok() {
                    let read = read_body(&again);
                    prop_assert!(read.is_ok());
                }
            }
        }

        #[test]
        fn a_damaged_frame_is_refused_or_another_frame(
            at in 0_usize..60,
            byte in any::<u8>(),
        ) {
            let mut body = Vec::new();
            write_body(envelope(), &greeting(), &mut body).unwrap();
            let at = at % body.len();
            body[at] = byte;
            let _ = read_body(&body);
            body.truncate(at);
            prop_assert_eq!(read_body(&body).is_ok(), false);
        }
    }
}
