//! A log that is shorter than it was: what the mark knows of it.

use aegiskv::disk::{Disk, Faulty};
use aegiskv::wal::{Committer, Damage, Lsn, Mode, Recovery, Writer, verify};

use crate::support::{
    self, Known, NOTHING, append, config, disk_with, location, recovered, segment_path, start,
};

const HEADER_BYTES: usize = 40;
const SLOTS: [usize; 2] = [0, 4096];

const SAME_BOOT: Known = Known { same_boot: true, ..NOTHING };

fn mark_path() -> std::path::PathBuf {
    "/wal/mark.wal".into()
}

/// A log of `before` frames in a first segment, if any, and of `last` in the last one, all settled.
fn log_of(mode: Mode, before: u64, last: u64) -> (Faulty, Writer, Committer) {
    let disk = Faulty::new(1);
    let (writer, mut committer) = start(&disk, config(mode, 1 << 13), &Recovery::default());
    for (n, ends) in [(before, true), (last, false)] {
        for _ in 0..n {
            append(&writer, 1);
            committer.step().unwrap();
        }
        if ends && n > 0 {
            writer.rotate().unwrap();
        }
    }
    (disk, writer, committer)
}

/// Does something to a file of a disk.
fn cut(disk: &Faulty, path: &std::path::Path, length: u64) {
    disk.open_to_write(path).unwrap().truncate(length).unwrap();
}

fn zero(disk: &Faulty, path: &std::path::Path) {
    let bytes = disk.get(path).unwrap();
    disk.put(path, &vec![0; bytes.len()]);
}

/// What befalls a log's last segment.
type Loss = fn(&Faulty, u64);

const LOSSES: [(&str, Loss); 4] = [
    ("gone", |disk, first| disk.remove(&segment_path(first)).unwrap()),
    ("emptied", |disk, first| cut(disk, &segment_path(first), 0)),
    ("zeroed", |disk, first| zero(disk, &segment_path(first))),
    ("its header cut in two", |disk, first| cut(disk, &segment_path(first), 20)),
];

#[test]
fn a_last_segment_that_is_lost_is_missed_after_a_kill_with_all_it_held() {
    for mode in [Mode::Sync, Mode::Async] {
        for before in [0, 4] {
            for (what, lose) in LOSSES {
                let (disk, writer, committer) = log_of(mode, before, 3);
                drop((writer, committer));
                disk.kill();
                lose(&disk, before + 1);
                let case = format!("{mode:?}, {before} before, {what}");
                let (recovery, lsns) = recovered(&disk, SAME_BOOT);
                assert_eq!(lsns, (1..=before).collect::<Vec<_>>(), "{case}");
                assert_eq!(recovery.corruptions.len(), 1, "{case}: {recovery:?}");
                let corruption = &recovery.corruptions[0];
                let lost = (corruption.from, corruption.to);
                assert_eq!(lost, (Lsn(before + 1), Some(Lsn(before + 3))), "{case}");
                assert_eq!(recovery.next, Lsn(before + 4), "{case}");
            }
        }
    }
}

#[test]
fn a_last_segment_that_is_lost_is_missed_after_a_crash_of_the_machine_though_not_all_it_held() {
    for seed in 1..=100 {
        for before in [0, 4] {
            for (what, lose) in LOSSES {
                let disk = Faulty::new(seed);
                let config = || config(Mode::Sync, 1 << 13);
                let (writer, mut committer) = start(&disk, config(), &Recovery::default());
                append(&writer, before);
                committer.step().unwrap();
                writer.rotate().unwrap();
                append(&writer, 3);
                committer.step().unwrap();
                disk.crash();
                lose(&disk, before + 1);
                let case = format!("seed {seed}, {before} before, {what}");
                let (recovery, _) = recovered(&disk, NOTHING);
                assert_eq!(recovery.corruptions.len(), 1, "{case}: {recovery:?}");
                assert_eq!(recovery.corruptions[0].from, Lsn(before + 1), "{case}");
                assert!((before + 2..=before + 4).contains(&recovery.next.0), "{case}");

                // It goes on behind what was lost, and what is lost is said once.
                let (writer, mut committer) = start(&disk, config(), &recovery);
                let first = append(&writer, 2).0 - 1;
                assert_eq!(Lsn(first), recovery.next, "{case}");
                committer.step().unwrap();
                writer.set_aside(&recovery).unwrap();
                writer.truncate_below(recovery.next).unwrap();
                disk.crash();
                let known = Known { start: recovery.next, ..NOTHING };
                let (recovery, lsns) = recovered(&disk, known);
                assert_eq!(
                    (recovery.corruptions, lsns),
                    (vec![], vec![first, first + 1]),
                    "{case}"
                );
            }
        }
    }
}

