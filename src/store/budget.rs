//! The memory that all tables of a node share with the records kept for other nodes, counted and
//! bounded.
//!
//! Invariant: outside a table's own call, `used` is the sum of what the tables' entries, indexes
//! and memories of departed keys occupy, in allocator usable sizes, and of what is kept of the
//! shards' logs. The budget only counts and compares; evicting or refusing is up to whoever writes.
//!
//! Caveats: memory of removed entries that are still being sent to a client is not counted here (the
//! client API bounds it), nor what the allocator keeps for itself (a few per cent).

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What gives way when memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EvictionPolicy {
    /// Entries leave in S3-FIFO's order.
    #[default]
    S3Fifo,
    /// Nothing leaves; writes that grow are refused at the limit.
    None,
}

/// How much memory the store may use. All of it may change while the node runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// The limit, in bytes (`max_memory_mb`).
    pub max_memory: u64,
    /// The share of the limit at which eviction starts: above 0, at most 1 (`eviction_ratio`).
    pub eviction_ratio: f64,
    /// What gives way (`eviction_policy`).
    pub eviction_policy: EvictionPolicy,
    /// The part of the limit that records kept for other nodes may take, in bytes
    /// (`replication_log_mb`).
    pub replication_log: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_memory: 1024 << 20,
            eviction_ratio: 0.9,
            eviction_policy: EvictionPolicy::default(),
            replication_log: (1024 << 20) / REPLICATION_LOG_PART,
        }
    }
}

/// Records kept for other nodes take this part of the limit, where nothing else is said.
pub const REPLICATION_LOG_PART: u64 = 16;

/// The node's memory budget, shared by its tables.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    items: AtomicU64,
    limit: AtomicU64,
    watermark: AtomicU64,
    evicts: AtomicU8,
    log: AtomicU64,
    log_limit: AtomicU64,
}

impl Budget {
    /// An unused budget.
    pub fn new(config: &Config) -> Self {
        let budget = Self {
            used: AtomicU64::new(0),
            items: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            watermark: AtomicU64::new(0),
            evicts: AtomicU8::new(0),
            log: AtomicU64::new(0),
            log_limit: AtomicU64::new(0),
        };
        budget.configure(config);
        budget
    }

    /// Puts new limits into force. What is over them is for the caller to evict.
    pub fn configure(&self, config: &Config) {
        let ratio = config.eviction_ratio.clamp(0.0, 1.0);
        let watermark = (config.max_memory as f64 * ratio) as u64;
        let evicts = config.eviction_policy == EvictionPolicy::S3Fifo;
        self.limit.store(config.max_memory, Ordering::Relaxed);
        self.watermark.store(watermark.min(config.max_memory), Ordering::Relaxed);
        self.evicts.store(u8::from(evicts), Ordering::Relaxed);
        self.log_limit.store(config.replication_log, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed) + self.log()
    }

    /// Those of them that are records kept for other nodes.
    pub fn log(&self) -> u64 {
        self.log.load(Ordering::Relaxed)
    }

    /// What records kept for other nodes may take, in bytes.
    pub fn log_limit(&self) -> u64 {
        self.log_limit.load(Ordering::Relaxed)
    }

    /// Records kept for other nodes have come or gone.
    pub fn settle_log(&self, before: u64, after: u64) {
        self.log.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Entries held, expired ones that are not yet removed included.
    pub fn items(&self) -> u64 {
        self.items.load(Ordering::Relaxed)
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// The policy in force.
    pub fn policy(&self) -> EvictionPolicy {
        match self.evicts.load(Ordering::Relaxed) {
            0 => EvictionPolicy::None,
            _ => EvictionPolicy::S3Fifo,
        }
    }

    /// Bytes above the mark at which eviction starts; 0 below it.
    pub fn excess(&self) -> u64 {
        self.used().saturating_sub(self.watermark.load(Ordering::Relaxed))
    }

    /// Whether eviction starts once there are `extra` bytes more.
    pub fn would_pass_watermark(&self, extra: u64) -> bool {
        self.used() + extra > self.watermark.load(Ordering::Relaxed)
    }

    /// Whether eviction should be going on.
    pub fn over_watermark(&self) -> bool {
        self.excess() > 0
    }

    /// Whether `extra` bytes more ([`super::size_of_entry`]) would pass the limit. An index page
    /// that grows by the same insert may pass it by some KiB; the next insert is then refused.
    pub fn would_exceed_limit(&self, extra: u64) -> bool {
        self.used().saturating_add(extra) > self.limit()
    }

    /// Moves the counts by the difference between two states of a table.
    pub(super) fn settle(&self, before: Charge, after: Charge) {
        let bytes = after.bytes.wrapping_sub(before.bytes);
        let items = after.items.wrapping_sub(before.items);
        if bytes != 0 {
            self.used.fetch_add(bytes, Ordering::Relaxed);
        }
        if items != 0 {
            self.items.fetch_add(items, Ordering::Relaxed);
        }
    }
}

/// What one table has been charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Charge {
    pub(super) bytes: u64,
    pub(super) items: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermark_and_limit_follow_the_configuration_live() {
        let config = Config {
            max_memory: 1000,
            eviction_ratio: 0.5,
            eviction_policy: EvictionPolicy::None,
            replication_log: 100,
        };
        let budget = Budget::new(&config);
        budget.settle(Charge::default(), Charge { bytes: 600, items: 3 });
        assert_eq!((budget.used(), budget.items(), budget.excess()), (600, 3, 100));
        assert!(budget.over_watermark());
        assert!(!budget.would_exceed_limit(400) && budget.would_exceed_limit(401));
        assert_eq!(budget.policy(), EvictionPolicy::None);
        budget.settle_log(0, 50);
        assert_eq!((budget.used(), budget.log(), budget.excess()), (650, 50, 150));
        budget.settle_log(50, 0);
        budget.configure(&Config { max_memory: 2000, ..Config::default() });
        assert_eq!((budget.excess(), budget.policy()), (0, EvictionPolicy::S3Fifo));
        budget.settle(Charge { bytes: 600, items: 3 }, Charge::default());
        assert_eq!((budget.used(), budget.items()), (0, 0));
    }
}
