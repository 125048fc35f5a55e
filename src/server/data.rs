//! The data's way from the disk into memory at the start, and back at snapshots and at the end.

use std::fmt;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use parking_lot::Mutex;

use crate::config::Config;
use crate::disk::home::{self, Home, Loss};
use crate::disk::{Disk, Os};
use crate::entry::Timestamp;
use crate::metrics::Metrics;
use crate::ops::{ActionError, Snapshot, Truncated};
use crate::replica::{Copies, CopyFile, Replica, SnapshotError};
use crate::shard::{Placement, Setting};
use crate::snapshot;
use crate::store::{Budget, HashKeys};
use crate::topology::{NodeId, Seat};
use crate::wal::{self, Lsn, Progress, Recovery, Replay};

/// How often it is looked whether a snapshot is due.
const SNAPSHOT_PACE: Duration = Duration::from_secs(1);

/// A snapshot is due when this many segments were written since the last, and more bytes than
/// memory holds: replaying them would take longer than loading a fresh one.
const SNAPSHOT_AFTER_SEGMENTS: u64 = 4;

/// Pause after a snapshot that failed.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(30);

/// Everything that outlasts the process, open.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) replica: Arc<Replica>,
    pub(super) cluster_id: u128,
    pub(super) hash_seed: u128,
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    segment_bytes_max: u64,
    metrics: Arc<Metrics>,
    home: Mutex<Home>,
    /// One snapshot at a time; and what the load found damaged, until there was one.
    snapshotting: Mutex<Option<Damaged>>,
    last_snapshot: Mutex<Option<LastSnapshot>>,
}

/// Files that are to be set aside, but not before a fresh snapshot is there.
#[derive(Debug)]
struct Damaged {
    recovery: Recovery,
    snapshots: Vec<PathBuf>,
}

/// The last snapshot that this process completed.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastSnapshot {
    pub(super) took: Duration,
    pub(super) finished_at: Timestamp,
    /// The log's next frame when it began.
    next: Lsn,
}

/// How far the load is.
#[derive(Debug, Default)]
pub(super) struct LoadProgress {
    snapshot: Progress,
    log: Progress,
}

impl fmt::Display for LoadProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| bytes >> 20;
        for (what, progress) in
            [("replaying the log", &self.log), ("loading the snapshot", &self.snapshot)]
        {
            let total = progress.total_bytes.load(Ordering::Relaxed);
            if total > 0 {
                let done = progress.done_bytes.load(Ordering::Relaxed);
                return write!(f, "{what}: {} of {} MB", megabytes(done), megabytes(total));
            }
        }
        f.write_str("opening the data directory")
    }
}

/// What a load came to, in numbers.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    /// Entries of the snapshot.
    entries: u64,
    /// Frames of the log.
    replayed: u64,
    torn_bytes: u64,
    damages: u64,
}

/// What snapshot and log had to say.
struct Found {
    entries: u64,
    recovery: Recovery,
    damaged_snapshots: Vec<PathBuf>,
    /// Damaged places: of the log, of snapshots, and adopted copies.
    damages: u64,
    lost: Option<Loss>,
}

/// Loads the data, writes it to a fresh snapshot, and closes the directory again. Answers in words
/// what was found. Blocks.
pub(super) fn replay(config: &Config) -> anyhow::Result<String> {
    if super::wal_mode(config) == wal::Mode::Off {
        bail!("wal_mode is off: there is no log to replay; set it to async or sync");
    }
    let home = open_home(config)?;
    let (data, loaded) =
        load_with(config, home, Arc::new(Metrics::new()), &LoadProgress::default())?;
    let (taken, truncated) = data.take_snapshot(&|| false)?;
    data.close_log()?;
    Ok(format!(
        "replayed {} records of the log over {} entries of the last snapshot; {} bytes of a torn \
         end cut off, {} damaged or missing places\n\
         wrote a snapshot of {} entries ({} bytes) and removed {} segments of the log ({} bytes)",
        loaded.replayed,
        loaded.entries,
        loaded.torn_bytes,
        loaded.damages,
        taken.items,
        taken.bytes,
        truncated.segments,
        truncated.bytes,
    ))
}

