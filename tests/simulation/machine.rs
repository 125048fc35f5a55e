//! A machine with its disk and clock, and the process that runs on it: a real replica over a real
//! log, on a disk that can fail.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use aegiskv::disk::{Disk, Faulty};
use aegiskv::entry::{RequestId, ShardId, Timestamp};
use aegiskv::metrics::Metrics;
use aegiskv::replica::{Copies, CopyFile, Replica, Wait, Work};
use aegiskv::shard::{Envelope, Ordered, Placement, Setting};
use aegiskv::snapshot;
use aegiskv::store::{Budget, Config, EvictionPolicy, HashKeys};
use aegiskv::topology::{Configuration, Seat};
use aegiskv::wal::{self, Committer, Location, Lsn, Mode, Progress, Recovery, Replay, Writer};

use crate::dice::Dice;

/// The cluster's identity, and the seed that places keys.
pub(crate) const CLUSTER: u128 = 0xae91;

const DIR: &str = "/data";

/// What all machines have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) shards: u16,
    pub(crate) replication_log: u64,
    pub(crate) segment_bytes_max: u64,
    /// A rule that is broken: a node that lost its memory comes back as if it had not.
    pub(crate) keeps_life: bool,
}

/// Who a data directory is, as it says itself.
#[derive(Clone, Debug)]
struct Identity {
    life: u64,
    boot_id: String,
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) disk: Faulty,
    pub(crate) mode: Mode,
    /// Its number in the cluster, and its present life.
    pub(crate) seat: Seat,
    identity: Option<Identity>,
    /// Rises with each start of the process.
    pub(crate) run: u64,
    pub(crate) process: Option<Process>,
    pub(crate) paused_until: u64,
    /// Its process has stood still since then, in microseconds, and does not know yet.
    pub(crate) away_since: Option<u64>,
    /// How far its clock is off, in milliseconds.
    pub(crate) clock_millis: i64,
    /// When it will start again, if it is down.
    pub(crate) starts_at: u64,
    /// It will come back with another life.
    pub(crate) forgets: bool,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) replica: Replica,
    pub(crate) committer: Committer,
    /// Work whose log is not settled yet, by number.
    pub(crate) unsettled: Vec<(u64, Work)>,
    pub(crate) next_work: u64,
    pub(crate) commit_is_due: bool,
    pub(crate) waits: Vec<Waiting>,
    /// The topology as this node knows it.
    pub(crate) known: Vec<Option<Arc<Configuration>>>,
    /// The numbers that its coordinator gives its requests, by shard.
    pub(crate) tickets: Vec<Tickets>,
    /// While a snapshot is being taken, what comes in meanwhile.
    pub(crate) during_snapshot: Option<VecDeque<Envelope>>,
}

/// A request at a primary, on its way to an answer.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) operation: usize,
    pub(crate) attempt: u32,
    /// Where the coordinator is.
    pub(crate) asker: usize,
    pub(crate) wait: Option<Wait>,
    /// The work that must be settled first.
    pub(crate) work: Option<u64>,
    pub(crate) result: Found,
}

/// What a primary made of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    Ordered(Ordered),
    Read(Option<(i64, aegiskv::entry::Version)>),
}

/// The numbers of a coordinator's requests to one shard.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    from: u64,
    open: VecDeque<bool>,
}

impl Tickets {
    pub(crate) fn take(&mut self, incarnation: u64) -> RequestId {
        let counter = self.from + self.open.len() as u64;
        self.open.push_back(true);
        RequestId::Counted { incarnation, counter, waits_from: self.from }
    }

    pub(crate) fn give_back(&mut self, id: RequestId) {
        let RequestId::Counted { counter, .. } = id else { return };
        self.open[(counter - self.from) as usize] = false;
        while self.open.front() == Some(&false) {
            self.open.pop_front();
            self.from += 1;
        }
    }
}

impl Machine {
    pub(crate) fn new(seat: Seat, mode: Mode, seed: u64) -> Self {
        Self {
            disk: Faulty::new(seed),
            mode,
            seat,
            identity: None,
            run: 0,
            process: None,
            paused_until: 0,
            away_since: None,
            clock_millis: 0,
            starts_at: 0,
            forgets: false,
        }
    }

    /// The process dies; its disk keeps what the kernel was handed.
    pub(crate) fn kill(&mut self) {
        self.disk.kill();
        self.process = None;
    }

    /// The machine dies.
    pub(crate) fn crash(&mut self) {
        self.disk.crash();
        self.process = None;
    }

    /// Comes back with an empty disk, under another number in the cluster.
    pub(crate) fn wipe(&mut self, seat: Seat, seed: u64) {
        self.process = None;
        self.disk = Faulty::new(seed);
        self.identity = None;
        self.seat = seat;
    }

    /// Whether this machine has to come back with another life if it goes down now, and so.
    pub(crate) fn would_lose_memory(&self, machine_too: bool) -> bool {
        match self.mode {
            Mode::Off => true,
            Mode::Async => machine_too,
            Mode::Sync => false,
        }
    }

