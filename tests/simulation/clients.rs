//! Clients, and the coordinators that pursue their operations on whichever node they ask.

use std::time::Duration;

use bytes::Bytes;

use aegiskv::coordinator::{Heard, Pursuit, Step};
use aegiskv::entry::{Key, RequestId, ShardId, Version};
use aegiskv::replica::{Refusal, Replica, Work};
use aegiskv::shard::{Need, Operation as Write, Refused, Request, Ttl};
use aegiskv::store::Lookup;
use aegiskv::topology::{Copies, Seat};
use aegiskv::wal;

use crate::history::{Asked, Only, Told, is_linearizable};
use crate::machine::{Found, Waiting};
use crate::plan::{Fault, MACHINES};
use crate::world::{Event, NO_END, World};

/// How long the last reads may take.
const LAST_PATIENCE: u64 = 20_000_000;

#[derive(Debug)]
pub(crate) struct Client {
    left: usize,
    /// The last version it saw of each key.
    seen: Vec<Option<Version>>,
    /// The last write to each key that it was told is safe.
    wrote: Vec<Option<(Version, RequestId)>>,
}

impl Client {
    pub(crate) fn new(left: usize) -> Self {
        Self { left, seen: vec![None; 8], wrote: vec![None; 8] }
    }
}

/// What a coordinator hears of what it asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    Found(Found),
    Refused,
    Heard(Heard),
}

/// A client's operation on its way.
#[derive(Debug)]
pub(crate) struct Operation {
    client: Option<usize>,
    key: usize,
    asked: Asked,
    /// `None` for a read.
    request: Option<Request>,
    need: Option<Need>,
    pub(crate) coordinator: usize,
    run: u64,
    pursuit: Pursuit,
    /// Which question is open.
    attempt: u32,
    /// Whom it was put to, if to another node.
    asks: Option<Seat>,
    pauses: bool,
    unsure: bool,
    retries_left: u32,
    from: u64,
    to: u64,
    told: Told,
    over: bool,
    may_be_lost: bool,
}

impl Operation {
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    fn is_keyed(&self) -> bool {
        matches!(self.request, Some(Request { id: RequestId::Keyed { .. }, .. }))
    }
}

pub(crate) fn key(number: usize) -> Key {
    Key::new(format!("key{number}").into_bytes(), 64).expect("short")
}

impl World {
    pub(crate) fn think(&mut self, client: usize) {
        if self.calm || self.clients[client].left == 0 {
            return;
        }
        let Some(coordinator) = self.some_machine() else {
            return self.after(20_000, Event::Think(client));
        };
        let key = self.dice.below(self.plan.keys);
        if self.dice.chance(150) {
            self.peek(client, coordinator, key);
            let pause = self.dice.within(0..=self.plan.think_max);
            return self.after(pause, Event::Think(client));
        }
        self.clients[client].left -= 1;
        let operation = self.draw(client, coordinator, key);
        self.operations.push(operation);
        self.begin_operation(self.operations.len() - 1);
    }

    fn some_machine(&mut self) -> Option<usize> {
        let up: Vec<usize> = (0..MACHINES)
            .filter(|i| {
                let machine = &self.machines[*i];
                machine.process.is_some() && machine.paused_until <= self.now
            })
            .collect();
        self.dice.pick(&up)
    }

    /// A read of whatever the nearest copy has.
    fn peek(&mut self, client: usize, machine: usize, number: usize) {
        self.notice_absence(machine);
        let now = self.clock(machine);
        let wrote = self.clients[client].wrote[number].filter(|_| self.dice.chance(500));
        let min = wrote.map(|(version, _)| version);
        let Some(process) = &self.machines[machine].process else { return };
        let Some(seen) = process.replica.get(key(number).as_bytes(), min, now) else { return };
        if let Some((version, id)) = wrote.filter(|_| seen.holds) {
            let shard = self.placement.shard_of(key(number).as_bytes());
            let old = seen.lookup.clone().found().is_some_and(|found| found.version < version);
            if old || self.witness.lacks_write(shard, seen.position, (version, id)) {
                self.witness.complain(format!(
                    "machine {machine} at {:?} says it holds key {number} as of {version}",
                    seen.position
                ));
            }
        }
        if seen.level {
            let shard = self.placement.shard_of(key(number).as_bytes());
            if self.witness.is_shown(machine, shard, seen.position) {
                self.count("look at a copy that was away");
            }
        }
        let Lookup::Hit(found) = seen.lookup else { return };
        if !self.written.contains(&(number, found.version.0)) {
            let version = found.version;
            self.witness.complain(format!("key {number} shows {version}, which nobody wrote"));
        }
        self.clients[client].seen[number] = Some(found.version);
    }

