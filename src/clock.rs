//! The version clock: gives each record of a shard its version.
//!
//! Invariant: the versions of one shard rise strictly, whatever the wall clock does.
//! It never reads a clock itself; the caller brings `now`.

use std::time::Duration;

use crate::entry::{Timestamp, Version};

/// A version from elsewhere that lies further ahead of our clock than this is refused.
pub const AHEAD_MAX: Duration = Duration::from_secs(60);

/// One shard's version clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    highest: Version,
}

impl Clock {
    /// The next version at `now` in region `region` and epoch `epoch`: the wall clock's, or the
    /// next above the highest that the shard's log has seen, whichever is larger.
    pub fn next(&mut self, now: Timestamp, region: u8, epoch: u32) -> Version {
        let version = Version::at(now, region).max(self.highest.next(region)).of_epoch(epoch);
        self.highest = version;
        version
    }

    /// Takes note of a version that stands in the log; later ones will lie above it.
    pub fn observe(&mut self, version: Version) {
        self.highest = self.highest.max(version);
    }

    /// The highest version given or seen.
    pub fn highest(&self) -> Version {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rise_when_the_wall_clock_stands_still_or_falls_back() {
        let mut clock = Clock::default();
        let noon = Timestamp(Version::EPOCH_MILLIS + 43_200_000);
        let first = clock.next(noon, 0, 127);
        let second = clock.next(noon, 0, 128);
        let third = clock.next(Timestamp(noon.0 - 600_000), 0, 129);
        assert!(first < second && second < third);
        assert_eq!(third.timestamp(), noon);
    }

    #[test]
    fn a_version_seen_elsewhere_is_passed() {
        let mut clock = Clock::default();
        clock.observe(Version(u64::from(u32::MAX) << 22));
        let next = clock.next(Timestamp(Version::EPOCH_MILLIS), 3, 1);
        assert!(next > Version(u64::from(u32::MAX) << 22));
    }

    #[test]
    fn two_primaries_at_the_same_moment_give_different_versions() {
        let noon = Timestamp(Version::EPOCH_MILLIS + 43_200_000);
        let [deposed, next] = [4, 5].map(|epoch| Clock::default().next(noon, 2, epoch));
        assert_ne!(deposed, next);
        assert_eq!((deposed.timestamp(), deposed.region()), (next.timestamp(), next.region()));
    }
}
