//! A made-up world for the tests: nodes with disks, a network that loses, delays and doubles, and
//! a shell as the server's. Everything follows from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Action, Answer, Birth, Config, Newborn, Silence, Waiting, Word};

/// The gossip interval, in milliseconds.
pub(super) const INTERVAL: u64 = 1000;

/// What goes wrong, each in percent of the occasions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chaos {
    pub(super) loss: u32,
    pub(super) doubling: u32,
    /// A crash at a step that changes the disk, before or after it.
    pub(super) crash: u32,
    /// A node goes down for a while, at each of its ticks.
    pub(super) outage: u32,
    /// The disk of a node that went down is empty when it comes back.
    pub(super) wipe: u32,
    /// One direction between two nodes breaks or works again, at each tick of any node.
    pub(super) cut: u32,
    /// The longest delay of a message, in milliseconds.
    pub(super) delay: u64,
}

#[derive(Debug)]
enum State {
    Off,
    Newborn(Box<Birth>),
    Member,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) addr: String,
    pub(super) addrs: Vec<String>,
    pub(super) bootstrap: bool,
    pub(super) word: Option<Word>,
    /// As on disk.
    pub(super) cluster: Option<u128>,
    pub(super) waits: Vec<Waiting>,
    state: State,
    instance: u128,
}

#[derive(Clone, Debug)]
enum Event {
    Start { node: usize },
    Tick { node: usize, instance: u128 },
    Knock { from: usize, instance: u128, addr: String, knock: Newborn },
    Answer { to: usize, instance: u128, addr: String, answer: Result<Answer, Silence> },
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    pub(super) chaos: Chaos,
    /// Names that lead to a node besides its own address.
    pub(super) aliases: BTreeMap<String, usize>,
    /// Addresses that no knock gets to.
    pub(super) unreachable: BTreeSet<String>,
    /// Directions in which nothing arrives: from, to.
    pub(super) cuts: BTreeSet<(usize, usize)>,
    /// Who founded which cluster.
    pub(super) founders: Vec<(usize, u128)>,
    members: BTreeMap<u128, BTreeSet<String>>,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    pending: BTreeMap<u64, Event>,
    pub(super) now: u64,
    began: Instant,
    drawn: u64,
    random: StdRng,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            nodes: Vec::new(),
            chaos: Chaos { delay: 20, ..Chaos::default() },
            aliases: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            cuts: BTreeSet::new(),
            founders: Vec::new(),
            members: BTreeMap::new(),
            events: BinaryHeap::new(),
            pending: BTreeMap::new(),
            now: 0,
            began: Instant::now(),
            drawn: 0,
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// A world of nodes `a`, `b`, …: each with the letters of those it lists.
    pub(super) fn of(lists: &[(&str, &str)]) -> Self {
        let mut world = Self::new(1);
        for (name, listed) in lists {
            let addrs: Vec<String> = listed.chars().map(|c| format!("{c}:7701")).collect();
            world.add(name, addrs);
        }
        world
    }

    pub(super) fn add(&mut self, name: &str, addrs: Vec<String>) -> usize {
        self.nodes.push(Node {
            name: name.to_owned(),
            addr: format!("{name}:7701"),
            addrs,
            bootstrap: false,
            word: None,
            cluster: None,
            waits: Vec::new(),
            state: State::Off,
            instance: 0,
        });
        self.nodes.len() - 1
    }

    pub(super) fn node(&self, name: &str) -> &Node {
        &self.nodes[self.index(name)]
    }

    pub(super) fn node_mut(&mut self, name: &str) -> &mut Node {
        let index = self.index(name);
        &mut self.nodes[index]
    }

    pub(super) fn index(&self, name: &str) -> usize {
        self.nodes.iter().position(|node| node.name == name).expect("a node of that name")
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random.random_range(0..bound)
    }

    /// Starts nodes by their letters, at this moment.
    pub(super) fn start(&mut self, names: &str) {
        for name in names.chars() {
            let node = self.index(&name.to_string());
            self.start_node(node);
        }
    }

    pub(super) fn start_after(&mut self, node: usize, millis: u64) {
        self.push(millis, Event::Start { node });
    }

    pub(super) fn stop(&mut self, name: &str) {
        self.node_mut(name).state = State::Off;
    }

    pub(super) fn stop_node(&mut self, node: usize) {
        self.nodes[node].state = State::Off;
    }

    /// Lets the disk of a node that is down be empty.
    pub(super) fn wipe(&mut self, name: &str) {
        let node = self.node_mut(name);
        (node.word, node.cluster) = (None, None);
    }

