//! The primary's side: what each copy has, what is committed, and who may be answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::log::Log;
use super::message::Message;
use super::ring::bytes_of;
use super::{Event, Level, Logged, OVERDUE_TICKS, Outputs, RESEND_TICKS, Role, Shard, apply};
use crate::entry::{Effect, Key, Record, RequestId, Timestamp, Verdict};
use crate::topology::{Configuration, Copies, Seat};

/// Bytes of records in one message to a copy that is behind.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// Records that are sent to a copy ahead of its acknowledgements.
const STREAM_MAX: u64 = 10_000;

/// What must hold before a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Need {
    /// So many voters have the record.
    pub copies: Copies,
    /// The record is committed.
    pub committed: bool,
}

/// How many voters had a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Acks {
    /// Voters that had it.
    pub had: u32,
    /// Voters there are.
    pub of: u32,
}

/// What one who waits is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was needed holds.
    Done(Acks),
    /// This copy leads no more: ask the next primary, under the same request id.
    Deposed,
}

/// A primary's knowledge of its epoch.
#[derive(Debug)]
pub(super) struct Primary {
    /// The number of the epoch's first record.
    first: u64,
    active: bool,
    committed: u64,
    copies: BTreeMap<Seat, Progress>,
    pending: Vec<Pending>,
    rounds: Rounds,
    /// Copies that were away and ask where the log ends, one question each.
    inquiries: Vec<Inquiry>,
    /// It was away itself: so many rounds must be done before its copy counts as level again.
    level_from: u64,
}

/// What the primary knows of another copy.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The next record to send.
    next: u64,
    /// It holds the log up to this number.
    acked: u64,
    /// Ticks since it last got on, while there was something to get on with.
    stalled: u32,
    /// Up to this number records were counted as missed by it.
    missed: u64,
}

/// One who waits.
#[derive(Clone, Copy, Debug)]
struct Pending {
    ticket: u64,
    seq: u64,
    need: Need,
    /// The round that must have confirmed the epoch; 0 for none.
    round: u64,
}

/// A copy's question where the log ends.
#[derive(Clone, Copy, Debug)]
struct Inquiry {
    from: Seat,
    number: u64,
    /// The round that must have confirmed the epoch.
    round: u64,
}

/// Rounds of asking whether the epoch stands, one at a time.
#[derive(Debug, Default)]
struct Rounds {
    asked: u64,
    done: u64,
    wanted: bool,
    confirmed: Vec<Seat>,
    ticks: u32,
}

impl Primary {
    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    /// All who wait.
    pub(super) fn tickets(&self) -> impl Iterator<Item = u64> + '_ {
        self.pending.iter().map(|pending| pending.ticket)
    }
}

impl Shard {
    /// Up to where the log is known to be committed; 0 where this copy does not lead.
    pub fn committed(&self) -> u64 {
        match &self.role {
            Role::Leading(primary) => primary.committed,
            _ => 0,
        }
    }

