//! Which shard a key belongs to: the same on every node of a cluster, and in every life of it.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::entry::ShardId;

/// A cluster's placement of keys, fixed at its birth.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    hasher: SipHasher13,
    num_shards: u16,
}

impl Placement {
    /// `seed` is the cluster's own, so that nobody outside can aim keys at one shard.
    ///
    /// # Panics
    /// If `num_shards` is 0; the configuration refuses that.
    pub fn new(seed: u128, num_shards: u16) -> Self {
        assert!(num_shards > 0, "a cluster has at least one shard");
        Self { hasher: SipHasher13::new_with_key(&seed.to_le_bytes()), num_shards }
    }

    /// How many shards there are.
    pub fn num_shards(&self) -> u16 {
        self.num_shards
    }

    /// Every shard, in order.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.num_shards).map(ShardId)
    }

    /// The shard of `key`: SipHash-1-3 of its bytes under the seed, modulo the number of shards.
    pub fn shard_of(&self, key: &[u8]) -> ShardId {
        let mut hasher = self.hasher;
        hasher.write(key);
        ShardId((hasher.finish() % u64::from(self.num_shards)) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_shard_for_ever() {
        let placement = Placement::new(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100, 256);
        // Changing these moves every key of every cluster: it is a change of format.
        assert_eq!(placement.shard_of(b"user:2"), ShardId(68));
        assert_eq!(placement.shard_of(b""), ShardId(220));
    }

    #[test]
    fn keys_spread_evenly() {
        let placement = Placement::new(7, 16);
        let mut counts = [0_u32; 16];
        for n in 0..16_000 {
            counts[usize::from(placement.shard_of(format!("key{n}").as_bytes()).0)] += 1;
        }
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
    }
}
