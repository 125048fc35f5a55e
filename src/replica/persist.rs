//! The copies at rest and in memory: loading them at the start, writing them to snapshots.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::entry::ShardId;
use crate::shard::{Log, Placement};
use crate::store::{Budget, HashKeys, Table};
use crate::wal::Lsn;

use super::Copy;

/// Every shard's copy.
#[derive(Debug)]
pub struct Copies {
    placement: Placement,
    budget: Arc<Budget>,
    copies: Box<[Mutex<Copy>]>,
}

impl Copies {
    /// Empty copies of all shards of `placement`, in a cluster of region index `region`.
    pub fn new(placement: Placement, region: u8, budget: Arc<Budget>) -> Self {
        let keys = HashKeys::random();
        let empty = |shard| {
            let table = Table::new(budget.clone(), keys.clone());
            Mutex::new(Copy { log: Log::new(shard, region), table, lsn: Lsn::default() })
        };
        let copies = placement.shards().map(empty).collect();
        Self { placement, budget, copies }
    }

    /// Where keys belong.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The memory in use and its limits.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(super) fn of(&self, shard: ShardId) -> MutexGuard<'_, Copy> {
        self.copies[usize::from(shard.0)].lock()
    }

    pub(super) fn of_key(&self, key: &[u8]) -> MutexGuard<'_, Copy> {
        self.of(self.placement.shard_of(key))
    }
}
