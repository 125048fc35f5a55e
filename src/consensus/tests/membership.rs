//! Who is in the group, and who votes.

use std::time::Duration;

use super::net::{Net, PATIENCE, about, enter, runs};
use crate::topology::{Announcement, Command, NodeId, Outcome, Rejection, Standing};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nodes_one_votes_and_of_three_all() {
    let net = Net::founded(2).await;
    net.sees(2, |topology| topology.members.len() == 2).await;
    net.voters_are(2, &[1]).await;
    assert!(net.leadership(1).votes && !net.leadership(2).votes);
    // The learner's death is no matter to the one that votes.
    net.stop(2).await;
    net.node(1).propose(enter(1, "2.0"), PATIENCE).await.unwrap();
    net.open(2).await;
    net.sees(2, runs(1, "2.0")).await;

    net.join(2).await;
    for node in [1, 2, 3] {
        net.voters_are(node, &[1, 2, 3]).await;
    }
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_voter_is_replaced_by_a_learner_and_learns_it_when_it_returns() {
    let net = Net::founded(4).await;
    net.voters_are(1, &[1, 2, 3]).await;
    net.stop(3).await;
    net.set_dead(&[3]);
    net.voters_are(1, &[1, 2, 4]).await;
    net.set_dead(&[]);
    net.open(3).await;
    net.voters_are(3, &[1, 2, 4]).await;
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_takes_the_place_of_its_former_self() {
    let net = Net::founded(3).await;
    net.voters_are(1, &[1, 2, 3]).await;
    net.stop(3).await;
    let again = Announcement { life: 900, ..about(3) };
    assert_eq!(net.join_as(1, again).await, NodeId(4));
    net.voters_are(1, &[1, 2, 4]).await;
    net.voters_are(4, &[1, 2, 4]).await;
    let mut metrics = net.node(1).inner.raft.metrics();
    let left = metrics
        .wait_for(|metrics| metrics.membership_config.membership().get_node(&NodeId(3)).is_none());
    tokio::time::timeout(PATIENCE, left).await.unwrap().unwrap();
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_to_leave_hands_its_vote_over() {
    let net = Net::founded(4).await;
    net.voters_are(1, &[1, 2, 3]).await;
    let leader = net.leader_among(&[1, 2, 3, 4]).await;
    let standing = Standing::Decommissioning;
    let leave = Command::Stand { node: NodeId(leader), standing };
    net.node(2).propose(leave, PATIENCE).await.unwrap();
    let rest: Vec<u64> = (1..=4).filter(|node| *node != leader).collect();
    for node in &rest {
        net.voters_are(*node, &rest).await;
    }
    let next = net.leader_among(&rest).await;
    let outcome = net.node(next).propose(enter(next, "2.0"), PATIENCE).await;
    assert_eq!(outcome, Ok(Outcome::Done));
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_is_known_under_its_new_address() {
    let net = Net::founded(2).await;
    let moved = Announcement { peer_addr: "10.9.9.9:7701".to_owned(), ..about(2) };
    net.node(2).propose(Command::Enter { node: NodeId(2), about: moved }, PATIENCE).await.unwrap();
    let mut metrics = net.node(1).inner.raft.metrics();
    let known = metrics.wait_for(|metrics| {
        let node = metrics.membership_config.membership().get_node(&NodeId(2)).cloned();
        node.is_some_and(|node| node.addr == "10.9.9.9:7701" && node.name == "node2")
    });
    tokio::time::timeout(PATIENCE, known).await.unwrap().unwrap();
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_of_voters_begins_that_could_not_end() {
    let net = Net::founded(3).await;
    net.voters_are(1, &[1, 2, 3]).await;
    let leader = net.leader_among(&[1, 2, 3]).await;
    let dead: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    for _ in 4..=7 {
        net.join(leader).await;
    }
    net.voters_are(leader, &[1, 2, 3, 4, 5]).await;
    // Three of five seem dead. Two others could vote, but a majority of the old ones must agree.
    net.set_dead(&[dead[0], dead[1], 4]);
    tokio::time::sleep(Duration::from_millis(800)).await;
    net.voters_are(leader, &[1, 2, 3, 4, 5]).await;
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_are_what_the_topology_says() {
    let net = Net::founded(1).await;
    let node = net.node(1);
    let joined = node.propose(Command::Join(about(2)), PATIENCE).await.unwrap();
    assert_eq!(node.propose(Command::Join(about(2)), PATIENCE).await.unwrap(), joined);
    let stranger = NodeId(9);
    let outcome = node.propose(Command::Remove(stranger), PATIENCE).await.unwrap();
    assert_eq!(outcome, Outcome::Rejected(Rejection::NotAMember(stranger)));
    net.end().await;
}
