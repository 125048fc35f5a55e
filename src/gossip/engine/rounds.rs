//! What comes round with time: foca's timers, beats, knocks at seeds, new generations.

use std::collections::BTreeSet;
use std::mem;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Engine, Greeting};
use crate::gossip::State;
use crate::gossip::datagram::{Frame, Heard};

/// Shortest and longest time between two looks at the clock.
const TICK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// Longest time between two look-ups of a name, and between two knocks at an unmet seed.
const NAME_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A dead node gets a beat in one of so many rounds.
const DEAD_EVERY: u64 = 4;

/// Intervals of silence after which a node's address is doubted.
const DOUBT_INTERVALS: u32 = 2;

/// When what comes round is next due.
pub(super) struct Clockwork {
    tick: Duration,
    ticked: Instant,
    next_beat: Instant,
    next_knock: Instant,
    beats: u64,
    renewed: Option<Instant>,
    /// The generation to take as soon as the pause after the last one is over.
    awaited: Option<u64>,
}

/// The pause between two look-ups of one name.
pub(super) fn name_pause(interval: Duration) -> Duration {
    (interval * 3).min(NAME_PAUSE_MAX)
}

impl Clockwork {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            tick: (interval / 4).clamp(TICK.0, TICK.1),
            ticked: now,
            next_beat: now,
            next_knock: now,
            beats: 0,
            renewed: None,
            awaited: None,
        }
    }
}

impl Engine {
    /// When [`Self::tick`] is to be called at the latest.
    pub(in crate::gossip) fn wake(&self) -> Instant {
        let tick = self.clockwork.ticked + self.clockwork.tick;
        self.timers.peek().map_or(tick, |due| due.at.min(tick))
    }

    /// Does what is due.
    pub(in crate::gossip) fn tick(&mut self, now: Instant) {
        if self.is_leaving {
            return;
        }
        self.excuse_a_stall(now);
        self.clockwork.ticked = now;
        self.sessions.tick(now);
        while self.timers.peek().is_some_and(|due| due.at <= now) {
            let Some(due) = self.timers.pop() else { break };
            if let Err(error) = self.foca.handle_timer(due.timer, &mut self.runtime) {
                tracing::debug!(%error, "foca could not use a timer");
            }
            self.pump(now);
        }
        if let Some(generation) = self.clockwork.awaited.take() {
            self.renew(generation, now);
        }
        if now >= self.clockwork.next_beat {
            self.clockwork.next_beat = now + self.interval;
            self.beat(now);
        }
        if now >= self.clockwork.next_knock {
            self.knock(now);
        }
        self.watch.judge(now);
    }

    /// Other seeds from now on.
    pub(in crate::gossip) fn set_seeds(&mut self, seeds: Vec<String>, now: Instant) {
        self.seeds.set(seeds);
        self.knock(now);
    }

    /// If this process was stopped, or starved, then nobody's silence in that time counts, and
    /// whoever was given time to object gets it.
    fn excuse_a_stall(&mut self, now: Instant) {
        let lag = now.saturating_duration_since(self.clockwork.ticked + self.clockwork.tick);
        if lag < self.interval {
            return;
        }
        self.watch.excuse(lag, now);
        let delayed = mem::take(&mut self.timers).into_iter().map(|mut due| {
            due.at += lag;
            due
        });
        self.timers = delayed.collect();
    }

    /// Tells every node that this one is here, and whom it hears.
    fn beat(&mut self, now: Instant) {
        self.clockwork.beats += 1;
        let round = self.clockwork.beats;
        let mut heard: Vec<Heard> = self.watch.hearing(now).collect();
        if !heard.is_empty() {
            // So that in a cluster of more nodes than one beat names each has its turn.
            let turn = self.rng.random_range(0..heard.len());
            heard.rotate_left(turn);
        }
        let is_due = |state| match state {
            State::Alive | State::Suspect => true,
            State::Dead => round.is_multiple_of(DEAD_EVERY),
            State::Left => false,
        };
        let nodes = self.watch.nodes().filter(|(_, state)| is_due(*state));
        let nodes: Vec<_> = nodes.map(|(id, _)| id.clone()).collect();
        let is_lost = self.foca.num_members() == 0;
        for id in nodes {
            if self.watch.silence(id.node, now) > self.interval * DOUBT_INTERVALS {
                self.names.doubt(id.addr(), now);
            }
            if is_lost && let Err(error) = self.foca.announce(id.clone(), &mut self.runtime) {
                tracing::debug!(%error, "foca could not announce this node");
            }
            self.send(id.node, Frame::Beat(heard.clone()), now);
        }
        self.pump(now);
    }

    /// Knocks at every seed's address that no living node answers from.
    pub(super) fn knock(&mut self, now: Instant) {
        let pause = if self.watch.is_alone() { self.interval } else { name_pause(self.interval) };
        self.clockwork.next_knock = now + pause;
        let own = self.me.addr();
        for name in self.seeds.names().iter().map(String::as_str).chain([own]) {
            self.names.refresh(name, now);
        }
        for address in self.seeds.unmet(own, &self.names, &self.watch) {
            let me = self.me.clone();
            let greeting = Greeting { me, answers: None, token: None, at_least: None };
            let counter = self.emit(address, None, None, &Frame::Greet(greeting));
            self.seeds.knocked(counter, address);
        }
        let members: BTreeSet<&str> = self.watch.nodes().map(|(id, _)| id.addr()).collect();
        let seeds = self.seeds.names();
        self.names.retain(|name| {
            name == self.me.addr()
                || members.contains(name)
                || seeds.iter().any(|seed| seed == name)
        });
    }

    /// Comes back in a later generation: at once, or when the pause since the last time is over.
    /// Two processes that claim to be one node would otherwise drive each other without end.
    pub(super) fn renew(&mut self, generation: u64, now: Instant) {
        let is_early = self.clockwork.renewed.is_some_and(|at| now < at + self.interval);
        if is_early || self.is_leaving {
            self.clockwork.awaited = self.clockwork.awaited.max(Some(generation));
            return;
        }
        if generation <= self.me.generation {
            return;
        }
        tracing::info!("others know this node as gone; it comes back in a new generation");
        self.clockwork.renewed = Some(now);
        self.me = self.me.in_generation(generation);
        if let Err(error) = self.foca.change_identity(self.me.clone(), &mut self.runtime) {
            tracing::debug!(%error, "foca could not change the identity");
        }
        self.pump(now);
        let nodes = self.watch.nodes().filter(|(_, state)| *state != State::Left);
        let nodes: Vec<_> = nodes.map(|(id, _)| id.node).collect();
        for node in nodes {
            self.greet(node, now);
        }
    }
}