#[test]
fn what_was_synced_is_missed_wherever_the_log_is_cut_and_what_was_not_is_a_torn_end() {
    let (disk, writer, mut committer) = log_of(Mode::Sync, 0, 6);
    // With the kernel, but the sync fails: nobody was told.
    append(&writer, 2);
    disk.fail_sync_after(0);
    assert!(committer.step().is_err());
    disk.kill();
    let bytes = disk.get(&segment_path(1)).unwrap();
    let mark = disk.get(&mark_path()).unwrap();
    let (_, lsns) = recovered(&disk, SAME_BOOT);
    assert_eq!(lsns, [1, 2, 3, 4, 5, 6, 7, 8]);
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for known in [SAME_BOOT, NOTHING] {
        for cut in HEADER_BYTES..end {
            let mut segment = bytes.clone();
            segment.truncate(cut);
            // As a file that ends, and as one whose end was zeroed.
            for length in [cut, bytes.len()] {
                segment.resize(length, 0);
                let files = [(segment_path(1), segment.clone()), (mark_path(), mark.clone())];
                let (recovery, lsns) = recovered(&disk_with(&files), known);
                let case = format!("cut at {cut} of {length}: {recovery:?}");
                let missing: Vec<_> =
                    recovery.corruptions.iter().map(|c| (c.from.0, c.to.unwrap().0)).collect();
                let found = lsns.len() as u64;
                if found >= 6 {
                    assert_eq!(missing, [], "{case}");
                    assert_eq!(recovery.next, Lsn(found + 1), "{case}");
                } else {
                    assert_eq!(missing, [(found + 1, 6)], "{case}");
                    assert_eq!(recovery.next, Lsn(7), "{case}");
                }
            }
        }
    }
}

#[test]
fn in_async_mode_a_killed_process_misses_all_but_a_few_of_the_last_writes() {
    let disk = Faulty::new(1);
    let (writer, _committer) = start(&disk, config(Mode::Async, 1 << 13), &Recovery::default());
    for _ in 0..50 {
        let lsn = append(&writer, 1);
        writer.settle_blocking(lsn).unwrap();
    }
    disk.kill();
    cut(&disk, &segment_path(1), HEADER_BYTES as u64);
    let (recovery, lsns) = recovered(&disk, SAME_BOOT);
    assert_eq!((recovery.corruptions.len(), recovery.next, lsns), (1, Lsn(49), vec![]));
    // What was with the kernel only is nothing to be missed after a crash of the machine.
    let (recovery, lsns) = recovered(&disk, NOTHING);
    assert_eq!((recovery.corruptions, recovery.next, lsns), (vec![], Lsn(1), vec![]));
}

#[test]
fn a_mark_that_was_synced_is_known_whatever_a_crash_of_the_machine_leaves_of_the_next() {
    for seed in 1..=300 {
        let disk = Faulty::new(seed);
        disk.shorten_writes();
        let (writer, mut committer) =
            start(&disk, config(Mode::Sync, 1 << 13), &Recovery::default());
        for synced in [3, 2] {
            append(&writer, synced);
            committer.step().unwrap();
            committer.sync_mark().unwrap();
            for _ in 0..synced {
                append(&writer, 1);
                committer.step().unwrap();
            }
        }
        disk.crash();
        cut(&disk, &segment_path(1), HEADER_BYTES as u64);
        let (recovery, _) = recovered(&disk, NOTHING);
        assert_eq!(recovery.corruptions.len(), 1, "seed {seed}: {recovery:?}");
        assert_eq!(recovery.corruptions[0].damage, Damage::Missing, "seed {seed}");
        assert!((9..=11).contains(&recovery.next.0), "seed {seed}: {recovery:?}");
    }
}

