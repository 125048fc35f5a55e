//! What nodes without a cluster ask and tell each other, and what members tell them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Word;
use crate::topology::Topology;

/// The longest message, in bytes. Whatever is longer is refused unread.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The most addresses that one node may list.
pub const LISTED_MAX: usize = 64;

/// The most nodes that one node says it hears.
pub const HEARD_MAX: usize = 48;

/// The longest name or address, in bytes: a host name of 253, a port, brackets.
pub const TEXT_BYTES_MAX: usize = 261;

/// The highest number that an attempt may have; nobody gets there by trying.
pub(super) const ATTEMPT_MAX: u64 = 1 << 48;

/// What a node without a cluster says of itself: a knock, and the answer to one.
///
/// It does not ask for anything in so many words. A word to itself is a request for the others'
/// words; a word to another is that other's promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newborn {
    /// Its name.
    pub name: String,
    /// Drawn at random by each process: tells a node from another, and from itself.
    pub instance: u128,
    /// Where it says that it is reached: `host:port`.
    pub peer_addr: String,
    /// Whether it was started with `--bootstrap`.
    pub bootstrap: bool,
    /// The addresses that its configuration lists, and whom it found there.
    pub listed: Vec<Listed>,
    /// The other nodes without a cluster that it hears at present.
    pub hears: Vec<Heard>,
    /// The word that it has given, durably.
    pub word: Option<Word>,
}

/// An address in a node's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// As configured: `host:port`.
    pub addr: String,
    /// Who answered there last, if it was a node without a cluster.
    pub found: Option<Found>,
}

/// Who answers at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its process.
    pub instance: u128,
}

/// A node that is heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Its name.
    pub name: String,
    /// Where it says that it is reached.
    pub peer_addr: String,
}

/// The answer to a knock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The one who answers is a member.
    Member {
        /// Of this cluster.
        cluster_id: u128,
        /// Whether the cluster has a member of the name that knocked.
        knows_you: bool,
    },
    /// The one who answers has no cluster either.
    New(Box<Newborn>),
}

/// Why a message cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It has more bytes than any message may have.
    #[error("a message about the cluster's birth has {0} bytes, more than {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// It does not read as one.
    #[error(
        "a message about the cluster's birth cannot be read: {0}; is the other node's version the same?"
    )]
    Unreadable(#[source] postcard::Error),
    /// A list or a text in it is longer than any node would make it.
    #[error("a message about the cluster's birth exceeds its bounds")]
    OverBounds,
}

impl Newborn {
    /// As bytes, at most [`MESSAGE_BYTES_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// From bytes that another node sent.
    ///
    /// # Errors
    /// Every [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let newborn: Self = decode(bytes)?;
        newborn.is_bounded().then_some(newborn).ok_or(MessageError::OverBounds)
    }

    fn is_bounded(&self) -> bool {
        let found = self.listed.iter().filter_map(|listed| listed.found.as_ref());
        let word = self.word.iter().flat_map(|w| [&w.giver, &w.founder, &w.founder_addr]);
        let heard = self.hears.iter().flat_map(|heard| [&heard.name, &heard.peer_addr]);
        let mut texts = [&self.name, &self.peer_addr]
            .into_iter()
            .chain(self.listed.iter().map(|listed| &listed.addr))
            .chain(found.map(|found| &found.name))
            .chain(heard)
            .chain(word);
        self.listed.len() <= LISTED_MAX
            && self.hears.len() <= HEARD_MAX
            && texts.all(|text| !text.is_empty() && text.len() <= TEXT_BYTES_MAX)
            // Nobody gives another's word.
            && self.word.as_ref().is_none_or(|word| {
                word.giver == self.name && word.attempt.max(word.given_up) <= ATTEMPT_MAX
            })
    }
}

impl Answer {
    /// As bytes, at most [`MESSAGE_BYTES_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// From bytes that another node sent.
    ///
    /// # Errors
    /// Every [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        match decode(bytes)? {
            Self::New(newborn) if !newborn.is_bounded() => Err(MessageError::OverBounds),
            answer => Ok(answer),
        }
    }
}

