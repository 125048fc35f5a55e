//! A cluster as its nodes see it: who is there, who holds which shard, and whether copies are equal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Cluster, eventually};

/// Keys probed in the search for one of each shard, for each shard there is.
const PROBES_PER_SHARD: u32 = 40;

/// A shard as `/cluster/shards` shows it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Shard {
    pub(crate) shard: u16,
    pub(crate) epoch: u64,
    pub(crate) primary: Option<String>,
    pub(crate) voters: Vec<String>,
    pub(crate) learners: Vec<String>,
    pub(crate) state: String,
    pub(crate) positions: BTreeMap<String, Position>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Position {
    pub(crate) epoch: u32,
    pub(crate) seq: u64,
}

/// An entry as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) version: String,
    pub(crate) value: String,
}

impl Cluster {
    /// Something that a node's operations port shows.
    pub(crate) async fn ops(&self, index: usize, path: &str) -> Result<Value, String> {
        let name = &self.nodes[index].name;
        let request =
            self.http.get(self.nodes[index].ops_url(path)).timeout(Duration::from_secs(5));
        let answer = request.send().await.map_err(|error| format!("{name}: {error}"))?;
        answer.json().await.map_err(|error| format!("{name}: {error}"))
    }

    /// What a node has counted under a name, all series together.
    pub(crate) async fn metric(&self, index: usize, name: &str) -> Result<u64, String> {
        let url = self.nodes[index].ops_url("/metrics");
        let request = self.http.get(url).timeout(Duration::from_secs(5));
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let text = answer.text().await.map_err(|error| error.to_string())?;
        let series = text.lines().filter(|line| line.split([' ', '{']).next() == Some(name));
        let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum::<f64>() as u64)
    }

    /// The same of all nodes that run.
    pub(crate) async fn metrics(&self, name: &str) -> Result<u64, String> {
        let mut sum = 0;
        for index in self.running() {
            sum += self.metric(index, name).await?;
        }
        Ok(sum)
    }

    /// No shard went on with less than a majority that remembers, in any life of any node.
    pub(crate) async fn assert_nothing_unclean(&self, what: &str) {
        let counted = self.metrics("aegis_unclean_recovery_total").await.unwrap();
        assert_eq!(counted, 0, "{what}: shards recovered uncleanly");
        for node in &self.nodes {
            let log = node.log();
            let told = log.lines().find(|line| line.contains("go on with the copy that has most"));
            assert_eq!(told, None, "{what}, in the log of {}", node.name);
        }
    }

    /// Every shard, as a node knows it.
    pub(crate) async fn shards(&self, index: usize) -> Result<Vec<Shard>, String> {
        let mut view = self.ops(index, "/cluster/shards").await?;
        serde_json::from_value(view["shards"].take()).map_err(|error| error.to_string())
    }

    fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].is_running()).collect()
    }

    /// Waits until every running node sees every shard healthy and every member alive, as many as
    /// run.
    pub(crate) async fn wait_healthy(&mut self, within: Duration) {
        let running = self.running();
        for index in &running {
            self.nodes[*index].assert_running();
        }
        eventually("all is healthy", within, async || {
            for index in &running {
                let view = self.ops(*index, "/cluster").await?;
                let shards = &view["shards"];
                let members = view["members"].as_array().cloned().unwrap_or_default();
                let alive = members.iter().filter(|member| member["status"] == "alive").count();
                let is_whole = shards["total"] == self.num_shards
                    && shards["healthy"] == self.num_shards
                    && members.len() == running.len()
                    && alive == running.len();
                if !is_whole {
                    return Err(format!("{} sees {view}", self.nodes[*index].name));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Waits until every copy of every shard, as its own node tells, stands at the same position.
    /// The load must have ended.
    pub(crate) async fn wait_level(&self, within: Duration) {
        eventually("all copies are level", within, async || self.level().await).await;
    }

    async fn level(&self) -> Result<(), String> {
        let mut views = BTreeMap::new();
        for index in self.running() {
            views.insert(self.nodes[index].name.clone(), self.shards(index).await?);
        }
        let first = views.values().next().cloned().unwrap_or_default();
        if first.len() != usize::from(self.num_shards) {
            return Err(format!("{} of {} shards", first.len(), self.num_shards));
        }
        for shard in first {
            let number = usize::from(shard.shard);
            let mut copies = BTreeMap::new();
            for voter in &shard.voters {
                let view = views.get(voter).ok_or_else(|| format!("{voter} does not run"))?;
                let own = view.get(number).and_then(|own| own.positions.get(voter));
                let own = own.ok_or_else(|| format!("{voter} has no place in shard {number}"))?;
                copies.insert(voter.clone(), *own);
            }
            let distinct: BTreeSet<_> = copies.values().collect();
            if distinct.len() != 1 || !shard.learners.is_empty() {
                return Err(format!("shard {number}: {copies:?}, learners {:?}", shard.learners));
            }
        }
        Ok(())
    }

    /// Waits until all copies are level, and compares what the nodes hold.
    pub(crate) async fn wait_equal(&self, within: Duration) {
        self.wait_level(within).await;
        let running = self.running();
        let first = self.dump(running[0]).await;
        for index in &running[1..] {
            let other = self.dump(*index).await;
            let differs =
                first.iter().chain(&other).find(|(key, _)| first.get(*key) != other.get(*key));
            if let Some((key, _)) = differs {
                panic!(
                    "{key}: {} has {:?}, {} has {:?}",
                    self.nodes[running[0]].name,
                    first.get(key),
                    self.nodes[*index].name,
                    other.get(key)
                );
            }
        }
    }

    /// All entries, listed through a node.
    pub(crate) async fn dump(&self, index: usize) -> BTreeMap<String, Entry> {
        let mut entries = BTreeMap::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/kv?values=1&limit=1000{cursor}");
            let answer = self.http.get(self.nodes[index].url(&path)).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
            let mut page: Value = answer.json().await.unwrap();
            let keys: Vec<Entry> = serde_json::from_value(page["keys"].take()).unwrap();
            entries.extend(keys.into_iter().map(|entry| (entry.key.clone(), entry)));
            match page["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return entries,
            }
        }
    }

    /// The node that leads the topology, as they agree.
    pub(crate) async fn leader(&self) -> usize {
        eventually("a leader is agreed on", super::PATIENCE, async || {
            let mut leaders = BTreeSet::new();
            for index in self.running() {
                leaders.insert(self.ops(index, "/cluster").await?["leader"].to_string());
            }
            let mut names = self.nodes.iter().map(|node| Value::from(node.name.clone()));
            let leader = names.position(|name| leaders.contains(&name.to_string()));
            match leader {
                Some(leader) if leaders.len() == 1 => Ok(leader),
                _ => Err(format!("{leaders:?}")),
            }
        })
        .await
    }

    /// How many shards have their primary on each node, by index.
    pub(crate) async fn primaries(&self) -> Vec<usize> {
        let shards = self.shards(self.running()[0]).await.unwrap();
        let count =
            |name: &String| shards.iter().filter(|s| s.primary.as_ref() == Some(name)).count();
        self.nodes.iter().map(|node| count(&node.name)).collect()
    }

    /// The node that is the primary of a shard.
    pub(crate) async fn primary_of(&self, shard: u16) -> usize {
        let shards = self.shards(self.running()[0]).await.unwrap();
        let primary = shards[usize::from(shard)].primary.clone().expect("it has a primary");
        self.nodes.iter().position(|node| node.name == primary).expect("it is a node")
    }

    /// `count` keys of every shard, found by writing and seeing which shard moves. Nobody else may
    /// write meanwhile. What was written is left there.
    pub(crate) async fn keys_of_shards(&self, count: usize) -> BTreeMap<u16, Vec<String>> {
        let mut found: BTreeMap<u16, Vec<String>> = BTreeMap::new();
        let mut before = self.highest_positions().await;
        for probe in 0..PROBES_PER_SHARD * u32::from(self.num_shards) {
            let key = format!("probe-{probe}");
            let answer = self.put(0, &key, "0").await;
            assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
            let after = self.highest_positions().await;
            let mut moved = after.iter().filter(|(shard, at)| before.get(*shard) != Some(*at));
            if let (Some((shard, _)), None) = (moved.next(), moved.next()) {
                let keys = found.entry(*shard).or_default();
                if keys.len() < count {
                    keys.push(key);
                }
            }
            before = after;
            if found.len() == usize::from(self.num_shards)
                && found.values().all(|k| k.len() == count)
            {
                return found;
            }
        }
        panic!("no {count} keys of each shard were found: {found:?}");
    }

    /// The furthest position of each shard that any node tells of its own copy.
    async fn highest_positions(&self) -> BTreeMap<u16, Position> {
        let mut highest = BTreeMap::new();
        for index in self.running() {
            let name = &self.nodes[index].name;
            for shard in self.shards(index).await.unwrap() {
                if let Some(position) = shard.positions.get(name) {
                    let known = highest.entry(shard.shard).or_insert(*position);
                    *known = (*known).max(*position);
                }
            }
        }
        highest
    }
}
