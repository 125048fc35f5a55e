//! A cluster in trouble, under load: what it has to keep doing, and what it must never do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Cluster, Load, Network, Node, PATIENCE, Record, eventually};

/// Keys written before anything happens.
const KEYS: usize = 300;

/// Writers to each shard.
const WRITERS_PER_SHARD: usize = 2;

/// Pause between two looks, and before something that failed is asked for again.
const PACE: Duration = Duration::from_millis(100);

/// One answer may take so long, so that a node that gives none is asked again.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Complaints shown of very many.
const SHOWN_MAX: usize = 6;

/// A cluster with keys in it, one of each shard that nobody else writes, and load.
pub(crate) struct Trial {
    pub(crate) cluster: Cluster,
    pub(crate) load: Load,
    /// One key of every shard.
    keys: Vec<String>,
}

/// Who holds what, and what it cost to get there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Epoch, primary and voters of each shard.
    shards: BTreeMap<u16, (u64, Option<String>, Vec<String>)>,
    failovers: u64,
}

impl Trial {
    /// Has nodes that are impatient with the dead: what is given up at all is given up in the time
    /// of a test.
    pub(crate) fn settings() -> Value {
        json!({
            "gossip_interval": "200ms",
            "suspect_timeout": "600ms",
            "dead_timeout": "1200ms",
            "rebalance_delay": "2s",
        })
    }

    /// Longer than it takes until somebody who is silent is suspected, given up, and replaced.
    pub(crate) const PAST_GIVING_UP: Duration = Duration::from_secs(5);

    /// Starts `count` nodes, fills them and puts load on them.
    pub(crate) async fn start(network: impl Into<Option<Network>>, count: usize) -> Self {
        Self::begin(Cluster::start_in(network, count, Self::settings()).await).await
    }

    /// The same with nodes that run.
    pub(crate) async fn begin(cluster: Cluster) -> Self {
        for n in 0..KEYS {
            let node = n % cluster.nodes.len();
            let answer = cluster.put(node, &format!("k{n}"), &format!("v{n}")).await;
            assert_eq!(answer.status(), 201, "k{n}");
        }
        let mut keys = cluster.keys_of_shards(WRITERS_PER_SHARD + 1).await;
        let own = keys.values_mut().map(|keys| keys.pop().unwrap()).collect();
        let load = Load::on(&cluster, keys);
        Self { cluster, load, keys: own }
    }

    /// All nodes, the leader of the topology first.
    pub(crate) async fn leader_first(&self) -> Vec<usize> {
        let (leader, count) = (self.cluster.leader().await, self.cluster.nodes.len());
        (0..count).map(|step| (leader + step) % count).collect()
    }

    /// Writes a key of every shard through each of the nodes, all at once, asking again until that
    /// is done.
    pub(crate) async fn assert_writable(&self, nodes: &[usize], what: &str, within: Duration) {
        let began = Instant::now();
        let writes = nodes.iter().flat_map(|node| self.keys.iter().map(move |key| (*node, key)));
        let writes = writes.map(async |(node, key)| {
            loop {
                let answer = self.write(node, key, what).await;
                match answer {
                    Err(why) if began.elapsed() > within => return Err((node, why)),
                    Err(_) => tokio::time::sleep(PACE).await,
                    Ok(()) => return Ok(began.elapsed()),
                }
            }
        });
        let answers = futures_util::future::join_all(writes).await;
        let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        let mut late: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
        late.sort();
        println!("{what}: every key was written after {:?}", late.last());
        assert!(
            failed.is_empty() && late.iter().all(|took| **took <= within + ANSWER_WITHIN),
            "{what}: of {} writes {} failed for {within:?}; the others took up to {:?}: {:#?}",
            answers.len(),
            failed.len(),
            late.last(),
            &failed[..failed.len().min(SHOWN_MAX)],
        );
    }

    async fn write(&self, node: usize, key: &str, value: &str) -> Result<(), String> {
        let url = self.cluster.nodes[node].url(&format!("/v1/kv/{key}?consistency=quorum"));
        let request = self.cluster.http.put(url).body(value.to_owned()).timeout(ANSWER_WITHIN);
        let answer = request.send().await.map_err(|error| super::in_words(&error))?;
        let (status, body) = (answer.status(), answer.text().await.unwrap_or_default());
        if status.is_success() {
            return Ok(());
        }
        Err(super::problem(status.as_u16(), &body))
    }

