//! Births in random worlds. A failure names the seed that repeats it. More of them:
//! `AEGIS_BIRTH_SEEDS=3000 cargo test --lib birth::simulation_tests`.

use super::Waiting;
use super::world::{Chaos, INTERVAL, World};

fn seeds() -> u64 {
    std::env::var("AEGIS_BIRTH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

/// Up to six nodes with random lists, some through aliases, some with their own address.
fn random_world(seed: u64) -> World {
    let mut world = World::new(seed);
    let names = ["a", "b", "c", "d", "e", "f"];
    let nodes = 2 + world.below(5) as usize;
    let density = 10 + world.below(60) as u32;
    for name in &names[..nodes] {
        let mut addrs = Vec::new();
        for other in &names[..nodes] {
            if !world.chance(density) {
                continue;
            }
            let aliased = world.chance(20);
            addrs.push(format!("{other}{}:7701", if aliased { ".alias" } else { "" }));
        }
        world.add(name, addrs);
    }
    for (node, name) in names[..nodes].iter().enumerate() {
        world.aliases.insert(format!("{name}.alias:7701"), node);
    }
    world
}

/// Random misfortune for some time, then all is well for as long.
fn live(world: &mut World, wipe: u32) {
    world.chaos = Chaos {
        loss: world.below(50) as u32,
        doubling: world.below(30) as u32,
        crash: world.below(20) as u32,
        outage: world.below(6) as u32,
        wipe,
        cut: world.below(8) as u32,
        delay: 1 + world.below(3 * INTERVAL),
    };
    for node in 0..world.nodes.len() {
        let after = world.below(8 * INTERVAL);
        world.start_after(node, after);
    }
    let intervals = 5 + world.below(40);
    world.run(intervals);
    world.cuts.clear();
    world.chaos = Chaos { delay: 20, ..Chaos::default() };
    for node in 0..world.nodes.len() {
        world.start_after(node, 0);
    }
    for _ in 0..6 {
        world.run(10);
        if world.is_one() {
            break;
        }
    }
}

fn lead_to_a_common_node(world: &World) -> bool {
    let reaches: Vec<_> = (0..world.nodes.len()).map(|node| world.reach(node)).collect();
    reaches.iter().all(|one| reaches.iter().all(|other| !one.is_disjoint(other)))
}

#[test]
fn nodes_whose_lists_lead_to_a_common_node_never_both_found_and_end_in_one_cluster() {
    let mut common = 0;
    for seed in 0..seeds() {
        let mut world = random_world(seed);
        live(&mut world, 0);
        for (at, (one, _)) in world.founders.iter().enumerate() {
            for (other, _) in &world.founders[at + 1..] {
                let apart = world.reach(*one).is_disjoint(&world.reach(*other));
                assert!(apart, "seed {seed}: nodes {one} and {other} both founded: {world:#?}");
            }
        }
        if lead_to_a_common_node(&world) {
            common += 1;
            assert!(world.is_one(), "seed {seed}: not one cluster in the end: {world:#?}");
        }
    }
    assert!(common * 2 > seeds(), "only {common} worlds say something about the end");
}

#[test]
fn after_disks_were_wiped_nobody_waits_for_ever_unless_between_clusters() {
    for seed in 0..seeds() / 2 {
        let mut world = random_world(seed);
        live(&mut world, 50);
        for node in &world.nodes {
            let torn = matches!(node.waits.last(), Some(Waiting::Clusters(_)));
            assert!(node.cluster.is_some() || torn, "seed {seed}: {} waits: {world:#?}", node.name);
        }
    }
}
