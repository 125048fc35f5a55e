//! Request ids and their results: what makes a write that is asked twice happen once.
//!
//! Ids that coordinators count are kept while their coordinator may still ask again; a client's
//! own keys are kept for [`KEYED_WINDOW`]. Both are part of the log: every record that carries an
//! id brings it here, on each copy alike.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::entry::{RequestId, Timestamp, Verdict, Version};

/// How long a client's `Idempotency-Key` is remembered.
pub const KEYED_WINDOW: Duration = Duration::from_secs(300);

/// How many keys of clients one shard remembers; at this bound new ones are refused.
pub const KEYED_MAX: usize = 4096;

/// How many lives of coordinators one shard remembers; the one longest silent goes first.
const LIVES_MAX: usize = 64;

/// The result that a record carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was answered.
    pub verdict: Verdict,
    /// The record's version.
    pub version: Version,
}

/// What is known of a request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recall {
    /// Not seen: go on.
    New,
    /// Done before, with this result.
    Done(Outcome),
    /// Below what its coordinator still waits for: a late duplicate. Refuse it.
    Forgotten,
    /// The client's key was used for another request.
    Mismatch,
    /// No more room for keys of clients. Refuse it.
    Full,
}

/// The request ids of one shard.
#[derive(Debug, Default)]
pub struct Requests {
    /// In an order that is the same on every copy.
    lives: BTreeMap<u64, Life>,
    keyed: HashMap<u128, Keyed>,
    /// The keys above, in log order, so that the oldest are forgotten first.
    keyed_order: VecDeque<(Timestamp, u128)>,
}

#[derive(Debug, Default)]
struct Life {
    waits_from: u64,
    heard: Version,
    results: BTreeMap<u64, Outcome>,
}

#[derive(Clone, Copy, Debug)]
struct Keyed {
    request: u64,
    outcome: Outcome,
}

impl Requests {
    /// Looks a request up before it is ordered.
    pub fn recall(&mut self, id: RequestId, now: Timestamp) -> Recall {
        match id {
            RequestId::Internal => Recall::New,
            RequestId::Counted { incarnation, counter, .. } => {
                let Some(life) = self.lives.get(&incarnation) else {
                    return Recall::New;
                };
                match life.results.get(&counter) {
                    Some(outcome) => Recall::Done(*outcome),
                    None if counter < life.waits_from => Recall::Forgotten,
                    None => Recall::New,
                }
            }
            RequestId::Keyed { key, request } => {
                self.forget_keyed(now);
                match self.keyed.get(&key) {
                    Some(kept) if kept.request == request => Recall::Done(kept.outcome),
                    Some(_) => Recall::Mismatch,
                    None if self.keyed.len() >= KEYED_MAX => Recall::Full,
                    None => Recall::New,
                }
            }
        }
    }

    /// Takes the id and result of a record that now stands in the log.
    pub fn note(&mut self, id: RequestId, outcome: Outcome) {
        match id {
            RequestId::Internal => {}
            RequestId::Counted { incarnation, counter, waits_from } => {
                if !self.lives.contains_key(&incarnation) && self.lives.len() >= LIVES_MAX {
                    self.forget_longest_silent_life();
                }
                let life = self.lives.entry(incarnation).or_default();
                life.heard = life.heard.max(outcome.version);
                life.results.insert(counter, outcome);
                if waits_from > life.waits_from {
                    life.waits_from = waits_from;
                    while life.results.first_key_value().is_some_and(|(c, _)| *c < waits_from) {
                        life.results.pop_first();
                    }
                }
            }
            RequestId::Keyed { key, request } => {
                let at = outcome.version.timestamp();
                self.forget_keyed(at);
                if self.keyed.insert(key, Keyed { request, outcome }).is_none() {
                    self.keyed_order.push_back((at, key));
                }
            }
        }
    }

    /// Forgets the id of a record that was given up.
    pub fn forget(&mut self, id: RequestId) {
        match id {
            RequestId::Internal => {}
            RequestId::Counted { incarnation, counter, .. } => {
                if let Some(life) = self.lives.get_mut(&incarnation) {
                    life.results.remove(&counter);
                }
            }
            RequestId::Keyed { key, .. } => {
                if self.keyed.remove(&key).is_some() {
                    self.keyed_order.retain(|(_, kept)| *kept != key);
                }
            }
        }
    }

