//! What clients asked and were told, and whether one copy of each key could have told them so.
//!
//! The search is that of Wing and Gong (1993) with Lowe's memo (2017): operations are put in an
//! order that respects real time, one after another; what was tried is remembered as the set of
//! those done and the state they led to. An operation whose outcome is unknown may or may not
//! have happened, once; one that was answered before it was safe may be lost.

use std::collections::HashSet;

use aegiskv::entry::{Verdict, Version};
use aegiskv::shard::Condition;

/// Most operations on one key: a bit each.
pub(crate) const OPERATIONS_MAX: usize = 128;

/// How many steps a search may take before it counts as undecided.
const STEPS_MAX: usize = 2_000_000;

/// The conditions that clients here set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Only {
    Always,
    Absent,
    Present,
    Is(Version),
}

impl From<Only> for Condition {
    fn from(only: Only) -> Self {
        match only {
            Only::Always => Self::Always,
            Only::Absent => Self::Absent,
            Only::Present => Self::Present,
            Only::Is(version) => Self::Is(version),
        }
    }
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Asked {
    Put { value: i64, condition: Only },
    Delete { condition: Only },
    Incr { by: i64 },
    Touch,
    Get,
}

/// What was told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Told {
    /// Nothing that says whether it happened.
    Unknown,
    /// It surely did not happen.
    NotApplied,
    Ordered(Verdict, Version),
    Read(Option<(i64, Version)>),
}

/// One operation on one key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) asked: Asked,
    pub(crate) told: Told,
    /// When it was asked, and when it was answered.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Answered before a majority had it: it may be lost.
    pub(crate) may_be_lost: bool,
}

/// What a key holds; version 0 stands for one that nobody was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    value: i64,
    version: u64,
}

type State = Option<Held>;

/// Whether the operations on one key can be put in order. `vanishes`: what the key holds may be
/// gone at any moment, because it expires or is evicted, but never comes back.
pub(crate) fn is_linearizable(operations: &[Operation], vanishes: bool) -> bool {
    let mut operations: Vec<Operation> = operations
        .iter()
        .copied()
        .filter(|operation| {
            operation.told != Told::NotApplied
                && !(operation.told == Told::Unknown && operation.asked == Asked::Get)
        })
        .collect();
    assert!(operations.len() <= OPERATIONS_MAX, "too many operations on one key");
    operations.sort_by_key(|operation| operation.from);
    let needed = operations
        .iter()
        .enumerate()
        .filter(|(_, operation)| !operation.is_optional())
        .fold(0_u128, |mask, (i, _)| mask | 1 << i);
    let search = Search { operations: &operations, needed, vanishes };
    search.run()
}

struct Search<'a> {
    operations: &'a [Operation],
    needed: u128,
    vanishes: bool,
}

impl Search<'_> {
    fn run(&self) -> bool {
        let mut seen: HashSet<(u128, State)> = HashSet::new();
        let mut stack: Vec<(u128, State)> = vec![(0, None)];
        let mut steps = 0;
        while let Some((done, state)) = stack.pop() {
            if self.needed & !done == 0 {
                return true;
            }
            if !seen.insert((done, state)) {
                continue;
            }
            steps += 1;
            if steps > STEPS_MAX {
                // Undecided: no proof of a fault.
                return true;
            }
            self.push_next(done, state, &mut stack);
            if self.vanishes && state.is_some() {
                stack.push((done, None));
            }
        }
        false
    }

    /// What may come next: whatever began before all that are needed and not done had ended.
    fn push_next(&self, done: u128, state: State, stack: &mut Vec<(u128, State)>) {
        let (mut ends_first, mut latest) = (u64::MAX, 0);
        for (i, operation) in self.operations.iter().enumerate() {
            if done & 1 << i != 0 {
                latest = latest.max(operation.from);
            } else if self.needed & 1 << i != 0 {
                ends_first = ends_first.min(operation.to);
            }
        }
        for (i, operation) in self.operations.iter().enumerate().rev() {
            let fits = operation.from <= ends_first && operation.ends() >= latest;
            if done & 1 << i == 0 && fits {
                let next = done | 1 << i;
                operation.apply(state, &mut |state| stack.push((next, state)));
            }
        }
    }
}

