//! Which process a datagram comes from, and whether it comes from it now.
//!
//! Nobody's clock is asked. Each process draws a random session when it starts, and gives each
//! session of another node that greets it a **token**: a keyed hash of node, session, and how often
//! that node's session has changed here. A datagram counts only if it shows the token given to its
//! session by this process, and only once for each counter (a window, as in RFC 4303, 3.4.3). So:
//!
//! - A recording is refused as long as this process runs: its counter was seen, or its session was
//!   followed by another, whose proof changed what the old one would have to show.
//! - After a restart of this process nothing recorded shows a token of the new one.
//! - A restarted sender is taken as soon as it shows its token: one round trip.
//!
//! A greeting may also prove its session by answering a datagram of this process: its counter is
//! inside the seal, must be of the last two minutes, and answers from one node must rise.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use rand::{Rng, RngExt};

use super::datagram::{Envelope, Greeting, Session};
use super::seal::{Keyring, Keys};
use crate::topology::NodeId;

/// Counters behind the highest one heard that are still told apart.
const WINDOW: u64 = 1_024;

/// Most nodes whose sessions are kept; beyond, the one not heard for longest is forgotten, and
/// has to greet again.
pub(super) const NODES_MAX: usize = 1_024;

/// Half the time in which a datagram may be answered.
const ANSWER_SPAN: Duration = Duration::from_secs(60);

/// What a datagram, well sealed, is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// It comes from the node's present process, now, and for the first time.
    Proven,
    /// Nothing speaks against it, and nothing for it.
    Unproven,
    /// It was heard before, or belongs to an earlier session.
    Replay,
    /// From a life of the node that a later one has followed.
    OldLife,
}

/// The sessions of this process and of others.
pub(super) struct Sessions {
    own: Session,
    counter: u64,
    token_key: hmac::Key,
    /// Rises whenever a session is proven or forgotten.
    stamp: u64,
    /// The stamp of nodes that are not in the table, and the counter below which they answer in
    /// vain: set when one is forgotten.
    unknown: (u64, u64),
    /// The counter at the last turn of [`ANSWER_SPAN`], at the one before, and when the next is.
    answerable: (u64, u64, Instant),
    remotes: BTreeMap<NodeId, Remote>,
    nodes: HashMap<Session, NodeId>,
}

struct Remote {
    session: Session,
    life: u64,
    stamp: u64,
    /// What its session must show.
    given: u64,
    /// What it wants to be shown.
    wanted: Option<u64>,
    /// The highest counter of ours that it has answered.
    answered: u64,
    window: Window,
    keys: Keys,
    heard: Instant,
}

impl Sessions {
    /// A new session for this process.
    pub(super) fn new(rng: &mut impl Rng, now: Instant) -> Self {
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        Self {
            own: Session(rng.random()),
            counter: 0,
            token_key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            stamp: 1,
            unknown: (0, 0),
            answerable: (0, 0, now + ANSWER_SPAN),
            remotes: BTreeMap::new(),
            nodes: HashMap::new(),
        }
    }

    /// This process's session.
    pub(super) fn own(&self) -> Session {
        self.own
    }

