//! The machines, the network between them, and time: one event after another.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::sync::Arc;

use aegiskv::entry::{ShardId, Timestamp};
use aegiskv::replica::{Replica, Work};
use aegiskv::shard::{Answer, Envelope, Placement, Staged};
use aegiskv::topology::{Configuration, Seat};
use aegiskv::wal::{self, Mode};

use crate::clients::{Client, Operation, Reply};
use crate::dice::Dice;
use crate::machine::{Machine, Process};
use crate::oracle::{Copy, Oracle, Sight};
use crate::plan::{Fault, MACHINES, Plan};
use crate::witness::Witness;

/// After so long without everything being well, something waits for ever.
const CALM_MAX: u64 = 30_000_000;

/// How a complaint begins when something waits for ever.
pub(crate) const NO_END: &str = "does not end";

/// How often it is looked whether everything is well.
const CALM_PACE: u64 = 40_000;

/// Something that comes to pass.
#[derive(Debug)]
pub(crate) enum Event {
    Deliver(Envelope),
    Ask {
        to: usize,
        asker: usize,
        operation: usize,
        attempt: u32,
    },
    Reply {
        asker: usize,
        operation: usize,
        attempt: u32,
        reply: Reply,
    },
    /// A coordinator's time to wait for an answer is over.
    AskIsLate {
        operation: usize,
        attempt: u32,
    },
    /// A primary's time to come by an answer is over.
    GiveUp {
        machine: usize,
        run: u64,
        operation: usize,
        attempt: u32,
    },
    Pursue {
        operation: usize,
        attempt: u32,
    },
    Think(usize),
    Tick {
        machine: usize,
        run: u64,
    },
    Settle {
        machine: usize,
        run: u64,
        work: u64,
    },
    Commit {
        machine: usize,
        run: u64,
    },
    Copied {
        machine: usize,
        run: u64,
        shard: ShardId,
        staged: Box<Staged>,
    },
    EndSnapshot {
        machine: usize,
        run: u64,
    },
    News {
        machine: usize,
        shard: ShardId,
        configuration: Arc<Configuration>,
    },
    Decide,
    Misfortune,
    Start(usize),
    Calm,
    IsAllWell,
}

#[derive(Debug)]
struct Due {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What a history came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The same for the same seed, whatever the machine.
    pub(crate) trace: u64,
    pub(crate) events: u64,
    pub(crate) unclean: bool,
    pub(crate) complaint: Option<String>,
    /// How often what happened.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) dice: Dice,
    pub(crate) plan: Plan,
    queue: BinaryHeap<Reverse<Due>>,
    number: u64,
    events: u64,
    trace: u64,
    pub(crate) machines: Vec<Machine>,
    /// Until when nothing gets from one machine to another.
    pub(crate) cut_until: [[u64; MACHINES]; MACHINES],
    pub(crate) oracle: Oracle,
    pub(crate) witness: Witness,
    pub(crate) placement: Placement,
    pub(crate) clients: Vec<Client>,
    pub(crate) operations: Vec<Operation>,
    /// Every version that a key was given, by number of the key.
    pub(crate) written: HashSet<(usize, u64)>,
    pub(crate) calm: bool,
    pub(crate) ends_at: u64,
    finishing: bool,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) talks: bool,
}

/// What a copy holds, for those who read along.
fn contents(process: &Process, shard: u16) -> String {
    let mut entries = Vec::new();
    process.replica.scan(ShardId(shard), 0, 100, Timestamp(0), |view| {
        let value = String::from_utf8_lossy(view.entry.value_bytes()).into_owned();
        entries.push(format!("{:?}={value} at {}", view.to_key(), view.version));
        std::ops::ControlFlow::Continue(())
    });
    entries.join(", ")
}

