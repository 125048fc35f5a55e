//! The other copies' side: taking records in order, and coming level with the primary's log.

use std::collections::HashSet;
use std::sync::Arc;

use super::history::History;
use super::log::Log;
use super::message::Message;
use super::{Logged, Outputs, Role, Shard, apply};
use crate::entry::{Departure, Effect, Key, Position, Record, Timestamp, Version};
use crate::store::Lookup;
use crate::topology::Seat;
use crate::wal::{Frame, KeyState};

/// Keys that a copy may give up; with more it asks for a copy of the shard.
const GIVE_UP_KEYS_MAX: usize = 10_000;

/// What [`Message::Resume`] says.
pub(super) struct Resume {
    pub(super) common: Position,
    pub(super) states: Vec<KeyState>,
    pub(super) tail: Vec<Arc<Record>>,
    pub(super) history: History,
}

impl Shard {
    /// Takes what follows the own log, and acknowledges; or tells where it stands.
    pub(super) fn on_append(
        &mut self,
        from: Seat,
        previous: Position,
        records: Vec<Arc<Record>>,
        out: &mut Outputs,
    ) {
        if !matches!(self.role, Role::Follower) || self.is_copying() {
            return;
        }
        if !self.vouches() {
            self.want_copy(from);
            return;
        }
        let mut at = previous;
        for record in records {
            if Log::before(&record) != at {
                return;
            }
            at = record.position;
            if !self.log.history.contains(at) {
                if Log::before(&record) != self.last() && !mutated!(PredecessorUnchecked) {
                    return self.tell_behind(from, out);
                }
                self.take(record, out);
            }
        }
        if self.log.history.contains(at) {
            self.say(from, self.fence, Message::Ack { seq: at.seq }, out);
        } else {
            self.tell_behind(from, out);
        }
    }

    fn tell_behind(&self, to: Seat, out: &mut Outputs) {
        let history = self.log.history.clone();
        self.say(to, self.fence, Message::Behind { history }, out);
    }

    /// Brings a copy level whose log is `history`: with records, if they are at hand.
    pub(super) fn help(&mut self, to: Seat, history: &History, takes: bool, out: &mut Outputs) {
        let epoch = self.fence;
        let common = self.log.history.common(history);
        let known = common.and_then(|common| Some((common, self.log.after(common)?)));
        let Some((common, tail)) = known else {
            return self.say(to, epoch, Message::TooFarBehind, out);
        };
        if common != history.last() {
            self.say(to, epoch, Message::Diverged { common }, out);
        } else if takes {
            let (states, history) = (Vec::new(), self.log.history.clone());
            self.say(to, epoch, Message::Resume { common, states, tail, history }, out);
        } else if common == Position::default() {
            // Number 0 stands for "not known" elsewhere; from the start all must be at hand.
            let previous = common;
            self.say(to, epoch, Message::Append { previous, records: tail }, out);
        } else {
            self.send_from(to, common.seq, out);
        }
    }

    /// Names the keys that its records behind `common` touch, or asks for a copy.
    pub(super) fn on_diverged(&mut self, from: Seat, common: Position, out: &mut Outputs) {
        if self.leads() || self.is_copying() || !self.log.history.contains(common) {
            return;
        }
        match self.log.after(common).map(|records| keys_of(&records)) {
            Some(keys) if keys.len() <= GIVE_UP_KEYS_MAX => {
                self.say(from, self.fence, Message::GiveUp { common, keys }, out);
            }
            _ => self.want_copy(from),
        }
    }

    /// Tells the state of these keys, and the log that leads there.
    pub(super) fn on_give_up(
        &mut self,
        from: Seat,
        common: Position,
        keys: &[Key],
        out: &mut Outputs,
    ) {
        if !matches!(self.role, Role::Leading(_) | Role::Follower) {
            return;
        }
        let held = self.log.history.contains(common);
        let Some(tail) = held.then(|| self.log.after(common)).flatten() else {
            return self.say(from, self.fence, Message::TooFarBehind, out);
        };
        let states = keys.iter().map(|key| self.state_of(key)).collect();
        let history = self.log.history.clone();
        self.say(from, self.fence, Message::Resume { common, states, tail, history }, out);
    }

