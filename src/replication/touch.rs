//! Which members this node is in touch with, and since when it has not been with the others.
//!
//! Invariant: a member that was out of touch counts as that until the copies know which hang on it.
//! What was ordered meanwhile may come long after the first word of it: bytes that were sent into a
//! cut are sent again after seconds, in each connection by itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::topology::NodeId;

/// The members that are out of touch, or were when that was last looked at; since when.
#[derive(Debug)]
pub(super) struct Touch {
    began: Instant,
    parted: Mutex<BTreeMap<NodeId, Instant>>,
    /// Whether there are none; read with each read of a key.
    whole: AtomicBool,
}

impl Touch {
    pub(super) fn new(began: Instant) -> Self {
        Self { began, parted: Mutex::default(), whole: AtomicBool::new(true) }
    }

    /// For how long a member has been out of touch, as far as was seen.
    pub(super) fn parted_for(&self, node: NodeId) -> Option<Duration> {
        self.parted.lock().get(&node).map(Instant::elapsed)
    }

    /// Takes in for how long each member has been silent, if it is. Answers those that were out of
    /// touch and are no more, and since when they had been: they are to be [`Touch::met`].
    pub(super) fn look(
        &self,
        members: impl Iterator<Item = NodeId>,
        silent_for: impl Fn(NodeId) -> Option<Duration>,
        now: Instant,
    ) -> Vec<(NodeId, Instant)> {
        let mut parted = self.parted.lock();
        let mut present = BTreeMap::new();
        let mut back = Vec::new();
        for node in members {
            let known = parted.get(&node).copied();
            match (silent_for(node), known) {
                // What is new was never heard; that says nothing of before this process began.
                (Some(span), None) => {
                    let since = now.checked_sub(span).unwrap_or(self.began).max(self.began);
                    present.insert(node, since);
                }
                (None, None) => {}
                (silent, Some(since)) => {
                    present.insert(node, since);
                    if silent.is_none() {
                        back.push((node, since));
                    }
                }
            }
        }
        self.whole.store(present.is_empty(), Ordering::Release);
        *parted = present;
        back
    }

    /// All copies know that this member was out of touch.
    pub(super) fn met(&self, node: NodeId) {
        let mut parted = self.parted.lock();
        parted.remove(&node);
        self.whole.store(parted.is_empty(), Ordering::Release);
    }

    /// Whether nobody is out of touch.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn who_was_out_of_touch_stays_so_until_the_copies_know() {
        let began = Instant::now();
        let touch = Touch::new(began);
        let look = |silent: &[(u64, u64)], now: u64| {
            let silent = |node: NodeId| {
                silent.iter().find(|(id, _)| *id == node.0).map(|(_, span)| at(*span))
            };
            touch.look(MEMBERS.into_iter(), silent, began + at(now))
        };
        assert_eq!(look(&[], 1_000), []);
        assert!(touch.is_whole());
        assert_eq!(look(&[(2, 200)], 9_000), []);
        assert_eq!(look(&[(2, 300)], 9_100), []);
        assert_eq!(look(&[], 9_200), [(NodeId(2), began + at(8_800))]);
        assert!(touch.parted_for(NodeId(2)).is_some() && touch.parted_for(NodeId(3)).is_none());
        assert_eq!(look(&[], 9_300), [(NodeId(2), began + at(8_800))], "again, until it is met");
        touch.met(NodeId(2));
        assert_eq!(touch.parted_for(NodeId(2)), None);
        assert_eq!(look(&[], 9_400), []);
    }

    #[test]
    fn who_was_never_heard_counts_from_the_beginning_and_who_is_no_member_does_not_count() {
        let began = Instant::now();
        let touch = Touch::new(began);
        let never = |_| Some(Duration::from_secs(3_600));
        assert_eq!(touch.look(MEMBERS.into_iter(), never, began + at(10)), []);
        let back = touch.look([NodeId(3)].into_iter(), |_| None, began + at(500));
        assert_eq!(back, [(NodeId(3), began)]);
        assert_eq!(touch.parted_for(NodeId(2)), None);
    }
}