    pub(super) fn start_node(&mut self, index: usize) {
        if !matches!(self.nodes[index].state, State::Off) {
            return;
        }
        self.drawn += 1;
        let (instance, now) = (u128::from(self.drawn), self.instant());
        let node = &mut self.nodes[index];
        node.instance = instance;
        node.state = match node.cluster {
            Some(_) => State::Member,
            None => {
                let config = Config {
                    name: node.name.clone(),
                    instance,
                    peer_addr: node.addr.clone(),
                    addrs: node.addrs.clone(),
                    bootstrap: node.bootstrap,
                    interval: Duration::from_millis(INTERVAL),
                };
                let birth = Birth::new(config, node.word.clone(), now).expect("short lists");
                State::Newborn(Box::new(birth))
            }
        };
        self.push(0, Event::Tick { node: index, instance });
    }

    /// Lets so many intervals pass.
    pub(super) fn run(&mut self, intervals: u64) {
        let until = self.now + intervals * INTERVAL;
        while let Some(&Reverse((at, id))) = self.events.peek() {
            if at > until {
                break;
            }
            self.events.pop();
            self.now = at;
            let event = self.pending.remove(&id).expect("each event is queued once");
            self.handle(event);
        }
        self.now = until;
    }

    /// Whether every node is a member of one cluster.
    pub(super) fn is_one(&self) -> bool {
        let clusters: BTreeSet<Option<u128>> = self.nodes.iter().map(|node| node.cluster).collect();
        clusters.len() == 1 && !clusters.contains(&None)
    }

    /// The nodes that lists lead to from one.
    pub(super) fn reach(&self, from: usize) -> BTreeSet<usize> {
        let (mut reached, mut walk) = (BTreeSet::new(), vec![from]);
        while let Some(node) = walk.pop() {
            if reached.insert(node) {
                let listed = self.nodes[node].addrs.iter();
                walk.extend(listed.filter_map(|addr| self.at(addr)));
            }
        }
        reached
    }

    fn at(&self, addr: &str) -> Option<usize> {
        if self.unreachable.contains(addr) {
            return None;
        }
        let node = self.nodes.iter().position(|node| node.addr == addr);
        node.or_else(|| self.aliases.get(addr).copied())
    }

    fn instant(&self) -> Instant {
        self.began + Duration::from_millis(self.now)
    }

    fn push(&mut self, after: u64, event: Event) {
        self.drawn += 1;
        self.events.push(Reverse((self.now + after, self.drawn)));
        self.pending.insert(self.drawn, event);
    }

    fn delay(&mut self) -> u64 {
        let delay = self.chaos.delay;
        1 + self.below(delay.max(1))
    }