/// Opens the data directory, and locks it. Blocks.
pub(super) fn open_home(config: &Config) -> anyhow::Result<Home> {
    Ok(Home::open(Arc::new(Os), home_config(config))?)
}

/// Loads what is in the data directory, and opens the log for writing. Blocks.
pub(super) fn load_home(
    config: &Config,
    home: Home,
    metrics: Arc<Metrics>,
    progress: &LoadProgress,
) -> anyhow::Result<Data> {
    load_with(config, home, metrics, progress).map(|(data, _)| data)
}

fn load_with(
    config: &Config,
    mut home: Home,
    metrics: Arc<Metrics>,
    progress: &LoadProgress,
) -> anyhow::Result<(Data, Loaded)> {
    let began = Instant::now();
    let disk: Arc<dyn Disk> = Arc::new(Os);
    let (cluster_id, seed) = (home.identity().cluster_id, home.identity().hash_seed);
    let placement = Placement::new(seed, home.identity().num_shards);
    let budget = Arc::new(Budget::new(&super::store_config(config)));
    let setting = Setting {
        me: seat_of(&home),
        region: config.region_index,
        budget,
        keys: HashKeys::random(),
        source: getrandom::u64()?,
        num_shards: placement.num_shards(),
    };
    let mut copies = Copies::new(placement, setting);
    let location = wal::Location { dir: config.wal_dir(), cluster_id, seed };

    let mode = super::wal_mode(config);
    let found = load(&*disk, config, &home, &location, &copies, progress)?;
    if mode == wal::Mode::Off || !home.loads() {
        for folder in home.set_data_aside(Timestamp::now())? {
            tracing::warn!(folder = %folder.display(), "files of an earlier run set aside");
        }
    }
    copies.remove_strays(&*disk, &config.data_dir)?;
    home.enter(found.lost)?;
    // Lost memory begins another life.
    copies.enter(seat_of(&home));
    let on_fsync = {
        let metrics = metrics.clone();
        Arc::new(move |took| metrics.wal_fsync.record(took))
    };
    let segment_bytes_max = config.wal_segment_bytes_max();
    let writer =
        wal::Config { mode, location, segment_bytes_max, on_fsync: on_fsync as wal::OnFsync };
    let writer = wal::Writer::start(disk.clone(), writer, &found.recovery)?;
    let replica = Arc::new(Replica::new(copies, writer, metrics.clone()));
    let data = Data {
        replica,
        cluster_id,
        hash_seed: seed,
        disk,
        data_dir: config.data_dir.clone(),
        segment_bytes_max,
        metrics,
        home: Mutex::new(home),
        snapshotting: Mutex::new(None),
        last_snapshot: Mutex::new(None),
    };
    let loaded = data.go_on_from(found);
    tracing::info!(
        snapshot_entries = loaded.entries,
        replayed = loaded.replayed,
        torn_bytes = loaded.torn_bytes,
        took = ?began.elapsed(),
        "data loaded"
    );
    Ok((data, loaded))
}

/// Loads snapshot and log into `copies`. Writes nothing.
fn load(
    disk: &dyn Disk,
    config: &Config,
    home: &Home,
    location: &wal::Location,
    copies: &Copies,
    progress: &LoadProgress,
) -> anyhow::Result<Found> {
    let lost = home.loss();
    if !home.loads() {
        let recovery = Recovery::default();
        return Ok(Found { entries: 0, recovery, damaged_snapshots: Vec::new(), damages: 0, lost });
    }
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let loaded = snapshot::load(
        disk,
        &config.data_dir,
        location.cluster_id,
        copies.placement().num_shards(),
        threads,
        &progress.snapshot,
        &|shard, item| copies.restore(shard, item),
    )?;
    let replay = Replay {
        starts: &loaded.starts,
        known: wal::Known {
            durable: loaded.durable.max(Lsn(home.clean_at())),
            same_boot: home.same_boot(),
            expects_log: true,
        },
        threads,
        progress: &progress.log,
    };
    let damaged_copies = AtomicU64::new(0);
    let load_copy = |file: CopyFile| {
        let path = file.path_in(&config.data_dir);
        let sink = |shard, item: snapshot::Item<'_>| copies.restore(shard, item);
        let sound = snapshot::load_copy(disk, &path, location.cluster_id, &sink);
        if !matches!(sound, Ok(true)) {
            tracing::error!(?sound, path = %path.display(), "a copy of a shard is damaged or missing");
            damaged_copies.fetch_add(1, Ordering::Relaxed);
        }
        matches!(sound, Ok(true))
    };
    let recovery = wal::recover(disk, location, &replay, &|lsn, frame| {
        copies.replay(lsn, &frame, &load_copy);
    })?;
    for corruption in &recovery.corruptions {
        tracing::error!(
            ?corruption,
            "part of the log is damaged or missing; what is sound around it is kept"
        );
    }
    for damage in &loaded.damages {
        tracing::error!(?damage, "the snapshot is damaged; what is sound of it is kept");
    }
    let damaged_copies = damaged_copies.into_inner();
    let corrupt = loaded.lost || !recovery.corruptions.is_empty() || damaged_copies > 0;
    let damages = (recovery.corruptions.len() + loaded.damages.len()) as u64 + damaged_copies;
    Ok(Found {
        entries: loaded.entries,
        damages,
        recovery,
        damaged_snapshots: loaded.damaged(),
        lost: if corrupt { Some(Loss::Corruption) } else { lost },
    })
}

