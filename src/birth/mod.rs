//! How a cluster is born: whether a node without an identity founds a cluster, joins one, or waits.
//!
//! Pure: a [`Birth`] gets what other nodes say and the time, and answers what to do. A thin shell
//! carries the messages and keeps the [`Word`] on disk.
//!
//! **The way.** A node listens for [`LISTENING_INTERVALS`] and knocks at every address it lists.
//! Once a member answers, it joins. Otherwise it reckons with the *closure*: those listed, their
//! lists, and those who knock. If that is nobody else, it founds. If all have answered that they
//! are new as well, the one of the lowest name asks for their words ([`Word`]), and founds when it
//! has all of them. While one is silent, all wait and name it. `--bootstrap` does without the
//! silent, and goes before lower names.
//!
//! **Invariant: two nodes whose lists lead to a common node never both found**, whatever messages
//! are lost, late or doubled and whoever restarts. For each founder has the word of every node
//! that its lists lead to; a node gives one word, durably before anybody hears of it; and takes it
//! back only when the founder's own durable word shows that the attempt is over for good. Outside
//! the invariant: `--bootstrap` while others cannot be heard (the operator vouches for them), a
//! lost `birth.json`, and lists that lead nowhere in common (two nodes that list nobody each found
//! a cluster; a third that lists both is told so and joins neither).
//!
//! It never merges clusters, and never founds once it has met a member.
//!
//! **Caveats.** A listed name stands for one node, the one that answered last: a DNS name that
//! leads to several nodes in turn can hide some of them. Nodes that have met go on knocking at each
//! other, even if whoever made them meet is gone. Two nodes of one name are noticed, and
//! nothing is founded, only while both are heard.

mod closure;
mod decide;
mod message;
mod waiting;
mod word;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub use message::{
    Answer, Found, HEARD_MAX, Heard, LISTED_MAX, Listed, MESSAGE_BYTES_MAX, MessageError, Newborn,
    TEXT_BYTES_MAX, answer_as_member,
};
pub use waiting::{Missing, Silence, Waiting};
pub use word::{Word, WordError};

use closure::{Acquaintance, Closure, Who};

/// A node decides nothing before it has listened for so many intervals.
pub const LISTENING_INTERVALS: u32 = 3;

/// What a birth starts from.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub name: String,
    /// Drawn at random by this process.
    pub instance: u128,
    /// Where others reach it: `host:port`.
    pub peer_addr: String,
    /// The addresses that its configuration lists.
    pub addrs: Vec<String>,
    /// Whether it was started with `--bootstrap`.
    pub bootstrap: bool,
    /// How often it knocks: the gossip interval.
    pub interval: Duration,
}

/// Why a birth cannot begin.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too many addresses.
    #[error(
        "addrs lists {0} addresses, more than {LISTED_MAX}; some of the nodes are enough, as long as all list some of the same"
    )]
    TooManyAddresses(usize),
    /// A name or an address that is empty or too long to be sent.
    #[error(
        "{0:?} is empty or longer than {TEXT_BYTES_MAX} bytes; give node_id, gossip_advertise_addr and addrs in full, but shorter"
    )]
    Text(String),
}

/// What the shell is to do, in the given order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the word durable before anything that follows, here or in a later answer.
    Keep(Word),
    /// Knock there, and report what came of it to [`Birth::on_answer`].
    KnockAt(String, Newborn),
    /// Found a cluster; its identity must be durable before anybody is answered as by a member.
    /// Said again by each step until then.
    Found {
        /// Which attempt of this node's led to it.
        attempt: u64,
    },
    /// Ask the member at that address to be let in. Said by each step while it answers: if nothing
    /// comes of it, report a [`Silence`] for the address and go on.
    Join {
        /// The member's address.
        addr: String,
    },
    /// For the log, at info; said once for each change.
    Wait(Waiting),
}

/// A node without an identity, deciding.
///
/// The shell calls one method at a time, and makes a word that it is handed durable before it
/// sends anything that it got from the same or a later call. It calls [`Birth::step`] after every
/// other call, and a few times in each interval.
#[derive(Debug)]
pub struct Birth {
    config: Config,
    /// As on disk, or about to be.
    word: Option<Word>,
    listens_until: Instant,
    met: Acquaintance,
    /// The highest attempt of this node's that others mention. Above its own after its disk was
    /// wiped.
    attempt_mentioned: u64,
    /// Its word has changed: others should hear at once.
    eager: bool,
    waiting: Option<Waiting>,
}

