//! The node as port 7702 shows and steers it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::api;
use crate::complaint;
use crate::config::{Config, Loaded, Sources};
use crate::coordinator::{self, Coordinator};
use crate::entry::Timestamp;
use crate::logging::{Drops, LevelControl};
use crate::metrics::{Metrics, Readings};
use crate::ops::{
    self, ActionError, Drained, Lease, LeaseRefusal, LeaseRequest, RateLimit, Reloaded, Snapshot,
    Truncated,
};
use crate::peer::Refusal;
use crate::process::{self, Notifier, ReloadReport};

use super::apply_live;
use super::cluster::Cluster;
use super::data::{Data, LoadProgress};
use super::newborn::Nursery;
use super::removal::Removed;
use super::view::ClusterView;

/// All that one running node consists of.
pub(super) struct Node {
    pub(super) sources: Sources,
    pub(super) loaded: Mutex<Arc<Loaded>>,
    pub(super) started: Instant,
    pub(super) client_addr: SocketAddr,
    pub(super) metrics: Arc<Metrics>,
    pub(super) coordinator: Coordinator,
    pub(super) api: api::Server,
    pub(super) log_level: LevelControl,
    pub(super) log_drops: Drops,
    pub(super) notifier: Notifier,
    pub(super) loading: LoadProgress,
    /// Set while this node is being born.
    pub(super) nursery: OnceLock<Arc<Nursery>>,
    /// Empty until the data is loaded.
    pub(super) data: OnceLock<Arc<Data>>,
    /// Empty until this node takes part in its cluster.
    pub(super) cluster: OnceLock<Arc<Cluster>>,
    /// Set when this node was removed from its cluster.
    pub(super) removed: OnceLock<Removed>,
    /// All shards were served, and all copies here level, at some moment since the start.
    pub(super) was_whole: AtomicBool,
    /// The process was told to stop.
    pub(super) stopping: AtomicBool,
    pub(super) reload_ok: AtomicBool,
    /// What was refused on the node port, as far as the metric has it.
    pub(super) refusals_told: Mutex<BTreeMap<Refusal, u64>>,
    /// One reload at a time.
    pub(super) reloading: tokio::sync::Mutex<()>,
    /// For whoever goes by the configuration and waits for something else.
    pub(super) reloaded: tokio::sync::Notify,
}

impl Node {
    /// The configuration in force.
    pub(super) fn config(&self) -> Arc<Loaded> {
        self.loaded.lock().clone()
    }

    /// How far the start is, in words.
    pub(super) fn progress(&self) -> String {
        let waiting = self.nursery.get().and_then(|nursery| nursery.waiting());
        match waiting {
            Some(waiting) if self.data.get().is_none() => waiting,
            _ => self.loading.to_string(),
        }
    }

    /// Takes to heart that it was removed from its cluster: serves nobody from now on.
    pub(super) fn was_removed(&self, removed: Removed) {
        self.coordinator.strike_off();
        tracing::error!("{removed}");
        self.notifier.status("removed from its cluster; serves nobody");
        let _ = self.removed.set(removed);
    }

