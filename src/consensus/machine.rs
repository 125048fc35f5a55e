//! The state machine: the topology, changed by committed commands and by nothing else.
//!
//! It lives in memory and is published after each batch of entries. On the disk is its latest
//! snapshot; entries behind that are applied again at a start.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, RaftSnapshotBuilder, Snapshot, StorageIOError};
use tokio::sync::watch;

use super::log::blocking;
use super::store::{Key, Store, Write, encode};
use super::{
    Entry, Error, LogId, SnapshotMeta, StorageError, StoredMembership, TopologyFormat, Types,
};
use crate::topology::{Outcome, StopLeases, Topology};

/// The format of an encoded topology, its first byte.
pub(super) const TOPOLOGY_FORMAT: u8 = 1;

/// What the committed commands came to.
#[derive(Debug)]
pub(super) struct Machine {
    store: Arc<Store>,
    state: State,
    published: watch::Sender<Arc<Topology>>,
    snapshots: u64,
}

#[derive(Clone, Debug, Default)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    topology: Arc<Topology>,
}

impl Machine {
    /// The topology as the file's latest snapshot has it. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(super) fn load(store: Arc<Store>) -> Result<Self, Error> {
        let state = match read_snapshot(&store)? {
            Some((meta, bytes)) => {
                let topology = decode(&bytes).map_err(Error::Snapshot)?;
                let (applied, membership) = (meta.last_log_id, meta.last_membership);
                State { applied, membership, topology: Arc::new(topology) }
            }
            None => State::default(),
        };
        let published = watch::Sender::new(Arc::clone(&state.topology));
        Ok(Self { store, state, published, snapshots: 0 })
    }

    /// The topology as it is applied here.
    pub(super) fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        self.published.subscribe()
    }
}

fn read_snapshot(store: &Store) -> Result<Option<(SnapshotMeta, Vec<u8>)>, Error> {
    let meta = store.get(Key::SnapshotMeta)?;
    Ok(meta.zip(store.bytes(Key::Snapshot)?))
}

/// A topology as snapshots have it: one byte of format, then postcard; behind that the stop leases,
/// likewise, if there ever was one. Whoever knows of none reads the topology and stops there.
fn encode_topology(topology: &Topology) -> Vec<u8> {
    let mut bytes = vec![TOPOLOGY_FORMAT];
    bytes.extend(encode(topology));
    if topology.leases != StopLeases::default() {
        bytes.extend(encode(&topology.leases));
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<Topology, TopologyFormat> {
    match bytes.split_first() {
        Some((&TOPOLOGY_FORMAT, body)) => {
            let (mut topology, leases): (Topology, &[u8]) =
                postcard::take_from_bytes(body).map_err(TopologyFormat::Unreadable)?;
            if !leases.is_empty() {
                topology.leases =
                    postcard::from_bytes(leases).map_err(TopologyFormat::Unreadable)?;
            }
            Ok(topology)
        }
        Some((&found, _)) => Err(TopologyFormat::Unknown { found }),
        None => Err(TopologyFormat::Empty),
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.state.applied, self.state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let before = self.state.topology.revision;
        let mut outcomes = Vec::new();
        for entry in entries {
            self.state.applied = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Normal(command) => {
                    Arc::make_mut(&mut self.state.topology).apply(command)
                }
                EntryPayload::Membership(membership) => {
                    let log_id = Some(entry.log_id);
                    self.state.membership = StoredMembership::new(log_id, membership);
                    Outcome::Done
                }
                EntryPayload::Blank => Outcome::Done,
            });
        }
        if self.state.topology.revision != before {
            self.published.send_replace(Arc::clone(&self.state.topology));
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.snapshots += 1;
        let (store, state) = (Arc::clone(&self.store), self.state.clone());
        Builder { store, state, number: self.snapshots }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let bytes = snapshot.into_inner();
        let topology = decode(&bytes).map_err(|e| {
            let e = Error::Snapshot(e);
            self.store.fail(&e);
            StorageIOError::read_snapshot(Some(meta.signature()), AnyError::new(&e))
        })?;
        keep(&self.store, meta, bytes).await?;
        let (applied, membership) = (meta.last_log_id, meta.last_membership.clone());
        self.state = State { applied, membership, topology: Arc::new(topology) };
        self.published.send_replace(Arc::clone(&self.state.topology));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let store = Arc::clone(&self.store);
        let found = blocking(move || read_snapshot(&store)).await;
        let found = found.map_err(|e| StorageIOError::read_snapshot(None, AnyError::new(&e)))?;
        Ok(found.map(|(meta, bytes)| Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) }))
    }
}

async fn keep(store: &Store, meta: &SnapshotMeta, bytes: Vec<u8>) -> Result<(), StorageError> {
    let values = vec![(Key::SnapshotMeta, encode(meta)), (Key::Snapshot, bytes)];
    let written = store.write(Write::Put(values)).await;
    let failed = |e| StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&e));
    written.map_err(|e: Error| failed(e).into())
}

/// Makes one snapshot, of the state when it was asked for.
#[derive(Debug)]
pub(super) struct Builder {
    store: Arc<Store>,
    state: State,
    number: u64,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let State { applied, membership, topology } = self.state.clone();
        let at = applied.map_or_else(|| "none".to_owned(), |log_id| log_id.to_string());
        let meta = SnapshotMeta {
            last_log_id: applied,
            last_membership: membership,
            snapshot_id: format!("{at}-{}", self.number),
        };
        let bytes = encode_topology(&topology);
        keep(&self.store, &meta, bytes.clone()).await?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Announcement, Cluster, Command, LeaseStep, NodeId};

    fn founded() -> Topology {
        let mut topology = Topology::default();
        let cluster = Cluster { id: 7, hash_seed: 8, num_shards: 2 };
        let about = Announcement { name: "a".to_owned(), life: 10, ..Announcement::default() };
        topology.apply(Command::Found { cluster, founder: NodeId(1), about, epoch: 5 });
        topology
    }

    fn leased() -> Topology {
        let mut topology = founded();
        let (node, holder, revision) = (NodeId(1), "ops".to_owned(), topology.revision);
        let grant =
            LeaseStep::Grant { node, holder, ttl_ms: 60_000, run: Some(4), at_ms: 9, revision };
        assert!(matches!(topology.apply(Command::Lease(grant)), Outcome::Leased(_)));
        topology
    }

    #[test]
    fn a_snapshot_brings_the_stop_lease_back() {
        let topology = leased();
        assert_eq!(decode(&encode_topology(&topology)).unwrap(), topology);
    }

    #[test]
    fn a_snapshot_without_leases_is_as_it_was_before_there_were_any() {
        let topology = founded();
        let bytes = encode_topology(&topology);
        let plain: Topology = postcard::from_bytes(&bytes[1..]).unwrap();
        assert_eq!(bytes.len(), 1 + encode(&plain).len());
        assert_eq!(decode(&bytes).unwrap(), topology);
    }

    #[test]
    fn who_knows_no_leases_reads_the_topology_of_a_snapshot_that_has_one() {
        let topology = leased();
        let known: Topology = postcard::from_bytes(&encode_topology(&topology)[1..]).unwrap();
        assert_eq!(known.members, topology.members);
        assert_eq!(known.revision, topology.revision);
    }

    #[test]
    fn a_snapshot_whose_leases_are_cut_short_is_refused() {
        let bytes = encode_topology(&leased());
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
