//! Memory that is short on one node, made room for by all that fill it.
//!
//! A node holds copies of shards that others lead, and only a shard's primary evicts. So whoever is
//! over its mark asks the primaries of what it holds, each for its part. Those that have as much
//! memory are asked for what they would have evicted anyway; the smallest node counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::entry::Timestamp;
use crate::replica::Work;
use crate::store::EvictionPolicy;
use crate::topology::NodeId;
use crate::wire::{self, Kind};

use super::cluster::Cluster;

/// How often it is looked: longer than it takes until what was asked for has come free.
const PACE: Duration = Duration::from_millis(20);

/// Bytes that are asked of one node at a time, and granted at a time.
const ASK_BYTES_MAX: u64 = 4 << 20;

/// Asks the others, as long as this node is over its mark.
pub(super) async fn press(cluster: Arc<Cluster>) {
    loop {
        tokio::time::sleep(PACE).await;
        let budget = cluster.replication().replica().budget();
        let excess = budget.excess();
        if excess == 0 || budget.policy() != EvictionPolicy::S3Fifo {
            continue;
        }
        for (node, part) in parts(&cluster, excess) {
            if node != cluster.me {
                let bytes = wire::to_vec(&part.min(ASK_BYTES_MAX));
                cluster.ways().send(node, Kind::Pressure, |into| into.extend_from_slice(&bytes));
            }
        }
    }
}

/// Evicts what another node asks for, of what this one leads.
pub(super) fn relieve(cluster: &Cluster, body: &[u8]) {
    let replication = cluster.replication();
    let evicts = replication.replica().budget().policy() == EvictionPolicy::S3Fifo;
    let Ok(bytes) = wire::get::<u64>(body) else { return };
    if evicts {
        let mut work = Work::default();
        // A log that has failed says so to the server, which then stops.
        let _ =
            replication.replica().relieve(bytes.min(ASK_BYTES_MAX), Timestamp::now(), &mut work);
        replication.carry_out_soon(work);
    }
}

/// This node's own part of what is to be evicted.
pub(super) fn own_part(cluster: &Cluster, excess: u64) -> u64 {
    parts(cluster, excess).get(&cluster.me).copied().unwrap_or(0)
}

/// What each primary has to evict of the shards that this node holds, so that `excess` comes free.
fn parts(cluster: &Cluster, excess: u64) -> BTreeMap<NodeId, u64> {
    let me = cluster.replication().replica().me();
    let topology = cluster.topology_now();
    let mut led: BTreeMap<NodeId, u64> = BTreeMap::new();
    for configuration in topology.shards.iter().filter(|shard| shard.names(me)) {
        *led.entry(configuration.primary.node).or_default() += 1;
    }
    let held: u64 = led.values().sum();
    let part = |shards: u64| (u128::from(excess) * u128::from(shards)).div_ceil(u128::from(held));
    led.iter().map(|(node, shards)| (*node, part(*shards) as u64)).collect()
}