impl Data {
    /// Says what the load found to be amiss and makes it good, before anything is served.
    fn go_on_from(&self, found: Found) -> Loaded {
        self.metrics.wal_corruptions.inc_by(found.damages);
        if let Some(loss) = found.lost.filter(|loss| counts_as_unclean(*loss)) {
            tracing::error!(
                reason = describe(loss),
                "this node cannot vouch for everything it acknowledged; it learns from others, or \
                 goes on with what is left"
            );
        }
        let loaded = Loaded {
            entries: found.entries,
            replayed: found.recovery.frames,
            torn_bytes: found.recovery.torn_bytes,
            damages: found.damages,
        };
        if found.damages > 0 {
            let (recovery, snapshots) = (found.recovery, found.damaged_snapshots);
            *self.snapshotting.lock() = Some(Damaged { recovery, snapshots });
            // What is sound goes into a fresh snapshot first; only then may the damaged go. Until
            // there is one, each start finds the same damage, and begins another life.
            if let Err(error) = self.take_snapshot(&|| false) {
                tracing::error!(
                    error = super::chain(&error),
                    "no fresh snapshot beside damaged files; it is tried again while the node serves"
                );
            }
        }
        loaded
    }

    /// The last snapshot that this process completed.
    pub(super) fn last_snapshot(&self) -> Option<LastSnapshot> {
        *self.last_snapshot.lock()
    }

    /// Takes a snapshot, sets aside what was found damaged at the start, and removes the part of
    /// the log that is not needed any more. Blocks.
    fn take_snapshot(
        &self,
        give_up: &dyn Fn() -> bool,
    ) -> Result<(Snapshot, Truncated), SnapshotError> {
        let mut damaged = self.snapshotting.lock();
        let began = Instant::now();
        let wal = self.replica.wal();
        let (next, before) = (wal.next_lsn(), wal.segments());
        let damaged_snapshots = damaged.as_ref().map_or(&[][..], |damaged| &damaged.snapshots);
        let disk = self.disk.clone();
        let finished = self
            .replica
            .snapshot(disk, &self.data_dir, self.cluster_id, damaged_snapshots, give_up)
            .inspect_err(|_| self.metrics.snapshot_failures.inc())?;
        if let Some(damaged) = &*damaged {
            wal.set_aside(&damaged.recovery)?;
        }
        *damaged = None;
        wal.truncate_below(finished.needs_from)?;
        let left = wal.segments();
        let gone = before.iter().filter(|segment| !left.iter().any(|s| s.path == segment.path));
        let (mut segments, mut bytes) = (0, 0);
        for segment in gone {
            segments += 1;
            bytes += segment.bytes;
        }
        let took = began.elapsed();
        *self.last_snapshot.lock() =
            Some(LastSnapshot { took, finished_at: Timestamp::now(), next });
        tracing::info!(
            entries = finished.entries,
            bytes = finished.bytes,
            ?took,
            "snapshot written"
        );
        Ok((
            Snapshot { items: finished.entries, bytes: finished.bytes, took },
            Truncated { segments, bytes },
        ))
    }

