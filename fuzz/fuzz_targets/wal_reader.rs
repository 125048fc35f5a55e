//! The reader of the log: whatever the bytes of its segments, it neither panics nor hands over
//! what was not written.
//!
//! The input is split in two. The first half is damage to a log of two segments: where, and which
//! bits. The second half is a third segment, as it is, behind a header that is sound or not. The
//! mark is there or not; where it is, nothing that was durable is lost in silence.

#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use aegiskv::disk::Faulty;
use aegiskv::entry::{
    Departure, Effect, Key, Position, Record, RequestId, ShardId, Verdict, Version,
};
use aegiskv::wal::{self, Config, Frame, Location, Lsn, Mode, Progress, Recovery, Replay, Writer};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const FRAMES: u64 = 24;

const MARK: &str = "/wal/mark.wal";

fn location() -> Location {
    Location { dir: PathBuf::from("/wal"), cluster_id: 1, seed: 2 }
}

fn path(first: u64) -> PathBuf {
    PathBuf::from(format!("/wal/{first:020}.wal"))
}

fn record(lsn: u64) -> Record {
    let effect = match lsn % 3 {
        0 => Effect::Remove(Departure::Deleted),
        1 => Effect::None,
        _ => Effect::Put {
            value: Bytes::from(vec![lsn as u8; lsn as usize * 3]),
            content_type: Bytes::new(),
            expires_at: None,
        },
    };
    Record {
        shard: ShardId((lsn % 2) as u16),
        position: Position { epoch: 1, seq: lsn },
        predecessor_epoch: 1,
        key: Key::new(format!("key {lsn}"), 64).ok(),
        effect,
        version: Version(lsn),
        request: RequestId::Internal,
        verdict: Verdict::Created,
    }
}

/// Two segments of real frames, in batches of three, the header of a third, and the mark.
fn sound() -> &'static [Vec<u8>; 4] {
    static SOUND: OnceLock<[Vec<u8>; 4]> = OnceLock::new();
    SOUND.get_or_init(|| {
        let disk = Faulty::new(1);
        let config = Config {
            mode: Mode::Sync,
            location: location(),
            segment_bytes_max: 4_096,
            on_fsync: Arc::new(|_| {}),
        };
        let start = Writer::start_stepped(Arc::new(disk.clone()), config, &Recovery::default());
        let (writer, mut committer) = start.expect("the disk is sound");
        for lsn in 1..=FRAMES {
            writer.append(&record(lsn)).expect("the disk is sound");
            if lsn % 3 == 0 {
                committer.step().expect("the disk is sound");
            }
            if lsn % (FRAMES / 2) == 0 {
                writer.rotate().expect("the disk is sound");
            }
        }
        committer.finish().expect("the disk is sound");
        let paths = [path(1), path(FRAMES / 2 + 1), path(FRAMES + 1), PathBuf::from(MARK)];
        paths.map(|path| disk.get(&path).expect("it is there"))
    })
}

fuzz_target!(|input: &[u8]| {
    let [mut first, mut second, mut third, mark] = sound().clone();
    let (damage, raw) = input.split_at(input.len() / 2);
    for edit in damage.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        let segment = if edit[2] & 1 == 0 { &mut first } else { &mut second };
        match edit[2] >> 1 & 3 {
            0 => segment.truncate(at.max(1)),
            1 => segment.resize(segment.len() + at % 512, edit[3]),
            _ => {
                let at = at % segment.len();
                segment[at] ^= edit[3];
            }
        }
    }
    third.extend_from_slice(raw);
    if raw.first() == Some(&1) {
        third.drain(..40);
    }
    let disk = Faulty::new(1);
    disk.put(&path(1), &first);
    disk.put(&path(FRAMES / 2 + 1), &second);
    if !raw.is_empty() {
        disk.put(&path(FRAMES + 1), &third);
    }
    let is_marked = damage.first().is_some_and(|byte| byte & 2 == 2);
    if is_marked {
        disk.put(&PathBuf::from(MARK), &mark);
    }
    let replay = Replay {
        starts: &[Lsn(1); 2],
        known: wal::Known { durable: Lsn(0), same_boot: damage.first().is_some_and(|byte| byte & 1 == 1), expects_log: true },
        threads: 1,
        progress: &Progress::default(),
    };
    let recovery = aegiskv::wal::recover(&disk, &location(), &replay, &|lsn, frame| {
        assert_eq!(frame, Frame::Record(record(lsn.0)), "frame {lsn} is not the one written");
    });
    // Another cluster's, or a newer format: only a sound header says so, and ours say otherwise.
    let recovery = recovery.expect("a disk in memory does not fail");
    let whole = recovery.corruptions.is_empty();
    assert!(!whole || recovery.frames == recovery.next.0 - 1, "{recovery:?}");
    assert!(!whole || !is_marked || recovery.frames >= FRAMES, "{recovery:?}");
});
