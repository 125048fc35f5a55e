//! Snapshots, whole and damaged.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aegiskv::disk::{Disk, Faulty};
use aegiskv::entry::{Position, RequestId, ShardId, Timestamp, Verdict, Version};
use aegiskv::snapshot::{Entry, Error, Finished, Item, Kept, Loaded, ShardState, Writer, load};
use aegiskv::wal::{Lsn, Progress};

use crate::support::{CLUSTER, disk_with};

const DIR: &str = "/data";

fn state(shard: u16) -> ShardState {
    ShardState {
        shard: ShardId(shard),
        start: Lsn(100 + u64::from(shard)),
        position: Position { epoch: 2, seq: 50 + u64::from(shard) },
        fence: 3,
        highest_version: Version(1 << 40),
        life: 7,
    }
}

fn kept(n: u64) -> Kept {
    Kept {
        request: RequestId::Keyed { key: u128::from(n), request: 1 },
        verdict: Verdict::Number(4),
        version: Version(n),
    }
}

/// What was put in, or came out, of each shard, as text.
type Contents = Vec<String>;

fn describe(item: &Item<'_>) -> String {
    format!("{item:?}")
}

/// Three shards: of a few entries, of none, and of two blocks.
fn try_write(
    disk: &Faulty,
    end: Lsn,
    value: &str,
    damaged: &[PathBuf],
) -> Result<(Finished, Contents), Error> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let _ = disk.create_dir(DIR.as_ref());
    let mut writer = Writer::create(disk, DIR.as_ref(), CLUSTER, end)?;
    let mut contents = Vec::new();
    for (shard, entries) in [(0, 5), (2, 0), (3, 9)] {
        writer.begin_shard(state(shard))?;
        contents.push(format!("{shard} {}", describe(&Item::State(state(shard), entries))));
        writer.request(&kept(u64::from(shard)))?;
        contents.push(format!("{shard} {}", describe(&Item::Request(kept(u64::from(shard))))));
        for n in 0..entries {
            let key = format!("key {n}");
            let value = if shard == 3 { value.repeat(5_000) } else { value.to_owned() };
            let entry = Entry {
                key: key.as_bytes(),
                value: value.as_bytes(),
                content_type: if n == 2 { b"text/plain" } else { b"" },
                version: Version(n << 22),
                expires_at: (n % 2 == 0).then_some(Timestamp(n)),
            };
            writer.entry(&entry)?;
            contents.push(format!("{shard} {}", describe(&Item::Entry(entry))));
        }
    }
    contents.sort();
    Ok((writer.finish(end, damaged)?, contents))
}

fn write(disk: &Faulty, end: Lsn, value: &str, damaged: &[PathBuf]) -> (Finished, Contents) {
    try_write(disk, end, value, damaged).unwrap()
}

fn read(disk: &Faulty) -> (Loaded, Contents) {
    let contents = Mutex::new(Vec::new());
    let sink = |shard: ShardId, item: Item<'_>| {
        contents.lock().unwrap().push(format!("{} {}", shard.0, describe(&item)));
    };
    let loaded = load(disk, DIR.as_ref(), CLUSTER, 4, 2, &Progress::default(), &sink).unwrap();
    let mut contents = contents.into_inner().unwrap();
    contents.sort();
    (loaded, contents)
}

#[test]
fn a_snapshot_comes_back_as_it_was_and_replaces_the_one_before() {
    let disk = Faulty::new(1);
    write(&disk, Lsn(200), "old", &[]);
    let (finished, contents) = write(&disk, Lsn(300), "value of some length", &[]);
    assert_eq!(finished.entries, 14);
    assert_eq!(finished.needs_from, Lsn(100));
    assert_eq!(disk.list(DIR.as_ref()).unwrap(), ["snapshot-00000000000000000300"]);
    disk.crash();
    let (loaded, found) = read(&disk);
    assert_eq!(found, contents);
    assert_eq!(loaded.starts, [Lsn(100), Lsn(1), Lsn(102), Lsn(103)]);
    assert_eq!((loaded.durable, loaded.entries, loaded.lost), (Lsn(300), 14, false));
    assert_eq!(loaded.damages, []);
}

