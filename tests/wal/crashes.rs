//! Crashes at every step, with what was not synced torn at random.

use aegiskv::disk::Faulty;
use aegiskv::wal::{Lsn, Mode, Recovery};

use crate::support::{Known, NOTHING, append, config, recovered, start};

/// A small generator, so that each seed makes its own run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// One life in mode sync that ends in a power cut after so many changes to the disk; answers the
/// last number that was settled, if the log could be opened at all.
fn live(disk: &Faulty, recovery: &Recovery, dice: &mut Dice) -> Option<Lsn> {
    disk.cut_power_after(dice.roll(40));
    let opened = aegiskv::wal::Writer::start_stepped(
        std::sync::Arc::new(disk.clone()),
        config(Mode::Sync, 2_000),
        recovery,
    );
    let (writer, mut committer) = opened.ok()?;
    let mut settled = writer.durable_lsn();
    loop {
        append(&writer, 1 + dice.roll(6));
        if committer.step().is_err() {
            // Whatever was published before the failure was promised.
            return Some(writer.durable_lsn().max(settled));
        }
        settled = writer.durable_lsn();
        assert_eq!(settled, Lsn(writer.next_lsn().0 - 1));
    }
}

#[test]
fn in_sync_mode_every_settled_record_outlives_the_machine() {
    for seed in 1..=600 {
        let disk = Faulty::new(seed);
        let mut dice = Dice(seed);
        let mut promised = Lsn(0);
        let mut recovery = Recovery::default();
        for life in 0..4 {
            promised = live(&disk, &recovery, &mut dice).unwrap_or(promised).max(promised);
            disk.crash();
            let (found, lsns) = recovered(&disk, NOTHING);
            let case = format!("seed {seed}, life {life}, promised {promised}, {found:?}");
            assert_eq!(found.corruptions, [], "{case}");
            assert!(found.next > promised, "{case}");
            assert_eq!(lsns, (1..found.next.0).collect::<Vec<_>>(), "{case}");
            // What is found once may be served; so it must not be lost later.
            promised = Lsn(found.next.0 - 1);
            recovery = found;
            if recovery.segments.is_empty() {
                recovery = Recovery::default();
            }
            let _ = aegiskv::wal::Writer::start_stepped(
                std::sync::Arc::new(disk.clone()),
                config(Mode::Sync, 2_000),
                &recovery,
            )
            .unwrap();
            recovery = recovered(&disk, NOTHING).0;
        }
    }
}

#[test]
fn in_async_mode_every_settled_record_outlives_the_process() {
    for seed in 1..=500 {
        let disk = Faulty::new(seed);
        let mut dice = Dice(seed);
        let mut recovery = Recovery::default();
        let mut settled = 0;
        for _ in 0..3 {
            let (writer, mut committer) = start(&disk, config(Mode::Async, 1_500), &recovery);
            for _ in 0..dice.roll(30) {
                let lsn = append(&writer, 1 + dice.roll(4));
                writer.settle_blocking(lsn).unwrap();
                settled = lsn.0;
                if dice.roll(5) == 0 {
                    committer.step().unwrap();
                }
            }
            append(&writer, dice.roll(3));
            disk.kill();
            let (found, lsns) = recovered(&disk, Known { same_boot: true, ..NOTHING });
            assert_eq!(found.corruptions, [], "seed {seed}");
            assert_eq!(lsns, (1..=settled).collect::<Vec<_>>(), "seed {seed}");
            recovery = found;
        }
    }
}

#[test]
fn in_async_mode_a_crash_of_the_machine_loses_only_what_was_not_synced() {
    for seed in 1..=1_000 {
        let disk = Faulty::new(seed);
        let mut dice = Dice(seed);
        let (writer, mut committer) =
            start(&disk, config(Mode::Async, 1_500), &Recovery::default());
        for _ in 0..1 + dice.roll(30) {
            let lsn = append(&writer, 1 + dice.roll(4));
            writer.settle_blocking(lsn).unwrap();
            if dice.roll(5) == 0 {
                committer.step().unwrap();
            }
        }
        let durable = writer.durable_lsn();
        disk.crash();
        let (found, lsns) = recovered(&disk, Known { durable, ..NOTHING });
        assert_eq!(found.corruptions, [], "seed {seed}");
        assert!(found.next > durable, "seed {seed}");
        assert_eq!(lsns, (1..found.next.0).collect::<Vec<_>>(), "seed {seed}");
    }
}
