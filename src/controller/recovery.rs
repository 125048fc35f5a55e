//! Shards of whose voters no majority with memory can be had: going on with what is left.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::UncleanRecovery;
use super::draft::{Draft, Reason};
use super::note::Note;
use super::view::{Node, View};
use crate::entry::{Position, ShardId};
use crate::topology::{Configuration, Copies, Seat};

/// However short the rebalance delay is: a shard is not given up for a hiccup.
const LOST_FOR_MIN: Duration = Duration::from_secs(5);

/// How long, beyond the delay, reports are waited for of members that seem well.
const REPORTS_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// The shards without a majority, and since when.
    lost: BTreeMap<ShardId, Duration>,
    /// How many shards were last said to wait.
    waiting: usize,
}

impl Recovery {
    /// Decides for each shard without a majority that remembers, instead of what was drafted for
    /// it.
    pub(super) fn plan(&mut self, draft: &mut Draft<'_>, notes: &mut Vec<Note>) {
        let view = draft.view;
        let have_all_reported = view.nodes().all(|(_, n)| !n.is_well() || n.report().is_some());
        let mut waiting = 0;
        for (shard, configuration) in view.shards() {
            if configuration.has_quorum(Copies::Majority, |seat| view.has_memory(seat)) {
                self.lost.remove(&shard);
                continue;
            }
            let since = *self.lost.entry(shard).or_insert(view.now);
            let lost_for = view.now.saturating_sub(since);
            if !is_due(view, configuration, lost_for, have_all_reported) {
                continue;
            }
            match view.settings.unclean_recovery {
                UncleanRecovery::Wait => waiting += 1,
                UncleanRecovery::Serve => {
                    if let Some(to) = best_left(draft, shard, configuration) {
                        draft.set(shard, to, Reason::Recovered);
                    }
                }
            }
        }
        if waiting != self.waiting && waiting > 0 {
            notes.push(Note::Waiting { shards: waiting });
        }
        self.waiting = waiting;
    }
}

/// At once where nobody with memory can exist any more and everybody has come back without; else
/// after the delay. Not before those that seem well have said what they have, within reason.
fn is_due(
    view: &View<'_>,
    configuration: &Configuration,
    lost_for: Duration,
    have_all_reported: bool,
) -> bool {
    let seats = configuration.seats();
    let voters = || seats.iter().filter(|seat| configuration.is_voter(**seat));
    let is_all_lost = voters().all(|seat| !view.topology.is_present(*seat));
    let are_all_back = seats.iter().all(|seat| view.node(seat.node).is_none_or(Node::is_well));
    let delay = view.settings.rebalance_delay.max(LOST_FOR_MIN);
    if have_all_reported {
        lost_for >= delay || (is_all_lost && are_all_back)
    } else {
        lost_for >= delay + REPORTS_WAIT
    }
}

/// The configuration whose only voter is the best copy left: of a voter that vouches if there is
/// one, and of those the most advanced. Without any copy, an empty one on a node that had a seat,
/// or else on any.
fn best_left(draft: &Draft<'_>, shard: ShardId, present: &Configuration) -> Option<Configuration> {
    let view = draft.view;
    let seats = present.seats();
    let had_a_seat = |seat: Seat| seats.iter().any(|other| other.node == seat.node);
    let worth = |seat: &Seat| {
        let copy = view.copy(*seat, shard);
        let vouches = copy.is_some_and(|copy| copy.vouches);
        let last = copy.map_or(Position::default(), |copy| copy.last);
        let tie = (had_a_seat(*seat), Reverse(view.fitness(seat.node)));
        (present.is_voter(*seat) && vouches, last, vouches, tie)
    };
    let candidates = view
        .nodes()
        .filter(|(id, node)| {
            let has_copy = view.copy(node.member.seat(), shard).is_some();
            node.is_well()
                && (has_copy
                    || had_a_seat(node.member.seat())
                    || view.node(*id).is_some_and(Node::is_open))
        })
        .map(|(_, node)| node.member.seat());
    let best = candidates
        .max_by_key(|seat| (worth(seat), Reverse(draft.load(seat.node, 1)), Reverse(*seat)))?;
    let mut next = Configuration { unclean: true, ..Configuration::alone(present.epoch, best) };
    for seat in seats {
        if let Some(seat) = view.present_seat(seat.node)
            && seat != best
            && view.is_well(seat.node)
            && !next.learners.contains(&seat)
        {
            next.learners.push(seat);
        }
    }
    Some(next)
}
