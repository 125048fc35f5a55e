//! The copies at rest: filled at the start from snapshot and log, written to snapshots later.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::disk::Disk;
use crate::entry::{ShardId, Timestamp};
use crate::shard::{Outputs, Placement, Setting, Shard, Staged};
use crate::snapshot::{self, Finished, Item};
use crate::store::{Found, Table};
use crate::topology::Seat;
use crate::wal::{self, Frame, Lsn};

use super::{Replica, Slot, Work};

/// Entries that a snapshot takes under one hold of a shard's lock.
const SNAPSHOT_STEP: usize = 256;

/// A snapshot takes at least one byte on the disk for so many in memory: there an entry has its
/// place in the index, and room up to the next size class.
const MEMORY_PER_DISK: u64 = 2;

/// What the name of an adopted copy's file begins with.
const COPY_PREFIX: &str = "copy-";

/// Every shard's copy.
#[derive(Debug)]
pub struct Copies {
    placement: Placement,
    setting: Arc<Setting>,
    slots: Box<[Mutex<Slot>]>,
    /// Adopted copies that the log may still need.
    adopted: Mutex<Vec<CopyFile>>,
}

/// The file of a copy that was brought here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFile {
    shard: ShardId,
    session: u64,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The log is off: nothing is kept on disk.
    #[error("wal_mode is off: nothing is kept on disk")]
    Off,
    /// It was no longer wanted.
    #[error("it was given up, for the node has to stop")]
    GivenUp,
    /// The disk refused; the log and the older snapshot are as they were.
    #[error(transparent)]
    Disk(#[from] snapshot::Error),
    /// The log failed; the node is about to stop.
    #[error(transparent)]
    Wal(#[from] wal::Error),
}

impl CopyFile {
    /// The file that a frame of the log says is the shard's whole state.
    pub fn adopted_by(frame: &Frame) -> Option<Self> {
        match frame {
            Frame::Adopt { shard, session, .. } => {
                Some(Self { shard: *shard, session: *session as u64 })
            }
            _ => None,
        }
    }

    /// Where it is, in the data directory `dir`.
    pub fn path_in(self, dir: &Path) -> PathBuf {
        dir.join(format!("{COPY_PREFIX}{:05}-{:016x}", self.shard.0, self.session))
    }
}

impl Copies {
    /// Empty copies of all shards of `placement`.
    pub fn new(placement: Placement, setting: Setting) -> Self {
        let setting = Arc::new(setting);
        let empty = |id| {
            Mutex::new(Slot {
                shard: Shard::new(id, setting.clone()),
                lsn: Lsn::default(),
                waiting: Default::default(),
                copying: false,
            })
        };
        let slots = placement.shards().map(empty).collect();
        Self { placement, setting, slots, adopted: Mutex::default() }
    }

    /// Where keys belong.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// What all copies have in common.
    pub fn setting(&self) -> &Setting {
        &self.setting
    }

    /// From here on they are those of this seat: the node's present life.
    pub fn enter(&mut self, me: Seat) {
        self.setting = Arc::new(Setting { me, ..Setting::clone(&self.setting) });
        for slot in &mut self.slots {
            slot.get_mut().shard.enter(self.setting.clone());
        }
    }

    /// Takes what a snapshot, or an adopted copy's file, holds of a shard, piece by piece.
    pub fn restore(&self, shard: ShardId, item: Item<'_>) {
        self.of(shard).shard.restore(item);
    }

    /// Takes a frame of the log again. Frames of one shard come in their order. `load_copy` is to
    /// load the file of an adopted copy by [`Copies::restore`], and to say whether it is sound.
    pub fn replay(&self, lsn: Lsn, frame: &Frame, load_copy: &dyn Fn(CopyFile) -> bool) {
        let mut slot = self.of(frame.shard());
        slot.lsn = lsn;
        if let Some(file) = CopyFile::adopted_by(frame) {
            self.adopted.lock().push(file);
            slot.shard.restore_anew();
            drop(slot);
            load_copy(file);
            slot = self.of(frame.shard());
        }
        slot.shard.replay(frame);
    }

    /// Removes files of copies that no frame of the log names any more; to be called once loaded.
    ///
    /// # Errors
    /// What the disk says.
    pub fn remove_strays(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let known: Vec<PathBuf> = self.adopted().iter().map(|file| file.path_in(dir)).collect();
        for name in disk.list(dir)?.into_iter().filter(|name| name.starts_with(COPY_PREFIX)) {
            let path = dir.join(&name);
            if !known.contains(&path) {
                disk.remove(&path)?;
            }
        }
        Ok(())
    }

    pub(super) fn adopted(&self) -> Vec<CopyFile> {
        self.adopted.lock().clone()
    }

    pub(super) fn of(&self, shard: ShardId) -> MutexGuard<'_, Slot> {
        self.slots[usize::from(shard.0)].lock()
    }

    pub(super) fn of_key(&self, key: &[u8]) -> MutexGuard<'_, Slot> {
        self.of(self.placement.shard_of(key))
    }
}

