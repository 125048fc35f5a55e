//! The network, and what every test does with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::consensus::{Call, CallError, Config, Consensus, Leadership};
use crate::topology::{Announcement, Cluster, Command, NodeId, Outcome, Topology};

/// Long enough for a busy machine; nothing waits for it that works.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Wires {
    nodes: BTreeMap<NodeId, Consensus>,
    /// Between these nothing arrives, and nobody is told.
    cut: BTreeSet<(NodeId, NodeId)>,
}

/// Nodes, their files, and the wires between them.
pub(super) struct Net {
    wires: Arc<Mutex<Wires>>,
    dead: watch::Sender<Arc<BTreeSet<NodeId>>>,
    dir: TempDir,
    /// For nodes that are opened from now on.
    pub(super) config: Config,
}

impl Net {
    /// A network without nodes, with short times.
    pub(super) fn new() -> Self {
        let dead = watch::Sender::default();
        let config = Config {
            heartbeat: Duration::from_millis(50),
            election_timeout_min: Duration::from_millis(200),
            election_timeout_max: Duration::from_millis(400),
            replace_dead_after: Duration::from_millis(100),
            ..Config::new(dead.subscribe())
        };
        let dir = TempDir::new().unwrap();
        Self { wires: Arc::default(), dead, dir, config }
    }

    /// Founds a cluster with node 1, and has others join until there are `nodes`.
    pub(super) async fn founded(nodes: u64) -> Self {
        let net = Self::new();
        net.found().await;
        for node in 2..=nodes {
            assert_eq!(net.join(1).await, NodeId(node));
        }
        net
    }

