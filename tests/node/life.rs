//! A node's life: starting, reloading, stopping, and starting again in bad circumstances.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Home, Node, Unmount, files, get, http, metric, put};

const SOON: Duration = Duration::from_secs(15);

async fn ops(node: &Node, path: &str) -> Value {
    http().get(node.ops_url(path)).send().await.unwrap().json().await.unwrap()
}

fn last_line(log: &str) -> &str {
    log.trim_end().lines().last().unwrap_or_default()
}

#[tokio::test]
async fn what_is_put_is_got_with_its_etag_and_ttl() {
    let home = Home::new(json!({}));
    let node = home.start().await;
    let http = http();
    let url = node.url("user:1?ttl=15m");
    let answer = http.put(url).body(r#"{"n":"Ann"}"#).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let etag = answer.headers()["etag"].clone();
    assert_eq!(answer.headers()["aegis-acks"], "1/1");
    let answer = http.get(node.url("user:1")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["etag"], etag);
    let ttl: u64 = answer.headers()["aegis-ttl"].to_str().unwrap().parse().unwrap();
    assert!((890..=900).contains(&ttl), "{ttl}");
    assert_eq!(answer.text().await.unwrap(), r#"{"n":"Ann"}"#);
}

#[tokio::test]
async fn a_stopped_node_finds_everything_again_and_replays_nothing() {
    for wal_mode in ["sync", "async"] {
        let home = Home::new(json!({ "wal_mode": wal_mode }));
        let node = home.start().await;
        for n in 0..500 {
            assert_eq!(put(&node, &format!("k{n}?ttl=1h"), format!("v{n}")).await, 201);
        }
        node.stop(SOON);
        let node = home.start().await;
        for n in 0..500 {
            assert_eq!(get(&node, &format!("k{n}")).await, Some(format!("v{n}")), "{wal_mode}");
        }
        assert_eq!(metric(&node, "aegis_unclean_recovery_total").await, 0.0);
        let log = node.log();
        assert!(log.contains("replayed=0"), "{wal_mode}: {log}");
    }
}

#[tokio::test]
async fn without_a_log_nothing_is_kept_and_nothing_old_comes_back() {
    let mut home = Home::new(json!({ "wal_mode": "async" }));
    let node = home.start().await;
    put(&node, "a", "old").await;
    node.stop(SOON);
    home.set(json!({ "wal_mode": "off" }));
    let node = home.start().await;
    assert_eq!(get(&node, "a").await.as_deref(), Some("old"), "what was kept is loaded once");
    put(&node, "a", "new").await;
    node.stop(SOON);
    home.set(json!({ "wal_mode": "sync" }));
    let node = home.start().await;
    assert_eq!(get(&node, "a").await, None, "neither the lost value nor the outdated one");
}

#[tokio::test]
async fn memory_stays_below_its_limit_and_the_rest_is_evicted() {
    let home = Home::new(json!({ "max_memory_mb": 8, "wal_max_size_mb": 4 }));
    let node = home.start().await;
    for n in 0..400 {
        assert_eq!(put(&node, &format!("k{n}"), vec![b'x'; 60_000]).await, 201);
    }
    assert!(metric(&node, "aegis_evictions_total").await > 200.0);
    assert!(metric(&node, "aegis_cache_size_bytes").await <= 8.0 * 1_048_576.0);
    assert!(metric(&node, "aegis_cache_items").await > 80.0);
    node.kill();
    let node = home.start().await;
    assert!(metric(&node, "aegis_cache_size_bytes").await <= 8.0 * 1_048_576.0);
    assert!(metric(&node, "aegis_cache_items").await > 80.0);
}

#[tokio::test]
async fn a_value_larger_than_the_room_above_the_watermark_evicts_what_it_needs() {
    let home = Home::new(json!({ "max_memory_mb": 16 }));
    let node = home.start().await;
    for n in 0..20 {
        assert_eq!(put(&node, &format!("k{n}"), vec![b'x'; 4_000_000]).await, 201, "value {n}");
    }
    assert!(get(&node, "k19").await.is_some());
    assert!(metric(&node, "aegis_cache_size_bytes").await <= 16.0 * 1_048_576.0);
}

#[tokio::test]
async fn with_eviction_off_a_full_node_says_so_and_deletes_still_work() {
    let home = Home::new(json!({ "max_memory_mb": 4, "eviction_policy": "none" }));
    let node = home.start().await;
    let mut stored = Vec::new();
    let mut status = 0;
    for n in 0..100 {
        status = put(&node, &format!("k{n}"), vec![b'x'; 100_000]).await;
        if status != 201 {
            break;
        }
        stored.push(n);
    }
    assert_eq!(status, 507);
    assert!(stored.len() > 20);
    for n in &stored {
        assert!(get(&node, &format!("k{n}")).await.is_some());
    }
    assert_eq!(put(&node, "k1", vec![b'y'; 100_000]).await, 204, "no growth, no refusal");
    let http = http();
    let mut status = 200;
    for n in 0..5000 {
        let incr = http.post(node.url(&format!("counter{n}?op=incr"))).send().await.unwrap();
        status = incr.status().as_u16();
        if status != 200 {
            break;
        }
    }
    assert_eq!(status, 507, "counters take memory too");
    let incr = http.post(node.url("counter0?op=incr")).send().await.unwrap();
    assert_eq!((incr.status().as_u16(), incr.text().await.unwrap().as_str()), (200, "2"));
    let deleted = http.delete(node.url("k0")).send().await.unwrap();
    assert_eq!(deleted.status(), 204);
    assert_eq!(put(&node, "again", vec![b'x'; 90_000]).await, 201);
}

#[tokio::test]
async fn what_expired_is_gone_from_reads_at_once_and_from_memory_soon() {
    let home = Home::new(json!({}));
    let node = home.start().await;
    for n in 0..300 {
        put(&node, &format!("k{n}?ttl=300ms"), "v").await;
    }
    put(&node, "stays", "v").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(get(&node, "k0").await, None);
    let began = std::time::Instant::now();
    while metric(&node, "aegis_cache_items").await != 1.0 {
        assert!(began.elapsed() < SOON, "not swept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(metric(&node, "aegis_expired_total").await, 300.0);
    node.kill();
    let node = home.start().await;
    assert_eq!(get(&node, "k1").await, None);
    assert!(get(&node, "stays").await.is_some());
}

#[tokio::test]
async fn a_reload_changes_what_it_may_and_a_broken_file_changes_nothing() {
    let mut home = Home::new(json!({ "auth_token": "first-token-of-this-test-0123456789" }));
    let node = home.start().await;
    let http = http();
    let status = |token: &'static str| {
        let request = http.get(node.url("none")).bearer_auth(token);
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(status("first-token-of-this-test-0123456789").await, 404);
    assert_eq!(status("wrong").await, 401);

    home.set(json!({ "auth_token": ["second-token-of-this-test-012345678", "first-token-of-this-test-0123456789"],
                     "num_shards": 16 }));
    let reload = |token: &'static str| {
        let request = http.post(node.ops_url("/admin/reload")).bearer_auth(token);
        async move { request.send().await.unwrap() }
    };
    let answer = reload("first-token-of-this-test-0123456789").await;
    assert_eq!(answer.status(), 200);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["applied"], json!(["auth_token"]));
    assert_eq!(body["needs_restart"], json!(["num_shards"]));
    assert_eq!(status("second-token-of-this-test-012345678").await, 404);
    assert_eq!(status("first-token-of-this-test-0123456789").await, 404);

    fs::write(home.config_path(), "{ broken").unwrap();
    let answer = reload("second-token-of-this-test-012345678").await;
    assert!(answer.status().is_client_error(), "{}", answer.status());
    assert!(answer.text().await.unwrap().contains("config.json"));
    assert_eq!(metric(&node, "aegis_config_reload_success").await, 0.0);
    assert_eq!(status("first-token-of-this-test-0123456789").await, 404, "the old one is in force");

    home.set(json!({ "auth_token": "second-token-of-this-test-012345678", "num_shards": 256 }));
    node.signal(Signal::SIGHUP);
    let began = std::time::Instant::now();
    while metric(&node, "aegis_config_reload_success").await != 1.0 {
        assert!(began.elapsed() < SOON, "SIGHUP did not reload:\n{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The metric tells when all is in force.
    assert_eq!(status("first-token-of-this-test-0123456789").await, 401);
}

/// Makes a certificate by `aegiskv certs`.
fn certs(dir: &std::path::Path, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aegiskv"));
    command.arg("certs").args(arguments).arg("--dir").arg(dir);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn a_reload_names_the_files_of_a_renewed_certificate() {
    let mut home = Home::new(json!({}));
    let pki = home.dir.path().join("pki");
    certs(&pki, &["init"]);
    certs(&pki, &["issue", "old", "--san", "localhost"]);
    certs(&pki, &["issue", "new", "--san", "localhost"]);
    let (cert, key) = (home.dir.path().join("node.crt"), home.dir.path().join("node.key"));
    let install = |name: &str| {
        fs::copy(pki.join(name).with_extension("crt"), &cert).unwrap();
        fs::copy(pki.join(name).with_extension("key"), &key).unwrap();
    };
    install("old");
    home.set(json!({ "tls_enabled": true, "tls_cert_file": cert, "tls_key_file": key }));
    let node = home.start().await;
    install("new");
    for applied in [json!(["tls_cert_file", "tls_key_file"]), json!([])] {
        let answer = http().post(node.ops_url("/admin/reload")).send().await.unwrap();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["applied"], applied, "{body}");
    }
}

#[tokio::test]
async fn a_request_under_way_is_finished_before_the_node_stops() {
    let home = Home::new(json!({ "drain_timeout": "10s" }));
    let node = home.start().await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let body = futures_util::stream::unfold(receiver, |mut r| async {
        r.recv().await.map(|chunk| (chunk, r))
    });
    let url = node.url("slow");
    let slow = tokio::spawn(http().put(url).body(reqwest::Body::wrap_stream(body)).send());
    sender.send(Ok(b"first, ".to_vec())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(200)).await;
    sender.send(Ok(b"second".to_vec())).await.unwrap();
    drop(sender);
    assert_eq!(slow.await.unwrap().unwrap().status(), 201);
    let mut node = node;
    assert!(node.wait(SOON).success(), "{}", node.log());
    drop(node);
    let node = home.start().await;
    assert_eq!(get(&node, "slow").await.as_deref(), Some("first, second"));
}

#[tokio::test]
async fn signals_that_mean_nothing_end_nothing() {
    let home = Home::new(json!({}));
    let node = home.start().await;
    for (signal, name) in [(Signal::SIGUSR1, "SIGUSR1"), (Signal::SIGUSR2, "SIGUSR2")] {
        node.signal(signal);
        let began = Instant::now();
        while !node.log().contains(&format!("{name} means nothing")) {
            assert!(began.elapsed() < SOON, "{}", node.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    node.signal(Signal::SIGXFSZ);
    assert_eq!(put(&node, "a", "1").await, 201);
    node.stop(SOON);
}

/// A command for a node under a limit of the shell's.
fn limited(home: &Home, limit: &str) -> Command {
    let node = home.command();
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit {limit} && exec \"$0\" \"$@\""));
    command.arg(node.get_program()).args(node.get_args());
    command
}

#[tokio::test]
async fn few_files_leave_few_connections_and_say_so() {
    let home = Home::new(json!({ "max_conns": 10_000 }));
    let mut node = home.spawn_with(limited(&home, "-n 256"));
    node.wait_ready().await;
    assert_eq!(ops(&node, "/stats").await["connections"]["max"], 128);
    let expected = "may open 256 files, which allows 128 connections instead of max_conns (10000)";
    assert!(node.log().contains(expected), "{}", node.log());
    let reloaded = http().post(node.ops_url("/admin/reload")).send().await.unwrap();
    let reloaded: Value = reloaded.json().await.unwrap();
    assert!(reloaded["warnings"].to_string().contains(expected), "{reloaded}");
}

#[tokio::test]
async fn a_file_that_may_not_grow_is_an_error_with_a_reason() {
    let home = Home::new(json!({}));
    let mut node = home.spawn_with(limited(&home, "-f 64"));
    let status = node.wait(SOON);
    assert_eq!(status.code(), Some(1), "{status}: {}", node.log());
    assert!(last_line(&node.log()).contains("File too large"), "{}", node.log());
}

#[tokio::test]
async fn a_port_that_is_taken_ends_the_start_with_the_reason_last() {
    let home = Home::new(json!({}));
    let _taken = std::net::TcpListener::bind(("127.0.0.1", home.client)).unwrap();
    let (status, log) = home.run_to_end();
    assert_eq!(status.code(), Some(1), "{log}");
    let reason = last_line(&log);
    assert!(reason.contains("bind_addr") && reason.contains(&home.client.to_string()), "{log}");
}

#[tokio::test]
async fn two_nodes_do_not_share_a_data_directory() {
    let home = Home::new(json!({}));
    let first = home.start().await;
    put(&first, "a", "1").await;
    let mut other = Home::new(json!({}));
    other.set(json!({ "data_dir": home.data() }));
    let (status, log) = other.run_to_end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(last_line(&log).contains(&format!("in use by process {}", first.pid())), "{log}");
    assert_eq!(get(&first, "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_directory_of_another_node_shard_count_or_format_is_refused_untouched() {
    let mut home = Home::new(json!({}));
    let node = home.start().await;
    put(&node, "a", "1").await;
    node.stop(SOON);
    let before = files(&home.data());
    let identity = home.data().join("identity.json");
    let original = fs::read_to_string(&identity).unwrap();
    let newer = original.replace("\"format_version\": 1", "\"format_version\": 99");
    assert_ne!(newer, original);

    home.set(json!({ "node_id": "stranger" }));
    let (status, log) = home.run_to_end();
    assert_eq!(status.code(), Some(1));
    assert!(last_line(&log).contains("belongs to node \"test\""), "{log}");

    home.set(json!({ "node_id": "test", "num_shards": 8 }));
    let (_, log) = home.run_to_end();
    assert!(last_line(&log).contains("num_shards"), "{log}");

    home.set(json!({ "num_shards": 256 }));
    fs::write(&identity, newer).unwrap();
    let (_, log) = home.run_to_end();
    assert!(last_line(&log).contains("format 99"), "{log}");

    fs::write(&identity, original).unwrap();
    assert_eq!(files(&home.data()), before);
    let node = home.start().await;
    assert_eq!(get(&node, "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_disk_that_fills_ends_the_node_with_the_reason_and_nothing_acknowledged_lost() {
    let mut home = Home::new(json!({ "wal_mode": "sync", "wal_max_size_mb": 1 }));
    let small = home.dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(&small).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("SKIP a full disk: mounting a tmpfs needs root");
        return;
    }
    let _unmounted = Unmount(small.clone());
    home.set(json!({ "data_dir": small.join("data") }));
    let mut node = home.start().await;
    let mut acknowledged = Vec::new();
    let http = http();
    for n in 0..2000 {
        let put = http.put(node.url(&format!("k{n}"))).body(vec![b'a' + (n % 26) as u8; 20_000]);
        match put.send().await {
            Ok(answer) if answer.status() == 201 => acknowledged.push(n),
            Ok(answer) => {
                assert_eq!(answer.status(), 504);
                break;
            }
            Err(_) => break,
        }
    }
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());
    let status = node.wait(SOON);
    assert_eq!(status.code(), Some(1), "{}", node.log());
    assert!(last_line(&node.log()).contains("No space left on device"), "{}", node.log());
    drop(node);

    let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&small).status();
    assert!(grown.unwrap().success());
    let node = home.start().await;
    for n in acknowledged {
        let value = get(&node, &format!("k{n}")).await.unwrap_or_else(|| panic!("k{n} is lost"));
        assert_eq!(value.len(), 20_000);
        assert!(value.bytes().all(|b| b == b'a' + (n % 26) as u8), "k{n} is mangled");
    }
    node.stop(SOON);
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_counted_set_aside_and_never_served() {
    let home = Home::new(json!({ "wal_mode": "sync" }));
    let node = home.start().await;
    for n in 0..200 {
        put(&node, &format!("k{n}"), format!("value-{n}")).await;
    }
    node.kill();
    let wal = home.data().join("wal");
    let segments: Vec<_> = files(&wal).into_iter().filter(|(n, _)| n.ends_with(".wal")).collect();
    let path = wal.join(&segments[0].0);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(9).position(|w| w == b"value-100").unwrap();
    bytes[at + 6] ^= 0x10;
    fs::write(&path, bytes).unwrap();

    let node = home.start().await;
    assert_eq!(metric(&node, "aegis_wal_corruptions_total").await, 1.0);
    assert!(metric(&node, "aegis_unclean_recovery_total").await > 0.0);
    for n in 0..200 {
        let expected = (n != 100).then(|| format!("value-{n}"));
        assert_eq!(get(&node, &format!("k{n}")).await, expected);
    }
    assert!(files(&wal).iter().any(|(n, _)| n.ends_with(".corrupt")), "{:?}", files(&wal));
    put(&node, "k100", "again").await;
    node.kill();
    let node = home.start().await;
    assert_eq!(metric(&node, "aegis_wal_corruptions_total").await, 0.0);
    assert_eq!(get(&node, "k100").await.as_deref(), Some("again"));
}

#[tokio::test]
async fn unclean_recovery_wait_leaves_the_decision_to_the_operator() {
    let mut home = Home::new(json!({ "wal_mode": "sync", "unclean_recovery": "wait" }));
    let node = home.start().await;
    for n in 0..50 {
        put(&node, &format!("k{n}"), format!("value-{n}")).await;
    }
    node.kill();
    let wal = home.data().join("wal");
    let (name, _) = files(&wal).into_iter().find(|(n, _)| n.ends_with(".wal")).unwrap();
    let mut bytes = fs::read(wal.join(&name)).unwrap();
    let at = bytes.windows(8).position(|w| w == b"value-10").unwrap();
    bytes[at] ^= 1;
    fs::write(wal.join(&name), &bytes).unwrap();
    let waiting = home.spawn();
    let began = Instant::now();
    while !waiting.log().contains("unclean_recovery") {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", waiting.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ready = http().get(waiting.ops_url("/ready")).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("unavailable"));
    drop(waiting);
    let aside = fs::read(wal.join(format!("{name}.corrupt"))).unwrap();
    assert!(aside.len() > at && bytes.starts_with(&aside), "what was damaged is kept as it was");
    home.set(json!({ "unclean_recovery": "serve" }));
    let node = home.start().await;
    assert_eq!(get(&node, "k11").await.as_deref(), Some("value-11"));
}

#[tokio::test]
async fn replaying_the_log_leaves_a_snapshot_and_says_what_it_found() {
    let home = Home::new(json!({ "wal_mode": "async" }));
    let node = home.start().await;
    for n in 0..100 {
        put(&node, &format!("k{n}"), "v").await;
    }
    node.kill();
    let output = home.command().arg("-wal-replay").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("records of the log over 0 entries"), "{said}");
    let node = home.start().await;
    assert_eq!(get(&node, "k99").await.as_deref(), Some("v"));
    assert!(node.log().contains("replayed=0"), "{}", node.log());
}

#[tokio::test]
async fn pid_file_and_daily_log_are_where_the_configuration_says() {
    let mut home = Home::new(json!({}));
    let dir = home.dir.path().to_owned();
    home.set(
        json!({ "pid_file": dir.join("pid"), "log_dir": dir.join("logs"), "log_format": "json" }),
    );
    let node = home.start().await;
    assert_eq!(fs::read_to_string(dir.join("pid")).unwrap().trim(), node.pid().to_string());
    node.stop(SOON);
    assert!(!dir.join("pid").exists());
    let logs = files(&dir.join("logs"));
    assert_eq!(logs.len(), 1);
    assert!(logs[0].0.starts_with("aegiskv.") && logs[0].0.ends_with(".log"), "{logs:?}");
    let text = fs::read_to_string(dir.join("logs").join(&logs[0].0)).unwrap();
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    assert!(text.contains("serving"));
}

#[tokio::test]
async fn an_unwritable_data_directory_is_named() {
    if nix::unistd::geteuid().is_root() {
        // Root may write anywhere but where nobody can.
        let mut home = Home::new(json!({}));
        home.set(json!({ "data_dir": "/proc/aegiskv-test" }));
        let (status, log) = home.run_to_end();
        assert_eq!(status.code(), Some(1));
        assert!(last_line(&log).contains("/proc/aegiskv-test"), "{log}");
        return;
    }
    let home = Home::new(json!({}));
    fs::create_dir(home.data()).unwrap();
    fs::set_permissions(home.data(), fs::Permissions::from_mode(0o500)).unwrap();
    let (status, log) = home.run_to_end();
    assert_eq!(status.code(), Some(1));
    assert!(last_line(&log).contains("cannot be written"), "{log}");
}

#[tokio::test]
async fn the_views_of_the_operations_port_agree_with_the_node() {
    let home = Home::new(json!({}));
    let node = home.start().await;
    put(&node, "a", "1").await;
    let cluster = ops(&node, "/cluster").await;
    assert_eq!(cluster["members"].as_array().unwrap().len(), 1);
    assert_eq!(cluster["members"][0]["node_id"], "test");
    assert_eq!(cluster["members"][0]["status"], "alive");
    assert_eq!(cluster["shards"]["total"], 256);
    assert_eq!(cluster["shards"]["healthy"], 256);
    let stats = ops(&node, "/stats").await;
    assert_eq!(stats["items"], 1, "{stats}");
    let config = ops(&node, "/config").await;
    assert!(config.to_string().contains("config.json"), "{config}");
    assert_eq!(ops(&node, "/ready").await["ready"], true);
}

/// Runs `aegiskv reload` as the unit does: whether it succeeded, and all it said.
fn reload(node: &Node, runtime: &std::path::Path) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aegiskv"));
    command.arg("reload").arg(node.pid().to_string()).env("RUNTIME_DIRECTORY", runtime);
    let done = command.output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn the_reload_command_waits_for_the_outcome_and_fails_with_its_reason() {
    let mut home = Home::new(json!({}));
    let runtime = home.dir.path().join("run");
    fs::create_dir(&runtime).unwrap();
    let mut command = home.command();
    command.env("RUNTIME_DIRECTORY", &runtime);
    let mut node = home.spawn_with(command);
    node.wait_ready().await;

    home.set(json!({ "log_level": "debug", "num_shards": 16 }));
    let expected = "reloaded: log_level\nin force only after a restart: num_shards\n";
    assert_eq!(reload(&node, &runtime), (true, expected.to_owned()));

    home.set(json!({ "num_shards": 256, "auth_token_file": "/nonexistent/token" }));
    let (succeeded, said) = reload(&node, &runtime);
    assert!(!succeeded && said.contains("/nonexistent/token"), "{said}");
    assert!(said.contains("the old configuration stays in force"), "{said}");
    assert_eq!(metric(&node, "aegis_config_reload_success").await, 0.0);

    home.set(json!({ "auth_token_file": "" }));
    let expected = "reloaded; nothing has changed\n";
    assert_eq!(reload(&node, &runtime), (true, expected.to_owned()));

    // One that cannot answer is not waited for without end.
    let gone = home.dir.path().join("gone");
    assert!(reload(&node, &gone).1.contains("RuntimeDirectory="));
    node.signal(Signal::SIGTERM);
    node.wait(SOON);
    let (succeeded, said) = reload(&node, &runtime);
    assert!(!succeeded && said.contains("cannot signal process"), "{said}");
}

/// What a service manager hears, until `until` is among it.
fn heard(socket: &std::os::unix::net::UnixDatagram, until: &str) -> String {
    let mut all = String::new();
    let mut message = [0; 4096];
    while !all.lines().any(|line| line == until) {
        let n = socket.recv(&mut message).unwrap_or_else(|e| panic!("{e}; heard only:\n{all}"));
        all.push_str(std::str::from_utf8(&message[..n]).unwrap());
        all.push('\n');
    }
    all
}

#[tokio::test]
async fn a_long_start_says_how_far_it_is_and_asks_for_more_time_again_and_again() {
    // A new directory is listened with for three of them.
    let home = Home::new(json!({ "gossip_interval": "1s" }));
    let path = home.dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut command = home.command();
    command.env("NOTIFY_SOCKET", &path);
    let _node = home.spawn_with(command);
    let told = heard(&socket, "READY=1");
    let times = |line: &str| told.lines().filter(|told| *told == line).count();
    assert!(times("EXTEND_TIMEOUT_USEC=30000000") >= 3, "{told}");
    assert!(told.matches("STATUS=").count() > 3, "{told}");
}

#[tokio::test]
async fn a_service_manager_is_told_of_start_watchdog_reload_and_stop() {
    let home = Home::new(json!({}));
    let path = home.dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut command = home.command();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let mut node = home.spawn_with(command);
    heard(&socket, "READY=1");
    heard(&socket, "WATCHDOG=1");
    heard(&socket, "WATCHDOG=1");
    node.signal(Signal::SIGHUP);
    let told = heard(&socket, "RELOADING=1");
    let told = told + &heard(&socket, "READY=1");
    assert!(told.contains("MONOTONIC_USEC="), "{told}");
    node.signal(Signal::SIGTERM);
    let told = heard(&socket, "STOPPING=1");
    assert!(!told.contains("READY=1"), "{told}");
    assert!(node.wait(SOON).success());
}
