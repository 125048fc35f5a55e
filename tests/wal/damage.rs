//! Logs cut and flipped at every byte.

use std::path::PathBuf;

use aegiskv::wal::{self, Lsn, Mode, Recovery};

use crate::support::{
    Known, NOTHING, append, config, disk_with, record, recovered, segment_path, start,
};
use aegiskv::disk::Faulty;
use aegiskv::wal::{inspect, verify};
use std::ops::ControlFlow;

const HEADER_BYTES: usize = 40;

const UNKNOWN: wal::Known = wal::Known { durable: Lsn(0), same_boot: false, expects_log: false };

/// A sync log of batches of the given sizes in one segment, and where each frame ends.
fn log_of(batches: &[u64]) -> (Vec<u8>, Vec<usize>) {
    let disk = Faulty::new(1);
    let (writer, mut committer) = start(&disk, config(Mode::Sync, 1 << 13), &Recovery::default());
    for n in batches {
        append(&writer, *n);
        committer.step().unwrap();
    }
    committer.finish().unwrap();
    let mut ends = Vec::new();
    inspect(&disk, &crate::support::location(), UNKNOWN, Lsn(u64::MAX), &mut |seen| {
        ends.push(seen.offset as usize + seen.bytes);
        ControlFlow::Continue(())
    })
    .unwrap();
    (disk.get(&segment_path(1)).unwrap(), ends)
}

fn upto(n: usize) -> Vec<u64> {
    (1..=n as u64).collect()
}

#[test]
fn a_log_cut_at_any_byte_recovers_to_its_whole_frames() {
    let (bytes, ends) = log_of(&[1, 4, 3, 5]);
    assert_eq!(ends.len(), 13);
    assert_eq!(*ends.last().unwrap(), bytes.len());
    for cut in 0..=bytes.len() {
        let disk = disk_with(&[(segment_path(1), bytes[..cut].to_vec())]);
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let (recovery, lsns) = recovered(&disk, NOTHING);
        assert_eq!(lsns, upto(whole), "cut at {cut}");
        assert_eq!(recovery.corruptions, [], "cut at {cut}");
        assert_eq!(recovery.next, Lsn(whole as u64 + 1), "cut at {cut}");

        // The log goes on behind the cut, and is whole again.
        let (writer, committer) = start(&disk, config(Mode::Sync, 1 << 13), &recovery);
        append(&writer, 2);
        committer.finish().unwrap();
        let (recovery, lsns) = recovered(&disk, NOTHING);
        assert_eq!(lsns, upto(whole + 2), "after going on behind a cut at {cut}");
        assert_eq!((recovery.torn_bytes, recovery.corruptions), (0, Vec::new()));
    }
}

#[test]
fn a_log_cut_short_of_what_was_known_durable_has_lost_memory() {
    let (bytes, ends) = log_of(&[1, 4, 3]);
    let known = Known { durable: Lsn(8), ..NOTHING };
    for cut in HEADER_BYTES..bytes.len() {
        let disk = disk_with(&[(segment_path(1), bytes[..cut].to_vec())]);
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let (recovery, lsns) = recovered(&disk, known);
        assert_eq!(lsns, upto(whole), "cut at {cut}");
        assert_eq!(recovery.corruptions.len(), 1, "cut at {cut}");
        assert_eq!(recovery.corruptions[0].from, Lsn(whole as u64 + 1), "cut at {cut}");
        assert_eq!(recovery.corruptions[0].to, Some(Lsn(8)), "cut at {cut}");
        assert_eq!(recovery.next, Lsn(9), "cut at {cut}");
    }
}

