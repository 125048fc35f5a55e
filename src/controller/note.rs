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
        /// The voters that were asked by every way and did not answer, by name.
        asked: Vec<String>,
    },
    /// So many shards without a majority that remembers wait for the operator.
    Waiting {
        /// How many.
        shards: usize,
    },
    /// So many shards have no majority that can be used, and are left alone: some of their voters
    /// are not gone.
    Withheld {
        /// How many.
        shards: usize,
        /// The voters that are not gone, by name.
        heard: Vec<String>,
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
    /// Its disk keeps writes waiting.
    DiskSlow {
        /// For so long.
        ms: u32,
    },
    /// It is badly connected.
    Apart,
    /// Its copy moves elsewhere.
    Moving,
    /// It leads more than its share.
    Balance,
}

impl Note {
    /// Whether it is more than news: data may be lost, or somebody has to act.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::Recovered { .. } | Self::Waiting { .. } | Self::Withheld { .. })
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
            Self::Recovered { to, asked } => write!(
                f,
                "shards without a majority that remembers go on with the copy that has most \
                 (unclean_recovery is \"serve\"): {}; late writes to them may be lost; {}",
                Shares(to),
                Asked(asked)
            ),
            Self::Waiting { shards } => write!(
                f,
                "{shards} shards have no majority that remembers, and unclean_recovery is \
                 \"wait\": start the missing nodes, or set it to \"serve\" to go on with what is \
                 left"
            ),
            Self::Withheld { shards, heard } => write!(
                f,
                "{shards} shards have no majority that can be used, and are not given up, since {} \
                 cannot be shown to be gone; mend the network, or start or remove the node",
                heard.join(", ")
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
            Self::DiskSlow { ms } => return write!(f, "has a slow disk that takes {ms} ms"),
            Self::Restarting => "is being restarted",
            Self::Decommissioning => "is being decommissioned",
            Self::ClockOff => "has a clock that is more than half a second off",
            Self::Apart => "is badly connected",
            Self::Moving => "gives copies away",
            Self::Balance => "leads more than its share",
        })
    }
}

/// What was done to find voters that remember.
struct Asked<'a>(&'a [String]);

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none of their voters has kept its memory");
        }
        let names = self.0.join(", ");
        write!(f, "{names}: asked at every address and through every member, no answer")
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
