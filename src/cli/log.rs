//! The `wal` commands: a look at a node's write-ahead log while the node is down.
//!
//! What a start would do without is told beforehand: it is looked for in snapshots as well.
//! Invariant: nothing is written, and no value is shown; keys are.

use std::io::{self, Write};
use std::num::NonZero;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::thread;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::exit::{Exit, note, output};
use crate::config::Sources;
use crate::disk::home::read_identity;
use crate::disk::{Disk as _, Os};
use crate::entry::{Effect, Record};
use crate::replica::CopyFile;
use crate::snapshot::{self, Loaded};
use crate::wal::{self, Corruption, Damage, Frame, Known, Location, Lsn, Progress, Seen, Verified};

/// Looks at a node's write-ahead log while the node is down
#[derive(Args, Debug)]
pub(crate) struct Log {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Lists what the log holds, a line for each step; keys are shown, values are not
    Inspect(Place),
    /// Reads the log and the snapshots through and says whether all is there; code 1 if not
    Verify(Place),
}

/// Which log.
#[derive(Args, Debug)]
struct Place {
    /// The node's data directory (default: as configured)
    dir: Option<PathBuf>,

    /// The log's directory (default: as configured, or `wal` in DIR)
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,

    /// The node's configuration file
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    config: Option<PathBuf>,
}

/// A log, and what there is beside it.
struct Found {
    data_dir: PathBuf,
    location: Location,
    known: Known,
    /// The first record that is in no snapshot.
    needed: Lsn,
    /// What its snapshots come to, read through as a start does.
    snapshots: Loaded,
}

impl Place {
    fn find(self) -> anyhow::Result<Found> {
        let (data_dir, configured) = match self.dir {
            Some(dir) => {
                let wal_dir = dir.join("wal");
                (dir, wal_dir)
            }
            None => {
                let loaded = Sources::of_process(self.config, Default::default()).load();
                let config = loaded.context("the configuration cannot be used")?.config;
                let wal_dir = config.wal_dir();
                (config.data_dir, wal_dir)
            }
        };
        let shown = data_dir.display();
        let identity = read_identity(&Os, &data_dir)?.with_context(|| {
            format!("{shown} is no node's data directory; name one, or its --config")
        })?;
        let snapshots = snapshot::load(
            &Os,
            &data_dir,
            identity.cluster_id,
            identity.num_shards,
            thread::available_parallelism().map_or(1, NonZero::get),
            &Progress::default(),
            &|_, _| {},
        )?;
        let known = Known {
            durable: snapshots.durable.max(Lsn(identity.clean_at.unwrap_or(0))),
            same_boot: Os.boot_id().is_ok_and(|boot_id| boot_id == identity.boot_id),
            expects_log: identity.wal_mode != "off",
        };
        let location = Location {
            dir: self.wal_dir.unwrap_or(configured),
            cluster_id: identity.cluster_id,
            seed: identity.hash_seed,
        };
        // Without a log there is nothing that a start would miss.
        let needed = if known.expects_log { None } else { Some(Lsn(u64::MAX)) };
        let needed = needed.or_else(|| snapshots.starts.iter().copied().min()).unwrap_or(Lsn(1));
        Ok(Found { data_dir, location, known, needed, snapshots })
    }
}

impl Log {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let mut out = output();
        match self.command {
            Command::Inspect(place) => {
                let found = place.find()?;
                let mut written = Ok(());
                let (verified, copies) = found.walk(&mut |seen| {
                    written = print(seen, &mut out);
                    written.is_ok()
                })?;
                written?;
                out.flush()?;
                let mut summary = Vec::new();
                tell(&verified, &found.snapshots, &copies, &mut summary)?;
                note(String::from_utf8_lossy(summary.trim_ascii_end()));
                Ok(verdict(&verified, &found.snapshots, &copies))
            }
            Command::Verify(place) => {
                let found = place.find()?;
                let (verified, copies) = found.walk(&mut |_| true)?;
                tell(&verified, &found.snapshots, &copies, &mut out)?;
                out.flush()?;
                Ok(verdict(&verified, &found.snapshots, &copies))
            }
        }
    }
}

