//! The composition root: opens, wires and starts all parts of a node, and ends them in reverse.
//!
//! The order of a start: configuration, log, limits; port 7702, which tells how the start goes on;
//! port 7700, which refuses politely until there is something to serve; the data; upkeep. The order
//! of a stop: no new connections, the requests under way, upkeep, a last snapshot, the write-ahead
//! log, the clean mark; port 7702 last.
//!
//! It decides nothing about data.

mod bring_up;
mod cluster;
mod control;
mod data;
mod inquiry;
mod membership;
mod newborn;
mod node;
mod peers;
mod pressure;
mod recover;
mod removal;
mod stop_lease;
mod udp;
mod upkeep;
mod view;
mod ways;
mod whereabouts;

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal::SIGXFSZ;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::config::{
    self, Config, HostPort, Loaded, NamedToken, Secret, Secrets, Sources, TlsClientAuth,
    WhenRemoved,
};
use crate::coordinator::Coordinator;
use crate::logging::{self, Logging};
use crate::metrics::Metrics;
use crate::ops;
use crate::process::{self, Notifier, PidFile};
use crate::tls::{Own, TlsError};
use crate::wal;

use bring_up::PeerPort;
use cluster::Cluster;
use data::{Data, LoadProgress};
use node::Node;
use upkeep::Sweeper;

pub use recover::{Recovered, recover};
pub use removal::Removed;

/// How much more time the service manager is asked for while the data is being loaded.
const START_EXTENSION: Duration = Duration::from_secs(30);

/// How often progress is told while loading.
const START_PACE: Duration = Duration::from_secs(1);

/// What a stop may take beyond `drain_timeout`, for the log and the clean mark.
const STOP_EXTENSION: Duration = Duration::from_secs(30);

/// How long what was asked of members is waited for, once this node is none any more.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Runs a node until SIGTERM, SIGINT, or something that it cannot go on after.
///
/// # Errors
/// Why it did not start, or could not go on.
pub fn run(sources: Sources) -> anyhow::Result<()> {
    let started = Instant::now();
    let loaded = sources.load()?;
    let config = &loaded.config;
    let logging = start_logging(config)?;
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if config.cross_dc_replication {
        tracing::warn!(
            "cross_dc_replication is on, but this version ships nothing to other regions"
        );
    }
    let files =
        process::open_files(config.max_conns).context("cannot read the limit of open files")?;
    if let Some(warning) = &files.warning {
        tracing::warn!("{warning}");
    }
    let _pid_file = config.pid_file.as_deref().map(PidFile::create).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(sources, loaded, &logging, files.connections, started));
    // A load that was interrupted may still be reading; it changes nothing on disk.
    runtime.shutdown_background();
    outcome
}

/// Replays the log into a fresh snapshot and prints what was found, without serving anybody.
///
/// # Errors
/// Why that was not possible.
pub fn replay_wal(sources: Sources) -> anyhow::Result<()> {
    let loaded = sources.load()?;
    let _logging = start_logging(&loaded.config)?;
    let done = data::replay(&loaded.config)?;
    println!("{done}");
    Ok(())
}

