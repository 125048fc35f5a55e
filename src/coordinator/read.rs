//! Reading one key: here where possible, else from the nearest copy that may answer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use crate::entry::{Position, ShardId, Timestamp, Version};
use crate::replica::Seen;
use crate::shard::EntryCopy;
use crate::store::{Found, Lookup};
use crate::topology::{Configuration, Copies, NodeId, Seat};
use crate::wire::{self, Ask, Reply};

use super::{Consistency, Coordinator, Data, Error, NO_PRIMARY, Read};

/// How long another copy may take to answer a read before the next is asked.
const COPY_PATIENCE: Duration = Duration::from_secs(1);

/// A copy that heard nothing from its primary for longer than this says so.
const STALE_AFTER: Duration = Duration::from_secs(1);

/// What a read came to.
#[derive(Clone, Debug)]
pub struct Got {
    /// The entry, or why there is none.
    pub lookup: Lookup,
    /// For how long the copy that answered has been out of touch with its primary.
    pub stale: Option<Duration>,
}

impl From<Lookup> for Got {
    fn from(lookup: Lookup) -> Self {
        Self { lookup, stale: None }
    }
}

impl Coordinator {
    /// Reads one key. A miss is counted by its reason.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while starting or stopping, and when too few copies could be asked;
    /// [`Error::Unknown`] when a linearizable read cannot vouch for what it saw.
    pub async fn get(&self, key: &[u8], read: Read) -> Result<Got, Error> {
        let data = self.admit()?;
        let copies = match read.consistency {
            Consistency::Linearizable => {
                let lookup = self.get_at_primary(data, key, true).await?;
                return Ok(self.counted(lookup.into()));
            }
            Consistency::Configured => Copies::Count(self.0.read_copies.load(Ordering::Relaxed)),
            Consistency::Async | Consistency::One => Copies::Count(1),
            Consistency::Quorum => Copies::Majority,
            Consistency::All => Copies::All,
        };
        if copies == Copies::Count(1) {
            let got = self.get_nearest(data, key, read.min_version).await?;
            return Ok(self.counted(got));
        }
        let shard = data.replica().placement().shard_of(key);
        let lookup = match read.min_version {
            // Whatever others have, the primary has at least that.
            Some(_) => self.get_at_primary(data, key, true).await?,
            None => self.get_newest(data, key, shard, copies).await?,
        };
        Ok(self.counted(lookup.into()))
    }

    fn counted(&self, got: Got) -> Got {
        if let Lookup::Miss(reason) = &got.lookup {
            self.0.metrics.miss(*reason);
        }
        got
    }

    /// From this node's copy, or the nearest one; what it does not have is asked of the primary.
    async fn get_nearest(
        &self,
        data: &Data,
        key: &[u8],
        min_version: Option<Version>,
    ) -> Result<Got, Error> {
        let shard = data.replica().placement().shard_of(key);
        let near = match data.look_up(key, min_version) {
            Some(seen) if seen.leads && seen.level && min_version.is_none() => {
                let stale = if data.replication.is_whole() { None } else { data.stale(shard) };
                return Ok(Got { lookup: seen.lookup, stale });
            }
            Some(seen) if seen.level => Some(seen),
            own => data.peek_elsewhere(key, min_version, shard).await.or(own),
        };
        let Some(seen) = near else {
            return self.get_at_primary(data, key, min_version.is_some()).await.map(Got::from);
        };
        if seen.holds && seen.level && matches!(seen.lookup, Lookup::Hit(_)) {
            return Ok(Got { stale: data.stale(shard), lookup: seen.lookup });
        }
        // One that is primary no more may lack the write, and must not answer.
        match self.get_at_primary(data, key, min_version.is_some()).await {
            Ok(lookup) => Ok(lookup.into()),
            // Better an old answer that says so than none.
            Err(_) if seen.holds => {
                let stale = Some(data.at_least_stale(shard, seen.away_since));
                Ok(Got { lookup: seen.lookup, stale })
            }
            Err(error) => Err(error),
        }
    }

    async fn get_at_primary(
        &self,
        data: &Data,
        key: &[u8],
        linearizable: bool,
    ) -> Result<Lookup, Error> {
        let shard = data.replica().placement().shard_of(key);
        let ask = Ask::Get { key: Bytes::copy_from_slice(key), linearizable };
        match self.ask_primary(data, shard, &ask).await?.0 {
            Reply::Entry { entry, .. } => Ok(lookup_of(entry)),
            other => Err(data.error_of(other, false)),
        }
    }

