mod disks;
mod leases;
mod ways;

use std::time::Duration;

use proptest::prelude::*;

use super::sight::{Break, Link};
use super::world::{Memory, STEP, World};
use super::{
    Failure, HandOver, Needed, Note, Outlook, Seems, ShardState, UncleanRecovery,
    keeps_quorum_without,
};
use crate::entry::ShardId;
use crate::topology::{Change, Command, Copies, NodeId, Seat, Standing};

const SHARDS: u16 = 30;

fn all_healthy(world: &mut World) -> bool {
    world.states().iter().all(|state| *state == ShardState::Healthy)
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn one_node_alone_changes_nothing() {
    let mut world = World::new(SHARDS);
    world.settle();
    assert!(world.changes.is_empty() && world.notes.is_empty());
    assert!(all_healthy(&mut world));
}

#[test]
fn two_nodes_that_join_get_all_copies_and_a_third_of_the_primaries_each() {
    let mut world = World::new(SHARDS);
    world.run(seconds(1));
    (0..2).for_each(|_| _ = world.join(""));
    world.run(STEP);
    assert_eq!(world.changes.len(), 30, "learners for all shards, in one command");
    assert_eq!(world.plans, 1);
    world.settle();
    assert_eq!(world.votes(), [30, 30, 30]);
    assert_eq!(world.primaries(), [10, 10, 10]);
    assert!(all_healthy(&mut world));
    // Learners, joint, new set; and the hand-overs.
    assert_eq!(world.changes.len(), 3 * 30 + 20);
    let started = Note::CopiesStarted { node: "node2".to_owned(), shards: 30 };
    let done = Note::CopiesDone { node: "node3".to_owned() };
    assert!(world.notes.contains(&started) && world.notes.contains(&done));
}

#[test]
fn growth_goes_on_under_writes_that_reach_bare_majorities() {
    let mut world = World::new(SHARDS);
    world.writes = true;
    (0..4).for_each(|_| _ = world.join(""));
    world.run(seconds(30));
    world.writes = false;
    world.settle();
    assert_eq!(world.votes(), [18, 18, 18, 18, 18]);
    assert!(all_healthy(&mut world));
}

#[test]
fn a_killed_nodes_primaries_all_move_in_one_plan() {
    let mut world = World::of(3, SHARDS);
    world.kill(3);
    world.run(STEP);
    assert_eq!(world.primaries(), [15, 15, 0]);
    assert_eq!((world.plans, world.changes.len()), (1, 10));
    let to = vec![("node1".to_owned(), 5), ("node2".to_owned(), 5)];
    let why = Failure::Link(Break::Refused);
    assert_eq!(world.notes, [Note::FailedOver { node: "node3".to_owned(), why, to }]);
    assert!(world.states().contains(&ShardState::Unavailable), "it has yet to take over");
    world.settle();
    assert_eq!(world.plans, 1, "without a spare nothing else changes");
    assert_eq!(world.states(), [ShardState::UnderReplicated; 30]);
    world.run(seconds(120));
    assert_eq!(world.plans, 1, "its place is kept");
}

#[test]
fn the_raft_leaders_own_primaries_move_as_well() {
    let mut world = World::of(3, SHARDS);
    world.kill(1);
    world.run(STEP);
    assert_eq!(world.primaries(), [0, 15, 15]);
}

#[test]
fn a_node_that_comes_back_with_its_memory_gets_primaries_only_when_it_has_been_well() {
    let mut world = World::of(3, SHARDS);
    world.kill(3);
    world.run(seconds(2));
    world.revive(3, Memory::Kept);
    world.run(Duration::from_millis(2_900));
    assert_eq!(world.primaries(), [15, 15, 0]);
    world.settle();
    assert_eq!(world.primaries(), [10, 10, 10]);
    assert_eq!(world.changes.len(), 20, "no data moved: ten primaries went and came");
    assert!(all_healthy(&mut world));
}

#[test]
fn a_node_that_flaps_waits_the_longer_the_more_often_it_fails() {
    let mut world = World::of(3, SHARDS);
    let mut waits = Vec::new();
    for _ in 0..4 {
        world.kill(3);
        world.run(seconds(1));
        world.revive(3, Memory::Kept);
        let back = world.now;
        while world.primaries()[2] == 0 {
            world.step();
        }
        waits.push((world.now - back).as_secs());
        world.settle();
    }
    assert_eq!(waits, [3, 6, 12, 24]);
}

#[test]
fn a_silent_host_fails_over_once_nobody_reaches_it() {
    let mut world = World::of(3, SHARDS);
    world.hang(2);
    world.run(Duration::from_millis(1_100));
    assert_eq!(world.primaries(), [10, 10, 10], "gossip alone suspects it by now");
    world.run(Duration::from_millis(200));
    assert_eq!(world.primaries(), [15, 0, 15]);
    let silent = Failure::Link(Break::Silent);
    let is_told = |note: &Note| matches!(note, Note::FailedOver { why, .. } if *why == silent);
    assert!(world.notes.iter().any(is_told));
}

#[test]
fn one_broken_link_alone_fails_nobody() {
    let mut world = World::of(3, SHARDS);
    let mut sight = world.sight();
    let broken = |sight: &mut super::Sight, from: u64, to: u64, why| {
        let report = sight.reports.get_mut(&NodeId(from)).unwrap();
        let mut other = (**report).clone();
        other.reachable.insert(NodeId(to), Link::Down { why, for_ms: 50 });
        *report = other.into();
    };
    let plan = |world: &mut World, sight: &super::Sight| {
        let (topology, settings) = (&world.topology, &world.settings);
        !super::Controller::new().plan(topology, sight, settings).commands.is_empty()
    };
    broken(&mut sight, 1, 3, Break::Reset);
    assert!(!plan(&mut world, &sight), "node2 still reaches it");
    broken(&mut sight, 2, 3, Break::Silent);
    assert!(plan(&mut world, &sight));
    // Of two live members one must do, if the other side spoke.
    broken(&mut sight, 1, 3, Break::Silent);
    broken(&mut sight, 1, 2, Break::Silent);
    sight.alive.get_mut(&NodeId(2)).unwrap().state = Seems::Suspect;
    sight.reports.remove(&NodeId(2));
    for shard in &mut world.topology.shards {
        let primary = shard.voters[2];
        let mut led = (**shard).clone();
        led.primary = primary;
        *shard = led.into();
    }
    assert!(!plan(&mut world, &sight), "silence may be the network's fault");
    broken(&mut sight, 1, 3, Break::Refused);
    assert!(plan(&mut world, &sight));
}

#[test]
fn a_restarting_node_hands_over_and_keeps_its_copies() {
    let mut world = World::of(3, SHARDS);
    world.stand(2, Standing::Restarting);
    world.run(STEP);
    assert_eq!(world.primaries(), [15, 0, 15]);
    let to = vec![("node1".to_owned(), 5), ("node3".to_owned(), 5)];
    let why = HandOver::Restarting;
    assert_eq!(world.notes, [Note::HandedOver { node: "node2".to_owned(), why, to }]);
    world.kill(2);
    world.run(seconds(30));
    world.revive(2, Memory::Kept);
    world.stand(2, Standing::Member);
    world.settle();
    assert_eq!(world.primaries(), [10, 10, 10]);
    assert_eq!(world.changes.len(), 20);
}

#[test]
fn a_node_whose_clock_is_off_leads_nothing_while_others_can() {
    let mut world = World::of(3, SHARDS);
    world.set_clock(2, -600_000);
    world.run(STEP);
    assert_eq!(world.primaries(), [15, 0, 15]);
    world.set_clock(2, 450);
    world.run(seconds(10));
    assert_eq!(world.primaries(), [15, 0, 15], "not quite well yet");
    world.kill(1);
    world.kill(3);
    world.run(seconds(3));
    world.revive(1, Memory::Kept);
    world.set_clock(1, 700);
    world.run(seconds(3));
    assert_eq!(world.primaries().iter().sum::<usize>(), 30);
    assert!(world.states().iter().all(|state| *state != ShardState::Unavailable));
}

#[test]
fn a_node_that_lost_its_memory_learns_before_it_votes_again() {
    for memory in [Memory::Doubtful, Memory::Gone] {
        let mut world = World::of(3, SHARDS);
        world.kill(3);
        world.run(seconds(5));
        world.revive(3, memory);
        world.run(STEP);
        let life = world.topology.members[&NodeId(3)].about.life;
        let seat = Seat { node: NodeId(3), life };
        assert!(world.topology.shards.iter().all(|shard| !shard.is_voter(seat)));
        assert!(world.topology.shards.iter().all(|shard| shard.voters.len() == 3));
        world.settle();
        assert_eq!(world.votes(), [30, 30, 30]);
        assert_eq!(world.primaries(), [10, 10, 10]);
        assert!(all_healthy(&mut world));
    }
}

#[test]
fn a_node_that_lost_its_memory_so_fast_that_nobody_noticed_leads_no_more() {
    let mut world = World::of(3, SHARDS);
    world.kill(3);
    world.revive(3, Memory::Gone);
    world.run(STEP);
    assert_eq!(world.primaries(), [15, 15, 0]);
    let lost = |note: &Note| matches!(note, Note::FailedOver { why: Failure::LostMemory, .. });
    assert!(world.notes.iter().any(lost));
    world.settle();
    assert_eq!(world.votes(), [30, 30, 30]);
}

#[test]
fn places_of_a_node_dead_for_long_go_to_a_spare_one_and_not_before() {
    let mut world = World::of(4, SHARDS);
    assert!(world.votes().iter().all(|votes| *votes == 22 || *votes == 23));
    world.kill(3);
    world.run(seconds(60));
    let voters =
        |world: &World| world.topology.shards.iter().map(|s| s.voters.len()).sum::<usize>();
    assert!(world.changes.iter().all(|change| change.to.learners.is_empty()));
    world.settle();
    assert_eq!(world.votes(), [30, 30, 0, 30]);
    assert_eq!(voters(&world), 90);
    assert_eq!(world.primaries(), [10, 10, 0, 10]);
    world.revive(3, Memory::Kept);
    world.settle();
    assert!(world.votes().iter().all(|votes| *votes == 22 || *votes == 23), "{:?}", world.votes());
    assert!(world.primaries().iter().all(|led| *led == 7 || *led == 8));
}

#[test]
fn a_cluster_that_lost_all_its_memory_at_once_comes_back_by_itself() {
    for memory in [Memory::Doubtful, Memory::Gone] {
        let mut world = World::of(3, SHARDS);
        world.writes = true;
        world.run(seconds(2));
        (1..=3).for_each(|node| world.kill(node));
        world.run(seconds(1));
        (1..=3).for_each(|node| world.revive(node, memory));
        world.forget();
        world.run(STEP);
        assert_eq!(world.changes.len(), 30);
        assert!(world.changes.iter().all(|change| change.to.unclean));
        let is_best = |change: &Change| {
            let copies = world.copies.iter().filter(|((_, shard), _)| *shard == change.shard.0);
            let most = copies.map(|(_, copy)| copy.last).max().unwrap_or_default();
            let chosen = world.copies.get(&(change.to.primary, change.shard.0));
            chosen.map_or(0, |copy| copy.last.seq) == most.seq
        };
        assert!(world.changes.iter().all(is_best), "not the most advanced copies");
        assert!(world.notes.iter().any(|note| matches!(note, Note::Recovered { .. })));
        world.writes = false;
        world.settle();
        assert_eq!(world.votes(), [30, 30, 30]);
        assert!(world.topology.shards.iter().all(|shard| !shard.unclean));
        assert!(all_healthy(&mut world));
    }
}

#[test]
fn while_one_that_remembers_may_come_back_it_is_waited_for() {
    let mut world = World::of(3, SHARDS);
    (1..=3).for_each(|node| world.kill(node));
    world.run(seconds(1));
    (1..=2).for_each(|node| world.revive(node, Memory::Gone));
    world.run(seconds(55));
    assert_eq!(world.states(), [ShardState::Unavailable; 30]);
    assert!(world.changes.iter().all(|change| !change.to.unclean));
    world.revive(3, Memory::Kept);
    world.run(seconds(10));
    let of_three = |change: &Change| change.to.primary.node == NodeId(3);
    assert!(world.changes.iter().filter(|c| c.to.unclean).all(of_three));
    world.settle();
    assert!(all_healthy(&mut world));
}

#[test]
fn with_two_of_three_gone_for_good_serve_goes_on_after_the_delay() {
    let mut world = World::of(3, SHARDS);
    world.kill(2);
    world.kill(3);
    world.run(seconds(59));
    assert!(world.changes.iter().all(|change| !change.to.unclean));
    world.run(seconds(4));
    let recovered = |change: &&Change| change.to.unclean;
    assert_eq!(world.changes.iter().filter(recovered).count(), 30);
    let to = vec![("node1".to_owned(), 30)];
    let asked = vec!["node2".to_owned(), "node3".to_owned()];
    assert!(world.notes.contains(&Note::Recovered { to, asked }));
    assert_eq!(world.primaries(), [30, 0, 0]);
    assert_eq!(world.states(), [ShardState::UnderReplicated; 30]);
    world.revive(2, Memory::Kept);
    world.settle();
    assert_eq!(world.votes(), [30, 30, 0]);
}

#[test]
fn with_two_of_three_gone_for_good_wait_waits_and_says_so_once() {
    let mut world = World::of(3, SHARDS);
    world.settings.unclean_recovery = UncleanRecovery::Wait;
    world.kill(2);
    world.kill(3);
    world.run(seconds(300));
    assert!(world.changes.iter().all(|change| !change.to.unclean));
    let waiting = world.notes.iter().filter(|note| **note == Note::Waiting { shards: 30 });
    assert_eq!(waiting.count(), 1);
    world.revive(2, Memory::Kept);
    world.settle();
    assert!(world.states().iter().all(|state| *state == ShardState::UnderReplicated));
}

#[test]
fn a_decommissioned_node_ends_with_nothing() {
    let mut world = World::of(4, SHARDS);
    world.stand(1, Standing::Decommissioning);
    world.settle();
    assert_eq!(world.votes(), [0, 30, 30, 30]);
    assert_eq!(world.primaries(), [0, 10, 10, 10]);
    let emptied = Note::Emptied { node: "node1".to_owned() };
    assert_eq!(world.notes.iter().filter(|note| **note == emptied).count(), 1);
    assert!(world.states().iter().all(|state| *state == ShardState::Healthy));
    // Without a spare the sets shrink; the last node stays.
    world.stand(2, Standing::Decommissioning);
    world.settle();
    assert_eq!(world.votes(), [0, 0, 30, 30]);
    assert!(world.states().iter().all(|state| *state == ShardState::UnderReplicated));
    world.stand(3, Standing::Decommissioning);
    world.stand(4, Standing::Decommissioning);
    world.settle();
    assert_eq!(world.votes().iter().sum::<usize>(), 60);
}

#[test]
fn copies_spread_over_zones_that_come_later() {
    let mut world = World::new(SHARDS);
    ["", "", "b", "c"].iter().for_each(|zone| _ = world.join(zone));
    world.settle();
    let zones = |world: &World| {
        world.topology.shards.iter().all(|shard| {
            let zone = |seat: &Seat| world.topology.members[&seat.node].about.zone.clone();
            shard.voters.iter().map(zone).collect::<std::collections::BTreeSet<_>>().len() == 3
        })
    };
    assert!(zones(&world));
    assert_eq!(world.votes(), [10, 10, 10, 30, 30]);
}

#[test]
fn a_lower_replication_factor_takes_copies_away() {
    let mut world = World::of(4, SHARDS);
    world.settings.replication_factor = 1;
    world.settle();
    assert_eq!(world.votes().iter().sum::<usize>(), 30);
    assert!(all_healthy(&mut world));
}

#[test]
fn a_removed_members_seats_go() {
    let mut world = World::of(3, SHARDS);
    world.kill(3);
    world.run(seconds(5));
    world.topology.apply(Command::Remove(NodeId(3)));
    world.settle();
    assert!(world.topology.shards.iter().all(|shard| shard.voters.len() == 2));
    assert_eq!(world.votes(), [30, 30]);
    assert_eq!(world.primaries(), [15, 15]);
}

#[test]
fn a_node_can_be_stopped_while_the_others_have_all_that_is_committed() {
    let mut world = World::of(3, SHARDS);
    world.run(STEP);
    let can_stop = |world: &mut World, node, quorum| {
        let sight = world.sight();
        keeps_quorum_without(&world.topology, &sight, &world.settings, NodeId(node), quorum)
    };
    let needed = Err(Needed { first: ShardId(0), shards: 30 });
    assert_eq!(can_stop(&mut world, 2, Copies::Majority), Ok(()));
    assert_eq!(can_stop(&mut world, 2, Copies::Count(2)), Ok(()));
    assert_eq!(can_stop(&mut world, 2, Copies::All), needed);
    world.kill(3);
    world.run(seconds(3));
    assert_eq!(can_stop(&mut world, 2, Copies::Majority), needed);
    assert_eq!(can_stop(&mut world, 3, Copies::Majority), Ok(()));
    world.revive(3, Memory::Gone);
    assert_eq!(can_stop(&mut world, 2, Copies::Count(1)), needed);
    world.settle();
    assert_eq!(can_stop(&mut world, 2, Copies::Majority), Ok(()));
}

#[test]
fn a_voter_far_behind_is_catching_up_and_does_not_stand_in_for_another() {
    let mut world = World::of(3, SHARDS);
    let look = |world: &mut World, behind: u64| {
        let mut sight = world.sight();
        for report in sight.reports.values_mut() {
            let mut other = (**report).clone();
            for shard in &mut other.shards {
                shard.committed += behind;
                let is_third = |(seat, _): &&mut (Seat, u64)| seat.node != NodeId(3);
                shard.copies.iter_mut().filter(is_third).for_each(|(_, seq)| *seq += behind);
            }
            *report = other.into();
        }
        let stop = |node| {
            let (topology, settings) = (&world.topology, &world.settings);
            keeps_quorum_without(topology, &sight, settings, NodeId(node), Copies::Majority)
        };
        // The ten shards that node3 leads itself know no lag of it.
        let shards = stop(2).map_or_else(|needed| needed.shards, |()| 0);
        assert_eq!(stop(3), Ok(()));
        let states = super::shard_states(&world.topology, &sight, &world.settings);
        (shards, states.iter().filter(|state| **state == ShardState::CatchingUp).count())
    };
    assert_eq!(look(&mut world, 1_000), (0, 0));
    assert_eq!(look(&mut world, 1_001), (20, 20));
}

/// It is heard as soon as it is back; that its memory is gone is written down a moment later.
#[test]
fn a_node_that_came_back_without_its_memory_is_not_counted_before_the_topology_knows() {
    let mut world = World::of(3, SHARDS);
    let mut sight = world.sight();
    let report = sight.reports.get_mut(&NodeId(2)).unwrap();
    let mut reborn = (**report).clone();
    reborn.life += 100;
    *report = reborn.into();
    let (topology, settings) = (&world.topology, &world.settings);
    let states = super::shard_states(topology, &sight, settings);
    let count = |wanted| states.iter().filter(|state| **state == wanted).count();
    assert_eq!((count(ShardState::Unavailable), count(ShardState::UnderReplicated)), (10, 20));
    let stop = keeps_quorum_without(topology, &sight, settings, NodeId(3), Copies::Majority);
    assert_eq!(stop, Err(Needed { first: ShardId(0), shards: 30 }));
}

#[test]
fn copying_to_a_node_is_bounded_where_there_is_much_to_copy() {
    let mut world = World::new(100);
    world.writes = true;
    world.run(seconds(30));
    world.forget();
    world.join("");
    world.run(STEP);
    let learners =
        |world: &World| world.topology.shards.iter().map(|s| s.learners.len()).sum::<usize>();
    assert_eq!(learners(&world), 16);
    world.run(seconds(20));
    world.writes = false;
    world.settle();
    assert_eq!(world.votes(), [100, 100]);
}

/// Whatever may happen to a cluster of up to five nodes.
#[derive(Clone, Copy, Debug)]
enum Event {
    Kill(u64),
    Revive(u64, Memory),
    Hang(u64),
    Stand(u64, Standing),
    Clock(u64, i64),
    Slander(u64, bool),
    Join(u8),
    Elect,
    Run(u16),
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 1..6_u64;
    let memory = prop_oneof![
        3 => Just(Memory::Kept), 1 => Just(Memory::Doubtful), 1 => Just(Memory::Gone),
    ];
    let standing = prop_oneof![
        Just(Standing::Member),
        Just(Standing::Restarting),
        Just(Standing::Decommissioning),
    ];
    let clock = prop_oneof![Just(0), Just(-900), Just(450)];
    prop_oneof![
        4 => node().prop_map(Event::Kill),
        5 => (node(), memory).prop_map(|(node, memory)| Event::Revive(node, memory)),
        1 => node().prop_map(Event::Hang),
        1 => (node(), standing).prop_map(|(node, standing)| Event::Stand(node, standing)),
        1 => (node(), clock).prop_map(|(node, ms)| Event::Clock(node, ms)),
        1 => (node(), any::<bool>()).prop_map(|(node, is)| Event::Slander(node, is)),
        2 => (0..3_u8).prop_map(Event::Join),
        1 => Just(Event::Elect),
        8 => (1..200_u16).prop_map(Event::Run),
    ]
}

fn happen(world: &mut World, event: Event) {
    let nodes = world.topology.members.len() as u64;
    let within = |node: u64| (node - 1) % nodes + 1;
    match event {
        Event::Kill(node) => world.kill(within(node)),
        Event::Revive(node, memory) => world.revive(within(node), memory),
        Event::Hang(node) => world.hang(within(node)),
        Event::Stand(node, standing) => world.stand(within(node), standing),
        Event::Clock(node, ms) => world.set_clock(within(node), ms),
        Event::Slander(node, is_slandered) => world.slander(within(node), is_slandered),
        Event::Join(zone) if nodes < 5 => _ = world.join(["", "b", "c"][usize::from(zone)]),
        Event::Join(_) => {}
        Event::Elect => world.elect(),
        Event::Run(steps) => world.run(STEP * u32::from(steps)),
    }
}

/// A history takes long: fewer cases than elsewhere. `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases.div_ceil(10), max_shrink_iters: 200, ..usual }
}

