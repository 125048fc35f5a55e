//! Writing, settling, rotating, truncating, and failing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aegiskv::disk::{Disk, Faulty, Os};
use aegiskv::entry::{Effect, ShardId};
use aegiskv::wal::{
    BACKLOG_BYTES_MAX, Error, Frame, Known, Location, Lsn, Mode, Progress, Recovery, Replay,
    Writer, recover,
};
use futures_util::FutureExt;

use crate::support::{
    self, CLUSTER, NOTHING, SHARDS, append, config, location, record, recovered, segment_path,
    start,
};

#[test]
fn off_writes_nothing() {
    let disk = Faulty::new(1);
    let (writer, _) = start(&disk, config(Mode::Off, 1_000), &Recovery::default());
    let lsn = writer.append(&record(1)).unwrap();
    assert_eq!(lsn, Lsn(0));
    writer.settle(lsn).now_or_never().unwrap().unwrap();
    assert!(disk.list("/wal".as_ref()).is_err());
    assert_eq!(writer.bytes(), 0);
    writer.close().unwrap();
}

#[test]
fn async_settles_in_place_for_all_who_came_before() {
    let disk = Faulty::new(1);
    let (writer, _committer) = start(&disk, config(Mode::Async, 1 << 13), &Recovery::default());
    append(&writer, 3);
    assert!(writer.backlog_bytes() > 0);
    disk.fail_write_after(1);
    writer.settle(Lsn(3)).now_or_never().unwrap().unwrap();
    assert_eq!(writer.backlog_bytes(), 0);
    // Written along: no second write, which would fail.
    writer.settle(Lsn(1)).now_or_never().unwrap().unwrap();
    writer.settle(Lsn(2)).now_or_never().unwrap().unwrap();
    assert_eq!(recovered(&disk, NOTHING).1, [1, 2, 3]);
}

#[test]
fn sync_settles_when_the_sync_that_covers_it_has_ended() {
    let disk = Faulty::new(1);
    let (writer, mut committer) = start(&disk, config(Mode::Sync, 1 << 13), &Recovery::default());
    append(&writer, 2);
    let mut first = Box::pin(writer.settle(Lsn(1)));
    let mut second = Box::pin(writer.settle(Lsn(2)));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    committer.step().unwrap();
    append(&writer, 1);
    first.now_or_never().unwrap().unwrap();
    second.now_or_never().unwrap().unwrap();
    assert!(writer.settle(Lsn(3)).now_or_never().is_none());
    disk.crash();
    assert_eq!(recovered(&disk, NOTHING).1, [1, 2]);
}

#[test]
fn many_waiters_share_a_sync() {
    let syncs = Arc::new(AtomicU64::new(0));
    let disk = Faulty::new(1);
    let mut config = config(Mode::Sync, 1 << 13);
    let count = Arc::clone(&syncs);
    config.on_fsync = Arc::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let (writer, mut committer) = start(&disk, config, &Recovery::default());
    append(&writer, 64);
    let waiting: Vec<_> = (1..=64).map(|lsn| Box::pin(writer.settle(Lsn(lsn)))).collect();
    committer.step().unwrap();
    committer.step().unwrap();
    assert!(waiting.into_iter().all(|settle| settle.now_or_never().is_some()));
    assert_eq!(syncs.load(Ordering::Relaxed), 1);
}

#[test]
fn every_write_is_found_again_however_the_disk_slices_it() {
    for seed in 1..=200 {
        let disk = Faulty::new(seed);
        disk.shorten_writes();
        let (writer, mut committer) = start(&disk, config(Mode::Sync, 700), &Recovery::default());
        for n in [3, 1, 5, 2] {
            append(&writer, n);
            committer.step().unwrap();
        }
        committer.finish().unwrap();
        assert_eq!(recovered(&disk, NOTHING).1, (1..=11).collect::<Vec<_>>());
    }
}

/// Lets a disk fail in the middle of a life; what was settled is found, and the log is at an end.
fn fails(mode: Mode, fault: impl Fn(&Faulty)) {
    let disk = Faulty::new(3);
    let (writer, mut committer) = start(&disk, config(mode, 1 << 13), &Recovery::default());
    let told = writer.failure();
    append(&writer, 4);
    committer.step().unwrap();
    fault(&disk);
    let lsn = append(&writer, 2);
    let waiter = writer.clone();
    let waiting = std::thread::spawn(move || {
        waiter.settle_blocking(lsn).and_then(|()| waiter.sync_blocking().map(drop))
    });
    while committer.step().is_ok() {
        std::thread::yield_now();
    }
    assert!(matches!(waiting.join().unwrap(), Err(Error::Disk { .. })));
    assert!(matches!(told.borrow().clone(), Some(Error::Disk { .. })));
    assert!(matches!(writer.append(&record(7)), Err(Error::Disk { .. })));
    assert!(matches!(writer.settle_blocking(Lsn(6)), Err(Error::Disk { .. })));
    disk.kill();
    let (found, lsns) = recovered(&disk, NOTHING);
    assert_eq!(found.corruptions, []);
    assert!(lsns.starts_with(&[1, 2, 3, 4]), "{lsns:?}");
    disk.crash();
    assert!(recovered(&disk, NOTHING).1.starts_with(&[1, 2, 3, 4]));
}