async fn serve(
    sources: Sources,
    loaded: Loaded,
    logging: &Logging,
    connections_max: u32,
    started: Instant,
) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let notifier = Notifier::from_environment();
    let metrics = Arc::new(Metrics::new());
    let coordinator = Coordinator::new(metrics.clone());
    coordinator.set_write_copies(loaded.config.write_copies());
    coordinator.set_read_copies(loaded.config.read_copies());

    let ops_config = ops::Config { addr: resolve("health_addr", &loaded.config.health_addr)? };
    let ops_port = ops::Listener::bind(ops_config).await?;
    let client_addr = resolve("bind_addr", &loaded.config.bind_addr)?;
    let client_port = TcpListener::bind(client_addr)
        .await
        .with_context(|| format!("cannot listen on {client_addr} (bind_addr)"))?;
    let peer_port =
        PeerPort::bind(resolve("gossip_bind_addr", &loaded.config.gossip_bind_addr)?).await?;
    let api = api::Server::new(
        coordinator.clone(),
        metrics.clone(),
        api_settings(&loaded.config, connections_max, &metrics),
        load_tls(&loaded.config, None)?,
    );

    let node = Arc::new(Node {
        sources,
        loaded: Mutex::new(Arc::new(loaded)),
        started,
        client_addr: client_port.local_addr().context("cannot tell bind_addr")?,
        metrics: metrics.clone(),
        coordinator: coordinator.clone(),
        api: api.clone(),
        log_level: logging.control(),
        log_drops: logging.drops(),
        notifier: notifier.clone(),
        loading: LoadProgress::default(),
        nursery: OnceLock::new(),
        data: OnceLock::new(),
        cluster: OnceLock::new(),
        removed: OnceLock::new(),
        was_whole: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        reload_ok: AtomicBool::new(true),
        refusals_told: Mutex::default(),
        reloading: tokio::sync::Mutex::new(()),
        reloaded: tokio::sync::Notify::new(),
    });
    let ops_stop = CancellationToken::new();
    let ops_task =
        tokio::spawn(ops_port.serve(ops::router(node.clone(), metrics), ops_stop.clone()));
    let (stop_api, api_stops) = oneshot::channel::<Instant>();
    let api_task = tokio::spawn(async move {
        // Sent only below; were it dropped, serving would end at once.
        let stop = async { api_stops.await.unwrap_or_else(|_| Instant::now()) };
        api.serve(client_port, stop).await
    });
    for exposure in node.config().config.exposures() {
        tracing::warn!("{}", exposure.text);
    }

    let outcome = match come_up(&node, peer_port, &mut signals).await? {
        Some(up) => serve_data(&node, up, &mut signals, (stop_api, api_task)).await,
        None => Ok(()),
    };
    ops_stop.cancel();
    let _ = ops_task.await;
    outcome
}

/// Serves loaded data until told to stop, or until the log fails; then ends what was started, in
/// reverse. `api` is the way to end serving clients, and the task that does it.
async fn serve_data(
    node: &Node,
    (data, cluster): (Arc<Data>, Arc<Cluster>),
    signals: &mut Signals,
    api: (oneshot::Sender<Instant>, JoinHandle<usize>),
) -> anyhow::Result<()> {
    let sweeper = Arc::new(Sweeper::start(cluster.clone())?);
    let watchdog = node.notifier.watchdog();
    let watchdog = watchdog.map(|dog| tokio::spawn(upkeep::feed(dog, sweeper.clone())));
    let snapshots = tokio::spawn(data::snapshot_when_due(data.clone()));
    node.notifier.ready("serving");
    tracing::info!(
        clients = %node.client_addr,
        operations = %node.config().config.health_addr,
        items = data.replica.budget().items(),
        "serving"
    );

    let outcome = run_until_end(node, &data, &cluster, signals).await;
    let orderly = outcome.is_ok();

    node.notifier.stopping("stopping");
    node.stopping.store(true, Ordering::Relaxed);
    let drain_timeout = node.config().config.drain_timeout;
    node.notifier.extend_timeout(drain_timeout + STOP_EXTENSION);
    let deadline = Instant::now() + drain_timeout;
    let (stop_api, api_task) = api;
    if orderly {
        if node.removed.get().is_none() {
            cluster.hand_over().await;
        }
        tracing::info!(?drain_timeout, "stopping: no new connections, requests under way go on");
        let _ = stop_api.send(deadline);
        let cut = api_task.await.context("serving clients panicked")?;
        if cut > 0 {
            tracing::warn!(connections = cut, "still open after drain_timeout, and cut");
        }
    }
    node.coordinator.drain();
    snapshots.abort();
    watchdog.inspect(|task| task.abort());
    drop(sweeper);
    cluster.end().await;
    data::close(data, orderly, deadline).await?;
    match (outcome?, node.removed.get()) {
        (End::Removed, Some(removed)) => Err(removed.clone().into()),
        _ => Ok(()),
    }
}

/// Brings the node up. `None` if it was told to stop meanwhile.
async fn come_up(
    node: &Arc<Node>,
    port: PeerPort,
    signals: &mut Signals,
) -> anyhow::Result<Option<(Arc<Data>, Arc<Cluster>)>> {
    let before = node.config();
    let up = bring_up::bring_up(node.clone(), port);
    tokio::pin!(up);
    let mut pace = tokio::time::interval(START_PACE);
    let (data, cluster) = loop {
        tokio::select! {
            up = &mut up => break up?,
            _ = pace.tick() => {
                node.notifier.extend_timeout(START_EXTENSION);
                node.notifier.status(&node.progress());
            }
            signal = signals.next() => match signal {
                Told::Stop => return Ok(None),
                Told::Reload => drop(node.reload_now().await),
            }
        }
    };
    let _ = node.data.set(data.clone());
    let _ = node.cluster.set(cluster.clone());
    node.apply_since(&before).await;
    Ok(Some((data, cluster)))
}

