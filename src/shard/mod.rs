//! One copy of one shard: its table, its log, and its part in the agreement on that log's order.
//!
//! Pure: messages, configurations, requests and the time go in; messages, log frames and answers
//! come out ([`Outputs`]). It never does I/O and reads no clock; its table is memory alone.
//!
//! The rules (after Viewstamped Replication, PacificA and Raft):
//! - Only the primary that a [`Configuration`] names orders records, and only while it is active:
//!   a majority of the voters has raised its fence to the epoch ([`Message::Fence`]), the primary
//!   has taken over the longest log among them, and a first, empty record of the epoch is
//!   committed.
//! - A copy takes a record only behind its predecessor. What is not part of the primary's log is
//!   given up, in one step with taking over what stands there instead.
//! - Whoever is too far behind gets a copy of the shard, and replaces what it had in one step.
//! - Messages of an epoch lower than the fence are refused.
//!
//! The way through: a client's write is in `work`, its order and its answer in `primary`, the
//! other copies in `follower`, copying in `copying`, how a primary comes to lead in `takeover`, what
//! becomes of a copy that was away in `away`.

mod away;
mod copying;
mod follower;
mod history;
mod log;
mod message;
mod operation;
mod placement;
mod primary;
mod recovery;
mod requests;
mod ring;
mod takeover;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::entry::{Effect, Position, Record, ShardId, Timestamp, Version};
use crate::store::{Budget, HashKeys, Lookup, Table};
use crate::topology::{Configuration, Seat};
use crate::wal::Frame;

pub use copying::Staged;
pub use history::{EPOCHS_MAX, History};
pub use message::{EntryCopy, Envelope, Mark, Message, Piece, Rest};
pub use operation::{Condition, INTEGER_BYTES_MAX, Live, Operation, Ttl};
pub use placement::Placement;
pub use primary::{Acks, Answer, Need};
pub use requests::{KEYED_MAX, KEYED_WINDOW, Outcome, Recall, Requests};
pub use work::{Ordered, Refused, Request, Swept};

pub(crate) use crate::snapshot::Kept;

use away::Level;
use copying::Fetch;
use log::Log;
use primary::Primary;

/// After so many ticks without an answer a message is sent again.
const RESEND_TICKS: u32 = 4;

/// A record that a voter has not acknowledged after so many ticks, one second, counts as missed.
const OVERDUE_TICKS: u32 = 20;

/// After so many ticks a new primary looks for another copy to take the log from.
const TAKING_TICKS_MAX: u32 = 20;

/// How far above the clock versions go on after memory was lost: above all that a lost part may
/// have held.
const VERSION_LEAP_MILLIS: u64 = 1000;

/// What all copies of a node have in common.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The node, in this life of its memory.
    pub me: Seat,
    /// This cluster's region index, 0 to 7.
    pub region: u8,
    /// The memory that tables and recent records are charged to.
    pub budget: Arc<Budget>,
    /// Keys the tables' hashes, in this process alone.
    pub keys: HashKeys,
    /// Another number in each process: places in a table are good only within one.
    pub source: u64,
    /// The shards there are, which share the room for recent records.
    pub num_shards: u16,
}

/// One copy of a shard.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    setting: Arc<Setting>,
    log: Log,
    table: Table,
    /// The highest epoch it was told of; messages of lower ones are refused.
    fence: u32,
    /// The fence that was found on disk: an epoch up to this may have been led in an earlier run,
    /// with records that are lost here and known elsewhere. It is not led again.
    restored_fence: u32,
    /// The life in which the log was begun, adopted, or declared to count.
    vouched: u64,
    configuration: Option<Arc<Configuration>>,
    role: Role,
    /// What is settled on disk, as the log's mode has it.
    settled: Settled,
    /// Ticks since it last asked its primary for news that it never had in this run.
    unheard_ticks: u32,
    level: Level,
    /// The number of the last [`Message::ReadIndex`].
    read_index: u64,
    fetch: Option<Fetch>,
    /// For so many ticks recent records are held for whoever copies the shard from here.
    hold_ticks: u32,
}

/// The part that a copy has in the present epoch.
#[derive(Debug)]
enum Role {
    /// It follows, or is not part of the configuration.
    Follower,
    /// It is the primary of an epoch that it may have led in an earlier run: it waits for the next.
    Waiting,
    /// The primary collects fences.
    Fencing { fenced: BTreeMap<Seat, Position>, ticks: u32 },
    /// The primary takes the longest log over.
    Taking { from: Seat, upto: Position, ticks: u32 },
    /// The primary orders, or waits for its first record to be committed.
    Leading(Box<Primary>),
}

/// A copy's part, for those who look from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It follows.
    Follower,
    /// It is named primary, but needs a new epoch to lead.
    Waiting,
    /// It is on its way to lead.
    TakingOver,
    /// It leads.
    Active,
}