    fn draw(&mut self, client: usize, coordinator: usize, number: usize) -> Operation {
        let value = 1000 * (self.operations.len() as i64 + 1);
        let condition = match self.clients[client].seen[number] {
            Some(version) if self.dice.chance(600) => Only::Is(version),
            _ if self.dice.chance(500) => Only::Absent,
            _ => Only::Present,
        };
        let always = Only::Always;
        let asked = match self.dice.below(100) {
            0..22 => Asked::Put { value, condition: always },
            22..42 => Asked::Put { value, condition },
            42..49 => Asked::Delete { condition: always },
            49..52 => Asked::Delete { condition },
            52..75 => Asked::Incr { by: 1 },
            75..80 => Asked::Touch,
            _ => Asked::Get,
        };
        let plain = matches!(
            asked,
            Asked::Put { condition: Only::Always, .. } | Asked::Delete { condition: Only::Always }
        );
        let copies = match self.dice.below(100) {
            0..78 => Copies::Majority,
            78..86 => Copies::Count(1),
            86..92 => Copies::Count(2),
            92..95 => Copies::Count(0),
            _ => Copies::All,
        };
        let committed = !plain || self.dice.chance(200);
        let need = (committed || copies != Copies::Count(0)).then_some(Need { copies, committed });
        let may_be_lost = !committed && matches!(copies, Copies::Count(_));
        let shard = self.placement.shard_of(key(number).as_bytes());
        let request = self.request(asked, number, (coordinator, shard));
        self.operation(Some(client), number, (asked, request), need, coordinator, may_be_lost)
    }

    fn operation(
        &self,
        client: Option<usize>,
        key: usize,
        (asked, request): (Asked, Option<Request>),
        need: Option<Need>,
        coordinator: usize,
        may_be_lost: bool,
    ) -> Operation {
        let patience = if client.is_some() { self.plan.patience } else { LAST_PATIENCE };
        let now = Duration::from_micros(self.now);
        Operation {
            client,
            key,
            asked,
            request,
            need,
            coordinator,
            run: self.machines[coordinator].run,
            pursuit: Pursuit::new(now, Duration::from_micros(patience)),
            attempt: 0,
            asks: None,
            pauses: false,
            unsure: false,
            retries_left: 2,
            from: self.now,
            to: 0,
            told: Told::Unknown,
            over: false,
            may_be_lost,
        }
    }

    fn request(
        &mut self,
        asked: Asked,
        number: usize,
        (coordinator, shard): (usize, ShardId),
    ) -> Option<Request> {
        let expires = self.expires(number);
        let span = Duration::from_millis(self.dice.within(10..=300));
        let ttl = if expires { Ttl::For(span) } else { Ttl::Unlimited };
        let (operation, condition) = match asked {
            Asked::Put { value, condition } => {
                let value = Bytes::from("0".repeat(self.plan.zeros) + &value.to_string());
                (Write::Put { value, content_type: Bytes::new(), ttl }, condition)
            }
            Asked::Delete { condition } => (Write::Delete, condition),
            Asked::Incr { by } => (Write::Incr { by, ttl: expires.then_some(span) }, Only::Always),
            Asked::Touch => {
                let ttl = if self.dice.chance(300) { Ttl::Keep } else { ttl };
                (Write::Touch { ttl }, Only::Always)
            }
            Asked::Get => return None,
        };
        let id = if self.dice.chance(250) {
            RequestId::Keyed { key: u128::from(self.dice.number()), request: 1 }
        } else {
            let machine = &mut self.machines[coordinator];
            let incarnation = (coordinator as u64) << 32 | machine.run;
            let process = machine.process.as_mut().expect("a coordinator is up");
            process.tickets[usize::from(shard.0)].take(incarnation)
        };
        Some(Request { key: key(number), operation, condition: condition.into(), id })
    }

    fn expires(&self, number: usize) -> bool {
        self.plan.expires && number + 1 == self.plan.keys
    }

