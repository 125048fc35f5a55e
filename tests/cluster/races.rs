//! Many clients at one key while nodes die and come back: a key is created once, and an increment
//! counts once.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE, Targets, http, in_words};

/// Clients that race for one key.
const RACERS: usize = 64;

/// Races, unless `AEGIS_RACE_ROUNDS` says otherwise.
const ROUNDS: usize = 200;

/// A race takes at least this long, so that the kills fall into many of them.
const ROUND_PACE: Duration = Duration::from_millis(100);

/// Clients that count.
const COUNTERS: usize = 16;

/// Increments that are asked for in all.
const INCREMENTS: u64 = 10_000;

/// Keys that are counted in by several clients.
const SHARED_COUNTERS: u64 = 4;

/// Between two kills, beside what it takes to be whole again.
const KILL_PACE: Duration = Duration::from_millis(1500);

/// How long a killed node stays away.
const AWAY: Duration = Duration::from_millis(1000);

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What a client may know after one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The status, with body and version.
    Done(u16, String, u64),
    /// Surely without effect.
    NotApplied(String),
    Unknown(String),
}

async fn attempt(request: reqwest::RequestBuilder) -> Outcome {
    let answer = match request.timeout(TIMEOUT).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return Outcome::NotApplied(in_words(&error)),
        Err(error) => return Outcome::Unknown(in_words(&error)),
    };
    let status = answer.status().as_u16();
    let version = answer.headers().get("etag").and_then(|tag| tag.to_str().ok());
    let version = version.and_then(|tag| tag.trim_matches('"').parse().ok()).unwrap_or(0);
    let body = match answer.text().await {
        Ok(body) => body,
        Err(error) => return Outcome::Unknown(in_words(&error)),
    };
    let problem: Value = serde_json::from_str(&body).unwrap_or_default();
    match (status, problem["outcome"].as_str()) {
        (503, Some("not-applied")) => Outcome::NotApplied(body),
        (503 | 504, _) => Outcome::Unknown(body),
        _ => Outcome::Done(status, body, version),
    }
}

/// Kills one node after the other, each restarted and whole again before the next, until `work` is
/// done; what came of it.
async fn under_kills<T: Send + 'static>(
    cluster: &mut Cluster,
    targets: &Targets,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let work = tokio::spawn(work);
    let mut kills = 0;
    while !work.is_finished() {
        let node = kills % cluster.nodes.len();
        cluster.nodes[node].kill();
        targets.avoid(node);
        kills += 1;
        tokio::time::sleep(AWAY).await;
        cluster.restart(node).await;
        cluster.wait_healthy(PATIENCE).await;
        targets.welcome(node);
        tokio::time::sleep(KILL_PACE).await;
    }
    println!("{kills} kills");
    assert!(kills >= 2, "it was over before the nodes were");
    work.await.unwrap()
}

/// What the races came to.
#[derive(Debug, Default)]
struct Races {
    won: usize,
    nobody_knows: usize,
    unknown: usize,
    not_applied: usize,
}

/// One race for a key that nobody has; its answers.
async fn race(http: &reqwest::Client, targets: &Arc<Targets>, key: &str) -> Vec<Outcome> {
    let attempts = (0..RACERS).map(|racer| {
        let node = targets.at_or_after(racer % targets.len());
        let request = http.put(targets.url(node, &format!("/v1/kv/{key}")));
        attempt(request.header("If-None-Match", "*").body(format!("racer {racer}")))
    });
    futures_util::future::join_all(attempts).await
}

