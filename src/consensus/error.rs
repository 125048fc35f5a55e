//! What can go wrong, by what is to be done about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::store::FORMAT_VERSION;
use crate::topology::{NodeId, Rejection};

/// The way out where a node has lost its part of the topology: it must not vote as the one it was.
const WAY_OUT: &str = "move the data directory aside and start this node with an empty one, so \
that it joins its cluster again and copies its data from the others; if no other node is left, \
`aegiskv node recover` founds the topology anew";

/// Why consensus cannot start, or cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The disk failed. The node must stop.
    #[error("cannot {action} the topology's file {path}: {source}; the node stops, start it again when the disk is mended", path = path.display())]
    Disk {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What redb or the disk said.
        source: Arc<redb::Error>,
    },
    /// The file is damaged, or something else.
    #[error("the topology's file {path} cannot be used: {damage}; {WAY_OUT}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        damage: Damage,
    },
    /// Another process has the file.
    #[error("the topology's file {path} is in use by another process; stop that one first", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is another node's.
    #[error("the topology's file {path} is node {found}'s, and this is node {expected}; give each node the directory it had before", path = path.display())]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// This node.
        expected: NodeId,
    },
    /// The file was written by a newer AegisKV.
    #[error("the topology's file {path} has format {found}, this aegiskv reads up to {FORMAT_VERSION}; start it with the newer version again", path = path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A snapshot cannot be read: it comes from another version of AegisKV.
    #[error(
        "a snapshot of the topology cannot be read: {0}; start this node with the version that the other nodes run"
    )]
    Snapshot(#[source] TopologyFormat),
    /// The times do not go together.
    #[error("the times of the topology's Raft do not go together: {0}")]
    Config(#[from] Arc<openraft::ConfigError>),
    /// The founding command was refused.
    #[error("the cluster cannot be founded: {0}")]
    Refused(#[from] Rejection),
    /// The cluster was not founded in time.
    #[error(
        "the cluster was not founded within {0:?}; start this node again, it will go on from there"
    )]
    Slow(Duration),
    /// Raft ended for a reason of its own. The node must stop.
    #[error("the topology's Raft ended: {0}; start this node again")]
    Ended(#[source] Arc<openraft::error::Fatal<NodeId>>),
    /// It was stopped.
    #[error("the topology is closed on this node")]
    Stopped,
}

impl Error {
    pub(super) fn disk(action: &'static str, path: &Path, source: redb::Error) -> Self {
        Self::Disk { action, path: path.to_owned(), source: Arc::new(source) }
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::disk(action, path, redb::Error::Io(source))
    }

    pub(super) fn damaged(path: &Path, damage: Damage) -> Self {
        Self::Damaged { path: path.to_owned(), damage }
    }
}

/// What is wrong with the file.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Damage {
    /// redb cannot read it.
    #[error("{0}")]
    Redb(#[source] Arc<redb::Error>),
    /// It is gone.
    #[error("it is missing")]
    Missing,
    /// It is a redb file, but none of ours.
    #[error("it was not written by aegiskv")]
    Foreign,
    /// A value does not match its checksum.
    #[error("the checksum of {what:?} in it does not match")]
    Checksum {
        /// Which value.
        what: &'static str,
    },
    /// A value matches its checksum but cannot be decoded.
    #[error("{what:?} in it cannot be decoded ({source})")]
    Unreadable {
        /// Which value.
        what: &'static str,
        /// What the decoder said.
        source: postcard::Error,
    },
    /// redb ran into the damage and gave up.
    #[error("it is damaged in a way that redb cannot name")]
    Panicked,
}

/// Why an encoded topology cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyFormat {
    /// Its format is not known here.
    #[error("its format is {found}, and only {known} is known here", known = super::machine::TOPOLOGY_FORMAT)]
    Unknown {
        /// The format.
        found: u8,
    },
    /// It has no bytes.
    #[error("it is empty")]
    Empty,
    /// It is not what its format says.
    #[error("{0}")]
    Unreadable(#[source] postcard::Error),
}

/// Why a command has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The nodes did not agree in time. The command may still take place.
    #[error("the topology did not change within {within:?}: {reason}; it needs more than half of the nodes that vote in it", reason = reason(leader.as_deref()))]
    TimedOut {
        /// How long it was tried.
        within: Duration,
        /// The name of the leader that was asked last, if one is known.
        leader: Option<String>,
    },
    /// This node is stopping.
    #[error("the topology is closed on this node")]
    Stopped,
}

/// Why a leader's own command has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// This node does not lead; nothing was done.
    #[error("this node does not lead the topology")]
    NotLeader,
    /// It did not come about in time. It still may.
    #[error("the nodes did not agree in time")]
    Late,
}

fn reason(leader: Option<&str>) -> String {
    match leader {
        Some(leader) => format!("{leader} leads it, but could not carry it through"),
        None => "no node leads it".to_owned(),
    }
}
