//! Loading a snapshot: several threads, each a shard at a time, each with one buffer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;

use super::format::{
    BLOCK_HEADER_BYTES, BlockHeader, Kind, Line, MAGIC, TRAILER_BYTES, get_entry, get_index,
    get_kept, index_offset,
};
use super::{Error, Item, snapshots};
use crate::disk::{Disk, File};
use crate::entry::ShardId;
use crate::wal::{HEADER_BYTES, Header, HeaderError, Lsn, Progress};

/// How much a thread reads at a time, in bytes; more only for a larger block.
const READ_BYTES: usize = 1 << 20;

/// Something of a snapshot that does not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The snapshot.
    pub path: PathBuf,
    /// The shard; `None` if nothing of the snapshot can be used.
    pub shard: Option<ShardId>,
    /// Where in the file, in bytes.
    pub offset: u64,
}

/// What a load came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The snapshot that was loaded, if there was one.
    pub path: Option<PathBuf>,
    /// Entries handed over.
    pub entries: u64,
    /// For each shard the frame from which the log is to be replayed.
    pub starts: Vec<Lsn>,
    /// All frames up to this one were durable: the log must reach so far.
    pub durable: Lsn,
    /// What does not verify.
    pub damages: Vec<Damage>,
    /// Something is missing that no older snapshot makes good: the node has lost memory.
    pub lost: bool,
}

