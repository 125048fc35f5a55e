//! The controller, in the made-up world of its own unit tests, through more histories than those go:
//! ways fail one by one, by connections, dialling or gossip, in one direction or both.

mod sight {
    pub(super) use aegiskv::controller::{
        Break, Inquiry, Leased, Link, Presence, Report, Role, Seems, Seen, ShardReport, Sight,
    };
}

#[expect(dead_code, reason = "the unit tests use more of it")]
#[expect(clippy::unwrap_used, reason = "it is part of tests")]
#[path = "../../src/controller/world.rs"]
mod world;

use std::time::Duration;

use aegiskv::controller::{
    Controller, Failure, Note, Settings, ShardState, UncleanRecovery, may_run, may_stop,
    shard_states,
};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use self::world::{Memory, STEP, Tools, Way, World};

thread_local! {
    /// Clusters to begin with, of three nodes and of five.
    static SETTLED: [World; 2] = [World::of(3, 2), World::of(5, 2)];
}

/// One history: what happens to the ways and to the processes is drawn from the seed.
fn history(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let nodes: u64 = if random.random_range(0..3) == 0 { 5 } else { 3 };
    let mut world = SETTLED.with(|settled| settled[usize::from(nodes == 5)].clone());
    world.settings.rebalance_delay = Duration::from_secs(6);
    if random.random_range(0..4) == 0 {
        hide(&mut world, nodes, &mut random);
    }
    let node = |random: &mut SmallRng| random.random_range(1..=nodes);
    for _ in 0..random.random_range(2..9) {
        let way = [Way::Tcp, Way::Tcp, Way::Udp, Way::Dial][random.random_range(0..4)];
        let (a, b) = (node(&mut random), node(&mut random));
        match random.random_range(0..10) {
            0..3 if a != b => world.part(way, a, b),
            3 if a != b => world.cut(way, a, b),
            4 => others(nodes, a).for_each(|b| world.cut(way, b, a)),
            5 => others(nodes, a).for_each(|b| world.part(way, a, b)),
            6 => world.kill(a),
            7 => world.revive(a, Memory::Kept),
            8 if random.random_range(0..3) == 0 => world.misplace(a),
            9 if random.random_range(0..3) == 0 => world.mend(),
            _ => world.elect(),
        }
        world.run(STEP * random.random_range(1..60));
    }
    world.run(Duration::from_secs(10));
}

/// Two nodes that no connection leads to: one way alone tells of them, or none before they are
/// asked everywhere. It may be that one node's gossip hears nobody, or that nobody leads meanwhile,
/// so that whoever does afterwards finds a long silence.
fn hide(world: &mut World, nodes: u64, random: &mut SmallRng) {
    let deaf = random.random_range(1..=nodes);
    if random.random() {
        others(nodes, deaf).for_each(|other| world.cut(Way::Udp, other, deaf));
    }
    for _ in 0..2 {
        let hidden = random.random_range(1..=nodes);
        if random.random() {
            world.misplace(hidden);
        } else {
            others(nodes, hidden).for_each(|other| world.part(Way::Tcp, hidden, other));
        }
    }
    let is_leaderless = random.random();
    if is_leaderless {
        (1..=nodes).for_each(|a| others(nodes, a).for_each(|b| world.cut(Way::Tcp, a, b)));
    }
    world.run(Duration::from_secs(10));
    if is_leaderless {
        world.mend();
    }
}

fn others(nodes: u64, node: u64) -> impl Iterator<Item = u64> {
    (1..=nodes).filter(move |other| *other != node)
}

