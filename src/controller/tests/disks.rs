//! Disks that keep writes waiting.

use super::{SHARDS, World, all_healthy, seconds};
use crate::controller::{HandOver, Note};

#[test]
fn a_node_whose_disk_is_slow_for_some_seconds_leads_nothing_while_others_can() {
    let mut world = World::of(3, SHARDS);
    for (node, ms) in [(1, 4), (2, 3_000), (3, 9)] {
        world.set_disk(node, ms);
    }
    world.run(seconds(3));
    assert_eq!(world.primaries(), [10, 10, 10], "it may be over in a moment");
    world.step();
    assert_eq!(world.primaries(), [15, 0, 15]);
    let why = HandOver::DiskSlow { ms: 3_000 };
    let to = vec![("node1".to_owned(), 5), ("node3".to_owned(), 5)];
    assert_eq!(world.notes, [Note::HandedOver { node: "node2".to_owned(), why, to }]);
    let told = world.notes[0].to_string();
    assert_eq!(
        told,
        "node2 has a slow disk that takes 3000 ms; it hands shards over to node1 (5), node3 (5)"
    );
    world.set_disk(2, 300);
    world.run(seconds(20));
    assert_eq!(world.primaries(), [15, 0, 15], "not quite well yet");
    assert!(all_healthy(&mut world), "it keeps its copies");
    world.set_disk(2, 250);
    world.run(seconds(3));
    assert_eq!(world.primaries(), [15, 0, 15]);
    world.settle();
    assert_eq!(world.primaries(), [10, 10, 10]);
    assert_eq!(world.changes.len(), 20, "no data moved: ten primaries went and came");
}

#[test]
fn a_disk_that_is_slow_now_and_then_is_trusted_later_each_time() {
    let mut world = World::of(3, SHARDS);
    let mut waits = Vec::new();
    for _ in 0..3 {
        world.set_disk(3, 2_000);
        world.run(seconds(4));
        assert_eq!(world.primaries()[2], 0);
        world.set_disk(3, 5);
        let well = world.now;
        while world.primaries()[2] == 0 {
            world.step();
        }
        waits.push((world.now - well).as_secs());
        world.settle();
    }
    assert_eq!(waits, [3, 6, 12]);
}

#[test]
fn a_disk_that_was_slow_for_a_moment_moves_nothing() {
    let mut world = World::of(3, SHARDS);
    for _ in 0..5 {
        world.set_disk(2, 2_500);
        world.run(seconds(2));
        world.set_disk(2, 5);
        world.run(seconds(1));
    }
    assert!(world.changes.is_empty());
}

#[test]
fn where_all_disks_are_slow_nobody_stands_back() {
    let mut world = World::of(3, SHARDS);
    for (node, ms) in [(1, 900), (2, 3_000), (3, 1_100)] {
        world.set_disk(node, ms);
    }
    world.run(seconds(10));
    assert!(world.changes.is_empty(), "3000 ms is not four times as long as 1100 ms");
    // One that stands back leads again once the others are no better.
    for (node, ms) in [(1, 5), (2, 3_000), (3, 5)] {
        world.set_disk(node, ms);
    }
    world.run(seconds(4));
    assert_eq!(world.primaries(), [15, 0, 15]);
    for (node, ms) in [(1, 2_000), (3, 2_000)] {
        world.set_disk(node, ms);
    }
    world.settle();
    assert_eq!(world.primaries(), [10, 10, 10]);
}

#[test]
fn of_two_nodes_the_one_with_the_slow_disk_leads_if_the_other_is_gone() {
    let mut world = World::of(2, SHARDS);
    world.set_disk(1, 5_000);
    world.run(seconds(4));
    assert_eq!(world.primaries(), [0, 30]);
    world.set_disk(1, 5);
    world.settle();
    assert_eq!(world.primaries(), [15, 15]);
    let mut world = World::of(3, SHARDS);
    world.set_disk(1, 5_000);
    world.run(seconds(4));
    world.kill(3);
    world.run(seconds(1));
    assert_eq!(world.primaries(), [0, 30, 0]);
    world.set_clock(2, 600_000);
    world.run(seconds(1));
    assert_eq!(world.primaries(), [30, 0, 0], "a slow one rather than one whose clock is off");
}
