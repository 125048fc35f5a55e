//! Each rule of the protocol, broken on purpose: the simulator must notice.

use aegiskv::mutation::{self, Mutation};

use crate::plan::Plan;
use crate::situations::{
    any_order, clocks_apart, crashes, machines_stand_still, primary_cut_off, records_lost,
    voters_change,
};
use crate::world::{NO_END, World};

/// Within so many histories a broken rule must be noticed: ten times as many as most need.
const SEEDS_MAX: u64 = 10_000;

/// Runs histories until one fails; tells how many that took.
fn noticed(name: &str, change: impl Fn(&mut Plan)) {
    let first = crate::number("AEGIS_SEED").unwrap_or(1);
    for seed in first..first + SEEDS_MAX {
        let complaint = World::new(seed, &change).run().complaint;
        // That nothing goes on any more is the least of it: what was promised must be seen broken.
        let complaint = complaint.filter(|complaint| !complaint.starts_with(NO_END));
        if let Some(complaint) = complaint {
            let line = complaint.lines().next().unwrap_or_default().to_owned();
            let line: String = line.chars().take(150).collect();
            println!("{name}: after {} histories: {line}", seed - first + 1);
            return;
        }
    }
    panic!("{name} is not noticed in {SEEDS_MAX} histories");
}

/// Any plan will do.
fn ordinary(_: &mut Plan) {}

macro_rules! is_noticed {
    ($($test:ident: $mutation:ident, $situation:ident;)*) => {
        $(#[test]
        fn $test() {
            mutation::set(Some(Mutation::$mutation));
            noticed(stringify!($mutation), $situation);
            mutation::set(None);
        })*
    };
}

is_noticed! {
    a_refusal_without_a_record: RefusalUnrecorded, primary_cut_off;
    a_refusal_that_is_not_committed: RefusalUncommitted, primary_cut_off;
    giving_up_what_was_common_yesterday: DivergenceOfYesterday, any_order;
    a_copy_without_request_ids: CopyWithoutRequests, ordinary;
    a_copy_without_the_highest_version: CopyWithoutHighest, ordinary;
    a_primary_that_goes_on_in_a_new_epoch: SamePrimaryGoesOn, ordinary;
    request_ids_of_records_that_were_given_up: GivenUpRequestsStay, any_order;
    a_get_of_what_is_not_committed: GetSeesUncommitted, records_lost;
    a_get_that_does_not_confirm_its_epoch: GetUnconfirmed, primary_cut_off;
    a_primary_without_fences: FencesUncollected, ordinary;
    messages_of_lower_epochs: LowerEpochsTaken, any_order;
    a_fence_that_is_forgotten: FenceForgotten, crashes;
    a_copy_that_cannot_vouch_for_itself: AmnesiacCounts, ordinary;
    effects_of_what_was_given_up: DivergenceKept, ordinary;
    request_ids_at_the_primary_alone: RequestsAtPrimaryOnly, ordinary;
    a_record_behind_the_wrong_one: PredecessorUnchecked, ordinary;
    versions_by_the_clock_alone: VersionsByClock, ordinary;
    a_higher_version_than_that_of_the_write: HigherVersionCounts, primary_cut_off;
    versions_that_two_primaries_give: VersionsWithoutEpoch, clocks_apart;
    a_copy_that_does_not_see_that_it_was_away: AwayUnnoticed, machines_stand_still;
    a_copy_that_was_away_and_trusts_what_it_did_not_ask_for: UnaskedCounts, machines_stand_still;
    a_primary_that_was_away_and_trusts_itself: LevelUnconfirmed, machines_stand_still;
    a_primary_that_tells_where_its_log_ends_unconfirmed: ReadIndexUnconfirmed, machines_stand_still;
}

#[test]
fn voters_that_change_from_any_epoch() {
    noticed("voters from any epoch", |plan| plan.breaks.changes_from_any_epoch = true);
}

#[test]
fn voters_that_change_at_once() {
    noticed("voters at once", |plan| {
        voters_change(plan);
        plan.breaks.changes_at_once = true;
    });
}

#[test]
fn a_lost_life_that_loses_its_seat() {
    noticed("lost seats dropped", |plan| plan.breaks.drops_lost_seats = true);
}

#[test]
fn a_node_that_does_not_say_it_lost_its_memory() {
    noticed("life kept", |plan| plan.setup.keeps_life = true);
}
