//! Anything goes down at any time, also more than a cluster can do without; links are cut and lose
//! some, and nodes come back at other addresses. What was acknowledged is there in the end, all
//! copies are equal, and no shard was recovered from less than a majority: whoever is gone for a
//! while has not forgotten. Then a disk dies, and everything is still there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::support::{Cluster, Load, Loss, Network, PATIENCE, Traffic};

/// How long it goes on, unless `AEGIS_CHAOS_SECONDS` says otherwise.
const SECONDS: u64 = 20;

/// Longest wait for a node that stops in order while others are down.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// Of so many clusters one has five nodes.
const FIVE_NODES_OF: u32 = 4;

struct Storm<'a> {
    cluster: &'a mut Cluster,
    load: &'a Load,
    random: SmallRng,
    paused: Vec<bool>,
    /// What the network loses now; `None` where it loses nothing ever.
    losses: Option<Vec<Loss>>,
    /// How often each thing was done.
    done: BTreeMap<&'static str, usize>,
}

impl Storm<'_> {
    async fn rage(&mut self, lasts: Duration) {
        let began = Instant::now();
        while began.elapsed() < lasts {
            let what = if self.losses.is_some() && self.random.random_ratio(1, 3) {
                self.trouble_network()
            } else {
                self.trouble_node().await
            };
            *self.done.entry(what).or_default() += 1;
            tokio::time::sleep(Duration::from_millis(self.random.random_range(20..1200))).await;
        }
        println!("{:?}", self.done);
        self.calm();
    }

    /// All run in the end, and hear each other.
    fn calm(&mut self) {
        if self.losses.is_some() {
            self.cluster.network().mend();
        }
        self.cluster.list_each_other();
        for (node, paused) in self.cluster.nodes.iter_mut().zip(&self.paused) {
            if *paused {
                node.resume();
            } else if !node.is_running() {
                node.spawn();
            }
        }
    }

    async fn trouble_node(&mut self) -> &'static str {
        let node = self.random.random_range(0..self.paused.len());
        let is_running = self.cluster.nodes[node].is_running();
        match (is_running, self.paused[node], self.random.random_range(0..7)) {
            (false, _, n) => self.start(node, n < 3),
            (true, true, _) => {
                self.cluster.nodes[node].resume();
                self.paused[node] = false;
                "woken"
            }
            (true, false, 0..5) if !self.may_take(node) => "spared",
            (true, false, 0 | 1) => {
                self.cluster.nodes[node].kill();
                "killed"
            }
            (true, false, 2 | 3) => {
                self.cluster.nodes[node].pause();
                self.paused[node] = true;
                "silenced"
            }
            (true, false, 4) => {
                self.cluster.nodes[node].stop(STOP_WITHIN).await;
                "stopped"
            }
            (true, false, _) => "left alone",
        }
    }

    fn start(&mut self, node: usize, elsewhere: bool) -> &'static str {
        if elsewhere {
            self.cluster.readdress(node);
            self.load.targets.follow(self.cluster);
        }
        self.cluster.list_each_other();
        self.cluster.nodes[node].spawn();
        if elsewhere { "started elsewhere" } else { "started" }
    }

    fn trouble_network(&mut self) -> &'static str {
        let count = self.paused.len();
        let a = self.random.random_range(0..count);
        let b = (a + self.random.random_range(1..count)) % count;
        let everywhere = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
        let everywhere = everywhere.filter(|(a, b)| a != b);
        let percent = self.random.random_range(10..=100);
        let (what, losses): (_, Vec<Loss>) = match self.random.random_range(0..9) {
            0 => ("link cut", Loss::between(Traffic::Any, a, b).into()),
            1 => ("link cut one way", vec![Loss::of(Traffic::Any, a, b)]),
            2 => ("link that one end cannot dial", vec![Loss::of(Traffic::Dialled, a, b)]),
            3 => ("link without TCP", Loss::between(Traffic::Tcp, a, b).into()),
            4 => {
                let udp = everywhere.map(|(a, b)| Loss::of(Traffic::Udp, a, b).at(percent));
                ("UDP lost everywhere", udp.collect())
            }
            5 => {
                let udp = everywhere.filter(|(_, to)| *to == a);
                ("UDP lost to one", udp.map(|(a, b)| Loss::of(Traffic::Udp, a, b)).collect())
            }
            6 => {
                let slow = everywhere.filter(|(from, to)| *from == a || *to == a);
                let slow = slow.map(|(a, b)| Loss::of(Traffic::Any, a, b).at(percent / 5));
                ("slow links of one", slow.collect())
            }
            _ => {
                self.cluster.network().mend();
                self.losses = Some(Vec::new());
                return "mended";
            }
        };
        let before = self.losses.clone().unwrap_or_default();
        self.losses = Some([&before[..], &losses].concat());
        if count > 3 && self.apart(None) > 1 {
            self.losses = Some(before);
            return "spared";
        }
        self.cluster.network().lose(losses);
        what
    }

    /// Of three nodes any may go: without two of them nothing is decided. Where there are more, a
    /// shard may have lost both of two that go; then it would be right to go on without them.
    fn may_take(&self, node: usize) -> bool {
        self.paused.len() == 3 || self.apart(Some(node)) <= 1
    }

    /// How many nodes are out of touch with most of the others, were `taken` to go too.
    fn apart(&self, taken: Option<usize>) -> usize {
        let count = self.paused.len();
        let is_up = |node: usize| {
            self.cluster.nodes[node].is_running() && !self.paused[node] && Some(node) != taken
        };
        let losses = self.losses.as_deref().unwrap_or_default();
        let is_cut = |a: usize, b: usize| losses.iter().any(|loss| loss.cuts(a, b));
        let together = |first: usize| {
            let mut reached = vec![first];
            let mut next = 0;
            while let Some(a) = reached.get(next).copied() {
                next += 1;
                let more = (0..count).filter(|b| is_up(*b) && !is_cut(a, *b));
                let more: Vec<usize> = more.filter(|b| !reached.contains(b)).collect();
                reached.extend(more);
            }
            reached.len()
        };
        count - (0..count).filter(|node| is_up(*node)).map(together).max().unwrap_or(0)
    }
}

