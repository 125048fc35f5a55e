//! Nodes that come back at other addresses: one, several or all at once, told of by nobody but
//! themselves.

use std::net::Ipv4Addr;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{Cluster, Network, Node, PATIENCE, eventually};

const KEYS: usize = 60;

/// How a node's address changes.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// Another port of the same address.
    Port,
    /// Another address, the same port.
    Address,
}

fn quick() -> Value {
    json!({ "gossip_interval": "200ms" })
}

async fn filled(mut cluster: Cluster) -> Cluster {
    cluster.wait_healthy(PATIENCE).await;
    for n in 0..KEYS {
        let answer = cluster.put(n % 3, &format!("k{n}"), &format!("v{n}")).await;
        assert_eq!(answer.status(), 201, "k{n}");
    }
    cluster
}

/// Gives an ended node another address.
fn move_node(node: &mut Node, how: Move) {
    let [a, b, c, d] = node.host.octets();
    match how {
        Move::Port => node.move_to(node.host, 7801),
        Move::Address => node.move_to(Ipv4Addr::new(a, b, c, d + 100), 7701),
    }
}

/// Ends these nodes, and starts them at other addresses, which their seeds name if they are told.
async fn move_all(cluster: &mut Cluster, moved: &[usize], how: Move, are_told: bool) {
    for index in moved {
        cluster.nodes[*index].kill();
        move_node(&mut cluster.nodes[*index], how);
    }
    let addrs: Vec<String> = cluster.nodes.iter().map(Node::peer_addr).collect();
    for index in moved {
        if are_told {
            cluster.nodes[*index].set(&json!({ "addrs": addrs }));
        }
        cluster.nodes[*index].spawn();
    }
}

/// Waits until there is a leader, all is healthy, and the topology has every node where it is.
async fn is_whole(cluster: &mut Cluster, what: &str) {
    let began = Instant::now();
    let leader = cluster.leader().await;
    println!("{what}: node{} leads {:?} after the start", leader + 1, began.elapsed());
    cluster.wait_ready().await;
    cluster.wait_healthy(PATIENCE).await;
    let expected: Vec<String> = cluster.nodes.iter().map(Node::peer_addr).collect();
    eventually("the topology has every node where it is", PATIENCE, async || {
        for index in 0..expected.len() {
            let view = cluster.ops(index, "/cluster").await?;
            let members = view["members"].as_array().cloned().unwrap_or_default();
            let mut found: Vec<&str> =
                members.iter().filter_map(|member| member["gossip_addr"].as_str()).collect();
            let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            found.sort_unstable();
            expected.sort_unstable();
            if found != expected {
                return Err(format!("{found:?} instead of {expected:?}"));
            }
        }
        Ok(())
    })
    .await;
    for n in 0..KEYS {
        let value = cluster.get(n % 3, &format!("k{n}")).await;
        assert_eq!(value, Some(format!("v{n}")), "k{n}");
    }
    for node in 0..3 {
        let answer = cluster.put(node, "afterwards", what).await;
        assert!(answer.status().is_success(), "{}", answer.status());
    }
    cluster.wait_equal(PATIENCE).await;
}

async fn moved_at_once(moved: &[usize], how: Move) {
    let mut cluster = filled(Cluster::start(3, quick()).await).await;
    move_all(&mut cluster, moved, how, true).await;
    is_whole(&mut cluster, &format!("{moved:?} moved by {how:?}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_come_back_at_other_ports_at_once() {
    moved_at_once(&[0, 1, 2], Move::Port).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_come_back_at_other_addresses_at_once() {
    moved_at_once(&[0, 1, 2], Move::Address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_move_at_once_and_only_the_third_is_where_it_was() {
    let mut cluster = filled(Cluster::start(3, quick()).await).await;
    let leader = cluster.leader().await;
    let moved = [leader, cluster.others(leader)[0]];
    move_all(&mut cluster, &moved, Move::Address, false).await;
    is_whole(&mut cluster, "the leader and another moved").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_move_one_after_the_other_and_nobody_is_told() {
    let mut cluster = filled(Cluster::start(3, quick()).await).await;
    for (index, how) in [(0, Move::Port), (2, Move::Address), (1, Move::Address)] {
        move_all(&mut cluster, &[index], how, false).await;
        is_whole(&mut cluster, &format!("node{} moved", index + 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_come_back_at_each_others_addresses() {
    let mut cluster = filled(Cluster::start(3, quick()).await).await;
    let (one, two) = (cluster.nodes[0].host, cluster.nodes[1].host);
    for (index, host) in [(0, two), (1, one)] {
        cluster.nodes[index].kill();
        cluster.nodes[index].move_to(host, 7701);
    }
    cluster.nodes[..2].iter_mut().for_each(Node::spawn);
    is_whole(&mut cluster, "node1 and node2 changed places").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_move_at_once_while_no_datagram_arrives_anywhere() {
    let test = "nodes that move without UDP";
    let Some(network) = Network::for_test(test, 3) else { return };
    let mut cluster = filled(Cluster::start_in(network, 3, quick()).await).await;
    cluster.nodes.iter_mut().for_each(Node::kill);
    for index in 0..3 {
        cluster.network().drop_udp(index);
        move_node(&mut cluster.nodes[index], Move::Port);
    }
    // A chain: the first is told of nobody new.
    let addrs: Vec<String> = cluster.nodes.iter().map(Node::peer_addr).collect();
    for index in 0..3 {
        if index > 0 {
            cluster.nodes[index].set(&json!({ "addrs": [addrs[index - 1]] }));
        }
        cluster.nodes[index].spawn();
    }
    let leader = cluster.leader().await;
    println!("node{} leads", leader + 1);
    for n in 0..KEYS {
        eventually("what was written is there", PATIENCE, async || {
            let url = cluster.nodes[n % 3].url(&format!("/v1/kv/k{n}"));
            let answer = cluster.http.get(url).send().await.map_err(|error| error.to_string())?;
            let status = answer.status();
            let value = answer.text().await.map_err(|error| error.to_string())?;
            if value == format!("v{n}") { Ok(()) } else { Err(format!("{status}: {value}")) }
        })
        .await;
    }
    for index in 0..3 {
        cluster.network().heal(index);
    }
    is_whole(&mut cluster, "all moved without UDP").await;
}
