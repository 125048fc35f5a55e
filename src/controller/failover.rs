//! Another primary: for one that seems failed at once, for one that should not lead as soon as it
//! can hand over.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::draft::{Draft, Reason};
use super::evidence::{Condition, Failure};
use super::health::Fitness;
use super::note::HandOver;
use super::sight::Role;
use super::view::View;
use crate::entry::{Position, ShardId};
use crate::topology::{Configuration, Seat, Standing};

/// A primary that lacks its voters for so long leaves to one that has them.
const LONELY_AFTER: Duration = Duration::from_secs(3);

/// What is remembered between plans.
#[derive(Clone, Debug, Default)]
pub(super) struct Failover {
    /// Since when a shard's primary has been connected with no majority of its voters.
    lonely: BTreeMap<ShardId, (Seat, Duration)>,
}

impl Failover {
    /// Replaces each primary that failed, and moves away each that is better not primary.
    pub(super) fn plan(&mut self, draft: &mut Draft<'_>) {
        let view = draft.view;
        for (shard, configuration) in view.shards() {
            let is_lonely = self.is_long_lonely(view, shard, configuration.primary);
            look_at(draft, shard, configuration, is_lonely);
        }
    }

    fn is_long_lonely(&mut self, view: &View<'_>, shard: ShardId, primary: Seat) -> bool {
        if view.is_central(shard, primary) {
            self.lonely.remove(&shard);
            return false;
        }
        let known = self.lonely.get(&shard).filter(|(seat, _)| *seat == primary).copied();
        let (_, since) = known.unwrap_or((primary, view.now));
        self.lonely.insert(shard, (primary, since));
        view.now.saturating_sub(since) >= LONELY_AFTER
    }
}

/// One shard's primary.
fn look_at(draft: &mut Draft<'_>, shard: ShardId, configuration: &Configuration, is_lonely: bool) {
    let (view, primary) = (draft.view, configuration.primary);
    let candidates = configuration.seats();
    if let Some(why) = failure(view, primary) {
        if let Some(next) = successor(draft, shard, &candidates) {
            draft.lead(shard, next, Reason::FailedOver(why));
        }
    } else if needs_epoch(view, shard) {
        // The same primary is as good as any: it has all that it ever acknowledged. One that was
        // declared to count, and has not begun to, is declared so once more.
        let vouches = view.copy(primary, shard).is_none_or(|copy| copy.vouches);
        let unclean = configuration.unclean && !vouches;
        let to = Configuration { unclean, ..configuration.clone() };
        draft.set(shard, to, Reason::Renewed);
    } else if view.active(shard).is_none() {
        // There is nobody who could hand it over.
    } else if let Some(why) = reason_to_leave(view, primary)
        && let Some(next) = successor(draft, shard, &candidates)
        && view.fitness(next.node) < view.fitness(primary.node)
    {
        draft.lead(shard, next, Reason::HandedOver(why));
    } else if is_lonely
        && let Some(next) = successor(draft, shard, &candidates)
        && view.is_central(shard, next)
        && view.fitness(next.node) <= view.fitness(primary.node)
    {
        draft.lead(shard, next, Reason::HandedOver(HandOver::Apart));
    }
}

/// The seat that should lead a shard instead of its primary: a live voter with memory; of the
/// fittest one that is connected with a majority of the voters, then the one whose log goes
/// furthest, and of equals the one that leads least.
pub(super) fn successor(draft: &Draft<'_>, shard: ShardId, among: &[Seat]) -> Option<Seat> {
    let view = draft.view;
    let configuration = view.configuration(shard);
    let may_lead = |seat: &Seat| {
        let vouches = view.copy(*seat, shard).is_none_or(|copy| copy.vouches);
        *seat != configuration.primary
            && configuration.is_voter(*seat)
            && view.has_memory(*seat)
            && vouches
    };
    among.iter().copied().filter(may_lead).min_by_key(|seat| {
        let fitness = view.fitness(seat.node).unwrap_or(Fitness::Leaving);
        let votes_once = !configuration.sets().all(|set| set.contains(seat));
        let last = view.copy(*seat, shard).map_or(Position::default(), |copy| copy.last);
        let is_lonely = !view.is_central(shard, *seat);
        (fitness, is_lonely, votes_once, Reverse(last), draft.load(seat.node, 1), *seat)
    })
}

/// Why a seat cannot lead, if it cannot.
pub(super) fn failure(view: &View<'_>, seat: Seat) -> Option<Failure> {
    if !view.topology.is_present(seat) {
        return Some(Failure::LostMemory);
    }
    match view.node(seat.node)?.condition() {
        Condition::Failed(why) => Some(why),
        Condition::Well | Condition::Unknown => None,
    }
}

/// Whether a shard's primary was restarted, and waits for an epoch that it has not led before.
fn needs_epoch(view: &View<'_>, shard: ShardId) -> bool {
    let configuration = view.configuration(shard);
    view.copy(configuration.primary, shard)
        .is_some_and(|copy| copy.role == Role::Waiting && copy.epoch == configuration.epoch)
}

fn reason_to_leave(view: &View<'_>, primary: Seat) -> Option<HandOver> {
    let node = view.node(primary.node)?;
    match (view.fitness(primary.node)?, node.member.standing) {
        (Fitness::Fit | Fitness::Damped, _) => None,
        (Fitness::Apart, _) => node.is_long_lonely().then_some(HandOver::Apart),
        (Fitness::DiskSlow, _) => Some(HandOver::DiskSlow { ms: node.report()?.disk_delay_ms }),
        (Fitness::ClockOff, _) => Some(HandOver::ClockOff),
        (Fitness::Leaving, Standing::Decommissioning) => Some(HandOver::Decommissioning),
        (Fitness::Leaving, _) => Some(HandOver::Restarting),
    }
}
