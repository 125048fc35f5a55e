//! The protocol without its I/O: datagrams, answers of the resolver and the time go in; datagrams,
//! questions to the resolver and news of the members come out.
//!
//! foca brings nodes together and spreads what each knows; this adds what foca leaves open: who is
//! believed ([`Sessions`]), where a node is reached ([`Names`]), and what silence means ([`Watch`]).

mod intake;
mod rounds;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::{Duration, Instant};

use foca::{
    AccumulatingRuntime, Foca, Member, NoCustomBroadcast, OwnedNotification, PeriodicParams, Timer,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::datagram::{Envelope, Frame, Greeting, PAYLOAD_BYTES_MAX, Session};
use super::identity::{Id, Wire};
use super::names::Names;
use super::refusal::Complaints;
use super::seal::{Keyring, Keys};
use super::seeds::Seeds;
use super::session::Sessions;
use super::watch::{Timeouts, Watch};
use super::{OnRefusal, Peer, Seen, State};
use crate::topology::NodeId;

/// Sessions that were never proven and are looked at in a second; each costs a key derivation.
const STRANGERS_PER_SECOND: u32 = 2_000;

/// Greetings that answer datagrams of unproven sessions, in a second.
const ANSWERS_PER_SECOND: u32 = 2_000;

/// What the engine starts from.
pub(super) struct Setup {
    pub(super) cluster_id: u128,
    pub(super) secrets: Vec<Vec<u8>>,
    pub(super) me: Peer,
    pub(super) interval: Duration,
    pub(super) timeouts: Timeouts,
    pub(super) on_refusal: OnRefusal,
    /// Where this process's generations start: the wall clock's milliseconds.
    pub(super) generation: u64,
}

/// What is to be done outside.
#[derive(Default)]
pub(super) struct Output {
    /// To send.
    pub(super) datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// To look up.
    pub(super) questions: Vec<String>,
    /// To publish.
    pub(super) members: Option<BTreeMap<NodeId, Seen>>,
}

/// This node's side of the protocol.
pub(super) struct Engine {
    me: Id,
    cluster_id: u128,
    interval: Duration,
    keyring: Keyring,
    own_keys: Keys,
    sessions: Sessions,
    foca: Foca<Id, Wire, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Id>,
    timers: BinaryHeap<Due>,
    timers_set: u64,
    watch: Watch,
    names: Names,
    seeds: Seeds,
    /// What foca wants to tell nodes that have not yet said what they want to be shown.
    held: BTreeMap<NodeId, Held>,
    clockwork: rounds::Clockwork,
    strangers: Budget,
    answers: Budget,
    complaints: Complaints,
    on_refusal: OnRefusal,
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    rng: StdRng,
    is_leaving: bool,
}

/// One timer of foca's.
struct Due {
    at: Instant,
    /// Which was set first; foca relies on that order.
    number: u64,
    timer: Timer<Id>,
}

/// The last message to a node that has to be greeted first.
struct Held {
    message: Option<Vec<u8>>,
    greeted: Instant,
}

/// How often something may be done within a second.
struct Budget {
    per_second: u32,
    left: u32,
    renewed: Instant,
}

/// A datagram from a process that is surely there, with all that belongs to it.
struct Arrival<'a> {
    from: SocketAddr,
    envelope: &'a Envelope,
    session: Session,
    counter: u64,
}

impl Engine {
    /// A node that knows nobody yet.
    pub(super) fn new(setup: Setup, mut rng: StdRng, now: Instant) -> Self {
        let Setup { cluster_id, secrets, me, interval, timeouts, on_refusal, generation } = setup;
        let me = Id::new(&me, generation);
        let keyring = Keyring::new(cluster_id, &secrets);
        let sessions = Sessions::new(&mut rng, now);
        let foca_rng = StdRng::from_rng(&mut rng);
        Self {
            cluster_id,
            interval,
            own_keys: keyring.keys(sessions.own()),
            keyring,
            sessions,
            foca: Foca::new(me.clone(), foca_config(interval, timeouts), foca_rng, Wire),
            me,
            runtime: AccumulatingRuntime::new(),
            timers: BinaryHeap::new(),
            timers_set: 0,
            watch: Watch::new(timeouts),
            names: Names::new(rounds::name_pause(interval)),
            seeds: Seeds::default(),
            held: BTreeMap::new(),
            clockwork: rounds::Clockwork::new(interval, now),
            strangers: Budget::new(STRANGERS_PER_SECOND, now),
            answers: Budget::new(ANSWERS_PER_SECOND, now),
            complaints: Complaints::default(),
            on_refusal,
            datagrams: Vec::new(),
            rng,
            is_leaving: false,
        }
    }

