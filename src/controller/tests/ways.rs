//! Ways that fail one by one: connections, dialling, gossip, in one direction or both. Nobody is
//! given up who is reached, and no shard whose voters can be found is recovered uncleanly.

use super::super::world::{Memory, STEP, Way, World};
use super::super::{HandOver, Note};
use super::{SHARDS, all_healthy, seconds};

/// Well beyond the rebalance delay, and whatever waits besides.
const LONG: std::time::Duration = seconds(90);

fn changes_nothing(world: &mut World, what: &str) {
    world.run(LONG);
    assert!(world.changes.is_empty(), "{what}: {:?}", world.changes[0]);
    assert!(world.notes.is_empty(), "{what}: {:?}", world.notes);
    assert!(all_healthy(world), "{what}");
}

#[test]
fn lost_gossip_alone_changes_nothing() {
    for (what, cuts) in [
        ("to the leader", &[(2, 1), (3, 1)][..]),
        ("from the leader", &[(1, 2), (1, 3)]),
        ("to a follower", &[(1, 2), (3, 2)]),
        ("to all but the leader", &[(1, 2), (3, 2), (1, 3), (2, 3)]),
        ("between all", &[(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)]),
    ] {
        let mut world = World::of(3, SHARDS);
        cuts.iter().for_each(|(from, to)| world.cut(Way::Udp, *from, *to));
        changes_nothing(&mut world, what);
        // With gossip lost, a death is still a death.
        world.kill(3);
        world.run(STEP * 3);
        assert_eq!(world.primaries(), [15, 15, 0], "{what}");
    }
}

#[test]
fn a_node_that_others_reach_goes_on_and_is_given_no_more_work() {
    let mut world = World::of(3, SHARDS);
    world.part(Way::Tcp, 1, 2);
    world.part(Way::Udp, 1, 2);
    changes_nothing(&mut world, "the leader and one follower");
    world.stand(3, crate::topology::Standing::Restarting);
    world.run(STEP);
    assert_eq!(world.primaries(), [20, 10, 0], "to the one that the leader reaches");
    world.kill(3);
    world.run(seconds(5));
    world.revive(3, Memory::Kept);
    world.stand(3, crate::topology::Standing::Member);
    world.run(seconds(30));
    assert_eq!(world.primaries(), [10, 10, 10], "the third takes back its share");
    let given = |change: &crate::topology::Change| change.to.primary.node.0;
    assert!(world.changes.iter().all(|change| given(change) != 2), "nobody gave node2 any");
    world.mend();
    world.settle();
    assert!(all_healthy(&mut world));
}

#[test]
fn a_primary_that_lacks_its_voters_leaves_to_one_that_has_them() {
    let mut world = World::of(5, SHARDS);
    let shards = &world.topology.shards;
    let at = shards.iter().position(|shard| shard.primary.node.0 == 5).unwrap();
    let voters: Vec<u64> = shards[at].voters.iter().map(|seat| seat.node.0).collect();
    // It keeps the connections with two more members, and so with most of them.
    voters.iter().filter(|node| **node != 5).for_each(|node| world.part(Way::Tcp, 5, *node));
    world.run(seconds(4));
    assert_eq!(world.topology.shards[at].primary.node.0, 5);
    world.run(seconds(1));
    assert_ne!(world.topology.shards[at].primary.node.0, 5);
    let apart = |note: &Note| matches!(note, Note::HandedOver { why: HandOver::Apart, .. });
    assert!(world.notes.iter().any(apart), "{:?}", world.notes);
}

#[test]
fn nobody_is_gone_of_whom_somebody_elses_gossip_tells() {
    let mut world = World::of(4, SHARDS);
    // node4 has no connections, and the leader's gossip is deaf.
    (1..4).for_each(|other| world.part(Way::Tcp, 4, other));
    (2..5).for_each(|other| world.cut(Way::Udp, other, 1));
    world.run(LONG);
    assert_eq!(world.primaries()[3], 0);
    assert!(world.votes()[3] > 0, "its copies stay its own: {:?}", world.votes());
    (1..4).for_each(|other| world.cut(Way::Udp, 4, other));
    world.run(LONG);
    assert_eq!(world.votes(), [30, 30, 30, 0]);
}

#[test]
fn who_answers_when_asked_is_not_gone() {
    let mut world = World::of(3, SHARDS);
    world.misplace(2);
    world.misplace(3);
    world.run(LONG);
    assert!(world.changes.iter().all(|change| !change.to.unclean));
    world.settle();
    assert_eq!(world.primaries(), [10, 10, 10]);
}

#[test]
fn shards_whose_voters_are_only_heard_of_are_not_recovered_and_that_is_said() {
    let mut world = World::of(5, SHARDS);
    for (a, b) in [(1, 4), (1, 5), (2, 4), (2, 5), (3, 4), (3, 5)] {
        world.part(Way::Tcp, a, b);
    }
    world.run(LONG);
    assert!(world.changes.iter().all(|change| !change.to.unclean));
    let withheld: Vec<String> = world
        .notes
        .iter()
        .filter(|note| matches!(note, Note::Withheld { .. }))
        .map(ToString::to_string)
        .collect();
    let expected = "15 shards have no majority that can be used, and are not given up, since node4, \
                    node5 cannot be shown to be gone; mend the network, or start or remove the node";
    assert_eq!(withheld, [expected]);
}
