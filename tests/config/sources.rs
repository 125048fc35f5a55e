//! Where values come from, and that the deployment guide's own files load.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use aegiskv::config::{
    EvictionPolicy, Inputs, Loaded, Quorum, Sources, TlsClientAuth, UncleanRecovery, WalMode,
};
use aegiskv::logging;

use super::{Pair, With, file, warnings};

#[test]
fn nothing_given_is_the_contracts_defaults() {
    let Loaded { config, origins, warnings, .. } =
        Inputs { host_name: "db1".to_owned(), ..Inputs::default() }.loaded();
    assert_eq!(warnings, []);
    assert_eq!(config.node_id, "db1");
    assert_eq!(config.bind_addr.to_string(), "127.0.0.1:7700");
    assert_eq!(config.gossip_bind_addr.to_string(), "127.0.0.1:7701");
    assert_eq!(config.health_addr.to_string(), "127.0.0.1:7702");
    assert_eq!(config.data_dir, PathBuf::from("./data"));
    assert_eq!(config.wal_dir(), PathBuf::from("./data/wal"));
    assert_eq!(config.addrs, []);
    assert_eq!((config.replication_factor, config.num_shards), (3, 256));
    assert_eq!(config.write_quorum, Quorum::Majority);
    assert_eq!((config.write_copies(), config.read_copies()), (2, 1));
    assert_eq!(config.memory_bytes_max(), 1_073_741_824);
    assert_eq!(config.wal_segment_bytes_max(), 67_108_864);
    assert_eq!(config.eviction_ratio, 0.9);
    assert_eq!(config.eviction_policy, EvictionPolicy::S3Fifo);
    assert_eq!((config.max_key_bytes, config.max_value_bytes), (1024, 8_388_608));
    assert_eq!(config.wal_mode, WalMode::Async);
    assert_eq!(config.gossip_interval, Duration::from_secs(1));
    assert_eq!(config.suspect_timeout, Duration::from_secs(5));
    assert_eq!(config.dead_timeout, Duration::from_secs(10));
    assert_eq!(config.rebalance_delay, Duration::from_secs(60));
    assert_eq!(config.max_conns, 10_000);
    assert_eq!(config.read_timeout, Duration::from_secs(30));
    assert_eq!(config.write_timeout, Duration::from_secs(30));
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert_eq!((config.rate_limit, config.rate_burst), (0, 100));
    assert!(config.auth_token.is_empty() && config.gossip_secret.is_empty());
    assert!(!config.tls_enabled && !config.cross_dc_replication);
    assert_eq!(config.tls_client_auth, TlsClientAuth::None);
    assert_eq!(config.log_format, logging::Format::Text);
    assert_eq!(config.unclean_recovery, UncleanRecovery::Serve);
    assert_eq!(origins.of("wal_mode"), "default");
}

#[test]
fn the_deployment_guides_file_loads_unchanged() {
    let loaded = file(include_str!("fixtures/guide-config.json")).loaded();
    let config = &loaded.config;
    assert_eq!(config.node_id, "node1");
    assert_eq!(config.bind_addr.to_string(), "0.0.0.0:7700");
    assert_eq!(config.data_dir, PathBuf::from("/var/lib/aegiskv"));
    let seeds: Vec<_> = config.addrs.iter().map(ToString::to_string).collect();
    assert_eq!(seeds, ["10.0.1.10:7701", "10.0.1.11:7701", "10.0.1.12:7701"]);
    assert_eq!(config.max_memory_mb, 16_384);
    assert_eq!(config.wal_dir(), PathBuf::from("/var/lib/aegiskv/wal"));
    assert_eq!(config.wal_max_size_mb, 256);
    assert_eq!(config.auth_token.first().expect("a token").expose(), "your-secret-token");
    assert_eq!(config.write_quorum, Quorum::Count(2));
    assert_eq!(
        warnings(&loaded),
        ["test.json: auth_token: is shorter than 32 characters; make a long one with \
          `aegiskv token`"]
    );
}