    /// In the end every key is read once more.
    pub(crate) fn read_all(&mut self) {
        for number in 0..self.plan.keys {
            let coordinator = self.dice.below(MACHINES);
            let what = (Asked::Get, None);
            let operation = self.operation(None, number, what, None, coordinator, false);
            self.operations.push(operation);
            self.begin_operation(self.operations.len() - 1);
        }
    }

    // ----- A coordinator pursues an operation. -----

    /// First it looks whether its own node leads.
    fn begin_operation(&mut self, operation: usize) {
        let coordinator = self.operations[operation].coordinator;
        self.say(|| format!("operation {operation} begins: {:?}", self.operations[operation]));
        let attempt = self.operations[operation].attempt;
        self.on_ask(coordinator, coordinator, operation, attempt);
    }

    fn shard_of(&self, operation: usize) -> ShardId {
        self.placement.shard_of(key(self.operations[operation].key).as_bytes())
    }

    fn coordinates(&self, operation: usize) -> bool {
        let operation = &self.operations[operation];
        let machine = &self.machines[operation.coordinator];
        !operation.over && machine.process.is_some() && machine.run == operation.run
    }

    pub(crate) fn pursue_again(&mut self, operation: usize, attempt: u32) {
        if self.operations[operation].attempt == attempt && self.coordinates(operation) {
            self.pursue(operation);
        }
    }

    fn pursue(&mut self, number: usize) {
        let shard = usize::from(self.shard_of(number).0);
        let now = Duration::from_micros(self.now);
        let operation = &mut self.operations[number];
        operation.attempt += 1;
        operation.asks = None;
        operation.pauses = false;
        let (attempt, coordinator) = (operation.attempt, operation.coordinator);
        let process = self.machines[coordinator].process.as_ref();
        let known = process.and_then(|process| process.known[shard].as_ref());
        let primary = known.map(|configuration| (configuration.epoch, configuration.primary));
        match operation.pursuit.next(primary, now) {
            Step::Ask(seat, left) => {
                operation.asks = Some(seat);
                self.send_ask(number, seat);
                let left = left.as_micros() as u64;
                self.after(left, Event::AskIsLate { operation: number, attempt });
            }
            Step::Pause(pause) => {
                operation.pauses = true;
                let pause = pause.as_micros() as u64;
                self.after(pause, Event::Pursue { operation: number, attempt });
            }
            Step::NotApplied => self.complete(number, Told::NotApplied),
            Step::Unknown => self.complete(number, Told::Unknown),
        }
    }

    /// A coordinator learns of another primary: whoever waits for the last one waits no more.
    pub(crate) fn primary_is_named(&mut self, machine: usize, shard: ShardId) {
        let process = self.machines[machine].process.as_ref();
        let Some(known) = process.and_then(|p| p.known[usize::from(shard.0)].clone()) else {
            return;
        };
        for number in 0..self.operations.len() {
            let operation = &self.operations[number];
            let mine = operation.coordinator == machine && self.coordinates(number);
            if !mine || self.shard_of(number) != shard {
                continue;
            }
            if operation.pauses {
                self.pursue(number);
            } else if operation.asks.is_some_and(|seat| seat != known.primary) {
                self.operations[number].pursuit.heard(Heard::Lost);
                self.pursue(number);
            }
        }
    }

    fn send_ask(&mut self, operation: usize, seat: Seat) {
        let asker = self.operations[operation].coordinator;
        let attempt = self.operations[operation].attempt;
        let to = self.oracle.hosts[seat.node.0 as usize];
        let mut delay = if to == asker { 0 } else { self.delay() };
        let lost = |heard| Event::Reply { asker, operation, attempt, reply: Reply::Heard(heard) };
        if self.machines[to].process.is_none() {
            return self.after(500, lost(Heard::NotSent));
        }
        if to != asker && (self.is_cut(asker, to) || self.dice.chance(self.plan.lost)) {
            if self.dice.chance(500) {
                delay += self.dice.within(0..=50_000);
                self.after(delay, lost(Heard::Lost));
            }
            return;
        }
        self.after(delay, Event::Ask { to, asker, operation, attempt });
    }

