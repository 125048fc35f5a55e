//! The one table of configuration keys: name, type, default, range, help, and whether a reload
//! applies it. The struct [`Config`], the flags, the checks and `docs/configure.md` come from it.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

use super::address::HostPort;
use super::layers::Reader;
use super::secret::Secrets;
use super::setting::{
    EvictionPolicy, Quorum, Setting, Shape, TlsClientAuth, UncleanRecovery, WalMode, WhenRemoved,
};
use super::tokens::NamedToken;
use crate::logging;
use crate::store::REPLICATION_LOG_PART;

/// What is known of one key before any value is read.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name in files; flags write it with hyphens, the environment as `AEGIS_` and capitals.
    pub name: &'static str,
    /// The heading under which it is documented.
    pub section: &'static str,
    /// What it does, in one or two sentences.
    pub help: &'static str,
    /// Its default, as the environment or a flag would give it.
    pub default: &'static str,
    /// The least and greatest value: of a number itself, of a duration in milliseconds.
    pub range: Option<(i64, i64)>,
    /// The range in the words of the key's type.
    pub range_text: Option<fn((i64, i64)) -> String>,
    /// What a value must be.
    pub expects: &'static str,
    /// How text from the environment and flags is understood.
    pub shape: Shape,
    /// Whether a reload applies a change; else a restart does.
    pub live: bool,
    /// Whether its value is a secret.
    pub secret: bool,
    /// Whether all nodes of a cluster should have the same value.
    pub shared: bool,
}

impl Key {
    /// The key of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Whether its value is a secret, or the name of a file that holds one.
    pub(super) fn gives_secret(&self) -> bool {
        let of_file = self.name.strip_suffix("_file").and_then(Self::find);
        self.secret || of_file.is_some_and(|key| key.secret)
    }

    /// The flag's name, without the leading hyphens.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable's name.
    pub fn variable(&self) -> String {
        format!("AEGIS_{}", self.name.to_ascii_uppercase())
    }

    /// The default as a configuration file holds it.
    pub fn default_json(&self) -> Json {
        self.shape.json_from_text(self.default)
    }
}

/// Other names of keys in the environment and on the command line.
pub const ALIASES: &[(&str, &str)] = &[("seeds", "addrs")];

/// Keys of the Go prototype that have no effect here; they are accepted with a warning.
pub const OBSOLETE: &[&str] = &[
    "maintenance_interval",
    "replication_batch_size",
    "replication_batch_timeout",
    "replication_max_retries",
    "shard_max_bytes",
    "virtual_nodes",
];

macro_rules! keys {
    ($( $section:literal { $(
        $(#[doc = $help:literal])+
        $name:ident: $type:ty = $default:literal $(in $min:literal..=$max:literal)?,
        $life:ident, $reach:ident;
    )+ } )+) => {
        /// The configuration, typed and checked. Field by field as the documentation of the keys.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config { $($(
            $(#[doc = $help])+
            pub $name: $type,
        )+)+ }

        /// Every key, in the order of the documentation.
        pub static KEYS: &[Key] = &[ $($(
            Key {
                name: stringify!($name),
                section: $section,
                help: concat!($($help),+).trim_ascii(),
                default: $default,
                range: keys!(@range $($min, $max)?),
                range_text: keys!(@range_text $type $(, $min)?),
                expects: <$type as Setting>::EXPECTS,
                shape: <$type as Setting>::SHAPE,
                live: keys!(@word $life),
                secret: <$type as Setting>::SECRET,
                shared: keys!(@word $reach),
            },
        )+)+ ];

        impl Config {
            /// Reads every key; what is wrong is noted in `reader` and replaced by the default.
            pub(super) fn read(reader: &mut Reader<'_>) -> Self {
                Self { $($( $name: reader.read(stringify!($name)), )+)+ }
            }

            /// Every value in the order of [`KEYS`], as a file would hold it, secrets redacted.
            pub(super) fn show(&self) -> Vec<Json> {
                vec![ $($( Setting::show(&self.$name), )+)+ ]
            }

            /// The keys whose values differ.
            pub(super) fn differences(&self, other: &Self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $($( if self.$name != other.$name { names.push(stringify!($name)); } )+)+
                names
            }

            /// Takes back from `old` what only a restart may change.
            pub(super) fn keep_until_restart(&mut self, old: &Self) {
                $($( if !keys!(@word $life) { self.$name = old.$name.clone(); } )+)+
            }
        }
    };
    (@range) => { None };
    (@range $min:literal, $max:literal) => { Some(($min, $max)) };
    (@range_text $type:ty) => { None };
    (@range_text $type:ty, $min:literal) => {
        Some(|(least, greatest)| {
            let show = <$type as Setting>::measured;
            format!("{} to {}", show(least), show(greatest))
        })
    };
    (@word live) => { true };
    (@word restart) => { false };
    (@word shared) => { true };
    (@word own) => { false };
}

