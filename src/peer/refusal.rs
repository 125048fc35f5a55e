//! Why two nodes do not talk, counted by kind and told to the operator.
//!
//! A [`Refusal`] is the kind, as it crosses the wire and counts; an `Objection` has the details
//! for one log line. The same complaint about the same peer is logged at most once a minute, and
//! the memory for that is bounded, however many strangers come.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::frame::FrameError;
use super::hello::{HelloError, VERSION};
use super::record::InboundError;
use crate::complaint::Kind;
use crate::topology::NodeId;

/// How long the same complaint about the same peer stays unsaid.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// Complaints whose repetition is watched for; when there are more, new ones go unsaid.
const REMEMBERED_MAX: usize = 1024;

/// Why two nodes do not talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// They have no secret in common, or only one of them has any.
    Secret,
    /// One does not trust the other's certificate, or only one of them uses TLS.
    Tls,
    /// They are of different clusters.
    Cluster,
    /// They are set to different numbers of shards.
    Shards,
    /// The other one speaks an older protocol.
    ProtocolOlder,
    /// The other one speaks a newer protocol.
    ProtocolNewer,
    /// What arrived is not this protocol.
    Garbage,
    /// A message or frame longer than any may be.
    TooLong,
    /// The other one did not introduce itself in time.
    Timeout,
    /// There are too many connections.
    TooMany,
    /// Another process has the same name or number, and is connected.
    Duplicate,
    /// One of them is no member yet, and the other one expects a member.
    NotMember,
    /// Another node answers at the address than was expected there.
    OtherNode,
    /// The one that is refused was a member, and is none any more.
    Removed,
}

impl Refusal {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::Secret,
        Self::Tls,
        Self::Cluster,
        Self::Shards,
        Self::ProtocolOlder,
        Self::ProtocolNewer,
        Self::Garbage,
        Self::TooLong,
        Self::Timeout,
        Self::TooMany,
        Self::Duplicate,
        Self::NotMember,
        Self::OtherNode,
        Self::Removed,
    ];

    /// A word for it, for a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Tls => "tls",
            Self::Cluster => "cluster",
            Self::Shards => "num_shards",
            Self::ProtocolOlder => "protocol_older",
            Self::ProtocolNewer => "protocol_newer",
            Self::Garbage => "garbage",
            Self::TooLong => "too_long",
            Self::Timeout => "timeout",
            Self::TooMany => "too_many",
            Self::Duplicate => "duplicate",
            Self::NotMember => "not_member",
            Self::OtherNode => "other_node",
            Self::Removed => "removed",
        }
    }

    /// What the log's lines about it are counted as.
    pub(super) fn kind(self) -> Kind {
        Kind::new("nodes", self.name())
    }

    /// Whether the one that it is about has proved who it is before.
    pub(super) fn is_of_one_known(self) -> bool {
        matches!(self, Self::Cluster | Self::Shards | Self::Duplicate | Self::NotMember)
    }

    /// The byte that stands for it between nodes.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Secret => 1,
            Self::Tls => 2,
            Self::Cluster => 3,
            Self::Shards => 4,
            Self::ProtocolOlder => 5,
            Self::ProtocolNewer => 6,
            Self::Garbage => 7,
            Self::TooLong => 8,
            Self::Timeout => 9,
            Self::TooMany => 10,
            Self::Duplicate => 11,
            Self::NotMember => 12,
            Self::OtherNode => 13,
            Self::Removed => 14,
        }
    }

    /// What the other side told, seen from this side: who is older for it is newer for us.
    pub(super) fn told(code: u8) -> Option<Self> {
        match Self::ALL.into_iter().find(|refusal| refusal.code() == code)? {
            Self::ProtocolOlder => Some(Self::ProtocolNewer),
            Self::ProtocolNewer => Some(Self::ProtocolOlder),
            other => Some(other),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "the two nodes share no gossip_secret; give all nodes the same",
            Self::Tls => {
                "TLS between the two nodes fails; check that both have tls_enabled, a certificate \
                 in time, and the same authorities in tls_ca_file"
            }
            Self::Cluster => {
                "the two nodes are of different clusters; check addrs, or give the node that \
                 should join an empty data directory"
            }
            Self::Shards => {
                "the two nodes have different num_shards; it is fixed when a cluster is born: \
                 take over the cluster's"
            }
            Self::ProtocolOlder => "the other node speaks an older protocol; upgrade it",
            Self::ProtocolNewer => "the other node speaks a newer protocol; upgrade this one",
            Self::Garbage => "what arrives is not the protocol between nodes",
            Self::TooLong => "a message is longer than any may be",
            Self::Timeout => "the introduction took too long",
            Self::TooMany => "there are too many connections",
            Self::Duplicate => {
                "two running nodes have the same node_id; give one of them another, and an empty \
                 data directory if it was copied"
            }
            Self::NotMember => "one of the two nodes is not yet a member of the cluster",
            Self::OtherNode => {
                "another node answers at that address; check gossip_advertise_addr of both"
            }
            Self::Removed => {
                "this node was removed from the cluster; keep it out, or start it with an empty \
                 data directory"
            }
        })
    }
}