    /// How far each other copy has acknowledged, where this one leads.
    pub fn acknowledged(&self) -> Vec<(Seat, u64)> {
        match &self.role {
            Role::Leading(primary) => {
                primary.copies.iter().map(|(seat, progress)| (*seat, progress.acked)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Nobody waits under this ticket any more.
    pub fn forget(&mut self, ticket: u64) {
        if let Role::Leading(primary) = &mut self.role {
            primary.pending.retain(|pending| pending.ticket != ticket);
        }
    }

    /// What breaks a rule: see `mutation`.
    pub(super) fn go_on(&mut self, configuration: Arc<Configuration>) {
        let next = self.last().seq + 1;
        if let Role::Leading(primary) = &mut self.role {
            for seat in configuration.seats().into_iter().filter(|s| *s != self.setting.me) {
                primary.copies.entry(seat).or_insert(Progress { next, ..Progress::default() });
            }
        }
        self.configuration = Some(configuration);
    }

    /// Begins to order: with a first, empty record of the epoch.
    pub(super) fn lead(&mut self, now: Timestamp, out: &mut Outputs) {
        let Some(configuration) = &self.configuration else { return };
        let first = self.last().seq + 1;
        let others = configuration.seats().into_iter().filter(|seat| *seat != self.setting.me);
        let progress = Progress { next: first, ..Progress::default() };
        self.role = Role::Leading(Box::new(Primary {
            first,
            active: mutated!(ActiveAtOnce),
            committed: 0,
            copies: others.map(|seat| (seat, progress)).collect(),
            pending: Vec::new(),
            rounds: Rounds::default(),
            inquiries: Vec::new(),
            level_from: 0,
        }));
        if self.vouched != self.setting.me.life {
            self.vouch(out);
        }
        if mutated!(VersionsByClock) {
            self.log.clock = crate::clock::Clock::default();
        }
        self.order(None, (Effect::None, Verdict::Absent), RequestId::Internal, now, out);
    }

    /// Orders a record, applies it, and sends it to all copies that are level.
    pub(super) fn order(
        &mut self,
        key: Option<Key>,
        what: (Effect, Verdict),
        id: RequestId,
        now: Timestamp,
        out: &mut Outputs,
    ) -> Arc<Record> {
        let epoch = self.fence;
        let record = self.log.order(epoch, key, what, id, now);
        apply(&mut self.table, &record);
        out.log.push(Logged::Record(record.clone()));
        let Role::Leading(primary) = &mut self.role else {
            unreachable!("only a primary orders");
        };
        let seq = record.position.seq;
        let mut level = Vec::new();
        for (seat, progress) in &mut primary.copies {
            let known = progress.acked > 0 || seq == primary.first;
            if progress.next == seq && known && seq - progress.acked.max(primary.first) < STREAM_MAX
            {
                progress.next = seq + 1;
                level.push(*seat);
            }
        }
        let previous = Log::before(&record);
        for seat in level {
            let records = vec![record.clone()];
            self.say(seat, epoch, Message::Append { previous, records, last: seq }, out);
        }
        record
    }

    /// Lets `ticket` wait until the record `seq` is where `need` wants it, and, with `confirmed`,
    /// a round that begins from now on has confirmed the epoch.
    pub(super) fn wait(
        &mut self,
        ticket: u64,
        seq: u64,
        need: Need,
        confirmed: bool,
        out: &mut Outputs,
    ) {
        let round = if confirmed { self.next_round(out) } else { 0 };
        if let Role::Leading(primary) = &mut self.role {
            primary.pending.push(Pending { ticket, seq, need, round });
        }
        self.advance(out);
    }

    pub(super) fn on_ack(&mut self, from: Seat, seq: u64, out: &mut Outputs) {
        let last = self.last().seq;
        let Role::Leading(primary) = &mut self.role else { return };
        let Some(progress) = primary.copies.get_mut(&from) else { return };
        if seq > last {
            // Nobody can hold what was not ordered.
            return;
        }
        if seq > progress.acked {
            progress.acked = seq;
            progress.stalled = 0;
        }
        progress.next = progress.next.max(progress.acked + 1);
        let next = progress.next;
        if next <= last {
            self.send_from(from, next - 1, out);
        }
        self.advance(out);
    }

    pub(super) fn on_confirmed(&mut self, from: Seat, round: u64, out: &mut Outputs) {
        let Role::Leading(primary) = &mut self.role else { return };
        let rounds = &mut primary.rounds;
        if round == rounds.asked && round > rounds.done && !rounds.confirmed.contains(&from) {
            rounds.confirmed.push(from);
            self.after_confirmations(out);
        }
    }

    /// Sends records again to whoever does not get on, and asks again what had no answer.
    pub(super) fn tick_primary(&mut self, out: &mut Outputs) {
        let last = self.last().seq;
        let (Role::Leading(primary), Some(configuration)) = (&mut self.role, &self.configuration)
        else {
            return;
        };
        let mut stalled = Vec::new();
        let mut missed = 0;
        for (seat, progress) in &mut primary.copies {
            if progress.acked >= last {
                continue;
            }
            progress.stalled += 1;
            if progress.stalled.is_multiple_of(RESEND_TICKS) {
                stalled.push((*seat, progress.acked));
            }
            if progress.stalled.is_multiple_of(OVERDUE_TICKS) && configuration.is_voter(*seat) {
                let counted = progress.acked.max(progress.missed).max(primary.first - 1);
                missed += last - counted;
                progress.missed = last;
            }
        }
        if missed > 0 {
            out.events.push(Event::Missed { records: missed });
        }
        let rounds = &mut primary.rounds;
        let mut again = false;
        if rounds.asked > rounds.done {
            rounds.ticks += 1;
            again = rounds.ticks.is_multiple_of(RESEND_TICKS);
        }
        for (seat, acked) in stalled {
            self.send_from(seat, acked, out);
        }
        if again {
            self.ask_for_confirmation(out);
        }
    }

    /// Sends what follows number `seq`, as far as one message goes; or, where that is not at hand,
    /// asks the copy where it stands.
    pub(super) fn send_from(&mut self, to: Seat, seq: u64, out: &mut Outputs) {
        let last = self.last();
        let mut records = Vec::new();
        let mut bytes = 0;
        if seq > 0
            && let Some(recent) = self.log.ring.after(seq)
        {
            for record in recent {
                bytes += bytes_of(record);
                if bytes > APPEND_BYTES_MAX && !records.is_empty() {
                    break;
                }
                records.push(record.clone());
            }
        }
        let previous = records.first().map_or(last, |first| Log::before(first));
        let next = records.last().map_or(last.seq, |record| record.position.seq) + 1;
        if let Role::Leading(primary) = &mut self.role
            && let Some(progress) = primary.copies.get_mut(&to)
        {
            progress.next = next;
        }
        let last = last.seq;
        self.say(to, self.fence, Message::Append { previous, records, last }, out);
    }

    /// Counts what is committed, and answers whoever may be answered.
    pub(super) fn advance(&mut self, out: &mut Outputs) {
        let settled = self.settled.last;
        let own = if self.log.history.contains(settled) { settled.seq } else { 0 };
        let (Role::Leading(primary), Some(configuration)) = (&mut self.role, &self.configuration)
        else {
            return;
        };
        if configuration.epoch != self.fence {
            return;
        }
        let me = self.setting.me;
        let copies = &primary.copies;
        let has = |seat: Seat| if seat == me { own } else { acked(copies, seat) };
        let majority = configuration.reached_by(Copies::Majority, has);
        if majority + u64::from(mutated!(OlderEpochsCount)) >= primary.first {
            primary.committed = primary.committed.max(majority);
            if !primary.active {
                primary.active = true;
                out.events.push(Event::Active { epoch: configuration.epoch });
            }
        }
        if primary.active && primary.rounds.done >= primary.level_from {
            self.level = Level::Yes;
        }
        if !primary.active || primary.pending.is_empty() {
            return;
        }
        let (committed, confirmed) = (primary.committed, primary.rounds.done);
        primary.pending.retain(|pending| {
            let enough = pending.round <= confirmed
                && (!pending.need.committed || pending.seq <= committed)
                && pending.seq <= configuration.reached_by(pending.need.copies, has);
            if enough {
                let acks = count_acks(configuration, pending.seq, has);
                out.answers.push((pending.ticket, Answer::Done(acks)));
            }
            !enough
        });
    }

    /// The round that confirms everything up to now; begins it, if none is under way.
    fn next_round(&mut self, out: &mut Outputs) -> u64 {
        let Role::Leading(primary) = &mut self.role else { return 0 };
        let rounds = &mut primary.rounds;
        if rounds.asked > rounds.done {
            rounds.wanted = true;
            return rounds.asked + 1;
        }
        rounds.asked += 1;
        rounds.ticks = 0;
        rounds.confirmed.clear();
        let round = rounds.asked;
        self.ask_for_confirmation(out);
        self.after_confirmations(out);
        round
    }

    fn ask_for_confirmation(&self, out: &mut Outputs) {
        let (Role::Leading(primary), Some(configuration)) = (&self.role, &self.configuration)
        else {
            return;
        };
        let round = primary.rounds.asked;
        for seat in primary.copies.keys() {
            if configuration.is_voter(*seat) && !primary.rounds.confirmed.contains(seat) {
                self.say(*seat, configuration.epoch, Message::Confirm { round }, out);
            }
        }
    }

    fn after_confirmations(&mut self, out: &mut Outputs) {
        let me = self.setting.me;
        let (Role::Leading(primary), Some(configuration)) = (&mut self.role, &self.configuration)
        else {
            return;
        };
        let rounds = &mut primary.rounds;
        let has = |seat| seat == me || rounds.confirmed.contains(&seat);
        if rounds.asked == rounds.done || !configuration.has_quorum(Copies::Majority, has) {
            return;
        }
        rounds.done = rounds.asked;
        if std::mem::take(&mut rounds.wanted) {
            self.next_round(out);
        }
        self.advance(out);
        self.answer_inquiries(out);
    }

    /// What led when this node was stopped may have been deposed since: only a round that begins
    /// from now on tells.
    pub(super) fn doubt_leading(&mut self, out: &mut Outputs) {
        let round = self.next_round(out);
        if let Role::Leading(primary) = &mut self.role {
            primary.level_from = if mutated!(LevelUnconfirmed) { 0 } else { round };
        }
        // Where nobody else votes the round is done already.
        self.advance(out);
    }

    /// A copy that was away asks where the log ends: it is told after a round that begins now.
    pub(super) fn on_read_index(&mut self, from: Seat, number: u64, out: &mut Outputs) {
        let is_copy =
            matches!(&self.role, Role::Leading(primary) if primary.copies.contains_key(&from));
        if !is_copy || !self.is_active() {
            return;
        }
        let round = self.next_round(out);
        if let Role::Leading(primary) = &mut self.role {
            primary.inquiries.retain(|inquiry| inquiry.from != from);
            primary.inquiries.push(Inquiry { from, number, round });
        }
        self.answer_inquiries(out);
    }

    fn answer_inquiries(&mut self, out: &mut Outputs) {
        let last = self.last();
        let Role::Leading(primary) = &mut self.role else { return };
        let done = primary.rounds.done;
        let confirmed =
            |inquiry: &mut Inquiry| inquiry.round <= done || mutated!(ReadIndexUnconfirmed);
        let inquiries: Vec<Inquiry> = primary.inquiries.extract_if(.., confirmed).collect();
        for Inquiry { from, number, .. } in inquiries {
            self.say(from, self.fence, Message::ReadFrom { number, last }, out);
        }
    }
}

fn acked(copies: &BTreeMap<Seat, Progress>, seat: Seat) -> u64 {
    copies.get(&seat).map_or(0, |progress| progress.acked)
}

fn count_acks(configuration: &Configuration, seq: u64, has: impl Fn(Seat) -> u64) -> Acks {
    let had = configuration.voters.iter().filter(|seat| has(**seat) >= seq).count();
    Acks { had: had as u32, of: configuration.voters.len() as u32 }
}
