//! A network of engines whose time passes only when told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::{Engine, Setup};
use crate::gossip::watch::Timeouts;
use crate::gossip::{Peer, Reason, Refusal, Seen, State};
use crate::topology::NodeId;

pub(super) const CLUSTER: u128 = 77;
pub(super) const SECRET: &str = "correct horse";

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUTS: Timeouts =
    Timeouts { suspect: Duration::from_secs(5), dead: Duration::from_secs(10) };

/// A datagram: from where, to where, what.
type Datagram = (SocketAddr, SocketAddr, Vec<u8>);

pub(super) struct World {
    now: Instant,
    rng: StdRng,
    /// By place in the world; a twin has the number of another and a place of its own.
    nodes: BTreeMap<u64, Node>,
    on_the_way: BTreeMap<(Instant, u64), Datagram>,
    sent: u64,
    recorded: Vec<Datagram>,
    cuts: BTreeSet<(u64, u64)>,
    loss: f64,
    names: HashMap<String, Vec<SocketAddr>>,
}

struct Node {
    engine: Engine,
    number: u64,
    address: SocketAddr,
    advertised: String,
    seeds: Vec<String>,
    condition: Condition,
    seen: BTreeMap<NodeId, Seen>,
    states: BTreeSet<State>,
    refused: Arc<Mutex<Vec<Reason>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Running,
    Paused,
    Gone,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            nodes: BTreeMap::new(),
            on_the_way: BTreeMap::new(),
            sent: 0,
            recorded: Vec::new(),
            cuts: BTreeSet::new(),
            loss: 0.0,
            names: HashMap::new(),
        }
    }

    /// Nodes 1 to `count`, who have met by the seed 1.
    pub(super) fn cluster(seed: u64, count: u64) -> Self {
        let mut world = Self::new(seed);
        for node in 1..=count {
            world.start(node, &["10.0.0.1:7701"]);
        }
        world.run(Duration::from_secs(2));
        world.assert_all_alive();
        world
    }

    pub(super) fn start(&mut self, node: u64, seeds: &[&str]) {
        self.start_with(node, seeds, CLUSTER, &[SECRET]);
    }

    pub(super) fn start_with(
        &mut self,
        node: u64,
        seeds: &[&str],
        cluster: u128,
        secrets: &[&str],
    ) {
        let address = format!("10.0.0.{node}:7701");
        self.place(node, node, &address, &address, seeds);
        self.boot(node, 1_000_000, 1, cluster, secrets);
    }

    pub(super) fn start_named(&mut self, node: u64, name: &str, seeds: &[&str]) {
        self.place(node, node, &format!("10.0.0.{node}:7701"), name, seeds);
        self.boot(node, 1_000_000, 1, CLUSTER, &[SECRET]);
    }

    pub(super) fn start_twin(&mut self, number: u64, address: &str, seeds: &[&str]) {
        let place = number + 1_000;
        self.place(place, number, address, address, seeds);
        self.boot(place, 1_000_001, 1, CLUSTER, &[SECRET]);
    }

    fn place(&mut self, place: u64, number: u64, address: &str, name: &str, seeds: &[&str]) {
        let engine = self.engine(number, name, 0, 1, CLUSTER, &[], Arc::default());
        let node = Node {
            engine,
            number,
            address: address.parse().unwrap(),
            advertised: name.to_owned(),
            seeds: seeds.iter().map(|&seed| seed.to_owned()).collect(),
            condition: Condition::Gone,
            seen: BTreeMap::new(),
            states: BTreeSet::new(),
            refused: Arc::default(),
        };
        self.nodes.insert(place, node);
    }

    fn boot(&mut self, place: u64, generation: u64, life: u64, cluster: u128, secrets: &[&str]) {
        let node = &self.nodes[&place];
        let (number, name) = (node.number, node.advertised.clone());
        let refused = node.refused.clone();
        let engine = self.engine(number, &name, generation, life, cluster, secrets, refused);
        let (now, node) = (self.now, self.nodes.get_mut(&place).unwrap());
        node.engine = engine;
        node.seen.clear();
        node.condition = Condition::Running;
        node.engine.set_seeds(node.seeds.clone(), now);
        self.collect(place);
    }

    #[expect(clippy::too_many_arguments, reason = "what a node may differ in")]
    fn engine(
        &mut self,
        number: u64,
        name: &str,
        generation: u64,
        life: u64,
        cluster_id: u128,
        secrets: &[&str],
        refused: Arc<Mutex<Vec<Reason>>>,
    ) -> Engine {
        let setup = Setup {
            cluster_id,
            secrets: secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect(),
            me: Peer {
                node: NodeId(number),
                name: format!("node{number}"),
                life,
                addr: name.to_owned(),
            },
            interval: INTERVAL,
            timeouts: TIMEOUTS,
            on_refusal: Arc::new(move |refusal: Refusal| refused.lock().push(refusal.reason)),
            generation,
        };
        Engine::new(setup, StdRng::seed_from_u64(self.rng.random()), self.now)
    }

    /// Starts a node anew that was killed or left.
    pub(super) fn restart_at(&mut self, node: u64, generation: u64, life: u64) {
        self.boot(node, generation, life, CLUSTER, &[SECRET]);
    }

    pub(super) fn kill(&mut self, node: u64) {
        self.nodes.get_mut(&node).unwrap().condition = Condition::Gone;
    }

    pub(super) fn pause(&mut self, node: u64) {
        let condition = &mut self.nodes.get_mut(&node).unwrap().condition;
        if *condition == Condition::Running {
            *condition = Condition::Paused;
        }
    }

    pub(super) fn resume(&mut self, node: u64) {
        self.nodes.get_mut(&node).unwrap().condition = Condition::Running;
    }

    /// A node learns that only this generation of it would be believed.
    pub(super) fn deny(&mut self, node: u64, at_least: u64) {
        let now = self.now;
        self.nodes.get_mut(&node).unwrap().engine.renew(at_least, now);
        self.collect(node);
    }

    pub(super) fn leave(&mut self, node: u64) {
        let now = self.now;
        self.nodes.get_mut(&node).unwrap().engine.leave(now);
        self.collect(node);
        self.kill(node);
    }

    pub(super) fn move_to(&mut self, node: u64, address: &str) {
        self.nodes.get_mut(&node).unwrap().address = address.parse().unwrap();
    }

    pub(super) fn set_seeds(&mut self, node: u64, seeds: &[&str]) {
        let seeds: Vec<String> = seeds.iter().map(|&seed| seed.to_owned()).collect();
        let now = self.now;
        self.nodes.get_mut(&node).unwrap().engine.set_seeds(seeds, now);
    }

    pub(super) fn set_secrets(&mut self, node: u64, secrets: &[&str]) {
        let secrets: Vec<Vec<u8>> = secrets.iter().map(|s| s.as_bytes().to_vec()).collect();
        self.nodes.get_mut(&node).unwrap().engine.set_secrets(&secrets);
    }

    pub(super) fn set_name(&mut self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.names.insert(name.to_owned(), addresses);
    }

    pub(super) fn cut(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    pub(super) fn isolate(&mut self, node: u64) {
        let others: Vec<u64> = self.nodes.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        self.loss = 0.0;
    }

    pub(super) fn lose(&mut self, share: f64) {
        self.loss = share;
    }

    /// Wakes those that are paused, and starts those that are gone.
    pub(super) fn revive(&mut self) {
        for place in self.nodes.keys().copied().collect::<Vec<_>>() {
            match self.nodes[&place].condition {
                Condition::Running => {}
                Condition::Paused => self.resume(place),
                Condition::Gone => {
                    let generation = self.generation(place) + self.rng.random_range(0..10);
                    self.restart_at(place, generation.saturating_sub(5), 1);
                }
            }
        }
    }

    /// Faults of all kinds, one after the other, with up to some seconds in between.
    pub(super) fn break_at_random(&mut self, faults: u32) {
        let count = self.nodes.len() as u64;
        for _ in 0..faults {
            let node = self.rng.random_range(1..=count);
            let other = self.rng.random_range(1..=count);
            match self.rng.random_range(0..8) {
                0 => self.kill(node),
                1 => self.pause(node),
                2 => self.isolate(node),
                3 => self.cut(node, other),
                4 => self.revive(),
                5 => self.heal(),
                6 => self.lose(0.5),
                _ if self.nodes[&node].condition == Condition::Running => self.leave(node),
                _ => {}
            }
            let pause = Duration::from_millis(self.rng.random_range(0..15_000));
            self.run(pause);
        }
    }

    pub(super) fn inject(&mut self, from: SocketAddr, to: u64, datagram: Vec<u8>) {
        let to = self.nodes[&to].address;
        self.deliver_later((from, to, datagram));
    }

    pub(super) fn recorded(&self) -> Vec<Datagram> {
        self.recorded.clone()
    }

    /// Sends again what was recorded, each datagram to every node.
    pub(super) fn replay(&mut self, recorded: &[Datagram]) {
        let all: Vec<SocketAddr> = self.nodes.values().map(|node| node.address).collect();
        for (from, _, datagram) in recorded {
            for to in &all {
                self.deliver_later((*from, *to, datagram.clone()));
            }
        }
    }

    fn deliver_later(&mut self, datagram: Datagram) {
        self.sent += 1;
        let travel = Duration::from_micros(self.rng.random_range(100..3_000));
        self.on_the_way.insert((self.now + travel, self.sent), datagram);
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let arrival = self.on_the_way.keys().next().map(|(at, _)| *at);
            let running = self.nodes.iter().filter(|(_, n)| n.condition == Condition::Running);
            let wake = running.map(|(place, node)| (node.engine.wake(), *place)).min();
            let next = arrival.into_iter().chain(wake.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, datagram) = self.on_the_way.pop_first().expect("it was seen just now");
                self.arrive(datagram);
            } else if let Some((_, place)) = wake {
                let (now, node) = (self.now, self.nodes.get_mut(&place).unwrap());
                node.engine.tick(now);
                self.collect(place);
            }
        }
        self.now = end;
    }

    fn arrive(&mut self, (from, to, datagram): Datagram) {
        let at = |address| self.nodes.iter().find(|(_, n)| n.address == address).map(|(p, _)| *p);
        let Some(place) = at(to) else { return };
        let is_cut = at(from).is_some_and(|from| self.cuts.contains(&(from, place)));
        let now = self.now;
        let node = self.nodes.get_mut(&place).unwrap();
        if !is_cut && node.condition == Condition::Running {
            node.engine.received(from, &datagram, now);
            self.collect(place);
        }
    }

    fn collect(&mut self, place: u64) {
        loop {
            let (now, node) = (self.now, self.nodes.get_mut(&place).unwrap());
            let output = node.engine.take_output();
            let from = node.address;
            if let Some(seen) = output.members {
                node.states.extend(seen.values().map(|seen| seen.state));
                node.seen = seen;
            }
            let is_done = output.questions.is_empty();
            for name in output.questions {
                let found = self.names.get(&name).cloned().unwrap_or_default();
                self.nodes.get_mut(&place).unwrap().engine.resolved(&name, Ok(found), now);
            }
            for (to, datagram) in output.datagrams {
                assert!(datagram.len() <= 1_200);
                self.recorded.push((from, to, datagram.clone()));
                if !self.rng.random_bool(self.loss) {
                    self.deliver_later((from, to, datagram));
                }
            }
            if is_done {
                return;
            }
        }
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The seeds' addresses that a node would knock at now.
    pub(super) fn unmet(&mut self, by: u64) -> Vec<SocketAddr> {
        let Engine { me, seeds, names, watch, .. } = &mut self.nodes.get_mut(&by).unwrap().engine;
        seeds.unmet(me.addr(), names, watch)
    }

    pub(super) fn seen(&self, by: u64) -> &BTreeMap<NodeId, Seen> {
        &self.nodes[&by].seen
    }

    pub(super) fn refused(&self, by: u64) -> Vec<Reason> {
        self.nodes[&by].refused.lock().clone()
    }

    pub(super) fn generation(&self, node: u64) -> u64 {
        self.nodes[&node].engine.me.generation
    }

    pub(super) fn foca_has_down(&self, by: u64, node: u64) -> bool {
        let mut members = self.nodes[&by].engine.foca.iter_membership_state();
        members
            .any(|member| member.id().node == NodeId(node) && member.state() == foca::State::Down)
    }

    /// Fails unless every running node sees every other running one, alive.
    #[track_caller]
    pub(super) fn assert_all_alive(&self) {
        if let Some(complaint) = self.seen_complaint() {
            panic!("{complaint}");
        }
    }

    /// Fails unless foca has every running node up, under its present identity.
    #[track_caller]
    pub(super) fn assert_foca_agrees(&self) {
        if let Some(complaint) = self.foca_complaint() {
            panic!("{complaint}");
        }
    }

    /// What is wrong in the eyes of some node, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        self.seen_complaint().or_else(|| self.foca_complaint())
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.condition == Condition::Running)
    }

    fn seen_complaint(&self) -> Option<String> {
        for node in self.running() {
            for other in self.running().filter(|other| other.number != node.number) {
                let state = node.seen.get(&NodeId(other.number)).map(|seen| seen.state);
                if state != Some(State::Alive) {
                    return Some(format!(
                        "node{} sees node{}: {state:?}",
                        node.number, other.number
                    ));
                }
            }
        }
        None
    }

    fn foca_complaint(&self) -> Option<String> {
        for node in self.running() {
            for other in self.running().filter(|other| other.number != node.number) {
                let mut members = node.engine.foca.iter_members();
                if !members.any(|member| *member.id() == other.engine.me) {
                    let all: Vec<_> = node.engine.foca.iter_membership_state().collect();
                    return Some(format!(
                        "foca of {:?} misses {:?}: {all:?}",
                        node.engine.me, other.engine.me
                    ));
                }
            }
        }
        None
    }

    #[track_caller]
    pub(super) fn assert_state(&self, by: &[u64], node: u64, expected: State) {
        for by in by {
            let state = self.nodes[by].seen.get(&NodeId(node)).map(|seen| seen.state);
            assert_eq!(state, Some(expected), "node{by} sees node{node}");
        }
    }

    /// Fails if a node has ever published one of these states of anybody.
    #[track_caller]
    pub(super) fn assert_never(&self, by: u64, states: &[State]) {
        let published = &self.nodes[&by].states;
        for state in states {
            assert!(!published.contains(state), "node{by} has published {state:?}");
        }
    }
}
