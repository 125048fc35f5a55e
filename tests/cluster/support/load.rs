//! Load that keeps account: writers and readers as clients are, each trying an operation once more
//! on another node when the first attempt fails.
//!
//! Each key has one writer, and its values count up. Two thirds of the writes go to one key over
//! and over, under an `Idempotency-Key`, so that an attempt that comes late changes nothing; the
//! rest go to keys of their own without one, or count one up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;
use tokio::task::JoinSet;

use super::record::{Kind, Op, Record};
use super::stalls::Stalls;
use super::{Cluster, Disturbance, http};

/// Writers to each shard, each at home with another node, so that a node that hangs leaves somebody
/// who writes.
const WRITERS_PER_SHARD: usize = 2;

/// Pause of a writer between two operations.
const PACE: Duration = Duration::from_millis(60);

/// Longest wait for one attempt: above the longest failover that is allowed.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Values are filled up to this many bytes.
const VALUE_BYTES: usize = 100;

/// Where to send operations, and where not just now: what a balancer in front of a cluster knows.
pub(crate) struct Targets {
    urls: RwLock<Vec<String>>,
    down: Vec<AtomicBool>,
}

impl Targets {
    pub(crate) fn of(cluster: &Cluster) -> Arc<Self> {
        let targets = Self::of_ops(cluster);
        targets.follow(cluster);
        Arc::new(targets)
    }

    /// The nodes as operators reach them.
    pub(crate) fn of_ops(cluster: &Cluster) -> Self {
        let down = cluster.nodes.iter().map(|_| AtomicBool::new(false)).collect();
        let urls = cluster.nodes.iter().map(|node| node.ops_url("")).collect();
        Self { urls: RwLock::new(urls), down }
    }

    /// The nodes are where the cluster has them now.
    pub(crate) fn follow(&self, cluster: &Cluster) {
        *self.urls.write().unwrap() = cluster.nodes.iter().map(|node| node.url("")).collect();
    }

    pub(crate) fn avoid(&self, node: usize) {
        self.down[node].store(true, Ordering::Relaxed);
    }

    pub(crate) fn welcome(&self, node: usize) {
        self.down[node].store(false, Ordering::Relaxed);
    }

    pub(crate) fn len(&self) -> usize {
        self.down.len()
    }

    pub(crate) fn url(&self, node: usize, path: &str) -> String {
        format!("{}{path}", self.urls.read().unwrap()[node])
    }

    /// The node itself if it is not to be avoided, else the next that is not.
    pub(crate) fn at_or_after(&self, node: usize) -> usize {
        let candidates = (0..self.len()).map(|step| (node + step) % self.len());
        let mut up = candidates.filter(|node| !self.down[*node].load(Ordering::Relaxed));
        up.next().unwrap_or(node)
    }
}

/// Load under way. Dropped: aborted.
pub(crate) struct Load {
    pub(crate) targets: Arc<Targets>,
    began: Instant,
    stop: Arc<AtomicBool>,
    writers: JoinSet<Writer>,
    disturbances: Vec<Disturbance>,
    stalls: Stalls,
}

impl Load {
    /// Begins to put load on all nodes and shards of a cluster.
    pub(crate) async fn start(cluster: &Cluster) -> Self {
        Self::on(cluster, cluster.keys_of_shards(WRITERS_PER_SHARD).await)
    }