#[test]
fn a_damaged_mark_is_a_loss_unless_the_other_half_is_sound() {
    let (disk, writer, committer) = log_of(Mode::Sync, 2, 2);
    drop(writer);
    committer.finish().unwrap();
    disk.flip(&mark_path(), SLOTS[0] + 45, 1);
    assert_eq!(recovered(&disk, NOTHING).0.corruptions, []);
    disk.flip(&mark_path(), SLOTS[1] + 3, 1);
    let (recovery, lsns) = recovered(&disk, NOTHING);
    assert_eq!((lsns, recovery.next), (vec![1, 2, 3, 4], Lsn(5)));
    let damages: Vec<Damage> = recovery.corruptions.iter().map(|c| c.damage).collect();
    assert_eq!(damages, [Damage::Mark]);

    // The next start makes a new one.
    let (writer, committer) = start(&disk, config(Mode::Sync, 1 << 13), &recovery);
    append(&writer, 1);
    committer.finish().unwrap();
    assert_eq!(recovered(&disk, NOTHING).0.corruptions, []);

    // Emptied it is damaged as well; a log without one is an older AegisKV's.
    cut(&disk, &mark_path(), 0);
    assert_eq!(recovered(&disk, NOTHING).0.corruptions.len(), 1);
    disk.remove(&mark_path()).unwrap();
    assert_eq!(recovered(&disk, NOTHING).0.corruptions, []);
}

#[test]
fn verify_says_what_the_last_segment_lacks() {
    let known = |durable, same_boot| aegiskv::wal::Known {
        durable: Lsn(durable),
        same_boot,
        expects_log: true,
    };
    let check = |disk: &Faulty, known: aegiskv::wal::Known| {
        let needed = Lsn(known.durable.0 + 1);
        let verified = verify(disk, &location(), known, needed).unwrap();
        let missing: Vec<_> = verified.corruptions.iter().map(|c| (c.from.0, c.to)).collect();
        (verified.durable.0, missing)
    };
    let (disk, writer, committer) = log_of(Mode::Sync, 2, 3);
    drop((writer, committer));
    disk.kill();
    assert_eq!(check(&disk, known(0, true)), (5, vec![]));
    cut(&disk, &segment_path(3), HEADER_BYTES as u64);
    assert_eq!(check(&disk, known(0, true)), (5, vec![(3, Some(Lsn(5)))]));
    disk.remove(&segment_path(3)).unwrap();
    assert_eq!(check(&disk, known(0, false)), (5, vec![(3, Some(Lsn(5)))]));
    disk.remove(&segment_path(1)).unwrap();
    // A snapshot has the first four.
    assert_eq!(check(&disk, known(4, false)), (5, vec![(5, Some(Lsn(5)))]));
    disk.remove(&mark_path()).unwrap();
    assert_eq!(check(&disk, known(4, false)), (4, vec![(5, Some(Lsn(5)))]));
}

#[test]
fn a_mark_of_another_cluster_is_refused() {
    let (disk, writer, committer) = log_of(Mode::Sync, 0, 1);
    drop(writer);
    committer.finish().unwrap();
    let mut other = location();
    other.cluster_id += 1;
    let known = aegiskv::wal::Known { durable: Lsn(0), same_boot: false, expects_log: false };
    let refused = verify(&disk, &other, known, Lsn(1)).unwrap_err();
    assert!(refused.to_string().contains("mark.wal belongs to cluster"), "{refused}");
    let _ = support::CLUSTER;
}