    /// Ends the log and marks that all is there. Blocks.
    fn close_log(&self) -> anyhow::Result<()> {
        let wal = self.replica.wal();
        let last = wal.last_lsn();
        wal.close()?;
        self.home.lock().mark_clean(last.0)?;
        Ok(())
    }

    fn snapshot_is_due(&self) -> bool {
        let wal = self.replica.wal();
        let after =
            self.replica.budget().used().max(SNAPSHOT_AFTER_SEGMENTS * self.segment_bytes_max);
        // One that is under way takes care of what is damaged.
        let damaged = self.snapshotting.try_lock().is_some_and(|damaged| damaged.is_some());
        wal.mode() != wal::Mode::Off && (wal.bytes() > after || damaged)
    }

    /// Whether the log holds nothing that the last snapshot lacks.
    fn snapshot_is_fresh(&self) -> bool {
        self.last_snapshot().is_some_and(|last| last.next == self.replica.wal().next_lsn())
    }
}

fn seat_of(home: &Home) -> Seat {
    let identity = home.identity();
    Seat { node: NodeId(identity.node.unwrap_or(1)), life: identity.incarnation }
}

/// Takes a snapshot on a thread that may block.
pub(super) async fn snapshot(data: Arc<Data>) -> Result<(Snapshot, Truncated), ActionError> {
    let failed = |source| ActionError::Failed { what: "the snapshot", source };
    let task = tokio::task::spawn_blocking(move || data.take_snapshot(&|| false));
    match task.await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(SnapshotError::Off)) => Err(ActionError::Conflict(
            "wal_mode is off: nothing is kept on disk; set it to async or sync, and restart",
        )),
        Ok(Err(error)) => Err(failed(error.into())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Takes snapshots as the log grows.
pub(super) async fn snapshot_when_due(data: Arc<Data>) {
    let mut pace = tokio::time::interval(SNAPSHOT_PACE);
    loop {
        pace.tick().await;
        if data.snapshot_is_due()
            && let Err(error) = snapshot(data.clone()).await
        {
            tracing::error!(error = super::chain(&error), "no snapshot; the log goes on growing");
            tokio::time::sleep(SNAPSHOT_RETRY).await;
        }
    }
}

/// Ends the log; after an orderly stop with a last snapshot, as far as `deadline` allows, and the
/// mark that all is there.
pub(super) async fn close(data: Arc<Data>, orderly: bool, deadline: Instant) -> anyhow::Result<()> {
    let task = tokio::task::spawn_blocking(move || {
        let wal = data.replica.wal();
        if orderly && wal.mode() != wal::Mode::Off && !data.snapshot_is_fresh() {
            let late = || Instant::now() >= deadline;
            if let Err(error) = data.take_snapshot(&late) {
                tracing::warn!(
                    error = super::chain(&error),
                    "no last snapshot; the log has it all"
                );
            }
        }
        if !orderly {
            return Ok(wal.close()?);
        }
        data.close_log()?;
        tracing::info!("stopped in order");
        anyhow::Ok(())
    });
    task.await.context("closing the log panicked")?
}

fn home_config(config: &Config) -> home::Config {
    home::Config {
        data_dir: config.data_dir.clone(),
        wal_dir: config.wal_dir(),
        node_id: config.node_id.clone(),
        num_shards: config.num_shards,
        wal_mode: super::wal_mode(config).name().to_owned(),
        cluster_id: None,
    }
}

/// Whether acknowledged writes may be missing that the operator was promised to keep. Without a
/// log nothing was promised.
fn counts_as_unclean(loss: Loss) -> bool {
    match loss {
        Loss::Newborn | Loss::WalOff => false,
        Loss::IdentityMissing | Loss::MachineCrashed | Loss::Corruption => true,
    }
}

fn describe(loss: Loss) -> &'static str {
    match loss {
        Loss::Corruption => "part of the log or of the snapshot is damaged or missing",
        Loss::MachineCrashed => "the machine went down and wal_mode is async",
        Loss::IdentityMissing => "the data directory has data but no identity.json",
        Loss::Newborn | Loss::WalOff => "nothing is missing",
    }
}
