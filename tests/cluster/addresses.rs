//! Nodes come back at other addresses, one or all at once: the others find them, and nothing is
//! lost.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Loss, Network, PATIENCE, Traffic, Trial, wants_all_cases};

/// A leader is agreed on so soon after the start of nodes that have moved.
const LEADER_WITHIN: Duration = Duration::from_secs(15);

/// What is left to do then is done so soon.
const WRITABLE_WITHIN: Duration = Duration::from_secs(3);

/// How nodes come by their new addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// Another host.
    Host,
    /// Another port between nodes, the host as before.
    Port(u16),
    /// Two take each other's place.
    Swap,
}

/// Whose configuration names the new places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nobody,
    All,
    /// Each but the first is told where the one before it is, and of nobody else.
    Chain,
}

/// Ends nodes and starts them somewhere else.
async fn change_address(trial: &mut Trial, what: &str, nodes: &[usize], to: Move, told: Told) {
    println!("{what}: {nodes:?}");
    for node in nodes {
        trial.load.disturb(*node, || trial.cluster.nodes[*node].kill());
    }
    let hosts: Vec<_> = nodes.iter().map(|node| trial.cluster.nodes[*node].host).collect();
    for (node, (host, other)) in nodes.iter().zip(hosts.iter().zip(hosts.iter().rev())) {
        match to {
            Move::Host => trial.cluster.readdress(*node),
            Move::Port(port) => trial.cluster.nodes[*node].move_to(*host, port),
            Move::Swap => trial.cluster.nodes[*node].move_to(*other, 7701),
        }
    }
    match told {
        Told::Nobody => {}
        Told::All => trial.cluster.list_each_other(),
        Told::Chain => {
            for node in 1..3 {
                let before = trial.cluster.nodes[node - 1].peer_addr();
                trial.cluster.nodes[node].set(&json!({ "addrs": [before] }));
            }
        }
    }
    trial.load.targets.follow(&trial.cluster);
    for node in nodes {
        trial.cluster.nodes[*node].spawn();
    }
    is_whole_again(trial, what, nodes).await;
}

async fn is_whole_again(trial: &mut Trial, what: &str, nodes: &[usize]) {
    let began = Instant::now();
    trial.cluster.wait_ready().await;
    trial.cluster.leader().await;
    let took = began.elapsed();
    println!("{what}: a leader after {took:?}");
    assert!(took <= LEADER_WITHIN, "{what}: a leader only after {took:?}");
    for node in nodes {
        trial.load.is_over(*node);
    }
    trial.assert_writable(&[0, 1, 2], what, WRITABLE_WITHIN).await;
    trial.assert_all_there(&[0, 1, 2], what).await;
    trial.assert_all_vote(what).await;
    trial.assert_known_where_they_are(what).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_come_back_elsewhere_are_found() {
    let mut trial = Trial::start(None, 3).await;
    let roles = trial.leader_first().await;
    change_address(&mut trial, "the leader and another", &roles[..2], Move::Host, Told::Nobody)
        .await;
    let roles = trial.leader_first().await;
    change_address(&mut trial, "both others", &roles[1..], Move::Port(7801), Told::Nobody).await;
    change_address(&mut trial, "all", &[0, 1, 2], Move::Host, Told::All).await;
    let roles = trial.leader_first().await;
    let two = [roles[0], roles[1]];
    change_address(&mut trial, "two, each to the other's", &two, Move::Swap, Told::Nobody).await;
    if wants_all_cases() {
        change_address(&mut trial, "all, other ports", &[0, 1, 2], Move::Port(7802), Told::All)
            .await;
        let leader = trial.cluster.leader().await;
        change_address(&mut trial, "the leader", &[leader], Move::Host, Told::Nobody).await;
        let roles = trial.leader_first().await;
        change_address(&mut trial, "a follower", &roles[1..2], Move::Host, Told::Nobody).await;
    }
    trial.end().await;
}

/// Configurations name where the nodes were first; whoever comes last finds nobody there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_move_one_after_the_other_are_found_though_no_list_is_changed() {
    let mut trial = Trial::start(None, 3).await;
    for node in 0..3 {
        trial.load.disturbance_begins(node);
        trial.cluster.nodes[node].stop(PATIENCE).await;
        trial.load.clients_are_told(node);
        trial.cluster.readdress(node);
        trial.load.targets.follow(&trial.cluster);
        trial.cluster.nodes[node].spawn();
        is_whole_again(&mut trial, "one after the other", &[node]).await;
        trial.cluster.wait_healthy(PATIENCE).await;
    }
    trial.end().await.assert_only_in_flight_failed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_move_while_a_link_is_cut_or_no_datagram_arrives_are_found() {
    let Some(network) = Network::for_test("nodes that move while a link is cut", 3) else { return };
    let mut trial = Trial::start(network, 3).await;
    let roles = trial.leader_first().await;
    trial.cluster.network().lose(Loss::between(Traffic::Any, roles[0], roles[1]));
    trial.assert_writable(&[0, 1, 2], "a link is cut", WRITABLE_WITHIN).await;
    let what = "an end of the link that is cut";
    change_address(&mut trial, what, &roles[1..2], Move::Host, Told::Nobody).await;
    change_address(&mut trial, "the third", &roles[2..], Move::Host, Told::Nobody).await;
    let what = "the third and an end of the link";
    change_address(&mut trial, what, &[roles[0], roles[2]], Move::Host, Told::All).await;
    trial.cluster.network().mend();
    trial.cluster.wait_healthy(PATIENCE).await;
    let pairs = [(0, 1), (0, 2), (1, 2)];
    let all = pairs.into_iter().flat_map(|(a, b)| Loss::between(Traffic::Udp, a, b));
    trial.cluster.network().lose(all);
    change_address(&mut trial, "all, without UDP", &[0, 1, 2], Move::Host, Told::Chain).await;
    trial.cluster.network().mend();
    trial.end().await;
}