    /// The counter of the next datagram.
    pub(super) fn next_counter(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// The keys of a session that has been proven.
    pub(super) fn keys(&self, session: Session) -> Option<&Keys> {
        let remote = self.remotes.get(self.nodes.get(&session)?)?;
        (remote.session == session).then_some(&remote.keys)
    }

    /// Derives all keys anew: the secrets have changed.
    pub(super) fn rekey(&mut self, keyring: &Keyring) {
        for remote in self.remotes.values_mut() {
            remote.keys = keyring.keys(remote.session);
        }
    }

    /// What a node wants to be shown, if that is known.
    pub(super) fn wanted(&self, node: NodeId) -> Option<u64> {
        self.remotes.get(&node)?.wanted
    }

    /// A node's present session, as far as it is proven.
    pub(super) fn of(&self, node: NodeId) -> Option<Session> {
        self.remotes.get(&node).map(|remote| remote.session)
    }

    /// What a session has to show.
    pub(super) fn token(&self, node: NodeId, session: Session) -> u64 {
        let stamp = match self.remotes.get(&node) {
            Some(remote) if remote.session == session => return remote.given,
            Some(remote) => remote.stamp,
            None => self.unknown.0,
        };
        let mut text = [0; 32];
        text[..8].copy_from_slice(&node.0.to_be_bytes());
        text[8..24].copy_from_slice(&session.0.to_be_bytes());
        text[24..].copy_from_slice(&stamp.to_be_bytes());
        let tag = hmac::sign(&self.token_key, &text);
        let token: [u8; 8] = tag.as_ref()[..8].try_into().expect("an HMAC-SHA256 has 32 bytes");
        // Zero means "none" on the wire.
        u64::from_be_bytes(token).max(1)
    }

    /// Judges a datagram that was well sealed. A session that proves itself is taken from here on.
    pub(super) fn judge(
        &mut self,
        envelope: &Envelope,
        session: Session,
        counter: u64,
        keyring: &Keyring,
        now: Instant,
    ) -> Worth {
        let due = self.token(envelope.from, session);
        let shown = envelope.token;
        let Some(remote) = self.remotes.get_mut(&envelope.from) else {
            if shown != Some(due) {
                return Worth::Unproven;
            }
            self.take(envelope, session, counter, keyring, now);
            return Worth::Proven;
        };
        if remote.session == session {
            return match shown {
                Some(shown) if shown == due && remote.window.take(counter) => {
                    remote.heard = now;
                    Worth::Proven
                }
                Some(shown) if shown != due && counter > remote.window.highest => Worth::Unproven,
                Some(_) => Worth::Replay,
                // It has forgotten us and has to be told again.
                None => Worth::Unproven,
            };
        }
        match shown {
            Some(shown) if shown != due => Worth::Replay,
            _ if envelope.life < remote.life => Worth::OldLife,
            None => Worth::Unproven,
            Some(_) => {
                self.take(envelope, session, counter, keyring, now);
                Worth::Proven
            }
        }
    }

    /// Whether a greeting that shows no token proves its session by what it answers. If so the
    /// session is taken.
    pub(super) fn judge_answer(
        &mut self,
        envelope: &Envelope,
        (session, counter): (Session, u64),
        greeting: &Greeting,
        keyring: &Keyring,
        now: Instant,
    ) -> bool {
        let remote = self.remotes.get(&envelope.from);
        let floor = remote.map_or(self.unknown.1, |remote| remote.answered);
        let floor = floor.max(self.answerable.1);
        let answered = match greeting.answers {
            Some((own, answered)) if own == self.own => answered,
            _ => return false,
        };
        if answered <= floor || answered > self.counter {
            return false;
        }
        match self.remotes.get_mut(&envelope.from) {
            Some(remote) if remote.session == session => {
                remote.answered = answered;
                remote.heard = now;
            }
            // From here on only what is sent from now on can be answered.
            _ => self.take(envelope, session, counter, keyring, now),
        }
        true
    }

    /// A greeting that is surely fresh says what its sender wants to be shown.
    pub(super) fn set_wanted(&mut self, node: NodeId, wanted: u64) {
        if let Some(remote) = self.remotes.get_mut(&node) {
            remote.wanted = Some(wanted);
        }
    }

    /// To be called now and then: lets old datagrams go unanswered.
    pub(super) fn tick(&mut self, now: Instant) {
        let (last, _, next) = self.answerable;
        if now >= next {
            self.answerable = (self.counter, last, now + ANSWER_SPAN);
        }
    }

    fn take(
        &mut self,
        envelope: &Envelope,
        session: Session,
        counter: u64,
        keyring: &Keyring,
        now: Instant,
    ) {
        let node = envelope.from;
        let given = self.token(node, session);
        if let Some(before) = self.remotes.remove(&node) {
            self.nodes.remove(&before.session);
        } else if self.remotes.len() >= NODES_MAX {
            self.forget_quietest();
        }
        self.stamp += 1;
        let remote = Remote {
            session,
            life: envelope.life,
            stamp: self.stamp,
            given,
            wanted: None,
            answered: self.counter,
            window: Window::starting_at(counter),
            keys: keyring.keys(session),
            heard: now,
        };
        self.remotes.insert(node, remote);
        self.nodes.insert(session, node);
    }

    fn forget_quietest(&mut self) {
        let quietest = self.remotes.iter().min_by_key(|(_, remote)| remote.heard);
        let Some((&node, _)) = quietest else { return };
        if let Some(remote) = self.remotes.remove(&node) {
            self.nodes.remove(&remote.session);
        }
        self.stamp += 1;
        self.unknown = (self.stamp, self.counter);
    }
}

/// Which of the last [`WINDOW`] counters were heard.
struct Window {
    highest: u64,
    /// Bit `counter % WINDOW`, for counters above `highest - WINDOW`.
    heard: [u64; WINDOW as usize / 64],
}

impl Window {
    fn starting_at(counter: u64) -> Self {
        let mut window = Self { highest: counter, heard: [0; WINDOW as usize / 64] };
        window.mark(counter, true);
        window
    }

    /// Whether `counter` is heard for the first time, and not too late.
    fn take(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            let gap = (counter - self.highest).min(WINDOW);
            for passed in 1..=gap {
                self.mark(self.highest.wrapping_add(passed), false);
            }
            self.highest = counter;
        } else if self.highest - counter >= WINDOW || self.is_marked(counter) {
            return false;
        }
        self.mark(counter, true);
        true
    }

    fn place(counter: u64) -> (usize, u64) {
        let bit = counter % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn is_marked(&self, counter: u64) -> bool {
        let (word, bit) = Self::place(counter);
        self.heard[word] & bit != 0
    }

    fn mark(&mut self, counter: u64, heard: bool) {
        let (word, bit) = Self::place(counter);
        if heard {
            self.heard[word] |= bit;
        } else {
            self.heard[word] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests;
