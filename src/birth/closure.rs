//! Whom a node without a cluster has to reckon with: those it lists, their lists, and those who
//! knock.
//!
//! Invariant: [`Acquaintance::closure`] always holds every node that can be reached by following
//! lists, silent ones included. Those who merely knocked count while they are heard: nobody needs
//! their word for safety, and a node that was started by mistake and stopped again holds up nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::message::{Found, HEARD_MAX, Heard, Listed, Newborn};
use super::waiting::{Missing, Silence};

/// A node is silent when nothing was heard from it for so many intervals.
const SILENT_INTERVALS: u32 = 5;

/// The most nodes that are born together, the most whose words are kept.
pub(super) const NODES_MAX: usize = 64;

/// The most addresses that are knocked at.
const ADDRESSES_MAX: usize = 256;

/// Who answered at an address last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// This very process: an alias of its own address.
    Me,
    /// A node without a cluster.
    Newborn(Found),
    /// A member.
    Member { cluster: u128, knows_me: bool },
}

/// An address, and what is known of it.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) who: Option<Who>,
    heard: Option<Instant>,
    /// What came of the last knock, if it was no answer.
    pub(super) silence: Option<Silence>,
    pub(super) knocked: Option<Instant>,
}

/// A node without a cluster, as last heard.
#[derive(Debug)]
struct Peer {
    newborn: Newborn,
    heard: Instant,
    /// Another process of the same name, elsewhere, and when it was heard.
    double: Option<(String, Instant)>,
}

/// Everybody to reckon with at one moment.
#[derive(Debug, Default)]
pub(super) struct Closure {
    /// Where to knock.
    pub(super) addresses: BTreeSet<String>,
    /// The nodes' names, this node's not among them.
    pub(super) names: BTreeSet<String>,
    /// Listed addresses at which nobody was met yet.
    pub(super) unknown: BTreeSet<String>,
    /// Whether there are more than can be kept.
    pub(super) crowded: bool,
}

/// Whom this node has met.
#[derive(Debug)]
pub(super) struct Acquaintance {
    name: String,
    instance: u128,
    peer_addr: String,
    listed: Vec<String>,
    silent_after: Duration,
    pub(super) places: BTreeMap<String, Place>,
    peers: BTreeMap<String, Peer>,
    /// Another process that has this node's name.
    double: Option<(String, Instant)>,
}

impl Acquaintance {
    pub(super) fn new(
        name: String,
        instance: u128,
        peer_addr: String,
        listed: Vec<String>,
        interval: Duration,
    ) -> Self {
        let silent_after = interval * SILENT_INTERVALS;
        let (places, peers) = (BTreeMap::new(), BTreeMap::new());
        Self { name, instance, peer_addr, listed, silent_after, places, peers, double: None }
    }

    /// What this node's message says of whom it has met.
    pub(super) fn told(&self, now: Instant) -> (Vec<Listed>, Vec<Heard>) {
        let listed = |addr: &String| {
            let found = match self.places.get(addr).and_then(|place| place.who.as_ref()) {
                Some(Who::Newborn(found)) => Some(found.clone()),
                _ => None,
            };
            Listed { addr: addr.clone(), found }
        };
        let heard = |(name, peer): (&String, &Peer)| {
            self.is_fresh(peer.heard, now)
                .then(|| Heard { name: name.clone(), peer_addr: peer.newborn.peer_addr.clone() })
        };
        let hears = self.peers.iter().filter_map(heard).take(HEARD_MAX).collect();
        (self.listed.iter().map(listed).collect(), hears)
    }

    /// A node without a cluster said this of itself, at this address if it was an answer.
    pub(super) fn hear(&mut self, newborn: &Newborn, at: Option<&str>, now: Instant) {
        if let Some(addr) = at {
            let me = newborn.instance == self.instance;
            let found = Found { name: newborn.name.clone(), instance: newborn.instance };
            self.met(addr, if me { Who::Me } else { Who::Newborn(found) }, now);
        }
        if newborn.instance == self.instance {
            return;
        }
        if newborn.name == self.name {
            self.double = Some((newborn.peer_addr.clone(), now));
            return;
        }
        let known = self.peers.get(&newborn.name);
        if known.is_none() && self.peers.len() >= 2 * NODES_MAX {
            return;
        }
        let mut double = known.and_then(|peer| peer.double.clone());
        if let Some(before) = known.filter(|peer| {
            peer.newborn.instance != newborn.instance
                && peer.newborn.peer_addr != newborn.peer_addr
                && self.is_fresh(peer.heard, now)
        }) {
            double = Some((before.newborn.peer_addr.clone(), now));
        }
        let peer = Peer { newborn: newborn.clone(), heard: now, double };
        self.peers.insert(newborn.name.clone(), peer);
    }

