//! The Raft log and the vote, as openraft asks for them.
//!
//! Everything is on the disk before openraft is told so, but for the mark of what is committed:
//! that one may be behind, which costs a restarted node no more than hearing of it again.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, RaftLogReader, StorageIOError};

use super::store::{Key, Store, Write, encode};
use super::{Entry, Error, LogId, StorageError, Types, Vote};
use crate::topology::NodeId;

/// Entries that travel in one message come to no more than this, unless a single one does.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The log in the file. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Log(pub(super) Arc<Store>);

impl Log {
    async fn entries(
        &self,
        range: (Bound<u64>, Bound<u64>),
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let store = Arc::clone(&self.0);
        let entries = blocking(move || store.entries(range, bytes_max)).await;
        entries.map_err(|e| StorageIOError::read_logs(AnyError::new(&e)).into())
    }
}

/// Runs what blocks where that is allowed.
pub(super) async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(read).await.unwrap_or(Err(Error::Stopped))
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + fmt::Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        self.entries(range, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let range = (Bound::Included(start), Bound::Excluded(end));
        self.entries(range, MESSAGE_BYTES_MAX).await
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let store = Arc::clone(&self.0);
        let state = blocking(move || {
            let purged: Option<LogId> = store.get(Key::Purged)?;
            let last = match store.last_index()? {
                Some(last) => store.entries::<Entry>(last..=last, usize::MAX)?.pop(),
                None => None,
            };
            let last_log_id = last.map(|entry| entry.log_id).or(purged);
            Ok(LogState { last_purged_log_id: purged, last_log_id })
        });
        state.await.map_err(|e| StorageIOError::read_logs(AnyError::new(&e)).into())
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let write = Write::Put(vec![(Key::Vote, encode(vote))]);
        let written = self.0.write(write).await;
        written.map_err(|e| StorageIOError::write_vote(AnyError::new(&e)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let store = Arc::clone(&self.0);
        let vote = blocking(move || store.get(Key::Vote)).await;
        vote.map_err(|e| StorageIOError::read_vote(AnyError::new(&e)).into())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        if let Some(committed) = committed {
            self.0.note_committed(encode(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let store = Arc::clone(&self.0);
        let committed = blocking(move || store.committed()).await;
        committed.map_err(|e| StorageIOError::read_logs(AnyError::new(&e)).into())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<(u64, Vec<u8>)> =
            entries.into_iter().map(|entry| (entry.log_id.index, encode(&entry))).collect();
        match self.0.write(Write::Append(entries)).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(e) => Err(StorageIOError::write_logs(AnyError::new(&e)).into()),
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let written = self.0.write(Write::Truncate(log_id.index)).await;
        written.map_err(|e| StorageIOError::<NodeId>::write_logs(AnyError::new(&e)).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let written = self.0.write(Write::Purge(log_id.index, encode(&log_id))).await;
        written.map_err(|e| StorageIOError::<NodeId>::write_logs(AnyError::new(&e)).into())
    }
}