    pub(super) fn path(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("node{node}.redb"))
    }

    fn call(&self, from: NodeId) -> Call {
        let wires = Arc::clone(&self.wires);
        Arc::new(move |to, _addr, body, timeout| {
            let wires = Arc::clone(&wires);
            Box::pin(async move {
                let target = {
                    let wires = wires.lock();
                    let target = wires.nodes.get(&to).cloned();
                    (target, wires.cut.contains(&(from, to)) || wires.cut.contains(&(to, from)))
                };
                match target {
                    (None, _) => Err(CallError::NotSent),
                    (_, true) => {
                        tokio::time::sleep(timeout).await;
                        Err(CallError::TimedOut)
                    }
                    (Some(target), false) => {
                        let answer = target.handle(Bytes::from(body));
                        tokio::time::timeout(timeout, answer).await.map_err(|_| CallError::TimedOut)
                    }
                }
            })
        })
    }

    /// Opens a node's file and connects it.
    pub(super) async fn open(&self, node: u64) -> Consensus {
        let (me, name) = (NodeId(node), format!("node{node}"));
        let config = self.config.clone();
        let opened = Consensus::open(&self.path(node), me, &name, self.call(me), config).await;
        let consensus = opened.unwrap_or_else(|e| panic!("{name}: {e}"));
        self.wires.lock().nodes.insert(me, consensus.clone());
        consensus
    }

    /// A process that ends: nobody reaches it any more. Its file is closed.
    pub(super) async fn stop(&self, node: u64) {
        let consensus = self.wires.lock().nodes.remove(&NodeId(node));
        consensus.expect("it runs").shutdown().await;
    }

    /// A process that is killed: its file is left as it is at this moment.
    pub(super) async fn kill(&self, node: u64) {
        let image = self.path(node).with_extension("image");
        std::fs::copy(self.path(node), &image).unwrap();
        self.stop(node).await;
        std::fs::rename(&image, self.path(node)).unwrap();
    }

    /// Cuts a node off from all others, or connects it again.
    pub(super) fn cut(&self, node: u64, off: bool) {
        let mut wires = self.wires.lock();
        for other in wires.nodes.keys().copied().collect::<Vec<_>>() {
            let pair = (NodeId(node), other);
            if off {
                wires.cut.insert(pair);
            } else {
                wires.cut.remove(&pair);
            }
        }
    }

    /// Cuts the wire between two nodes.
    pub(super) fn cut_between(&self, one: u64, other: u64) {
        self.wires.lock().cut.insert((NodeId(one), NodeId(other)));
    }

    pub(super) fn set_dead(&self, nodes: &[u64]) {
        self.dead.send_replace(Arc::new(nodes.iter().map(|node| NodeId(*node)).collect()));
    }

    pub(super) fn node(&self, node: u64) -> Consensus {
        self.wires.lock().nodes[&NodeId(node)].clone()
    }

    pub(super) async fn found(&self) {
        self.open(1).await.found(found()).await.unwrap();
    }

    /// Has a new node join by way of `via`, and opens it.
    pub(super) async fn join(&self, via: u64) -> NodeId {
        let node = self.node(via).topology().borrow().members.len() as u64 + 1;
        self.join_as(via, about(node)).await
    }

    /// As [`Net::join`], with a name and a life.
    pub(super) async fn join_as(&self, via: u64, about: Announcement) -> NodeId {
        let outcome = self.node(via).propose(Command::Join(about), PATIENCE).await.unwrap();
        let Outcome::Joined { node, cluster } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(cluster.id, 7);
        self.open(node.0).await;
        node
    }

    /// Waits until a node sees a topology such that `is` holds.
    pub(super) async fn sees(&self, node: u64, is: impl Fn(&Topology) -> bool) -> Arc<Topology> {
        let mut topology = self.node(node).topology();
        let seen = topology.wait_for(|topology| is(topology));
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        seen.unwrap_or_else(|_| panic!("node {node} does not see it")).unwrap().clone()
    }

    /// Waits until exactly these vote, as `node` knows, and the change is over.
    pub(super) async fn voters_are(&self, node: u64, voters: &[u64]) {
        let voters: BTreeSet<NodeId> = voters.iter().map(|voter| NodeId(*voter)).collect();
        let mut metrics = self.node(node).inner.raft.metrics();
        let right = metrics.wait_for(|metrics| {
            let sets = metrics.membership_config.membership().get_joint_config();
            sets.len() == 1 && sets[0] == voters
        });
        let result = tokio::time::timeout(PATIENCE, right).await.map(|right| right.is_ok());
        if result != Ok(true) {
            let membership =
                self.node(node).inner.raft.metrics().borrow().membership_config.clone();
            panic!("not {voters:?} vote, but {membership}");
        }
    }

    /// Waits until one of the nodes leads, and answers which.
    pub(super) async fn leader_among(&self, nodes: &[u64]) -> u64 {
        let began = Instant::now();
        loop {
            for node in nodes {
                if self.leadership(*node).leads {
                    return *node;
                }
            }
            assert!(began.elapsed() < PATIENCE, "none of {nodes:?} leads");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) fn leadership(&self, node: u64) -> Leadership {
        self.node(node).leadership().borrow().clone()
    }

    /// Ends all nodes.
    pub(super) async fn end(self) {
        let nodes: Vec<u64> = self.wires.lock().nodes.keys().map(|node| node.0).collect();
        for node in nodes {
            self.stop(node).await;
        }
    }
}

pub(super) fn about(node: u64) -> Announcement {
    Announcement {
        name: format!("node{node}"),
        life: 100 + node,
        peer_addr: format!("10.0.0.{node}:7701"),
        ..Announcement::default()
    }
}

pub(super) fn found() -> Command {
    let cluster = Cluster { id: 7, hash_seed: 8, num_shards: 4 };
    Command::Found { cluster, founder: NodeId(1), about: about(1), epoch: 1 }
}

/// A command that shows in the topology: the version that a node says it runs.
pub(super) fn enter(node: u64, version: &str) -> Command {
    let about = Announcement { version: version.to_owned(), ..about(node) };
    Command::Enter { node: NodeId(node), about }
}

/// Whether a node is said to run that version.
pub(super) fn runs(node: u64, version: &str) -> impl Fn(&Topology) -> bool {
    move |topology| {
        topology.members.get(&NodeId(node)).is_some_and(|member| member.about.version == version)
    }
}