    /// The wall clock here, `micros` after the beginning.
    pub(crate) fn clock(&self, micros: u64) -> Timestamp {
        let millis = 1_800_000_000_000 + (micros / 1000) as i64 + self.clock_millis;
        Timestamp(millis as u64)
    }

    /// Damages what was durable: flips a bit in a file, or does away with the log's last segment.
    /// Answers whether there was anything.
    pub(crate) fn corrupt(&mut self, dice: &mut Dice) -> bool {
        let Ok(names) = self.disk.list(Path::new(DIR)) else { return false };
        let is_segment = |name: &str| name.starts_with('0') && name.ends_with(".wal");
        let last_segment = names.iter().rfind(|name| is_segment(name));
        if let Some(last) = last_segment
            && dice.chance(300)
        {
            self.lose(&Path::new(DIR).join(last), dice);
            return true;
        }
        // In mode `async` the last few frames cannot be told from a torn write.
        let is_told = |name: &String| self.mode == Mode::Sync || Some(name) != last_segment;
        let wanted = |name: &&String| {
            (is_segment(name) && is_told(name))
                || name.starts_with("snapshot-")
                || name.starts_with("copy-")
        };
        let names: Vec<&String> = names.iter().filter(wanted).collect();
        let Some(name) = dice.pick(&names) else { return false };
        let path = Path::new(DIR).join(name);
        let length = self.disk.get(&path).map_or(0, |bytes| bytes.len());
        if length == 0 {
            return false;
        }
        self.disk.flip(&path, dice.below(length), 1 << dice.below(8));
        true
    }

    /// Deletes, empties or zeroes a file, durably.
    fn lose(&self, path: &Path, dice: &mut Dice) {
        let length = self.disk.get(path).map_or(0, |bytes| bytes.len());
        match dice.below(3) {
            0 => {
                let gone = self.disk.remove(path).and_then(|()| self.disk.sync_dir(Path::new(DIR)));
                gone.expect("a disk in memory obeys");
            }
            1 => self.disk.put(path, &[]),
            _ => self.disk.put(path, &vec![0; length]),
        }
    }

    /// Starts the process: loads what is on the disk and opens the log. `Err` if the disk refuses.
    pub(crate) fn start(&mut self, setup: &Setup, dice: &mut Dice) -> Result<(), wal::Error> {
        self.run += 1;
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let boot_id = self.disk.boot_id().expect("a disk in memory tells");
        let same_boot = self.identity.as_ref().is_some_and(|known| known.boot_id == boot_id);
        let loads = self.identity.is_some() && self.mode != Mode::Off;
        let mut life = self.identity.as_ref().map_or(self.seat.life, |known| known.life);
        let mut lost = self.identity.is_some()
            && match self.mode {
                Mode::Off => true,
                Mode::Async => !same_boot,
                Mode::Sync => false,
            };
        let (seed, source) = (dice.number(), dice.number());
        let copies_of = |life| {
            let me = Seat { life, ..self.seat };
            Copies::new(Placement::new(7, setup.shards), setting(me, setup, seed, source))
        };
        let mut loaded = if loads {
            load(&*disk, &copies_of(life), setup, same_boot)?
        } else {
            Loaded::default()
        };
        lost |= loaded.corrupt;
        life += u64::from(lost && !setup.keeps_life);
        let copies = copies_of(life);
        if loads {
            // Once more, now that the life is known that the copies have from here on.
            loaded = load(&*disk, &copies, setup, same_boot)?;
        }
        copies.remove_strays(&*disk, Path::new(DIR)).ok();
        self.enter(&*disk, Identity { life, boot_id })?;
        let config = wal::Config {
            mode: self.mode,
            location: location(),
            segment_bytes_max: setup.segment_bytes_max,
            on_fsync: Arc::new(|_| {}),
        };
        let (writer, committer) = Writer::start_stepped(disk, config, &loaded.recovery)?;
        let mut process = Process {
            replica: Replica::new(copies, writer, metrics()),
            committer,
            unsettled: Vec::new(),
            next_work: 1,
            commit_is_due: false,
            waits: Vec::new(),
            known: vec![None; usize::from(setup.shards)],
            tickets: (0..setup.shards).map(|_| Tickets::default()).collect(),
            during_snapshot: None,
        };
        if loaded.corrupt {
            process.snapshot(&self.disk, Some(&loaded), VecDeque::new(), Timestamp(0)).ok();
        }
        self.forgets = false;
        self.away_since = None;
        self.process = Some(process);
        Ok(())
    }

    /// Begins a run durably, as the data directory's home does.
    fn enter(&mut self, disk: &dyn Disk, identity: Identity) -> Result<(), wal::Error> {
        let dir = Path::new(DIR);
        for name in disk.list(dir).unwrap_or_default() {
            let path = dir.join(name);
            let synced = disk.open(&path).and_then(|file| file.sync_data());
            synced.map_err(|source| refused(path, source))?;
        }
        self.seat.life = identity.life;
        self.identity = Some(identity);
        Ok(())
    }
}

