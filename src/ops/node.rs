//! What this port needs of the node. The server implements it; so do the tests.

use std::error::Error as StdError;
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{Lease, LeaseRefusal, LeaseRequest, Shard, Status};
use crate::api::{Sites, Tokens};

/// The node, as its operator sees it. Everything but the actions answers at once, in every phase.
pub trait Node: Send + Sync + 'static {
    /// Its state now.
    fn status(&self) -> Status;

    /// Every shard that it knows; none while it starts.
    fn shards(&self) -> Vec<Shard>;

    /// Whether every shard keeps its write quorum while this node is stopped. Asked once it has
    /// started.
    ///
    /// # Errors
    /// Why not, in words for the operator.
    fn stoppable(&self) -> Result<(), String>;

    /// The configuration in force, each value with its source, secrets redacted.
    fn config(&self) -> Value;

    /// The tokens that open the actions.
    fn tokens(&self) -> Arc<Tokens>;

    /// Names and web pages that may be used while no token is set.
    fn sites(&self) -> Arc<Sites>;

    /// Reads the configuration again and applies it, or keeps the old one.
    fn reload(&self) -> impl Future<Output = Result<Reloaded, ActionError>> + Send;

    /// Writes a snapshot of all shards and waits until it is durable.
    fn snapshot(&self) -> impl Future<Output = Result<Snapshot, ActionError>> + Send;

    /// Writes a snapshot and removes the segments of the log that it makes unneeded.
    fn truncate_wal(&self) -> impl Future<Output = Result<Truncated, ActionError>> + Send;

    /// Begins to move all copies away from a member, by name.
    fn decommission(&self, name: &str) -> impl Future<Output = Result<(), ActionError>> + Send;

    /// Calls the decommission of a member off, by name: it keeps what it still holds, and is given
    /// copies again.
    fn recommission(&self, name: &str) -> impl Future<Output = Result<(), ActionError>> + Send;

    /// Ends the membership of a member that is dead or decommissioned, by name.
    fn remove(&self, name: &str) -> impl Future<Output = Result<(), ActionError>> + Send;

    /// Asks for leave to stop a member, or renews it.
    fn acquire_lease(
        &self,
        request: &LeaseRequest,
    ) -> impl Future<Output = Result<Lease, LeaseRefusal>> + Send;

    /// The stop lease that is held, as all members agree on it.
    fn lease(&self) -> impl Future<Output = Result<Option<Lease>, LeaseRefusal>> + Send;

    /// Gives the stop lease for a member back, by name; if a holder is named, only that one's. What
    /// was given back, if anything was.
    fn release_lease(
        &self,
        name: &str,
        holder: Option<&str>,
    ) -> impl Future<Output = Result<Option<Lease>, LeaseRefusal>> + Send;

    /// A holder needs its lease for a member no more: gives it back, unless the member was stopped
    /// and is not back with all its copies. Nothing held is fine.
    fn settle_lease(
        &self,
        name: &str,
        holder: &str,
    ) -> impl Future<Output = Result<(), LeaseRefusal>> + Send;

    /// Stops taking work, for good; answers at once. Draining again changes nothing.
    fn drain(&self) -> Drained;

    /// Sets the operations per second that one connection may ask for, until the next reload or
    /// start.
    fn set_rate_limit(&self, limit: RateLimit);

    /// Sets what is logged, as `log_level` would, until the next reload or start.
    ///
    /// # Errors
    /// [`ActionError::Invalid`] for a level there is not.
    fn set_log_level(&self, level: &str) -> Result<(), ActionError>;
}

/// What a reload came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reloaded {
    /// Keys whose new value is in force.
    pub applied: Vec<String>,
    /// Keys whose new value waits for a restart.
    pub needs_restart: Vec<String>,
    /// What was noted about the new configuration and did not hinder it.
    pub warnings: Vec<String>,
}

/// A finished snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Entries in it.
    pub items: u64,
    /// Its size on disk.
    pub bytes: u64,
    /// Time it took.
    pub took: Duration,
}

/// What was removed of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// Segments removed.
    pub segments: u64,
    /// Bytes freed.
    pub bytes: u64,
}

/// What is still open once draining began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Client connections not closed yet.
    pub active_connections: u64,
}

/// Operations per second that one connection may ask for; `None` is without limit.
pub type RateLimit = Option<NonZeroU32>;

/// Why an action did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// Not in the node's present state; says which, and what would help.
    #[error("{0}")]
    Conflict(&'static str),
    /// A parameter that makes no sense.
    #[error("{parameter}: {expected}")]
    Invalid {
        /// Its name.
        parameter: &'static str,
        /// What would make sense.
        expected: &'static str,
    },
    /// There is none of that name.
    #[error("the cluster has no {what} of that name")]
    Unknown {
        /// What was looked for.
        what: &'static str,
    },
    /// The new configuration is wrong; the old one stays in force.
    #[error("the new configuration has {} mistakes; the old one stays in force", .problems.len())]
    Refused {
        /// All that is wrong with it.
        problems: Vec<String>,
    },
    /// The members could not agree on it; it may still take place.
    #[error("{what} is not agreed on")]
    NotAgreed {
        /// What was tried.
        what: &'static str,
        /// Why it was not.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// It was tried and failed.
    #[error("{what} failed")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}