impl Birth {
    /// Begins. `word` is what [`Word::load`] found.
    ///
    /// # Errors
    /// Every [`Error`].
    pub fn new(config: Config, word: Option<Word>, now: Instant) -> Result<Self, Error> {
        if config.addrs.len() > LISTED_MAX {
            return Err(Error::TooManyAddresses(config.addrs.len()));
        }
        for text in [&config.name, &config.peer_addr].into_iter().chain(&config.addrs) {
            if text.is_empty() || text.len() > TEXT_BYTES_MAX {
                return Err(Error::Text(text.clone()));
            }
        }
        let met = Acquaintance::new(
            config.name.clone(),
            config.instance,
            config.peer_addr.clone(),
            config.addrs.clone(),
            config.interval,
        );
        let listens_until = now + config.interval * LISTENING_INTERVALS;
        Ok(Self {
            config,
            word,
            listens_until,
            met,
            attempt_mentioned: 0,
            eager: false,
            waiting: None,
        })
    }

    /// A node without a cluster knocks. Answers what to say, and a word that must be durable
    /// before that is said.
    pub fn on_knock(&mut self, from: &Newborn, now: Instant) -> (Answer, Option<Word>) {
        self.hear(from, None, now);
        let word = self.mend_word().or_else(|| self.promise(now));
        (Answer::New(Box::new(self.says(now))), word)
    }

    /// What came of a knock at `addr`.
    pub fn on_answer(&mut self, addr: &str, answer: Result<Answer, Silence>, now: Instant) {
        match answer {
            Ok(Answer::New(newborn)) => self.hear(&newborn, Some(addr), now),
            Ok(Answer::Member { cluster_id, knows_you }) => {
                self.on_member_seen(addr, cluster_id, knows_you, now);
            }
            Err(silence) => self.met.not_met(addr, silence),
        }
    }

    /// A member that is reached at `addr` has come by itself: its cluster knows this node's name,
    /// or lists its address. So a seed whose disk was wiped finds its cluster again.
    pub fn on_member_seen(
        &mut self,
        addr: &str,
        cluster_id: u128,
        knows_my_name: bool,
        now: Instant,
    ) {
        self.met.met(addr, Who::Member { cluster: cluster_id, knows_me: knows_my_name }, now);
    }

    /// What to do now.
    pub fn step(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let closure = self.met.closure(now);
        let waiting = self.decide(&closure, now, &mut actions);
        if waiting != self.waiting {
            self.waiting.clone_from(&waiting);
            actions.extend(waiting.map(Action::Wait));
        }
        let addresses = self.addresses(&closure);
        self.met.prune(&closure, &addresses, now);
        self.knock(addresses, now, &mut actions);
        actions
    }

    /// What this node says of itself.
    fn says(&self, now: Instant) -> Newborn {
        let (listed, hears) = self.met.told(now);
        Newborn {
            name: self.config.name.clone(),
            instance: self.config.instance,
            peer_addr: self.config.peer_addr.clone(),
            bootstrap: self.config.bootstrap,
            listed,
            hears,
            word: self.word.clone(),
        }
    }

    fn hear(&mut self, newborn: &Newborn, at: Option<&str>, now: Instant) {
        self.met.hear(newborn, at, now);
        let of_mine = newborn.word.as_ref().filter(|word| word.founder == self.config.name);
        let mentioned = of_mine.map_or(0, |word| word.attempt);
        self.attempt_mentioned = self.attempt_mentioned.max(mentioned);
    }

    /// Where to knock: in the closure, at members, and at the founder who has this node's word.
    fn addresses(&self, closure: &Closure) -> BTreeSet<String> {
        let founder = self.word.as_ref().filter(|word| !word.is_own());
        let members = self.met.members().map(|(addr, _)| addr.clone());
        let mut addresses = closure.addresses.clone();
        addresses.extend(members.chain(founder.map(|word| word.founder_addr.clone())));
        addresses
    }

    fn knock(&mut self, addresses: BTreeSet<String>, now: Instant, actions: &mut Vec<Action>) {
        let newborn = self.says(now);
        for addr in addresses {
            let place = self.met.places.entry(addr.clone()).or_default();
            let due = |knocked| now.saturating_duration_since(knocked) >= self.config.interval;
            if self.eager || place.knocked.is_none_or(due) {
                place.knocked = Some(now);
                actions.push(Action::KnockAt(addr, newborn.clone()));
            }
        }
        self.eager = false;
    }
}

#[cfg(test)]
mod simulation_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