/// How much of a copy was settled: to be asked before settling, and brought back after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    fence: u32,
    last: Position,
}

/// What a copy wants done. To be gathered over one or several calls and then carried out: first
/// `log` in its order, before anything of the shard is called again; the rest at leisure.
#[derive(Debug, Default)]
pub struct Outputs {
    /// For the write-ahead log.
    pub log: Vec<Logged>,
    /// For other copies; see [`Message::vouches`].
    pub messages: Vec<Envelope>,
    /// For those who wait, by ticket.
    pub answers: Vec<(u64, Answer)>,
    /// What else came to pass.
    pub events: Vec<Event>,
}

/// A frame for the write-ahead log.
#[derive(Clone, Debug)]
pub enum Logged {
    /// A record.
    Record(Arc<Record>),
    /// Another frame.
    Frame(Frame),
}

/// What came to pass in a copy.
#[derive(Debug)]
pub enum Event {
    /// It leads from now on.
    Active {
        /// In this epoch.
        epoch: u32,
    },
    /// Part of what was acknowledged may be lost, and it was made the one that counts.
    Unclean,
    /// Voters have acknowledged nothing for so long that records count as missed, each once for
    /// each voter.
    Missed {
        /// How many.
        records: u64,
    },
    /// A copy is complete; to be made durable and given to [`Shard::adopt`].
    Copied(Box<Staged>),
}

impl Shard {
    /// An empty copy.
    pub fn new(id: ShardId, setting: Arc<Setting>) -> Self {
        let table = Table::new(setting.budget.clone(), setting.keys.clone());
        Self {
            id,
            log: Log::new(id, &setting),
            table,
            fence: 0,
            restored_fence: 0,
            vouched: 0,
            configuration: None,
            role: Role::Follower,
            settled: Settled::default(),
            unheard_ticks: 0,
            level: Level::NO,
            read_index: 0,
            fetch: None,
            hold_ticks: 0,
            setting,
        }
    }

    /// Which shard.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Where its log ends.
    pub fn last(&self) -> Position {
        self.log.last()
    }

    /// The highest epoch it was told of.
    pub fn fence(&self) -> u32 {
        self.fence
    }

    /// The highest version it has seen: later ones will lie above it.
    pub fn highest_version(&self) -> Version {
        self.log.clock.highest()
    }

    /// Whether its log holds the write that gave `key` this version; `false` as well where that
    /// cannot be told any more. A higher version says nothing: in another epoch a primary whose
    /// clock was behind may have given this one, in a log that parts from here.
    pub fn holds_write(&self, key: &[u8], version: Version) -> bool {
        let present = self.table.peek(key, Timestamp(0)).found();
        let recent = || self.log.ring.with_version(version)?.key.as_ref();
        present.is_some_and(|found| found.version == version)
            || recent().is_some_and(|of| of.as_bytes() == key)
            || mutated!(HigherVersionCounts) && self.highest_version() >= version
    }

    /// Its table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The configuration in force here, if one is known.
    pub fn configuration(&self) -> Option<&Arc<Configuration>> {
        self.configuration.as_ref()
    }

    /// Its part in the present epoch.
    pub fn part(&self) -> Part {
        match &self.role {
            Role::Follower => Part::Follower,
            Role::Waiting => Part::Waiting,
            Role::Leading(primary) if primary.is_active() => Part::Active,
            Role::Fencing { .. } | Role::Taking { .. } | Role::Leading(_) => Part::TakingOver,
        }
    }

    /// Whether it may order and answer.
    pub fn is_active(&self) -> bool {
        self.part() == Part::Active
            && self.configuration.as_ref().map(|c| c.epoch) == Some(self.fence)
    }

    /// Whether it can vouch for the log it has. A copy that cannot is replaced by another's.
    pub fn vouches(&self) -> bool {
        self.vouched == self.setting.me.life
            || self.last() == Position::default()
            || mutated!(AmnesiacCounts)
    }

    /// Where the log ends that it vouches for.
    fn vouched_last(&self) -> Position {
        if self.vouches() { self.last() } else { Position::default() }
    }

    /// Whether clients may be shown what it holds: it votes, and vouches.
    pub fn is_readable(&self) -> bool {
        let votes = self.configuration.as_ref().is_some_and(|c| c.is_voter(self.setting.me));
        votes && self.vouches()
    }

    /// Whether it is not known to be old: it leads, or had what its primary had, and has fallen
    /// little behind since. A copy that was just loaded is not, until it hears from its primary;
    /// nor is one that was away ([`Shard::was_away`]).
    pub fn is_level(&self) -> bool {
        self.level == Level::Yes
    }

    /// Looks a key up on a client's behalf.
    pub fn get(&self, key: &[u8], now: Timestamp) -> Lookup {
        self.table.get(key, now)
    }