/// Why this node does not talk to another, with the details for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Objection {
    #[error("it has a gossip_secret that is not among this node's; give all nodes the same")]
    SecretDiffers,
    #[error("it has no gossip_secret and this node has one; set the same on all nodes")]
    SecretTheirsMissing,
    #[error("it has a gossip_secret and this node has none; set the same on all nodes")]
    SecretOursMissing,
    #[error("it could not prove that it knows the gossip_secret")]
    SecretUnproved,
    #[error(
        "TLS fails: {0}; check that its certificate is in time and signed by an authority in \
         tls_ca_file, here and there"
    )]
    Tls(#[source] io::Error),
    #[error("it speaks without TLS; set tls_enabled on all nodes or on none")]
    TlsTheirsMissing,
    #[error("it speaks TLS and this node does not; set tls_enabled on all nodes or on none")]
    TlsOursMissing,
    #[error(
        "it is of cluster {theirs:032x} and this node of {ours:032x}; check addrs, or give the \
         node that should join an empty data directory"
    )]
    Cluster { theirs: u128, ours: u128 },
    #[error(
        "it has num_shards {theirs} and this node {ours}; it is fixed when a cluster is born: take \
         over the cluster's"
    )]
    Shards { theirs: u16, ours: u16 },
    #[error("it speaks protocol {theirs} and this node {VERSION}; upgrade {}", older(*.theirs))]
    Protocol { theirs: u16 },
    #[error("what arrives is not the protocol between nodes ({0})")]
    Hello(#[from] HelloError),
    #[error("what arrives is not the protocol between nodes ({0})")]
    Inbound(#[source] InboundError),
    #[error("what arrives is not the protocol between nodes (a {0} where none may be)")]
    Unexpected(&'static str),
    #[error("it did not introduce itself within {0:?}")]
    Timeout(Duration),
    #[error("there are too many connections ({0}); this one is cut off")]
    TooMany(usize),
    #[error(
        "node_id {name:?} is taken: {holder} has it and is connected; give one of them another \
         node_id, and an empty data directory if it was copied"
    )]
    Duplicate { name: String, holder: String },
    #[error("it is not yet a member of the cluster; it will be asked again")]
    TheyNotMember,
    #[error("this node is not yet a member of a cluster")]
    WeNotMember,
    #[error(
        "node number {found} answers at its address instead of number {expected}; check \
         gossip_advertise_addr of both"
    )]
    OtherNode { expected: NodeId, found: NodeId },
    #[error(
        "it was removed from the cluster (its number was {0}); keep it out, or start it with an \
         empty data directory"
    )]
    Removed(NodeId),
}

fn older(theirs: u16) -> &'static str {
    if theirs < VERSION { "the other node, which is older" } else { "this node, which is older" }
}

