//! Whole clusters of engines in one thread, on a made-up network and a made-up clock.

mod world;

use std::time::Duration;

use crate::gossip::datagram::{Envelope, Form, Frame, HEADER_BYTES, Header, Session};
use crate::gossip::seal::Keyring;
use crate::gossip::{Reason, State};
use crate::topology::NodeId;
use world::{CLUSTER, SECRET, World};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn three_meet_by_one_seed_within_moments() {
    let mut world = World::new(1);
    for node in 1..=3 {
        world.start(node, &["10.0.0.1:7701"]);
    }
    world.run(seconds(1));
    world.assert_all_alive();
    world.assert_foca_agrees();
    let seen = &world.seen(1)[&NodeId(3)];
    assert_eq!((seen.peer.name.as_str(), seen.peer.life), ("node3", 1));
    assert_eq!(seen.addr, Some("10.0.0.3:7701".parse().unwrap()));
    for node in 1..=3 {
        assert_eq!(world.refused(node), []);
    }
}

#[test]
fn a_chain_of_seeds_is_enough_in_either_direction() {
    let mut world = World::new(2);
    for node in 1..=5_u64 {
        let next = format!("10.0.0.{}:7701", node + 1);
        let seeds = if node == 5 { vec![] } else { vec![next.as_str()] };
        world.start(node, &seeds);
    }
    world.run(seconds(5));
    world.assert_all_alive();
}

#[test]
fn a_seed_that_is_not_there_yet_is_met_when_it_comes() {
    let mut world = World::new(3);
    world.start(1, &["10.0.0.1:7701", "10.0.0.2:7701"]);
    world.run(seconds(60));
    assert!(world.seen(1).is_empty());
    world.start(2, &[]);
    world.run(seconds(2));
    world.assert_all_alive();
    // Then it is left in peace, and nobody knocks at his own door.
    world.run(seconds(10));
    assert_eq!(world.unmet(1), []);
}

#[test]
fn a_killed_node_is_suspected_and_dead_when_the_timeouts_say() {
    let mut world = World::cluster(4, 3);
    world.run(seconds(20));
    world.kill(3);
    world.run(Duration::from_millis(3_900));
    world.assert_state(&[1, 2], 3, State::Alive);
    world.run(Duration::from_millis(1_300));
    world.assert_state(&[1, 2], 3, State::Suspect);
    world.run(Duration::from_millis(3_700));
    world.assert_state(&[1, 2], 3, State::Suspect);
    world.run(Duration::from_millis(1_300));
    world.assert_state(&[1, 2], 3, State::Dead);
    world.assert_state(&[1], 2, State::Alive);
    world.run(seconds(20));
    assert!(world.foca_has_down(1, 3) && world.foca_has_down(2, 3));
}

#[test]
fn a_node_that_was_stopped_comes_back_in_a_later_generation_and_blames_nobody() {
    let mut world = World::cluster(5, 3);
    world.run(seconds(20));
    let before = world.generation(3);
    world.pause(3);
    world.run(seconds(25));
    world.assert_state(&[1, 2], 3, State::Dead);
    assert!(world.foca_has_down(1, 3));
    world.resume(3);
    world.run(Duration::from_millis(300));
    world.assert_all_alive();
    world.run(seconds(2));
    assert!(world.generation(3) > before);
    world.assert_foca_agrees();
    world.run(seconds(20));
    world.assert_all_alive();
    world.assert_never(3, &[State::Suspect, State::Dead]);
}

#[test]
fn a_generation_lasts_for_an_interval_however_often_others_deny_it() {
    let mut world = World::cluster(24, 2);
    world.run(seconds(10));
    let first = world.generation(2);
    for more in 1..=5 {
        world.deny(2, first + more);
    }
    assert_eq!(world.generation(2), first + 1);
    world.run(Duration::from_millis(900));
    assert_eq!(world.generation(2), first + 1);
    world.run(Duration::from_millis(400));
    assert_eq!(world.generation(2), first + 5);
    world.run(seconds(3));
    world.assert_all_alive();
    world.assert_foca_agrees();
}

#[test]
fn after_a_partition_all_find_each_other_again_without_seeds() {
    let mut world = World::cluster(6, 4);
    world.run(seconds(20));
    for node in 1..=4 {
        world.set_seeds(node, &[]);
    }
    for (a, b) in [(1, 3), (1, 4), (2, 3), (2, 4)] {
        world.cut(a, b);
        world.cut(b, a);
    }
    world.run(seconds(60));
    world.assert_state(&[1, 2], 3, State::Dead);
    world.assert_state(&[3, 4], 1, State::Dead);
    world.assert_state(&[1], 2, State::Alive);
    world.heal();
    world.run(seconds(12));
    world.assert_all_alive();
    world.run(seconds(20));
    world.assert_foca_agrees();
}

