//! A log on a disk in memory, and what was put into it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aegiskv::disk::{Disk, Faulty};
use aegiskv::entry::{
    Departure, Effect, Key, Position, Record, RequestId, ShardId, Timestamp, Verdict, Version,
};
use aegiskv::wal::{
    self, Committer, Config, Frame, Location, Lsn, Mode, Progress, Recovery, Replay, Writer,
    recover,
};
use bytes::Bytes;

pub(crate) const SHARDS: u16 = 4;
pub(crate) const CLUSTER: u128 = 0xc1;

pub(crate) fn location() -> Location {
    Location { dir: PathBuf::from("/wal"), cluster_id: CLUSTER, seed: 42 }
}

pub(crate) fn config(mode: Mode, segment_bytes_max: u64) -> Config {
    Config { mode, location: location(), segment_bytes_max, on_fsync: Arc::new(|_| {}) }
}

/// The record that stands at `lsn` in a test's log; every field depends on it.
pub(crate) fn record(lsn: u64) -> Record {
    let effect = match lsn % 5 {
        0 => Effect::Remove(Departure::Expired),
        1 | 2 => Effect::Put {
            value: Bytes::from(format!("value {lsn}").repeat(1 + lsn as usize % 7)),
            content_type: Bytes::from_static(if lsn.is_multiple_of(2) {
                b"text/plain"
            } else {
                b""
            }),
            expires_at: (lsn % 5 == 1).then_some(Timestamp(1_800_000_000_000 + lsn)),
        },
        3 => Effect::Touch { expires_at: Some(Timestamp(1_900_000_000_000 + lsn)) },
        _ => Effect::None,
    };
    let key = (lsn % 5 != 4).then(|| Key::new(format!("key:{}", lsn % 11), 1024).unwrap());
    let request = match lsn % 3 {
        0 => RequestId::Internal,
        1 => RequestId::Counted { incarnation: 7, counter: lsn, waits_from: lsn / 2 },
        _ => RequestId::Keyed { key: u128::from(lsn) << 70, request: lsn },
    };
    Record {
        shard: ShardId((lsn % u64::from(SHARDS)) as u16),
        position: Position { epoch: 3, seq: lsn },
        predecessor_epoch: 2,
        key,
        effect,
        version: Version(lsn << 22),
        request,
        verdict: Verdict::Number(lsn as i64 - 5),
    }
}

/// Opens the log for stepping.
pub(crate) fn start(disk: &Faulty, config: Config, recovery: &Recovery) -> (Writer, Committer) {
    Writer::start_stepped(Arc::new(disk.clone()), config, recovery).unwrap()
}

/// Appends the records of the next `n` numbers, without writing them.
pub(crate) fn append(writer: &Writer, n: u64) -> Lsn {
    let mut last = Lsn(0);
    for _ in 0..n {
        let next = writer.next_lsn();
        last = writer.append(&record(next.0)).unwrap();
        assert_eq!(last, next);
    }
    last
}

/// What is known of a log, for recovering it.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) durable: Lsn,
    pub(crate) same_boot: bool,
    pub(crate) start: Lsn,
}

pub(crate) const NOTHING: Known = Known { durable: Lsn(0), same_boot: false, start: Lsn(1) };

/// Recovers the log; answers the report and the numbers handed over, having checked that each
/// frame equals the one written, and that each shard's came in order.
pub(crate) fn recovered(disk: &dyn Disk, known: Known) -> (Recovery, Vec<u64>) {
    let shards: Mutex<BTreeMap<ShardId, Vec<u64>>> = Mutex::default();
    let replay = Replay {
        starts: &[known.start; SHARDS as usize],
        known: wal::Known {
            durable: known.durable,
            same_boot: known.same_boot,
            expects_log: false,
        },
        threads: 3,
        progress: &Progress::default(),
    };
    let recovery = recover(disk, &location(), &replay, &|lsn, frame| {
        assert_eq!(frame, Frame::Record(record(lsn.0)), "frame {lsn} is not the one written");
        shards.lock().unwrap().entry(frame.shard()).or_default().push(lsn.0);
    })
    .unwrap();
    let shards = shards.into_inner().unwrap();
    for (shard, lsns) in &shards {
        assert!(lsns.is_sorted(), "shard {shard:?} was replayed out of order: {lsns:?}");
    }
    let mut all: Vec<u64> = shards.into_values().flatten().collect();
    all.sort_unstable();
    assert_eq!(recovery.frames, all.len() as u64);
    (recovery, all)
}

pub(crate) fn segment_path(first: u64) -> PathBuf {
    Path::new("/wal").join(format!("{first:020}.wal"))
}

/// A disk that holds just these files.
pub(crate) fn disk_with(files: &[(PathBuf, Vec<u8>)]) -> Faulty {
    let disk = Faulty::new(1);
    for (path, bytes) in files {
        disk.put(path, bytes);
    }
    disk
}
