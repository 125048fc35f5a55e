//! Decides about shards, beside the Raft leader: who leads them, who holds copies of them.
//!
//! Pure. [`Controller::plan`] takes the topology and what is seen of the members, and gives the
//! commands that consensus should be asked for; a shell around it gathers the one and proposes the
//! other, about ten times a second and at once on new evidence. A plan repeated before the last one
//! took place does no harm, since each change names the epoch it starts from. What the controller
//! remembers between plans makes it patient, never unsafe: another one, on the next leader, may
//! start with nothing.
//!
//! In this order: a primary that seems failed is replaced (`failover`); a shard that has lost its
//! majority goes on with what is left (`recovery`); copies come, go and move (`copies`);
//! primaries are balanced (`balance`). Beside that the stop lease ends when it is due (`lease`).
//!
//! Nobody is given up who can be reached (`evidence`): a primary is replaced when no connection
//! leads to it, directly or through others; a node counts as gone when moreover no gossip tells of
//! it, here or elsewhere, for the rebalance delay, and it was asked by every way and did not answer.
//!
//! Invariants: voters change only from an epoch whose primary reported itself active, and by way of
//! a joint configuration, but for unclean recovery; a new voter is level; a primary votes, lives and
//! remembers. It never knows a value, never asks a node for anything, and reads no clock.
//!
//! # Caveats
//! A joint configuration whose new set loses its majority before it was active stays until its
//! nodes return, or until unclean recovery.

mod balance;
mod copies;
mod draft;
mod evidence;
mod failover;
mod health;
mod lease;
mod level;
mod note;
mod outlook;
mod recovery;
mod sight;
mod state;
#[cfg(test)]
mod tests;
mod transfer;
mod view;
mod wire;
#[cfg(test)]
mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::topology::{Command, LeaseStep, NodeId, Topology};

pub use evidence::{Failure, REPORT_FRESH};
pub use lease::{Unsafe, may_run, may_stop};
pub use note::{HandOver, Note};
pub use outlook::{Outlook, Pace};
pub use sight::{
    Break, Inquiry, Leased, Link, Presence, Report, Role, Seems, Seen, ShardReport, Sight,
};
pub use state::{Needed, ShardState, keeps_quorum_without, shard_states};
pub use transfer::Transfer;

/// What the operator has a say in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many voters a shard should have.
    pub replication_factor: usize,
    /// How long a node must be dead before its data is copied elsewhere.
    pub rebalance_delay: Duration,
    /// What to do when no majority that remembers can be had.
    pub unclean_recovery: UncleanRecovery,
    /// How much copying may be under way to one node: so many moves of some shards each.
    pub moves_per_node_max: usize,
}

/// What to do with a shard of whose voters no majority remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UncleanRecovery {
    /// Go on with the copy that has most.
    #[default]
    Serve,
    /// Wait for the operator.
    Wait,
}

/// What should be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// For consensus, in this order.
    pub commands: Vec<Command>,
    /// For the log, once the commands took place.
    pub notes: Vec<Note>,
    /// Nodes that no way tells of: they are to be asked, by every way there is.
    pub inquire: BTreeSet<NodeId>,
    /// The end of the stop lease, for consensus, if it is due.
    pub lease: Option<LeaseStep>,
}

/// The decisions, and what they remember.
#[derive(Clone, Debug, Default)]
pub struct Controller {
    health: health::Health,
    failover: failover::Failover,
    recovery: recovery::Recovery,
    copies: copies::CopyRules,
}

impl Controller {
    /// One that remembers nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What should be done now, given the topology and what is seen.
    pub fn plan(&mut self, topology: &Topology, sight: &Sight, settings: &Settings) -> Plan {
        let assessments = self.health.observe(topology, sight, settings);
        let view = view::View::new(topology, sight, settings, &assessments);
        let mut draft = draft::Draft::new(&view);
        let mut told = Vec::new();
        self.failover.plan(&mut draft);
        self.recovery.plan(&mut draft, &mut told);
        self.copies.plan(&mut draft, &mut told);
        balance::plan(&mut draft);
        let (command, mut notes) = draft.finish();
        notes.append(&mut told);
        let inquire = view.nodes().filter(|(_, node)| node.is_to_be_asked()).map(|(id, _)| id);
        let lease = lease::plan(&view, sight.leased.as_ref());
        Plan { commands: command.into_iter().collect(), notes, inquire: inquire.collect(), lease }
    }
}