    /// The cluster as this node sees it, as long as it is a member.
    fn view(&self) -> Option<ClusterView<'_>> {
        let cluster = self.cluster.get().filter(|_| self.removed.get().is_none());
        cluster.map(|cluster| ClusterView::of(cluster))
    }

    /// Whether it knows who has which shard, if only as of its last run.
    fn knows_topology(&self) -> bool {
        self.cluster.get().is_some_and(|cluster| cluster.topology_now().cluster.is_some())
    }

    fn cluster(&self) -> Result<&Arc<Cluster>, ActionError> {
        if self.removed.get().is_some() {
            return Err(ActionError::Conflict(
                "this node was removed from the cluster: ask a member",
            ));
        }
        self.cluster.get().ok_or(ActionError::Conflict(
            "the node is still starting; ask again when /ready answers 200",
        ))
    }

    /// This node as a member, for the stop lease.
    fn member(&self) -> Result<&Arc<Cluster>, LeaseRefusal> {
        self.cluster().map_err(|_| {
            LeaseRefusal::Elsewhere(
                "this node takes no part in the cluster now (it is starting, or was removed): ask \
                 another member, or again when /ready answers 200",
            )
        })
    }

    fn data(&self) -> Result<&Arc<Data>, ActionError> {
        self.data.get().ok_or(ActionError::Conflict(
            "the node is still loading its data; ask again when /ready answers 200",
        ))
    }

    fn phase(&self) -> ops::Phase {
        if let Some(removed) = self.removed.get() {
            return ops::Phase::Removed { why: removed.to_string() };
        }
        match self.coordinator.phase() {
            _ if self.stopping.load(Ordering::Relaxed) => ops::Phase::Draining,
            coordinator::Phase::Starting => ops::Phase::Starting { progress: self.progress() },
            // Until then requests are held.
            coordinator::Phase::Serving if !self.knows_topology() => ops::Phase::Starting {
                progress: "waiting to be told who has which shard".to_owned(),
            },
            coordinator::Phase::Serving => ops::Phase::Serving,
            // Struck off a moment ago, its reason not noted yet.
            coordinator::Phase::Draining | coordinator::Phase::Removed => ops::Phase::Draining,
        }
    }

    fn readings(&self, config: &Loaded) -> Readings {
        let certificate = self.api.certificate().map(|own| own.not_after());
        let mut readings = Readings {
            active_connections: self.api.active_connections() as u64,
            max_connections: self.api.settings().max_conns as u64,
            cluster_members: 1,
            cluster_members_expected: 1,
            serving: self.coordinator.phase() == coordinator::Phase::Serving
                && self.knows_topology()
                && !self.stopping.load(Ordering::Relaxed),
            config_reload_success: self.reload_ok.load(Ordering::Relaxed),
            config_hash: config.shared_hash(),
            tls_cert_expiry: certificate,
            insecure_listeners: insecure(&config.config).count() as u64,
            cache_max_bytes: config.config.memory_bytes_max(),
            ..Readings::default()
        };
        for (to, lines) in self.log_drops.take() {
            self.metrics.log_dropped(to, lines);
        }
        for (from, about, lines) in complaint::take_dropped() {
            self.metrics.log_suppressed(from, about, lines);
        }
        if let Some(data) = self.data.get() {
            let budget = data.replica.budget();
            readings.cache_size_bytes = budget.used();
            readings.replication_log_bytes = budget.log();
            readings.cache_items = budget.items();
            readings.cache_max_bytes = budget.limit();
            readings.wal_bytes = data.replica.wal().bytes();
            readings.disk_delay = data.replica.wal().disk_delay();
            if let Some(last) = data.last_snapshot() {
                readings.snapshot_duration = Some(last.took);
                readings.snapshot_finished_at = Some(last.finished_at);
            }
        }
        if self.removed.get().is_some() {
            (readings.cluster_members, readings.cluster_members_expected) = (0, 0);
        }
        if let Some(view) = self.view() {
            view.fill(&mut readings);
        }
        if let Some(cluster) = self.cluster.get() {
            self.count_refusals(cluster);
        }
        readings
    }

    /// Brings the counter of refused connections up to date.
    fn count_refusals(&self, cluster: &Cluster) {
        let mut told = self.refusals_told.lock();
        for refusal in Refusal::ALL {
            let count = cluster.transport().refusals().count(refusal);
            let before = told.insert(refusal, count).unwrap_or(0);
            self.metrics.refused(refusal.name(), count.saturating_sub(before));
        }
    }

    /// Reads the configuration again and applies what may change while the node runs.
    pub(super) async fn reload_now(&self) -> Result<Reloaded, ActionError> {
        let _one = self.reloading.lock().await;
        let begun_usec = ReloadReport::now_usec();
        self.notifier.reloading();
        let outcome = self.apply_again();
        self.reload_ok.store(outcome.is_ok(), Ordering::Relaxed);
        match &outcome {
            Ok(done) => {
                tracing::info!(applied = ?done.applied, "configuration reloaded");
                if !done.needs_restart.is_empty() {
                    tracing::warn!(keys = ?done.needs_restart, "changed, but in force only after a restart");
                }
                self.notifier.ready("serving; configuration reloaded");
            }
            Err(error) => {
                let reason = reasons(error);
                tracing::error!(%reason, "configuration not reloaded; the old one stays in force");
                self.notifier.ready(&format!("serving; reload refused: {reason}"));
            }
        }
        // After the word to systemd, which otherwise takes the reload for unfinished when whoever
        // asked for it is through.
        if let Some(directory) = ReloadReport::directory()
            && let Err(error) = begun_usec.and_then(|at| report(at, &outcome).write(&directory))
        {
            tracing::warn!(%error, "`aegiskv reload` is not told what came of it");
        }
        outcome
    }

    /// Has the parts that came up meanwhile go by the configuration in force, if a reload has changed
    /// it since `before`, by which they came up.
    pub(super) async fn apply_since(&self, before: &Arc<Loaded>) {
        let _one = self.reloading.lock().await;
        let now = self.config();
        if !Arc::ptr_eq(before, &now) {
            let in_force = self.api.certificate();
            match super::load_peer_tls(&now.config, in_force.as_ref()) {
                Ok(peer_tls) => super::apply_to_parts(self, &now.config, peer_tls),
                Err(error) => tracing::warn!(
                    %error,
                    "what was reloaded during the start does not hold between nodes; reload again"
                ),
            }
        }
    }

    fn apply_again(&self) -> Result<Reloaded, ActionError> {
        let old = self.config();
        let refused = |problems: Vec<String>| ActionError::Refused { problems };
        let reloaded = self
            .sources
            .reload(&old)
            .map_err(|problems| refused(problems.0.iter().map(ToString::to_string).collect()))?;
        let bad = |error: crate::tls::TlsError| refused(vec![super::chain(&error)]);
        let in_force = self.api.certificate();
        let tls = super::load_tls(&reloaded.new.config, in_force.as_ref()).map_err(bad)?;
        let peer_tls =
            super::load_peer_tls(&reloaded.new.config, in_force.as_ref()).map_err(bad)?;
        let mut warnings: Vec<_> = reloaded.new.warnings.iter().map(ToString::to_string).collect();
        // What this reload opens is said now, not at the next start.
        let were_open = old.config.exposures();
        let opened = reloaded.new.config.exposures().into_iter().filter(|exposure| {
            !were_open.iter().any(|before| before.listener == exposure.listener)
        });
        warnings.extend(opened.map(|exposure| exposure.text));
        let new = Arc::new(reloaded.new);
        let files = process::open_files(new.config.max_conns);
        let files = files.map_err(|source| ActionError::Failed {
            what: "reading the limit of open files",
            source: Box::new(source),
        })?;
        warnings.extend(files.warning);
        if tls.as_ref().is_some_and(|tls| tls.own().not_after() < Timestamp::now()) {
            warnings.push("tls_cert_file: the certificate has expired; renew it".to_owned());
        }
        apply_live(self, &new.config, files.connections, tls, peer_tls);
        *self.loaded.lock() = new;
        self.reloaded.notify_one();
        let names = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
        Ok(Reloaded {
            applied: names(reloaded.applied),
            needs_restart: names(reloaded.needs_restart),
            warnings,
        })
    }
}

