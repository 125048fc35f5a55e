//! The stop lease, in the words of this port: what is asked for, what is held, why not.

use std::error::Error as StdError;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::entry::Timestamp;

/// A lease lasts so long unless its holder says otherwise.
pub const LEASE_TTL: Duration = Duration::from_mins(30);

/// No lease lasts longer.
pub const LEASE_TTL_MAX: Duration = Duration::from_hours(24);

/// Nor shorter.
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(1);

/// The longest name of a holder, in bytes.
pub const HOLDER_BYTES_MAX: usize = 256;

/// Somebody asks for leave to stop a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    /// Which node, by name.
    pub node_id: String,
    /// Who asks.
    pub holder: String,
    /// For how long.
    pub ttl: Duration,
}

/// Leave to stop a node, as somebody holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// Its number; rises with each lease that is granted.
    pub lease_id: u64,
    /// The node that may be stopped, by name.
    pub node_id: String,
    /// Who holds it.
    pub holder: String,
    /// Since when.
    #[serde(serialize_with = "as_text")]
    pub since: Timestamp,
    /// Until when, unless it is renewed.
    #[serde(serialize_with = "as_text")]
    pub until: Timestamp,
    /// How long it lasts from when it was granted or renewed.
    pub ttl_seconds: u64,
    /// Whether it was renewed since it was granted.
    pub renewed: bool,
}

fn as_text<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc_3339(*at))
}

/// A moment as RFC 3339 has it, to the second.
pub(super) fn rfc_3339(at: Timestamp) -> String {
    let moment = std::time::SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at.0));
    let moment = moment.unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(moment).to_string()
}

/// Why it is not safe to stop a node now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseUnsafe {
    /// In words.
    pub why: String,
    /// Shards that would lose their write quorum, or their majority.
    pub shards_without_quorum: Vec<u16>,
    /// Shards with copies on other nodes that are not level.
    pub shards_not_level: Vec<u16>,
    /// Other members that are not there, by name.
    pub members_missing: Vec<String>,
}

/// Why a lease was not granted, or not given back.
#[derive(Debug, thiserror::Error)]
pub enum LeaseRefusal {
    /// There is no such member.
    #[error("the cluster has no member named {0:?}; `aegiskv status` lists them")]
    Unknown(String),
    /// Somebody else holds it, or it is held for another node.
    #[error("{} holds the stop lease for {} until {}; one node at a time may be stopped", .0.holder, .0.node_id, rfc_3339(.0.until))]
    Held(Box<Lease>),
    /// It would not be safe.
    #[error("{}", .0.why)]
    Unsafe(Box<LeaseUnsafe>),
    /// The node was stopped, and is not back with all its copies.
    #[error("{0}")]
    NotBack(String),
    /// Not in this node's present state; says what would help.
    #[error("{0}")]
    Elsewhere(&'static str),
    /// The members could not agree; what was asked for may still take place.
    #[error("the members could not agree on the stop lease in time; ask again, which does no harm")]
    NotAgreed {
        /// Why.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
}