/// Why a node ends in order.
enum End {
    Told,
    Removed,
}

/// Reloads when told to, until told to stop, until it was removed from its cluster and is to end
/// then, or until the log or the topology fails.
async fn run_until_end(
    node: &Node,
    data: &Data,
    cluster: &Cluster,
    signals: &mut Signals,
) -> anyhow::Result<End> {
    let data_dir = node.config().config.data_dir.clone();
    let removal = removal::removal(cluster, data_dir);
    tokio::pin!(removal);
    let mut failure = data.replica.wal().failure();
    let mut topology_failure = cluster.consensus().failure();
    loop {
        if node.removed.get().is_some() && node.config().config.when_removed == WhenRemoved::Exit {
            return Ok(End::Removed);
        }
        tokio::select! {
            signal = signals.next() => match signal {
                Told::Stop => return Ok(End::Told),
                Told::Reload => drop(node.reload_now().await),
            },
            // Also by port 7702.
            () = node.reloaded.notified() => {}
            removed = &mut removal, if node.removed.get().is_none() => {
                node.was_removed(removed);
                tokio::time::sleep(LAST_ANSWERS).await;
                cluster.end().await;
            }
            // Fails only when the log is gone, which `data` keeps.
            Ok(failed) = failure.wait_for(Option::is_some) => {
                let error = failed.clone().context("the log failed without saying why")?;
                node.coordinator.drain();
                return Err(error.into());
            }
            // The same of consensus, which `cluster` keeps.
            Ok(failed) = topology_failure.wait_for(Option::is_some) => {
                let error = failed.clone().context("the topology failed without saying why")?;
                node.coordinator.drain();
                return Err(error.into());
            }
        }
    }
}

/// What a signal tells the process to do.
enum Told {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_1: Signal,
    user_2: Signal,
    _file_too_large: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            // These would end a process that does not listen for them.
            user_1: listen(SignalKind::user_defined1())?,
            user_2: listen(SignalKind::user_defined2())?,
            // The write that it comes with fails, and says why.
            _file_too_large: listen(SignalKind::from_raw(SIGXFSZ as i32))?,
        })
    }

    async fn next(&mut self) -> Told {
        loop {
            let name = tokio::select! {
                _ = self.terminate.recv() => return Told::Stop,
                _ = self.interrupt.recv() => return Told::Stop,
                _ = self.hang_up.recv() => return Told::Reload,
                _ = self.user_1.recv() => "SIGUSR1",
                _ = self.user_2.recv() => "SIGUSR2",
            };
            tracing::info!("{name} means nothing to a node; SIGHUP makes it reload");
        }
    }
}

fn start_logging(config: &Config) -> anyhow::Result<Logging> {
    let logging = logging::Config {
        level: config.log_level.clone(),
        format: config.log_format,
        dir: config.log_dir.clone(),
    };
    Ok(logging::start(&logging)?)
}

/// The first address that `address` stands for.
fn resolve(key: &'static str, address: &HostPort) -> anyhow::Result<SocketAddr> {
    let text = address.to_string();
    let found = text.to_socket_addrs().with_context(|| format!("cannot resolve {text} ({key})"))?;
    found.into_iter().next().with_context(|| format!("{text} ({key}) has no address"))
}

/// Puts into force what may change while the node runs.
fn apply_live(
    node: &Node,
    config: &Config,
    connections_max: u32,
    tls: Option<api::tls::Material>,
    peer_tls: Option<crate::peer::Tls>,
) {
    node.api.apply(api_settings(config, connections_max, &node.metrics));
    node.api.set_tls(tls);
    node.coordinator.set_write_copies(config.write_copies());
    node.coordinator.set_read_copies(config.read_copies());
    apply_to_parts(node, config, peer_tls);
    if let Err(error) = node.log_level.set_level(&config.log_level) {
        tracing::warn!(%error, "log_level not applied");
    }
}

/// The same in the parts that are there once the node has come up.
fn apply_to_parts(node: &Node, config: &Config, peer_tls: Option<crate::peer::Tls>) {
    if let Some(cluster) = node.cluster.get() {
        let timeouts = (config.suspect_timeout, config.dead_timeout);
        cluster.apply(bring_up::settings(config), bring_up::secrets(config), timeouts);
        cluster.transport().set_tls(peer_tls);
    }
    if let Some(data) = node.data.get() {
        data.replica.budget().configure(&store_config(config));
    }
}