    /// Other secrets from now on: the first for sending.
    pub(super) fn set_secrets(&mut self, secrets: &[Vec<u8>]) {
        self.keyring = Keyring::new(self.cluster_id, secrets);
        self.own_keys = self.keyring.keys(self.sessions.own());
        self.sessions.rekey(&self.keyring);
    }

    /// Other timeouts from now on.
    pub(super) fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.watch.set_timeouts(timeouts);
        let config = foca_config(self.interval, timeouts);
        self.foca.set_config(config).expect("neither a probe time nor a periodic task is new");
    }

    /// A look-up has ended.
    pub(super) fn resolved(
        &mut self,
        name: &str,
        found: io::Result<Vec<SocketAddr>>,
        now: Instant,
    ) {
        self.names.answer(name, found, now);
        self.knock(now);
    }

    /// What has come up since this was last asked.
    pub(super) fn take_output(&mut self) -> Output {
        Output {
            datagrams: std::mem::take(&mut self.datagrams),
            questions: self.names.take_questions(),
            members: self.watch.news(),
        }
    }

    /// Tells foca's neighbours that this node goes, and each node that it left.
    pub(super) fn leave(&mut self, now: Instant) {
        self.is_leaving = true;
        if let Err(error) = self.foca.leave_cluster(&mut self.runtime) {
            tracing::debug!(%error, "foca could not leave");
        }
        self.pump(now);
        self.say_goodbye(now);
    }

    /// Says goodbye to each node that may still listen. UDP loses some, so say it again.
    pub(super) fn say_goodbye(&mut self, now: Instant) {
        let listens = |state| matches!(state, State::Alive | State::Suspect);
        let nodes: Vec<NodeId> =
            self.watch.nodes().filter(|(_, s)| listens(*s)).map(|(id, _)| id.node).collect();
        for node in nodes {
            if self.sessions.wanted(node).is_some() {
                self.send(node, Frame::Bye { generation: self.me.generation }, now);
            }
        }
    }

    /// Tells foca something about a member.
    fn apply(&mut self, member: Member<Id>, now: Instant) {
        let members = std::iter::once(member);
        if let Err(error) = self.foca.apply_many(members, true, &mut self.runtime) {
            tracing::debug!(%error, "foca could not use an update");
        }
        self.pump(now);
    }

    /// Does what foca has asked for.
    fn pump(&mut self, now: Instant) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers_set += 1;
            self.timers.push(Due { at: now + after, number: self.timers_set, timer });
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(id) | OwnedNotification::Rename(_, id) => {
                    self.meet(&id, now);
                }
                OwnedNotification::MemberDown(id) => self.watch.down(&id),
                OwnedNotification::Defunct if !self.is_leaving => {
                    self.renew(self.me.generation.saturating_add(1), now);
                }
                _ => {}
            }
        }
        while let Some((to, message)) = self.runtime.to_send() {
            self.send(to.node, Frame::Swim(message.to_vec()), now);
        }
    }

    /// foca has a node up that it did not have, or not in this generation.
    fn meet(&mut self, id: &Id, now: Instant) {
        // Of itself foca knows the generations that are over.
        if id.node == self.me.node || !self.watch.up(id, now) {
            return;
        }
        if self.locate(id.node, now).is_some() && self.sessions.wanted(id.node).is_none() {
            self.greet(id.node, now);
        }
    }

    /// Sends a frame to a node, greeting it first where that has to be.
    fn send(&mut self, node: NodeId, frame: Frame, now: Instant) {
        let Some(address) = self.locate(node, now) else { return };
        if let Some(token) = self.sessions.wanted(node) {
            self.emit(address, Some(node), Some(token), &frame);
            return;
        }
        let pause = self.interval / 4;
        let held = self.held.entry(node).or_insert_with(|| {
            let greeted = now.checked_sub(pause).unwrap_or(now);
            Held { message: None, greeted }
        });
        if let Frame::Swim(message) = frame {
            held.message = Some(message);
        }
        if now >= held.greeted + pause {
            held.greeted = now;
            self.greet(node, now);
        }
    }

    /// Where a node is reached at present.
    fn locate(&mut self, node: NodeId, now: Instant) -> Option<SocketAddr> {
        let name = self.watch.id(node)?.addr();
        if let Some(address) = self.names.pick(name) {
            self.watch.set_addr(node, address);
            return Some(address);
        }
        self.names.refresh(name, now);
        self.watch.addr(node)
    }

    /// Greets a node that is known.
    fn greet(&mut self, node: NodeId, now: Instant) {
        let Some(address) = self.locate(node, now) else { return };
        let session = self.sessions.of(node);
        let greeting = Greeting {
            me: self.me.clone(),
            answers: None,
            token: session.map(|session| self.sessions.token(node, session)),
            at_least: session.and_then(|session| self.at_least(node, session)),
        };
        let shown = self.sessions.wanted(node);
        self.emit(address, Some(node), shown, &Frame::Greet(greeting));
    }

    /// Greets whoever sent a datagram, and tells what its session has to show.
    fn answer(&mut self, arrival: &Arrival<'_>) {
        let Arrival { from, envelope, session, counter } = *arrival;
        let node = envelope.from;
        let greeting = Greeting {
            me: self.me.clone(),
            answers: Some((session, counter)),
            token: Some(self.sessions.token(node, session)),
            at_least: self.at_least(node, session),
        };
        let is_present = self.sessions.of(node) == Some(session);
        let shown = self.sessions.wanted(node).filter(|_| is_present);
        self.emit(from, Some(node), shown, &Frame::Greet(greeting));
    }

    /// The life and the least generation in which a node can be believed alive, as far as known.
    fn at_least(&self, node: NodeId, session: Session) -> Option<(u64, u64)> {
        // foca may know a generation that is over of a node that was never seen from here.
        let known = self.foca.iter_membership_state().find(|member| member.id().node == node)?;
        let is_present = self.sessions.of(node) == Some(session);
        let more = u64::from(known.state() == foca::State::Down || !is_present);
        Some((known.id().life, known.id().generation.saturating_add(more)))
    }

    /// Writes a datagram and answers its counter.
    fn emit(
        &mut self,
        address: SocketAddr,
        to: Option<NodeId>,
        token: Option<u64>,
        frame: &Frame,
    ) -> u64 {
        let counter = self.sessions.next_counter();
        let envelope = Envelope { from: self.me.node, life: self.me.life, to, token };
        let own = self.sessions.own();
        match self.keyring.seal(&self.own_keys, own, counter, envelope, frame) {
            Ok(datagram) => self.datagrams.push((address, datagram)),
            Err(error) => tracing::debug!(%error, %address, "cannot write a datagram"),
        }
        counter
    }
}

