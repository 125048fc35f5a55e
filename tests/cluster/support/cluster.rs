//! A cluster of the test's own.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use super::network::Network;
use super::node::{CLIENT_PORT, Node, OPS_PORT, PEER_PORT};
use super::{PATIENCE, http};

/// The secret of every cluster that is not told another.
pub(crate) const SECRET: &str = "the-secret-of-a-cluster-under-test-0123456789";

/// Shards of a cluster that is not told otherwise: enough to spread, few enough to look at each.
pub(crate) const NUM_SHARDS: u16 = 16;

/// Clusters are timed, and the machine is small: one at a time in one process. (Between processes
/// the test runner sees to that.)
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Nodes, and what they stand on. Dropped: killed and removed; while a test fails, logs are shown
/// and files kept.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) http: reqwest::Client,
    pub(crate) num_shards: u16,
    network: Option<Network>,
    dir: Option<TempDir>,
    subnet: [u8; 3],
    /// Ends the address that the next node gets that changes its own.
    next_host: u8,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// `count` nodes that list each other, started at once; waits until all is healthy.
    pub(crate) async fn start(count: usize, settings: Value) -> Self {
        let cluster = Self::lay_out(count, settings).await;
        cluster.started().await
    }

    /// The same in a network of its own that can be cut.
    pub(crate) async fn start_in(
        network: impl Into<Option<Network>>,
        count: usize,
        settings: Value,
    ) -> Self {
        let cluster = Self::lay_out_in(network.into(), count, settings).await;
        cluster.started().await
    }

    /// Starts the nodes that were laid out; waits until all is healthy.
    pub(crate) async fn started(mut self) -> Self {
        self.nodes.iter_mut().for_each(Node::spawn);
        self.wait_ready().await;
        self.wait_healthy(PATIENCE).await;
        self
    }

    /// `count` nodes named node1 and so on that list each other, not started.
    pub(crate) async fn lay_out(count: usize, settings: Value) -> Self {
        Self::lay_out_in(None, count, settings).await
    }

    /// The same in a network of its own.
    pub(crate) async fn lay_out_in(
        network: Option<Network>,
        count: usize,
        settings: Value,
    ) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = tempfile::Builder::new().prefix("cluster-").tempdir_in(parent).unwrap();
        let subnet = match &network {
            Some(network) => network.subnet(),
            None => free_subnet(),
        };
        let mut cluster = Self {
            nodes: Vec::new(),
            http: http(),
            num_shards: NUM_SHARDS,
            network,
            dir: Some(dir),
            subnet,
            next_host: 100,
            _turn: turn,
        };
        for index in 0..count {
            cluster.add(&format!("node{}", index + 1), &settings);
        }
        cluster.list_each_other();
        if let Some(shards) = settings["num_shards"].as_u64() {
            cluster.num_shards = shards.try_into().unwrap();
        }
        cluster
    }

    /// One more node, with nobody listed and not started; its index.
    pub(crate) fn add(&mut self, name: &str, settings: &Value) -> usize {
        let index = self.nodes.len();
        let [a, b, c] = self.subnet;
        let host = Ipv4Addr::new(a, b, c, u8::try_from(index + 1).unwrap());
        let namespace = self.network.as_ref().map(|network| network.namespace(index));
        let dir = self.dir.as_ref().expect("it lasts as long as the cluster").path();
        let mut node = Node::new(dir, name, host, namespace);
        node.set(&json!({ "gossip_secret": SECRET, "num_shards": NUM_SHARDS }));
        node.set(settings);
        self.nodes.push(node);
        index
    }

    /// Has all nodes list each other, as they are reached now, from their next start on.
    pub(crate) fn list_each_other(&mut self) {
        let addrs: Vec<String> = self.nodes.iter().map(Node::peer_addr).collect();
        for node in &mut self.nodes {
            node.set(&json!({ "addrs": addrs }));
        }
    }

    /// Gives a node that does not run an address that nobody has had for long.
    pub(crate) fn readdress(&mut self, index: usize) {
        let [a, b, c] = self.subnet;
        let (old, new) = (self.nodes[index].host, Ipv4Addr::new(a, b, c, self.next_host));
        self.next_host = if self.next_host == 250 { 100 } else { self.next_host + 1 };
        self.nodes[index].move_to(new, PEER_PORT);
        if let Some(network) = &self.network {
            network.readdress(index, old, new);
        }
    }

    /// Waits until every node that runs is ready.
    pub(crate) async fn wait_ready(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            node.wait_ready(&self.http).await;
        }
    }

    /// Starts a node that was ended, and waits until it is ready.
    pub(crate) async fn restart(&mut self, index: usize) {
        self.nodes[index].spawn();
        self.nodes[index].wait_ready(&self.http).await;
    }

    /// Puts a value through a node; the status and the answer's header fields.
    pub(crate) async fn put(&self, index: usize, key: &str, value: &str) -> reqwest::Response {
        let url = self.nodes[index].url(&format!("/v1/kv/{key}"));
        self.http.put(url).body(value.to_owned()).send().await.unwrap()
    }

    /// The value as a node has it.
    pub(crate) async fn get(&self, index: usize, key: &str) -> Option<String> {
        let answer = self.http.get(self.nodes[index].url(&format!("/v1/kv/{key}"))).send();
        let answer = answer.await.unwrap();
        match answer.status().as_u16() {
            200 => Some(answer.text().await.unwrap()),
            404 => None,
            other => panic!("GET {key}: {other}: {}", answer.text().await.unwrap()),
        }
    }

    /// The network that it stands on, which can be cut.
    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().expect("the cluster was started in one")
    }

    /// The indices of all nodes but one.
    pub(crate) fn others(&self, index: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|other| *other != index).collect()
    }

    /// Waits until a node's log since `mark` has a line in which `is_it`; that line.
    pub(crate) async fn wait_log(
        &self,
        index: usize,
        mark: usize,
        what: &str,
        within: Duration,
        is_it: impl Fn(&str) -> bool,
    ) -> String {
        let node = &self.nodes[index];
        super::eventually(&format!("{} logs {what}", node.name), within, async || {
            let log = node.log_since(mark);
            let line = log.lines().find(|line| is_it(line));
            line.map(str::to_owned).ok_or_else(|| "no such line".to_owned())
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- the log of {} ends:\n{}", node.name, node.log_tail());
            }
            if let Some(dir) = self.dir.take() {
                eprintln!("--- files are kept in {}", dir.keep().display());
            }
        }
        // Before their network and their files go.
        self.nodes.clear();
    }
}

/// Loopback addresses of the test's own, on which the usual ports are free. Unlike ports that the
/// system gives out, they stay free while a node is down: connections leave from 127.0.0.1.
fn free_subnet() -> [u8; 3] {
    let start = std::process::id();
    let candidates =
        (0..=u16::MAX).map(|step| start.wrapping_mul(31).wrapping_add(u32::from(step)));
    let subnets = candidates.map(|number| {
        let [_, _, high, low] = number.to_be_bytes();
        // 127.0.x.y is used by others.
        [127, high | 1, low]
    });
    let free = |subnet: &[u8; 3]| {
        let host = Ipv4Addr::new(subnet[0], subnet[1], subnet[2], 1);
        let ports = [CLIENT_PORT, PEER_PORT, OPS_PORT];
        ports.iter().all(|port| TcpListener::bind((host, *port)).is_ok())
    };
    subnets.into_iter().find(free).expect("there are many loopback addresses")
}