    pub(crate) fn send_reply(
        &mut self,
        from: usize,
        asker: usize,
        operation: usize,
        attempt: u32,
        reply: Reply,
    ) {
        let mut delay = if from == asker { 0 } else { self.delay() };
        let mut reply = reply;
        if from != asker && (self.is_cut(from, asker) || self.dice.chance(self.plan.lost)) {
            if self.dice.chance(500) {
                return;
            }
            delay += self.dice.within(0..=50_000);
            reply = Reply::Heard(Heard::Lost);
        }
        self.after(delay, Event::Reply { asker, operation, attempt, reply });
    }

    /// A node is asked.
    pub(crate) fn on_ask(&mut self, to: usize, asker: usize, operation: usize, attempt: u32) {
        let Operation { request, need, key: number, .. } = &self.operations[operation];
        let (request, need, name) = (request.clone(), *need, key(*number));
        let number = *number;
        let acted = self.act(to, |replica, now, work| {
            let ask = |replica: &Replica, work: &mut Work| match request {
                Some(request) => {
                    let (ordered, wait) = replica.write(request, need, now, work)?;
                    Ok((Found::Ordered(ordered), wait))
                }
                None => {
                    let (lookup, wait) = replica.get_linearizable(name.as_bytes(), now, work)?;
                    Ok((Found::Read(read(lookup)), Some(wait)))
                }
            };
            match ask(replica, work) {
                Err(Refusal::Wal(error)) => Err::<_, wal::Error>(error),
                other => Ok(other),
            }
        });
        let lost = Reply::Heard(Heard::Lost);
        match acted {
            Err(()) => self.send_reply(to, asker, operation, attempt, lost),
            Ok((Err(Refusal::Shard(Refused::NotActive)), _)) => {
                let reply = Reply::Heard(Heard::NotLeading);
                self.send_reply(to, asker, operation, attempt, reply);
            }
            Ok((Err(Refusal::Shard(_)), _)) => {
                self.send_reply(to, asker, operation, attempt, Reply::Refused);
            }
            Ok((Err(refusal), _)) => self.witness.complain(format!("refused: {refusal}")),
            Ok((Ok((result, wait)), work)) => {
                if let Found::Ordered(ordered) = result {
                    self.written.insert((number, ordered.version.0));
                }
                let run = self.machines[to].run;
                let process = self.machines[to].process.as_mut().expect("it has just acted");
                let waiting = Waiting { operation, attempt, asker, wait, work, result };
                process.waits.push(waiting);
                let patience = self.plan.patience;
                self.after(patience, Event::GiveUp { machine: to, run, operation, attempt });
                self.answer_waiting(to);
            }
        }
    }

    pub(crate) fn give_up(&mut self, machine: usize, run: u64, operation: usize, attempt: u32) {
        let Some(process) = self.process(machine, run) else { return };
        let mut askers = Vec::new();
        let replica = &process.replica;
        process.waits.retain(|waiting| {
            if waiting.operation != operation || waiting.attempt != attempt {
                return true;
            }
            if let Some(wait) = &waiting.wait {
                replica.forget(wait);
            }
            askers.push(waiting.asker);
            false
        });
        for asker in askers {
            let reply = Reply::Heard(Heard::Deposed);
            self.send_reply(machine, asker, operation, attempt, reply);
        }
    }

    pub(crate) fn on_reply(&mut self, number: usize, attempt: u32, reply: Reply) {
        if self.operations[number].attempt != attempt || !self.coordinates(number) {
            return;
        }
        let operation = &mut self.operations[number];
        match reply {
            Reply::Found(Found::Ordered(ordered)) => {
                self.complete(number, Told::Ordered(ordered.verdict, ordered.version));
            }
            Reply::Found(Found::Read(read)) => self.complete(number, Told::Read(read)),
            Reply::Refused => {
                let unsure = operation.pursuit.is_unsure();
                self.complete(number, if unsure { Told::Unknown } else { Told::NotApplied });
            }
            Reply::Heard(Heard::NotLeading) if operation.asks.is_none() => self.pursue(number),
            Reply::Heard(heard) => {
                operation.pursuit.heard(heard);
                self.pursue(number);
            }
        }
    }

    /// The coordinators on a machine are gone: their clients know nothing.
    pub(crate) fn coordinator_is_gone(&mut self, machine: usize) {
        for number in 0..self.operations.len() {
            let operation = &self.operations[number];
            if operation.coordinator == machine && !operation.over {
                self.complete(number, Told::Unknown);
            }
        }
    }

