//! How the connections to the other nodes stand: evidence of who lives, published as it changes.
//!
//! Silence counts in ticks of this node's own clock: while this process itself stands still, so
//! does the count, and nobody is blamed for it.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::refusal::Refusal;
use crate::topology::NodeId;

/// Round trips from which delay and clock offset are estimated.
const SAMPLES: usize = 8;

/// How one node's connection to another stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether it carries anything.
    pub state: State,
    /// The other node's life, as it said when it was last connected.
    pub life: Option<u64>,
    /// Time there and back: the median of the last pings.
    pub round_trip: Option<Duration>,
    /// By how much the other node's wall clock is ahead of this one's, in milliseconds: the
    /// median of the last pings, taking the way there and back as equally long (RFC 5905 §8).
    pub clock_offset_millis: Option<i64>,
}

impl Link {
    /// A connection that was never tried.
    pub(super) fn untried(now: Instant) -> Self {
        let state = State::Down { since: now, why: Down::Untried };
        Self { state, life: None, round_trip: None, clock_offset_millis: None }
    }

    /// Whether it carries anything.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }
}

/// Whether a connection carries anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Up,
    /// It does not.
    Down {
        /// Since when.
        since: Instant,
        /// What speaks for it, as seen last.
        why: Down,
    },
}

/// Why a connection carries nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// It was not dialled yet: no evidence of anything.
    Untried,
    /// Nobody listens at its address: the process is gone.
    Refused,
    /// The other side closed or reset it, or what it sent made no sense.
    Reset,
    /// Nothing was heard for a while.
    Silent,
    /// The address cannot be resolved or reached.
    Unreachable,
    /// One of the two does not want to talk to the other.
    Rejected(Refusal),
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untried => f.write_str("not dialled yet"),
            Self::Refused => f.write_str("nobody listens at its address"),
            Self::Reset => f.write_str("the connection was closed"),
            Self::Silent => f.write_str("nothing is heard"),
            Self::Unreachable => f.write_str("its address cannot be reached"),
            Self::Rejected(refusal) => refusal.fmt(f),
        }
    }
}

/// The links of one node, as everyone may watch them.
#[derive(Debug)]
pub(super) struct Board(watch::Sender<Arc<BTreeMap<NodeId, Link>>>);

impl Default for Board {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }
}

impl Board {
    pub(super) fn watch(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, Link>>> {
        self.0.subscribe()
    }

    /// Adds a link that is to be dialled.
    pub(super) fn enter(&self, node: NodeId) {
        self.0.send_if_modified(|links| {
            let new = !links.contains_key(&node);
            if new {
                Arc::make_mut(links).insert(node, Link::untried(Instant::now()));
            }
            new
        });
    }

    pub(super) fn remove(&self, node: NodeId) {
        self.0.send_if_modified(|links| {
            links.contains_key(&node) && Arc::make_mut(links).remove(&node).is_some()
        });
    }

    /// Notes that a link carries again. Whether it did not before.
    pub(super) fn up(&self, node: NodeId, life: u64) -> bool {
        self.change(node, |link| {
            link.state = State::Up;
            link.life = Some(life);
        })
    }

    /// A node's life, as it said when it was last connected.
    pub(super) fn life(&self, node: NodeId) -> Option<u64> {
        self.0.borrow().get(&node)?.life
    }

    /// Notes why a link carries nothing; since when stays what it was. Whether it did before.
    pub(super) fn down(&self, node: NodeId, why: Down) -> bool {
        let was_up = self.0.borrow().get(&node).is_some_and(Link::is_up);
        self.change(node, |link| {
            let since = match link.state {
                State::Down { since, .. } => since,
                State::Up => Instant::now(),
            };
            link.state = State::Down { since, why };
        });
        was_up
    }

    /// Notes what pings have measured.
    pub(super) fn measured(&self, node: NodeId, round_trip: Duration, offset_millis: i64) {
        self.change(node, |link| {
            link.round_trip = Some(round_trip);
            link.clock_offset_millis = Some(offset_millis);
        });
    }

    fn change(&self, node: NodeId, change: impl FnOnce(&mut Link)) -> bool {
        self.0.send_if_modified(|links| {
            let Some(link) = links.get(&node) else {
                return false;
            };
            let mut changed = link.clone();
            change(&mut changed);
            let differs = changed != *link;
            if differs {
                Arc::make_mut(links).insert(node, changed);
            }
            differs
        })
    }
}

/// Counts how long nothing was heard.
#[derive(Debug)]
pub(super) struct Silence {
    quiet: Duration,
    counted: Instant,
    step_max: Duration,
}

impl Silence {
    /// From `now` on; one step of the count is at most `step_max`.
    pub(super) fn new(now: Instant, step_max: Duration) -> Self {
        Self { quiet: Duration::ZERO, counted: now, step_max }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.quiet = Duration::ZERO;
        self.counted = now;
    }

