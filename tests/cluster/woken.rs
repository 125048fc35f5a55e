//! A node that stood still for a while and goes on: it shows nobody what is long past as if it were
//! the present.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Cluster, Cut, Network, PATIENCE, eventually};

/// Enough keys that every shard has some.
const KEYS: usize = 60;

/// Long enough for others to lead, and for connections to be closed.
const STILL: Duration = Duration::from_secs(8);

/// Requests are on their way, and lie in the node's socket buffers, before it goes on.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// What one answer showed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    what: String,
    status: u16,
    stale: Option<String>,
    values: Vec<String>,
}

impl Shown {
    async fn of(what: String, answer: reqwest::Response) -> Self {
        let status = answer.status().as_u16();
        let stale = answer.headers().get("aegis-stale");
        let stale = stale.map(|stale| stale.to_str().unwrap().to_owned());
        let text = answer.text().await.unwrap();
        let values = match serde_json::from_str::<Value>(&text) {
            _ if status != 200 => Vec::new(),
            Ok(Value::Object(body)) => values_of(&body),
            _ => vec![text],
        };
        Self { what, status, stale, values }
    }

    /// Whether nobody is misled by it.
    fn is_honest(&self) -> bool {
        match self.status {
            200 => self.stale.is_some() || self.values.iter().all(|value| value == "new"),
            503 => true,
            _ => false,
        }
    }
}

/// The values of a listing or a batch, but for those that say that they are stale.
fn values_of(body: &serde_json::Map<String, Value>) -> Vec<String> {
    let entries = ["keys", "results"].into_iter().find_map(|name| body.get(name)?.as_array());
    let shown = entries.unwrap().iter().filter(|entry| entry.get("stale_ms").is_none());
    shown.map(|entry| entry["value"].as_str().unwrap_or("none").to_owned()).collect()
}

/// Reads each key at a node, all at once, and lists them, and reads them in one batch.
async fn read_all(cluster: &Cluster, node: usize) -> Vec<Shown> {
    let url = |path: &str| cluster.nodes[node].url(path);
    let gets = (0..KEYS).map(|n| {
        let key = format!("k{n}");
        (format!("GET {key}"), cluster.http.get(url(&format!("/v1/kv/{key}"))))
    });
    let listing = cluster.http.get(url("/v1/kv?prefix=k&values=1&limit=1000"));
    let ops: Vec<Value> =
        (0..KEYS).map(|n| json!({ "op": "get", "key": format!("k{n}") })).collect();
    let batch = cluster.http.post(url("/v1/batch")).json(&json!({ "ops": ops }));
    let more = [("listing".to_owned(), listing), ("batch".to_owned(), batch)];
    let all = gets
        .chain(more)
        .map(|(what, request)| async { Shown::of(what, request.send().await.unwrap()).await });
    futures_util::future::join_all(all).await
}

async fn write_all(cluster: &Cluster, node: usize, value: &str) {
    let writes = (0..KEYS).map(|n| async move {
        let key = format!("k{n}");
        let answer = cluster.put(node, &key, value).await;
        assert!(answer.status().is_success(), "{key}: {}", answer.text().await.unwrap());
    });
    futures_util::future::join_all(writes).await;
}

/// Stops a node while others write, lets it go on, and reads there at once.
async fn is_honest_when_it_wakes(cluster: &mut Cluster, node: usize) {
    let primaries = cluster.primaries().await[node];
    let other = cluster.others(node)[0];
    write_all(cluster, other, "old").await;
    cluster.wait_level(PATIENCE).await;
    let began = Instant::now();
    cluster.nodes[node].pause();
    write_all(cluster, other, "new").await;
    println!("node{} led {primaries} shards; written after {:?}", node + 1, began.elapsed());
    tokio::time::sleep(STILL.saturating_sub(began.elapsed())).await;
    let goes_on = async {
        tokio::time::sleep(UNDER_WAY).await;
        cluster.nodes[node].resume();
        Instant::now()
    };
    let (shown, resumed) = tokio::join!(read_all(cluster, node), goes_on);
    let count = |what: fn(&Shown) -> bool| shown.iter().filter(|shown| what(shown)).count();
    println!(
        "first answers in {:?}: {} new, {} stale, {} refused",
        resumed.elapsed(),
        count(|shown| shown.status == 200 && shown.stale.is_none()),
        count(|shown| shown.stale.is_some()),
        count(|shown| shown.status == 503)
    );
    let lies: Vec<&Shown> = shown.iter().filter(|shown| !shown.is_honest()).collect();
    assert!(lies.is_empty(), "{} of {}: {lies:?}", lies.len(), shown.len());
    cluster.wait_healthy(PATIENCE).await;
    eventually("the node shows the present, and says so", PATIENCE, async || {
        let is_new = |shown: &Shown| shown.stale.is_none() && !shown.values.is_empty();
        let shown = read_all(cluster, node).await;
        match shown.iter().find(|shown| !is_new(shown) || !shown.is_honest()) {
            None => Ok(()),
            Some(shown) => Err(format!("{shown:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stood_still_asks_before_it_answers() {
    let mut cluster = Cluster::start(3, json!({})).await;
    let leader = cluster.leader().await;
    let mark = cluster.nodes[leader].log_mark();
    // Of some keys it is the primary, of the others a follower.
    is_honest_when_it_wakes(&mut cluster, leader).await;
    let says = |line: &str| line.contains("this process stood still for 8.");
    cluster.wait_log(leader, mark, "that it was away", PATIENCE, says).await;
    let follower = cluster.others(cluster.leader().await)[0];
    is_honest_when_it_wakes(&mut cluster, follower).await;
}

/// A cut as long as that is told by `Aegis-Stale`.
const CUT: Duration = Duration::from_secs(4);

/// So long after the network was mended each answer is looked at.
const WATCHED: Duration = Duration::from_secs(8);

/// Reads a key at a node again and again; the first answer that misleads.
async fn watch(cluster: &Cluster, node: usize, key: String) -> Option<Shown> {
    let began = Instant::now();
    while began.elapsed() < WATCHED {
        let url = cluster.nodes[node].url(&format!("/v1/kv/{key}"));
        let answer = cluster.http.get(url).send().await.unwrap();
        let shown = Shown::of(format!("GET {key} after {:?}", began.elapsed()), answer).await;
        if !shown.is_honest() {
            return Some(shown);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

/// Bytes that were sent into a cut come seconds later, when they are sent again: until then nothing
/// is known of what was ordered meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_asks_before_it_answers() {
    let Some(network) = Network::for_test("a node that was cut off", 3) else { return };
    let mut cluster = Cluster::start_in(network, 3, json!({})).await;
    let node = cluster.leader().await;
    let other = cluster.others(node)[0];
    write_all(&cluster, other, "old").await;
    cluster.wait_level(PATIENCE).await;
    let began = Instant::now();
    cluster.network().cut(node, Cut::Both);
    write_all(&cluster, other, "new").await;
    println!("written after {:?}", began.elapsed());
    tokio::time::sleep(CUT.saturating_sub(began.elapsed())).await;
    cluster.network().heal(node);
    let watches = (0..KEYS).map(|n| watch(&cluster, node, format!("k{n}")));
    let lies = futures_util::future::join_all(watches).await;
    let lies: Vec<Shown> = lies.into_iter().flatten().collect();
    assert!(lies.is_empty(), "{} of {KEYS}: {lies:?}", lies.len());
    cluster.wait_healthy(PATIENCE).await;
}
