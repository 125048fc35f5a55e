//! The other copies' side: taking records in order, and coming level with the primary's log.

use std::collections::HashSet;
use std::sync::Arc;

use super::history::History;
use super::log::Log;
use super::message::Message;
use super::{Level, Logged, Outputs, RESEND_TICKS, Role, Shard, apply};
use crate::entry::{Departure, Effect, Key, Position, Record, Timestamp, Version};
use crate::store::Lookup;
use crate::topology::Seat;
use crate::wal::{Frame, KeyState};

/// Keys that a copy may give up; with more it asks for a copy of the shard.
const GIVE_UP_KEYS_MAX: usize = 10_000;

/// Bytes of the states of given-up keys that go into one message.
const STATES_BYTES_MAX: usize = 32 << 20;

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
        (previous, last): (Position, u64),
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
            self.level = self.level.at(at.seq, last);
            self.say(from, self.fence, Message::Ack { seq: at.seq }, out);
        } else {
            self.tell_behind(from, out);
        }
    }

    /// Asks the primary for news, as long as nothing was heard of it in this run: it may hold this
    /// copy for level, and have nothing to say.
    pub(super) fn tick_follower(&mut self, out: &mut Outputs) {
        let Some(configuration) = &self.configuration else { return };
        let primary = configuration.primary;
        let waits = !self.is_level()
            && configuration.epoch == self.fence
            && configuration.names(self.setting.me)
            && self.fetch.is_none();
        if !waits {
            return;
        }
        self.unheard_ticks += 1;
        if !self.unheard_ticks.is_multiple_of(RESEND_TICKS) {
            return;
        }
        if !self.vouches() {
            self.want_copy(primary);
        } else if let Level::Asked { .. } = self.level {
            self.ask_read_index(out);
        } else {
            self.tell_behind(primary, out);
        }
    }

    pub(super) fn tell_behind(&self, to: Seat, out: &mut Outputs) {
        let history = self.log.history.clone();
        self.say(to, self.fence, Message::Behind { history }, out);
    }

    /// Brings a copy level whose log is `history`: with records, if they are at hand.
    pub(super) fn help(&mut self, to: Seat, history: &History, takes: bool, out: &mut Outputs) {
        let epoch = self.fence;
        let common = self.log.history.common(history);
        let Some(common) = common.filter(|common| self.log.after(*common).is_some()) else {
            return self.say(to, epoch, Message::TooFarBehind, out);
        };
        if common != history.last() {
            return self.say(to, epoch, Message::Diverged { common }, out);
        }
        if !takes && common != Position::default() {
            return self.send_from(to, common.seq, out);
        }
        let Some(tail) = self.log.tail(common) else {
            return self.say(to, epoch, Message::TooFarBehind, out);
        };
        if takes {
            let (states, history) = (Vec::new(), self.log.history.clone());
            self.say(to, epoch, Message::Resume { common, states, tail, history }, out);
        } else {
            // Number 0 stands for "not known" elsewhere; from the start all must be at hand.
            let (previous, last) = (common, self.last().seq);
            self.say(to, epoch, Message::Append { previous, records: tail, last }, out);
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
        let tail = held.then(|| self.log.tail(common)).flatten();
        let states: Vec<KeyState> = keys.iter().map(|key| self.state_of(key)).collect();
        let Some(tail) = tail.filter(|_| bytes_of(&states) <= STATES_BYTES_MAX) else {
            return self.say(from, self.fence, Message::TooFarBehind, out);
        };
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

fn bytes_of(states: &[KeyState]) -> usize {
    let of = |state: &KeyState| match &state.effect {
        Effect::Put { value, content_type, .. } => value.len() + content_type.len(),
        _ => 0,
    };
    states.iter().map(|state| state.key.as_bytes().len() + of(state)).sum()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::ShardId;
    use crate::shard::{Condition, Envelope, Need, Operation, Part, Request, Setting, Ttl};
    use crate::store::{Budget, Config, HashKeys};
    use crate::topology::{Configuration, Copies, NodeId};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const SHARD: ShardId = ShardId(0);

    fn seat(node: u64) -> Seat {
        Seat { node: NodeId(node), life: 1 }
    }

    fn copy(node: u64, replication_log: u64) -> Shard {
        let config = Config { replication_log, ..Config::default() };
        let setting = Setting {
            me: seat(node),
            region: 0,
            budget: Arc::new(Budget::new(&config)),
            keys: HashKeys::seeded(node),
            source: node,
            num_shards: 1,
        };
        Shard::new(SHARD, Arc::new(setting))
    }

    fn configuration(epoch: u32, primary: u64) -> Arc<Configuration> {
        let voters = vec![seat(1), seat(2)];
        Arc::new(Configuration { voters, ..Configuration::alone(epoch, seat(primary)) })
    }

    fn put(shard: &mut Shard, key: &'static str, counter: u64, out: &mut Outputs) {
        let request = Request {
            key: Key::new(key.as_bytes(), 9).expect("short"),
            operation: Operation::Put {
                value: "v".into(),
                content_type: bytes::Bytes::new(),
                ttl: Ttl::Unlimited,
            },
            condition: Condition::Always,
            id: crate::entry::RequestId::Counted { incarnation: 1, counter, waits_from: 0 },
        };
        let need = Need { copies: Copies::Count(1), committed: false };
        shard.write(request, Some((counter, need)), NOW, out).expect("it leads");
    }

    /// Carries messages to and fro until there are none, all that is logged settled at once.
    fn pump(copies: &mut [&mut Shard], mut out: Outputs) {
        for _ in 0..1000 {
            let envelopes: Vec<Envelope> = out.messages.drain(..).collect();
            out.log.clear();
            for shard in copies.iter_mut() {
                shard.settled(shard.to_settle(), NOW, &mut out);
            }
            for envelope in envelopes {
                for shard in copies.iter_mut().filter(|s| s.setting.me == envelope.to) {
                    shard.receive(envelope.clone(), NOW, &mut out);
                    shard.settled(shard.to_settle(), NOW, &mut out);
                }
            }
            for event in std::mem::take(&mut out.events) {
                if let crate::shard::Event::Copied(staged) = event {
                    let taker = copies.iter_mut().find(|s| s.is_copying()).expect("it copies");
                    assert!(taker.adopt(*staged, NOW, &mut out));
                }
            }
            for shard in copies.iter_mut().filter(|s| s.wants_copy()) {
                shard.begin_copy(7, &mut out);
            }
            if out.messages.is_empty() && out.log.is_empty() {
                return;
            }
        }
        panic!("they never come to an end");
    }

    fn configure(copies: &mut [&mut Shard], configuration: &Arc<Configuration>) {
        let mut out = Outputs::default();
        for shard in copies.iter_mut() {
            shard.configure(configuration.clone(), NOW, &mut out);
        }
        pump(copies, out);
    }

    fn equal(a: &Shard, b: &Shard) {
        assert_eq!((a.last(), a.table().content_hash()), (b.last(), b.table().content_hash()));
    }

    #[test]
    fn a_follower_takes_what_the_primary_orders_and_is_level() {
        let (mut a, mut b) = (copy(1, 1 << 20), copy(2, 1 << 20));
        configure(&mut [&mut a, &mut b], &configuration(1, 1));
        assert_eq!((a.part(), b.part()), (Part::Active, Part::Follower));
        let mut out = Outputs::default();
        (1..=5).for_each(|n| put(&mut a, "k", n, &mut out));
        pump(&mut [&mut a, &mut b], out);
        equal(&a, &b);
        assert!(b.is_level() && b.is_readable());
        assert_eq!(a.committed(), 6);
    }

    #[test]
    fn a_copy_that_was_restarted_asks_a_primary_that_has_nothing_to_say() {
        let (mut a, mut b) = (copy(1, 1 << 20), copy(2, 1 << 20));
        configure(&mut [&mut a, &mut b], &configuration(1, 1));
        let mut again = copy(2, 1 << 20);
        for frame in [
            Frame::Vouch { shard: SHARD, life: 1 },
            Frame::Record(a.log.after(Position::default()).expect("at hand")[0].as_ref().clone()),
        ] {
            again.replay(&frame);
        }
        configure(&mut [&mut again], &configuration(1, 1));
        assert!(!again.is_level());
        assert!(ticks(&mut a).messages.is_empty(), "to the primary it is level");
        let out = ticks(&mut again);
        pump(&mut [&mut a, &mut again], out);
        assert!(again.is_level());
    }

    #[test]
    fn a_copy_that_is_far_behind_is_no_level_one_until_it_has_been_copied() {
        let (mut a, mut b) = (copy(1, 1), copy(2, 1));
        let mut out = Outputs::default();
        a.configure(Arc::new(Configuration::alone(1, seat(1))), NOW, &mut out);
        pump(&mut [&mut a], out);
        let mut out = Outputs::default();
        (1..=5).for_each(|n| put(&mut a, "k", n, &mut out));
        pump(&mut [&mut a], out);
        let learns = Configuration { learners: vec![seat(2)], ..Configuration::alone(2, seat(1)) };
        let mut out = Outputs::default();
        b.configure(Arc::new(learns.clone()), NOW, &mut out);
        assert!(!b.is_level() && !b.is_readable());
        configure(&mut [&mut a, &mut b], &Arc::new(learns));
        let out = ticks(&mut a);
        pump(&mut [&mut a, &mut b], out);
        equal(&a, &b);
        assert_eq!(a.acknowledged(), [(seat(2), 7)]);
    }

    #[test]
    fn what_a_deposed_primary_ordered_alone_is_given_up_with_its_request_ids() {
        let (mut a, mut b) = (copy(1, 1 << 20), copy(2, 1 << 20));
        configure(&mut [&mut a, &mut b], &configuration(1, 1));
        let mut lost = Outputs::default();
        put(&mut a, "lost", 1, &mut lost);
        // With node 3 as the second vote, node 2 takes over without having heard of it.
        let voters = vec![seat(2), seat(3)];
        let next = Arc::new(Configuration {
            voters,
            learners: vec![seat(1)],
            ..Configuration::alone(2, seat(2))
        });
        let mut c = copy(3, 1 << 20);
        configure(&mut [&mut b, &mut c], &next);
        let mut out = Outputs::default();
        put(&mut b, "kept", 2, &mut out);
        pump(&mut [&mut b, &mut c], out);
        configure(&mut [&mut a, &mut b, &mut c], &next);
        let out = ticks(&mut b);
        pump(&mut [&mut a, &mut b, &mut c], out);
        equal(&a, &b);
        assert!(a.table().peek(b"lost", NOW).found().is_none());
        let id = crate::entry::RequestId::Counted { incarnation: 1, counter: 1, waits_from: 0 };
        assert_eq!(a.log.recall(id, NOW), crate::shard::Recall::New);
    }

    /// What a primary says after a while without answers.
    fn ticks(shard: &mut Shard) -> Outputs {
        let mut out = Outputs::default();
        (0..8).for_each(|_| shard.tick(NOW, &mut out));
        out
    }
}