#[test]
fn every_node_alone_for_a_minute_finds_all_the_others_again() {
    let mut world = World::cluster(7, 3);
    world.run(seconds(20));
    for node in 1..=3 {
        world.isolate(node);
    }
    world.run(seconds(60));
    world.assert_state(&[1, 2], 3, State::Dead);
    world.heal();
    world.run(seconds(10));
    world.assert_all_alive();
    world.run(seconds(20));
    world.assert_foca_agrees();
}

#[test]
fn one_broken_path_makes_nobody_suspect() {
    let mut world = World::cluster(8, 4);
    world.run(seconds(20));
    world.cut(1, 2);
    world.cut(2, 1);
    world.run(seconds(120));
    world.assert_all_alive();
    for node in 1..=4 {
        world.assert_never(node, &[State::Suspect, State::Dead]);
    }
}

#[test]
fn a_deaf_node_unsettles_nobody_else() {
    let mut world = World::cluster(9, 4);
    world.run(seconds(20));
    for other in 1..=3 {
        world.cut(other, 4);
    }
    world.run(seconds(90));
    world.assert_state(&[4], 1, State::Dead);
    for node in 1..=3 {
        world.assert_never(node, &[State::Suspect, State::Dead]);
    }
    world.heal();
    world.run(seconds(10));
    world.assert_all_alive();
    world.run(seconds(20));
    world.assert_foca_agrees();
}

#[test]
fn a_restart_is_taken_at_once_even_with_a_clock_set_back_by_ten_minutes() {
    let mut world = World::cluster(10, 3);
    world.run(seconds(20));
    let before = world.generation(3);
    world.kill(3);
    world.restart_at(3, before - 600_000, 1);
    world.run(seconds(3));
    world.assert_all_alive();
    world.assert_never(1, &[State::Suspect, State::Dead]);
    world.assert_foca_agrees();
    assert!(world.generation(3) > before);
}

#[test]
fn a_node_with_a_new_life_is_seen_in_it_and_its_old_life_is_refused() {
    let mut world = World::cluster(11, 3);
    world.run(seconds(20));
    world.kill(3);
    let generation = world.generation(3);
    world.restart_at(3, generation + 1, 7);
    world.run(seconds(3));
    world.assert_all_alive();
    assert_eq!(world.seen(1)[&NodeId(3)].peer.life, 7);
    world.kill(3);
    world.restart_at(3, generation + 2, 1);
    world.run(seconds(20));
    world.assert_state(&[1, 2], 3, State::Dead);
    assert!(world.refused(1).contains(&Reason::OldLife));
}

#[test]
fn a_goodbye_is_seen_at_once_and_a_return_as_well() {
    let mut world = World::cluster(12, 3);
    world.run(seconds(20));
    world.leave(3);
    world.run(Duration::from_millis(100));
    world.assert_state(&[1, 2], 3, State::Left);
    world.run(seconds(60));
    world.assert_state(&[1, 2], 3, State::Left);
    let generation = world.generation(3);
    world.restart_at(3, generation - 1, 1);
    world.run(seconds(3));
    world.assert_all_alive();
    world.assert_foca_agrees();
}

#[test]
fn recordings_change_nothing_neither_before_nor_after_restarts() {
    let mut world = World::cluster(13, 3);
    world.run(seconds(30));
    let first = world.recorded();
    world.replay(&first);
    world.run(seconds(1));
    assert!(world.refused(1).contains(&Reason::Replay));
    world.assert_all_alive();
    // The sender restarts: what it said in its earlier run is not heard again.
    world.kill(3);
    let generation = world.generation(3);
    world.restart_at(3, generation + 1, 1);
    world.run(seconds(3));
    // Then it dies for good, and a receiver restarts.
    world.kill(3);
    world.run(seconds(12));
    world.assert_state(&[1, 2], 3, State::Dead);
    world.kill(1);
    let generation = world.generation(1);
    world.restart_at(1, generation + 1, 1);
    world.run(seconds(3));
    let all = world.recorded();
    for _ in 0..20 {
        world.replay(&all);
        world.run(seconds(1));
    }
    world.assert_state(&[2], 3, State::Dead);
    assert_ne!(world.seen(1).get(&NodeId(3)).map(|seen| seen.state), Some(State::Alive));
    world.assert_state(&[1], 2, State::Alive);
}