impl ops::Node for Node {
    fn life(&self) -> ops::Life {
        ops::Life {
            node_id: self.config().config.node_id.clone(),
            phase: self.phase(),
            uptime: self.started.elapsed(),
        }
    }

    fn status(&self) -> ops::Status {
        let loaded = self.config();
        let config = &loaded.config;
        let data = self.data.get();
        let view = self.view();
        let (phase, readings) = (self.phase(), self.readings(&loaded));
        let (copies_behind, copies_coming) =
            view.as_ref().map_or((0, 0), ClusterView::copies_behind);
        if phase == ops::Phase::Serving && copies_behind == 0 && readings.shards.unavailable == 0 {
            self.was_whole.store(true, Ordering::Relaxed);
        }
        ops::Status {
            phase,
            cluster_id: data.map(|data| format!("{:032x}", data.cluster_id)),
            node_id: config.node_id.clone(),
            epoch: view.as_ref().map_or(0, ClusterView::epoch),
            client_addr: Some(self.client_addr),
            gossip_addr: self.cluster.get().map(|cluster| cluster.transport().local_addr()),
            zone: config.zone.clone(),
            region: config.region.clone(),
            uptime: self.started.elapsed(),
            wal: ops::Wal {
                mode: super::wal_mode(config).name(),
                segments: data.map_or(0, |data| data.replica.wal().segments().len() as u64),
                failed: data.is_some_and(|data| data.replica.wal().failure().borrow().is_some()),
            },
            members: view.as_ref().map_or_else(Vec::new, ClusterView::members),
            leader: view.as_ref().and_then(ClusterView::leader),
            leaderless_for: view.as_ref().and_then(ClusterView::leaderless_for),
            copies_behind,
            copies_coming,
            serving_for: self.cluster.get().map_or(Duration::ZERO, |cluster| cluster.now()),
            was_whole: self.was_whole.load(Ordering::Relaxed),
            lost_udp: view.as_ref().map_or_else(Vec::new, ClusterView::lost_udp),
            exposures: config.exposures().into_iter().map(|exposure| exposure.text).collect(),
            outlook: view.as_ref().map_or_else(ops::Outlook::default, ClusterView::outlook),
            stop_lease: view.as_ref().and_then(ClusterView::stop_lease),
            readings,
        }
    }