fn refused(path: PathBuf, source: std::io::Error) -> wal::Error {
    wal::Error::Disk { action: "enter", path, source: Arc::new(source) }
}

fn metrics() -> Arc<Metrics> {
    static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| Arc::new(Metrics::new())).clone()
}

fn location() -> Location {
    Location { dir: PathBuf::from(DIR), cluster_id: CLUSTER, seed: 42 }
}

fn setting(me: Seat, setup: &Setup, seed: u64, source: u64) -> Setting {
    let config = Config {
        max_memory: 1 << 30,
        eviction_ratio: 0.9,
        eviction_policy: EvictionPolicy::S3Fifo,
        replication_log: setup.replication_log,
    };
    Setting {
        me,
        region: 0,
        budget: Arc::new(Budget::new(&config)),
        keys: HashKeys::seeded(seed),
        source,
        num_shards: setup.shards,
    }
}

/// What a load found.
#[derive(Debug, Default)]
struct Loaded {
    recovery: Recovery,
    damaged: Vec<PathBuf>,
    corrupt: bool,
}

/// Loads snapshot, log and adopted copies, as a start of the server does.
fn load(
    disk: &dyn Disk,
    copies: &Copies,
    setup: &Setup,
    same_boot: bool,
) -> Result<Loaded, wal::Error> {
    let dir = Path::new(DIR);
    let progress = Progress::default();
    let restore = |shard: ShardId, item: snapshot::Item<'_>| copies.restore(shard, item);
    let loaded = snapshot::load(disk, dir, CLUSTER, setup.shards, 1, &progress, &restore)
        .map_err(|error| refused(dir.to_owned(), std::io::Error::other(error)))?;
    let replay = Replay {
        starts: &loaded.starts,
        known: wal::Known { durable: loaded.durable.max(Lsn(0)), same_boot, expects_log: true },
        threads: 1,
        progress: &progress,
    };
    let damaged_copy = AtomicBool::new(false);
    let load_copy = |file: CopyFile| {
        let sound = snapshot::load_copy(disk, &file.path_in(dir), CLUSTER, &restore);
        let sound = matches!(sound, Ok(true));
        damaged_copy.fetch_or(!sound, Ordering::Relaxed);
        sound
    };
    let recovery = wal::recover(disk, &location(), &replay, &|lsn, frame| {
        copies.replay(lsn, &frame, &load_copy);
    })?;
    let corrupt = loaded.lost || !recovery.corruptions.is_empty() || damaged_copy.into_inner();
    Ok(Loaded { damaged: loaded.damaged(), corrupt, recovery })
}

impl Process {
    /// Takes a snapshot while `meanwhile` comes in from other nodes; answers the work that makes.
    fn snapshot(
        &mut self,
        disk: &Faulty,
        damaged: Option<&Loaded>,
        meanwhile: VecDeque<Envelope>,
        now: Timestamp,
    ) -> Result<Work, ()> {
        self.committer.step().map_err(|_| ())?;
        let meanwhile = RefCell::new(meanwhile);
        let work = RefCell::new(Work::default());
        let committer = RefCell::new(&mut self.committer);
        let replica = &self.replica;
        let step = || {
            if let Some(envelope) = meanwhile.borrow_mut().pop_front() {
                // A log that has failed fails the snapshot as well.
                let _ = replica.receive(envelope, now, &mut work.borrow_mut());
            }
            committer.borrow_mut().step().is_err()
        };
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let paths = damaged.map_or(&[][..], |loaded| &loaded.damaged);
        let finished =
            replica.snapshot(disk, Path::new(DIR), CLUSTER, paths, &step).map_err(|_| ())?;
        let wal = replica.wal();
        if let Some(loaded) = damaged {
            wal.set_aside(&loaded.recovery).map_err(|_| ())?;
        }
        wal.truncate_below(finished.needs_from).map_err(|_| ())?;
        for envelope in meanwhile.into_inner() {
            replica.receive(envelope, now, &mut work.borrow_mut()).map_err(|_| ())?;
        }
        Ok(work.into_inner())
    }

    /// Takes a snapshot in normal service.
    pub(crate) fn take_snapshot(&mut self, disk: &Faulty, now: Timestamp) -> Result<Work, ()> {
        let meanwhile = self.during_snapshot.take().unwrap_or_default();
        self.snapshot(disk, None, meanwhile, now)
    }

    /// Makes a complete copy durable and takes it into use.
    pub(crate) fn finish_copy(
        &mut self,
        disk: &Faulty,
        (shard, staged): (ShardId, aegiskv::shard::Staged),
        now: Timestamp,
    ) -> Result<Work, ()> {
        let mut work = Work::default();
        let shelf: (Arc<dyn Disk>, &Path, u128) = (Arc::new(disk.clone()), Path::new(DIR), CLUSTER);
        match self.replica.finish_copy(shard, staged, shelf, now, &mut work) {
            Ok(_) => Ok(work),
            // The copy could not be kept, and will be asked for again; the log is as it was.
            Err(_) if self.replica.wal().failure().borrow().is_none() => Ok(work),
            Err(_) => Err(()),
        }
    }
}
