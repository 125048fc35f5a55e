//! Carries what the copies of a shard say between this node's replica and the other nodes.
//!
//! Invariant: what vouches for this node's disk leaves only when the log is settled so far. It
//! decides nothing; it never waits for another node.

mod awake;
mod touch;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::disk::Disk;
use crate::entry::{ShardId, Timestamp};
use crate::metrics::Metrics;
use crate::replica::{Replica, Work};
use crate::shard::{Envelope, Message, Staged};
use crate::topology::{Announcement, Cluster, Command, NodeId, Topology};
use crate::wal::{self, BACKLOG_BYTES_MAX};

use awake::{Awake, Moment};
use touch::Touch;

/// Pause between two ticks of the shards.
pub const TICK: Duration = Duration::from_millis(50);

/// While more bytes than this wait for the disk, records from other nodes are not taken: they
/// will come again.
const BACKLOG_TAKEN_MAX: usize = 4 * BACKLOG_BYTES_MAX;

/// Why a request to another node has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It surely never left this node.
    #[error("not sent")]
    NotSent,
    /// It may have arrived.
    #[error("no answer")]
    Lost,
}

/// A request to another node, under way.
pub type Call<'a> = Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>>;

/// The way to the other nodes.
pub trait Carrier: fmt::Debug + Send + Sync + 'static {
    /// Sends a message, or drops it: whoever said it will say it again.
    fn send(&self, envelope: &Envelope);

    /// Asks a node and waits for the answer.
    fn call(&self, to: NodeId, ask: Vec<u8>, timeout: Duration) -> Call<'_>;

    /// Whether no node is known to be out of touch. Asked with each read: it must cost nothing.
    fn is_whole(&self) -> bool;

    /// For how long nothing was heard of a node; `None` if all is well.
    fn silent_for(&self, node: NodeId) -> Option<Duration>;
}

/// The way of a node that has no others.
#[derive(Debug)]
pub struct Nobody;

impl Carrier for Nobody {
    fn send(&self, _: &Envelope) {}

    fn call(&self, _: NodeId, _: Vec<u8>, _: Duration) -> Call<'_> {
        Box::pin(async { Err(CallError::NotSent) })
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn silent_for(&self, _: NodeId) -> Option<Duration> {
        None
    }
}

/// The topology of a node that is no cluster's: it has every shard, alone.
pub fn alone(replica: &Replica) -> watch::Receiver<Arc<Topology>> {
    let num_shards = replica.placement().num_shards();
    let mut topology = Topology::default();
    topology.apply(Command::Found {
        cluster: Cluster { id: 0, hash_seed: 0, num_shards },
        founder: replica.me().node,
        about: Announcement { life: replica.me().life, ..Announcement::default() },
        epoch: 1,
    });
    watch::channel(Arc::new(topology)).1
}

/// Where copies of shards that come from elsewhere are kept.
#[derive(Clone, Debug)]
pub struct Shelf {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The data directory.
    pub dir: PathBuf,
    /// Whose.
    pub cluster_id: u128,
}

/// A replica and its way to the others.
#[derive(Debug)]
pub struct Replication {
    replica: Arc<Replica>,
    carrier: Arc<dyn Carrier>,
    shelf: Shelf,
    metrics: Arc<Metrics>,
    awake: Awake,
    noticing: Mutex<()>,
    touch: Touch,
}

impl Replication {
    /// Brings them together.
    pub fn new(
        replica: Arc<Replica>,
        carrier: Arc<dyn Carrier>,
        shelf: Shelf,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (awake, noticing) = (Awake::default(), Mutex::default());
        let touch = Touch::new(Instant::now());
        Arc::new(Self { replica, carrier, shelf, metrics, awake, noticing, touch })
    }

    /// The replica.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// The way to the others.
    pub fn carrier(&self) -> &dyn Carrier {
        &*self.carrier
    }

