//! What the nodes of the group say to each other.
//!
//! A message, request or reply, is one byte of version, the CRC32C of the rest (little-endian),
//! and the rest in postcard. A request names sender and receiver, so that an address that now
//! belongs to another node does no harm. Whatever is no sound message of this version is refused
//! before Raft sees it.

use openraft::error::InstallSnapshotError;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::store::encode;
use super::{LogId, Types, Vote};
use crate::topology::{Command, NodeId, Outcome};

/// The version of all this.
const VERSION: u8 = 1;

/// Bytes before the postcard.
const HEAD_BYTES: usize = 5;

/// A snapshot that is said to be larger than this is refused rather than gathered.
const SNAPSHOT_BYTES_MAX: u64 = 64 << 20;

/// A request, and between whom.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) request: Request,
}

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Raft: entries of the log, and a sign of life of the leader.
    Append(AppendEntriesRequest<Types>),
    /// Raft: a candidate asks for a vote.
    Vote(VoteRequest<NodeId>),
    /// Raft: a part of a snapshot.
    Install(InstallSnapshotRequest<Types>),
    /// To the leader: a command, and how long its outcome is of use.
    Propose { command: Command, within_ms: u32 },
    /// To the leader: which entry must be applied to have all that is committed by now.
    Confirm { within_ms: u32 },
    /// From the leader of this term: it will not go on leading; elect another, this one if it
    /// names one.
    Resign { term: u64, to: Option<NodeId> },
    /// From a voter whose log ends there, before it starts an election: is there no leader?
    Canvass { last_log: Option<LogId> },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// To [`Request::Append`].
    Append(AppendEntriesResponse<NodeId>),
    /// To [`Request::Vote`].
    Vote(VoteResponse<NodeId>),
    /// To [`Request::Install`].
    Install(Result<Vote, InstallSnapshotError>),
    /// To [`Request::Propose`].
    Outcome(Outcome),
    /// To [`Request::Confirm`].
    Confirmed(Option<u64>),
    /// To [`Request::Resign`].
    Noted,
    /// Another leads, perhaps this one; ask there.
    NotLeader(Option<NodeId>),
    /// It did not come about in time. It still may.
    Undecided,
    /// Nothing was done.
    Refused(Refusal),
    /// To [`Request::Canvass`]: whether this node would elect the one that asks.
    Canvassed(bool),
}

/// Why a request was not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(super) enum Refusal {
    /// It is damaged, or makes no sense.
    #[error("it cannot read this message")]
    Unsound,
    /// It is of another version.
    #[error("the message is of version {0}, and version {VERSION} is understood")]
    Version(u8),
    /// It was meant for another node.
    #[error("it is node {0}, not the one that was meant")]
    NotMe(NodeId),
    /// This node is stopping.
    #[error("it is stopping")]
    Stopped,
}

/// A message as it travels.
pub(super) fn pack<T: Serialize>(message: &T) -> Vec<u8> {
    let body = encode(message);
    let mut packed = Vec::with_capacity(HEAD_BYTES + body.len());
    packed.push(VERSION);
    packed.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    packed.extend_from_slice(&body);
    packed
}

/// Reads a message of any bytes.
///
/// # Errors
/// [`Refusal::Unsound`] and [`Refusal::Version`].
pub(super) fn unpack<T: DeserializeOwned>(packed: &[u8]) -> Result<T, Refusal> {
    let (head, body) = packed.split_first_chunk::<HEAD_BYTES>().ok_or(Refusal::Unsound)?;
    if head[0] != VERSION {
        return Err(Refusal::Version(head[0]));
    }
    let sum = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    if sum != crc32c::crc32c(body) {
        return Err(Refusal::Unsound);
    }
    postcard::from_bytes(body).map_err(|_| Refusal::Unsound)
}