    /// The same with keys of shards that are known, one writer for each, and nobody else.
    pub(crate) fn on(cluster: &Cluster, keys: BTreeMap<u16, Vec<String>>) -> Self {
        let targets = Targets::of(cluster);
        let (began, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let http = http();
        let mut writers = JoinSet::new();
        for (shard, keys) in keys {
            for (index, key) in keys.into_iter().enumerate() {
                let writer = Writer {
                    http: http.clone(),
                    targets: targets.clone(),
                    began,
                    home: (usize::from(shard) + index) % targets.len(),
                    shard,
                    key,
                    version: 0,
                    next: 0,
                    record: Record::default(),
                };
                writers.spawn(writer.run(stop.clone()));
            }
        }
        let stalls = Stalls::watch(began);
        Self { targets, began, stop, writers, disturbances: Vec::new(), stalls }
    }

    /// The time since the load began, as records have it.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Does something to a node at once, and keeps clients away from it right after.
    pub(crate) fn disturb(&mut self, node: usize, disturb: impl FnOnce()) {
        self.disturbance_begins(node);
        disturb();
        self.clients_are_told(node);
    }

    /// From now on requests in flight on the node have an excuse.
    pub(crate) fn disturbance_begins(&mut self, node: usize) {
        let at = self.now();
        self.disturbances.push(Disturbance { node, at, told: Duration::MAX, over: None });
    }

    /// From now on clients keep away from it.
    pub(crate) fn clients_are_told(&mut self, node: usize) {
        self.targets.avoid(node);
        let now = self.now();
        self.last_of(node).told = now;
    }

    fn last_of(&mut self, node: usize) -> &mut Disturbance {
        let last = self.disturbances.iter_mut().rev().find(|last| last.node == node);
        last.expect("it was disturbed")
    }

    /// The node is itself again.
    pub(crate) fn is_over(&mut self, node: usize) {
        self.targets.welcome(node);
        let now = self.now();
        self.last_of(node).over = Some(now);
    }

    /// Ends the load, once every operation under way has its answer.
    pub(crate) async fn stop(mut self) -> Record {
        self.stop.store(true, Ordering::Relaxed);
        let mut record = Record::default();
        while let Some(writer) = self.writers.join_next().await {
            record.add(writer.unwrap().record);
        }
        record.disturbances = std::mem::take(&mut self.disturbances);
        record.stalls = self.stalls.seen();
        record
    }
}

/// One client.
struct Writer {
    http: reqwest::Client,
    targets: Arc<Targets>,
    began: Instant,
    home: usize,
    shard: u16,
    key: String,
    /// The last version that was acknowledged for `key`.
    version: u64,
    next: u64,
    record: Record,
}

/// What came of one attempt.
struct Answer {
    version: u64,
    body: String,
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Self {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop.load(Ordering::Relaxed) {
            pace.tick().await;
            self.next += 1;
            match self.next % 6 {
                0 => self.insert().await,
                3 => self.count().await,
                1 | 4 => self.overwrite().await,
                _ => {
                    self.overwrite().await;
                    self.read_back().await;
                }
            }
        }
        self
    }

    /// A write to a key that nobody wrote before.
    async fn insert(&mut self) {
        let (key, value) = (format!("{}-{}", self.key, self.next), value(self.next));
        let request = |http: &reqwest::Client, url: String| http.put(url).body(value.clone());
        let path = format!("/v1/kv/{key}");
        if self.attempt_twice(Kind::Insert, &path, request).await.is_some() {
            self.record.acknowledged.insert(key, self.next);
        }
    }

    /// The next value of the writer's own key.
    async fn overwrite(&mut self) {
        let (value, id) = (value(self.next), format!("{}/{}", self.key, self.next));
        let request = |http: &reqwest::Client, url: String| {
            http.put(url).body(value.clone()).header("Idempotency-Key", &id)
        };
        let path = format!("/v1/kv/{}", self.key);
        let Some(answer) = self.attempt_twice(Kind::Overwrite, &path, request).await else {
            self.record.unknown.insert((self.key.clone(), self.next));
            return;
        };
        if answer.version <= self.version {
            let text = format!("{}: version {} after {}", self.key, answer.version, self.version);
            self.record.wrong.push(text);
        }
        self.version = answer.version;
        self.record.acknowledged.insert(self.key.clone(), self.next);
    }