impl Races {
    /// Judges one race.
    fn judge(&mut self, key: &str, answers: &[Outcome], value: Option<&str>) {
        let mut winners = Vec::new();
        let (mut lost, mut unknown) = (0, Vec::new());
        for (racer, answer) in answers.iter().enumerate() {
            match answer {
                Outcome::Done(201, _, _) => winners.push(format!("racer {racer}")),
                Outcome::Done(412, _, _) => lost += 1,
                Outcome::Done(status, body, _) => panic!("{key}: {status}: {body}"),
                Outcome::NotApplied(_) => self.not_applied += 1,
                Outcome::Unknown(_) => unknown.push(format!("racer {racer}")),
            }
        }
        self.unknown += unknown.len();
        match winners.as_slice() {
            [winner] => {
                self.won += 1;
                assert_eq!(value, Some(winner.as_str()), "{key} is not the winner's");
            }
            [] => {
                self.nobody_knows += 1;
                assert!(!unknown.is_empty(), "{key}: nobody won: {answers:?}");
                let has_lost_to_somebody = lost == 0 || value.is_some();
                assert!(has_lost_to_somebody, "{key}: {lost} lost to nobody");
                let is_of_unknown = value.is_none_or(|value| unknown.iter().any(|u| u == value));
                assert!(is_of_unknown, "{key}: {value:?} was sure to have no effect");
            }
            several => panic!("{key} was created by each of {several:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_created_by_one_client_only() {
    let rounds = std::env::var("AEGIS_RACE_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    let mut cluster = Cluster::start(3, json!({})).await;
    let targets = Targets::of(&cluster);
    let racing = {
        let targets = targets.clone();
        async move {
            let (http, mut races) = (http(), Races::default());
            let mut pace = tokio::time::interval(ROUND_PACE);
            for round in 0..rounds {
                pace.tick().await;
                let key = format!("race{round}");
                let answers = race(&http, &targets, &key).await;
                let value = read(&http, &targets, round, &key).await;
                races.judge(&key, &answers, value.as_deref());
            }
            races
        }
    };
    let races = under_kills(&mut cluster, &targets, racing).await;
    println!("{rounds} races: {races:?}");
    assert_eq!(races.won + races.nobody_knows, rounds);
    assert!(races.won > rounds / 2, "{races:?}");
    cluster.wait_equal(PATIENCE).await;
}

/// The value as of now, whoever is asked.
async fn read(http: &reqwest::Client, targets: &Targets, node: usize, key: &str) -> Option<String> {
    for attempts in 0..10 {
        let node = targets.at_or_after((node + attempts) % targets.len());
        let url = targets.url(node, &format!("/v1/kv/{key}?consistency=linearizable"));
        match attempt(http.get(url)).await {
            Outcome::Done(200, value, _) => return Some(value),
            Outcome::Done(404, _, _) => return None,
            Outcome::Done(status, body, _) => panic!("{key}: {status}: {body}"),
            Outcome::NotApplied(_) | Outcome::Unknown(_) => {}
        }
    }
    panic!("{key} cannot be read, ten times over");
}

/// What one client was answered.
#[derive(Default)]
struct Count {
    /// For each shared counter: the sums that were acknowledged, and how many answers are unknown.
    shared: BTreeMap<u64, (Vec<i64>, u64)>,
    /// Increments of its own counter, each asked for until it was acknowledged.
    own: i64,
    own_sum: i64,
}

/// Counts: every other time in a counter shared with others, once; else in its own, under an
/// `Idempotency-Key`, until there is an answer.
async fn count(client: usize, targets: Arc<Targets>, left: Arc<AtomicU64>) -> Count {
    let (http, mut count) = (http(), Count::default());
    let take = |left: &AtomicU64| {
        left.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
    };
    while let Ok(number) = take(&left) {
        let node = targets.at_or_after((client + number as usize) % targets.len());
        if number % 2 == 0 {
            let counter = number / 2 % SHARED_COUNTERS;
            let url = targets.url(node, &format!("/v1/kv/shared{counter}?op=incr"));
            let (sums, unknown) = count.shared.entry(counter).or_default();
            match attempt(http.post(url)).await {
                Outcome::Done(200, sum, _) => sums.push(sum.parse().unwrap()),
                Outcome::Done(status, body, _) => panic!("incr: {status}: {body}"),
                Outcome::NotApplied(_) => {}
                Outcome::Unknown(_) => *unknown += 1,
            }
        } else {
            count.own += 1;
            count.own_sum = count_own(&http, &targets, client, number).await;
            assert_eq!(count.own_sum, count.own, "client {client}: one counted twice, or not");
        }
    }
    count
}

/// One increment of a client's own counter, asked for again and again, as one.
async fn count_own(http: &reqwest::Client, targets: &Targets, client: usize, number: u64) -> i64 {
    for attempts in 0..10 {
        let node = targets.at_or_after((client + attempts) % targets.len());
        let url = targets.url(node, &format!("/v1/kv/own{client}?op=incr"));
        let request = http.post(url).header("Idempotency-Key", format!("incr-{number}"));
        match attempt(request).await {
            Outcome::Done(200, sum, _) => return sum.parse().unwrap(),
            Outcome::Done(status, body, _) => panic!("incr: {status}: {body}"),
            Outcome::NotApplied(_) | Outcome::Unknown(_) => {}
        }
    }
    panic!("client {client} got no answer, ten times over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_increment_counts_once() {
    let mut cluster = Cluster::start(3, json!({})).await;
    let targets = Targets::of(&cluster);
    let left = Arc::new(AtomicU64::new(INCREMENTS));
    let counting = {
        let targets = targets.clone();
        let clients = (0..COUNTERS).map(move |client| count(client, targets.clone(), left.clone()));
        futures_util::future::join_all(clients.map(tokio::spawn).collect::<Vec<_>>())
    };
    let counts = under_kills(&mut cluster, &targets, counting).await;
    let counts: Vec<Count> = counts.into_iter().map(Result::unwrap).collect();
    cluster.wait_equal(PATIENCE).await;
    for counter in 0..SHARED_COUNTERS {
        let parts = || counts.iter().filter_map(|count| count.shared.get(&counter));
        let sums: Vec<i64> = parts().flat_map(|(sums, _)| sums).copied().collect();
        let unknown: u64 = parts().map(|(_, unknown)| unknown).sum();
        let distinct: BTreeSet<i64> = sums.iter().copied().collect();
        assert_eq!(distinct.len(), sums.len(), "shared{counter}: two were given the same sum");
        let sum: u64 = cluster.get(0, &format!("shared{counter}")).await.unwrap().parse().unwrap();
        let acknowledged = sums.len() as u64;
        println!("shared{counter}: {sum}, acknowledged {acknowledged}, unknown {unknown}");
        assert!((acknowledged..=acknowledged + unknown).contains(&sum));
    }
    for (client, count) in counts.iter().enumerate() {
        let sum: i64 = cluster.get(1, &format!("own{client}")).await.unwrap().parse().unwrap();
        assert_eq!((sum, count.own_sum), (count.own, count.own), "own{client}");
    }
}