/// Kills one node and takes its disk: there is nothing that it alone had.
async fn a_disk_dies(cluster: &mut Cluster, node: usize) {
    cluster.nodes[node].kill();
    cluster.nodes[node].wipe();
    cluster.restart(node).await;
    cluster.wait_healthy(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_down_nothing_acknowledged_is_lost() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds: u64 = variable("AEGIS_CHAOS_SECONDS").unwrap_or(SECONDS);
    let seed: u64 = variable("AEGIS_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut random = SmallRng::seed_from_u64(seed);
    let count = if random.random_ratio(1, FIVE_NODES_OF) { 5 } else { 3 };
    // Nodes are taken for gone after some seconds, or never in this time.
    let is_impatient = random.random_bool(0.5);
    println!("AEGIS_CHAOS_SEED={seed}: {count} nodes, impatient: {is_impatient}");
    let settings = if is_impatient {
        json!({ "gossip_interval": "200ms", "suspect_timeout": "1s", "dead_timeout": "2s", "rebalance_delay": "3s" })
    } else {
        json!({})
    };
    let network = Network::for_test("chaos of the network", count);
    let losses = network.as_ref().map(|_| Vec::new());
    let mut cluster = Cluster::start_in(network, count, settings).await;
    let load = Load::start(&cluster).await;
    let victim = random.random_range(0..count);
    let (paused, done) = (vec![false; count], BTreeMap::new());
    let mut storm = Storm { cluster: &mut cluster, load: &load, random, paused, losses, done };
    storm.rage(Duration::from_secs(seconds)).await;
    cluster.wait_ready().await;
    cluster.wait_healthy(PATIENCE).await;
    let record = load.stop().await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
    record.assert_right();
    cluster.assert_nothing_unclean("after the storm").await;
    let failed = record.ops.iter().filter(|op| op.failure.is_some()).count();
    println!("{} operations, {failed} without success", record.ops.len());
    // Many fail at once, where a majority is down; the others are what is checked.
    assert!(
        record.ops.len() - failed > 10 * usize::try_from(seconds).unwrap(),
        "hardly anything worked"
    );
    a_disk_dies(&mut cluster, victim).await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
    cluster.assert_nothing_unclean("after a disk died").await;
}