/// Flips every byte of a log of batches 1, 2-5, 6-8, 9-13 and checks what `known` makes of it.
fn flip_each(known: Known, torn_from: impl Fn(u64) -> bool) {
    let (bytes, ends) = log_of(&[1, 4, 3, 5]);
    for at in 0..bytes.len() {
        for mask in [0x01, 0x80, 0x5a, 0xff] {
            let disk = disk_with(&[(segment_path(1), bytes.clone())]);
            disk.flip(&segment_path(1), at, mask);
            let hit = ends.iter().filter(|end| **end <= at).count() as u64 + 1;
            let (recovery, lsns) = recovered(&disk, known);
            let case = format!("byte {at} of frame {hit} flipped by {mask:#x}: {recovery:?}");
            if at < HEADER_BYTES {
                // The header was durable before any frame was written.
                assert_eq!(lsns, upto(13), "{case}");
                assert_eq!(recovery.corruptions.len(), 1, "{case}");
            } else if torn_from(hit) {
                assert_eq!(lsns, upto(hit as usize - 1), "{case}");
                assert_eq!(recovery.corruptions, [], "{case}");
                assert!(recovery.torn_bytes > 0, "{case}");
            } else {
                let others: Vec<u64> = (1..=13).filter(|lsn| *lsn != hit).collect();
                assert_eq!(lsns, others, "{case}");
                assert_eq!(recovery.corruptions.len(), 1, "{case}");
                let corruption = &recovery.corruptions[0];
                assert_eq!((corruption.from, corruption.to), (Lsn(hit), Some(Lsn(hit))), "{case}");
                assert_eq!(corruption.segment, Some(segment_path(1)), "{case}");
                assert_eq!(recovery.next, Lsn(14), "{case}");
            }
        }
    }
}

#[test]
fn a_flipped_byte_is_corruption_unless_it_is_in_the_last_batch() {
    flip_each(NOTHING, |hit| hit >= 9);
}

#[test]
fn a_flipped_byte_is_corruption_but_in_the_last_frame_if_the_machine_was_not_down() {
    flip_each(Known { same_boot: true, ..NOTHING }, |hit| hit == 13);
}

#[test]
fn a_flipped_byte_is_corruption_wherever_the_log_was_known_durable() {
    flip_each(Known { durable: Lsn(13), ..NOTHING }, |_| false);
}

#[test]
fn a_single_later_batch_proves_that_a_bad_frame_was_durable() {
    let (bytes, ends) = log_of(&[2, 1]);
    let disk = disk_with(&[(segment_path(1), bytes)]);
    disk.flip(&segment_path(1), ends[0] + 50, 1);
    let (recovery, lsns) = recovered(&disk, NOTHING);
    assert_eq!((lsns, recovery.corruptions.len()), (vec![1, 3], 1));
}

#[test]
fn a_flipped_byte_in_an_earlier_segment_is_corruption() {
    let disk = Faulty::new(1);
    let (writer, mut committer) = start(&disk, config(Mode::Async, 1 << 13), &Recovery::default());
    append(&writer, 6);
    committer.step().unwrap();
    writer.rotate().unwrap();
    append(&writer, 3);
    committer.finish().unwrap();
    let files: Vec<(PathBuf, Vec<u8>)> =
        [1, 7].map(|first| (segment_path(first), disk.get(&segment_path(first)).unwrap())).into();
    for at in 0..files[0].1.len() {
        let disk = disk_with(&files);
        disk.flip(&segment_path(1), at, 0x10);
        let (recovery, lsns) = recovered(&disk, NOTHING);
        assert_eq!(recovery.corruptions.len(), 1, "byte {at}: {recovery:?}");
        assert_eq!(recovery.damaged_segments().collect::<Vec<_>>(), [segment_path(1)]);
        let found = if at < HEADER_BYTES { 9 } else { 8 };
        assert_eq!(lsns.len(), found, "byte {at}: {lsns:?}");
    }
    // Cut short, or gone altogether, it is missed all the same.
    for cut in (0..files[0].1.len()).step_by(7) {
        let disk = disk_with(&[(files[0].0.clone(), files[0].1[..cut].to_vec()), files[1].clone()]);
        let (recovery, lsns) = recovered(&disk, NOTHING);
        assert_eq!(recovery.corruptions.len(), 1, "cut at {cut}: {recovery:?}");
        assert_eq!(recovery.corruptions[0].to, Some(Lsn(6)), "cut at {cut}");
        assert!(lsns.ends_with(&[7, 8, 9]), "cut at {cut}");
    }
    let (recovery, lsns) = recovered(&disk_with(&files[1..]), NOTHING);
    assert_eq!(recovery.corruptions.len(), 1);
    assert_eq!((recovery.corruptions[0].from, lsns), (Lsn(1), vec![7, 8, 9]));
}