/// What a member answers to a knock.
pub fn answer_as_member(topology: &Topology, cluster_id: u128, knock: &Newborn) -> Answer {
    Answer::Member { cluster_id, knows_you: topology.member_named(&knock.name).is_some() }
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_stdvec(message).expect("strings, numbers and lists of known length encode")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(MessageError::TooLong(bytes.len()));
    }
    postcard::from_bytes(bytes).map_err(MessageError::Unreadable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::topology::{Announcement, Cluster, Command, NodeId};

    fn text(length: usize) -> String {
        "x".repeat(length)
    }

    fn largest() -> Newborn {
        let longest = || text(TEXT_BYTES_MAX);
        let found = Some(Found { name: longest(), instance: u128::MAX });
        let heard = Heard { name: longest(), peer_addr: longest() };
        Newborn {
            name: longest(),
            instance: u128::MAX,
            peer_addr: longest(),
            bootstrap: true,
            listed: vec![Listed { addr: longest(), found }; LISTED_MAX],
            hears: vec![heard; HEARD_MAX],
            word: Some(Word {
                giver: longest(),
                founder: longest(),
                founder_addr: longest(),
                attempt: ATTEMPT_MAX,
                bootstrap: true,
                given_up: ATTEMPT_MAX,
                decided: true,
            }),
        }
    }

    #[test]
    fn the_largest_message_that_a_node_may_send_is_taken() {
        let bytes = Answer::New(Box::new(largest())).encode();
        assert!(bytes.len() <= MESSAGE_BYTES_MAX, "{}", bytes.len());
        assert_eq!(Answer::decode(&bytes).unwrap(), Answer::New(Box::new(largest())));
        assert_eq!(Newborn::decode(&largest().encode()).unwrap(), largest());
    }

    #[test]
    fn a_message_beyond_its_bounds_is_refused() {
        let mut listing = largest();
        listing.listed.push(Listed { addr: "a:1".into(), found: None });
        let mut hearing = largest();
        hearing.hears.push(Heard { name: "a".into(), peer_addr: "a:1".into() });
        let mut named = largest();
        named.name = text(TEXT_BYTES_MAX + 1);
        let nameless = Newborn { name: String::new(), ..largest() };
        let forged = Newborn { name: "other".into(), ..largest() };
        let mut tireless = largest();
        tireless.word.as_mut().unwrap().attempt = u64::MAX;
        for message in [listing, hearing, named, nameless, forged, tireless] {
            assert!(Newborn::decode(&message.encode()).is_err());
            assert!(Answer::decode(&Answer::New(Box::new(message)).encode()).is_err());
        }
        assert!(matches!(Newborn::decode(&vec![0; 70_000]), Err(MessageError::TooLong(70_000))));
        let cut = &largest().encode()[..100];
        assert!(matches!(Newborn::decode(cut), Err(MessageError::Unreadable(_))));
    }

    #[test]
    fn a_member_says_which_cluster_it_is_of_and_whether_that_knows_the_name() {
        let mut topology = Topology::default();
        let about = Announcement { name: "node1".into(), ..Announcement::default() };
        let cluster = Cluster { id: 7, hash_seed: 1, num_shards: 4 };
        topology.apply(Command::Found { cluster, founder: NodeId(1), about, epoch: 1 });
        let knock = |name: &str| Newborn { name: name.into(), word: None, ..largest() };
        assert_eq!(
            answer_as_member(&topology, 7, &knock("node1")),
            Answer::Member { cluster_id: 7, knows_you: true }
        );
        assert_eq!(
            answer_as_member(&topology, 7, &knock("node2")),
            Answer::Member { cluster_id: 7, knows_you: false }
        );
    }

    proptest! {
        #[test]
        fn no_bytes_from_outside_make_the_reader_panic(bytes: Vec<u8>, at in any::<usize>(), with: u8) {
            let _ = Newborn::decode(&bytes);
            let _ = Answer::decode(&bytes);
            let mut damaged = Answer::New(Box::new(largest())).encode();
            let at = at % damaged.len();
            damaged[at] = with;
            let _ = Answer::decode(&damaged);
        }
    }
}