impl Loaded {
    /// The snapshots to be set aside once a fresh one is written ([`super::Writer::finish`]).
    pub fn damaged(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.damages.iter().map(|d| d.path.clone()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }
}

/// Loads the newest snapshot in `dir` that is sound; if none is, what is sound of the newest.
/// Hands over each shard's state, request ids and entries to `sink`, which is called from several
/// threads at once, for one shard from one only. Writes nothing.
///
/// # Errors
/// [`Error`] when the disk fails, or a snapshot is another cluster's or of a newer format; damage
/// is no error but stands in [`Loaded`].
pub fn load(
    disk: &dyn Disk,
    dir: &Path,
    cluster_id: u128,
    num_shards: u16,
    threads: usize,
    progress: &Progress,
    sink: &(dyn Fn(ShardId, Item<'_>) + Sync),
) -> Result<Loaded, Error> {
    let found = snapshots(disk, dir)?;
    let mut loaded = Loaded {
        path: None,
        entries: 0,
        starts: vec![Lsn(1); usize::from(num_shards)],
        durable: found.first().map_or(Lsn(0), |(end, _)| *end),
        damages: Vec::new(),
        lost: false,
    };
    let mut usable = Vec::new();
    for (_, path) in &found {
        match Snapshot::open(disk, path, cluster_id, num_shards)? {
            Some(snapshot) => usable.push(snapshot),
            None => {
                loaded.damages.push(Damage { path: path.clone(), shard: None, offset: 0 });
            }
        }
    }
    let nothing: &(dyn Fn(ShardId, Item<'_>) + Sync) = &|_, _| {};
    let mut chosen = 0;
    if usable.len() > 1 {
        // Whatever was handed over cannot be taken back: so first see which one is sound.
        for (i, snapshot) in usable.iter().enumerate() {
            let (_, damages) = snapshot.read(threads, &Progress::default(), nothing)?;
            if damages.is_empty() {
                chosen = i;
                break;
            }
            loaded.damages.extend(damages);
        }
    }
    let Some(snapshot) = usable.get(chosen) else {
        loaded.lost = !found.is_empty();
        return Ok(loaded);
    };
    let (entries, damages) = snapshot.read(threads, progress, sink)?;
    loaded.path = Some(snapshot.path.clone());
    loaded.entries = entries;
    for line in &snapshot.lines {
        loaded.starts[usize::from(line.state.shard.0)] = line.state.start.max(Lsn(1));
    }
    loaded.lost = !damages.is_empty();
    let new = damages.into_iter().filter(|d| !loaded.damages.contains(d)).collect::<Vec<_>>();
    loaded.damages.extend(new);
    Ok(loaded)
}

/// Loads the file of a single shard's copy; answers whether all of it was sound.
///
/// # Errors
/// As [`load`].
pub fn load_copy(
    disk: &dyn Disk,
    path: &Path,
    cluster_id: u128,
    sink: &(dyn Fn(ShardId, Item<'_>) + Sync),
) -> Result<bool, Error> {
    match Snapshot::open(disk, path, cluster_id, u16::MAX)? {
        Some(copy) => Ok(copy.read(1, &Progress::default(), sink)?.1.is_empty()),
        None => Ok(false),
    }
}

/// Reads one snapshot through; answers its entries and what does not verify.
///
/// # Errors
/// As [`load`].
pub fn verify(disk: &dyn Disk, path: &Path, cluster_id: u128) -> Result<(u64, Vec<Damage>), Error> {
    match Snapshot::open(disk, path, cluster_id, u16::MAX)? {
        Some(snapshot) => snapshot.read(1, &Progress::default(), &|_, _| {}),
        None => Ok((0, vec![Damage { path: path.to_owned(), shard: None, offset: 0 }])),
    }
}

/// A snapshot whose index is sound.
struct Snapshot {
    path: PathBuf,
    file: Arc<dyn File>,
    lines: Vec<Line>,
}

impl Snapshot {
    /// `None` if header or index do not verify.
    fn open(
        disk: &dyn Disk,
        path: &Path,
        cluster_id: u128,
        num_shards: u16,
    ) -> Result<Option<Self>, Error> {
        let read = || -> io::Result<_> {
            let file = disk.open(path)?;
            let length = file.length()?;
            let mut header = [0; HEADER_BYTES];
            let n = file.read_full_at(&mut header, 0)?;
            Ok((Arc::clone(&file), length, header[..n].to_vec(), read_index(&*file, length)?))
        };
        let (file, length, header, lines) = read().map_err(Error::disk("read", path))?;
        match Header::decode(&header, MAGIC, cluster_id) {
            Ok(_) => {}
            Err(HeaderError::Damaged) => return Ok(None),
            Err(HeaderError::OtherCluster(found)) => {
                let path = path.to_owned();
                return Err(Error::OtherCluster { path, found, expected: cluster_id });
            }
            Err(HeaderError::Newer(found)) => {
                return Err(Error::NewerFormat { path: path.to_owned(), found });
            }
        }
        let Some(lines) = lines else { return Ok(None) };
        let fits = |line: &Line| {
            line.state.shard.0 < num_shards
                && line.offset.checked_add(line.bytes).is_some_and(|end| end <= length)
        };
        Ok(lines.iter().all(fits).then(|| Self { path: path.to_owned(), file, lines }))
    }

    /// Reads all shards; answers the entries handed over, and what does not verify.
    fn read(
        &self,
        threads: usize,
        progress: &Progress,
        sink: &(dyn Fn(ShardId, Item<'_>) + Sync),
    ) -> Result<(u64, Vec<Damage>), Error> {
        let total = self.lines.iter().map(|line| line.bytes).sum();
        progress.total_bytes.store(total, Ordering::Relaxed);
        let next = AtomicUsize::new(0);
        let entries = AtomicU64::new(0);
        let work = || -> Result<Vec<Damage>, Error> {
            let mut buffer = Vec::new();
            let mut damages = Vec::new();
            while let Some(line) = self.lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                let n = self.read_shard(line, &mut buffer, &mut damages, sink)?;
                entries.fetch_add(n, Ordering::Relaxed);
                progress.done_bytes.fetch_add(line.bytes, Ordering::Relaxed);
            }
            Ok(damages)
        };
        let mut damages = Vec::new();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                let result = worker.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
                damages.extend(result?);
            }
            Ok(())
        })?;
        damages.sort_unstable_by_key(|damage| damage.offset);
        Ok((entries.into_inner(), damages))
    }

    fn read_shard(
        &self,
        line: &Line,
        buffer: &mut Vec<u8>,
        damages: &mut Vec<Damage>,
        sink: &(dyn Fn(ShardId, Item<'_>) + Sync),
    ) -> Result<u64, Error> {
        let shard = line.state.shard;
        sink(shard, Item::State(line.state, line.entries));
        let (mut at, end) = (line.offset, line.offset + line.bytes);
        let mut entries = 0;
        let mut damaged = |offset| {
            damages.push(Damage { path: self.path.clone(), shard: Some(shard), offset });
        };
        let mut want = READ_BYTES;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            buffer.resize(want.min(left), 0);
            let n = self.file.read_full_at(buffer, at).map_err(Error::disk("read", &self.path))?;
            if n < buffer.len() {
                damaged(at + n as u64);
                return Ok(entries);
            }
            let mut used = 0;
            let mut grown = false;
            want = READ_BYTES;
            while let Some(header) = BlockHeader::parse(&buffer[used..]) {
                let block_bytes = BLOCK_HEADER_BYTES + header.content_bytes;
                if block_bytes > left - used {
                    break;
                }
                let Some(block) = buffer[used..].get(..block_bytes) else {
                    want = READ_BYTES.max(block_bytes);
                    grown = want > buffer.len();
                    break;
                };
                match hand_over(&header, block, shard, sink) {
                    Some(n) => entries += n,
                    None => damaged(at + used as u64),
                }
                used += block_bytes;
            }
            if used == 0 && !grown {
                // No block begins here, or its length is beyond the shard's bytes.
                damaged(at);
                return Ok(entries);
            }
            at += used as u64;
        }
        if entries != line.entries && damages.last().is_none_or(|d| d.shard != Some(shard)) {
            damages.push(Damage { path: self.path.clone(), shard: Some(shard), offset: at });
        }
        Ok(entries)
    }
}

/// Hands over what a block holds, if it verifies; answers how many entries.
fn hand_over(
    header: &BlockHeader,
    block: &[u8],
    shard: ShardId,
    sink: &(dyn Fn(ShardId, Item<'_>) + Sync),
) -> Option<u64> {
    let kind = header.verify(block, shard)?;
    let mut content = &block[BLOCK_HEADER_BYTES..];
    match kind {
        Kind::Entries => {
            for _ in 0..header.count {
                sink(shard, Item::Entry(get_entry(&mut content)?));
            }
            Some(u64::from(header.count))
        }
        Kind::Requests => {
            let mut content = Bytes::copy_from_slice(content);
            for _ in 0..header.count {
                sink(shard, Item::Request(get_kept(&mut content)?));
            }
            Some(0)
        }
    }
}

fn read_index(file: &dyn File, length: u64) -> io::Result<Option<Vec<Line>>> {
    let mut trailer = [0; TRAILER_BYTES];
    let Some(at) = length.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    file.read_full_at(&mut trailer, at)?;
    let Some(offset) = index_offset(&trailer, length) else { return Ok(None) };
    let bytes = usize::try_from(length - offset).map_err(io::Error::other)?;
    let mut index = vec![0; bytes];
    file.read_full_at(&mut index, offset)?;
    Ok(get_index(&index))
}
