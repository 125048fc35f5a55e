//! When leave to stop a node is given, and when it ends by itself.

use super::super::sight::{Leased, Presence};
use super::super::world::Tools;
use super::super::{Unsafe, may_run, may_stop};
use super::*;
use crate::topology::{LeaseStep, Outcome};

fn judged(world: &mut World, node: u64) -> Result<(), Unsafe> {
    let sight = world.sight();
    may_stop(&world.topology, &sight, &world.settings, NodeId(node), Copies::Count(1))
}

#[test]
fn leave_is_given_while_all_others_are_there_and_level() {
    let mut world = World::of(5, SHARDS);
    world.run(STEP);
    assert_eq!(judged(&mut world, 2), Ok(()));
    world.kill(4);
    world.run(seconds(10));
    let found = judged(&mut world, 2).unwrap_err();
    assert_eq!(found.missing, [NodeId(4)], "though a majority of each shard may be left");
    assert_eq!(judged(&mut world, 4), Ok(()), "the one that is down may be down");
    world.revive(4, Memory::Gone);
    world.run(STEP);
    let found = judged(&mut world, 2).unwrap_err();
    assert!(found.missing.is_empty() && found.not_level.len() == 18, "{found:?}");
    world.settle();
    assert_eq!(judged(&mut world, 2), Ok(()));
    world.stand(5, Standing::Restarting);
    assert_eq!(judged(&mut world, 2).unwrap_err().missing, [NodeId(5)], "it is about to stop");
}

#[test]
fn leave_names_the_shards_that_would_lose_their_quorum() {
    let mut world = World::of(3, SHARDS);
    world.kill(3);
    world.run(seconds(5));
    let all: Vec<ShardId> = (0..SHARDS).map(ShardId).collect();
    let found = judged(&mut world, 2).unwrap_err();
    assert_eq!((&found.without_quorum, &found.not_level), (&all, &all));
    let sight = world.sight();
    let runs = |node| may_run(&world.topology, &sight, &world.settings, NodeId(node));
    assert!(runs(1) && runs(2) && !runs(3));
    let mut alone = World::new(SHARDS);
    alone.run(STEP);
    assert_eq!(judged(&mut alone, 1).unwrap_err().without_quorum, all);
}

/// A cluster of three in which there is leave to stop node2, which ran for the seventh time.
fn leased() -> World {
    let mut world = World::of(3, SHARDS);
    world.run(STEP);
    let (node, holder, revision) = (NodeId(2), "x".to_owned(), world.topology.revision);
    let grant = LeaseStep::Grant { node, holder, ttl_ms: 60_000, run: Some(7), at_ms: 0, revision };
    assert!(matches!(world.topology.apply(grant.into()), Outcome::Leased(_)));
    world
}

/// What is planned for the lease, if its node answers so and the leader knows it for so long.
fn planned(world: &mut World, known_for: u64, run: u64, behind: u64) -> Option<LeaseStep> {
    let mut sight = world.sight();
    let presence = Some(Presence { at: sight.now, run, behind });
    let since = sight.now - seconds(known_for);
    sight.leased = Some(Leased { id: 1, renewals: 0, since, presence });
    world.controller.plan(&world.topology, &sight, &world.settings).lease
}

const BACK: Option<LeaseStep> = Some(LeaseStep::Return { id: 1, renewals: 0 });

#[test]
fn leave_ends_when_its_time_is_over_by_the_leaders_own_count() {
    let mut world = leased();
    world.run(seconds(120));
    assert_eq!(planned(&mut world, 59, 7, 0), None, "a new leader has not known it for as long");
    assert_eq!(planned(&mut world, 60, 7, 0), Some(LeaseStep::RunOut { id: 1, renewals: 0 }));
    let mut sight = world.sight();
    sight.leased = Some(Leased { id: 1, renewals: 1, since: Duration::ZERO, presence: None });
    let plan = world.controller.plan(&world.topology, &sight, &world.settings);
    assert_eq!(plan.lease, None, "what is known is not of this one");
}

#[test]
fn leave_ends_when_its_node_was_stopped_and_is_back_and_level() {
    let mut world = leased();
    assert_eq!(planned(&mut world, 1, 7, 0), None, "it answers, and was not stopped yet");
    assert_eq!(planned(&mut world, 1, 8, 1), None, "a copy of it is behind");
    assert_eq!(planned(&mut world, 1, 8, 0), BACK);
    world.stand(2, Standing::Restarting);
    assert_eq!(planned(&mut world, 1, 8, 0), None, "it has not said that it takes part again");
    world.stand(2, Standing::Member);
    world.kill(2);
    world.run(seconds(2));
    assert_eq!(planned(&mut world, 1, 8, 0), None, "it is down, whatever was answered");
    world.revive(2, Memory::Gone);
    world.run(STEP);
    assert_eq!(planned(&mut world, 1, 8, 0), None, "its copies are still to be made");
    world.settle();
    assert_eq!(planned(&mut world, 1, 8, 0), BACK);
}

#[test]
fn what_a_node_answered_a_while_ago_ends_nothing() {
    let mut world = leased();
    let mut sight = world.sight();
    for (ago, ends) in [(2_000, true), (2_001, false)] {
        let at = sight.now - Duration::from_millis(ago);
        let presence = Some(Presence { at, run: 8, behind: 0 });
        sight.leased = Some(Leased { id: 1, renewals: 0, since: sight.now, presence });
        let plan = world.controller.plan(&world.topology, &sight, &world.settings);
        assert_eq!(plan.lease.is_some(), ends, "{ago} ms");
    }
}

/// [`World`] holds what it is told of leave to what may be true; `tests/simulation` goes through more.
#[test]
fn tools_that_ask_each_time_stop_one_node_after_the_other() {
    let mut world = World::of(3, 5);
    world.tools = Tools::new(3, 4711);
    world.run(seconds(120));
    assert!(world.tools.stops >= 5, "{}", world.tools.stops);
}