/// foca's side of the settings. A probe of each round goes to one member; a member that fails one
/// is given so long to object that it is down after about `dead` of silence.
fn foca_config(interval: Duration, timeouts: Timeouts) -> foca::Config {
    let one = NonZeroUsize::MIN;
    let three = one.saturating_add(2);
    let every =
        |intervals: u32| PeriodicParams { frequency: interval * intervals, num_members: one };
    foca::Config {
        probe_period: interval,
        probe_rtt: interval / 3,
        num_indirect_probes: three,
        max_transmissions: NonZeroU8::MIN.saturating_add(9),
        suspect_to_down_after: timeouts.dead.saturating_sub(interval).max(interval),
        remove_down_after: None,
        max_packet_size: NonZeroUsize::new(PAYLOAD_BYTES_MAX).expect("it is not zero"),
        notify_down_members: true,
        periodic_announce: Some(every(30)),
        periodic_announce_to_down_members: Some(every(5)),
        periodic_gossip: Some(PeriodicParams { frequency: interval / 5, num_members: three }),
    }
}

impl Budget {
    fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, left: per_second, renewed: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        if now >= self.renewed + Duration::from_secs(1) {
            (self.left, self.renewed) = (self.per_second, now);
        }
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

// The earliest first, which a heap of std puts last; then the one that was set first.
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

#[cfg(test)]
mod tests;