    /// For some time, each of the nodes says at every moment that it is ready.
    pub(crate) async fn assert_ready(&self, nodes: &[usize], what: &str, lasts: Duration) {
        let began = Instant::now();
        while began.elapsed() < lasts {
            for node in nodes {
                let ready = self.cluster.ops(*node, "/ready").await.unwrap();
                let (name, at) = (&self.cluster.nodes[*node].name, began.elapsed());
                assert_eq!(ready["ready"], true, "{what}: {name} after {at:?}: {ready:#}");
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// How things stand now, once all nodes agree on it.
    pub(crate) async fn standing(&self) -> Standing {
        let running = (0..self.cluster.nodes.len()).filter(|n| self.cluster.nodes[*n].is_running());
        let running: Vec<usize> = running.collect();
        eventually("all nodes have the same shards", PATIENCE, async || {
            let mut agreed = None;
            for node in &running {
                let shards = self.cluster.shards(*node).await?.into_iter();
                let shards = shards.map(|s| (s.shard, (s.epoch, s.primary, s.voters))).collect();
                if agreed.get_or_insert_with(|| BTreeMap::clone(&shards)) != &shards {
                    return Err(format!("{agreed:?} or {shards:?}"));
                }
            }
            let failovers = self.cluster.metrics("aegis_failovers_total").await?;
            Ok(Standing { shards: agreed.unwrap_or_default(), failovers })
        })
        .await
    }

    /// Nobody was taken from the voters, and nothing was recovered from less than a majority.
    pub(crate) async fn assert_all_vote(&self, what: &str) {
        self.cluster.assert_nothing_unclean(what).await;
        for (shard, (_, _, voters)) in self.standing().await.shards {
            assert_eq!(voters.len(), 3, "{what}: voters of shard {shard}: {voters:?}");
        }
    }

    /// Every node shows every member where it is.
    pub(crate) async fn assert_known_where_they_are(&self, what: &str) {
        let nodes = &self.cluster.nodes;
        let expected: BTreeSet<String> = nodes.iter().map(Node::peer_addr).collect();
        eventually(&format!("{what}: all know where all are"), PATIENCE, async || {
            for (node, home) in nodes.iter().enumerate() {
                let view = self.cluster.ops(node, "/cluster").await?;
                let members = view["members"].as_array().cloned().unwrap_or_default();
                let addrs = members.iter().filter_map(|member| member["gossip_addr"].as_str());
                let found: BTreeSet<String> = addrs.map(str::to_owned).collect();
                if found != expected {
                    return Err(format!("{} knows {found:?}", home.name));
                }
            }
            Ok(())
        })
        .await;
    }

    /// What was written before anything happened is there, through each of the nodes.
    pub(crate) async fn assert_all_there(&self, nodes: &[usize], what: &str) {
        for node in nodes {
            let reads = (0..KEYS).map(async |n| {
                let is_there = self.cluster.get(*node, &format!("k{n}")).await;
                is_there.is_none_or(|value| value != format!("v{n}"))
            });
            let lost = futures_util::future::join_all(reads).await;
            let lost = lost.into_iter().filter(|lost| *lost).count();
            let name = &self.cluster.nodes[*node].name;
            assert_eq!(lost, 0, "{what}: keys of {KEYS} that {name} has not");
        }
    }

    /// Ends the load on a cluster that is whole again, and judges what came of it.
    pub(crate) async fn end(mut self) -> Record {
        self.cluster.wait_healthy(PATIENCE).await;
        let record = self.load.stop().await;
        self.cluster.wait_equal(PATIENCE).await;
        record.assert_nothing_lost(&self.cluster).await;
        record.assert_right();
        self.cluster.assert_nothing_unclean("in the end").await;
        let failed = record.ops.iter().filter(|op| op.failure.is_some()).count();
        println!("{} operations, {failed} without success", record.ops.len());
        record
    }
}

/// Whether all cases are asked for, also those that seldom tell more than others do.
pub(crate) fn wants_all_cases() -> bool {
    std::env::var("AEGIS_NETWORK_CASES").is_ok_and(|cases| cases == "all")
}