#[test]
fn the_deployment_guides_snippets_load_unchanged() {
    let node1 = file(include_str!("fixtures/guide-cluster-node1.json")).loaded().config;
    assert_eq!((node1.node_id.as_str(), node1.addrs.len()), ("node1", 0));
    let node2 = file(include_str!("fixtures/guide-cluster-node2.json")).loaded().config;
    assert_eq!(node2.gossip_bind_addr.to_string(), "10.0.1.11:7701");
    let node3 = file(include_str!("fixtures/guide-cluster-node3.json")).loaded().config;
    assert_eq!(node3.addrs.len(), 2);
    let regions = file(include_str!("fixtures/guide-cross-region.json")).loaded().config;
    assert!(regions.cross_dc_replication);
    assert_eq!(regions.cross_dc_seeds[0].to_string(), "us-west-cluster:7701");
    let memory = file(include_str!("fixtures/guide-memory.json")).loaded().config;
    assert_eq!(memory.eviction_ratio, 0.85);

    // Of the TLS snippet only the files are missing here.
    let tls = include_str!("fixtures/guide-tls.json");
    let missing = |key: &str, name: &str| {
        format!(
            "test.json: {key}: /etc/aegiskv/ssl/{name} cannot be read: No such file or directory \
             (os error 2); name a file that this user can read"
        )
    };
    assert_eq!(
        file(tls).problems(),
        [
            missing("tls_cert_file", "node.crt"),
            missing("tls_key_file", "node.key"),
            missing("tls_ca_file", "ca.crt")
        ]
    );
    let dir = tempfile::tempdir().expect("a directory");
    let pair = Pair::make();
    fs::write(dir.path().join("node.crt"), &pair.certificate).expect("a file");
    fs::write(dir.path().join("node.key"), &pair.key).expect("a file");
    fs::write(dir.path().join("ca.crt"), &pair.certificate).expect("a file");
    let here = tls.replace("/etc/aegiskv/ssl", dir.path().to_str().expect("UTF-8"));
    assert!(file(&here).loaded().config.tls_enabled);
}