#[test]
fn no_snapshot_is_no_loss() {
    let disk = Faulty::new(1);
    let (loaded, found) = read(&disk);
    assert_eq!((loaded.path, loaded.lost, found.len()), (None, false, 0));
    assert_eq!(loaded.starts, [Lsn(1); 4]);
}

#[test]
fn a_snapshot_cut_at_any_byte_is_reported_and_yields_nothing_false() {
    let disk = Faulty::new(1);
    let (finished, _) = write(&disk, Lsn(200), "val", &[]);
    let bytes = disk.get(&finished.path).unwrap();
    let step = if bytes.len() > 4_000 { 97 } else { 1 };
    for cut in (0..bytes.len()).step_by(step).chain(bytes.len() - 600..bytes.len()) {
        let disk = disk_with(&[(finished.path.clone(), bytes[..cut].to_vec())]);
        let (loaded, found) = read(&disk);
        assert!(loaded.lost && found.is_empty(), "cut at {cut}");
        assert_eq!(loaded.damaged(), std::slice::from_ref(&finished.path), "cut at {cut}");
        assert_eq!(loaded.durable, Lsn(200), "cut at {cut}");
    }
}

#[test]
fn a_flipped_byte_is_reported_and_yields_nothing_false() {
    let disk = Faulty::new(1);
    let (finished, contents) = write(&disk, Lsn(200), "v", &[]);
    let bytes = disk.get(&finished.path).unwrap();
    let disk = disk_with(&[(finished.path.clone(), bytes.clone())]);
    for at in (0..bytes.len()).filter(|at| *at < 2_000 || at % 53 == 0 || bytes.len() - at < 400) {
        for mask in [0x01, 0xff] {
            disk.flip(&finished.path, at, mask);
            let (loaded, found) = read(&disk);
            disk.flip(&finished.path, at, mask);
            assert!(loaded.lost, "byte {at} by {mask:#x}");
            assert_eq!(loaded.damaged(), std::slice::from_ref(&finished.path), "byte {at}");
            assert!(found.iter().all(|item| contents.contains(item)), "byte {at} by {mask:#x}");
        }
    }
    assert!(!read(&disk).0.lost);
}

#[test]
fn an_older_snapshot_stands_in_for_a_damaged_one() {
    let disk = Faulty::new(1);
    let (old, contents) = write(&disk, Lsn(200), "old", &[]);
    let old_bytes = disk.get(&old.path).unwrap();
    let (new, _) = write(&disk, Lsn(300), "new", &[]);
    disk.put(&old.path, &old_bytes);
    for at in [3, 300, disk.get(&new.path).unwrap().len() - 40] {
        disk.flip(&new.path, at, 8);
        let (loaded, found) = read(&disk);
        disk.flip(&new.path, at, 8);
        assert_eq!(found, contents, "byte {at}");
        assert_eq!(loaded.path, Some(old.path.clone()), "byte {at}");
        assert!(!loaded.lost, "byte {at}");
        assert_eq!(loaded.damaged(), std::slice::from_ref(&new.path), "byte {at}");
        // The log must reach as far as the newer one said.
        assert_eq!(loaded.durable, Lsn(300), "byte {at}");
    }
    let damaged = [new.path.clone()];
    write(&disk, Lsn(400), "fresh", &damaged);
    assert_eq!(
        disk.list(DIR.as_ref()).unwrap(),
        ["snapshot-00000000000000000300.corrupt", "snapshot-00000000000000000400"]
    );
}