    /// One more on the writer's own counter.
    async fn count(&mut self) {
        let key = format!("{}-count", self.key);
        let id = format!("{key}/{}", self.next);
        let request =
            |http: &reqwest::Client, url: String| http.post(url).header("Idempotency-Key", &id);
        let path = format!("/v1/kv/{key}?op=incr");
        let answer = self.attempt_twice(Kind::Count, &path, request).await;
        let count = self.record.counts.entry(key.clone()).or_default();
        match answer {
            None => count.unknown += 1,
            Some(answer) => {
                count.acknowledged += 1;
                if !count.may_be(&answer.body) {
                    self.record.wrong.push(format!("{key}: {}, of {count:?}", answer.body));
                }
            }
        }
    }

    /// Reads what was written last, as of that write.
    async fn read_back(&mut self) {
        let Some(written) = self.record.acknowledged.get(&self.key).copied() else { return };
        let path = format!("/v1/kv/{}?min_version={}", self.key, self.version);
        let request = |http: &reqwest::Client, url: String| http.request(Method::GET, url);
        let Some(answer) = self.attempt_twice(Kind::Read, &path, request).await else { return };
        let read = number(&answer.body);
        if !read.is_some_and(|read| self.record.may_show(&self.key, read, written)) {
            let read = answer.body.split(':').next().unwrap_or_default();
            self.record.wrong.push(format!("{}: read {read:?}, wrote {written}", self.key));
        } else if read < Some(written) {
            println!(
                "{}: a write of unknown outcome came late: {read:?} after {written}",
                self.key
            );
        }
    }

    /// Tries an operation on a node and, should that fail, once more on another. Notes both.
    async fn attempt_twice(
        &mut self,
        kind: Kind,
        path: &str,
        request: impl Fn(&reqwest::Client, String) -> reqwest::RequestBuilder,
    ) -> Option<Answer> {
        // In this order: what began after clients were told knows where not to go.
        let began = self.began.elapsed();
        let node = self.targets.at_or_after(self.home);
        let first = self.attempt(request(&self.http, self.targets.url(node, path))).await;
        let (mut failure, mut answer) = (None, None);
        let first_failure = match first {
            Ok(first) => {
                answer = Some(first);
                None
            }
            Err(first) => {
                let second = self.targets.at_or_after((node + 1) % self.targets.len());
                match self.attempt(request(&self.http, self.targets.url(second, path))).await {
                    Ok(second) => answer = Some(second),
                    Err(why) => failure = Some(format!("on node {}: {why}", second + 1)),
                }
                Some(first)
            }
        };
        let (shard, ended) = (self.shard, self.began.elapsed());
        self.record.ops.push(Op { kind, shard, node, began, ended, first_failure, failure });
        answer
    }

    async fn attempt(&self, request: reqwest::RequestBuilder) -> Result<Answer, String> {
        let answer = request.timeout(ATTEMPT_TIMEOUT).send().await.map_err(|e| in_words(&e))?;
        let status = answer.status().as_u16();
        let version = answer.headers().get("etag").and_then(|tag| tag.to_str().ok());
        let version = version.and_then(|tag| tag.trim_matches('"').parse().ok()).unwrap_or(0);
        let body = answer.text().await.map_err(|e| in_words(&e))?;
        match status {
            200..300 => Ok(Answer { version, body }.checked(status)),
            _ => Err(problem(status, &body)),
        }
    }
}

impl Answer {
    fn checked(self, status: u16) -> Self {
        assert!(self.version > 0, "an answer {status} without an ETag");
        self
    }
}

/// A value that says which it is.
fn value(number: u64) -> String {
    format!("{number}:{:x<VALUE_BYTES$}", "")
}

/// Which value that is.
pub(super) fn number(value: &str) -> Option<u64> {
    value.split_once(':')?.0.parse().ok()
}

/// A refusal, as it is told.
pub(crate) fn problem(status: u16, body: &str) -> String {
    let problem: Value = serde_json::from_str(body).unwrap_or_default();
    format!("{status} {} {}", problem["outcome"].as_str().unwrap_or("-"), problem["detail"])
}

/// An error of the client with its causes.
pub(crate) fn in_words(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