impl Request {
    /// Whether openraft may see it: it takes some things for granted.
    pub(super) fn is_sound(&self, from: NodeId) -> bool {
        let voted_for = |vote: &Vote| vote.leader_id().voted_for() == Some(from);
        match self {
            Self::Append(append) => {
                let mut next = append.prev_log_id.map_or(0, |log_id| log_id.index.wrapping_add(1));
                let consecutive = append.entries.iter().all(|entry| {
                    let fits = entry.log_id.index == next;
                    next = next.wrapping_add(1);
                    fits
                });
                consecutive && append.vote.is_committed() && voted_for(&append.vote)
            }
            Self::Vote(vote) => !vote.vote.is_committed() && voted_for(&vote.vote),
            Self::Install(install) => {
                let end = install.offset.saturating_add(install.data.len() as u64);
                let fits = end <= SNAPSHOT_BYTES_MAX;
                fits && install.vote.is_committed() && voted_for(&install.vote)
            }
            Self::Propose { .. }
            | Self::Confirm { .. }
            | Self::Resign { .. }
            | Self::Canvass { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload};
    use proptest::prelude::*;

    use super::*;
    use crate::consensus::Entry;

    fn append(indices: &[u64]) -> Request {
        let log_id = |index| LogId::new(CommittedLeaderId::new(3, NodeId(7)), index);
        let entry = |index: &u64| Entry { log_id: log_id(*index), payload: EntryPayload::Blank };
        Request::Append(AppendEntriesRequest {
            vote: Vote::new_committed(3, NodeId(7)),
            prev_log_id: Some(log_id(4)),
            entries: indices.iter().map(entry).collect(),
            leader_commit: None,
        })
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let envelope = Envelope { from: NodeId(7), to: NodeId(2), request: append(&[5, 6]) };
        let packed = pack(&envelope);
        let read: Envelope = unpack(&packed).unwrap();
        assert_eq!((read.from, read.to), (NodeId(7), NodeId(2)));
        assert_eq!(pack(&read), packed);
    }

    #[test]
    fn another_version_is_named_and_damage_is_noticed() {
        let mut packed = pack(&Reply::Undecided);
        packed[0] = 9;
        assert_eq!(unpack::<Reply>(&packed).unwrap_err(), Refusal::Version(9));
        packed[0] = 1;
        *packed.last_mut().unwrap() ^= 1;
        assert_eq!(unpack::<Reply>(&packed).unwrap_err(), Refusal::Unsound);
    }

    #[test]
    fn entries_with_a_gap_and_votes_of_others_are_unsound() {
        assert!(append(&[5, 6, 7]).is_sound(NodeId(7)));
        assert!(!append(&[6]).is_sound(NodeId(7)));
        assert!(!append(&[5, 7]).is_sound(NodeId(7)));
        assert!(!append(&[5]).is_sound(NodeId(8)), "node 8 sends what node 7 leads");
        let vote = |vote| Request::Vote(VoteRequest { vote, last_log_id: None });
        assert!(vote(Vote::new(3, NodeId(7))).is_sound(NodeId(7)));
        assert!(!vote(Vote::new_committed(3, NodeId(7))).is_sound(NodeId(7)));
    }

    #[test]
    fn a_snapshot_beyond_the_bound_is_unsound() {
        let install = |offset, bytes| {
            Request::Install(InstallSnapshotRequest {
                vote: Vote::new_committed(3, NodeId(7)),
                meta: openraft::SnapshotMeta::default(),
                offset,
                data: vec![0; bytes],
                done: false,
            })
        };
        assert!(install(67_108_863, 1).is_sound(NodeId(7)));
        assert!(!install(67_108_863, 2).is_sound(NodeId(7)));
        assert!(!install(u64::MAX, 2).is_sound(NodeId(7)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = unpack::<Envelope>(&bytes);
            let _ = unpack::<Reply>(&bytes);
            // The same behind a right checksum, so that the decoder itself is met.
            let sum = crc32c::crc32c(&bytes).to_le_bytes();
            bytes.splice(0..0, std::iter::once(1).chain(sum));
            if let Ok(envelope) = unpack::<Envelope>(&bytes) {
                let _ = envelope.request.is_sound(envelope.from);
            }
            let _ = unpack::<Reply>(&bytes);
        }

        #[test]
        fn a_message_cut_short_is_refused(cut in 0_usize..30) {
            let packed = pack(&Envelope {
                from: NodeId(7),
                to: NodeId(2),
                request: append(&[5, 6]),
            });
            prop_assume!(cut < packed.len());
            prop_assert!(unpack::<Envelope>(&packed[..cut]).is_err());
        }
    }
}