impl Operation {
    fn is_optional(&self) -> bool {
        self.told == Told::Unknown || self.may_be_lost
    }

    fn ends(&self) -> u64 {
        if self.told == Told::Unknown { u64::MAX } else { self.to }
    }

    /// Gives the states that this operation may lead to from `state`, if it can have been told what
    /// it was told there.
    fn apply(&self, state: State, then: &mut dyn FnMut(State)) {
        match (self.asked, self.told) {
            (_, Told::NotApplied) => {}
            (Asked::Get, Told::Read(read)) => {
                if let Some(state) = agrees(state, read) {
                    then(state);
                }
            }
            (asked, Told::Ordered(verdict, version)) => {
                if let Some(state) = asked.ordered(state, verdict, version.0) {
                    then(state);
                }
                // What was told may be lost, and the same request, asked again of another primary,
                // stand under another version.
                if self.may_be_lost {
                    asked.unknown(state, then);
                }
            }
            (asked, Told::Unknown) => asked.unknown(state, then),
            (_, Told::Read(_)) => {}
        }
    }
}

/// The state, with its version if that is known by now, if `read` can have been read there.
fn agrees(state: State, read: Option<(i64, Version)>) -> Option<State> {
    match (state, read) {
        (None, None) => Some(None),
        (Some(held), Some((value, version)))
            if held.value == value && (held.version == 0 || held.version == version.0) =>
        {
            Some(Some(Held { value, version: version.0 }))
        }
        _ => None,
    }
}

/// What holds of a condition: yes, no, or it cannot be told.
fn holds(condition: Only, state: State) -> Option<bool> {
    match (condition, state) {
        (Only::Always, _) => Some(true),
        (Only::Absent, state) => Some(state.is_none()),
        (Only::Present, state) => Some(state.is_some()),
        (Only::Is(_), None) => Some(false),
        (Only::Is(_), Some(Held { version: 0, .. })) => None,
        (Only::Is(version), Some(held)) => Some(held.version == version.0),
    }
}

impl Asked {
    fn condition(self) -> Only {
        match self {
            Self::Put { condition, .. } | Self::Delete { condition } => condition,
            _ => Only::Always,
        }
    }

    fn ordered(self, state: State, verdict: Verdict, version: u64) -> Option<State> {
        if let Verdict::ConditionFailed(present) = verdict {
            let refused = holds(self.condition(), state) != Some(true);
            let named = match (state, present) {
                (None, None) => true,
                (Some(held), Some(present)) => held.version == 0 || held.version == present.0,
                _ => false,
            };
            return (refused && named).then_some(state);
        }
        if holds(self.condition(), state) == Some(false) {
            return None;
        }
        let is_new = state.is_none();
        match (self, verdict) {
            (Self::Put { value, .. }, Verdict::Created) if is_new => {
                Some(Some(Held { value, version }))
            }
            (Self::Put { value, .. }, Verdict::Replaced) if !is_new => {
                Some(Some(Held { value, version }))
            }
            (Self::Delete { .. }, Verdict::Deleted) => Some(None),
            (Self::Incr { by }, Verdict::Number(sum)) => {
                let value = state.map_or(0, |held| held.value) + by;
                (value == sum).then_some(Some(Held { value, version }))
            }
            (Self::Touch, Verdict::Touched) => state.map(|held| Some(Held { version, ..held })),
            (Self::Touch, Verdict::Absent) if is_new => Some(None),
            _ => None,
        }
    }