#[test]
fn a_crash_while_one_is_written_leaves_the_old_or_the_new() {
    for seed in 0..400 {
        let disk = Faulty::new(seed);
        let (_, old) = write(&disk, Lsn(200), "old", &[]);
        disk.sync_dir(Path::new("/")).unwrap();
        // Half of them while the names change hands.
        disk.cut_power_after(if seed % 2 == 0 { 11 + seed / 2 % 4 } else { seed % 20 });
        let finished = try_write(&disk, Lsn(300), "new", &[]);
        disk.crash();
        let (loaded, found) = read(&disk);
        assert!(!loaded.lost, "seed {seed}: {loaded:?}");
        match finished {
            Ok((_, new)) => assert_eq!(found, new, "seed {seed}"),
            Err(_) if loaded.durable == Lsn(200) => assert_eq!(found, old, "seed {seed}"),
            Err(_) => assert!(found.iter().any(|item| item.contains("[110, 101, 119]"))),
        }
    }
}

#[test]
fn snapshots_of_others_and_of_the_future_are_refused() {
    let disk = Faulty::new(1);
    let (finished, _) = write(&disk, Lsn(200), "v", &[]);
    let none = |_: ShardId, _: Item<'_>| panic!("handed over");
    let refused = load(&disk, DIR.as_ref(), 5, 4, 1, &Progress::default(), &none).unwrap_err();
    assert!(matches!(refused, Error::OtherCluster { found: CLUSTER, expected: 5, .. }));
    let mut bytes = disk.get(&finished.path).unwrap();
    bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..36]);
    bytes[36..40].copy_from_slice(&crc.to_le_bytes());
    disk.put(&finished.path, &bytes);
    let refused =
        load(&disk, DIR.as_ref(), CLUSTER, 4, 1, &Progress::default(), &none).unwrap_err();
    assert!(matches!(refused, Error::NewerFormat { found: 2, .. }));
}

#[test]
fn a_snapshot_that_fails_leaves_the_old_one_and_nothing_of_its_own() {
    let faults: [fn(&Faulty, u64); 3] =
        [Faulty::fill_after, Faulty::fail_write_after, Faulty::fail_sync_after];
    for fault in faults {
        for n in (0..20).chain([1_000, 100_000]) {
            let disk = Faulty::new(1);
            let (_, old) = write(&disk, Lsn(200), "old", &[]);
            fault(&disk, n);
            if try_write(&disk, Lsn(300), "new", &[]).is_ok() {
                continue;
            }
            assert_eq!(disk.list(DIR.as_ref()).unwrap(), ["snapshot-00000000000000000200"]);
            disk.kill();
            assert_eq!(read(&disk).1, old);
        }
    }
}

#[test]
fn a_snapshot_that_is_given_up_leaves_nothing() {
    let disk = Faulty::new(1);
    disk.create_dir(DIR.as_ref()).unwrap();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut writer = Writer::create(shared, DIR.as_ref(), CLUSTER, Lsn(1)).unwrap();
    writer.begin_shard(state(0)).unwrap();
    drop(writer);
    assert_eq!(disk.list(DIR.as_ref()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_snapshot_leaves_room_to_the_log() {
    const LEFT: u64 = 8 << 20;
    let disk = Faulty::new(1);
    disk.create_dir(DIR.as_ref()).unwrap();
    disk.tell_room(LEFT - 1);
    let refused = try_write(&disk, Lsn(300), "new", &[]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "/data has 8388607 bytes free, and 8388608 are needed; make room there"
    );
    assert_eq!(disk.list(DIR.as_ref()).unwrap(), Vec::<String>::new());
    disk.tell_room(LEFT);
    write(&disk, Lsn(300), "new", &[]);

    // It looks again while it grows.
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut writer = Writer::create(shared, DIR.as_ref(), CLUSTER, Lsn(301)).unwrap();
    writer.begin_shard(state(0)).unwrap();
    disk.tell_room(LEFT - 1);
    let value = vec![7; 1 << 20];
    let entry = Entry {
        key: b"k",
        value: &value,
        content_type: b"",
        version: Version(1),
        expires_at: None,
    };
    let written = (0..9).try_for_each(|_| writer.entry(&entry));
    assert!(matches!(written, Err(Error::NoRoom { .. })), "{written:?}");
    drop(writer);
    assert_eq!(disk.list(DIR.as_ref()).unwrap(), ["snapshot-00000000000000000300"]);
}
