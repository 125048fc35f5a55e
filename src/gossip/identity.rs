//! Who speaks, as foca knows it, and how that is written.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};
use serde::{Deserialize, Serialize};

use super::Peer;
use super::datagram::DATAGRAM_BYTES_MAX;
use crate::topology::NodeId;

/// Longest name of a node, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Longest advertised address: a DNS name in full, a colon and a port, with some room.
const ADDR_BYTES_MAX: usize = 262;

/// One generation of one life of a node. Two are equal when these three numbers are; name and
/// address are said along and never change within a generation.
#[derive(Clone)]
pub(super) struct Id {
    /// The node: what foca calls the identity's address, of which it keeps one each.
    pub(super) node: NodeId,
    /// Its life. A later one wins over every generation of an earlier.
    pub(super) life: u64,
    /// Starts at the wall clock's milliseconds and rises when the node learns that it was taken
    /// for dead, or that others know it by a higher one.
    pub(super) generation: u64,
    /// What it is called, and where it is reached.
    about: Arc<About>,
}

#[derive(Default)]
struct About {
    name: String,
    addr: String,
}

impl Id {
    /// The identity of a peer in that generation.
    pub(super) fn new(peer: &Peer, generation: u64) -> Self {
        let about = About { name: peer.name.clone(), addr: peer.addr.clone() };
        Self { node: peer.node, life: peer.life, generation, about: Arc::new(about) }
    }

    /// The same node and life in another generation.
    pub(super) fn in_generation(&self, generation: u64) -> Self {
        Self { generation, ..self.clone() }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.about.name
    }

    /// Where it says that it is reached: `host:port`.
    pub(super) fn addr(&self) -> &str {
        &self.about.addr
    }

    /// As it is shown outside.
    pub(super) fn peer(&self) -> Peer {
        Peer {
            node: self.node,
            name: self.about.name.clone(),
            life: self.life,
            addr: self.about.addr.clone(),
        }
    }

    /// Whether it comes after another identity of the same node.
    pub(super) fn is_after(&self, other: &Self) -> bool {
        (self.life, self.generation) > (other.life, other.generation)
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        (self.node, self.life, self.generation) == (other.node, other.life, other.generation)
    }
}

impl Eq for Id {}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, life, generation, about } = self;
        write!(f, "{}#{node}/{life}/{generation}", about.name)
    }
}

impl foca::Identity for Id {
    type Addr = NodeId;

    /// Never by itself: foca would renew within the same call, and two processes that claim one
    /// node would answer each other as fast as the network allows. The engine renews, with a pause.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.is_after(adversary)
    }
}

/// An identity in full, as it travels.
#[derive(Serialize, Deserialize)]
pub(super) struct FullId<'a> {
    node: u64,
    life: u64,
    generation: u64,
    name: &'a str,
    addr: &'a str,
}

impl<'a> From<&'a Id> for FullId<'a> {
    fn from(id: &'a Id) -> Self {
        let Id { node, life, generation, about } = id;
        let (name, addr) = (about.name.as_str(), about.addr.as_str());
        Self { node: node.0, life: *life, generation: *generation, name, addr }
    }
}

impl FullId<'_> {
    /// The identity, if name and address are such as a node may have: they end up in log lines.
    pub(super) fn checked(&self) -> Result<Id, WireError> {
        let sound = |text: &str, bytes_max| {
            !text.is_empty() && text.len() <= bytes_max && !text.chars().any(char::is_control)
        };
        if !sound(self.name, NAME_BYTES_MAX) || !sound(self.addr, ADDR_BYTES_MAX) {
            return Err(WireError::Name);
        }
        let about = About { name: self.name.to_owned(), addr: self.addr.to_owned() };
        let Self { node, life, generation, .. } = *self;
        Ok(Id { node: NodeId(node), life, generation, about: Arc::new(about) })
    }
}

/// An identity that is only pointed at: three numbers. Whoever gets it knows the rest, or cannot
/// reach that node anyway.
#[derive(Serialize, Deserialize)]
struct ShortId(u64, u64, u64);

impl From<&Id> for ShortId {
    fn from(id: &Id) -> Self {
        Self(id.node.0, id.life, id.generation)
    }
}

impl From<ShortId> for Id {
    fn from(ShortId(node, life, generation): ShortId) -> Self {
        Self { node: NodeId(node), life, generation, about: Arc::default() }
    }
}

/// Why an identity or a message of foca's cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The bytes are no such thing.
    #[error("bytes that are no message of this protocol: {0}")]
    Encoding(#[from] postcard::Error),
    /// What is left of the datagram is too small.
    #[error("the datagram has no room left")]
    Full,
    /// A name or an address is empty, too long, or has control characters.
    #[error("a name or an address is empty, too long, or has control characters")]
    Name,
}

