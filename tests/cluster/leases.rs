//! The stop lease: one node at a time, whoever asks whom, whatever becomes of the leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, Targets, eventually, http};

/// Races, unless `AEGIS_RACE_ROUNDS` says otherwise.
const ROUNDS: usize = 1_000;

/// The leader is killed so often in the course of the races.
const KILLS: usize = 4;

/// A lease that was not given back is a mistake of the test; it is not waited for.
const TTL: &str = "10m";

/// In a race it is held so long: an answer to the other would come within that.
const HELD_FOR: Duration = Duration::from_millis(5);

/// How long it is looked at that a lease is not given back.
const STAYS_FOR: Duration = Duration::from_secs(3);

fn ask(node: &str, holder: &str, ttl: &str) -> Value {
    json!({ "node_id": node, "holder": holder, "ttl": ttl })
}

impl Cluster {
    async fn acquire(&self, at: usize, body: &Value) -> (u16, Value) {
        let url = self.nodes[at].ops_url("/admin/stop-lease");
        let answer = self.http.post(url).body(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn acquired(&self, at: usize, body: &Value) -> Value {
        eventually("the stop lease is granted", PATIENCE, async || {
            match self.acquire(at, body).await {
                (200, lease) => Ok(lease),
                (status, why) => Err(format!("{status}: {why}")),
            }
        })
        .await
    }

    async fn lease(&self, at: usize) -> Result<Value, String> {
        Ok(self.ops(at, "/admin/stop-lease").await?["lease"].clone())
    }

    async fn is_free(&self, at: usize) {
        eventually("nobody holds the stop lease", PATIENCE, async || {
            match self.lease(at).await? {
                Value::Null => Ok(()),
                lease => Err(lease.to_string()),
            }
        })
        .await;
    }

    async fn sample(&self, at: usize, line: &str) -> Option<f64> {
        let url = self.nodes[at].ops_url("/metrics");
        let text = self.http.get(url).send().await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line));
        value.map(|value| value.trim().parse().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_over_once_its_node_was_stopped_and_has_all_its_copies_and_no_sooner() {
    let mut cluster = Cluster::start(3, json!({ "gossip_interval": "200ms" })).await;
    eventually("primaries are balanced, too", PATIENCE, async || {
        match cluster.ops(1, "/cluster").await? {
            view if view["settled"] == true && view["moves_left"] == 0 => Ok(()),
            view => Err(view.to_string()),
        }
    })
    .await;
    let led = cluster.primaries().await;
    assert!(led.iter().all(|led| (5..=6).contains(led)), "{led:?}");
    let lease = cluster.acquired(0, &ask("node2", "a", TTL)).await;
    assert_eq!((&lease["node_id"], &lease["renewed"]), (&json!("node2"), &json!(false)));
    for (at, body) in
        [(1, ask("node3", "b", TTL)), (2, ask("node2", "b", TTL)), (0, ask("node1", "a", TTL))]
    {
        let (status, refused) = cluster.acquire(at, &body).await;
        assert_eq!((status, &refused["held_by"]), (409, &json!("a")), "{body}: {refused}");
        assert_eq!(refused["node_id"], "node2");
        assert_eq!(refused["until"], lease["until"]);
    }
    let renewed = cluster.acquired(2, &ask("node2", "a", TTL)).await;
    assert_eq!(renewed["renewed"], true, "{renewed}");
    assert_eq!(renewed["lease_id"], lease["lease_id"]);
    let held = "a has leave to stop node2 since";
    assert!(cluster.nodes[2].status().contains(held), "{}", cluster.nodes[2].status());
    assert!(cluster.nodes[2].command(&["node", "lease"]).1.starts_with(held));
    let (code, _, refused) = cluster.nodes[0].command(&["node", "may-stop", "node3"]);
    assert!(code == 1 && refused.contains("a holds the stop lease for node2"), "{refused}");
    // The node answers and is level: it is still to be stopped.
    tokio::time::sleep(STAYS_FOR).await;
    assert_eq!(cluster.lease(2).await.unwrap()["node_id"], "node2");
    let gauge = "aegis_stop_lease{holder=\"a\",node=\"node2\"}";
    assert_eq!(cluster.sample(2, gauge).await, Some(1.0));

    cluster.nodes[1].stop(PATIENCE).await;
    tokio::time::sleep(STAYS_FOR).await;
    assert_eq!(cluster.lease(0).await.unwrap()["holder"], "a");
    let (status, _) = cluster.acquire(2, &ask("node3", "b", TTL)).await;
    assert_eq!(status, 409);
    // Its holder may have more time, while the node is down.
    cluster.acquired(2, &ask("node2", "a", TTL)).await;
    cluster.restart(1).await;
    cluster.is_free(0).await;
    cluster.acquired(1, &ask("node3", "b", TTL)).await;
    let url = cluster.nodes[0].ops_url("/admin/stop-lease?node_id=node3&holder=a");
    let other = cluster.http.delete(url).send().await.unwrap();
    assert_eq!(other.status(), 409);
    let url = cluster.nodes[0].ops_url("/admin/stop-lease?node_id=node3&holder=b");
    let done: Value = cluster.http.delete(url).send().await.unwrap().json().await.unwrap();
    assert_eq!(done["released"], true, "{done}");
    cluster.is_free(1).await;
    assert_eq!(cluster.sample(1, gauge).await, None);
    let may_stop = ["node", "may-stop", "node3", "--wait", "30s", "--holder", "c", "--ttl", "2h"];
    let (code, told, refused) = cluster.nodes[0].command(&may_stop);
    assert!(code == 0 && told.starts_with("node3 may be stopped until "), "{told}{refused}");
    assert_eq!(cluster.lease(1).await.unwrap()["ttl_seconds"], 7200);
    let release = ["node", "release", "node3", "--json"];
    assert!(cluster.nodes[1].command(&release).1.contains("\"released\": true"));
    assert!(cluster.nodes[1].command(&release).1.contains("\"released\": false"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_refused_while_another_member_is_missing_and_says_what_is() {
    let mut cluster = Cluster::start(3, json!({ "gossip_interval": "200ms" })).await;
    cluster.nodes[2].kill();
    let (status, refused) = eventually("it is noticed", PATIENCE, async || {
        match cluster.acquire(0, &ask("node2", "a", TTL)).await {
            (503, refused) if refused["members_missing"] == json!(["node3"]) => Ok((503, refused)),
            (status, refused) => Err(format!("{status}: {refused}")),
        }
    })
    .await;
    assert_eq!(status, 503);
    let all: Vec<u16> = (0..cluster.num_shards).collect();
    assert_eq!(refused["shards_without_quorum"], json!(all), "{refused}");
    // The one that is down may be stopped.
    cluster.acquired(1, &ask("node3", "a", "2s")).await;
    for at in [0, 1] {
        eventually("each member counts a lease that ran out", PATIENCE, async || {
            match cluster.sample(at, "aegis_stop_lease_expired_total ").await {
                Some(1.0) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let log = cluster.nodes[at].log_since(0);
        assert!(log.contains("the stop lease ran out before its node was back"), "{at}");
    }
    cluster.is_free(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operating_system_gets_its_lease_back_once_its_node_is_level() {
    let mut cluster = Cluster::start(3, json!({ "gossip_interval": "200ms" })).await;
    let say = async |cluster: &Cluster, path: &str, id: &str| {
        let request = cluster.http.post(cluster.nodes[0].ops_url(path));
        let body = json!({ "client_params": { "id": id, "group": "default" } });
        let request = request.header("fleet-lock-protocol", "true").body(body.to_string());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap_or_default();
        (status, body["kind"].as_str().unwrap_or_default().to_owned())
    };
    let granted = async || match say(&cluster, "/v1/pre-reboot", "node2").await {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("it may reboot", PATIENCE, granted).await;
    assert_eq!(say(&cluster, "/v1/pre-reboot", "node3").await, (409, "held".to_owned()));
    assert_eq!(say(&cluster, "/v1/steady-state", "node3").await.0, 200, "it holds nothing");
    assert_eq!(cluster.lease(1).await.unwrap()["holder"], "FleetLock node2");
    cluster.nodes[1].stop(PATIENCE).await;
    let early = say(&cluster, "/v1/steady-state", "node2").await;
    assert_eq!(early, (503, "not_back".to_owned()));
    cluster.restart(1).await;
    let settled = async || match say(&cluster, "/v1/steady-state", "node2").await {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("it has rebooted", PATIENCE, settled).await;
    cluster.is_free(0).await;
    // A reboot that does not take place.
    let granted = async || match say(&cluster, "/v1/pre-reboot", "node1").await {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("another may reboot", PATIENCE, granted).await;
    assert_eq!(say(&cluster, "/v1/steady-state", "node1").await.0, 200);
    cluster.is_free(0).await;
}

/// One holder's stretch of holding the lease, as it saw it: from the answer that granted it until it
/// began to give it back. It surely held it then, and perhaps longer.
#[derive(Clone, Debug)]
struct Stretch {
    node: String,
    lease: u64,
    from: Instant,
    until: Instant,
}

/// A holder that asks for leave to stop its node through one node after another.
struct Holder {
    http: reqwest::Client,
    targets: Arc<Targets>,
    node: String,
    name: String,
    turn: usize,
    stretches: Vec<Stretch>,
    /// Answers by status; 0 is none.
    answers: std::collections::BTreeMap<u16, usize>,
}

impl Holder {
    fn new(targets: &Arc<Targets>, node: &str, name: &str, turn: usize) -> Self {
        let (node, name) = (node.to_owned(), name.to_owned());
        let (stretches, answers) = Default::default();
        Self { http: http(), targets: targets.clone(), node, name, turn, stretches, answers }
    }

    fn url(&mut self, path: &str) -> String {
        self.turn += 1;
        let node = self.targets.at_or_after(self.turn % self.targets.len());
        self.targets.url(node, path)
    }

    /// One race: asks once, and gives back what it got, or may have got. Whether it was refused.
    async fn race(&mut self) -> bool {
        let url = self.url("/admin/stop-lease");
        let body = ask(&self.node, &self.name, TTL).to_string();
        let (status, lease) = match self.http.post(url).body(body).send().await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                (status, answer.json::<Value>().await.unwrap_or_default())
            }
            Err(_) => (0, Value::Null),
        };
        *self.answers.entry(status).or_default() += 1;
        let from = Instant::now();
        if let (200, Some(lease)) = (status, lease["lease_id"].as_u64()) {
            tokio::time::sleep(HELD_FOR).await;
            let (node, until) = (self.node.clone(), Instant::now());
            self.stretches.push(Stretch { node, lease, from, until });
        }
        // An answer that was lost, or that nobody could agree, may stand for a grant.
        let is_refused = status == 409 || lease["members_missing"].is_array();
        if !is_refused {
            self.give_back().await;
        }
        is_refused
    }

    async fn give_back(&mut self) {
        let path = format!("/admin/stop-lease?node_id={}&holder={}", self.node, self.name);
        let began = Instant::now();
        loop {
            let url = self.url(&path);
            match self.http.delete(url).send().await {
                Ok(answer) if answer.status().as_u16() == 200 => return,
                other => assert!(began.elapsed() < PATIENCE, "not given back: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Stretches of different nodes never overlap, and no lease's number stands for two nodes.
fn check(mut stretches: Vec<Stretch>) {
    stretches.sort_by_key(|stretch| stretch.from);
    for pair in stretches.windows(2) {
        let [one, next] = pair else { unreachable!("windows of two") };
        let is_apart = one.node == next.node || one.until <= next.from;
        assert!(is_apart, "held for two nodes: {one:?} {next:?}");
        assert!(one.lease < next.lease, "a lease was granted twice: {one:?} {next:?}");
    }
}

#[test]
#[should_panic(expected = "held for two nodes")]
fn a_lease_that_two_nodes_had_would_be_seen() {
    let from = Instant::now();
    let at = |millis| from + Duration::from_millis(millis);
    let stretch = |node: &str, lease, from, until| Stretch {
        node: node.to_owned(),
        lease,
        from: at(from),
        until: at(until),
    };
    check(vec![
        stretch("node1", 1, 0, 10),
        stretch("node2", 2, 10, 20),
        stretch("node1", 3, 19, 30),
    ]);
}

/// Two holders race for two nodes through all nodes, and the topology's leader is killed now and
/// then: one of the two has it at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_race_for_two_nodes_never_both_have_leave_to_stop() {
    let rounds =
        std::env::var("AEGIS_RACE_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let mut cluster = Cluster::start(3, json!({ "gossip_interval": "200ms" })).await;
    cluster.acquired(0, &ask("node1", "a", "1s")).await;
    cluster.is_free(0).await;
    let targets = Arc::new(Targets::of_ops(&cluster));
    let raced = Arc::new(AtomicUsize::new(0));
    let race = {
        let (targets, raced) = (targets.clone(), raced.clone());
        tokio::spawn(async move {
            let mut a = Holder::new(&targets, "node1", "a", 0);
            let mut b = Holder::new(&targets, "node2", "b", 1);
            while raced.load(Ordering::Relaxed) < rounds {
                match tokio::join!(a.race(), b.race()) {
                    // Nobody is to be stopped while a node is down.
                    (true, true) => tokio::time::sleep(HELD_FOR).await,
                    _ => _ = raced.fetch_add(1, Ordering::Relaxed),
                }
            }
            (a, b)
        })
    };
    let began = Instant::now();
    for kill in 1..=KILLS {
        while raced.load(Ordering::Relaxed) < rounds * kill / (KILLS + 1) {
            tokio::time::sleep(HELD_FOR).await;
        }
        let leader = cluster.leader().await;
        cluster.nodes[leader].kill();
        targets.avoid(leader);
        cluster.restart(leader).await;
        targets.welcome(leader);
    }
    let (a, b) = race.await.unwrap();
    println!("{KILLS} kills, {:?}; a: {:?}, b: {:?}", began.elapsed(), a.answers, b.answers);
    for holder in [&a, &b] {
        let won = holder.stretches.len();
        assert!(won >= rounds / 10, "{} had it in {won} of {rounds} races", holder.name);
    }
    check(a.stretches.into_iter().chain(b.stretches).collect());
}