    /// Somebody answered at an address.
    pub(super) fn met(&mut self, addr: &str, who: Who, now: Instant) {
        if self.places.len() >= 2 * ADDRESSES_MAX && !self.places.contains_key(addr) {
            return;
        }
        let place = self.places.entry(addr.to_owned()).or_default();
        *place = Place { who: Some(who), heard: Some(now), silence: None, knocked: place.knocked };
    }

    /// Nobody answered at an address.
    pub(super) fn not_met(&mut self, addr: &str, silence: Silence) {
        if let Some(place) = self.places.get_mut(addr) {
            place.silence = Some(silence);
        }
    }

    /// The members that were met, by address.
    pub(super) fn members(&self) -> impl Iterator<Item = (&String, &Place)> {
        let is_member = |place: &Place| matches!(place.who, Some(Who::Member { .. }));
        self.places.iter().filter(move |(_, place)| is_member(place))
    }

    /// What a node said of itself last; of silent ones too.
    pub(super) fn newborn(&self, name: &str) -> Option<&Newborn> {
        self.peers.get(name).map(|peer| &peer.newborn)
    }

    /// Every node that is heard at present.
    pub(super) fn fresh(&self, now: Instant) -> impl Iterator<Item = &Newborn> {
        let fresh = move |peer: &&Peer| self.is_fresh(peer.heard, now);
        self.peers.values().filter(fresh).map(|peer| &peer.newborn)
    }

    /// Whether a node is heard at present.
    pub(super) fn hears(&self, name: &str, now: Instant) -> bool {
        self.peers.get(name).is_some_and(|peer| self.is_fresh(peer.heard, now))
    }

    /// A name that two nodes have at present, and where they are.
    pub(super) fn double(&self, now: Instant) -> Option<(String, [String; 2])> {
        let fresh = |double: &Option<(String, Instant)>| {
            double.clone().filter(|(_, heard)| self.is_fresh(*heard, now)).map(|(addr, _)| addr)
        };
        if let Some(addr) = fresh(&self.double) {
            return Some((self.name.clone(), [self.peer_addr.clone(), addr]));
        }
        self.peers.iter().find_map(|(name, peer)| {
            let addr = fresh(&peer.double)?;
            Some((name.clone(), [peer.newborn.peer_addr.clone(), addr]))
        })
    }

    /// Everybody to reckon with.
    pub(super) fn closure(&self, now: Instant) -> Closure {
        let mut closure = Closure::default();
        let mut walk = Vec::new();
        for addr in &self.listed {
            self.visit(addr, &mut closure, &mut walk);
        }
        for newborn in self.fresh(now) {
            walk.push((newborn.name.as_str(), newborn.peer_addr.as_str()));
        }
        let mut covered = BTreeSet::new();
        while let Some((name, addr)) = walk.pop() {
            if name == self.name || closure.names.contains(name) {
                continue;
            }
            if closure.names.len() >= NODES_MAX - 1 || closure.addresses.len() >= ADDRESSES_MAX {
                closure.crowded = true;
                break;
            }
            closure.names.insert(name.to_owned());
            covered.insert((name, addr));
            let Some(peer) = self.peers.get(name) else {
                continue;
            };
            for listed in &peer.newborn.listed {
                self.visit(&listed.addr, &mut closure, &mut walk);
            }
            if self.is_fresh(peer.heard, now) {
                let heard = peer.newborn.hears.iter();
                walk.extend(heard.map(|heard| (heard.name.as_str(), heard.peer_addr.as_str())));
            }
        }
        // Who answers at a listed address need not be sought where it says that it is.
        for (name, addr) in covered {
            let answers = |at: &String| self.first_hand(at) == Some(name);
            if !closure.addresses.iter().any(answers) {
                closure.addresses.insert(addr.to_owned());
            }
        }
        closure.addresses.remove(&self.peer_addr);
        closure
    }