    fn unknown(self, state: State, then: &mut dyn FnMut(State)) {
        let holds = holds(self.condition(), state);
        if holds != Some(false) {
            then(match self {
                Self::Put { value, .. } => Some(Held { value, version: 0 }),
                Self::Delete { .. } => None,
                Self::Incr { by } => {
                    let value = state.map_or(0, |held| held.value) + by;
                    Some(Held { value, version: 0 })
                }
                Self::Touch => state.map(|held| Held { version: 0, ..held }),
                Self::Get => state,
            });
        }
        // Where it had no effect it might as well not have happened: nothing more to try.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(asked: Asked, told: Told, from: u64, to: u64) -> Operation {
        Operation { asked, told, from, to, may_be_lost: false }
    }

    fn put(value: i64, version: u64, verdict: Verdict, from: u64, to: u64) -> Operation {
        let asked = Asked::Put { value, condition: Only::Always };
        operation(asked, Told::Ordered(verdict, Version(version)), from, to)
    }

    fn get(read: Option<(i64, u64)>, from: u64, to: u64) -> Operation {
        let read = read.map(|(value, version)| (value, Version(version)));
        operation(Asked::Get, Told::Read(read), from, to)
    }

    #[test]
    fn a_read_of_what_was_overwritten_before_it_began_is_refused() {
        let first = put(1, 10, Verdict::Created, 0, 1);
        let second = put(2, 20, Verdict::Replaced, 2, 3);
        assert!(is_linearizable(&[first, second, get(Some((2, 20)), 4, 5)], false));
        assert!(!is_linearizable(&[first, second, get(Some((1, 10)), 4, 5)], false));
        assert!(is_linearizable(&[first, second, get(Some((1, 10)), 2, 5)], false));
    }

    #[test]
    fn what_was_acknowledged_may_not_be_lost_unless_it_was_not_safe() {
        let mut write = put(1, 10, Verdict::Created, 0, 1);
        assert!(!is_linearizable(&[write, get(None, 2, 3)], false));
        assert!(is_linearizable(&[write, get(None, 2, 3)], true));
        let twin = get(Some((1, 11)), 2, 3);
        assert!(!is_linearizable(&[write, twin], false));
        write.may_be_lost = true;
        assert!(is_linearizable(&[write, get(None, 2, 3)], false));
        assert!(is_linearizable(&[write, twin], false), "by the other of two primaries");
        assert!(!is_linearizable(&[write, get(Some((2, 11)), 2, 3)], false));
    }

    #[test]
    fn an_unknown_increment_counts_once_or_not_at_all() {
        let unknown = operation(Asked::Incr { by: 1 }, Told::Unknown, 0, 1);
        let sum = |n, from| {
            let told = Told::Ordered(Verdict::Number(n), Version(n as u64));
            operation(Asked::Incr { by: 1 }, told, from, from + 1)
        };
        assert!(is_linearizable(&[unknown, sum(1, 2), sum(2, 4)], false));
        assert!(is_linearizable(&[unknown, sum(1, 2), sum(3, 4)], false));
        assert!(!is_linearizable(&[unknown, sum(1, 2), sum(4, 4)], false));
    }

    #[test]
    fn what_has_vanished_does_not_come_back() {
        let write = put(1, 10, Verdict::Created, 0, 1);
        let (gone, back) = (get(None, 2, 3), get(Some((1, 10)), 4, 5));
        assert!(!is_linearizable(&[write, gone, back], true));
    }

    #[test]
    fn a_refusal_names_what_was_there() {
        let write = put(1, 10, Verdict::Created, 0, 1);
        let refused = |present| {
            let asked = Asked::Put { value: 2, condition: Only::Absent };
            let verdict = Verdict::ConditionFailed(Some(Version(present)));
            operation(asked, Told::Ordered(verdict, Version(11)), 2, 3)
        };
        assert!(is_linearizable(&[write, refused(10)], false));
        assert!(!is_linearizable(&[write, refused(9)], false));
    }
}