impl Replica {
    /// Makes a complete copy durable and puts it in the place of what was there. Blocks. Answers
    /// whether it did: a stale copy is dropped.
    ///
    /// # Errors
    /// [`SnapshotError`] when disk or log fail; the copy is then asked for again.
    pub fn finish_copy(
        &self,
        shard: ShardId,
        staged: Staged,
        (disk, dir, cluster_id): (Arc<dyn Disk>, &Path, u128),
        now: Timestamp,
        work: &mut Work,
    ) -> Result<bool, SnapshotError> {
        let file = CopyFile { shard, session: staged.session };
        let keeps = self.wal.mode() != wal::Mode::Off;
        if keeps {
            let path = file.path_in(dir);
            if let Err(error) = self.write_copy(&staged, disk.clone(), &path, shard, cluster_id) {
                // Begun again at the next tick that finds a place free.
                self.copies.of(shard).shard.copy_failed(staged.session);
                return Err(error.into());
            }
            // Known before the log names it: a snapshot that comes in between must not miss it.
            self.adopted.lock().push(file);
        }
        let mut slot = self.copies.of(shard);
        let mut out = Outputs::default();
        let took = slot.shard.adopt(staged, now, &mut out);
        self.carry_out(&mut slot, out, work)?;
        Ok(took)
    }

    fn write_copy(
        &self,
        staged: &Staged,
        disk: Arc<dyn Disk>,
        path: &Path,
        shard: ShardId,
        cluster_id: u128,
    ) -> Result<(), snapshot::Error> {
        let mut writer = snapshot::Writer::create_copy(disk, path, cluster_id)?;
        writer.begin_shard(snapshot::ShardState {
            shard,
            start: Lsn(1),
            position: staged.position(),
            fence: 0,
            highest_version: staged.highest(),
            life: self.me().life,
        })?;
        staged.requests().iter().try_for_each(|kept| writer.request(kept))?;
        let mut from = Some(0);
        while let Some(at) = from {
            let (step, next) = step_of(staged.table(), at);
            write_entries(&mut writer, &step)?;
            from = next;
        }
        writer.finish_copy(path)
    }

    /// Writes a snapshot of all shards into `dir`, shard after shard, while reads and writes go on.
    /// Older snapshots go, those in `damaged` are set aside. The segments of the log that are not
    /// needed any more are for the caller to remove. Looks at `give_up` between two steps. Blocks.
    ///
    /// # Errors
    /// [`SnapshotError`]; then older snapshots and the log are as they were.
    pub fn snapshot(
        &self,
        disk: Arc<dyn Disk>,
        dir: &Path,
        cluster_id: u128,
        damaged: &[PathBuf],
        give_up: &dyn Fn() -> bool,
    ) -> Result<Finished, SnapshotError> {
        if self.wal.mode() == wal::Mode::Off {
            return Err(SnapshotError::Off);
        }
        // On a slow disk each of what follows may take seconds.
        let go_on = || if give_up() { Err(SnapshotError::GivenUp) } else { Ok(()) };
        go_on()?;
        self.check_room(&*disk, dir)?;
        self.wal.rotate()?;
        go_on()?;
        let mut unneeded = Vec::new();
        let before = self.adopted.lock().clone();
        let mut writer =
            snapshot::Writer::create(disk.clone(), dir, cluster_id, self.wal.next_lsn())?;
        for shard in self.placement().shards() {
            let adopting = self.snapshot_shard(shard, &mut writer, give_up)?;
            // What is being adopted at this moment is not in the snapshot yet.
            let of_shard = before.iter().filter(|file| file.shard == shard && !adopting);
            unneeded.extend(of_shard.copied());
        }
        go_on()?;
        let durable = self.wal.sync_blocking()?;
        let finished = writer.finish(durable, damaged)?;
        for file in &unneeded {
            // Left behind it costs room until the next start.
            let _ = disk.remove(&file.path_in(dir));
        }
        self.adopted.lock().retain(|file| !unneeded.contains(file));
        Ok(finished)
    }

    /// Sees whether there is room before anything is begun: a new segment that finds none ends the
    /// log.
    fn check_room(&self, disk: &dyn Disk, dir: &Path) -> Result<(), SnapshotError> {
        let entries = self.copies.setting.budget.used() / MEMORY_PER_DISK;
        snapshot::check_room(disk, dir, entries)?;
        Ok(snapshot::check_room(disk, self.wal.dir(), 0)?)
    }