impl Found {
    /// Goes through the log for as long as `each` says so; also the files of copies that a start
    /// would load and find damaged or missing.
    fn walk(
        &self,
        each: &mut dyn FnMut(&Seen<'_>) -> bool,
    ) -> Result<(Verified, Vec<PathBuf>), wal::Error> {
        let mut copies = Vec::new();
        let walked = wal::inspect(&Os, &self.location, self.known, self.needed, &mut |seen| {
            copies.extend(self.damaged_copy(seen.lsn, &seen.frame));
            if each(&seen) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        Ok((walked?, copies))
    }

    /// The file of the copy that a frame tells a start to load, if it is damaged or missing.
    fn damaged_copy(&self, lsn: Lsn, frame: &Frame) -> Option<PathBuf> {
        let path = CopyFile::adopted_by(frame)?.path_in(&self.data_dir);
        let start = self.snapshots.starts.get(usize::from(frame.shard().0));
        let is_needed = start.is_none_or(|start| lsn >= *start);
        let is_sound =
            || snapshot::load_copy(&Os, &path, self.location.cluster_id, &|_, _| {}).ok();
        (is_needed && is_sound() != Some(true)).then_some(path)
    }
}

fn verdict(verified: &Verified, snapshots: &Loaded, copies: &[PathBuf]) -> Exit {
    let is_sound =
        verified.corruptions.is_empty() && snapshots.damages.is_empty() && copies.is_empty();
    if is_sound { Exit::Done } else { Exit::Failed }
}

fn print(seen: &Seen<'_>, out: &mut impl Write) -> io::Result<()> {
    let segment = seen.segment.file_name().unwrap_or_default().to_string_lossy();
    write!(out, "{} {segment}+{} {} bytes: ", seen.lsn, seen.offset, seen.bytes)?;
    match &seen.frame {
        Frame::Record(record) => print_record(record, out),
        Frame::Fence { shard, epoch } => writeln!(out, "shard {} fence {epoch}", shard.0),
        Frame::GiveUp { shard, kept, states, records, .. } => writeln!(
            out,
            "shard {} gives up what follows {}.{}: {} keys, {} records",
            shard.0,
            kept.epoch,
            kept.seq,
            states.len(),
            records.len()
        ),
        Frame::Adopt { shard, session, position, fence, .. } => writeln!(
            out,
            "shard {} adopts copy {session:032x} at {}.{}, fence {fence}",
            shard.0, position.epoch, position.seq
        ),
        Frame::Drop { shard, fence } => writeln!(out, "shard {} dropped, fence {fence}", shard.0),
        Frame::Vouch { shard, life } => {
            writeln!(out, "shard {} vouched for from life {life:016x} on", shard.0)
        }
    }
}

fn print_record(record: &Record, out: &mut impl Write) -> io::Result<()> {
    let (shard, position) = (record.shard.0, record.position);
    write!(out, "shard {shard} {}.{} version {} ", position.epoch, position.seq, record.version)?;
    match &record.effect {
        Effect::None => write!(out, "{:?} without effect", record.verdict)?,
        Effect::Put { value, expires_at, .. } => {
            write!(out, "put of {} bytes", value.len())?;
            if let Some(expires_at) = expires_at {
                write!(out, " until {} ms", expires_at.0)?;
            }
        }
        other => write!(out, "{other:?}")?,
    }
    match &record.key {
        Some(key) => writeln!(out, " \"{}\"", key.as_bytes().escape_ascii()),
        None => writeln!(out),
    }
}

fn tell(
    verified: &Verified,
    snapshots: &Loaded,
    copies: &[PathBuf],
    out: &mut impl Write,
) -> io::Result<()> {
    let Verified { segments, bytes, frames, range, durable, torn_bytes, corruptions } = verified;
    write!(out, "{segments} segments, {bytes} bytes, {frames} sound records")?;
    match range {
        Some((first, last)) => writeln!(out, ", {first} to {last}")?,
        None => writeln!(out)?,
    }
    if *durable > Lsn(0) {
        writeln!(out, "known to have gone to record {durable} at least")?;
    }
    if *torn_bytes > 0 {
        writeln!(
            out,
            "the last {torn_bytes} bytes are torn, as after a crash; the next start cuts them off"
        )?;
    }
    for corruption in corruptions {
        tell_corruption(corruption, out)?;
    }
    for snapshot::Damage { path, shard, offset } in &snapshots.damages {
        write!(out, "{} at {offset}: does not verify", path.display())?;
        match shard {
            Some(shard) => writeln!(out, ", in shard {}", shard.0)?,
            None => writeln!(out, "; nothing of it can be used")?,
        }
    }
    if !snapshots.damages.is_empty() {
        let rest = match snapshots.lost {
            true => "no other makes it good: the next start does without what it held",
            false => "an older one makes it good, with the log since then",
        };
        writeln!(out, "a snapshot is damaged; {rest}")?;
    }
    for copy in copies {
        let copy = copy.display();
        writeln!(out, "{copy}: a shard's copy is damaged or missing; a start does without it")?;
    }
    match corruptions.len() {
        0 if !(snapshots.damages.is_empty() && copies.is_empty()) => {
            writeln!(out, "nothing else is damaged")
        }
        0 => writeln!(out, "the log is sound"),
        _ => writeln!(
            out,
            "the log is damaged: the next start sets the damaged segments aside, \
             and does without what they held"
        ),
    }
}

fn tell_corruption(corruption: &Corruption, out: &mut impl Write) -> io::Result<()> {
    let what = match corruption.damage {
        Damage::Header => "the header does not verify",
        Damage::Frame => "bytes do not verify",
        Damage::Body => "a record verifies but makes no sense to this aegiskv",
        Damage::Missing => "records are missing",
        Damage::Overlap => "the segment begins before the one before it ends",
        Damage::Mark => {
            "mark.wal does not verify, so whether records are missing at the end cannot be told"
        }
    };
    if let Some(segment) = &corruption.segment {
        write!(out, "{} at {}: ", segment.display(), corruption.offset)?;
    }
    write!(out, "{what}, {} bytes, from record {}", corruption.bytes, corruption.from)?;
    match corruption.to {
        Some(to) => writeln!(out, " to {to}"),
        None => writeln!(out),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::entry::{Position, ShardId, Version};
    use crate::snapshot::{ShardState, Writer};

    #[test]
    fn a_copy_that_a_start_would_load_is_seen_to_be_damaged_or_missing() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().to_owned();
        let location = Location { dir: data_dir.join("wal"), cluster_id: 7, seed: 1 };
        let snapshots =
            snapshot::load(&Os, &data_dir, 7, 4, 1, &Progress::default(), &|_, _| {}).unwrap();
        let known = Known { durable: Lsn(0), same_boot: true, expects_log: true };
        let mut found = Found { data_dir, location, known, needed: Lsn(1), snapshots };
        let (shard, position) = (ShardId(3), Position { epoch: 1, seq: 1 });
        let frame = Frame::Adopt { shard, session: 9, position, fence: 1, life: 1 };
        let path = CopyFile::adopted_by(&frame).unwrap().path_in(&found.data_dir);
        assert_eq!(found.damaged_copy(Lsn(5), &frame), Some(path.clone()), "missing");

        let mut writer = Writer::create_copy(Arc::new(Os), &path, 7).unwrap();
        let highest_version = Version(0);
        let state =
            ShardState { shard, start: Lsn(1), position, fence: 1, highest_version, life: 1 };
        writer.begin_shard(state).unwrap();
        writer.finish_copy(&path).unwrap();
        assert_eq!(found.damaged_copy(Lsn(5), &frame), None);

        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(found.damaged_copy(Lsn(5), &frame), Some(path));
        found.snapshots.starts[3] = Lsn(6);
        assert_eq!(found.damaged_copy(Lsn(5), &frame), None, "the snapshot has what it held");
    }
}