#[test]
fn a_wrong_secret_another_cluster_and_a_plain_node_never_get_in() {
    let mut world = World::cluster(14, 2);
    world.start_with(3, &["10.0.0.1:7701"], CLUSTER, &["wrong"]);
    world.start_with(4, &["10.0.0.1:7701"], CLUSTER + 1, &[SECRET]);
    world.start_with(5, &["10.0.0.1:7701"], CLUSTER, &[]);
    world.run(seconds(30));
    assert_eq!(world.seen(1).len(), 1);
    assert!((3..=5).all(|node| world.seen(node).is_empty()));
    let refused = world.refused(1);
    for reason in [Reason::WrongSecret, Reason::OtherCluster, Reason::Unsealed] {
        assert!(refused.contains(&reason), "{reason:?} in {refused:?}");
    }
}

#[test]
fn a_cluster_without_a_secret_meets_as_well() {
    let mut world = World::new(15);
    world.start_with(1, &[], CLUSTER, &[]);
    world.start_with(2, &["10.0.0.1:7701"], CLUSTER, &[]);
    world.run(seconds(2));
    world.assert_all_alive();
}

#[test]
fn a_secret_is_rotated_without_a_word_lost() {
    let mut world = World::cluster(16, 3);
    world.run(seconds(10));
    for secrets in [&[SECRET, "new"][..], &["new", SECRET], &["new"]] {
        for node in 1..=3 {
            world.set_secrets(node, secrets);
            world.run(seconds(7));
        }
    }
    world.start_with(4, &["10.0.0.2:7701"], CLUSTER, &["new"]);
    world.run(seconds(3));
    world.assert_all_alive();
    for node in 1..=3 {
        assert_eq!(world.refused(node), []);
        world.assert_never(node, &[State::Suspect, State::Dead]);
    }
}

#[test]
fn a_flood_costs_a_bounded_effort_and_drives_no_member_out() {
    let mut world = World::cluster(17, 3);
    world.run(seconds(20));
    let stranger = "192.0.2.1:9".parse().unwrap();
    for round in 0..20_u128 {
        for number in 0..3_000_u128 {
            let session = Session(round * 3_000 + number + 1);
            let header = Header { form: Form::Sealed, cluster_id: CLUSTER, session, counter: 1 };
            let mut datagram = Vec::new();
            header.write(&mut datagram);
            datagram.resize(200, 7);
            world.inject(stranger, 1, datagram);
            world.inject(stranger, 1, vec![number as u8; 50]);
        }
        world.run(seconds(1));
    }
    let refused = world.refused(1);
    let count = |wanted| refused.iter().filter(|reason| **reason == wanted).count();
    assert_eq!(count(Reason::Garbage), 60_000);
    assert!(count(Reason::WrongSecret) <= 21 * 2_000, "{}", count(Reason::WrongSecret));
    assert!(count(Reason::Flood) > 15_000);
    world.assert_all_alive();
    for node in 1..=3 {
        world.assert_never(node, &[State::Suspect, State::Dead]);
    }
}

#[test]
fn garbage_cut_and_stretched_datagrams_are_refused_by_what_they_are() {
    let mut world = World::cluster(18, 2);
    let stranger = "192.0.2.1:9".parse().unwrap();
    let (_, _, sound) = world.recorded().swap_remove(0);
    world.inject(stranger, 1, sound[..60].to_vec());
    world.inject(stranger, 1, [&sound[..], &[0; 1_200]].concat());
    let mut newer = sound.clone();
    newer[2] = 9;
    world.inject(stranger, 1, newer);
    world.inject(stranger, 1, Vec::new());
    // Sealed by a member, as it seems, but no sense in it.
    let keyring = Keyring::new(CLUSTER, &[SECRET.as_bytes().to_vec()]);
    let envelope = Envelope { from: NodeId(9), life: 1, to: None, token: None };
    let swim = Frame::Swim(vec![1]);
    let mut sealed =
        keyring.seal(&keyring.keys(Session(5)), Session(5), 1, envelope, &swim).unwrap();
    sealed[HEADER_BYTES] ^= 1;
    world.inject(stranger, 1, sealed);
    world.run(seconds(1));
    let mut refused = world.refused(1);
    refused.sort_unstable();
    let expected = [
        Reason::Garbage,
        Reason::Truncated,
        Reason::Oversized,
        Reason::NewerVersion,
        Reason::WrongSecret,
    ];
    assert_eq!(refused, expected);
}