    /// Every id that is kept, with its result, for a snapshot.
    pub fn iter(&self) -> impl Iterator<Item = (RequestId, Outcome)> + '_ {
        let counted = self.lives.iter().flat_map(|(&incarnation, life)| {
            life.results.iter().map(move |(&counter, &outcome)| {
                let waits_from = life.waits_from;
                (RequestId::Counted { incarnation, counter, waits_from }, outcome)
            })
        });
        let keyed = self.keyed_order.iter().filter_map(|(_, key)| {
            let kept = self.keyed.get(key)?;
            Some((RequestId::Keyed { key: *key, request: kept.request }, kept.outcome))
        });
        counted.chain(keyed)
    }

    fn forget_keyed(&mut self, now: Timestamp) {
        let window_millis = KEYED_WINDOW.as_millis() as u64;
        while let Some(&(at, key)) = self.keyed_order.front()
            && now.millis_after(at) > window_millis
        {
            self.keyed_order.pop_front();
            self.keyed.remove(&key);
        }
    }

    fn forget_longest_silent_life(&mut self) {
        let silent = self.lives.iter().min_by_key(|(_, life)| life.heard).map(|(id, _)| *id);
        if let Some(id) = silent {
            self.lives.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn outcome(n: i64, at: Timestamp) -> Outcome {
        Outcome { verdict: Verdict::Number(n), version: Version::at(at, 0) }
    }

    fn counted(counter: u64, waits_from: u64) -> RequestId {
        RequestId::Counted { incarnation: 9, counter, waits_from }
    }

    #[test]
    fn a_counted_request_is_answered_again_until_its_coordinator_stops_waiting() {
        let mut requests = Requests::default();
        assert_eq!(requests.recall(counted(1, 1), NOW), Recall::New);
        requests.note(counted(1, 1), outcome(10, NOW));
        assert_eq!(requests.recall(counted(1, 1), NOW), Recall::Done(outcome(10, NOW)));
        requests.note(counted(2, 2), outcome(20, NOW));
        assert_eq!(requests.recall(counted(1, 1), NOW), Recall::Forgotten);
        assert_eq!(requests.recall(counted(2, 2), NOW), Recall::Done(outcome(20, NOW)));
        assert_eq!(requests.iter().count(), 1);
    }

    #[test]
    fn a_clients_key_answers_for_its_window_and_only_for_the_same_request() {
        let mut requests = Requests::default();
        let id = RequestId::Keyed { key: 5, request: 1 };
        requests.note(id, outcome(10, NOW));
        let soon = Timestamp(NOW.0 + 299_000);
        assert_eq!(requests.recall(id, soon), Recall::Done(outcome(10, NOW)));
        let other = RequestId::Keyed { key: 5, request: 2 };
        assert_eq!(requests.recall(other, soon), Recall::Mismatch);
        let later = Timestamp(NOW.0 + 301_000);
        assert_eq!(requests.recall(other, later), Recall::New);
    }

    #[test]
    fn at_the_bound_new_keys_are_refused_and_old_ones_still_answer() {
        let mut requests = Requests::default();
        for key in 0..KEYED_MAX as u128 {
            requests.note(RequestId::Keyed { key, request: 1 }, outcome(1, NOW));
        }
        let fresh = RequestId::Keyed { key: u128::MAX, request: 1 };
        assert_eq!(requests.recall(fresh, NOW), Recall::Full);
        let old = RequestId::Keyed { key: 0, request: 1 };
        assert_eq!(requests.recall(old, NOW), Recall::Done(outcome(1, NOW)));
    }

    #[test]
    fn the_coordinator_longest_silent_makes_room() {
        let mut requests = Requests::default();
        for incarnation in 0..65 {
            let id = RequestId::Counted { incarnation, counter: 1, waits_from: 1 };
            requests.note(id, outcome(0, Timestamp(NOW.0 + incarnation)));
        }
        let first = RequestId::Counted { incarnation: 0, counter: 1, waits_from: 1 };
        assert_eq!(requests.recall(first, NOW), Recall::New);
        let second = RequestId::Counted { incarnation: 1, counter: 1, waits_from: 1 };
        assert!(matches!(requests.recall(second, NOW), Recall::Done(_)));
    }
}