/// Certificates and keys, if TLS is on. `in_force`: the certificate shown at present.
fn load_tls(
    config: &Config,
    in_force: Option<&Own>,
) -> Result<Option<api::tls::Material>, TlsError> {
    let (true, Some(cert), Some(key)) =
        (config.tls_enabled, &config.tls_cert_file, &config.tls_key_file)
    else {
        return Ok(None);
    };
    let client_auth = match config.tls_client_auth {
        TlsClientAuth::None => api::tls::ClientAuth::None,
        TlsClientAuth::Required => api::tls::ClientAuth::Required,
    };
    let ca = config.tls_ca_file.as_deref();
    api::tls::Material::load(cert, key, ca, client_auth, in_force).map(Some)
}

/// The same between nodes, where all need a certificate and an authority.
fn load_peer_tls(
    config: &Config,
    in_force: Option<&Own>,
) -> Result<Option<crate::peer::Tls>, TlsError> {
    let (true, Some(cert), Some(key)) =
        (config.tls_enabled, &config.tls_cert_file, &config.tls_key_file)
    else {
        return Ok(None);
    };
    let Some(ca) = &config.tls_ca_file else {
        tracing::warn!("tls_ca_file is not set: connections between nodes go without TLS");
        return Ok(None);
    };
    crate::peer::Tls::load(cert, key, ca, in_force).map(Some)
}

/// What the client API is to go by, with as many connections as the limit of open files allows.
fn api_settings(config: &Config, connections_max: u32, metrics: &Metrics) -> api::Settings {
    api::Settings {
        tokens: tokens(config, metrics),
        sites: sites(config),
        rate: rate(config.rate_limit, config.rate_burst),
        read_timeout: config.read_timeout,
        write_timeout: config.write_timeout,
        max_conns: connections_max as usize,
        max_key_bytes: config.max_key_bytes as usize,
        max_value_bytes: config.max_value_bytes as usize,
        held_bytes_max: api::held_bytes_max(config.memory_bytes_max()),
    }
}

fn tokens(config: &Config, metrics: &Metrics) -> api::Tokens {
    let holder = |name: &str, secrets: &Secrets, rights| {
        let tokens = secrets.iter().map(Secret::expose);
        api::Holder::new(name, tokens, rights, metrics.of_token(name))
    };
    let named = config.auth_tokens.iter().map(|token| {
        let NamedToken { name, verbs, prefixes, rate: per_second, secrets, .. } = token;
        let (verbs, prefixes) = (verbs.clone(), prefixes.clone());
        let rights = api::Rights { verbs, prefixes, rate: rate(*per_second, *per_second) };
        holder(name, secrets, Some(rights))
    });
    named.chain([holder(config::EVERYTHING, &config.auth_token, None)]).collect()
}

/// The names that the configuration gives the node are its own; no web page can make them up.
fn sites(config: &Config) -> api::Sites {
    let addresses = [Some(&config.bind_addr), Some(&config.health_addr)]
        .into_iter()
        .chain([config.client_advertise_addr.as_ref()]);
    let own = addresses.flatten().map(|address| address.host().to_owned());
    let own = own.chain([config.node_id.clone()]).filter(|name| !name.is_empty());
    api::Sites::new(own.chain(config.allowed_hosts.clone()), config.allowed_origins.clone())
}

fn rate(per_second: u32, burst: u32) -> Option<api::Rate> {
    let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
    NonZeroU32::new(per_second).map(|per_second| api::Rate { per_second, burst })
}

fn store_config(config: &Config) -> crate::store::Config {
    use crate::store::EvictionPolicy;
    crate::store::Config {
        max_memory: config.memory_bytes_max(),
        eviction_ratio: config.eviction_ratio,
        eviction_policy: match config.eviction_policy {
            crate::config::EvictionPolicy::S3Fifo => EvictionPolicy::S3Fifo,
            crate::config::EvictionPolicy::None => EvictionPolicy::None,
        },
        replication_log: config.replication_log_bytes(),
    }
}

fn wal_mode(config: &Config) -> wal::Mode {
    match config.wal_mode {
        crate::config::WalMode::Off => wal::Mode::Off,
        crate::config::WalMode::Async => wal::Mode::Async,
        crate::config::WalMode::Sync => wal::Mode::Sync,
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
