//! The decisions of a [`Birth`]: whom to join, whom to give one's word, when to found.

use std::time::Instant;

use super::closure::{Closure, NODES_MAX, Who};
use super::{Action, Birth, Missing, Newborn, Waiting, Word};

impl Birth {
    /// Decides; what to do goes to `actions`. Answers what there is to wait for.
    pub(super) fn decide(
        &mut self,
        closure: &Closure,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Option<Waiting> {
        if self.has_met_members() {
            return match self.member_to_join() {
                Ok(addr) => {
                    actions.push(Action::Join { addr });
                    None
                }
                Err(waiting) => Some(waiting),
            };
        }
        actions.extend(self.mend_word().map(Action::Keep));
        if now < self.listens_until {
            return None;
        }
        if self.word.as_ref().is_some_and(|word| word.decided) {
            return self.found(actions);
        }
        if let Some((name, addrs)) = self.met.double(now) {
            return Some(Waiting::SameName { name, addrs });
        }
        if closure.crowded && !self.config.bootstrap {
            return Some(Waiting::Crowd(NODES_MAX));
        }
        actions.extend(self.promise_within(closure, now).map(Action::Keep));
        let missing = self.met.missing(closure, now);
        actions.extend(self.attempt(closure, &missing, now).map(Action::Keep));
        if self.has_all_words(closure, &missing, now) {
            let word = self.word.as_mut().expect("who has all words has an attempt open");
            word.decided = true;
            // The attempt was never told to anybody if it began in this step; one write will do.
            actions.retain(|action| !matches!(action, Action::Keep(_)));
            actions.push(Action::Keep(word.clone()));
            return self.found(actions);
        }
        self.waits_for(closure, missing, now)
    }

    fn found(&self, actions: &mut Vec<Action>) -> Option<Waiting> {
        let attempt = self.word.as_ref().map_or(0, |word| word.attempt);
        actions.push(Action::Found { attempt });
        None
    }

    fn has_met_members(&self) -> bool {
        self.met.members().next().is_some()
    }

    /// The member to ask. A cluster that knows this node's name goes before one that is listed,
    /// and that before one that others list.
    fn member_to_join(&self) -> Result<String, Waiting> {
        let mut members: Vec<(u8, bool, &String, u128)> = Vec::new();
        for (addr, place) in &self.met.places {
            if let Some(Who::Member { cluster, knows_me }) = place.who {
                let rank = match knows_me {
                    true => 0,
                    false if self.config.addrs.contains(addr) => 1,
                    false => 2,
                };
                members.push((rank, place.silence.is_some(), addr, cluster));
            }
        }
        members.sort_unstable();
        let best = members.iter().take_while(|(rank, ..)| *rank == members[0].0);
        let best: Vec<_> = best.map(|(.., addr, cluster)| ((*addr).clone(), *cluster)).collect();
        let cluster = best[0].1;
        if best.iter().any(|(_, other)| *other != cluster) {
            return Err(Waiting::Clusters(best));
        }
        let mut of_it = members.iter().filter(|(.., other)| *other == cluster);
        if let Some((_, _, addr, _)) = of_it.clone().find(|(_, silent, ..)| !silent) {
            return Ok((*addr).clone());
        }
        let missing = |addr: &String| Missing {
            name: None,
            addr: addr.clone(),
            why: self.met.places[addr].silence,
        };
        Err(Waiting::MembersSilent(of_it.by_ref().map(|(_, _, addr, _)| missing(addr)).collect()))
    }

    /// Gives the word to whoever should found, if it asks and the word is free for it.
    pub(super) fn promise(&mut self, now: Instant) -> Option<Word> {
        let listens = now < self.listens_until;
        if listens || self.has_met_members() || self.met.double(now).is_some() {
            return None;
        }
        let closure = self.met.closure(now);
        self.promise_within(&closure, now)
    }

    fn promise_within(&mut self, closure: &Closure, now: Instant) -> Option<Word> {
        let first = closure.names.iter().min_by_key(|name| self.rank(name, now))?;
        if self.rank(first, now) > (!self.config.bootstrap, &self.config.name) {
            return None;
        }
        let founder = self.met.newborn(first).filter(|_| self.met.hears(first, now))?;
        let asked = founder.word.as_ref().filter(|word| word.is_own())?;
        if !self.is_free_for(founder, asked.attempt, now) {
            return None;
        }
        let own = self.word.as_ref().filter(|word| word.is_own()).map_or(0, |word| word.attempt);
        let given_up = self.word.as_ref().map_or(0, |word| word.given_up);
        let word = Word {
            giver: self.config.name.clone(),
            founder: founder.name.clone(),
            founder_addr: founder.peer_addr.clone(),
            attempt: asked.attempt,
            bootstrap: founder.bootstrap,
            given_up: given_up.max(own).max(self.attempt_mentioned),
            decided: false,
        };
        Some(self.keep(word))
    }

    /// Whether this node may give its word to `founder` for that attempt.
    fn is_free_for(&self, founder: &Newborn, attempt: u64, now: Instant) -> bool {
        let Some(word) = &self.word else {
            return true;
        };
        if word.decided {
            return false;
        }
        if word.founder == founder.name {
            // The founder has one attempt open at a time, and they rise.
            return attempt > word.attempt;
        }
        // An own attempt yields: the founder asked goes before this node.
        word.is_own() || self.is_given_back(word) || (founder.bootstrap && self.yields(word, now))
    }

    /// Whether the founder itself says that the attempt is over for good.
    fn is_given_back(&self, word: &Word) -> bool {
        let founder = self.met.newborn(&word.founder).and_then(|founder| founder.word.as_ref());
        founder.is_some_and(|says| says.given_up >= word.attempt)
    }

    /// Whether the word does not stand in the way of a node with `--bootstrap`.
    fn yields(&self, word: &Word, now: Instant) -> bool {
        !word.bootstrap || !self.met.hears(&word.founder, now)
    }

    /// Begins an attempt to found, if it is for this node to do so and nobody is missing.
    fn attempt(&mut self, closure: &Closure, missing: &[Missing], now: Instant) -> Option<Word> {
        let bootstrap = self.config.bootstrap;
        if !self.goes_first(closure, now) || !(missing.is_empty() || bootstrap) {
            return None;
        }
        let free = self.word.as_ref().is_none_or(|word| {
            !word.is_own() && (self.is_given_back(word) || (bootstrap && self.yields(word, now)))
        });
        if !free {
            return None;
        }
        let given_up = self.word.as_ref().map_or(0, |word| word.given_up);
        let given_up = given_up.max(self.attempt_mentioned);
        let word = Word {
            giver: self.config.name.clone(),
            founder: self.config.name.clone(),
            founder_addr: self.config.peer_addr.clone(),
            attempt: given_up.saturating_add(1),
            bootstrap,
            given_up,
            decided: false,
        };
        Some(self.keep(word))
    }

    /// Whether this node's attempt is open, and everybody has given it their word.
    fn has_all_words(&self, closure: &Closure, missing: &[Missing], now: Instant) -> bool {
        let Some(word) = self.word.as_ref().filter(|word| word.is_own()) else {
            return false;
        };
        let bootstrap = self.config.bootstrap;
        let given = |name: &String| self.has_word_of(name, word.attempt);
        let spared = |name: &String| bootstrap && !self.met.hears(name, now);
        // A word that was once given for this attempt holds, its giver silent or not.
        let met_all = missing.iter().all(|missing| missing.name.as_ref().is_some_and(given));
        self.goes_first(closure, now)
            && (bootstrap || met_all)
            && closure.names.iter().all(|name| given(name) || spared(name))
    }

    fn has_word_of(&self, name: &str, attempt: u64) -> bool {
        let word = self.met.newborn(name).and_then(|newborn| newborn.word.as_ref());
        word.is_some_and(|word| word.is_for(&self.config.name, attempt))
    }

    /// After a wipe others may hold words for attempts that this node does not remember. An open
    /// attempt goes on above them; with its word given away, it says that they are over.
    pub(super) fn mend_word(&mut self) -> Option<Word> {
        let mentioned = self.attempt_mentioned;
        let word = self.word.as_ref().filter(|word| !word.decided)?;
        let mut mended = word.clone();
        if word.is_own() && word.attempt < mentioned {
            mended.given_up = mentioned;
            mended.attempt = mentioned.saturating_add(1);
        } else if !word.is_own() && word.given_up < mentioned {
            mended.given_up = mentioned;
        } else {
            return None;
        }
        Some(self.keep(mended))
    }

    fn keep(&mut self, word: Word) -> Word {
        self.eager = true;
        self.word.insert(word).clone()
    }

    fn goes_first(&self, closure: &Closure, now: Instant) -> bool {
        let mine = (!self.config.bootstrap, &self.config.name);
        closure.names.iter().all(|name| mine < self.rank(name, now))
    }

    /// Who founds is the lowest: with `--bootstrap` before without, then by name.
    fn rank<'a>(&self, name: &'a String, now: Instant) -> (bool, &'a String) {
        let newborn = self.met.newborn(name).filter(|_| self.met.hears(name, now));
        (!newborn.is_some_and(|newborn| newborn.bootstrap), name)
    }

    fn waits_for(&self, closure: &Closure, missing: Vec<Missing>, now: Instant) -> Option<Waiting> {
        let founder = self.word.as_ref().filter(|word| !word.is_own() && !self.is_given_back(word));
        if let Some(word) = founder.filter(|word| !self.met.hears(&word.founder, now)) {
            let why = self.met.places.get(&word.founder_addr).and_then(|place| place.silence);
            let (name, addr) = (Some(word.founder.clone()), word.founder_addr.clone());
            return Some(Waiting::FounderSilent(Missing { name, addr, why }));
        }
        if !(missing.is_empty() || self.config.bootstrap) {
            return Some(Waiting::Silent(missing));
        }
        if let Some(word) = founder {
            return Some(Waiting::Founder(word.founder.clone()));
        }
        self.word.as_ref().filter(|word| word.is_own())?;
        let asked = |name: &&String| !self.config.bootstrap || self.met.hears(name, now);
        Some(Waiting::Words(closure.names.iter().filter(asked).cloned().collect()))
    }
}