keys! {
    "The node" {
        /// This node's name, unique in its cluster. Empty: the machine's host name.
        node_id: String = "", restart, own;
        /// The availability zone it stands in; copies are spread over zones. Empty: none.
        zone: String = "", restart, own;
        /// The region its cluster stands in. Empty: none.
        region: String = "", restart, shared;
        /// Directory for all that the node keeps.
        data_dir: PathBuf = "./data", restart, own;
        /// File to hold the process id while the node runs. Empty: none.
        pid_file: Option<PathBuf> = "", restart, own;
        /// How long a stopping node lets running requests finish. 0s: not at all.
        drain_timeout: Duration = "30s" in 0..=3_600_000, live, shared;
    }
    "Addresses" {
        /// Where clients are served. `:7700` means every IPv4 address; port 0 lets the system choose.
        bind_addr: HostPort = "127.0.0.1:7700", restart, own;
        /// The address told to others as the one for clients. Empty: `bind_addr`, or the address that the route to the first seed leaves from.
        client_advertise_addr: Option<HostPort> = "", restart, own;
        /// Where other nodes are heard: UDP for gossip, TCP for everything else.
        gossip_bind_addr: HostPort = "127.0.0.1:7701", restart, own;
        /// The address told to other nodes. Empty: `gossip_bind_addr`, or the address that the route to the first seed leaves from.
        gossip_advertise_addr: Option<HostPort> = "", restart, own;
        /// Where health, metrics and administration are served.
        health_addr: HostPort = "127.0.0.1:7702", restart, own;
        /// The seeds: gossip addresses of some nodes of the cluster. The environment also takes `AEGIS_SEEDS`, the command line `--seeds`.
        addrs: Vec<HostPort> = "", live, own;
    }
    "Clients" {
        /// Most client connections at a time; the next is refused and counted.
        max_conns: u32 = "10000" in 1..=10_000_000, live, shared;
        /// Longest wait for a client to send its request.
        read_timeout: Duration = "30s" in 10..=3_600_000, live, shared;
        /// Longest wait for a client to take its answer.
        write_timeout: Duration = "30s" in 10..=3_600_000, live, shared;
        /// Operations a second allowed to each connection. 0: no limit.
        rate_limit: u32 = "0" in 0..=1_000_000_000, live, shared;
        /// Operations that a connection may do at once before `rate_limit` slows it.
        rate_burst: u32 = "100" in 1..=1_000_000_000, live, shared;
        /// Longest key, in bytes.
        max_key_bytes: u32 = "1024" in 1..=65_535, restart, shared;
        /// Largest value, in bytes.
        max_value_bytes: u64 = "8388608" in 1..=25_165_824, restart, shared;
    }
    "Web pages" {
        /// While neither `auth_token` nor `auth_tokens` is set: names by which the node may be asked on ports 7700 and 7702, beside its addresses, `localhost`, `node_id` and the names in its own addresses. `.example.com` stands for all names below it, `*` for any.
        allowed_hosts: Vec<String> = "", live, shared;
        /// While neither `auth_token` nor `auth_tokens` is set: web pages that may ask the node, as browsers name them in `Origin`, like `https://app.example.com`; `*` for any.
        allowed_origins: Vec<String> = "", live, shared;
    }
    "Memory" {
        /// Memory for keys and values, in MB (1,048,576 bytes).
        max_memory_mb: u64 = "1024" in 1..=16_777_216, live, shared;
        /// Share of `max_memory_mb` at which eviction starts; above 0, at most 1.
        eviction_ratio: f64 = "0.9", live, shared;
        /// What gives way when memory is short: `s3fifo`, the least useful entries; `none`, nothing, and writes are refused with 507.
        eviction_policy: EvictionPolicy = "s3fifo", live, shared;
        /// Part of `max_memory_mb` that recent records may take, kept for nodes that fall a little behind and else need whole copies of shards; in MB, 0 for a sixteenth. Nothing is kept where a shard has one copy.
        replication_log_mb: u64 = "0" in 0..=16_777_216, live, shared;
    }
    "The write-ahead log" {
        /// `off`: nothing is written to disk. `async`: an acknowledged write outlives the process. `sync`: it outlives a loss of power. The names `write` and `fsync` mean async and sync.
        wal_mode: WalMode = "async", restart, shared;
        /// Directory of the log. Empty: `wal` in `data_dir`.
        wal_dir: Option<PathBuf> = "", restart, own;
        /// Size at which a file of the log is closed and the next begun, in MB.
        wal_max_size_mb: u64 = "64" in 1..=65_536, restart, shared;
    }
    "Copies and shards" {
        /// Shards that the keys are spread over. Fixed at the cluster's birth.
        num_shards: u16 = "256" in 1..=4096, restart, shared;
        /// Nodes that hold a copy of each shard.
        replication_factor: u32 = "3" in 1..=15, restart, shared;
        /// Copies that must have a write before it is acknowledged: a number, `majority` of `replication_factor`, 0 to wait for none, -1 for all.
        write_quorum: Quorum = "majority" in -1..=15, live, shared;
        /// Copies asked for a read: a number, `majority`, or -1 for all.
        read_quorum: Quorum = "1" in -1..=15, live, shared;
        /// When no majority of a shard's copies with memory can be had: `serve` goes on with the most advanced copy left, `wait` waits for the operator.
        unclean_recovery: UncleanRecovery = "serve", restart, shared;
    }
    "Membership" {
        /// Pause between two rounds of gossip.
        gossip_interval: Duration = "1s" in 10..=60_000, restart, shared;
        /// Silence after which a node is suspected.
        suspect_timeout: Duration = "5s" in 20..=3_600_000, live, shared;
        /// Silence after which a node is taken for dead; above `suspect_timeout`.
        dead_timeout: Duration = "10s" in 30..=86_400_000, live, shared;
        /// How long after a node was found dead its shards move to others.
        rebalance_delay: Duration = "60s" in 0..=604_800_000, live, shared;
        /// What this node does once it was removed from its cluster: `exit`, with code 10; `stay`, running without serving anybody, for where nothing but a running process keeps a supervisor from starting it again and again.
        when_removed: WhenRemoved = "exit", live, own;
    }
    "Secrets" {
        /// Tokens that clients and administrators may show. The first is used, all are accepted.
        auth_token: Secrets = "", live, shared;
        /// File with the tokens, one a line, instead of `auth_token`.
        auth_token_file: Option<PathBuf> = "", live, own;
        /// Tokens with fewer rights, each with a name: `[{"name": "shop", "file": "/etc/aegiskv/tokens/shop", "verbs": ["read", "write"], "prefixes": ["shop:"], "rate": 5000}]`. A file holds one token a line, and all are accepted. `read` and `write` are for keys, of these prefixes if some are given; `metrics` is for `/metrics`, which then asks everybody for such a token; `admin` is for that and the actions of port 7702. `rate` bounds the operations a second over all connections to a node; 0 is no bound.
        auth_tokens: Vec<NamedToken> = "[]", live, shared;
        /// Secrets shared by the cluster's nodes. The first is used, all are accepted.
        gossip_secret: Secrets = "", live, shared;
        /// File with the secrets, one a line, instead of `gossip_secret`.
        gossip_secret_file: Option<PathBuf> = "", live, own;
    }
    "TLS" {
        /// Whether clients and nodes are served over TLS.
        tls_enabled: bool = "false", restart, shared;
        /// This node's certificate chain, PEM.
        tls_cert_file: Option<PathBuf> = "", live, own;
        /// The certificate's key, PEM.
        tls_key_file: Option<PathBuf> = "", live, own;
        /// Certificates that sign those of other nodes and of clients, PEM.
        tls_ca_file: Option<PathBuf> = "", live, own;
        /// Whether clients must show a certificate: `none` or `required`.
        tls_client_auth: TlsClientAuth = "none", restart, shared;
    }
    "Logs" {
        /// `trace`, `debug`, `info`, `warn`, `error` or `off`; also for single parts, as in `info,aegiskv::wal=debug`.
        log_level: String = "info", live, shared;
        /// `text` or `json`.
        log_format: logging::Format = "text", restart, shared;
        /// Directory for daily log files, beside standard error. Empty: standard error only.
        log_dir: Option<PathBuf> = "", restart, own;
    }
    "Other regions" {
        /// Whether this cluster ships its writes to others.
        cross_dc_replication: bool = "false", restart, shared;
        /// Gossip addresses of nodes of the other clusters.
        cross_dc_seeds: Vec<HostPort> = "", restart, shared;
        /// This region's number, different from every linked region's.
        region_index: u8 = "0" in 0..=7, restart, shared;
    }
}

impl Config {
    /// Where the write-ahead log stands.
    pub fn wal_dir(&self) -> PathBuf {
        self.wal_dir.clone().unwrap_or_else(|| self.data_dir.join("wal"))
    }

    /// Copies that must have a write before it is acknowledged; 0 waits for none.
    pub fn write_copies(&self) -> u32 {
        self.write_quorum.of(self.replication_factor)
    }

    /// Copies asked for a read.
    pub fn read_copies(&self) -> u32 {
        self.read_quorum.of(self.replication_factor)
    }

    /// Memory for keys and values, in bytes.
    pub fn memory_bytes_max(&self) -> u64 {
        self.max_memory_mb * MB
    }

    /// What records kept for other nodes may take of it, in bytes.
    pub fn replication_log_bytes(&self) -> u64 {
        match self.replication_log_mb {
            0 => self.memory_bytes_max() / REPLICATION_LOG_PART,
            mb => mb * MB,
        }
    }

    /// Size at which a file of the log is closed, in bytes.
    pub fn wal_segment_bytes_max(&self) -> u64 {
        self.wal_max_size_mb * MB
    }
}

/// What the configuration calls a megabyte, in bytes.
const MB: u64 = 1 << 20;
