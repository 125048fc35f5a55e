//! What is back after a restart, and what arrives later.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::VoteRequest;

use super::net::{Net, PATIENCE, about, enter, found, runs};
use crate::consensus::message::{self, Envelope, Request};
use crate::consensus::store::COMMITTED_WITHIN;
use crate::consensus::{CallError, Config, Consensus, Error, Node, Nodes, Vote};
use crate::topology::{Command, NodeId};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topology_is_back_at_once_though_nobody_else_is() {
    let net = Net::founded(3).await;
    net.voters_are(1, &[1, 2, 3]).await;
    net.node(2).propose(enter(2, "2.0"), PATIENCE).await.unwrap();
    for node in [1, 2, 3] {
        net.sees(node, runs(2, "2.0")).await;
    }
    for node in [1, 2, 3] {
        net.stop(node).await;
    }
    let alone = net.open(3).await;
    let topology = alone.topology().borrow().clone();
    assert!(runs(2, "2.0")(&topology));
    assert_eq!(topology.members.len(), 3);
    // And with a majority it goes on.
    net.open(2).await;
    alone.propose(enter(3, "2.0"), PATIENCE).await.unwrap();
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founding_goes_on_wherever_a_kill_interrupted_it() {
    // Before anything.
    let net = Net::new();
    net.open(1).await;
    net.kill(1).await;
    // Between the two steps.
    let node = net.open(1).await;
    assert_eq!(node.topology().borrow().cluster, None);
    let nodes: Nodes = [(NodeId(1), Node { name: "node1".to_owned(), addr: String::new() })].into();
    node.inner.raft.initialize(nodes).await.unwrap();
    net.kill(1).await;
    let node = net.open(1).await;
    assert_eq!(node.topology().borrow().cluster, None);
    node.found(found()).await.unwrap();
    assert_eq!(node.topology().borrow().cluster.unwrap().id, 7);
    // After both, with the answer lost.
    net.kill(1).await;
    let node = net.open(1).await;
    node.found(found()).await.unwrap();
    node.found(found()).await.unwrap();
    let topology = node.linearizable(PATIENCE).await.unwrap();
    assert_eq!((topology.revision, topology.members.len()), (1, 1));
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_far_behind_gets_a_snapshot() {
    let mut net = Net::new();
    net.config.snapshot_entries = 10;
    net.config.kept_entries = 2;
    net.found().await;
    net.join(1).await;
    net.sees(2, |topology| topology.members.len() == 2).await;
    net.stop(2).await;
    for i in 0..60 {
        net.node(1).propose(enter(1, &format!("2.{i}")), PATIENCE).await.unwrap();
    }
    let mut metrics = net.node(1).inner.raft.metrics();
    let purged = metrics.wait_for(|metrics| metrics.purged.is_some_and(|log_id| log_id.index > 30));
    tokio::time::timeout(PATIENCE, purged).await.expect("entries are purged").unwrap();

    let node = net.open(2).await;
    net.sees(2, runs(1, "2.59")).await;
    let snapshot = node.inner.raft.metrics().borrow().snapshot;
    assert!(snapshot.is_some_and(|log_id| log_id.index > 30), "{snapshot:?}");
    // A start from the snapshot, too, and from the entries that are known to be committed. Nobody
    // waits for that mark to be written, so it may be late.
    tokio::time::sleep(COMMITTED_WITHIN * 4).await;
    net.kill(2).await;
    net.stop(1).await;
    let node = net.open(2).await;
    assert!(runs(1, "2.59")(&node.topology().borrow()));
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_many_parts_arrives_whole() {
    let mut net = Net::new();
    net.config.snapshot_entries = 10;
    net.config.kept_entries = 2;
    net.found().await;
    // Some megabytes of topology, more than one part takes.
    for i in 0..24 {
        net.node(1).propose(enter(1, &"x".repeat(3_000_000 + i)), PATIENCE).await.unwrap();
    }
    let mut metrics = net.node(1).inner.raft.metrics();
    let purged = metrics.wait_for(|metrics| metrics.purged.is_some_and(|log_id| log_id.index > 5));
    tokio::time::timeout(PATIENCE, purged).await.expect("entries are purged").unwrap();
    net.join(1).await;
    net.sees(2, runs(1, &"x".repeat(3_000_023))).await;
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_or_foreign_file_is_named_and_nothing_starts() {
    let net = Net::founded(1).await;
    net.stop(1).await;
    let open = |me: u64| {
        let dead = tokio::sync::watch::channel(Arc::default()).1;
        let call = Arc::new(|_, _, _, _| -> futures_util::future::BoxFuture<_> {
            Box::pin(async { Err(CallError::NotSent) })
        });
        let path = net.path(1);
        async move { Consensus::open(&path, NodeId(me), "node1", call, Config::new(dead)).await }
    };
    let error = open(2).await.unwrap_err();
    assert!(matches!(error, Error::OtherNode { .. }), "{error:?}");
    let bytes = std::fs::read(net.path(1)).unwrap();
    std::fs::write(net.path(1), &bytes[..bytes.len() / 2]).unwrap();
    let error = open(1).await.unwrap_err();
    assert!(error.to_string().contains("node1.redb cannot be used"), "{error}");
    std::fs::write(net.path(1), &bytes).unwrap();
    open(1).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bytes_that_arrive_harm_a_node() {
    let net = Net::founded(1).await;
    let node = net.node(1);
    let vote = VoteRequest { vote: Vote::new(1, NodeId(5)), last_log_id: None };
    let (from, to) = (NodeId(5), NodeId(1));
    let sound = message::pack(&Envelope { from, to, request: Request::Vote(vote) });
    let mut bodies: Vec<Vec<u8>> = (0..sound.len()).map(|cut| sound[..cut].to_vec()).collect();
    for place in 0..sound.len() {
        let mut body = sound.clone();
        body[place] ^= 0x41;
        bodies.push(body);
    }
    bodies.push(vec![0xff; 100_000]);
    for body in bodies {
        assert!(!node.handle(Bytes::from(body)).await.is_empty());
    }
    assert!(node.failure().borrow().is_none());
    node.propose(enter(1, "2.0"), PATIENCE).await.unwrap();
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_file_fails_the_node_is_told_to_stop() {
    let net = Net::founded(1).await;
    let node = net.node(1);
    let mut failure = node.failure();
    node.inner.store.lose_file();
    let within = Duration::from_millis(500);
    assert!(node.propose(Command::Join(about(2)), within).await.is_err());
    let told = failure.wait_for(Option::is_some);
    tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    net.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_raft_ends_by_itself_the_node_is_told_to_stop() {
    let net = Net::founded(1).await;
    let node = net.node(1);
    let mut failure = node.failure();
    node.inner.raft.shutdown().await.unwrap();
    let told = failure.wait_for(Option::is_some);
    tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    net.end().await;
}
