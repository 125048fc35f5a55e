//! The documentation of the keys is the code's own.

use aegiskv::config::{KEYS, key_reference};

const BEGIN: &str = "<!-- keys: begin -->\n";
const END: &str = "<!-- keys: end -->\n";

/// To write the part of `docs/configure.md` that comes from the code again:
/// `UPDATE_DOCS=1 cargo test --test config`
#[test]
fn the_document_of_the_keys_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configure.md");
    let document = std::fs::read_to_string(path).expect("the document is there");
    let (before, rest) = document.split_once(BEGIN).expect("the document has a beginning mark");
    let (keys, after) = rest.split_once(END).expect("the document has an end mark");
    let made = key_reference() + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{made}{END}{after}"))
            .expect("the document can be written");
    } else {
        assert!(
            keys == made,
            "docs/configure.md is not what the code says; run \
             UPDATE_DOCS=1 cargo test --test config"
        );
    }
}

#[test]
fn the_keys_of_the_contract_are_all_there_with_their_defaults() {
    let keys: Vec<_> = KEYS.iter().map(|key| (key.name, key.default)).collect();
    let promised = [
        ("node_id", ""),
        ("zone", ""),
        ("region", ""),
        ("bind_addr", "127.0.0.1:7700"),
        ("client_advertise_addr", ""),
        ("data_dir", "./data"),
        ("addrs", ""),
        ("replication_factor", "3"),
        ("num_shards", "256"),
        ("max_memory_mb", "1024"),
        ("eviction_ratio", "0.9"),
        ("eviction_policy", "s3fifo"),
        ("replication_log_mb", "0"),
        ("max_key_bytes", "1024"),
        ("max_value_bytes", "8388608"),
        ("wal_mode", "async"),
        ("wal_dir", ""),
        ("wal_max_size_mb", "64"),
        ("gossip_bind_addr", "127.0.0.1:7701"),
        ("gossip_advertise_addr", ""),
        ("gossip_interval", "1s"),
        ("gossip_secret", ""),
        ("gossip_secret_file", ""),
        ("suspect_timeout", "5s"),
        ("dead_timeout", "10s"),
        ("rebalance_delay", "60s"),
        ("when_removed", "exit"),
        ("max_conns", "10000"),
        ("read_timeout", "30s"),
        ("write_timeout", "30s"),
        ("health_addr", "127.0.0.1:7702"),
        ("allowed_hosts", ""),
        ("allowed_origins", ""),
        ("auth_token", ""),
        ("auth_token_file", ""),
        ("auth_tokens", "[]"),
        ("write_quorum", "majority"),
        ("read_quorum", "1"),
        ("rate_limit", "0"),
        ("rate_burst", "100"),
        ("tls_enabled", "false"),
        ("tls_cert_file", ""),
        ("tls_key_file", ""),
        ("tls_ca_file", ""),
        ("tls_client_auth", "none"),
        ("drain_timeout", "30s"),
        ("pid_file", ""),
        ("log_level", "info"),
        ("log_format", "text"),
        ("log_dir", ""),
        ("unclean_recovery", "serve"),
        ("cross_dc_replication", "false"),
        ("cross_dc_seeds", ""),
        ("region_index", "0"),
    ];
    for expected in promised {
        assert!(keys.contains(&expected), "{expected:?}");
    }
    assert_eq!(keys.len(), promised.len());
}

#[test]
fn a_reload_applies_the_keys_that_the_contract_says_it_does() {
    let live: Vec<_> = KEYS.iter().filter(|key| key.live).map(|key| key.name).collect();
    assert_eq!(
        live,
        [
            "drain_timeout",
            "addrs",
            "max_conns",
            "read_timeout",
            "write_timeout",
            "rate_limit",
            "rate_burst",
            "allowed_hosts",
            "allowed_origins",
            "max_memory_mb",
            "eviction_ratio",
            "eviction_policy",
            "replication_log_mb",
            "write_quorum",
            "read_quorum",
            "suspect_timeout",
            "dead_timeout",
            "rebalance_delay",
            "when_removed",
            "auth_token",
            "auth_token_file",
            "auth_tokens",
            "gossip_secret",
            "gossip_secret_file",
            "tls_cert_file",
            "tls_key_file",
            "tls_ca_file",
            "log_level",
        ]
    );
}
