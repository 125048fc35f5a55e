//! Plans in which a rule of the protocol matters more than in an ordinary one: where it is broken,
//! this shows within a few hundred histories.

use aegiskv::wal::Mode;

use crate::plan::{Fault, MACHINES, Plan};

/// What changes a plan so that it comes to one of them.
pub(crate) type Situation = fn(&mut Plan);

pub(crate) const ALL: [(&str, Situation); 7] = [
    ("a primary cut off", primary_cut_off),
    ("a primary cut off, and clocks apart", clocks_apart),
    ("records lost on the way", records_lost),
    ("messages in any order", any_order),
    ("machines that crash", crashes),
    ("voters that change", voters_change),
    ("machines that stand still", machines_stand_still),
];

/// One shard of three voters that forget nothing, and one key unless more are wanted. The
/// operations are few: what a client was told may be true in too many ways otherwise.
fn begin(plan: &mut Plan, faults: &[Fault], fault_pace: u64) {
    plan.setup.shards = 1;
    plan.modes = [Mode::Sync; MACHINES];
    plan.voters = 3;
    (plan.clients, plan.operations_each, plan.keys) = (5, 4, 1);
    (plan.expires, plan.zeros, plan.catastrophes) = (false, 0, false);
    (plan.faults, plan.fault_pace) = (faults.to_vec(), fault_pace);
}

/// Another leads while the clients beside the last primary still ask it.
pub(crate) fn primary_cut_off(plan: &mut Plan) {
    begin(plan, &[Fault::CutOff], 60_000);
    plan.operations_each = 5;
    (plan.think_max, plan.patience) = (80_000, 60_000);
    (plan.lost, plan.late, plan.delay_max) = (0, 0, 1_000);
    (plan.tick, plan.oracle_pace, plan.moods.moves) = (8_000, 10_000, 0);
}

/// Primaries behind their log's clock, one of them cut off, count on from the same version.
pub(crate) fn clocks_apart(plan: &mut Plan) {
    primary_cut_off(plan);
    plan.faults.push(Fault::JumpClock);
    (plan.fault_pace, plan.skew_max) = (30_000, 300);
}

/// What a primary has ordered is long with it alone, and then another leads.
pub(crate) fn records_lost(plan: &mut Plan) {
    begin(plan, &[Fault::CutOff, Fault::CutOneWay, Fault::Pause], 30_000);
    (plan.lost, plan.think_max) = (200, 20_000);
    (plan.tick, plan.oracle_pace, plan.moods.moves) = (40_000, 20_000, 30);
}

/// Logs part, and what brings them together again comes twice and late.
pub(crate) fn any_order(plan: &mut Plan) {
    begin(plan, &[Fault::CutOff, Fault::CutOneWay, Fault::Pause], 30_000);
    (plan.operations_each, plan.keys, plan.think_max) = (9, 3, 20_000);
    (plan.doubled, plan.late, plan.delay_max) = (300, 50, 20_000);
    (plan.setup.replication_log, plan.moods.moves) = (1 << 20, 100);
}

/// A machine has said more than its disk kept, and is back while it is still named primary.
pub(crate) fn crashes(plan: &mut Plan) {
    begin(plan, &[Fault::CrashMachine], 15_000);
    (plan.clients, plan.think_max, plan.calm_at) = (3, 20_000, 400_000);
    (plan.oracle_pace, plan.moods.moves) = (60_000, 300);
}

/// One voter after the other is replaced, by copies that are not level, while some do not hear
/// from others.
pub(crate) fn voters_change(plan: &mut Plan) {
    begin(plan, &[Fault::CutOneWay], 10_000);
    (plan.clients, plan.operations_each, plan.think_max) = (3, 6, 80_000);
    (plan.moods.changes, plan.moods.hurries, plan.moods.moves) = (1_000, 1_000, 100);
    (plan.lost, plan.tick, plan.oracle_pace) = (60, 40_000, 10_000);
}

/// Copies sleep while others order, and are looked at as soon as they wake.
pub(crate) fn machines_stand_still(plan: &mut Plan) {
    begin(plan, &[Fault::Pause, Fault::Pause, Fault::CutOff], 30_000);
    (plan.clients, plan.operations_each, plan.keys) = (6, 20, 3);
    (plan.think_max, plan.lost, plan.late, plan.tick) = (20_000, 60, 50, 20_000);
    (plan.oracle_pace, plan.moods.moves) = (10_000, 30);
}