    fn state_of(&self, key: &Key) -> KeyState {
        // At the beginning of time nothing has expired.
        let (version, effect) = match self.table.peek(key.as_bytes(), Timestamp(0)) {
            Lookup::Hit(found) => (
                found.version,
                Effect::Put {
                    value: found.entry.value(),
                    content_type: bytes::Bytes::copy_from_slice(found.entry.content_type()),
                    expires_at: found.expires_at,
                },
            ),
            Lookup::Miss(_) => (Version::default(), Effect::Remove(Departure::Deleted)),
        };
        KeyState { key: key.clone(), version, effect }
    }

    /// Comes level: gives up what is not in the sender's log, and takes what is, in one step.
    pub(super) fn on_resume(
        &mut self,
        from: Seat,
        resume: Resume,
        now: Timestamp,
        out: &mut Outputs,
    ) {
        let Resume { common, states, mut tail, history } = resume;
        let last = self.last();
        let expected = match self.role {
            Role::Taking { from: source, .. } => source == from,
            Role::Follower => true,
            _ => false,
        };
        if !expected || self.is_copying() {
            return;
        }
        if !self.vouches() {
            return self.want_copy(from);
        }
        if history.last() < last && !mutated!(DivergenceOfYesterday) {
            return;
        }
        // Compared anew: the log may have changed since it was asked about.
        let Some(kept) = self.log.history.common(&history) else { return };
        let kept = if mutated!(DivergenceOfYesterday) { common } else { kept };
        if kept.seq < common.seq || !follows(&tail, common, history.last()) {
            return;
        }
        tail.retain(|record| record.position.seq > kept.seq);
        if kept == last {
            tail.into_iter().for_each(|record| self.take(record, out));
        } else if !self.give_up(kept, states, tail, out) {
            return;
        }
        if matches!(self.role, Role::Taking { .. }) {
            self.after_taking(now, out);
        } else {
            let seq = self.last().seq;
            self.say(from, self.fence, Message::Ack { seq }, out);
        }
    }

    /// Gives up what stands behind `kept`, if `states` cover it. Answers whether they do.
    fn give_up(
        &mut self,
        kept: Position,
        states: Vec<KeyState>,
        tail: Vec<Arc<Record>>,
        out: &mut Outputs,
    ) -> bool {
        let Some(given_up) = self.log.after(kept) else { return false };
        let covered: HashSet<&Key> = states.iter().map(|state| &state.key).collect();
        let covers = keys_of(&given_up).iter().all(|key| covered.contains(key));
        if !covers && !mutated!(DivergenceOfYesterday) {
            return false;
        }
        let gone = match mutated!(GivenUpRequestsStay) {
            true => Vec::new(),
            false => given_up.iter().map(|record| record.request).collect(),
        };
        let states = if mutated!(DivergenceKept) { Vec::new() } else { states };
        let records = tail.iter().map(|record| Record::clone(record)).collect();
        let frame = Frame::GiveUp { shard: self.id, kept, states, records, gone };
        self.apply_give_up(&frame);
        out.log.push(Logged::Frame(frame));
        true
    }

    /// Makes log and table as a give-up frame says.
    pub(super) fn apply_give_up(&mut self, frame: &Frame) {
        let Frame::GiveUp { kept, states, records, gone, .. } = frame else { return };
        self.log.cut(*kept, gone);
        for KeyState { key, version, effect } in states {
            match effect {
                Effect::Put { value, content_type, expires_at } => {
                    self.table.put(key.as_bytes(), value, content_type, *version, *expires_at);
                }
                _ => {
                    self.table.remove(key.as_bytes(), Departure::Deleted);
                }
            }
        }
        for record in records {
            apply(&mut self.table, record);
            self.log.push(Arc::new(record.clone()));
        }
    }
}

/// Each key that the records touch, once.
fn keys_of(records: &[Arc<Record>]) -> Vec<Key> {
    let touching = records.iter().filter(|record| record.effect != Effect::None);
    let mut keys: Vec<Key> = touching.filter_map(|record| record.key.clone()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Whether the records lead from `from` to `to` without a gap.
fn follows(records: &[Arc<Record>], from: Position, to: Position) -> bool {
    let mut at = from;
    for record in records {
        if Log::before(record) != at {
            return false;
        }
        at = record.position;
    }
    at == to
}