impl Objection {
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::SecretDiffers
            | Self::SecretTheirsMissing
            | Self::SecretOursMissing
            | Self::SecretUnproved => Refusal::Secret,
            Self::Tls(_) | Self::TlsTheirsMissing | Self::TlsOursMissing => Refusal::Tls,
            Self::Cluster { .. } => Refusal::Cluster,
            Self::Shards { .. } => Refusal::Shards,
            Self::Protocol { theirs } if *theirs < VERSION => Refusal::ProtocolOlder,
            Self::Protocol { .. } => Refusal::ProtocolNewer,
            Self::Hello(HelloError::TooLong { .. })
            | Self::Inbound(InboundError::Frame(FrameError::TooLong { .. })) => Refusal::TooLong,
            Self::Hello(_) | Self::Inbound(_) | Self::Unexpected(_) => Refusal::Garbage,
            Self::Timeout(_) => Refusal::Timeout,
            Self::TooMany(_) => Refusal::TooMany,
            Self::Duplicate { .. } => Refusal::Duplicate,
            Self::TheyNotMember | Self::WeNotMember => Refusal::NotMember,
            Self::OtherNode { .. } => Refusal::OtherNode,
            Self::Removed(_) => Refusal::Removed,
        }
    }
}

/// How often this node refused another, or was refused by one, by kind.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: [AtomicU64; Refusal::ALL.len()],
    said: Mutex<HashMap<(Refusal, String), Instant>>,
}

impl Refusals {
    /// How often since the start.
    pub fn count(&self, refusal: Refusal) -> u64 {
        self.counts[usize::from(refusal.code()) - 1].load(Ordering::Relaxed)
    }

    /// Counts a refusal. Whether it is to be logged: not if the same was, about the same `peer`,
    /// within the last minute.
    pub(super) fn note(&self, refusal: Refusal, peer: &str, now: Instant) -> bool {
        self.counts[usize::from(refusal.code()) - 1].fetch_add(1, Ordering::Relaxed);
        let mut said = self.said.lock();
        if said.len() >= REMEMBERED_MAX {
            said.retain(|_, last| now.saturating_duration_since(*last) < REPEAT_AFTER);
        }
        let full = said.len() >= REMEMBERED_MAX;
        match said.get_mut(&(refusal, peer.to_owned())) {
            Some(last) if now.saturating_duration_since(*last) < REPEAT_AFTER => false,
            Some(last) => {
                *last = now;
                true
            }
            None if full => false,
            None => {
                said.insert((refusal, peer.to_owned()), now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_of_its_own_that_leads_back() {
        for (at, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(refusal.code()), at + 1);
        }
        assert_eq!(Refusal::told(4), Some(Refusal::Shards));
        assert_eq!(Refusal::told(5), Some(Refusal::ProtocolNewer));
        assert_eq!(Refusal::told(0), None);
        assert_eq!(Refusal::told(15), None);
    }

    #[test]
    fn the_same_complaint_is_said_once_a_minute_and_always_counted() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(refusals.note(Refusal::Secret, "10.0.0.1", at(0)));
        assert!(!refusals.note(Refusal::Secret, "10.0.0.1", at(59)));
        assert!(refusals.note(Refusal::Secret, "10.0.0.2", at(59)));
        assert!(refusals.note(Refusal::Tls, "10.0.0.1", at(59)));
        assert!(refusals.note(Refusal::Secret, "10.0.0.1", at(60)));
        assert_eq!(refusals.count(Refusal::Secret), 4);
        assert_eq!(refusals.count(Refusal::Tls), 1);
        assert_eq!(refusals.count(Refusal::Cluster), 0);
    }

    #[test]
    fn strangers_beyond_number_are_counted_but_not_remembered() {
        let refusals = Refusals::default();
        let start = Instant::now();
        for stranger in 0..3_000 {
            refusals.note(Refusal::Garbage, &stranger.to_string(), start);
        }
        assert_eq!(refusals.said.lock().len(), 1024);
        assert_eq!(refusals.count(Refusal::Garbage), 3_000);
        assert!(refusals.note(Refusal::Garbage, "late", start + Duration::from_secs(61)));
    }

    #[test]
    fn a_complaint_says_who_is_older() {
        let newer = Objection::Protocol { theirs: VERSION + 1 };
        assert_eq!(newer.refusal(), Refusal::ProtocolNewer);
        assert!(newer.to_string().ends_with("upgrade this node, which is older"), "{newer}");
        assert_eq!(Objection::Protocol { theirs: 0 }.refusal(), Refusal::ProtocolOlder);
    }
}