#[test]
fn a_failing_write_ends_the_log_for_everyone() {
    fails(Mode::Sync, |disk| disk.fail_write_after(0));
    fails(Mode::Async, |disk| disk.fail_write_after(0));
}

#[test]
fn a_failing_sync_ends_the_log_for_everyone_and_is_not_tried_again() {
    fails(Mode::Sync, |disk| disk.fail_sync_after(0));
    fails(Mode::Async, |disk| disk.fail_sync_after(0));
}

#[test]
fn a_full_disk_ends_the_log_for_everyone_at_whatever_byte() {
    for bytes in 0..120 {
        fails(Mode::Sync, move |disk| disk.fill_after(bytes));
        fails(Mode::Async, move |disk| disk.fill_after(bytes));
    }
}

#[test]
fn segments_end_at_their_size_and_go_when_they_are_not_needed() {
    let disk = Faulty::new(1);
    let (writer, mut committer) = start(&disk, config(Mode::Sync, 600), &Recovery::default());
    for _ in 0..10 {
        append(&writer, 5);
        committer.step().unwrap();
    }
    let segments = writer.segments();
    assert_eq!(segments.len(), 6);
    assert_eq!(segments[3].first, Lsn(31));
    assert!(segments[..5].iter().all(|segment| segment.bytes >= 600));
    let total: usize =
        segments[..5].iter().map(|segment| disk.get(&segment.path).unwrap().len()).sum();
    assert_eq!(writer.bytes(), total as u64 + 40);

    assert_eq!(writer.truncate_below(Lsn(30)).unwrap(), 2);
    assert_eq!(writer.truncate_below(Lsn(31)).unwrap(), 1);
    assert_eq!(writer.truncate_below(Lsn(1_000)).unwrap(), 2);
    // The one being written stays, whatever is asked.
    assert_eq!(writer.truncate_below(Lsn(1_000)).unwrap(), 0);
    append(&writer, 2);
    committer.finish().unwrap();
    assert_eq!(disk.list("/wal".as_ref()).unwrap(), ["00000000000000000051.wal", "mark.wal"]);
    let known = support::Known { start: Lsn(51), ..NOTHING };
    assert_eq!(recovered(&disk, known).1, [51, 52]);
}

#[test]
fn every_kind_of_frame_comes_back() {
    let shard = ShardId(2);
    let position = aegiskv::entry::Position { epoch: 4, seq: 77 };
    let state = aegiskv::wal::KeyState {
        key: aegiskv::entry::Key::new("k", 9).unwrap(),
        version: aegiskv::entry::Version(5),
        effect: Effect::Put { value: "v".into(), content_type: "".into(), expires_at: None },
    };
    let mut tail = record(6);
    tail.shard = shard;
    let written = [
        Frame::Fence { shard, epoch: 9 },
        Frame::GiveUp {
            shard,
            kept: position,
            states: vec![state],
            records: vec![tail.clone()],
            gone: vec![tail.request],
        },
        Frame::Adopt { shard, session: 1 << 99, position, fence: 9, life: 3 },
        Frame::Vouch { shard, life: 3 },
        Frame::Drop { shard, fence: 10 },
        Frame::Record(tail),
    ];
    let disk = Faulty::new(1);
    let (writer, committer) = start(&disk, config(Mode::Sync, 1 << 13), &Recovery::default());
    for frame in &written {
        writer.append_frame(frame).unwrap();
    }
    committer.finish().unwrap();
    let found = std::sync::Mutex::new(Vec::new());
    let replay = Replay {
        starts: &[Lsn(1); SHARDS as usize],
        known: Known { durable: Lsn(6), same_boot: false, expects_log: true },
        threads: 2,
        progress: &Progress::default(),
    };
    recover(&disk, &location(), &replay, &|_, frame| found.lock().unwrap().push(frame)).unwrap();
    assert_eq!(found.into_inner().unwrap(), written);
}