    /// How long it has been quiet. To be called in steps shorter than `step_max`.
    pub(super) fn quiet(&mut self, now: Instant) -> Duration {
        self.quiet += now.saturating_duration_since(self.counted).min(self.step_max);
        self.counted = now;
        self.quiet
    }
}

/// Measures delay and clock offset from pings and their answers.
#[derive(Debug, Default)]
pub(super) struct Measure {
    number: u64,
    /// Pings without an answer: number, instant, wall clock.
    pending: VecDeque<(u64, Instant, u64)>,
    /// Round trip and offset of the last answers.
    samples: VecDeque<(Duration, i64)>,
}

impl Measure {
    /// The number of a ping that goes out now.
    pub(super) fn ping(&mut self, now: Instant, wall_millis: u64) -> u64 {
        self.number += 1;
        if self.pending.len() == SAMPLES {
            self.pending.pop_front();
        }
        self.pending.push_back((self.number, now, wall_millis));
        self.number
    }

    /// Takes the answer to ping `number`: the median round trip and offset now; `None` if it
    /// answers no ping that is remembered.
    pub(super) fn pong(
        &mut self,
        number: u64,
        now: Instant,
        their_wall_millis: u64,
    ) -> Option<(Duration, i64)> {
        let at = self.pending.iter().position(|(sent, ..)| *sent == number)?;
        let (_, sent_at, wall_millis) = self.pending.drain(..=at).next_back()?;
        let round_trip = now.saturating_duration_since(sent_at);
        let half_millis = u64::try_from(round_trip.as_millis() / 2).unwrap_or(u64::MAX);
        let middle = wall_millis.saturating_add(half_millis);
        let offset = i128::from(their_wall_millis) - i128::from(middle);
        let offset = i64::try_from(offset).unwrap_or(if offset < 0 { i64::MIN } else { i64::MAX });
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((round_trip, offset));
        Some(self.median())
    }

    fn median(&self) -> (Duration, i64) {
        let mut trips: Vec<Duration> = self.samples.iter().map(|(trip, _)| *trip).collect();
        let mut offsets: Vec<i64> = self.samples.iter().map(|(_, offset)| *offset).collect();
        trips.sort_unstable();
        offsets.sort_unstable();
        (trips[trips.len() / 2], offsets[offsets.len() / 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_link_keeps_the_instant_at_which_it_went_down() {
        let board = Board::default();
        let mut watch = board.watch();
        let node = NodeId(1);
        assert!(!board.down(node, Down::Reset));
        assert!(watch.borrow().is_empty());
        board.enter(node);
        assert!(board.up(node, 7));
        assert!(!board.up(node, 7));
        assert!(board.down(node, Down::Reset));
        let State::Down { since, why: Down::Reset } = watch.borrow_and_update()[&node].state else {
            panic!("not down");
        };
        assert!(!board.down(node, Down::Refused));
        let link = watch.borrow_and_update()[&node].clone();
        assert_eq!(link.state, State::Down { since, why: Down::Refused });
        assert_eq!(link.life, Some(7));
        board.down(node, Down::Refused);
        assert!(!watch.has_changed().unwrap());
        board.remove(node);
        assert!(watch.borrow().is_empty());
    }

    #[test]
    fn silence_does_not_count_while_this_process_stands_still() {
        let start = Instant::now();
        let mut silence = Silence::new(start, 400 * MS);
        assert_eq!(silence.quiet(start + 200 * MS), 200 * MS);
        assert_eq!(silence.quiet(start + 400 * MS), 400 * MS);
        assert_eq!(silence.quiet(start + 9_400 * MS), 800 * MS);
        silence.heard(start + 9_450 * MS);
        assert_eq!(silence.quiet(start + 9_600 * MS), 150 * MS);
    }

    #[test]
    fn a_clock_ten_minutes_off_is_measured_through_delay_and_one_outlier() {
        let start = Instant::now();
        let mut measure = Measure::default();
        let mut last = None;
        for (n, delay) in [4, 4, 300, 4, 4].into_iter().enumerate() {
            let sent = start + u32::try_from(n).unwrap() * 1000 * MS;
            let number = measure.ping(sent, 50_000);
            // The answer leaves there after half of a usual way; the outlier's on its way back.
            last = measure.pong(number, sent + delay * MS, 650_002);
        }
        assert_eq!(last, Some((4 * MS, 600_000)));
    }

    #[test]
    fn an_answer_to_no_ping_measures_nothing() {
        let now = Instant::now();
        let mut measure = Measure::default();
        assert_eq!(measure.pong(0, now, 5), None);
        let first = measure.ping(now, 0);
        let second = measure.ping(now, 0);
        assert!(measure.pong(second, now, 5).is_some());
        assert_eq!(measure.pong(first, now, 5), None);
        assert_eq!(measure.pong(second, now, 5), None);
        measure.ping(now, u64::MAX);
        assert_eq!(measure.pong(3, now, 0).map(|(trip, _)| trip), Some(Duration::ZERO));
    }
}