impl World {
    pub(crate) fn new(seed: u64, change: impl FnOnce(&mut Plan)) -> Self {
        let mut dice = Dice::new(seed);
        let mut plan = Plan::draw(&mut dice);
        change(&mut plan);
        let shards = plan.setup.shards;
        let mut oracle = Oracle::new(MACHINES, shards, plan.moods, plan.breaks);
        let machines: Vec<Machine> = (0..MACHINES)
            .map(|i| {
                let node = aegiskv::topology::NodeId(i as u64 + 1);
                Machine::new(Seat { node, life: 1 }, plan.modes[i], dice.number())
            })
            .collect();
        for shard in 0..shards {
            let voters = machines[..plan.voters].iter().map(|machine| machine.seat).collect();
            oracle.starts_with(voters, ShardId(shard));
        }
        let clients = (0..plan.clients).map(|_| Client::new(plan.operations_each)).collect();
        let mut world = Self {
            now: 1,
            dice,
            queue: BinaryHeap::new(),
            number: 0,
            events: 0,
            trace: seed,
            machines,
            cut_until: Default::default(),
            oracle,
            witness: Witness::default(),
            placement: Placement::new(7, shards),
            clients,
            operations: Vec::new(),
            written: HashSet::new(),
            calm: false,
            ends_at: u64::MAX,
            finishing: false,
            counts: BTreeMap::new(),
            talks: std::env::var_os("AEGIS_TRACE").is_some(),
            plan,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for machine in 0..MACHINES {
            self.machines[machine].clock_millis =
                self.dice.offset(-self.plan.skew_max..=self.plan.skew_max);
            self.start(machine);
        }
        for client in 0..self.clients.len() {
            let after = self.dice.within(0..=self.plan.think_max);
            self.after(after, Event::Think(client));
        }
        self.after(self.plan.oracle_pace, Event::Decide);
        self.after(self.plan.fault_pace, Event::Misfortune);
        self.after(self.plan.calm_at, Event::Calm);
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Outcome {
        while self.witness.complaint.is_none() && self.now < self.ends_at {
            let Some(Reverse(Due { at, event, .. })) = self.queue.pop() else { break };
            self.now = at;
            self.events += 1;
            self.happen(event);
        }
        if self.witness.complaint.is_none() && self.ends_at == u64::MAX {
            self.witness.complain("nothing happens any more".to_owned());
        }
        if self.witness.complaint.is_none() {
            self.check_histories();
        }
        Outcome {
            trace: self.trace,
            events: self.events,
            unclean: !self.oracle.unclean.is_empty(),
            complaint: self.witness.complaint.map(|complaint| complaint.0),
            counts: self.counts,
        }
    }

    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.number += 1;
        let at = self.now + delay;
        self.queue.push(Reverse(Due { at, number: self.number, event }));
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.talks {
            eprintln!("{:>9} {}", self.now, what());
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn note(&mut self, number: u64) {
        self.trace = (self.trace ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    fn happen(&mut self, event: Event) {
        let at_machine = match &event {
            Event::Deliver(envelope) => Some(self.oracle.hosts[envelope.to.node.0 as usize]),
            Event::Ask { to, .. } => Some(*to),
            Event::Reply { asker, .. } => Some(*asker),
            Event::GiveUp { machine, .. }
            | Event::Tick { machine, .. }
            | Event::Settle { machine, .. }
            | Event::Commit { machine, .. }
            | Event::Copied { machine, .. }
            | Event::EndSnapshot { machine, .. }
            | Event::News { machine, .. } => Some(*machine),
            Event::AskIsLate { operation, .. } | Event::Pursue { operation, .. } => {
                Some(self.operations[*operation].coordinator)
            }
            _ => None,
        };
        if let Some(machine) = at_machine
            && self.machines[machine].paused_until > self.now
        {
            // A machine that stands still finds it all when it goes on.
            let wait = self.machines[machine].paused_until - self.now;
            let delay = wait + self.dice.within(0..=2_000);
            return self.after(delay, event);
        }
        self.note(self.now);
        match event {
            Event::Deliver(envelope) => self.deliver(envelope),
            Event::Ask { to, asker, operation, attempt } => {
                self.on_ask(to, asker, operation, attempt);
            }
            Event::Reply { operation, attempt, reply, .. } => {
                self.on_reply(operation, attempt, reply);
            }
            Event::AskIsLate { operation, attempt } => {
                self.on_reply(operation, attempt, Reply::Heard(aegiskv::coordinator::Heard::Lost));
            }
            Event::GiveUp { machine, run, operation, attempt } => {
                self.give_up(machine, run, operation, attempt);
            }
            Event::Pursue { operation, attempt } => self.pursue_again(operation, attempt),
            Event::Think(client) => self.think(client),
            Event::Tick { machine, run } => self.tick(machine, run),
            Event::Settle { machine, run, work } => self.settle(machine, run, work),
            Event::Commit { machine, run } => self.commit(machine, run),
            Event::Copied { machine, run, shard, staged } => {
                self.copied(machine, run, shard, *staged);
            }
            Event::EndSnapshot { machine, run } => self.end_snapshot(machine, run),
            Event::News { machine, shard, configuration } => {
                self.news(machine, shard, configuration);
            }
            Event::Decide => self.decide(),
            Event::Misfortune => self.misfortune(),
            Event::Start(machine) => self.start(machine),
            Event::Calm => self.calm_down(),
            Event::IsAllWell => self.is_all_well(),
        }
    }

    /// The process of a machine, if it is up in that run.
    pub(crate) fn process(&mut self, machine: usize, run: u64) -> Option<&mut Process> {
        let machine = &mut self.machines[machine];
        if machine.run == run { machine.process.as_mut() } else { None }
    }

    pub(crate) fn clock(&self, machine: usize) -> Timestamp {
        self.machines[machine].clock(self.now)
    }

    // ----- A replica acts. -----

    /// Lets a replica do something, and carries out what comes of it. Answers the work that is not
    /// settled yet; `Err` if the log has failed, and the process with it.
    pub(crate) fn act<T>(
        &mut self,
        machine: usize,
        act: impl FnOnce(&Replica, Timestamp, &mut Work) -> Result<T, wal::Error>,
    ) -> Result<(T, Option<u64>), ()> {
        let now = self.clock(machine);
        let Some(process) = &self.machines[machine].process else { return Err(()) };
        let mut work = Work::default();
        match act(&process.replica, now, &mut work) {
            Ok(value) => {
                let unsettled = self.carry_out(machine, work);
                self.look_at(machine);
                Ok((value, unsettled))
            }
            Err(_) => {
                self.stop(machine);
                Err(())
            }
        }
    }

    /// Sends what is to be sent at once, and leaves the rest until the log is settled.
    fn carry_out(&mut self, machine: usize, mut work: Work) -> Option<u64> {
        for envelope in work.messages.drain(..) {
            self.send(machine, envelope);
        }
        let run = self.machines[machine].run;
        for (shard, staged) in work.copied.drain(..) {
            let delay = self.dice.within(0..=10_000);
            self.after(delay, Event::Copied { machine, run, shard, staged });
        }
        if work.is_settled() {
            return None;
        }
        let process = self.machines[machine].process.as_mut()?;
        let number = process.next_work;
        process.next_work += 1;
        process.unsettled.push((number, work));
        self.schedule_settling(machine, number);
        Some(number)
    }

    fn schedule_settling(&mut self, machine: usize, work: u64) {
        let run = self.machines[machine].run;
        match self.machines[machine].mode {
            Mode::Off | Mode::Async => {
                let delay = if self.dice.chance(700) { 0 } else { self.dice.within(0..=2_000) };
                self.after(delay, Event::Settle { machine, run, work });
            }
            Mode::Sync => {
                let delay = self.dice.within(100..=6_000);
                let Some(process) = self.process(machine, run) else { return };
                if !std::mem::replace(&mut process.commit_is_due, true) {
                    self.after(delay, Event::Commit { machine, run });
                }
            }
        }
    }

    fn settle(&mut self, machine: usize, run: u64, number: u64) {
        let now = self.clock(machine);
        let Some(process) = self.process(machine, run) else { return };
        let Some(at) = process.unsettled.iter().position(|(n, _)| *n == number) else { return };
        let (_, mut work) = process.unsettled.remove(at);
        let settled = match process.replica.wal().mode() {
            // The committer has been stepped: it is durable.
            Mode::Sync => Ok(()),
            _ => process.replica.wal().settle_blocking(Replica::to_settle(&work)),
        };
        let settled = settled.and_then(|()| process.replica.after_settling(now, &mut work));
        if settled.is_err() {
            return self.stop(machine);
        }
        let unsettled = self.carry_out(machine, work);
        if let Some(process) = self.process(machine, run) {
            for waiting in &mut process.waits {
                if waiting.work == Some(number) {
                    waiting.work = unsettled;
                }
            }
        }
        self.look_at(machine);
    }

    fn commit(&mut self, machine: usize, run: u64) {
        let Some(process) = self.process(machine, run) else { return };
        process.commit_is_due = false;
        if process.committer.step().is_err() {
            return self.stop(machine);
        }
        let durable = process.replica.wal().durable_lsn();
        let mut settled: Vec<u64> = process
            .unsettled
            .iter()
            .filter(|(_, work)| Replica::to_settle(work) <= durable)
            .map(|(number, _)| *number)
            .collect();
        // Whoever waited is woken in any order.
        self.dice.shuffle(&mut settled);
        for number in settled {
            self.settle(machine, run, number);
        }
        let Some(process) = self.process(machine, run) else { return };
        if !process.unsettled.is_empty() && !std::mem::replace(&mut process.commit_is_due, true) {
            self.after(1_000, Event::Commit { machine, run });
        }
    }

    /// A process that has stood still sees that it did, before it shows a copy to anybody.
    pub(crate) fn notice_absence(&mut self, machine: usize) {
        let Some(since) = self.machines[machine].away_since.take() else { return };
        let since = self.machines[machine].clock(since);
        self.witness.wakes(machine);
        let _ = self.act(machine, |replica, now, work| replica.was_away((since, now), work));
    }

    fn tick(&mut self, machine: usize, run: u64) {
        if self.process(machine, run).is_none() {
            return;
        }
        // What waited for it in the network may well have come before.
        if self.dice.chance(500) {
            self.notice_absence(machine);
        }
        let _ = self.act(machine, |replica, now, work| replica.tick(now, work));
        // In mode async the log is synced now and then.
        if self.machines[machine].mode == Mode::Async && self.dice.chance(100) {
            let failed = self.process(machine, run).is_some_and(|p| p.committer.step().is_err());
            if failed {
                self.stop(machine);
            }
        }
        self.after(self.plan.tick, Event::Tick { machine, run });
    }

    fn copied(&mut self, machine: usize, run: u64, shard: ShardId, staged: Staged) {
        let now = self.clock(machine);
        let disk = self.machines[machine].disk.clone();
        let Some(process) = self.process(machine, run) else { return };
        let work = process.finish_copy(&disk, (shard, staged), now);
        self.carry_out_or_stop(machine, work);
    }

    fn end_snapshot(&mut self, machine: usize, run: u64) {
        let now = self.clock(machine);
        let disk = self.machines[machine].disk.clone();
        let Some(process) = self.process(machine, run) else { return };
        let work = process.take_snapshot(&disk, now);
        self.carry_out_or_stop(machine, work);
    }

    fn carry_out_or_stop(&mut self, machine: usize, work: Result<Work, ()>) {
        match work {
            Ok(work) => {
                self.carry_out(machine, work);
                self.look_at(machine);
            }
            Err(()) => self.stop(machine),
        }
    }

    /// Looks at what a machine's copies hold now, and at who is to be answered there.
    fn look_at(&mut self, machine: usize) {
        for shard in 0..self.plan.setup.shards {
            let Some(process) = &self.machines[machine].process else { return };
            let status = process.replica.status_of(ShardId(shard));
            self.say(|| format!("machine {machine} now: {status:?} {}", contents(process, shard)));
            self.note(status.position.seq << 32 | u64::from(status.position.epoch));
            self.note(status.content_hash);
            self.witness.sees_copy(machine, &status);
        }
        self.answer_waiting(machine);
    }

    pub(crate) fn answer_waiting(&mut self, machine: usize) {
        let Some(process) = &mut self.machines[machine].process else { return };
        let mut replies = Vec::new();
        process.waits.retain_mut(|waiting| {
            let answer = waiting.wait.as_mut().and_then(aegiskv::replica::Wait::try_answer);
            let reply = match answer {
                Some(Answer::Deposed) => Some(Reply::Heard(aegiskv::coordinator::Heard::Deposed)),
                Some(Answer::Done(_)) => {
                    waiting.wait = None;
                    None
                }
                None => None,
            };
            let over = waiting.wait.is_none() && waiting.work.is_none();
            let reply = reply.or_else(|| over.then_some(Reply::Found(waiting.result)));
            if let Some(reply) = reply {
                replies.push((waiting.asker, waiting.operation, waiting.attempt, reply));
                return false;
            }
            true
        });
        for (asker, operation, attempt, reply) in replies {
            self.send_reply(machine, asker, operation, attempt, reply);
        }
    }

    // ----- The network. -----

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        from != to && self.cut_until[from][to] > self.now
    }

    pub(crate) fn delay(&mut self) -> u64 {
        let delay = self.dice.within(100..=self.plan.delay_max);
        if self.dice.chance(self.plan.late) { delay + self.dice.within(0..=300_000) } else { delay }
    }

    fn send(&mut self, from: usize, envelope: Envelope) {
        self.witness.sees_message(&envelope);
        self.count(crate::witness::name_of(&envelope.message));
        let to = self.oracle.hosts[envelope.to.node.0 as usize];
        if self.is_cut(from, to) || self.dice.chance(self.plan.lost) {
            return;
        }
        if self.dice.chance(self.plan.doubled) {
            let delay = self.delay();
            self.after(delay, Event::Deliver(envelope.clone()));
        }
        let delay = self.delay();
        self.after(delay, Event::Deliver(envelope));
    }

    fn deliver(&mut self, envelope: Envelope) {
        let machine = self.oracle.hosts[envelope.to.node.0 as usize];
        let Some(process) = &mut self.machines[machine].process else { return };
        self.talks.then(|| {
            eprintln!("{:>9} {} -> {machine}: {envelope:?}", self.now, envelope.from.node);
        });
        if let Some(held) = &mut process.during_snapshot {
            held.push_back(envelope);
            return;
        }
        let _ = self.act(machine, |replica, now, work| replica.receive(envelope, now, work));
    }

    // ----- Topology. -----

    fn decide(&mut self) {
        let sights = self.sights();
        for shard in (0..self.plan.setup.shards).map(ShardId) {
            let primary = self.oracle.configuration(shard).primary;
            let host = self.oracle.hosts[primary.node.0 as usize];
            let active = self.machines[host]
                .process
                .as_ref()
                .is_some_and(|p| p.replica.me() == primary && p.replica.is_active(shard));
            self.oracle.counts(shard, active);
            let unclean = self.oracle.unclean.len();
            if self.oracle.decide(shard, &sights, &mut self.dice) {
                if self.oracle.unclean.len() > unclean {
                    let epoch = self.oracle.configuration(shard).epoch;
                    self.witness.declared_unclean(shard, epoch);
                }
                self.announce(shard);
            }
        }
        let (machine, shard) =
            (self.dice.below(MACHINES), self.dice.below(usize::from(self.plan.setup.shards)));
        self.tell(machine, ShardId(shard as u16));
        self.after(self.plan.oracle_pace, Event::Decide);
    }

    fn announce(&mut self, shard: ShardId) {
        self.say(|| format!("shard {}: {:?}", shard.0, self.oracle.configuration(shard)));
        for machine in 0..MACHINES {
            self.tell(machine, shard);
            if self.dice.chance(self.plan.doubled) {
                self.tell(machine, shard);
            }
        }
    }

    fn tell(&mut self, machine: usize, shard: ShardId) {
        let configuration = self.oracle.configuration(shard).clone();
        let mut delay = self.dice.within(0..=20_000);
        if !self.calm && self.dice.chance(100) {
            delay += self.dice.within(0..=300_000);
        }
        self.after(delay, Event::News { machine, shard, configuration });
    }

    fn news(&mut self, machine: usize, shard: ShardId, configuration: Arc<Configuration>) {
        // Whoever hears of nobody does not hear of decisions either.
        let others = (0..MACHINES).filter(|other| *other != machine);
        let heard_from = others.map(|other| self.cut_until[other][machine]).min().unwrap_or(0);
        if heard_from > self.now {
            let delay = heard_from - self.now + self.dice.within(0..=20_000);
            return self.after(delay, Event::News { machine, shard, configuration });
        }
        let Some(process) = &mut self.machines[machine].process else { return };
        let known = &mut process.known[usize::from(shard.0)];
        let newer = known.as_ref().is_none_or(|known| known.epoch < configuration.epoch);
        if newer {
            *known = Some(configuration.clone());
        }
        let took = self
            .act(machine, |replica, now, work| replica.configure(shard, configuration, now, work));
        if took.is_ok() && newer {
            self.primary_is_named(machine, shard);
        }
    }

    /// What the oracle is told of the machines: late for those that stand still.
    fn sights(&mut self) -> Vec<Sight> {
        let mut sights = Vec::with_capacity(MACHINES);
        for i in 0..MACHINES {
            let isolated = (0..MACHINES).filter(|to| self.is_cut(i, *to)).count() >= MACHINES - 1;
            let seems_well =
                (self.machines[i].paused_until <= self.now && !isolated) || self.dice.chance(300);
            let machine = &self.machines[i];
            let process = machine.process.as_ref().filter(|_| seems_well);
            let shards = (0..self.plan.setup.shards).map(ShardId);
            let copies = shards.map(|shard| {
                let status = process?.replica.status_of(shard);
                Some(Copy {
                    epoch: status.epoch,
                    part: status.part,
                    position: status.position,
                    vouches: status.vouches,
                    committed: status.committed,
                    acknowledged: status.acknowledged,
                })
            });
            let copies = copies.collect();
            sights.push(Sight { seat: machine.seat, up: process.is_some(), copies });
        }
        sights
    }

    // ----- Coming and going. -----

    pub(crate) fn start(&mut self, machine: usize) {
        if self.machines[machine].process.is_some() || self.machines[machine].starts_at > self.now {
            return;
        }
        if self.machines[machine].start(&self.plan.setup, &mut self.dice).is_err() {
            // The disk refuses; without its faults it will not.
            self.machines[machine].kill();
            return self.after(50_000, Event::Start(machine));
        }
        self.witness.begins(machine);
        let seat = self.machines[machine].seat;
        self.say(|| format!("machine {machine} is up as {seat:?}"));
        self.oracle.enters(machine, seat);
        let run = self.machines[machine].run;
        let delay = self.dice.within(0..=self.plan.tick);
        self.after(delay, Event::Tick { machine, run });
        (0..self.plan.setup.shards).for_each(|shard| self.tell(machine, ShardId(shard)));
        self.look_at(machine);
    }

    /// The process has failed, or is killed: it comes back after a while.
    pub(crate) fn stop(&mut self, machine: usize) {
        self.say(|| format!("machine {machine}: the process ends"));
        self.machines[machine].kill();
        self.goes_down(machine);
    }

    pub(crate) fn goes_down(&mut self, machine: usize) {
        let delay = if self.calm { 1_000 } else { self.dice.within(1_000..=250_000) };
        self.machines[machine].starts_at = self.now + delay;
        self.after(delay, Event::Start(machine));
        self.coordinator_is_gone(machine);
    }

    fn calm_down(&mut self) {
        self.say(|| "calm".to_owned());
        self.calm = true;
        self.oracle.calm = true;
        self.cut_until = Default::default();
        (self.plan.lost, self.plan.doubled, self.plan.late) = (0, 0, 0);
        for i in 0..MACHINES {
            let now = self.now;
            let machine = &mut self.machines[i];
            machine.paused_until = machine.paused_until.min(now);
            machine.starts_at = now;
            if machine.process.is_none() {
                // Ends what its disk still has in store.
                machine.disk.kill();
            }
            if machine.process.is_some() {
                // Whatever the disk still has in store ends with the process.
                let broken = self.plan.faults.contains(&Fault::BreakDisk);
                if broken && machine.mode != Mode::Off {
                    self.stop(i);
                }
            } else {
                self.after(1_000, Event::Start(i));
            }
        }
        self.after(CALM_PACE, Event::IsAllWell);
    }

    fn is_all_well(&mut self) {
        let trouble = self.trouble();
        let late = self.now > self.plan.calm_at + CALM_MAX;
        match trouble {
            Some(trouble) if late => self.witness.complain(format!("{NO_END}: {trouble}")),
            Some(_) => self.after(CALM_PACE, Event::IsAllWell),
            None if self.finishing => self.ends_at = self.now,
            None => {
                self.finishing = true;
                self.read_all();
                self.after(CALM_PACE, Event::IsAllWell);
            }
        }
    }

    /// What is not as it should be in the end.
    fn trouble(&self) -> Option<String> {
        if let Some(i) = self.operations.iter().position(|operation| !operation.is_over()) {
            return Some(format!("operation {i} is not over: {:?}", self.operations[i]));
        }
        for (i, machine) in self.machines.iter().enumerate() {
            let Some(process) = &machine.process else { return Some(format!("{i} is down")) };
            if !process.waits.is_empty() || !process.unsettled.is_empty() {
                return Some(format!("somebody waits at {i}: {:?}", process.waits));
            }
        }
        (0..self.plan.setup.shards).find_map(|shard| self.trouble_of(ShardId(shard)))
    }

    fn trouble_of(&self, shard: ShardId) -> Option<String> {
        let configuration = self.oracle.configuration(shard);
        let host = |seat: Seat| {
            let machine = &self.machines[self.oracle.hosts[seat.node.0 as usize]];
            let process = machine.process.as_ref().filter(|p| p.replica.me() == seat)?;
            Some(process.replica.status_of(shard))
        };
        let Some(primary) = host(configuration.primary) else {
            return Some("the primary is not there".to_owned());
        };
        if primary.part != aegiskv::shard::Part::Active
            || primary.epoch != configuration.epoch
            || primary.committed != primary.position.seq
        {
            return Some(format!("the primary is not ready: {primary:?} in {configuration:?}"));
        }
        if configuration.is_joint() || configuration.voters.len() < 3 {
            return Some(format!("voters are missing: {configuration:?}"));
        }
        for machine in &self.machines {
            let process = machine.process.as_ref()?;
            let has_seat = configuration.seat_of(machine.seat.node).is_some();
            if !has_seat && process.replica.status_of(shard).position.seq > 0 {
                return Some(format!("{:?} keeps what it has no seat for", machine.seat));
            }
        }
        for seat in configuration.seats() {
            let Some(copy) = host(seat) else { return Some(format!("{seat:?} is not there")) };
            let equal =
                (copy.position, copy.content_hash) == (primary.position, primary.content_hash);
            if !equal || !copy.vouches {
                return Some(format!("{seat:?} is not level: {copy:?}, {primary:?}"));
            }
        }
        None
    }
}