proptest! {
    #![proptest_config(config())]

    /// [`World`] holds each change to the rules as it comes, and each takeover to what was
    /// committed before it.
    #[test]
    fn whatever_happens_the_rules_hold_and_all_is_well_in_the_end(
        nodes in 1..4_usize,
        events in prop::collection::vec(event(), 1..40),
    ) {
        let mut world = World::of(nodes, 5);
        world.settings.rebalance_delay = seconds(8);
        world.writes = true;
        for event in events {
            happen(&mut world, event);
        }
        let nodes = world.topology.members.len() as u64;
        for node in 1..=nodes {
            world.kill(node);
            world.revive(node, Memory::Kept);
            world.stand(node, Standing::Member);
            world.set_clock(node, 0);
            world.slander(node, false);
        }
        world.writes = false;
        // Unclean recovery waits, and so does damping, for up to three minutes.
        world.run(seconds(220));
        world.settle();
        prop_assert!(all_healthy(&mut world), "{:?}", world.topology.shards);
        let sight = world.sight();
        let outlook = Outlook::new(&world.topology, &sight, &world.settings);
        prop_assert_eq!(outlook, Outlook { is_settled: true, moves_left: 0 });
        let copies = 3.min(nodes as usize);
        prop_assert!(world.topology.shards.iter().all(|shard| shard.voters.len() == copies));
        let led = world.primaries();
        prop_assert!(led.iter().max().unwrap() - led.iter().min().unwrap() <= 1 + usize::from(nodes > 3), "{:?}", led);
    }
}