    fn lives(&self, node: usize, instance: u128) -> bool {
        self.nodes[node].instance == instance && !matches!(self.nodes[node].state, State::Off)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Start { node } => self.start_node(node),
            Event::Tick { node, instance } if self.lives(node, instance) => {
                if self.chance(self.chaos.outage) {
                    self.crash(node);
                    return;
                }
                if self.chance(self.chaos.cut) {
                    let nodes = self.nodes.len() as u64;
                    let cut = (self.below(nodes) as usize, self.below(nodes) as usize);
                    if !self.cuts.remove(&cut) {
                        self.cuts.insert(cut);
                    }
                }
                self.dial_members(node);
                self.step(node);
                self.push(INTERVAL / 3, Event::Tick { node, instance });
            }
            Event::Tick { .. } => {}
            Event::Knock { from, instance, addr, knock } => {
                let to = self.at(&addr).filter(|to| !self.cuts.contains(&(from, *to)));
                let answer = to.and_then(|to| self.answer(to, &knock));
                let answer =
                    answer.filter(|_| to.is_some_and(|to| !self.cuts.contains(&(to, from))));
                let (to, answer, delay) = match answer {
                    Some(answer) if !self.chance(self.chaos.loss) => {
                        (from, Ok(answer), self.delay())
                    }
                    _ => (from, Err(Silence::NoAnswer), INTERVAL),
                };
                self.push(delay, Event::Answer { to, instance, addr, answer });
            }
            Event::Answer { to, instance, addr, answer } => {
                let now = self.instant();
                if self.lives(to, instance)
                    && let State::Newborn(birth) = &mut self.nodes[to].state
                {
                    birth.on_answer(&addr, answer, now);
                    self.step(to);
                }
            }
        }
    }

    /// A node goes down, and comes back after a while.
    fn crash(&mut self, node: usize) {
        self.nodes[node].state = State::Off;
        if self.chance(self.chaos.wipe) {
            (self.nodes[node].word, self.nodes[node].cluster) = (None, None);
        }
        let pause = self.below(6 * INTERVAL);
        self.start_after(node, pause);
    }

    /// Answers a knock as the server would; `None` if nothing comes back.
    fn answer(&mut self, to: usize, knock: &Newborn) -> Option<Answer> {
        let now = self.instant();
        let knock = Newborn::decode(&knock.encode()).expect("what was made can be read");
        let (answer, word) = match &mut self.nodes[to].state {
            State::Off => return None,
            State::Newborn(birth) => birth.on_knock(&knock, now),
            State::Member => {
                let cluster_id = self.nodes[to].cluster.expect("a member has an identity");
                let knows_you = self.members[&cluster_id].contains(&knock.name);
                return Some(Answer::Member { cluster_id, knows_you });
            }
        };
        let kept = word.is_none_or(|word| self.keep(to, word));
        if kept {
            self.step(to);
        }
        kept.then_some(answer)
    }

    /// Puts a word on disk; false if the node crashed over it.
    fn keep(&mut self, node: usize, word: Word) -> bool {
        if self.chance(self.chaos.crash) {
            self.crash(node);
            return false;
        }
        self.nodes[node].word = Some(word);
        if self.chance(self.chaos.crash) {
            self.crash(node);
            return false;
        }
        true
    }

    fn step(&mut self, node: usize) {
        let (now, instance) = (self.instant(), self.nodes[node].instance);
        let State::Newborn(birth) = &mut self.nodes[node].state else {
            return;
        };
        for action in birth.step(now) {
            match action {
                Action::Keep(word) => {
                    if !self.keep(node, word) {
                        return;
                    }
                }
                Action::KnockAt(addr, knock) => self.knock(node, instance, addr, knock),
                Action::Found { .. } => return self.found(node),
                Action::Join { addr } => {
                    if self.join(node, &addr) {
                        return;
                    }
                }
                Action::Wait(waiting) => self.nodes[node].waits.push(waiting),
            }
        }
    }

    fn knock(&mut self, from: usize, instance: u128, addr: String, knock: Newborn) {
        let copies = 1 + u32::from(self.chance(self.chaos.doubling));
        for _ in 0..copies {
            let (addr, knock) = (addr.clone(), knock.clone());
            if self.chance(self.chaos.loss) {
                let answer = Err(Silence::NoAnswer);
                self.push(INTERVAL, Event::Answer { to: from, instance, addr, answer });
            } else {
                let delay = self.delay();
                self.push(delay, Event::Knock { from, instance, addr, knock });
            }
        }
    }

    fn found(&mut self, node: usize) {
        if self.chance(self.chaos.crash) {
            return self.crash(node);
        }
        self.drawn += 1;
        let cluster = u128::from(self.drawn);
        self.founders.push((node, cluster));
        self.enter(node, cluster);
    }

    fn join(&mut self, node: usize, addr: &str) -> bool {
        let now = self.instant();
        let open =
            |at: &usize| !self.cuts.contains(&(node, *at)) && !self.cuts.contains(&(*at, node));
        let member =
            self.at(addr).filter(open).filter(|at| matches!(self.nodes[*at].state, State::Member));
        let cluster = member.and_then(|at| self.nodes[at].cluster);
        match cluster {
            Some(cluster) if !self.chance(self.chaos.loss) => {
                self.enter(node, cluster);
                true
            }
            _ => {
                if let State::Newborn(birth) = &mut self.nodes[node].state {
                    birth.on_answer(addr, Err(Silence::NoAnswer), now);
                }
                false
            }
        }
    }

    /// The node's identity is durable, and its word has served.
    fn enter(&mut self, index: usize, cluster: u128) {
        let node = &mut self.nodes[index];
        (node.cluster, node.word, node.state) = (Some(cluster), None, State::Member);
        self.members.entry(cluster).or_default().insert(node.name.clone());
    }

    /// A member keeps trying to reach every other member.
    fn dial_members(&mut self, node: usize) {
        let (State::Member, Some(cluster)) = (&self.nodes[node].state, self.nodes[node].cluster)
        else {
            return;
        };
        let (addr, now) = (self.nodes[node].addr.clone(), self.instant());
        for other in 0..self.nodes.len() {
            let known = self.members[&cluster].contains(&self.nodes[other].name);
            let cut = self.cuts.contains(&(node, other));
            if known && !cut && !self.chance(self.chaos.loss) {
                if let State::Newborn(birth) = &mut self.nodes[other].state {
                    birth.on_member_seen(&addr, cluster, true, now);
                }
                self.step(other);
            }
        }
    }
}
