//! A report's serialized form.
//!
//! Seats are written once, in a table, since a life takes ten bytes; numbers that lie near another
//! are written as the distance from it, which a variable-length codec makes short. Distances wrap
//! around, so that any report comes back as it was.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::sight::{Link, Report, Role, ShardReport};
use crate::entry::{Position, ShardId};
use crate::topology::{NodeId, Seat};

const VOUCHES: u8 = 1 << 2;
const ROLE_BITS: u8 = 0b11;

#[derive(Serialize, Deserialize)]
struct Wire {
    life: u64,
    clock_offset_ms: i64,
    disk_delay_ms: u32,
    reachable: Vec<(NodeId, Link)>,
    hears: Vec<NodeId>,
    /// Each seat that a shard's `copies` name.
    seats: Vec<Seat>,
    shards: Vec<WireShard>,
}

#[derive(Serialize, Deserialize)]
struct WireShard {
    /// Shards left out since the one before.
    gap: u16,
    /// The role, and whether it vouches.
    flags: u8,
    epoch: u32,
    /// How far the last record's epoch lies behind `epoch`.
    last_epoch_back: u32,
    last_seq: u64,
    /// `committed` from `last_seq`.
    committed_ahead: i64,
    /// Places in the table of seats, and what each acknowledged, from `committed`.
    copies: Vec<(u16, i64)>,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seats: Vec<Seat> = Vec::new();
        let mut shards = Vec::with_capacity(self.shards.len());
        let mut expected = 0_u16;
        for report in &self.shards {
            let mut copies = Vec::with_capacity(report.copies.len());
            for (seat, acknowledged) in &report.copies {
                let at = seats.iter().position(|known| known == seat).unwrap_or_else(|| {
                    seats.push(*seat);
                    seats.len() - 1
                });
                let at = u16::try_from(at).map_err(ser::Error::custom)?;
                copies.push((at, distance(report.committed, *acknowledged)));
            }
            shards.push(WireShard {
                gap: report.shard.0.wrapping_sub(expected),
                flags: report.role as u8 | if report.vouches { VOUCHES } else { 0 },
                epoch: report.epoch,
                last_epoch_back: report.epoch.wrapping_sub(report.last.epoch),
                last_seq: report.last.seq,
                committed_ahead: distance(report.last.seq, report.committed),
                copies,
            });
            expected = report.shard.0.wrapping_add(1);
        }
        let reachable = self.reachable.iter().map(|(node, link)| (*node, *link)).collect();
        let wire = Wire {
            life: self.life,
            clock_offset_ms: self.clock_offset_ms,
            disk_delay_ms: self.disk_delay_ms,
            reachable,
            hears: self.hears.iter().copied().collect(),
            seats,
            shards,
        };
        wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Report {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let mut shards = Vec::with_capacity(wire.shards.len());
        let mut expected = 0_u16;
        for shard in wire.shards {
            let report = shard.unpack(expected, &wire.seats).map_err(de::Error::custom)?;
            expected = report.shard.0.wrapping_add(1);
            shards.push(report);
        }
        Ok(Self {
            at: std::time::Duration::ZERO,
            life: wire.life,
            reachable: wire.reachable.into_iter().collect(),
            clock_offset_ms: wire.clock_offset_ms,
            hears: wire.hears.into_iter().collect(),
            disk_delay_ms: wire.disk_delay_ms,
            shards,
        })
    }
}

impl WireShard {
    fn unpack(self, expected: u16, seats: &[Seat]) -> Result<ShardReport, &'static str> {
        let role = match self.flags & ROLE_BITS {
            0 => Role::Follower,
            1 => Role::TakingOver,
            2 => Role::Active,
            _ => Role::Waiting,
        };
        let epoch = self.epoch.wrapping_sub(self.last_epoch_back);
        let committed = self.last_seq.wrapping_add_signed(self.committed_ahead);
        let copy = |(at, ahead): (u16, i64)| {
            let seat = seats.get(usize::from(at))?;
            Some((*seat, committed.wrapping_add_signed(ahead)))
        };
        let copies: Option<Vec<_>> = self.copies.into_iter().map(copy).collect();
        Ok(ShardReport {
            shard: ShardId(expected.wrapping_add(self.gap)),
            epoch: self.epoch,
            last: Position { epoch, seq: self.last_seq },
            role,
            copies: copies.ok_or("a report names a seat that it does not list")?,
            committed,
            vouches: self.flags & VOUCHES != 0,
        })
    }
}