    /// What is in the log now, for [`Shard::settled`] once the log is settled so far.
    pub fn to_settle(&self) -> Settled {
        Settled { fence: self.fence, last: self.last() }
    }

    /// The log is settled up to where `settled` was asked.
    pub fn settled(&mut self, settled: Settled, now: Timestamp, out: &mut Outputs) {
        self.settled.fence = self.settled.fence.max(settled.fence);
        // What was given up since is no more; the settling of what came instead will be told too.
        // Those who waited are told in any order.
        let holds = |position| self.log.history.contains(position);
        if holds(settled.last) && (settled.last > self.settled.last || !holds(self.settled.last)) {
            self.settled.last = settled.last;
        }
        match &mut self.role {
            Role::Fencing { .. } => self.after_fences(now, out),
            Role::Leading(_) => self.advance(out),
            _ => {}
        }
    }

    /// Takes a configuration. An old one changes nothing.
    pub fn configure(
        &mut self,
        configuration: Arc<Configuration>,
        now: Timestamp,
        out: &mut Outputs,
    ) {
        let epoch = configuration.epoch;
        let known = self.configuration.as_ref().map_or(0, |known| known.epoch);
        if epoch < self.fence || epoch <= known {
            return;
        }
        let goes_on = mutated!(SamePrimaryGoesOn)
            && self.is_active()
            && configuration.primary == self.setting.me;
        self.raise(epoch, out);
        if goes_on {
            return self.go_on(configuration);
        }
        self.step_down(out);
        // A copy goes on where the primary stays: whether its log does too, it will see.
        if self.fetch.as_ref().is_some_and(|fetch| fetch.source() != Some(configuration.primary)) {
            self.fetch = None;
        }
        let me = self.setting.me;
        let mine = configuration.primary == me;
        if configuration.seat_of(me.node).is_none() {
            self.fetch = None;
            self.drop_data(out);
        }
        // Once: told of it again after a restart, the log has begun anew already.
        let unclean = configuration.unclean && mine && self.last().epoch < epoch;
        self.log.ring.follow(configuration.seats().len() > 1);
        self.configuration = Some(configuration);
        if unclean {
            let ahead = Timestamp(now.0 + VERSION_LEAP_MILLIS);
            self.log.clock.observe(Version::at(ahead, self.setting.region));
            self.vouch(out);
            out.events.push(Event::Unclean);
        }
        if mine && epoch <= self.restored_fence {
            self.role = Role::Waiting;
        } else if mine {
            self.role = Role::Fencing { fenced: BTreeMap::new(), ticks: 0 };
            self.ask_for_fences(out);
            self.after_fences(now, out);
        } else if let Level::Asked { .. } = self.level {
            self.ask_read_index(out);
        }
    }

    /// Takes a message from another copy.
    pub fn receive(&mut self, envelope: Envelope, now: Timestamp, out: &mut Outputs) {
        let Envelope { from, to, epoch, message, .. } = envelope;
        if to != self.setting.me {
            return;
        }
        if let Message::Refused { fence } = message {
            if fence > self.fence {
                self.raise(fence, out);
                self.step_down(out);
            }
            return;
        }
        if epoch < self.fence && !mutated!(LowerEpochsTaken) {
            if message.is_of_source() {
                self.say(from, epoch, Message::Refused { fence: self.fence }, out);
            }
            return;
        }
        if epoch > self.fence {
            if !message.is_of_source() {
                return;
            }
            self.raise(epoch, out);
            self.step_down(out);
        }
        match message {
            Message::Fence => {
                let last = self.vouched_last();
                self.say(from, epoch, Message::Fenced { last }, out);
            }
            Message::Fenced { last } => self.on_fenced(from, last, now, out),
            Message::Take { history } => {
                if matches!(self.role, Role::Follower) {
                    self.help(from, &history, true, out);
                }
            }
            Message::Append { previous, records, last } => {
                self.on_append(from, (previous, last), records, out);
            }
            Message::Ack { seq } => self.on_ack(from, seq, out),
            Message::Behind { history } => {
                if self.leads() {
                    self.help(from, &history, false, out);
                }
            }
            Message::Diverged { common } => self.on_diverged(from, common, out),
            Message::GiveUp { common, keys } => self.on_give_up(from, common, &keys, out),
            Message::Resume { common, states, tail, history } => {
                self.on_resume(from, follower::Resume { common, states, tail, history }, now, out);
            }
            Message::TooFarBehind => self.want_copy(from),
            Message::AskPiece { session, after } => self.on_ask_piece(from, session, after, out),
            Message::Piece(piece) => self.on_piece(from, *piece, out),
            Message::Confirm { round } => {
                self.say(from, epoch, Message::Confirmed { round }, out);
            }
            Message::Confirmed { round } => self.on_confirmed(from, round, out),
            Message::ReadIndex { number } => self.on_read_index(from, number, out),
            Message::ReadFrom { number, last } => self.on_read_from(from, number, last, out),
            Message::Refused { .. } => {}
        }
    }