    /// Sends what is to be sent, settles what is to be settled, and so on until nothing is left.
    /// In the log's modes `off` and `async` it never suspends.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn carry_out(self: &Arc<Self>, mut work: Work) -> Result<(), wal::Error> {
        loop {
            self.send(&mut work);
            for (shard, staged) in work.copied.drain(..) {
                self.finish_copy(shard, staged);
            }
            if work.is_settled() {
                return Ok(());
            }
            self.replica.wal().settle(Replica::to_settle(&work)).await?;
            self.replica.after_settling(Timestamp::now(), &mut work)?;
        }
    }

    /// As [`Replication::carry_out`], for one of many writers: in mode `async` those that are ready
    /// beside it have their turn before, so that whoever goes on first hands over what all of them
    /// have logged.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn carry_out_together(self: &Arc<Self>, mut work: Work) -> Result<(), wal::Error> {
        if self.replica.wal().mode() == wal::Mode::Async {
            self.send(&mut work);
            tokio::task::yield_now().await;
        }
        self.carry_out(work).await
    }

    fn send(&self, work: &mut Work) {
        for envelope in work.messages.drain(..) {
            self.carrier.send(&envelope);
        }
    }

    /// As [`Replication::carry_out`], from where nothing can be awaited: at once if the disk need
    /// not be waited for, else in a task of its own.
    pub fn carry_out_soon(self: &Arc<Self>, work: Work) {
        let this = self.clone();
        let mut rest = Box::pin(async move { this.carry_out(work).await });
        match (&mut rest).now_or_never() {
            // A log that has failed says so to the server, which then stops.
            Some(Ok(()) | Err(_)) => {}
            None => drop(tokio::spawn(rest)),
        }
    }

    /// Takes messages from other nodes, in their order.
    ///
    /// # Errors
    /// When the log has failed.
    pub fn receive(
        self: &Arc<Self>,
        envelopes: impl Iterator<Item = Envelope>,
    ) -> Result<(), wal::Error> {
        let mut work = Work::default();
        let now = Timestamp::now();
        for envelope in envelopes {
            let grows = matches!(envelope.message, Message::Append { .. });
            if grows && self.replica.wal().backlog_bytes() > BACKLOG_TAKEN_MAX {
                continue;
            }
            if let Message::Piece(piece) = &envelope.message {
                let bytes = piece.entries.iter().map(|entry| {
                    entry.key.as_bytes().len() + entry.content_type.len() + entry.value.len()
                });
                self.metrics.copy_bytes.inc_by(bytes.sum::<usize>() as u64);
            }
            self.replica.receive(envelope, now, &mut work)?;
        }
        self.carry_out_soon(work);
        Ok(())
    }

    /// Follows the topology, and lets the shards tick, until dropped or until the log fails.
    ///
    /// # Errors
    /// When the log has failed.
    pub async fn run(
        self: Arc<Self>,
        mut topology: watch::Receiver<Arc<Topology>>,
    ) -> Result<(), wal::Error> {
        let mut pace = tokio::time::interval(TICK);
        pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut known = Arc::new(Topology::default());
        let mut follows = true;
        loop {
            let mut work = Work::default();
            let now = topology.borrow_and_update().clone();
            self.configure(&known, &now, &mut work)?;
            known = now;
            self.replica.tick(Timestamp::now(), &mut work)?;
            self.carry_out(work).await?;
            tokio::select! {
                _ = pace.tick() => {}
                changed = topology.changed(), if follows => follows = changed.is_ok(),
            }
        }
    }

    /// Gives the shards the configurations that are new.
    fn configure(&self, old: &Topology, new: &Topology, work: &mut Work) -> Result<(), wal::Error> {
        let now = Timestamp::now();
        for (id, configuration) in new.shards.iter().enumerate() {
            if old.shards.get(id).is_none_or(|known| !Arc::ptr_eq(known, configuration)) {
                let shard = ShardId(id as u16);
                self.replica.configure(shard, configuration.clone(), now, work)?;
            }
        }
        Ok(())
    }

    /// Sees when this process stood still, and with whom it was out of touch, until dropped.
    pub async fn stay_in_touch(self: Arc<Self>, topology: watch::Receiver<Arc<Topology>>) {
        let mut pace = tokio::time::interval(awake::PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            let now = Moment::now();
            match self.awake.absence(now) {
                None => self.awake.note(now),
                Some(_) => self.was_away(),
            }
            if !self.is_whole() {
                let topology = topology.borrow().clone();
                self.look_who_is_back(&topology);
            }
        }
    }

    /// Whoever was out of touch, and is no more, may have ordered meanwhile, or may have let another
    /// lead: the copies that hang on it ask.
    fn look_who_is_back(self: &Arc<Self>, topology: &Topology) {
        let me = self.replica.me().node;
        let others = topology.members.keys().copied().filter(|node| *node != me);
        let now = Instant::now();
        let mut work = Work::default();
        for (node, since) in self.touch.look(others, |node| self.carrier.silent_for(node), now) {
            let woke_at = Timestamp::now();
            let since = woke_at.before(now - since);
            let in_touch = |node| self.touch.parted_for(node).is_none();
            // A log that has failed says so to the server, which then stops.
            let _ = self.replica.was_apart(node, &in_touch, (since, woke_at), &mut work);
            self.touch.met(node);
        }
        self.carry_out_soon(work);
    }

    /// Whether no node is known to be out of touch, nor was until now. Costs two loads.
    pub fn is_whole(&self) -> bool {
        self.carrier.is_whole() && self.touch.is_whole()
    }

    /// For how long a node has been out of touch; `None` if it is in touch.
    pub fn silent_for(&self, node: NodeId) -> Option<Duration> {
        self.carrier.silent_for(node).or_else(|| self.touch.parted_for(node))
    }

    /// Sees to it that no copy counts as level because it was when this process last ran. To be
    /// called at `now` before each look at a copy on a client's behalf: a request may be the first to
    /// run after a pause. Costs a load.
    pub fn notice_absence(self: &Arc<Self>, now: Timestamp) {
        if self.awake.may_have_been_away(now) && self.awake.absence(Moment::now()).is_some() {
            self.was_away();
        }
    }

    #[cold]
    fn was_away(self: &Arc<Self>) {
        let first = self.noticing.lock();
        let now = Moment::now();
        let Some(absence) = self.awake.absence(now) else { return };
        let since = now.wall.before(absence);
        let mut work = Work::default();
        // A log that has failed says so to the server, which then stops.
        let _ = self.replica.was_away((since, now.wall), &mut work);
        // Not before all copies know: whoever looks at one meanwhile waits above.
        self.awake.note(now);
        drop(first);
        tracing::warn!(
            "this process stood still for {absence:.1?}; its copies ask their primaries before they \
             answer again"
        );
        self.carry_out_soon(work);
    }

    /// Makes a complete copy durable and takes it into use, on a thread that may block.
    fn finish_copy(self: &Arc<Self>, shard: ShardId, staged: Box<Staged>) {
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut work = Work::default();
            let Shelf { disk, dir, cluster_id } = this.shelf.clone();
            let shelf = (disk, dir.as_path(), cluster_id);
            let took = this.replica.finish_copy(shard, *staged, shelf, Timestamp::now(), &mut work);
            match took {
                Ok(true) => tracing::debug!(shard = shard.0, "a copy of the shard is complete"),
                Ok(false) => tracing::debug!(shard = shard.0, "a stale copy was dropped"),
                Err(error) => tracing::error!(
                    %error,
                    shard = shard.0,
                    "a copy of a shard could not be kept; it will be asked for again"
                ),
            }
            this.carry_out_soon(work);
        });
    }
}
