//! Gossip is lost while connections work, all of it or some, one way or both: nobody is given up,
//! and when somebody does die, nothing is lost.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Cluster, Loss, Network, Node, PATIENCE, Traffic, Trial, eventually, wants_all_cases,
};

/// Writes go on so soon after a process died, of which gossip cannot tell.
const KILLED_BUDGET: Duration = Duration::from_secs(3);

/// A state that lasts is told so soon.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

fn to(node: usize) -> Vec<Loss> {
    others(node).map(|other| Loss::of(Traffic::Udp, other, node)).collect()
}

fn from(node: usize) -> Vec<Loss> {
    others(node).map(|other| Loss::of(Traffic::Udp, node, other)).collect()
}

fn others(node: usize) -> impl Iterator<Item = usize> {
    (0..3).filter(move |other| *other != node)
}

fn all() -> Vec<Loss> {
    (0..3).flat_map(to).collect()
}

fn some(percent: u8) -> Vec<Loss> {
    all().into_iter().map(|loss| loss.at(percent)).collect()
}

/// For longer than it takes to give somebody up, with that loss alone.
async fn nothing_comes_of(trial: &Trial, what: &str, losses: Vec<Loss>) {
    trial.cluster.network().mend();
    trial.cluster.network().lose(losses);
    nothing_happens(trial, what).await;
}

async fn nothing_happens(trial: &Trial, what: &str) {
    println!("UDP is lost {what}");
    let before = trial.standing().await;
    trial.assert_ready(&[0, 1, 2], what, Trial::PAST_GIVING_UP).await;
    trial.assert_all_vote(what).await;
    assert_eq!(trial.standing().await, before, "{what}: something was done");
    trial.assert_writable(&[0, 1, 2], what, Duration::from_secs(1)).await;
}

/// Each node says what is to be opened, while it goes on being ready.
async fn each_tells_what_to_open(trial: &Trial) {
    for node in 0..3 {
        let other = if node == 0 { "node2" } else { "node1" };
        let sought = format!("no UDP from {other}, TCP works: open 7701/udp");
        eventually("the state of UDP is told", TOLD_WITHIN, async || {
            let ready: Value = trial.cluster.ops(node, "/ready").await?;
            let is_told = ready["ready"] == true && ready["checks"].to_string().contains(&sought);
            if is_told { Ok(()) } else { Err(format!("{ready:#}")) }
        })
        .await;
    }
}

/// One node dies with its disk: the others go on in time, and have all there was.
async fn a_disk_dies(trial: &mut Trial, what: &str) {
    let victim = trial.cluster.leader().await;
    let rest = trial.cluster.others(victim);
    trial.load.disturb(victim, || trial.cluster.nodes[victim].kill());
    trial.cluster.nodes[victim].wipe();
    trial.assert_writable(&rest, what, KILLED_BUDGET).await;
    trial.assert_all_there(&rest, what).await;
    trial.cluster.restart(victim).await;
    trial.cluster.wait_healthy(PATIENCE).await;
    trial.load.is_over(victim);
    trial.assert_all_there(&[0, 1, 2], what).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_given_up_for_lost_datagrams() {
    let Some(network) = Network::for_test("lost datagrams", 3) else { return };
    let mut trial = Trial::start(network, 3).await;
    let roles = trial.leader_first().await;
    let (leader, one, two) = (roles[0], roles[1], roles[2]);
    let both = |node: usize| [to(node), from(node)].concat();
    let mut cases = vec![
        ("to the leader", to(leader)),
        ("from a follower", from(one)),
        ("to two", [to(one), to(two)].concat()),
        ("70% of all", some(70)),
    ];
    if wants_all_cases() {
        cases.extend([
            ("from the leader", from(leader)),
            ("between the leader and all", both(leader)),
            ("to a follower", to(one)),
            ("between a follower and all", both(one)),
            ("from two", [from(one), from(two)].concat()),
            ("between the leader and one", Loss::between(Traffic::Udp, leader, one).into()),
            ("between two others", Loss::between(Traffic::Udp, one, two).into()),
            ("30% of all", some(30)),
        ]);
    }
    for (what, losses) in cases {
        nothing_comes_of(&trial, what, losses).await;
    }
    nothing_comes_of(&trial, "between all", all()).await;
    each_tells_what_to_open(&trial).await;
    a_disk_dies(&mut trial, "between all").await;
    trial.cluster.network().mend();
    trial.end().await.assert_only_in_flight_failed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_born_and_lives_where_datagrams_are_lost() {
    let percents: &[u8] = if wants_all_cases() { &[100, 70, 30] } else { &[100] };
    for percent in percents {
        let Some(network) = Network::for_test("a birth without datagrams", 3) else { return };
        network.lose(some(*percent));
        let mut trial = Trial::start(network, 3).await;
        let what = format!("{percent}% of all, from birth on");
        nothing_happens(&trial, &what).await;
        a_disk_dies(&mut trial, &what).await;
        trial.end().await.assert_only_in_flight_failed();
    }
}

/// What the other tests stand on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_loses_what_it_is_told_to_and_nothing_else() {
    let Some(network) = Network::for_test("a network that loses some", 3) else { return };
    let mut cluster = Cluster::lay_out_in(Some(network), 3, Trial::settings()).await;
    cluster.nodes.iter_mut().for_each(Node::spawn);
    cluster.wait_ready().await;
    let network = cluster.network();
    let connects = |from: usize, to: usize| {
        // A client on a busy machine may give up before it is answered.
        (0..3).any(|_| network.reaches(from, &cluster.nodes[to].client_addr()))
    };
    let losing = async |loss: Loss| {
        network.mend();
        network.lose([loss]);
        eventually("something is lost", TOLD_WITHIN, async || match network.lost() {
            0 => Err("nothing".to_owned()),
            _ => Ok(()),
        })
        .await;
    };
    losing(Loss::of(Traffic::Udp, 0, 1)).await;
    assert!(connects(0, 1) && connects(1, 0));
    losing(Loss::of(Traffic::Udp, 1, 0).at(50)).await;
    assert!(connects(0, 1) && connects(1, 0));
    losing(Loss::of(Traffic::Dialled, 0, 2)).await;
    assert!(!connects(0, 2) && connects(2, 0), "whoever dials");
    losing(Loss::of(Traffic::Tcp, 2, 1)).await;
    assert!(!connects(2, 1) && !connects(1, 2), "no connection lives one way");
    assert!(connects(0, 1) && connects(2, 0));
    network.mend();
    assert!(connects(2, 1) && connects(1, 2));
}