#[test]
fn a_network_that_loses_a_fifth_of_all_datagrams_lets_nobody_die() {
    let mut world = World::cluster(19, 4);
    world.run(seconds(10));
    world.lose(0.2);
    world.run(seconds(300));
    for node in 1..=4 {
        world.assert_never(node, &[State::Dead]);
    }
}

#[test]
fn nodes_meet_though_half_of_all_datagrams_are_lost() {
    for seed in 200..210 {
        let mut world = World::new(seed);
        world.lose(0.5);
        world.start(1, &[]);
        world.start(2, &["10.0.0.1:7701"]);
        world.start(3, &["10.0.0.1:7701"]);
        world.run(seconds(20));
        for (node, others) in [(1, [2, 3]), (2, [1, 3]), (3, [1, 2])] {
            let seen: Vec<u64> = world.seen(node).keys().map(|node| node.0).collect();
            assert_eq!(seen, others, "seed {seed}");
        }
    }
}

#[test]
fn names_are_followed_where_they_lead_now() {
    let mut world = World::new(20);
    world.start(1, &["seed.test:7701"]);
    world.start_named(2, "node2.test:7701", &[]);
    world.run(seconds(20));
    assert!(world.seen(1).is_empty());
    world.set_name("node2.test:7701", &["10.0.0.2:7701"]);
    world.set_name("seed.test:7701", &["10.0.0.2:7701"]);
    world.run(seconds(5));
    world.assert_all_alive();
    // The node moves, and its name with it.
    world.kill(2);
    world.set_name("node2.test:7701", &["10.0.0.99:7701"]);
    world.set_name("seed.test:7701", &[]);
    world.move_to(2, "10.0.0.99:7701");
    world.run(seconds(12));
    world.assert_state(&[1], 2, State::Dead);
    world.restart_at(2, 1_000_000_000, 1);
    world.run(seconds(12));
    world.assert_all_alive();
    let moved = Some("10.0.0.99:7701".parse().unwrap());
    assert_eq!(world.seen(1)[&NodeId(2)].addr, moved);
}

#[test]
fn every_address_that_one_name_leads_to_is_a_seed() {
    let mut world = World::new(21);
    world.set_name("all.test:7701", &["10.0.0.1:7701", "10.0.0.2:7701", "10.0.0.3:7701"]);
    for node in 1..=3 {
        world.start(node, &["all.test:7701"]);
    }
    world.run(seconds(3));
    world.assert_all_alive();
}

#[test]
fn forty_nodes_meet_and_miss_one_that_is_killed() {
    let mut world = World::new(22);
    for node in 1..=40 {
        world.start(node, &["10.0.0.1:7701"]);
    }
    world.run(seconds(30));
    world.assert_all_alive();
    for node in 1..=40 {
        world.assert_never(node, &[State::Suspect, State::Dead]);
    }
    world.kill(40);
    world.run(seconds(13));
    let others: Vec<u64> = (1..40).collect();
    world.assert_state(&others, 40, State::Dead);
    world.assert_state(&others[1..], 1, State::Alive);
}

#[test]
fn two_processes_that_claim_one_node_do_not_drive_the_cluster_mad() {
    let mut world = World::cluster(23, 3);
    world.run(seconds(20));
    let sent = world.sent();
    world.run(seconds(60));
    let usual = world.sent() - sent;
    world.start_twin(3, "10.0.0.77:7701", &["10.0.0.1:7701", "10.0.0.3:7701"]);
    let sent = world.sent();
    world.run(seconds(60));
    let with_twin = world.sent() - sent;
    assert!(with_twin < usual * 4, "{with_twin} datagrams, usually {usual}");
    assert!(world.refused(3).contains(&Reason::SameNode));
    world.assert_state(&[1], 2, State::Alive);
}

/// Whatever breaks, when it is over everybody is seen as it is. A failure names its seed.
#[test]
fn after_any_faults_everybody_is_seen_as_it_is() {
    for seed in 1170..1185 {
        let mut world = World::cluster(seed, 5);
        world.run(seconds(10));
        world.break_at_random(20);
        world.heal();
        world.revive();
        world.run(seconds(45));
        let complaint = world.complaint();
        assert!(complaint.is_none(), "seed {seed}: {}", complaint.unwrap_or_default());
    }
}
