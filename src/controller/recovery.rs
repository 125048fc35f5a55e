//! Shards of whose voters no majority with memory can be had: going on with what is left.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::UncleanRecovery;
use super::draft::{Draft, Reason};
use super::note::Note;
use super::view::{Node, View};
use crate::entry::{Position, ShardId};
use crate::topology::{Configuration, Copies, NodeId, Seat};

/// However short the rebalance delay is: a shard is not given up for a hiccup.
const LOST_FOR_MIN: Duration = Duration::from_secs(5);

/// How long, beyond the delay, reports are waited for of members that seem well.
const REPORTS_WAIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default)]
pub(super) struct Recovery {
    /// The shards without a majority, and since when.
    lost: BTreeMap<ShardId, Duration>,
    /// How many shards were last said to wait.
    waiting: usize,
    withheld: Withheld,
}

impl Recovery {
    /// Decides for each shard without a majority that remembers, instead of what was drafted for
    /// it.
    pub(super) fn plan(&mut self, draft: &mut Draft<'_>, notes: &mut Vec<Note>) {
        let view = draft.view;
        let have_all_reported = view.nodes().all(|(_, n)| !n.is_well() || n.report().is_some());
        let mut waiting = 0;
        let mut withheld = Withheld::default();
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
            let may_remember = |seat| view.may_remember(seat) && !mutated!(FailedIsGone);
            if configuration.has_quorum(Copies::Majority, may_remember) {
                // Being asked takes a moment.
                if lost_for >= delay(view) + REPORTS_WAIT {
                    withheld.add(view, configuration);
                }
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
        if withheld.heard != self.withheld.heard && withheld.shards > 0 {
            notes.push(withheld.note(view));
        }
        self.withheld = withheld;
    }
}

/// Shards that have no majority to go on with, and voters that may remember.
#[derive(Clone, Debug, Default)]
struct Withheld {
    shards: usize,
    /// Those voters' nodes, as far as they seem failed.
    heard: BTreeSet<NodeId>,
}

impl Withheld {
    fn add(&mut self, view: &View<'_>, configuration: &Configuration) {
        self.shards += 1;
        let seats = configuration.seats().into_iter();
        let heard = seats.filter(|seat| view.may_remember(*seat) && !view.is_well(seat.node));
        self.heard.extend(heard.map(|seat| seat.node));
    }

    fn note(&self, view: &View<'_>) -> Note {
        let heard = self.heard.iter().map(|node| view.topology.name(*node)).collect();
        Note::Withheld { shards: self.shards, heard }
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
    if have_all_reported {
        lost_for >= delay(view) || (is_all_lost && are_all_back)
    } else {
        lost_for >= delay(view) + REPORTS_WAIT
    }
}

fn delay(view: &View<'_>) -> Duration {
    view.settings.rebalance_delay.max(LOST_FOR_MIN)
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
