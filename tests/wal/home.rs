//! The data directory: whose it is, and whether it can be vouched for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegiskv::disk::home::{Config, Error, Home, Loss, read_identity};
use aegiskv::disk::{Disk, Faulty, Os};
use aegiskv::entry::Timestamp;

fn config(mode: &str) -> Config {
    Config {
        data_dir: PathBuf::from("/data"),
        wal_dir: PathBuf::from("/data/wal"),
        node_id: "n1".to_owned(),
        num_shards: 256,
        wal_mode: mode.to_owned(),
        cluster_id: None,
    }
}

fn open(disk: &Faulty, config: Config) -> Result<Home, Error> {
    Home::open(Arc::new(disk.clone()), config)
}

/// A directory that has run once in `mode`, and was left in order or not.
fn used(mode: &str, clean: Option<u64>) -> Faulty {
    let disk = Faulty::new(1);
    let mut home = open(&disk, config(mode)).unwrap();
    assert_eq!(home.loss(), Some(Loss::Newborn));
    let lost = home.loss();
    home.enter(lost).unwrap();
    if let Some(lsn) = clean {
        home.mark_clean(lsn).unwrap();
    }
    disk
}

#[test]
fn an_identity_is_kept_and_its_incarnation_with_it() {
    let disk = used("sync", None);
    let first = read_identity(&disk, Path::new("/data")).unwrap().unwrap();
    disk.crash();
    let mut home = open(&disk, config("sync")).unwrap();
    assert_eq!(home.loss(), None);
    assert!(!home.same_boot() && home.loads());
    let second = home.enter(None).unwrap().clone();
    assert_eq!((first.cluster_id, first.hash_seed), (second.cluster_id, second.hash_seed));
    assert_eq!(first.incarnation, second.incarnation);
    let third = home.enter(Some(Loss::Corruption)).unwrap().incarnation;
    assert!(third > second.incarnation);
    assert_eq!(read_identity(&disk, Path::new("/data")).unwrap().unwrap().incarnation, third);
}

#[test]
fn memory_is_judged_by_mode_boot_and_clean_mark() {
    let after = |mode, clean, machine_down: bool| {
        let disk = used(mode, clean);
        if machine_down {
            disk.crash()
        } else {
            disk.kill()
        }
        let home = open(&disk, config("sync")).unwrap();
        (home.loss(), home.clean_at())
    };
    assert_eq!(after("async", None, false), (None, 0));
    assert_eq!(after("async", None, true), (Some(Loss::MachineCrashed), 0));
    assert_eq!(after("async", Some(7), true), (None, 7));
    assert_eq!(after("sync", None, true), (None, 0));
    assert_eq!(after("off", Some(7), false), (Some(Loss::WalOff), 7));
}

#[test]
fn a_run_that_is_entered_is_not_clean_until_it_is_marked() {
    let disk = used("async", Some(7));
    disk.kill();
    let mut home = open(&disk, config("async")).unwrap();
    home.enter(None).unwrap();
    disk.crash();
    let home = open(&disk, config("async")).unwrap();
    assert_eq!((home.clean_at(), home.loss()), (0, Some(Loss::MachineCrashed)));
}

#[test]
fn a_refused_directory_is_left_as_it_was() {
    let disk = used("sync", None);
    disk.kill();
    let path = Path::new("/data/identity.json");
    let before = disk.get(path).unwrap();
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = config("async");
        change(&mut config);
        let error = open(&disk, config).unwrap_err();
        assert_eq!(disk.get(path).unwrap(), before);
        error.to_string()
    };
    assert!(refused(&|c| c.cluster_id = Some(5)).contains("belongs to cluster"));
    assert_eq!(
        refused(&|c| c.num_shards = 64),
        "/data has 256 shards, num_shards is 64; the number is fixed at a cluster's birth: \
         set num_shards to 256, or dump, start empty, and import"
    );
    assert_eq!(
        refused(&|c| c.node_id = "n2".to_owned()),
        "/data belongs to node \"n1\", not to \"n2\"; set node_id to \"n1\", or give this node \
         the directory it had before"
    );
    let newer = String::from_utf8(before.clone()).unwrap();
    let newer = newer.replace("\"format_version\": 1", "\"format_version\": 3");
    disk.put(path, newer.as_bytes());
    let error = open(&disk, config("async")).unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 3, .. }), "{error}");
    disk.put(path, b"{ no");
    assert!(matches!(open(&disk, config("async")).unwrap_err(), Error::Damaged { .. }));
}