    /// Some 50 ms have passed: says again what had no answer.
    pub fn tick(&mut self, now: Timestamp, out: &mut Outputs) {
        self.log.ring.trim();
        self.tick_copying(out);
        match &mut self.role {
            Role::Follower => self.tick_follower(out),
            Role::Waiting => {}
            Role::Fencing { ticks, .. } => {
                *ticks += 1;
                if ticks.is_multiple_of(RESEND_TICKS) {
                    self.ask_for_fences(out);
                }
            }
            Role::Taking { ticks, .. } => {
                *ticks += 1;
                let (resend, late) =
                    (ticks.is_multiple_of(RESEND_TICKS), *ticks >= TAKING_TICKS_MAX);
                if self.fetch.is_some() {
                    return;
                }
                if late {
                    self.role = Role::Fencing { fenced: BTreeMap::new(), ticks: 0 };
                    self.ask_for_fences(out);
                    self.after_fences(now, out);
                } else if resend {
                    self.ask_to_take(out);
                }
            }
            Role::Leading(_) => self.tick_primary(out),
        }
    }

    /// Whether this copy orders in the epoch of its fence, active or not yet.
    fn leads(&self) -> bool {
        matches!(self.role, Role::Leading(_))
    }

    fn say(&self, to: Seat, epoch: u32, message: Message, out: &mut Outputs) {
        out.messages.push(Envelope { shard: self.id, from: self.setting.me, to, epoch, message });
    }

    fn raise(&mut self, epoch: u32, out: &mut Outputs) {
        if epoch > self.fence {
            self.fence = epoch;
            let epoch = if mutated!(FenceForgotten) { 0 } else { epoch };
            out.log.push(Logged::Frame(Frame::Fence { shard: self.id, epoch }));
        }
    }

    /// Leads no more, if it did: those who wait will ask the next primary.
    fn step_down(&mut self, out: &mut Outputs) {
        if let Role::Leading(primary) = std::mem::replace(&mut self.role, Role::Follower) {
            out.answers.extend(primary.tickets().map(|ticket| (ticket, Answer::Deposed)));
        }
    }

    /// From here on this copy vouches for its log, and ties it to no other.
    fn vouch(&mut self, out: &mut Outputs) {
        self.vouched = self.setting.me.life;
        self.log.start_anew(self.fence);
        out.log.push(Logged::Frame(Frame::Vouch { shard: self.id, life: self.vouched }));
    }

    fn drop_data(&mut self, out: &mut Outputs) {
        if self.last() == Position::default() && self.table.is_empty() {
            return;
        }
        self.table.clear();
        self.log.clear();
        out.log.push(Logged::Frame(Frame::Drop { shard: self.id, fence: self.fence }));
    }

    /// Puts a record that follows the last one into log and table.
    fn take(&mut self, record: Arc<Record>, out: &mut Outputs) {
        if self.vouched != self.setting.me.life && self.last() == Position::default() {
            self.vouched = self.setting.me.life;
            out.log.push(Logged::Frame(Frame::Vouch { shard: self.id, life: self.vouched }));
        }
        apply(&mut self.table, &record);
        self.log.push(record.clone());
        if mutated!(RequestsAtPrimaryOnly) {
            self.log.requests.forget(record.request);
        }
        out.log.push(Logged::Record(record));
    }
}

impl Message {
    /// Whether it is said by a primary, or on a new primary's behalf: it tells of its epoch.
    fn is_of_source(&self) -> bool {
        match self {
            Self::Fence
            | Self::Take { .. }
            | Self::Append { .. }
            | Self::Diverged { .. }
            | Self::Resume { .. }
            | Self::TooFarBehind
            | Self::Piece(_)
            | Self::Confirm { .. }
            | Self::ReadFrom { .. } => true,
            Self::Fenced { .. }
            | Self::Ack { .. }
            | Self::Behind { .. }
            | Self::GiveUp { .. }
            | Self::AskPiece { .. }
            | Self::Confirmed { .. }
            | Self::ReadIndex { .. }
            | Self::Refused { .. } => false,
        }
    }
}

/// Makes the table as the record says.
fn apply(table: &mut Table, record: &Record) {
    let Some(key) = &record.key else { return };
    match &record.effect {
        Effect::None => {}
        Effect::Put { value, content_type, expires_at } => {
            table.put(key.as_bytes(), value, content_type, record.version, *expires_at);
        }
        Effect::Touch { expires_at } => {
            table.touch(key.as_bytes(), record.version, *expires_at);
        }
        Effect::Remove(why) => {
            table.remove(key.as_bytes(), *why);
        }
    }
}

#[cfg(test)]
mod tests;