#[derive(Serialize, Deserialize)]
enum WireMessage {
    Ping(u8),
    Ack(u8),
    PingReq(ShortId, u8),
    IndirectPing(ShortId, u8),
    IndirectAck(ShortId, u8),
    ForwardedAck(ShortId, u8),
    Announce,
    Feed,
    Gossip,
    Broadcast,
    TurnUndead,
}

impl From<&Message<Id>> for WireMessage {
    fn from(message: &Message<Id>) -> Self {
        match message {
            Message::Ping(number) => Self::Ping(*number),
            Message::Ack(number) => Self::Ack(*number),
            Message::PingReq { target, probe_number } => {
                Self::PingReq(target.into(), *probe_number)
            }
            Message::IndirectPing { origin, probe_number } => {
                Self::IndirectPing(origin.into(), *probe_number)
            }
            Message::IndirectAck { target, probe_number } => {
                Self::IndirectAck(target.into(), *probe_number)
            }
            Message::ForwardedAck { origin, probe_number } => {
                Self::ForwardedAck(origin.into(), *probe_number)
            }
            Message::Announce => Self::Announce,
            Message::Feed => Self::Feed,
            Message::Gossip => Self::Gossip,
            Message::Broadcast => Self::Broadcast,
            Message::TurnUndead => Self::TurnUndead,
        }
    }
}

impl From<WireMessage> for Message<Id> {
    fn from(message: WireMessage) -> Self {
        match message {
            WireMessage::Ping(number) => Self::Ping(number),
            WireMessage::Ack(number) => Self::Ack(number),
            WireMessage::PingReq(id, probe_number) => {
                Self::PingReq { target: id.into(), probe_number }
            }
            WireMessage::IndirectPing(id, probe_number) => {
                Self::IndirectPing { origin: id.into(), probe_number }
            }
            WireMessage::IndirectAck(id, probe_number) => {
                Self::IndirectAck { target: id.into(), probe_number }
            }
            WireMessage::ForwardedAck(id, probe_number) => {
                Self::ForwardedAck { origin: id.into(), probe_number }
            }
            WireMessage::Announce => Self::Announce,
            WireMessage::Feed => Self::Feed,
            WireMessage::Gossip => Self::Gossip,
            WireMessage::Broadcast => Self::Broadcast,
            WireMessage::TurnUndead => Self::TurnUndead,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct WireHeader<'a> {
    #[serde(borrow)]
    src: FullId<'a>,
    src_incarnation: u16,
    dst: ShortId,
    message: WireMessage,
}

#[derive(Serialize, Deserialize)]
struct WireMember<'a> {
    #[serde(borrow)]
    id: FullId<'a>,
    incarnation: u16,
    state: State,
}

/// foca's messages in postcard. Only the sender and the members that are news are written in full;
/// whoever is merely pointed at is three numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire;

impl foca::Codec<Id> for Wire {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<Id>, buf: impl BufMut) -> Result<(), WireError> {
        let wire = WireHeader {
            src: (&header.src).into(),
            src_incarnation: header.src_incarnation,
            dst: (&header.dst).into(),
            message: (&header.message).into(),
        };
        put(&wire, buf)
    }

    // foca hands its buffers over in one piece, so `chunk` is all of what remains.
    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Id>, WireError> {
        let (wire, rest) = postcard::take_from_bytes::<WireHeader<'_>>(buf.chunk())?;
        let read = buf.remaining() - rest.len();
        let header = Header {
            src: wire.src.checked()?,
            src_incarnation: wire.src_incarnation,
            dst: wire.dst.into(),
            message: wire.message.into(),
        };
        buf.advance(read);
        Ok(header)
    }

    fn encode_member(&mut self, member: &Member<Id>, buf: impl BufMut) -> Result<(), WireError> {
        let (incarnation, state) = (member.incarnation(), member.state());
        put(&WireMember { id: member.id().into(), incarnation, state }, buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Id>, WireError> {
        let (wire, rest) = postcard::take_from_bytes::<WireMember<'_>>(buf.chunk())?;
        let read = buf.remaining() - rest.len();
        let member = Member::new(wire.id.checked()?, wire.incarnation, wire.state);
        buf.advance(read);
        Ok(member)
    }
}

/// Writes all of `wire`, or nothing.
fn put(wire: &impl Serialize, mut buf: impl BufMut) -> Result<(), WireError> {
    let mut space = [0; DATAGRAM_BYTES_MAX];
    let written = postcard::to_slice(wire, &mut space)?;
    if buf.remaining_mut() < written.len() {
        return Err(WireError::Full);
    }
    buf.put_slice(written);
    Ok(())
}