    /// Writes one shard; answers whether a copy of it is under way here.
    fn snapshot_shard(
        &self,
        shard: ShardId,
        writer: &mut snapshot::Writer,
        give_up: &dyn Fn() -> bool,
    ) -> Result<bool, SnapshotError> {
        let slot = self.copies.of(shard);
        let (state, kept) = slot.shard.state(self.wal.next_lsn());
        let adopting = slot.shard.is_copying();
        drop(slot);
        writer.begin_shard(state)?;
        kept.iter().try_for_each(|kept| writer.request(kept))?;
        let mut from = Some(0);
        while let Some(at) = from {
            if give_up() {
                return Err(SnapshotError::GivenUp);
            }
            let (step, next) = step_of(self.copies.of(shard).shard.table(), at);
            write_entries(writer, &step)?;
            from = next;
        }
        Ok(adopting)
    }
}

/// A few entries from a place of a table on, and the place after them.
fn step_of(table: &Table, at: u64) -> (Vec<Found>, Option<u64>) {
    let mut step = Vec::with_capacity(SNAPSHOT_STEP);
    // At the beginning of time nothing has expired: what has, goes along.
    let next = table.scan(at, SNAPSHOT_STEP, Timestamp(0), |view| {
        step.push(view.to_found());
        ControlFlow::Continue(())
    });
    (step, next)
}

fn write_entries(writer: &mut snapshot::Writer, step: &[Found]) -> Result<(), snapshot::Error> {
    for found in step {
        writer.entry(&snapshot::Entry {
            key: found.entry.key(),
            value: found.entry.value_bytes(),
            content_type: found.entry.content_type(),
            version: found.version,
            expires_at: found.expires_at,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::entry::{Effect, Key, Position, Record, RequestId, Verdict, Version};
    use crate::store::{Budget, Config, EvictionPolicy, HashKeys, Lookup};
    use crate::topology::NodeId;

    fn copies() -> Copies {
        let config = Config {
            max_memory: 1 << 20,
            eviction_ratio: 0.9,
            eviction_policy: EvictionPolicy::S3Fifo,
            replication_log: 1 << 12,
        };
        let setting = Setting {
            me: Seat { node: NodeId(1), life: 1 },
            region: 0,
            budget: Arc::new(Budget::new(&config)),
            keys: HashKeys::random(),
            source: 1,
            num_shards: 1,
        };
        Copies::new(Placement::new(1, 1), setting)
    }

    fn put(seq: u64, value: &'static str) -> Frame {
        Frame::Record(Record {
            shard: ShardId(0),
            position: Position { epoch: 1, seq },
            predecessor_epoch: 1,
            key: Some(Key::new(&b"k"[..], 8).expect("short")),
            effect: Effect::Put {
                value: Bytes::from_static(value.as_bytes()),
                content_type: Bytes::new(),
                expires_at: None,
            },
            version: Version(seq << 10),
            request: RequestId::Internal,
            verdict: Verdict::Created,
        })
    }

    fn replay(copies: &Copies, lsn: u64, frame: &Frame) {
        copies.replay(Lsn(lsn), frame, &|_| false);
    }

    fn value(copies: &Copies) -> Option<Bytes> {
        match copies.of_key(b"k").shard.table().peek(b"k", Timestamp(0)) {
            Lookup::Hit(found) => Some(found.entry.value()),
            Lookup::Miss(_) => None,
        }
    }

    #[test]
    fn replay_never_takes_a_key_back_behind_its_snapshot() {
        let copies = copies();
        let entry = snapshot::Entry {
            key: b"k",
            value: b"second",
            content_type: b"",
            version: Version(2 << 10),
            expires_at: None,
        };
        copies.restore(ShardId(0), Item::Entry(entry));
        // The record that led to the second value is lost; the one before it is not.
        replay(&copies, 1, &put(1, "first"));
        assert_eq!(value(&copies).as_deref(), Some(&b"second"[..]));
        replay(&copies, 3, &put(3, "third"));
        assert_eq!(value(&copies).as_deref(), Some(&b"third"[..]));
    }

    #[test]
    fn replaying_twice_ends_in_the_same_state() {
        let (once, twice) = (copies(), copies());
        for copies in [&once, &twice, &twice] {
            replay(copies, 1, &put(1, "first"));
            replay(copies, 2, &put(2, "second"));
        }
        assert_eq!(value(&twice), value(&once));
        assert_eq!(twice.of(ShardId(0)).shard.last(), once.of(ShardId(0)).shard.last());
        assert_eq!(twice.setting().budget.used(), once.setting().budget.used());
    }
}