    /// The newest of what so many voters of each set have.
    async fn get_newest(
        &self,
        data: &Data,
        key: &[u8],
        shard: ShardId,
        copies: Copies,
    ) -> Result<Lookup, Error> {
        let configuration = data.topology.borrow().shard(shard).cloned().ok_or(NO_PRIMARY)?;
        let asked = configuration.seats().into_iter().filter(|seat| configuration.is_voter(*seat));
        let mut answers: futures_util::stream::FuturesUnordered<_> = asked
            .map(|seat| async move { (seat, data.peek(key, None, seat.node).await) })
            .collect();
        let mut heard: Vec<Seat> = Vec::new();
        let mut newest: Option<(Position, Lookup)> = None;
        while let Some((seat, seen)) = futures_util::StreamExt::next(&mut answers).await {
            let Some(seen) = seen else { continue };
            heard.push(seat);
            if newest.as_ref().is_none_or(|(position, _)| seen.position > *position) {
                newest = Some((seen.position, seen.lookup));
            }
            if configuration.has_quorum(copies, |seat| heard.contains(&seat)) {
                break;
            }
        }
        match newest {
            Some((_, lookup)) if configuration.has_quorum(copies, |s| heard.contains(&s)) => {
                Ok(lookup)
            }
            _ => Err(Error::Unavailable {
                why: "too few copies of the key's shard could be read in time",
                retry_after: super::RETRY_AFTER,
            }),
        }
    }
}

impl Data {
    /// What this node's copy has of a key.
    pub(super) fn look_up(&self, key: &[u8], written: Option<Version>) -> Option<Seen> {
        let now = Timestamp::now();
        self.replication.notice_absence(now);
        self.replica().get(key, written, now)
    }

    /// What the copy on a node has of a key.
    async fn peek(&self, key: &[u8], written: Option<Version>, node: NodeId) -> Option<Seen> {
        if node == self.replica().me().node {
            return self.look_up(key, written);
        }
        let ask = wire::to_vec(&Ask::Peek { key: Bytes::copy_from_slice(key), written });
        let answer = self.replication.carrier().call(node, ask, COPY_PATIENCE).await.ok()?;
        match wire::get(&answer).ok()? {
            Reply::Entry { entry, position, holds, leads, level } => {
                let lookup = lookup_of(entry);
                Some(Seen { lookup, position, holds, leads, level, away_since: None })
            }
            _ => None,
        }
    }

    /// What another node's copy has of a key: those in touch first, in this node's zone before
    /// others.
    async fn peek_elsewhere(
        &self,
        key: &[u8],
        written: Option<Version>,
        shard: ShardId,
    ) -> Option<Seen> {
        for node in self.nearest(shard) {
            if let Some(seen) = self.peek(key, written, node).await.filter(|seen| seen.level) {
                return Some(seen);
            }
        }
        None
    }

    /// The other nodes with a voting copy of a shard, nearest first.
    pub(super) fn nearest(&self, shard: ShardId) -> Vec<NodeId> {
        let topology = self.topology.borrow().clone();
        let me = self.replica().me().node;
        let zone = |node: NodeId| topology.members.get(&node).map(|member| &member.about.zone);
        let here = zone(me);
        let mut nodes: Vec<NodeId> = topology
            .shard(shard)
            .map(|configuration: &std::sync::Arc<Configuration>| configuration.voters.clone())
            .unwrap_or_default()
            .into_iter()
            .map(|seat| seat.node)
            .filter(|node| *node != me)
            .collect();
        let carrier = self.replication.carrier();
        nodes.sort_by_key(|node| (carrier.silent_for(*node).is_some(), zone(*node) != here));
        nodes
    }

    /// For how long this node has been out of touch with a shard's primary, if it is; for the
    /// primary itself, with a majority: another may lead by now.
    pub(super) fn stale(&self, shard: ShardId) -> Option<Duration> {
        let configuration = self.topology.borrow().shard(shard).cloned()?;
        let (me, replication) = (self.replica().me(), &self.replication);
        let silent = if configuration.primary == me {
            let silent =
                |seat: Seat| if seat == me { None } else { replication.silent_for(seat.node) };
            if configuration.has_quorum(Copies::Majority, |seat| silent(seat).is_none()) {
                return None;
            }
            configuration.seats().into_iter().filter_map(silent).min()?
        } else {
            replication.silent_for(configuration.primary.node)?
        };
        (silent >= STALE_AFTER).then_some(silent)
    }

    /// The same for a copy that is shown though it is not level, because its primary could not be
    /// asked: for so long at least.
    pub(super) fn at_least_stale(&self, shard: ShardId, away_since: Option<Timestamp>) -> Duration {
        let away =
            away_since.map(|since| Duration::from_millis(Timestamp::now().millis_after(since)));
        self.stale(shard).max(away).unwrap_or(super::PATIENCE)
    }
}

fn lookup_of(entry: Result<EntryCopy, crate::metrics::Miss>) -> Lookup {
    match entry {
        Ok(entry) => Lookup::Hit(found_of(&entry)),
        Err(reason) => Lookup::Miss(reason),
    }
}

/// An entry as another node told it.
pub(super) fn found_of(entry: &EntryCopy) -> Found {
    let (value, content_type) = (&entry.value, &entry.content_type);
    Found::elsewhere(entry.key.as_bytes(), value, content_type, entry.version, entry.expires_at)
}