    /// Those of a closure who are not heard.
    pub(super) fn missing(&self, closure: &Closure, now: Instant) -> Vec<Missing> {
        let silence = |addr: &str| self.places.get(addr).and_then(|place| place.silence);
        let unknown = closure.unknown.iter().map(|addr| Missing {
            name: None,
            addr: addr.clone(),
            why: silence(addr),
        });
        let silent = closure.names.iter().filter(|name| !self.hears(name, now)).map(|name| {
            let addr = self.address_of(name, closure);
            Missing { name: Some(name.clone()), why: silence(&addr), addr }
        });
        let mut missing: Vec<Missing> = unknown.chain(silent).collect();
        missing.sort();
        missing
    }

    /// Forgets what no longer matters; what is kept is bounded by that.
    pub(super) fn prune(&mut self, closure: &Closure, addresses: &BTreeSet<String>, now: Instant) {
        let silent_after = self.silent_after;
        self.peers.retain(|name, peer| {
            closure.names.contains(name) || now.saturating_duration_since(peer.heard) < silent_after
        });
        self.places.retain(|addr, _| addresses.contains(addr));
    }

    fn is_fresh(&self, heard: Instant, now: Instant) -> bool {
        now.saturating_duration_since(heard) < self.silent_after
    }

    /// A listed address: whoever is there belongs to the closure.
    fn visit<'a>(
        &'a self,
        addr: &'a str,
        closure: &mut Closure,
        walk: &mut Vec<(&'a str, &'a str)>,
    ) {
        if addr == self.peer_addr {
            return;
        }
        if closure.addresses.len() >= ADDRESSES_MAX {
            closure.crowded = true;
            return;
        }
        closure.addresses.insert(addr.to_owned());
        if self
            .places
            .get(addr)
            .is_some_and(|place| matches!(place.who, Some(Who::Me | Who::Member { .. })))
        {
            return;
        }
        match self.newborn_at(addr) {
            Some(found) if found.1 == self.instance => {}
            Some((name, _)) => walk.push((name, addr)),
            None => {
                closure.unknown.insert(addr.to_owned());
            }
        }
    }

    /// Who answered here, as this node heard itself.
    fn first_hand(&self, addr: &str) -> Option<&str> {
        match self.places.get(addr)?.who.as_ref()? {
            Who::Newborn(found) => Some(found.name.as_str()),
            Who::Me | Who::Member { .. } => None,
        }
    }

    /// Which node without a cluster is at an address, by the latest evidence: its answer to a
    /// knock, its own word that it is there, or else what others found there. An address that
    /// cannot be reached from here may be well known to others.
    fn newborn_at(&self, addr: &str) -> Option<(&str, u128)> {
        let answered = self.places.get(addr).and_then(|place| match &place.who {
            Some(Who::Newborn(found)) => {
                Some((place.heard?, (found.name.as_str(), found.instance)))
            }
            _ => None,
        });
        let said = self.peers.iter().filter(|(_, peer)| peer.newborn.peer_addr == addr);
        let said = said.map(|(name, peer)| (peer.heard, (name.as_str(), peer.newborn.instance)));
        let latest = answered.into_iter().chain(said).max_by_key(|(heard, _)| *heard);
        let told = || {
            let listed = self.peers.values().flat_map(|peer| &peer.newborn.listed);
            let found = listed.filter(|listed| listed.addr == addr);
            found.filter_map(|listed| listed.found.as_ref()).next()
        };
        latest
            .map(|(_, found)| found)
            .or_else(|| told().map(|found| (found.name.as_str(), found.instance)))
            // This node's name but another process: its own last run, or a stranger. Ask again.
            .filter(|(name, instance)| *name != self.name || *instance == self.instance)
    }

    fn address_of(&self, name: &str, closure: &Closure) -> String {
        let at = closure.addresses.iter().find(|addr| self.first_hand(addr) == Some(name));
        let said = self.peers.get(name).map(|peer| &peer.newborn.peer_addr);
        let hears = || self.peers.values().flat_map(|peer| &peer.newborn.hears);
        let told = || hears().find(|heard| heard.name == name).map(|heard| &heard.peer_addr);
        at.or(said).or_else(told).cloned().unwrap_or_default()
    }
}
