//! Which positions a log holds, told in a few numbers.
//!
//! One primary orders an epoch's records, each behind a known predecessor; so two logs that both
//! hold a record of an epoch agree on everything up to the lesser of their last records of it
//! (the log matching property of Raft, and Kafka's leader epochs, KIP-101).

use std::collections::VecDeque;

use crate::entry::Position;

/// Epochs that a history remembers. Logs that share none of them are brought level by a copy.
pub const EPOCHS_MAX: usize = 128;

/// The last position of each epoch that a log has records of.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Told")]
pub struct History {
    /// Oldest first, both numbers rising.
    ends: VecDeque<Position>,
    /// Whether it reaches back to the log's beginning.
    complete: bool,
}

/// A history as it comes from elsewhere.
#[derive(serde::Deserialize)]
struct Told {
    ends: Vec<Position>,
    complete: bool,
}

impl TryFrom<Told> for History {
    type Error = &'static str;

    fn try_from(told: Told) -> Result<Self, Self::Error> {
        Self::told(told.ends, told.complete).ok_or("not a log's history")
    }
}

impl Default for History {
    fn default() -> Self {
        Self { ends: VecDeque::new(), complete: true }
    }
}

impl History {
    /// A history as another node tells it. `None` if it is none: out of order, or too long.
    fn told(ends: Vec<Position>, complete: bool) -> Option<Self> {
        let rising = ends.windows(2).all(|w| w[0].epoch < w[1].epoch && w[0].seq < w[1].seq);
        let whole = rising && ends.first().is_none_or(|p| p.epoch > 0 && p.seq > 0);
        (whole && ends.len() <= EPOCHS_MAX).then(|| Self { ends: ends.into(), complete })
    }

    /// The log's last position.
    pub fn last(&self) -> Position {
        self.ends.back().copied().unwrap_or_default()
    }

    /// Takes note of the record that now ends the log.
    pub fn push(&mut self, position: Position) {
        match self.ends.back_mut() {
            Some(end) if end.epoch == position.epoch => *end = position,
            _ => self.ends.push_back(position),
        }
        if self.ends.len() > EPOCHS_MAX {
            self.ends.pop_front();
            self.complete = false;
        }
    }

    /// Forgets all but the last position: what came before is known no more.
    pub fn start_at(&mut self, position: Position) {
        *self = Self { ends: VecDeque::new(), complete: position == Position::default() };
        if position != Position::default() {
            self.ends.push_back(position);
        }
    }

    /// Whether the log holds the record at `position`, if any log ever did.
    pub fn contains(&self, position: Position) -> bool {
        let end = self.ends.iter().rev().find(|end| end.epoch == position.epoch);
        match end {
            Some(end) => position.seq <= end.seq,
            None => position == Position::default() && self.complete,
        }
    }

    /// The last position that both logs hold; `None` if that cannot be told.
    pub fn common(&self, other: &Self) -> Option<Position> {
        for end in self.ends.iter().rev() {
            if let Some(theirs) = other.ends.iter().rev().find(|p| p.epoch == end.epoch) {
                return Some(*end.min(theirs));
            }
        }
        (self.complete && other.complete).then(Position::default)
    }

    /// Forgets what comes after `position`, which the log holds.
    pub fn cut(&mut self, position: Position) {
        while self.ends.back().is_some_and(|end| end.epoch > position.epoch) {
            self.ends.pop_back();
        }
        if let Some(end) = self.ends.back_mut() {
            *end = position;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u32, seq: u64) -> Position {
        Position { epoch, seq }
    }

    fn history(ends: &[(u32, u64)]) -> History {
        History::told(ends.iter().map(|(e, s)| at(*e, *s)).collect(), true).expect("rising")
    }

    #[test]
    fn logs_agree_up_to_the_lesser_end_of_the_last_epoch_they_share() {
        let ours = history(&[(1, 10), (4, 20), (5, 22)]);
        assert_eq!(ours.common(&history(&[(1, 10), (4, 15)])), Some(at(4, 15)));
        assert_eq!(ours.common(&history(&[(1, 12), (3, 14)])), Some(at(1, 10)));
        assert_eq!(ours.common(&history(&[(2, 3)])), Some(at(0, 0)));
        assert_eq!(ours.common(&History::default()), Some(at(0, 0)));
    }

    #[test]
    fn logs_whose_beginnings_are_forgotten_may_share_nothing_known() {
        let mut ours = history(&[(1, 10), (4, 20)]);
        ours.start_at(at(4, 20));
        assert_eq!(ours.common(&history(&[(1, 10)])), None);
        assert_eq!(ours.common(&History::default()), None);
        assert_eq!(ours.common(&history(&[(1, 10), (4, 12)])), Some(at(4, 12)));
        assert!(!ours.contains(at(0, 0)) && !ours.contains(at(1, 3)) && ours.contains(at(4, 15)));
    }

    #[test]
    fn a_cut_log_goes_on_from_there() {
        let mut log = history(&[(1, 10), (4, 20), (5, 22)]);
        log.cut(at(4, 15));
        assert_eq!(log.last(), at(4, 15));
        log.push(at(6, 16));
        assert_eq!(log, history(&[(1, 10), (4, 15), (6, 16)]));
        log.cut(at(0, 0));
        assert_eq!(log.last(), at(0, 0));
    }

    #[test]
    fn nonsense_from_outside_is_no_history() {
        assert!(History::told(vec![at(2, 5), at(1, 9)], true).is_none());
        assert!(History::told(vec![at(1, 9), at(2, 9)], true).is_none());
        assert!(History::told(vec![at(0, 1)], true).is_none());
    }
}
