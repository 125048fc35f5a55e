//! The controller, in the made-up world of its own unit tests, through more histories than those go:
//! ways fail one by one, by connections, dialling or gossip, in one direction or both.

mod sight {
    pub(super) use aegiskv::controller::{
        Break, Inquiry, Link, Report, Role, Seems, Seen, ShardReport, Sight,
    };
}

#[expect(dead_code, reason = "the unit tests use more of it")]
#[path = "../../src/controller/world.rs"]
mod world;

use std::time::Duration;

use aegiskv::controller::{
    Controller, Failure, Note, Settings, ShardState, UncleanRecovery, shard_states,
};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use self::world::{Memory, STEP, Way, World};

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
    let node = |random: &mut SmallRng| random.random_range(1..=nodes);
    for _ in 0..random.random_range(2..9) {
        let way = [Way::Tcp, Way::Tcp, Way::Udp, Way::Dial][random.random_range(0..4)];
        let (a, b) = (node(&mut random), node(&mut random));
        match random.random_range(0..10) {
            0..3 if a != b => world.part(way, a, b),
            3 if a != b => world.cut(way, a, b),
            4 => (1..=nodes).filter(|b| *b != a).for_each(|b| world.cut(way, b, a)),
            5 => (1..=nodes).filter(|b| *b != a).for_each(|b| world.part(way, a, b)),
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

/// What a history complains of, if anything.
fn complaint(seed: u64) -> Option<String> {
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

#[cfg(feature = "mutations")]
mod mutants {
    use aegiskv::mutation::{self, Mutation};

    /// Within so many histories a broken rule must be noticed.
    const SEEDS_MAX: u64 = 10_000;

    macro_rules! is_noticed {
        ($($test:ident: $mutation:ident;)*) => {
            $(#[test]
            #[ignore = "takes minutes, and not each was seen to be noticed yet; run it by name"]
            fn $test() {
                mutation::set(Some(Mutation::$mutation));
                let first = crate::number("AEGIS_SEED").unwrap_or(1);
                let mut noticed = (first..first + SEEDS_MAX)
                    .filter_map(|seed| super::complaint(seed).map(|why| (seed - first + 1, why)));
                let (after, why) = noticed.next().expect("it is not noticed");
                mutation::set(None);
                println!("{}: after {after} histories: {why:.150}", stringify!($mutation));
            })*
        };
    }

    is_noticed! {
        gossip_that_decides_alone: GossipDecides;
        a_report_that_is_no_sign_of_life: WordsIgnored;
        gossip_elsewhere_that_does_not_count: ElsewhereIgnored;
        a_silent_node_that_is_gone_unasked: GoneUnasked;
        a_voter_that_is_lost_as_soon_as_it_has_failed: FailedIsGone;
    }
}
