//! What was refused, and who is told.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::datagram::Unreadable;
use super::seal::Unopened;
use crate::complaint::{Kind, complain};

/// The same complaint about the same source is logged once in this time.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// Most complaints that are remembered; with so many under way, further ones are only counted.
const COMPLAINTS_MAX: usize = 256;

/// A datagram that was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Where it came from, as far as UDP can be believed.
    pub from: SocketAddr,
}

/// Why a datagram was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No gossip at all.
    Garbage,
    /// It ends too early.
    Truncated,
    /// Longer than a node sends.
    Oversized,
    /// A later version of the protocol.
    NewerVersion,
    /// An earlier version of the protocol.
    OlderVersion,
    /// Another cluster's.
    OtherCluster,
    /// Sealed with a secret that this node does not have.
    WrongSecret,
    /// In the clear, though this node has a secret.
    Unsealed,
    /// Its checksum does not fit.
    Damaged,
    /// Well sealed, but not understood.
    Malformed,
    /// Heard before, or recorded in an earlier run.
    Replay,
    /// From a life of a node that a later one has followed.
    OldLife,
    /// Somebody else speaks as this node.
    SameNode,
    /// It names more nodes than are kept track of.
    TooManyNodes,
    /// Too many strangers at once; not even looked at.
    Flood,
}

impl Reason {
    /// A word for it, for a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::Truncated => "truncated",
            Self::Oversized => "oversized",
            Self::NewerVersion => "newer_version",
            Self::OlderVersion => "older_version",
            Self::OtherCluster => "other_cluster",
            Self::WrongSecret => "wrong_secret",
            Self::Unsealed => "unsealed",
            Self::Damaged => "damaged",
            Self::Malformed => "malformed",
            Self::Replay => "replay",
            Self::OldLife => "old_life",
            Self::SameNode => "same_node",
            Self::TooManyNodes => "too_many_nodes",
            Self::Flood => "flood",
        }
    }

    /// What is wrong and how to mend it, after "refused a datagram from …:".
    fn advice(self) -> &'static str {
        match self {
            Self::Garbage => {
                "it is no gossip of AegisKV; find out what else sends to gossip_bind_addr"
            }
            Self::Truncated => {
                "it ends too early; look for a device on the way that cuts datagrams"
            }
            Self::Oversized => {
                "it is longer than any node sends; find out what else sends to gossip_bind_addr"
            }
            Self::NewerVersion => {
                "it speaks a later version of the protocol; upgrade this node to the same release"
            }
            Self::OlderVersion => {
                "it speaks an earlier version of the protocol; upgrade that node to this release"
            }
            Self::OtherCluster => {
                "it belongs to another cluster; take the address out of addrs on one side, or \
                 empty the data directory of a node that should belong to this cluster"
            }
            Self::WrongSecret => {
                "it is sealed with a secret that this node does not have; give both nodes the \
                 same gossip_secret"
            }
            Self::Unsealed => {
                "it is not sealed, and this node has a secret; give that node the same \
                 gossip_secret"
            }
            Self::Damaged => "it was damaged on its way; look at the network between the two",
            Self::Malformed => "it is well sealed but not understood; run one release on all nodes",
            Self::Replay => {
                "it is a copy of one heard before; if this goes on, somebody records and resends \
                 the cluster's traffic"
            }
            Self::OldLife => {
                "the node runs on an old copy of its data directory; a later one has been heard. \
                 Stop it, and start it with an empty directory"
            }
            Self::SameNode => {
                "it speaks in the name of this node; look for a second process that runs on a \
                 copy of this data directory, and stop one of them"
            }
            Self::TooManyNodes => "more nodes are named than a cluster may have",
            Self::Flood => "too many strangers send at once; known members are heard all the same",
        }
    }
}

impl From<Unreadable> for Reason {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Garbage => Self::Garbage,
            Unreadable::Truncated => Self::Truncated,
            Unreadable::Oversized => Self::Oversized,
            Unreadable::Newer => Self::NewerVersion,
            Unreadable::Older => Self::OlderVersion,
        }
    }
}

impl From<Unopened> for Reason {
    fn from(unopened: Unopened) -> Self {
        match unopened {
            Unopened::WrongSecret => Self::WrongSecret,
            Unopened::Plain => Self::Unsealed,
            Unopened::Damaged => Self::Damaged,
        }
    }
}

/// Which complaints were logged lately.
#[derive(Default)]
pub(super) struct Complaints {
    logged: HashMap<(Reason, IpAddr), Instant>,
}

impl Complaints {
    /// Logs a refusal, unless the same was logged within the last minute.
    pub(super) fn log(&mut self, refusal: Refusal, now: Instant) {
        if self.is_due(refusal, now) {
            let Refusal { reason, from } = refusal;
            let kind = Kind::new("datagrams", reason.label());
            complain!(WARN, kind, %from, reason = reason.label(), "refused a datagram from {from}: {}", reason.advice());
        }
    }

    fn is_due(&mut self, refusal: Refusal, now: Instant) -> bool {
        let about = (refusal.reason, refusal.from.ip());
        let recent = |at: &Instant| now.saturating_duration_since(*at) < COMPLAINT_PAUSE;
        if self.logged.get(&about).is_some_and(recent) {
            return false;
        }
        if self.logged.len() >= COMPLAINTS_MAX {
            self.logged.retain(|_, at| recent(at));
        }
        self.logged.len() < COMPLAINTS_MAX && self.logged.insert(about, now).is_none_or(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn refusal(reason: Reason, host: u32) -> Refusal {
        Refusal { reason, from: (Ipv4Addr::from(host), 1).into() }
    }

    #[test]
    fn the_same_complaint_comes_once_a_minute() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        let garbage = refusal(Reason::Garbage, 1);
        assert!(complaints.is_due(garbage, start));
        assert!(!complaints.is_due(garbage, start + Duration::from_secs(59)));
        assert!(complaints.is_due(refusal(Reason::Replay, 1), start));
        assert!(complaints.is_due(refusal(Reason::Garbage, 2), start));
        assert!(complaints.is_due(garbage, start + Duration::from_secs(60)));
    }

    #[test]
    fn complaints_about_any_number_of_sources_take_bounded_room_and_lines() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        let logged = (0..10_000)
            .filter(|&host| complaints.is_due(refusal(Reason::Garbage, host), start))
            .count();
        assert_eq!((logged, complaints.logged.len()), (256, 256));
        let later = start + Duration::from_secs(61);
        assert!(complaints.is_due(refusal(Reason::Garbage, 99_999), later));
        assert_eq!(complaints.logged.len(), 1);
    }
}
