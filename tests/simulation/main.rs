//! A cluster in one thread: real replicas over real logs on disks, networks and clocks that fail,
//! all of it repeatable from one number.
//!
//! `AEGIS_SEED=n` repeats one history, `AEGIS_SEEDS=n` runs so many (from that seed on, or a fresh
//! one), `AEGIS_TRACE=1` tells what happens. A hundred thousand take minutes:
//!
//! `AEGIS_SEEDS=100000 cargo nextest run --cargo-profile simulation --test simulation fresh
//! --no-capture`

mod clients;
mod controller;
mod dice;
mod directed;
mod faults;
mod history;
mod machine;
#[cfg(feature = "mutations")]
mod mutants;
mod oracle;
mod plan;
mod situations;
mod witness;
mod world;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

// The controller's world finds them here, as it does in the library.
use aegiskv::{entry, topology};

use plan::Plan;
use world::{Outcome, World};

/// Histories in an ordinary run of the tests.
const SEEDS: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn run(seed: u64) -> Outcome {
    World::new(seed, |_| {}).run()
}

/// The first seed, and how many.
fn seeds() -> (u64, u64) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    match (number("AEGIS_SEED"), number("AEGIS_SEEDS")) {
        (Some(seed), many) => (seed, many.unwrap_or(1)),
        (None, many) => (since.as_nanos() as u64 >> 8, many.unwrap_or(SEEDS)),
    }
}

/// Runs so many histories, changed so: what was promised holds in each.
fn keep_every_promise(first: u64, many: u64, change: impl Fn(&mut Plan)) {
    println!("{many} histories from AEGIS_SEED={first} on");
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut events, mut unclean, mut failed) = (0, 0, Vec::new());
    for seed in first..first + many {
        let outcome = World::new(seed, &change).run();
        events += outcome.events;
        for (what, times) in outcome.counts {
            *counts.entry(what).or_insert(0) += times;
        }
        unclean += u64::from(outcome.unclean);
        if let Some(complaint) = outcome.complaint {
            println!("AEGIS_SEED={seed}: {complaint}");
            failed.push(seed);
            if failed.len() >= 20 {
                break;
            }
        }
    }
    println!("{many} histories, {events} events, {unclean} with an unclean recovery");
    counts.iter().for_each(|(what, times)| println!("{times:>10} {what}"));
    assert!(failed.is_empty(), "repeat with AEGIS_SEED={} AEGIS_TRACE=1", failed[0]);
}

#[test]
fn fresh_histories_keep_every_promise() {
    let (first, many) = seeds();
    keep_every_promise(first, many, |_| {});
}

#[test]
fn where_a_rule_matters_most_every_promise_is_kept() {
    let (first, many) = seeds();
    for (name, situation) in situations::ALL {
        println!("{name}:");
        keep_every_promise(first, many.div_ceil(situations::ALL.len() as u64), situation);
    }
}

#[test]
fn the_same_seed_makes_the_same_history() {
    for seed in 1..=20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