fn distance(from: u64, to: u64) -> i64 {
    to.wrapping_sub(from).cast_signed()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::controller::sight::Break;

    prop_compose! {
        fn shard_report()(
            shard in any::<u16>(),
            epoch in any::<u32>(),
            last in (any::<u32>(), any::<u64>()),
            role in prop_oneof![
                Just(Role::Follower), Just(Role::TakingOver), Just(Role::Active),
                Just(Role::Waiting),
            ],
            copies in prop::collection::vec((0..3_u64, 0..2_u64, any::<u64>()), 0..4),
            committed in any::<u64>(),
            vouches in any::<bool>(),
        ) -> ShardReport {
            let copy = |(node, life, seq)| (Seat { node: NodeId(node), life }, seq);
            ShardReport {
                shard: ShardId(shard),
                epoch,
                last: Position { epoch: last.0, seq: last.1 },
                role,
                copies: copies.into_iter().map(copy).collect(),
                committed,
                vouches,
            }
        }
    }

    prop_compose! {
        fn report()(
            life in any::<u64>(),
            clock_offset_ms in any::<i64>(),
            disk_delay_ms in any::<u32>(),
            hears in prop::collection::btree_set(any::<u64>(), 0..4),
            down in prop::collection::btree_map(any::<u64>(), prop::option::of(any::<u32>()), 0..4),
            shards in prop::collection::vec(shard_report(), 0..8),
        ) -> Report {
            let link = |for_ms: Option<u32>| match for_ms {
                None => Link::Up,
                Some(for_ms) => Link::Down { why: Break::Silent, for_ms },
            };
            let reachable = down.into_iter().map(|(n, for_ms)| (NodeId(n), link(for_ms))).collect();
            let hears = hears.into_iter().map(NodeId).collect();
            let at = Duration::ZERO;
            Report { at, life, reachable, clock_offset_ms, hears, disk_delay_ms, shards }
        }
    }

    proptest! {
        #[test]
        fn a_report_comes_back_as_it_was(report in report()) {
            let bytes = postcard::to_stdvec(&report).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Report>(&bytes).unwrap(), report);
        }

        #[test]
        fn bytes_that_are_no_report_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(postcard::from_bytes::<Report>(&bytes));
        }
    }

    #[test]
    fn a_report_of_4096_shards_is_some_60_kilobytes() {
        let seat = |node| Seat { node: NodeId(node), life: u64::MAX - node };
        let shard = |shard| ShardReport {
            shard: ShardId(shard),
            epoch: 1_000,
            last: Position { epoch: 1_000, seq: 1_000_000 },
            role: Role::Active,
            copies: vec![(seat(1), 999_990), (seat(2), 1_000_000)],
            committed: 999_995,
            vouches: true,
        };
        let report = Report { shards: (0..4096).map(shard).collect(), ..Report::default() };
        let bytes = postcard::to_stdvec(&report).unwrap();
        assert!(bytes.len() < 15 * 4096, "{} bytes", bytes.len());
    }

    #[test]
    fn a_seat_out_of_range_is_refused() {
        let wire = |flags, copies| Wire {
            life: 1,
            clock_offset_ms: 0,
            disk_delay_ms: 0,
            reachable: Vec::new(),
            hears: Vec::new(),
            seats: Vec::new(),
            shards: vec![WireShard {
                gap: 0,
                flags,
                epoch: 1,
                last_epoch_back: 0,
                last_seq: 1,
                committed_ahead: 0,
                copies,
            }],
        };
        let read = |wire: Wire| {
            postcard::from_bytes::<Report>(&postcard::to_stdvec(&wire).unwrap()).is_ok()
        };
        assert!(read(wire(2, Vec::new())));
        assert!(!read(wire(2, vec![(0, 0)])));
    }
}
