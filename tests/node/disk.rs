//! What disks do: they lose the end of a log, flip bits in snapshots, and fill up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::{Home, Unmount, files, get, http, metric, put};

/// The log's last segment.
fn last_segment(home: &Home) -> PathBuf {
    let wal = home.data().join("wal");
    let is_segment = |name: &String| name.starts_with('0') && name.ends_with(".wal");
    let mut names = files(&wal).into_iter().map(|(name, _)| name);
    wal.join(names.rfind(is_segment).unwrap())
}

/// Whether `wal verify` finds the log sound, and what it says.
fn verify(home: &Home) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aegiskv"));
    let done = command.args(["wal", "verify"]).arg(home.data()).output().unwrap();
    (done.status.success(), String::from_utf8(done.stdout).unwrap())
}

/// Cuts the log off in the middle of a key's record.
fn cut_at_k50(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(3).position(|window| window == b"k50").unwrap();
    fs::write(path, &bytes[..at]).unwrap();
}

#[tokio::test]
async fn a_last_segment_that_is_lost_is_said_counted_and_begins_another_life() {
    type Lose = fn(&Path);
    let losses: [(&str, Lose); 4] = [
        ("emptied", |path| fs::write(path, "").unwrap()),
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("zeroed", |path| fs::write(path, vec![0; 100_000]).unwrap()),
        ("cut", cut_at_k50),
    ];
    for wal_mode in ["sync", "async"] {
        for (what, lose) in losses {
            let case = format!("{wal_mode}, {what}");
            let home = Home::new(json!({ "wal_mode": wal_mode }));
            let node = home.start().await;
            for n in 0..100 {
                assert_eq!(put(&node, &format!("k{n}"), "v").await, 201);
            }
            node.kill();
            let identity = fs::read_to_string(home.data().join("identity.json")).unwrap();
            assert!(verify(&home).0, "{case}: {}", verify(&home).1);
            lose(&last_segment(&home));
            let (sound, said) = verify(&home);
            assert!(!sound && said.contains("the log is damaged"), "{case}: {said}");

            let node = home.start().await;
            assert_eq!(metric(&node, "aegis_wal_corruptions_total").await, 1.0, "{case}");
            assert!(metric(&node, "aegis_unclean_recovery_total").await > 0.0, "{case}");
            assert!(node.log().contains("cannot vouch"), "{case}: {}", node.log());
            let life = fs::read_to_string(home.data().join("identity.json")).unwrap();
            assert_ne!(life, identity, "{case}");
            assert_eq!(
                put(&node, "k0", "again").await,
                if what == "cut" { 204 } else { 201 },
                "{case}"
            );
            node.kill();
            assert!(verify(&home).0, "{case}: {}", verify(&home).1);
            let node = home.start().await;
            assert_eq!(metric(&node, "aegis_wal_corruptions_total").await, 0.0, "{case}");
            assert_eq!(get(&node, "k0").await.as_deref(), Some("again"), "{case}");
        }
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_counted_though_the_log_is_sound() {
    let home = Home::new(json!({ "wal_mode": "sync" }));
    let node = home.start().await;
    for n in 0..100 {
        put(&node, &format!("k{n}"), format!("value-{n}")).await;
    }
    let taken = http().post(node.ops_url("/admin/snapshot")).send().await.unwrap();
    assert_eq!(taken.status(), 200);
    node.kill();
    let named = |name: &String| name.starts_with("snapshot-");
    let name = files(&home.data()).into_iter().map(|(name, _)| name).find(named).unwrap();
    let path = home.data().join(&name);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|w| w == b"value-50").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let node = home.start().await;
    assert!(metric(&node, "aegis_wal_corruptions_total").await >= 1.0);
    assert!(metric(&node, "aegis_unclean_recovery_total").await > 0.0);
    assert!(home.data().join(format!("{name}.corrupt")).exists());
    assert_eq!(get(&node, "k50").await, None);
}

/// Makes a small file system for `home`; `None` where that is not allowed.
fn small_disk(home: &mut Home, size: &str) -> Option<Unmount> {
    let small = home.dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let mut mount = Command::new("mount");
    let mounted =
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&small).status();
    if !mounted.is_ok_and(|status| status.success()) {
        return None;
    }
    home.set(json!({ "data_dir": small.join("data") }));
    Some(Unmount(small))
}

#[tokio::test]
async fn without_room_for_a_snapshot_a_node_serves_and_starts_and_nothing_is_left_behind() {
    let mut home = Home::new(json!({ "wal_mode": "sync", "wal_max_size_mb": 1 }));
    let Some(disk) = small_disk(&mut home, "24m") else {
        println!("SKIP a full disk: mounting a tmpfs needs root");
        return;
    };
    let data = disk.0.join("data");
    let temporary = || -> Vec<String> {
        let all = files(&data).into_iter().chain(files(&data.join("wal")));
        all.map(|(name, _)| name).filter(|name| name.ends_with(".tmp")).collect()
    };
    let node = home.start().await;
    for n in 0..100 {
        assert_eq!(put(&node, &format!("k{n}"), vec![b'a'; 20_000]).await, 201);
    }
    // Room for the log to go on for a while, and for no snapshot.
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![0; 16 << 20]).unwrap();
    let refused = http().post(node.ops_url("/admin/snapshot")).send().await.unwrap();
    assert_eq!(refused.status(), 500);
    let said = refused.text().await.unwrap();
    assert!(said.contains("bytes free"), "{said}");
    assert_eq!(metric(&node, "aegis_snapshot_failures_total").await, 1.0);
    assert_eq!(temporary(), Vec::<String>::new());
    assert_eq!(put(&node, "k0", "it goes on").await, 204);
    node.kill();

    // What an older version, or a kill, left there takes the last of the room; and the start finds
    // damage, beside which it wants a snapshot.
    let path = data.join("wal").join("00000000000000000001.wal");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(100).position(|w| w == [b'a'; 100]).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut left = fs::File::create(data.join("snapshot.tmp")).unwrap();
    while std::io::Write::write_all(&mut left, &[1; 4096]).is_ok() {}
    drop(left);
    let node = home.start().await;
    assert_eq!(temporary(), Vec::<String>::new());
    assert!(node.log().contains("no fresh snapshot beside damaged files"), "{}", node.log());
    assert_eq!(metric(&node, "aegis_wal_corruptions_total").await, 1.0);
    assert_eq!(get(&node, "k0").await.as_deref(), Some("it goes on"));

    // Once there is room the damaged is set aside.
    fs::remove_file(&ballast).unwrap();
    let taken = http().post(node.ops_url("/admin/snapshot")).send().await.unwrap();
    assert_eq!(taken.status(), 200, "{}", taken.text().await.unwrap());
    assert!(path.with_extension("wal.corrupt").exists());
    node.kill();
    let node = home.start().await;
    assert_eq!(metric(&node, "aegis_wal_corruptions_total").await, 0.0);
    assert_eq!(get(&node, "k99").await.map(|value| value.len()), Some(20_000));
}
