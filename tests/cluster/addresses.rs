//! Nodes come back at other addresses, one or all at once: the others find them, and nothing is
//! lost.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Loss, Network, PATIENCE, Traffic, Trial};

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
}

/// Ends nodes and starts them somewhere else. `listed`: all configurations name the new places.
async fn change_address(trial: &mut Trial, what: &str, nodes: &[usize], to: Move, listed: bool) {
    println!("{what}: {nodes:?}");
    for node in nodes {
        trial.load.disturb(*node, || trial.cluster.nodes[*node].kill());
    }
    for node in nodes {
        match to {
            Move::Host => trial.cluster.readdress(*node),
            Move::Port(port) => {
                let host = trial.cluster.nodes[*node].host();
                let addr = format!("{host}:{port}");
                trial.cluster.nodes[*node].set(&json!({ "gossip_bind_addr": addr }));
            }
        }
    }
    if listed {
        trial.cluster.list_each_other();
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_come_back_elsewhere_are_found() {
    let mut trial = Trial::start(None, 3).await;
    let roles = trial.leader_first().await;
    change_address(&mut trial, "a follower", &roles[1..2], Move::Host, false).await;
    trial.cluster.wait_healthy(PATIENCE).await;
    let leader = trial.cluster.leader().await;
    change_address(&mut trial, "the leader", &[leader], Move::Host, false).await;
    trial.cluster.wait_healthy(PATIENCE).await;
    let roles = trial.leader_first().await;
    change_address(&mut trial, "the leader and another", &roles[..2], Move::Host, false).await;
    trial.cluster.wait_healthy(PATIENCE).await;
    let roles = trial.leader_first().await;
    change_address(&mut trial, "both others", &roles[1..], Move::Port(7801), false).await;
    trial.cluster.wait_healthy(PATIENCE).await;
    change_address(&mut trial, "all", &[0, 1, 2], Move::Host, true).await;
    trial.cluster.wait_healthy(PATIENCE).await;
    change_address(&mut trial, "all at other ports", &[0, 1, 2], Move::Port(7801), true).await;
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
async fn nodes_that_move_while_a_link_is_cut_are_found() {
    let Some(network) = Network::for_test("nodes that move while a link is cut", 3) else { return };
    let mut trial = Trial::start(network, 3).await;
    let roles = trial.leader_first().await;
    trial.cluster.network().lose(Loss::between(Traffic::Any, roles[0], roles[1]));
    trial.assert_writable(&[0, 1, 2], "a link is cut", Duration::from_secs(3)).await;
    let what = "an end of the link that is cut";
    change_address(&mut trial, what, &roles[1..2], Move::Host, false).await;
    change_address(&mut trial, "the third", &roles[2..], Move::Host, false).await;
    let what = "the third and an end of the link";
    change_address(&mut trial, what, &[roles[0], roles[2]], Move::Host, true).await;
    trial.cluster.network().mend();
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_come_back_at_each_others_addresses_are_found() {
    let mut trial = Trial::start(None, 3).await;
    let hosts = [trial.cluster.nodes[1].host(), trial.cluster.nodes[0].host()];
    for (node, host) in hosts.into_iter().enumerate() {
        trial.load.disturb(node, || trial.cluster.nodes[node].kill());
        trial.cluster.nodes[node].live_at(host);
    }
    trial.load.targets.follow(&trial.cluster);
    trial.cluster.nodes[..2].iter_mut().for_each(|node| node.spawn());
    is_whole_again(&mut trial, "two changed places", &[0, 1]).await;
    trial.end().await;
}

/// The first is told of nobody new, and the others of one each: a chain, over TCP alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_move_while_no_datagram_arrives_are_found() {
    let Some(network) = Network::for_test("nodes that move without UDP", 3) else { return };
    let mut trial = Trial::start(network, 3).await;
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        trial.cluster.network().lose(Loss::between(Traffic::Udp, a, b));
    }
    for node in 0..3 {
        trial.load.disturb(node, || trial.cluster.nodes[node].kill());
    }
    for node in 0..3 {
        let addr = format!("{}:7801", trial.cluster.nodes[node].host());
        trial.cluster.nodes[node].set(&json!({ "gossip_bind_addr": addr }));
        if node > 0 {
            let addrs = [trial.cluster.nodes[node - 1].peer_addr()];
            trial.cluster.nodes[node].set(&json!({ "addrs": addrs }));
        }
        trial.cluster.nodes[node].spawn();
    }
    is_whole_again(&mut trial, "all at other ports, without UDP", &[0, 1, 2]).await;
    trial.cluster.network().mend();
    trial.end().await;
}