/// A history in which tools stop nodes, each with leave, while nodes fail by themselves, leaders
/// change, and ways are cut; how often a node was stopped.
fn history_of_leave(seed: u64) -> u64 {
    let mut random = SmallRng::seed_from_u64(seed);
    let nodes: u64 = if random.random_range(0..3) == 0 { 5 } else { 3 };
    let mut world = SETTLED.with(|settled| settled[usize::from(nodes == 5)].clone());
    world.settings.rebalance_delay = Duration::from_secs(6);
    world.tools = Tools::new(random.random_range(2..4), random.random());
    let node = |random: &mut SmallRng| random.random_range(1..=nodes);
    for _ in 0..random.random_range(4..24) {
        let (a, b) = (node(&mut random), node(&mut random));
        match random.random_range(0..12) {
            0 => world.kill(a),
            1..4 => world.revive(a, Memory::Kept),
            4 if a != b => world.part(Way::Tcp, a, b),
            5..7 => world.mend(),
            7..9 => world.elect(),
            _ => {}
        }
        world.run(STEP * random.random_range(1..100));
    }
    world.tools.stops
}

/// What a history complains of, if anything.
fn complaint(seed: u64) -> Option<String> {
    complaint_of(seed, history)
}

fn complaint_of(seed: u64, history: fn(u64)) -> Option<String> {
    let outcome = std::panic::catch_unwind(|| history(seed));
    let panic = outcome.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or(panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
}

#[test]
fn whatever_ways_fail_nobody_is_given_up_who_can_be_reached() {
    let (first, many) = crate::seeds();
    println!("{many} histories from AEGIS_SEED={first} on");
    for seed in first..first + many {
        let complaint = complaint(seed);
        assert!(complaint.is_none(), "AEGIS_SEED={seed}: {complaint:?}");
    }
}

#[test]
fn no_schedule_gives_leave_to_stop_two_nodes() {
    thread_local! {
        static STOPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }
    let (first, many) = crate::seeds();
    // They take longer than others.
    let many = many.div_ceil(4);
    println!("{many} histories from AEGIS_SEED={first} on");
    for seed in first..first + many {
        let complaint = complaint_of(seed, |seed| {
            STOPS.set(STOPS.get() + history_of_leave(seed));
        });
        assert!(complaint.is_none(), "AEGIS_SEED={seed}: {complaint:?}");
    }
    println!("a node was stopped {} times", STOPS.get());
    assert!(many == 1 || STOPS.get() >= many, "hardly anything was stopped: {}", STOPS.get());
}

#[cfg(feature = "mutations")]
mod mutants {
    use aegiskv::mutation::{self, Mutation};

    fn of_leave(seed: u64) {
        super::history_of_leave(seed);
    }

    /// Within so many histories a broken rule must be noticed.
    const SEEDS_MAX: u64 = 10_000;

    macro_rules! is_noticed {
        ($($test:ident: $mutation:ident, $history:expr;)*) => {
            $(#[test]
            fn $test() {
                mutation::set(Some(Mutation::$mutation));
                let first = crate::number("AEGIS_SEED").unwrap_or(1);
                let mut noticed = (first..first + SEEDS_MAX)
                    .filter_map(|seed| {
                        super::complaint_of(seed, $history).map(|why| (seed - first + 1, why))
                    });
                let (after, why) = noticed.next().expect("it is not noticed");
                mutation::set(None);
                println!("{}: after {after} histories: {why:.150}", stringify!($mutation));
            })*
        };
    }

    is_noticed! {
        gossip_that_decides_alone: GossipDecides, super::history;
        a_report_that_is_no_sign_of_life: WordsIgnored, super::history;
        gossip_elsewhere_that_does_not_count: ElsewhereIgnored, super::history;
        a_silent_node_that_is_gone_unasked: GoneUnasked, super::history;
        a_voter_that_is_lost_as_soon_as_it_has_failed: FailedIsGone, super::history;
        a_stop_lease_that_is_granted_twice: LeaseUncompared, of_leave;
        a_stop_lease_that_was_judged_earlier: LeaseJudgedEarlier, of_leave;
        a_stop_lease_that_is_back_once_its_node_answers: LeaseBackWhenAnswering, of_leave;
    }
}