#[test]
fn zeros_in_the_middle_are_corruption_and_at_the_end_are_not() {
    let (bytes, ends) = log_of(&[2, 3, 4]);
    let mut holed = bytes.clone();
    holed[ends[1]..ends[4]].fill(0);
    let (recovery, lsns) = recovered(&disk_with(&[(segment_path(1), holed)]), NOTHING);
    // The last batch says that the one before it was durable.
    assert_eq!(lsns, [1, 2, 6, 7, 8, 9]);
    assert_eq!(recovery.corruptions[0].from, Lsn(3));
    assert_eq!(recovery.corruptions[0].to, Some(Lsn(5)));

    let mut allocated = bytes;
    allocated.resize(300_000, 0);
    let (recovery, lsns) = recovered(&disk_with(&[(segment_path(1), allocated)]), NOTHING);
    assert_eq!((lsns, recovery.torn_bytes), (upto(9), 0));
    assert_eq!(recovery.corruptions, []);
}

#[test]
fn bytes_in_a_value_that_look_like_a_frame_are_not_taken_for_one() {
    // A client that knows the format, but not the cluster's seed, writes a frame into its value.
    let strange = Faulty::new(1);
    let mut foreign = config(Mode::Sync, 1 << 13);
    foreign.location.seed = 43;
    let (writer, committer) = start(&strange, foreign, &Recovery::default());
    append(&writer, 3);
    committer.finish().unwrap();
    let forged = strange.get(&segment_path(1)).unwrap()[HEADER_BYTES..].to_vec();

    let disk = Faulty::new(1);
    let (writer, mut committer) = start(&disk, config(Mode::Sync, 1 << 13), &Recovery::default());
    let mut bait = record(1);
    bait.effect = aegiskv::entry::Effect::Put {
        value: forged.into(),
        content_type: bytes::Bytes::new(),
        expires_at: None,
    };
    writer.append(&bait).unwrap();
    committer.step().unwrap();
    append(&writer, 4);
    committer.finish().unwrap();
    disk.flip(&segment_path(1), HEADER_BYTES, 1);
    let (recovery, lsns) = recovered(&disk, NOTHING);
    assert_eq!(lsns, [2, 3, 4, 5]);
    assert_eq!(recovery.corruptions.len(), 1);
}

#[test]
fn damaged_segments_are_set_aside_only_when_asked_and_the_log_goes_on() {
    let (bytes, _) = log_of(&[3, 3, 3]);
    let disk = disk_with(&[(segment_path(1), bytes)]);
    disk.flip(&segment_path(1), 100, 0xff);
    let (recovery, lsns) = recovered(&disk, NOTHING);
    assert_eq!(lsns.len(), 8);
    let (writer, mut committer) = start(&disk, config(Mode::Sync, 1 << 13), &recovery);
    append(&writer, 2);
    committer.step().unwrap();
    assert!(disk.get(&segment_path(1)).is_some());
    writer.set_aside(&recovery).unwrap();
    assert!(disk.get(&segment_path(1)).is_none());
    assert!(disk.get(&PathBuf::from("/wal/00000000000000000001.wal.corrupt")).is_some());
    committer.finish().unwrap();
    let (recovery, lsns) = recovered(&disk, Known { start: Lsn(10), ..NOTHING });
    assert_eq!((lsns, recovery.corruptions), (vec![10, 11], Vec::new()));
}

#[test]
fn verify_tells_sound_from_torn_from_damaged() {
    let (bytes, ends) = log_of(&[2, 2, 2]);
    let check = |bytes: &[u8]| {
        let disk = disk_with(&[(segment_path(1), bytes.to_vec())]);
        verify(&disk, &crate::support::location(), UNKNOWN, Lsn(u64::MAX)).unwrap()
    };
    let sound = check(&bytes);
    assert_eq!((sound.frames, sound.range), (6, Some((Lsn(1), Lsn(6)))));
    assert_eq!((sound.torn_bytes, sound.corruptions.len()), (0, 0));
    let torn = check(&bytes[..bytes.len() - 3]);
    assert_eq!(torn.torn_bytes as usize, bytes.len() - 3 - ends[4]);
    assert_eq!((torn.frames, torn.corruptions.len()), (5, 0));
    let mut flipped = bytes;
    flipped[ends[0] + 30] ^= 4;
    let damaged = check(&flipped);
    assert_eq!((damaged.frames, damaged.corruptions.len()), (5, 1));
    assert_eq!(damaged.corruptions[0].offset as usize, ends[0]);
}