#[test]
fn data_without_an_identity_is_not_loaded() {
    let disk = used("sync", None);
    disk.put(Path::new("/data/wal/00000000000000000001.wal"), b"log");
    disk.remove(Path::new("/data/identity.json")).unwrap();
    disk.kill();
    let home = open(&disk, config("sync")).unwrap();
    assert_eq!((home.loss(), home.loads()), (Some(Loss::IdentityMissing), false));
}

#[test]
fn switched_off_the_log_is_set_aside_and_never_loaded_again() {
    let disk = used("sync", None);
    disk.put(Path::new("/data/wal/00000000000000000001.wal"), b"log");
    disk.put(Path::new("/data/snapshot-00000000000000000009"), b"snapshot");
    disk.kill();
    let mut home = open(&disk, config("off")).unwrap();
    assert!(home.loads());
    let folders = home.set_data_aside(Timestamp(1_735_787_045_000)).unwrap();
    home.enter(None).unwrap();
    assert_eq!(
        folders,
        [
            PathBuf::from("/data/set-aside-20250102T030405Z"),
            PathBuf::from("/data/wal/set-aside-20250102T030405Z"),
        ]
    );
    disk.crash();
    let aside = Path::new("/data/wal/set-aside-20250102T030405Z/00000000000000000001.wal");
    assert_eq!(disk.get(aside).unwrap(), b"log");
    assert_eq!(disk.get(Path::new("/data/wal/00000000000000000001.wal")), None);
    let home = open(&disk, config("async")).unwrap();
    assert_eq!((home.loads(), home.loss()), (false, Some(Loss::WalOff)));
}

#[test]
fn a_directory_in_use_names_the_process_that_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: dir.path().join("d"),
        wal_dir: dir.path().join("d/wal"),
        ..config("async")
    };
    let disk: Arc<dyn Disk> = Arc::new(Os);
    let mut held = Home::open(Arc::clone(&disk), config.clone()).unwrap();
    held.enter(None).unwrap();
    let refused = Home::open(Arc::clone(&disk), config.clone()).unwrap_err();
    let Error::Locked { pid, .. } = refused else { panic!("{refused}") };
    assert_eq!(pid, Some(std::process::id()));
    drop(held);
    assert!(Home::open(disk, config).unwrap().same_boot());
}

#[test]
fn a_start_removes_what_an_earlier_run_did_not_complete_and_nothing_else() {
    let disk = used("sync", None);
    let temporary = [
        "/data/identity.tmp",
        "/data/birth.tmp",
        "/data/topology.tmp",
        "/data/snapshot.tmp",
        "/data/snapshot-00000000000000000007.tmp",
        "/data/copy-00001-0000000000000001.tmp",
        "/data/wal/mark.tmp",
        "/data/wal/00000000000000000001.wal.tmp",
    ];
    let others = [
        "/data/mine.tmp",
        "/data/snapshot-00000000000000000007",
        "/data/snapshot-00000000000000000006.corrupt",
        "/data/topology.redb",
        "/data/wal/00000000000000000001.wal",
    ];
    for path in temporary.iter().chain(&others) {
        disk.put(Path::new(path), b"some");
    }
    // Before anything is written: there may be no room.
    disk.fill_after(0);
    let _ = open(&disk, config("sync"));
    for path in temporary {
        assert_eq!(disk.get(Path::new(path)), None, "{path}");
    }
    for path in others {
        assert!(disk.get(Path::new(path)).is_some(), "{path}");
    }
}

#[test]
fn a_file_that_cannot_be_replaced_is_as_it_was_and_nothing_is_left_beside_it() {
    let faults: [fn(&Faulty); 2] = [|disk| disk.fill_after(20), |disk| disk.fail_sync_after(0)];
    for fault in faults {
        let disk = used("sync", None);
        let path = Path::new("/data/identity.json");
        let before = disk.get(path);
        let mut home = open(&disk, config("sync")).unwrap();
        fault(&disk);
        assert!(matches!(home.renumber(7), Err(Error::NotWritable { .. })));
        assert_eq!(disk.get(path), before);
        assert_eq!(disk.get(Path::new("/data/identity.tmp")), None);
    }
}
