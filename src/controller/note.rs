//! What operators are told of a plan.

use std::fmt;

use super::evidence::Failure;

/// One line for the log, with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A node seems failed, and others lead its shards.
    FailedOver {
        /// Its name.
        node: String,
        /// Why it seems so.
        why: Failure,
        /// Who leads how many of its shards.
        to: Vec<(String, usize)>,
    },
    /// A live node hands shards over.
    HandedOver {
        /// Its name.
        node: String,
        /// Why.
        why: HandOver,
        /// Who leads how many of its shards.
        to: Vec<(String, usize)>,
    },
    /// Shards without a majority that remembers go on with the copy that has most.
    Recovered {
        /// On which node, and how many.
        to: Vec<(String, usize)>,
    },
    /// So many shards without a majority that remembers wait for the operator.
    Waiting {
        /// How many.
        shards: usize,
    },
    /// A node is being given copies.
    CopiesStarted {
        /// Its name.
        node: String,
        /// Of so many shards, as far as is known now.
        shards: usize,
    },
    /// A node has all the copies that it should have.
    CopiesDone {
        /// Its name.
        node: String,
    },
    /// A node that is being decommissioned holds nothing any more.
    Emptied {
        /// Its name.
        node: String,
    },
}

/// Why a live node hands shards over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HandOver {
    /// It is about to restart.
    Restarting,
    /// It is to leave the cluster.
    Decommissioning,
    /// Its clock is off.
    ClockOff,
    /// Its copy moves elsewhere.
    Moving,
    /// It leads more than its share.
    Balance,
}

impl Note {
    /// Whether it is more than news: data may be lost, or somebody has to act.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::Recovered { .. } | Self::Waiting { .. })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FailedOver { node, why, to } => {
                write!(f, "{node} seems failed ({why}); {} lead its shards now", Shares(to))
            }
            Self::HandedOver { node, why, to } => {
                write!(f, "{node} {why}; it hands shards over to {}", Shares(to))
            }
            Self::Recovered { to } => write!(
                f,
                "shards without a majority that remembers go on with the copy that has most \
                 (unclean_recovery is \"serve\"): {}; late writes to them may be lost",
                Shares(to)
            ),
            Self::Waiting { shards } => write!(
                f,
                "{shards} shards have no majority that remembers, and unclean_recovery is \
                 \"wait\": start the missing nodes, or set it to \"serve\" to go on with what is \
                 left"
            ),
            Self::CopiesStarted { node, shards } => {
                write!(f, "{node} is being given copies of {shards} shards")
            }
            Self::CopiesDone { node } => write!(f, "{node} has all its copies"),
            Self::Emptied { node } => {
                write!(f, "{node} holds no copies any more; it can be stopped and removed")
            }
        }
    }
}

impl fmt::Display for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restarting => "is being restarted",
            Self::Decommissioning => "is being decommissioned",
            Self::ClockOff => "has a clock that is more than half a second off",
            Self::Moving => "gives copies away",
            Self::Balance => "leads more than its share",
        })
    }
}

/// `node1 (3), node2 (4)`.
struct Shares<'a>(&'a [(String, usize)]);

impl fmt::Display for Shares<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, shards)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name} ({shards})")?;
        }
        Ok(())
    }
}
