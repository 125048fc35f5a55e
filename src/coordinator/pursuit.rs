//! How an operation finds its shard's primary: whom to ask, when to ask again, when to give up.
//!
//! Pure. An operation is asked under one request id, so that asking a second primary cannot apply
//! it twice; all that has to be kept is whether some primary may have ordered it.

use std::time::Duration;

use crate::topology::Seat;

/// First pause before the same primary is asked again.
const PAUSE_FIRST: Duration = Duration::from_millis(4);

/// Longest such pause: what an operation may wait beyond the moment its primary leads.
const PAUSE_MAX: Duration = Duration::from_millis(16);

/// One operation's way to its primary.
#[derive(Clone, Debug)]
pub struct Pursuit {
    /// When it is given up, on the caller's clock.
    deadline: Duration,
    pause: Duration,
    must_pause: bool,
    asked: Option<(u32, Seat)>,
    unsure: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask this copy, until this time at most.
    Ask(Seat, Duration),
    /// Wait so long, or until another primary is named.
    Pause(Duration),
    /// Nobody could be asked in time: it was not applied.
    NotApplied,
    /// Somebody may have applied it.
    Unknown,
}

/// Why a question was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was never sent.
    NotSent,
    /// The copy does not lead; it ordered nothing.
    NotLeading,
    /// The copy ordered it perhaps, and leads no more.
    Deposed,
    /// No answer came.
    Lost,
}

impl Pursuit {
    /// Begins at `now`, to end after `patience`.
    pub fn new(now: Duration, patience: Duration) -> Self {
        Self {
            deadline: now + patience,
            pause: PAUSE_FIRST,
            must_pause: false,
            asked: None,
            unsure: false,
        }
    }

    /// What to do at `now`, when `primary` is named in that epoch.
    pub fn next(&mut self, primary: Option<(u32, Seat)>, now: Duration) -> Step {
        let left = self.deadline.saturating_sub(now);
        if left.is_zero() {
            return if self.unsure { Step::Unknown } else { Step::NotApplied };
        }
        let pause = self.must_pause && self.asked == primary || primary.is_none();
        self.must_pause = false;
        match primary {
            Some((_, seat)) if !pause => {
                if self.asked != primary {
                    self.pause = PAUSE_FIRST;
                }
                self.asked = primary;
                Step::Ask(seat, left)
            }
            _ => {
                let pause = self.pause.min(left);
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                Step::Pause(pause)
            }
        }
    }

    /// Takes note of an answer that was none.
    pub fn heard(&mut self, heard: Heard) {
        self.must_pause = true;
        self.unsure |= matches!(heard, Heard::Deposed | Heard::Lost);
    }

    /// Whether some primary may have ordered it.
    pub fn is_unsure(&self) -> bool {
        self.unsure
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::NodeId;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn primary(epoch: u32, node: u64) -> Option<(u32, Seat)> {
        Some((epoch, Seat { node: NodeId(node), life: 1 }))
    }

    fn asked(step: Step) -> u64 {
        match step {
            Step::Ask(seat, _) => seat.node.0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_primary_is_asked_at_once_and_the_same_one_after_a_pause() {
        let mut pursuit = Pursuit::new(at(0), PATIENCE);
        assert_eq!(asked(pursuit.next(primary(1, 1), at(0))), 1);
        pursuit.heard(Heard::NotLeading);
        assert_eq!(pursuit.next(primary(1, 1), at(1)), Step::Pause(at(4)));
        assert_eq!(asked(pursuit.next(primary(1, 1), at(5))), 1);
        pursuit.heard(Heard::NotLeading);
        assert_eq!(pursuit.next(primary(1, 1), at(6)), Step::Pause(at(8)));
        assert_eq!(asked(pursuit.next(primary(2, 2), at(7))), 2);
        assert_eq!(pursuit.next(None, at(8)), Step::Pause(at(4)));
    }

    #[test]
    fn not_applied_is_claimed_only_if_nobody_can_have_ordered_it() {
        let mut refused = Pursuit::new(at(0), PATIENCE);
        refused.next(primary(1, 1), at(0));
        refused.heard(Heard::NotLeading);
        refused.heard(Heard::NotSent);
        assert_eq!(refused.next(primary(1, 1), at(5000)), Step::NotApplied);
        for heard in [Heard::Lost, Heard::Deposed] {
            let mut lost = refused.clone();
            lost.heard(heard);
            lost.heard(Heard::NotLeading);
            assert_eq!(lost.next(primary(1, 1), at(5000)), Step::Unknown);
        }
    }
}
