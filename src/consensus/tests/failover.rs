//! Leaders that are lost, and who leads then.

use std::time::{Duration, Instant};

use super::net::{Net, PATIENCE, enter, runs};
use crate::consensus::ProposeError;
use crate::topology::{NodeId, Outcome};

const THREE: [u64; 3] = [1, 2, 3];

async fn three() -> Net {
    let net = Net::founded(3).await;
    for node in THREE {
        // Until a follower knows, the old voters are needed as well.
        net.voters_are(node, &THREE).await;
    }
    net
}

/// Openraft's timers alone take at least this long to replace a leader of [`patient`]'s.
const TIMERS: Duration = Duration::from_secs(30);

/// A network whose nodes' own timers are of no use within a test.
fn patient() -> Net {
    let mut net = Net::new();
    net.config.election_timeout_min = TIMERS / 3;
    net.config.election_timeout_max = TIMERS / 3 * 2;
    net
}

async fn five(net: &Net) -> [u64; 5] {
    let all = [1, 2, 3, 4, 5];
    net.found().await;
    for _ in 2..=5 {
        net.join(1).await;
    }
    for node in all {
        net.voters_are(node, &all).await;
    }
    all
}

fn others(of: u64) -> Vec<u64> {
    THREE.into_iter().filter(|node| *node != of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leads_when_the_leader_dies_and_commands_go_on() {
    let net = three().await;
    let leader = net.leader_among(&THREE).await;
    net.kill(leader).await;
    let left = others(leader);
    let outcome = net.node(left[0]).propose(enter(left[0], "2.0"), PATIENCE).await.unwrap();
    assert_eq!(outcome, Outcome::Done);
    net.sees(left[1], runs(left[0], "2.0")).await;
    let next = net.leader_among(&left).await;
    assert_eq!(net.leadership(next).leader.map(|node| node.0), Some(next));
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_of_the_broken_connection_the_others_do_not_wait_for_their_timers() {
    let net = patient();
    let mut left = five(&net).await.to_vec();
    for _ in 0..2 {
        let leader = net.leader_among(&left).await;
        net.kill(leader).await;
        left.retain(|node| *node != leader);
        let began = Instant::now();
        left.iter().for_each(|node| net.node(*node).elect(NodeId(leader)));
        let next = net.leader_among(&left).await;
        println!("node {next} leads after {:?}", began.elapsed());
        assert!(began.elapsed() < TIMERS / 3, "{:?}", began.elapsed());
        net.node(left[0]).propose(enter(left[0], "2.0"), Duration::from_secs(5)).await.unwrap();
    }
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_in_order_says_so() {
    let net = patient();
    net.found().await;
    net.join(1).await;
    net.join(1).await;
    for node in THREE {
        net.voters_are(node, &THREE).await;
    }
    let leader = net.leader_among(&THREE).await;
    let began = Instant::now();
    net.node(leader).shutdown().await;
    let next = net.leader_among(&others(leader)).await;
    assert!(began.elapsed() < TIMERS / 3, "{:?}", began.elapsed());
    net.node(next).propose(enter(next, "2.0"), Duration::from_secs(5)).await.unwrap();
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_heard_of_is_not_contested_nor_is_anybody_else() {
    let mut net = patient();
    net.config.heartbeat = Duration::from_millis(10);
    let all = five(&net).await;
    let leader = net.leader_among(&all).await;
    let term = net.leadership(leader).term;
    let others: Vec<u64> = all.into_iter().filter(|node| *node != leader).collect();
    // The voter whose turn is last hears of the leader before it comes.
    net.node(others[3]).elect(NodeId(leader));
    // These do not lead.
    net.node(others[0]).elect(NodeId(others[1]));
    net.node(leader).elect(NodeId(leader));
    tokio::time::sleep(Duration::from_millis(400)).await;
    net.node(others[0]).propose(enter(2, "2.0"), PATIENCE).await.unwrap();
    assert_eq!(net.leadership(leader).term, term);
    net.end().await;
}

/// Longer than it takes openraft's timers, or ours, to start several elections.
const AWHILE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_cut_off_comes_back_and_unseats_nobody() {
    let net = three().await;
    let leader = net.leader_among(&THREE).await;
    let term = net.leadership(leader).term;
    let cut_off = others(leader)[0];
    net.cut(cut_off, true);
    tokio::time::sleep(AWHILE).await;
    net.cut(cut_off, false);
    net.node(cut_off).propose(enter(cut_off, "2.0"), PATIENCE).await.unwrap();
    // Started anew, it has heard of no leader yet.
    net.stop(cut_off).await;
    net.open(cut_off).await;
    tokio::time::sleep(AWHILE).await;
    net.node(cut_off).propose(enter(cut_off, "2.1"), PATIENCE).await.unwrap();
    for node in THREE {
        let now = net.leadership(node);
        assert_eq!((now.leader, now.term), (Some(NodeId(leader)), term), "node {node}");
    }
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_alone_lost_the_leader_waits_until_another_has_lost_it_too() {
    let net = three().await;
    let leader = net.leader_among(&THREE).await;
    let term = net.leadership(leader).term;
    let [deaf, other] = others(leader).try_into().unwrap();
    net.cut_between(leader, deaf);
    net.node(deaf).elect(NodeId(leader));
    tokio::time::sleep(AWHILE).await;
    net.node(other).propose(enter(other, "2.0"), PATIENCE).await.unwrap();
    assert_eq!(net.leadership(other).term, term);

    net.kill(leader).await;
    let began = Instant::now();
    net.node(other).elect(NodeId(leader));
    let next = net.leader_among(&[deaf, other]).await;
    println!("node {next} leads after {:?}", began.elapsed());
    net.node(deaf).propose(enter(deaf, "2.1"), PATIENCE).await.unwrap();
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_decides_nothing_and_learns_what_the_majority_did() {
    let net = three().await;
    let leader = net.leader_among(&THREE).await;
    net.cut(leader, true);
    let within = Duration::from_millis(700);
    let error = net.node(leader).propose(enter(leader, "lost"), within).await.unwrap_err();
    assert!(matches!(error, ProposeError::TimedOut { .. }), "{error:?}");

    let left = others(leader);
    net.leader_among(&left).await;
    net.node(left[0]).propose(enter(left[0], "kept"), PATIENCE).await.unwrap();
    assert!(!runs(left[0], "kept")(&net.node(leader).topology().borrow()));
    net.cut(leader, false);
    let seen = net.sees(leader, runs(left[0], "kept")).await;
    assert!(!runs(leader, "lost")(&seen));
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_majority_says_that_it_does_not_lead() {
    let net = three().await;
    let leader = net.leader_among(&THREE).await;
    for other in others(leader) {
        net.stop(other).await;
    }
    let node = net.node(leader);
    let mut leadership = node.leadership();
    let given_up = leadership.wait_for(|now| !now.leads);
    tokio::time::timeout(PATIENCE, given_up).await.unwrap().unwrap();
    let error = node.linearizable(Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, ProposeError::TimedOut { .. }), "{error:?}");
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_everybody_says_so_and_since_when() {
    let net = three().await;
    let leader = net.leader_among(&THREE).await;
    let [gone, left] = others(leader).try_into().unwrap();
    let before = Instant::now();
    net.stop(gone).await;
    net.cut(leader, true);
    for node in [leader, left] {
        let mut leadership = net.node(node).leadership();
        let leaderless = leadership.wait_for(|now| now.leader.is_none());
        let now = tokio::time::timeout(PATIENCE, leaderless).await.unwrap().unwrap().clone();
        let since = now.since.saturating_duration_since(before);
        assert!(since <= before.elapsed() && now.since + AWHILE > before, "node {node}: {since:?}");
    }
    net.cut(leader, false);
    for node in [leader, left] {
        let mut leadership = net.node(node).leadership();
        let led = leadership.wait_for(|now| now.leader.is_some());
        assert!(tokio::time::timeout(PATIENCE, led).await.is_ok(), "node {node}");
    }
    net.end().await;
}

async fn hands_over(net: &Net, all: &[u64]) {
    let leader = net.leader_among(all).await;
    // As long as a leader stays at least: those whose vote it has are loyal for a moment.
    tokio::time::sleep(net.config.election_timeout_max).await;
    // The lowest of them: by number alone another would win.
    let to = all.iter().copied().find(|node| *node != leader).unwrap();
    let began = Instant::now();
    net.node(leader).hand_over(NodeId(to)).await;
    net.leader_among(&[to]).await;
    println!("node {to} of {} leads after {:?}", all.len(), began.elapsed());
    for node in all {
        net.node(*node).propose(enter(*node, "2.0"), PATIENCE).await.unwrap();
    }
    assert_eq!(net.leadership(to).leader, Some(NodeId(to)), "and goes on leading");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_goes_to_whom_the_leader_names() {
    let net = three().await;
    hands_over(&net, &THREE).await;
    net.end().await;
    let net = Net::new();
    let all = five(&net).await;
    hands_over(&net, &all).await;
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_the_one_that_is_named_is_gone_another_leads() {
    let net = three().await;
    let leader = net.leader_among(&THREE).await;
    let [gone, left] = others(leader).try_into().unwrap();
    net.stop(gone).await;
    net.node(leader).hand_over(NodeId(gone)).await;
    net.leader_among(&[leader, left]).await;
    net.node(left).propose(enter(left, "2.0"), PATIENCE).await.unwrap();
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_reaches_no_majority_does_not_keep_the_others_from_electing() {
    let net = Net::new();
    let all = five(&net).await;
    let leader = net.leader_among(&all).await;
    let rest: Vec<u64> = all.into_iter().filter(|node| *node != leader).collect();
    // One is gone; two see each other and the bridge, which still sees the leader.
    net.stop(rest[3]).await;
    net.cut_between(leader, rest[0]);
    net.cut_between(leader, rest[1]);
    let majority = &rest[..3];
    let next = net.leader_among(majority).await;
    assert_ne!(next, leader);
    net.node(rest[0]).propose(enter(rest[0], "2.0"), PATIENCE).await.unwrap();
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_has_commands_decided_and_sees_all_that_was_committed_before() {
    let net = three().await;
    let leader = net.leader_among(&THREE).await;
    let left = others(leader);
    for (i, version) in ["2.0", "2.1", "2.2"].into_iter().enumerate() {
        let (proposer, reader) = (left[i % 2], left[(i + 1) % 2]);
        net.node(proposer).propose(enter(proposer, version), PATIENCE).await.unwrap();
        let seen = net.node(reader).linearizable(PATIENCE).await.unwrap();
        assert!(runs(proposer, version)(&seen));
    }
    let seen = net.node(leader).linearizable(PATIENCE).await.unwrap();
    assert!(runs(left[0], "2.2")(&seen));
    net.end().await;
}