#[test]
fn logs_of_others_and_of_the_future_are_refused() {
    let disk = Faulty::new(1);
    let (writer, committer) = start(&disk, config(Mode::Sync, 1 << 13), &Recovery::default());
    append(&writer, 2);
    committer.finish().unwrap();
    let replay = Replay {
        starts: &[Lsn(1); SHARDS as usize],
        known: Known { durable: Lsn(0), same_boot: false, expects_log: true },
        threads: 1,
        progress: &Progress::default(),
    };
    let other = Location { cluster_id: 0xc2, ..location() };
    let refused = recover(&disk, &other, &replay, &|_, _| panic!("handed over")).unwrap_err();
    assert!(matches!(refused, Error::OtherCluster { found: CLUSTER, expected: 0xc2, .. }));

    let mut bytes = disk.get(&segment_path(1)).unwrap();
    bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..36]);
    bytes[36..40].copy_from_slice(&crc.to_le_bytes());
    disk.put(&segment_path(1), &bytes);
    let refused = recover(&disk, &location(), &replay, &|_, _| panic!("handed over")).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "/wal/00000000000000000001.wal has log format 9, this aegiskv reads up to 1; \
         start it with the newer version again"
    );

    disk.remove(&segment_path(1)).unwrap();
    let recovery = recover(&disk, &location(), &replay, &|_, _| {}).unwrap();
    assert_eq!(recovery.corruptions.len(), 1, "the log is missing");
}

#[test]
fn writers_who_do_not_wait_are_held_up_by_the_backlog() {
    let disk = Faulty::new(1);
    let (writer, _committer) = start(&disk, config(Mode::Sync, 1 << 13), &Recovery::default());
    let mut big = record(1);
    let value = vec![7; BACKLOG_BYTES_MAX / 4].into();
    big.effect = Effect::Put { value, content_type: "".into(), expires_at: None };
    for _ in 0..3 {
        writer.append(&big).unwrap();
        assert!(writer.room().now_or_never().is_some());
    }
    writer.append(&big).unwrap();
    assert!(writer.room().now_or_never().is_none());
}

#[test]
fn a_log_on_the_real_disk_is_written_by_its_thread_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [Mode::Async, Mode::Sync] {
        let mut config = config(mode, 50_000);
        config.location.dir = dir.path().join(mode.name());
        let disk: Arc<dyn Disk> = Arc::new(Os);
        let location = config.location.clone();
        let writer = Writer::start(Arc::clone(&disk), config, &Recovery::default()).unwrap();
        std::thread::scope(|scope| {
            for shard in 0..SHARDS {
                let writer = &writer;
                scope.spawn(move || {
                    for seq in 1..=200 {
                        let mut record = record(u64::from(shard));
                        record.shard = ShardId(shard);
                        record.position.seq = seq;
                        let lsn = writer.append(&record).unwrap();
                        writer.settle_blocking(lsn).unwrap();
                    }
                });
            }
        });
        writer.close().unwrap();
        assert!(matches!(writer.append(&record(1)), Err(Error::Closed)));
        let seqs = std::sync::Mutex::new(vec![0; usize::from(SHARDS)]);
        let replay = Replay {
            starts: &[Lsn(1); SHARDS as usize],
            known: Known { durable: Lsn(800), same_boot: true, expects_log: true },
            threads: 2,
            progress: &Progress::default(),
        };
        let recovery = recover(&*disk, &location, &replay, &|_, frame| {
            let Frame::Record(record) = frame else { panic!("{frame:?}") };
            let mut seqs = seqs.lock().unwrap();
            seqs[usize::from(record.shard.0)] += 1;
            assert_eq!(seqs[usize::from(record.shard.0)], record.position.seq);
        })
        .unwrap();
        assert_eq!((recovery.frames, recovery.torn_bytes), (800, 0));
        assert_eq!(recovery.corruptions, []);
        assert!(recovery.segments.len() > 1);
    }
}

#[test]
fn each_shard_is_replayed_from_its_own_start() {
    let disk = Faulty::new(1);
    let (writer, committer) = start(&disk, config(Mode::Sync, 1 << 13), &Recovery::default());
    append(&writer, 12);
    committer.finish().unwrap();
    let found = std::sync::Mutex::new(Vec::new());
    let replay = Replay {
        starts: &[Lsn(1), Lsn(5), Lsn(1), Lsn(9)],
        known: Known { durable: Lsn(12), same_boot: false, expects_log: true },
        threads: 2,
        progress: &Progress::default(),
    };
    recover(&disk, &location(), &replay, &|lsn, _| found.lock().unwrap().push(lsn.0)).unwrap();
    let mut found = found.into_inner().unwrap();
    found.sort_unstable();
    assert_eq!(found, [2, 4, 5, 6, 8, 9, 10, 11, 12]);
}