    fn shards(&self) -> Vec<ops::Shard> {
        self.view().map_or_else(Vec::new, |view| view.shards())
    }

    fn stoppable(&self) -> Result<(), String> {
        match self.cluster.get() {
            // Nobody needs it.
            Some(_) if self.removed.get().is_some() => Ok(()),
            Some(cluster) => cluster.stoppable(),
            None => Err("the node is still starting".to_owned()),
        }
    }

    async fn decommission(&self, name: &str) -> Result<(), ActionError> {
        self.cluster()?.decommission(name).await
    }

    async fn recommission(&self, name: &str) -> Result<(), ActionError> {
        self.cluster()?.recommission(name).await
    }

    async fn remove(&self, name: &str) -> Result<(), ActionError> {
        self.cluster()?.remove(name).await
    }

    async fn acquire_lease(&self, request: &LeaseRequest) -> Result<Lease, LeaseRefusal> {
        self.member()?.acquire_lease(request).await
    }

    async fn lease(&self) -> Result<Option<Lease>, LeaseRefusal> {
        self.member()?.stop_lease().await
    }

    async fn release_lease(
        &self,
        name: &str,
        holder: Option<&str>,
    ) -> Result<Option<Lease>, LeaseRefusal> {
        self.member()?.release_lease(name, holder).await
    }

    async fn settle_lease(&self, name: &str, holder: &str) -> Result<(), LeaseRefusal> {
        self.member()?.settle_lease(name, holder).await
    }

    fn config(&self) -> serde_json::Value {
        serde_json::to_value(Node::config(self).explain()).unwrap_or_default()
    }

    fn tokens(&self) -> Arc<api::Tokens> {
        Arc::new(self.api.tokens())
    }

    fn sites(&self) -> Arc<api::Sites> {
        Arc::new(super::sites(&Node::config(self).config))
    }

    async fn reload(&self) -> Result<Reloaded, ActionError> {
        self.reload_now().await
    }

    async fn snapshot(&self) -> Result<Snapshot, ActionError> {
        let data = self.data()?.clone();
        let (taken, _) = super::data::snapshot(data).await?;
        Ok(taken)
    }

    async fn truncate_wal(&self) -> Result<Truncated, ActionError> {
        let data = self.data()?.clone();
        let (_, truncated) = super::data::snapshot(data).await?;
        Ok(truncated)
    }

    fn drain(&self) -> Drained {
        tracing::info!("draining: requests are refused from now on");
        self.notifier.status("draining");
        let (coordinator, cluster) = (self.coordinator.clone(), self.cluster.get().cloned());
        if let Some(cluster) = cluster {
            tokio::spawn(async move { cluster.hand_over().await });
        }
        coordinator.drain();
        Drained { active_connections: self.api.active_connections() as u64 }
    }

    fn set_rate_limit(&self, limit: RateLimit) {
        let burst = Node::config(self).config.rate_burst;
        let mut settings = (*self.api.settings()).clone();
        settings.rate = limit.and_then(|per_second| super::rate(per_second.get(), burst));
        self.api.apply(settings);
    }

    fn set_log_level(&self, level: &str) -> Result<(), ActionError> {
        self.log_level.set_level(level).map_err(|_| ActionError::Invalid {
            parameter: "level",
            expected: "trace, debug, info, warn, error or off; also for parts, as in info,aegiskv::wal=debug",
        })
    }
}

/// Listeners that lack the protection they should have.
pub(super) fn insecure(config: &Config) -> impl Iterator<Item = crate::config::Exposure> {
    config.exposures().into_iter().filter(|exposure| exposure.insecure)
}

/// An action's error with all that it carries, on one line.
fn reasons(error: &ActionError) -> String {
    problems(error).join("; ")
}

fn problems(error: &ActionError) -> Vec<String> {
    match error {
        ActionError::Refused { problems } => problems.clone(),
        other => vec![super::chain(other)],
    }
}

fn report(begun_usec: u64, outcome: &Result<Reloaded, ActionError>) -> ReloadReport {
    match outcome {
        Ok(done) => ReloadReport {
            begun_usec,
            applied: done.applied.clone(),
            needs_restart: done.needs_restart.clone(),
            warnings: done.warnings.clone(),
            problems: Vec::new(),
        },
        Err(error) => {
            ReloadReport { begun_usec, problems: problems(error), ..ReloadReport::default() }
        }
    }
}