#[test]
fn each_source_overrides_the_one_before() {
    let inputs = file(r#"{"wal_mode": "off", "zone": "a", "region": "r1", "max_conns": 1}"#)
        .with_file("conf.d/10.json", r#"{"zone": "b", "region": "r2", "max_conns": 2}"#)
        .with_file("conf.d/20.json", r#"{"region": "r3"}"#)
        .with_variable("AEGIS_REGION", "r4")
        .with_variable("AEGIS_MAX_CONNS", "3")
        .with_flag("max-conns", "4");
    let loaded = inputs.loaded();
    let seen = |key: &str| loaded.origins.of(key).to_owned();
    assert_eq!((loaded.config.wal_mode, seen("wal_mode")), (WalMode::Off, "test.json".to_owned()));
    assert_eq!((loaded.config.zone.as_str(), seen("zone").as_str()), ("b", "conf.d/10.json"));
    assert_eq!(loaded.config.region, "r4");
    assert_eq!(seen("region"), "environment AEGIS_REGION");
    assert_eq!(loaded.config.max_conns, 4);
    assert_eq!(seen("max_conns"), "flag --max-conns");
}

#[test]
fn null_is_as_if_nobody_had_set_the_key() {
    let loaded = file(r#"{"zone": "a"}"#).with_file("later.json", r#"{"zone": null}"#).loaded();
    assert_eq!(loaded.config.zone, "");
    assert_eq!(loaded.origins.of("zone"), "default");
}

#[test]
fn text_is_understood_by_the_keys_type() {
    let config = file("{}")
        .with_variable("AEGIS_SEEDS", "node2:7701, node3:7701,")
        .with_variable("AEGIS_NODE_ID", "42")
        .with_variable("AEGIS_EVICTION_RATIO", "0.5")
        .with_variable("AEGIS_TLS_ENABLED", "no")
        .with_variable("AEGIS_READ_TIMEOUT", "45")
        .with_variable("AEGIS_AUTH_TOKEN", "new,old")
        .with_variable("AEGISKV_TOKEN", "a client's own")
        .with_variable("PATH", "/bin")
        .with_flag("--wal-mode", "fsync")
        .with_flag("write_quorum", "-1")
        .with_flag("read-quorum", "majority")
        .with_flag("write-timeout", "1m30s")
        .loaded()
        .config;
    let seeds: Vec<_> = config.addrs.iter().map(ToString::to_string).collect();
    assert_eq!(seeds, ["node2:7701", "node3:7701"]);
    assert_eq!(config.node_id, "42");
    assert_eq!(config.eviction_ratio, 0.5);
    assert!(!config.tls_enabled);
    assert_eq!(config.read_timeout, Duration::from_secs(45));
    let tokens: Vec<_> = config.auth_token.iter().map(|token| token.expose()).collect();
    assert_eq!(tokens, ["new", "old"]);
    assert_eq!(config.wal_mode, WalMode::Sync);
    assert_eq!((config.write_quorum, config.write_copies()), (Quorum::All, 3));
    assert_eq!(config.read_copies(), 2);
    assert_eq!(config.write_timeout, Duration::from_secs(90));
}

#[test]
fn json_durations_are_text_or_seconds() {
    let config = file(r#"{"read_timeout": 5, "write_timeout": 1.5, "drain_timeout": "500ms"}"#)
        .loaded()
        .config;
    assert_eq!(config.read_timeout, Duration::from_secs(5));
    assert_eq!(config.write_timeout, Duration::from_millis(1500));
    assert_eq!(config.drain_timeout, Duration::from_millis(500));
}

#[test]
fn secrets_come_as_a_string_a_list_or_a_file() {
    let tokens = |inputs: Inputs| -> Vec<String> {
        let config = inputs.loaded().config;
        config.auth_token.iter().map(|token| token.expose().to_owned()).collect()
    };
    assert_eq!(tokens(file(r#"{"auth_token": "one"}"#)), ["one"]);
    assert_eq!(tokens(file(r#"{"auth_token": ["new", "old"]}"#)), ["new", "old"]);
    assert_eq!(tokens(file(r#"{"auth_token": ""}"#)), [""; 0]);

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("token");
    fs::write(&path, "new\r\n\nold\n").expect("a file");
    let from_file = file("{}").with_flag("auth-token-file", path.to_str().expect("UTF-8"));
    assert_eq!(tokens(from_file.clone()), ["new", "old"]);
    assert_eq!(from_file.loaded().origins.of("auth_token"), path.to_str().expect("UTF-8"));
}

#[test]
fn the_go_prototypes_keys_are_accepted_with_a_warning() {
    let loaded = file(r#"{"virtual_nodes": 150}"#)
        .with_variable("AEGIS_MAINTENANCE_INTERVAL", "1s")
        .with_flag("replication-max-retries", "3")
        .loaded();
    assert_eq!(
        warnings(&loaded),
        [
            "test.json: virtual_nodes: belongs to the Go prototype and has no effect here; \
             remove it",
            "environment AEGIS_MAINTENANCE_INTERVAL: belongs to the \
             Go prototype and has no effect here; remove it",
            "flag --replication-max-retries: belongs to the Go prototype \
             and has no effect here; remove it",
        ]
    );
}

#[test]
fn variables_that_kubernetes_makes_for_a_service_do_not_stop_the_node() {
    let loaded = file("{}")
        .with_variable("AEGIS_PORT_7700_TCP", "tcp://10.0.0.1:7700")
        .with_variable("AEGIS_SERVICE_HOST", "10.0.0.1")
        .loaded();
    assert_eq!(loaded.warnings.len(), 2);
}

#[test]
fn a_value_that_is_not_utf8_is_a_problem_and_not_shown() {
    let mut inputs = file("{}");
    let value = OsString::from_vec(b"hush\xff".to_vec());
    inputs.environment.push((OsString::from("AEGIS_AUTH_TOKEN"), value));
    assert_eq!(
        inputs.problems(),
        ["environment AEGIS_AUTH_TOKEN: auth_token: the value is not UTF-8; give it in UTF-8"]
    );
}

#[test]
fn the_file_and_its_conf_d_are_read_in_name_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.json");
    fs::write(&path, r#"{"zone": "a", "max_conns": 1}"#).expect("a file");
    let conf_d = dir.path().join("conf.d");
    fs::create_dir(&conf_d).expect("a directory");
    fs::write(conf_d.join("20-b.json"), r#"{"zone": "c"}"#).expect("a file");
    fs::write(conf_d.join("10-a.json"), r#"{"zone": "b", "max_conns": 2}"#).expect("a file");
    fs::write(conf_d.join(".10-a.json.swp.json"), "editor's").expect("a file");
    fs::write(conf_d.join("notes.txt"), "no JSON").expect("a file");

    let sources = Sources { file: Some(path), ..Sources::default() };
    let loaded = sources.load().expect("all is well");
    assert_eq!((loaded.config.zone.as_str(), loaded.config.max_conns), ("c", 2));
    let last = conf_d.join("20-b.json").display().to_string();
    assert_eq!(loaded.origins.of("zone"), last);
    assert!(!loaded.config.node_id.is_empty(), "the host name");
}

#[test]
fn a_missing_file_is_a_problem_and_no_file_named_reads_none() {
    let missing = Sources { file: Some("/nonexistent/config.json".into()), ..Sources::default() };
    let problems = missing.load().expect_err("there is no such file");
    assert_eq!(
        problems.to_string(),
        "/nonexistent/config.json: cannot be read: No such file or directory (os error 2); \
         name a file that this user can read"
    );
    let sources = Sources::of_process(None, BTreeMap::from([("zone".into(), "z".into())]));
    assert_eq!(sources.file, None);
    assert!(!sources.environment.is_empty());
    let sources = Sources { environment: Vec::new(), ..sources };
    assert_eq!(sources.load().expect("all is well").config.zone, "z");
}