    fn complete(&mut self, number: usize, told: Told) {
        self.say(|| format!("operation {number} ends: {told:?}"));
        let shard = usize::from(self.shard_of(number).0);
        let operation = &mut self.operations[number];
        operation.attempt += 1;
        let unsure = told == Told::Unknown || operation.unsure && told == Told::NotApplied;
        operation.unsure |= unsure;
        let machine = &mut self.machines[operation.coordinator];
        let same_run = machine.run == operation.run;
        if let (Some(request), Some(process)) = (&operation.request, machine.process.as_mut())
            && same_run
        {
            process.tickets[shard].give_back(request.id);
        }
        if unsure && operation.is_keyed() && operation.retries_left > 0 && !self.calm {
            operation.retries_left -= 1;
            if let Some(coordinator) = self.some_machine() {
                return self.retry(number, coordinator);
            }
        }
        let operation = &mut self.operations[number];
        operation.told = if unsure { Told::Unknown } else { told };
        let what = match operation.told {
            Told::Unknown => "operation unknown",
            Told::NotApplied => "operation not applied",
            Told::Ordered(aegiskv::entry::Verdict::ConditionFailed(_), _) => "operation refused",
            Told::Ordered(..) => "operation written",
            Told::Read(_) => "operation read",
        };
        operation.to = self.now;
        operation.over = true;
        let client = operation.client;
        self.count(what);
        let Some(client) = client else {
            if !matches!(told, Told::Read(_)) {
                self.witness.complain(format!("{NO_END}: a last read was told {told:?}"));
            }
            return;
        };
        self.remember(client, number);
        let pause = self.dice.within(0..=self.plan.think_max);
        self.after(pause, Event::Think(client));
    }

    /// The client asks again, somewhere else, under the same key of its own.
    fn retry(&mut self, number: usize, coordinator: usize) {
        let now = Duration::from_micros(self.now);
        let run = self.machines[coordinator].run;
        let operation = &mut self.operations[number];
        operation.coordinator = coordinator;
        operation.run = run;
        operation.pursuit = Pursuit::new(now, Duration::from_micros(self.plan.patience));
        operation.asks = None;
        operation.pauses = false;
        self.begin_operation(number);
    }

    fn remember(&mut self, client: usize, number: usize) {
        let Operation { key, told, asked, may_be_lost, ref request, .. } = self.operations[number];
        let id = request.as_ref().map(|request| request.id);
        let client = &mut self.clients[client];
        match told {
            Told::Ordered(aegiskv::entry::Verdict::ConditionFailed(version), _) => {
                client.seen[key] = version.or(client.seen[key]);
            }
            Told::Ordered(_, version) => {
                client.seen[key] = Some(version);
                if matches!(asked, Asked::Put { .. } | Asked::Incr { .. }) && !may_be_lost {
                    client.wrote[key] = id.map(|id| (version, id));
                }
            }
            Told::Read(Some((_, version))) => client.seen[key] = Some(version),
            _ => {}
        }
    }

    /// Whether what the clients were told can be true.
    pub(crate) fn check_histories(&mut self) {
        for number in 0..self.plan.keys {
            let shard = self.placement.shard_of(key(number).as_bytes());
            if self.oracle.unclean.contains(&shard) {
                continue;
            }
            let history: Vec<crate::history::Operation> = self
                .operations
                .iter()
                .filter(|operation| operation.key == number)
                .map(|operation| crate::history::Operation {
                    asked: operation.asked,
                    told: operation.told,
                    from: operation.from,
                    to: operation.to,
                    may_be_lost: operation.may_be_lost,
                })
                .collect();
            let vanishes = self.expires(number) || self.plan.faults.contains(&Fault::Evict);
            if !is_linearizable(&history, vanishes) {
                let lines: Vec<String> = history.iter().map(|o| format!("{o:?}")).collect();
                return self
                    .witness
                    .complain(format!("key {number} is not linearizable:\n{}", lines.join("\n")));
            }
        }
    }
}

fn read(lookup: Lookup) -> Option<(i64, Version)> {
    let found = lookup.found()?;
    let value = std::str::from_utf8(found.entry.value_bytes()).ok()?.parse().ok()?;
    Some((value, found.version))
}
