//! A node goes away under load, or is silent, or comes back: nobody's operation fails beyond those
//! in flight on it, nothing acknowledged is lost, and writes go on in time.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Cluster, Load, Network, PATIENCE, Record};

/// Writes go on so soon after a process died.
const KILLED_BUDGET: Duration = Duration::from_secs(1);

/// Writes go on so soon after a host fell silent.
const SILENT_BUDGET: Duration = Duration::from_secs(3);

/// Load before anything happens, for the measure of what is normal here.
const BASELINE: Duration = Duration::from_secs(4);

/// How long it is watched what a disturbance does.
const WATCHED: Duration = Duration::from_secs(6);

/// Latency is normal again within this time of a disturbance,
const CALM_WITHIN: Duration = Duration::from_secs(5);

/// at this many times what it was before,
const CALM_FACTOR: u32 = 2;

/// or at this much more: on a machine that does other things too, a few milliseconds mean nothing.
const CALM_SLACK: Duration = Duration::from_millis(40);

/// What a planned hand-over may add to the latency.
const HAND_OVER_P99: Duration = Duration::from_millis(50);

/// How often a scenario is tried that was late.
const ATTEMPTS: u32 = 3;

/// Longest wait for a node that stops in order.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Every node, the leader of the topology first.
async fn leader_first(cluster: &Cluster) -> Vec<usize> {
    let leader = cluster.leader().await;
    (0..cluster.nodes.len()).map(|step| (leader + step) % cluster.nodes.len()).collect()
}

async fn tell(cluster: &Cluster, what: &str, node: usize) {
    let (leader, primaries) = (cluster.leader().await, cluster.primaries().await);
    let leads = if leader == node { "the leader" } else { "not the leader" };
    println!("{what} node{}, {leads}, primary of {} shards", node + 1, primaries[node]);
}

/// Runs a scenario until it is in time, a few times at most. What must never happen fails it at
/// once; what is only late may have been kept waiting by other work on the machine.
async fn in_time<F: Future<Output = Result<(), String>>>(scenario: impl Fn() -> F) {
    for attempt in 1..=ATTEMPTS {
        match scenario().await {
            Ok(()) => return,
            Err(late) => println!("attempt {attempt} of {ATTEMPTS} was late: {late}"),
        }
    }
    panic!("late {ATTEMPTS} times over");
}

/// Prints what the load saw of each disturbance; says if something took too long.
fn check_in_time(record: &Record, budget: Duration) -> Result<(), String> {
    let begin = Duration::from_secs(1);
    let (noise, _) = record.longest_gap(begin, BASELINE);
    let normal = record.p99(begin, BASELINE);
    let calm_limit = (normal * CALM_FACTOR).max(normal + CALM_SLACK);
    println!("normal: p99 {normal:?}, longest gap {noise:?}");
    let mut late = Vec::new();
    for disturbance in &record.disturbances {
        let (from, to) = (disturbance.at, disturbance.at + WATCHED);
        let (gap, shard) = record.longest_gap(from, to);
        let (calm, windows) = record.calm_after(from, to, calm_limit);
        println!(
            "node{}: no write to shard {shard} for {gap:?}; calm after {calm:?}; p99 by seconds \
             {windows:?}; the machine stalled for {:?}",
            disturbance.node + 1,
            record.stalled(from, to)
        );
        // What the machine itself may take away from a writer is not the cluster's.
        if gap > budget + noise {
            late.push(format!("node{}: shard {shard} for {gap:?}", disturbance.node + 1));
        }
        if calm > CALM_WITHIN {
            late.push(format!("node{}: slow for {calm:?}", disturbance.node + 1));
        }
    }
    if late.is_empty() {
        Ok(())
    } else {
        Err(format!("beyond {budget:?}, or {CALM_WITHIN:?} for p99: {late:?}"))
    }
}

/// Under load, takes each node away with `begin` and brings it back with `end`, the leader of the
/// topology first; nothing may be lost, and no more fail than was in flight.
async fn disturb_each(
    network: Option<Network>,
    budget: Duration,
    what: &str,
    begin: impl Fn(&mut Cluster, usize),
    end: impl AsyncFn(&mut Cluster, usize),
) -> Result<(), String> {
    let mut cluster = Cluster::start_in(network, 3, json!({})).await;
    let mut load = Load::start(&cluster).await;
    tokio::time::sleep(BASELINE).await;
    for node in leader_first(&cluster).await {
        tell(&cluster, what, node).await;
        load.disturb(node, || begin(&mut cluster, node));
        tokio::time::sleep(WATCHED).await;
        end(&mut cluster, node).await;
        cluster.wait_healthy(PATIENCE).await;
        load.is_over(node);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let record = load.stop().await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
    record.assert_only_in_flight_failed();
    check_in_time(&record, budget)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_costs_only_what_was_in_flight_on_it() {
    let kill = |cluster: &mut Cluster, node: usize| cluster.nodes[node].kill();
    let restart = async |cluster: &mut Cluster, node: usize| cluster.restart(node).await;
    in_time(|| disturb_each(None, KILLED_BUDGET, "killing", kill, restart)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_costs_only_what_was_in_flight_on_it() {
    let pause = |cluster: &mut Cluster, node: usize| cluster.nodes[node].pause();
    let resume = async |cluster: &mut Cluster, node: usize| {
        cluster.nodes[node].resume();
        cluster.wait_ready().await;
    };
    in_time(|| disturb_each(None, SILENT_BUDGET, "SIGSTOP to", pause, resume)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_cable_is_pulled_costs_only_what_was_in_flight_on_it() {
    let unplug = |cluster: &mut Cluster, node: usize| cluster.network().unplug(node);
    let plug = async |cluster: &mut Cluster, node: usize| {
        cluster.network().plug(node);
        cluster.wait_ready().await;
    };
    in_time(async || {
        let Some(network) = Network::for_test("a host whose cable is pulled", 3) else {
            return Ok(());
        };
        disturb_each(Some(network), SILENT_BUDGET, "unplugging", unplug, plug).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_fails_nobody() {
    in_time(stop_each).await;
}

async fn stop_each() -> Result<(), String> {
    let mut cluster = Cluster::start(3, json!({})).await;
    let mut load = Load::start(&cluster).await;
    tokio::time::sleep(BASELINE).await;
    for node in 0..3 {
        tell(&cluster, "stopping", node).await;
        load.disturbance_begins(node);
        cluster.nodes[node].stop(STOP_WITHIN).await;
        load.clients_are_told(node);
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.restart(node).await;
        cluster.wait_healthy(PATIENCE).await;
        load.is_over(node);
        tokio::time::sleep(WATCHED).await;
    }
    let record = load.stop().await;
    cluster.wait_equal(PATIENCE).await;
    record.assert_nothing_lost(&cluster).await;
    record.assert_only_in_flight_failed();
    check_in_time(&record, KILLED_BUDGET)?;
    // From the signals to the ends of the processes: some hundred operations each, too few for a
    // p99 of its own.
    let stops: Vec<_> = record.disturbances.iter().map(|stop| (stop.at, stop.told)).collect();
    for (at, told) in &stops {
        println!("stopped in {:?}, p99 meanwhile {:?}", *told - *at, record.p99(*at, *told));
    }
    let (normal, p99) = (record.p99(Duration::from_secs(1), BASELINE), record.p99_of(&stops));
    let stalled: Duration = stops.iter().map(|(at, told)| record.stalled(*at, *told)).sum();
    println!(
        "p99 {p99:?} while nodes handed over, normally {normal:?}; the machine stalled for {stalled:?}"
    );
    if p99 <= HAND_OVER_P99 + normal + stalled {
        Ok(())
    } else {
        Err(format!("p99 {p99:?} while nodes handed over"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_increment_that_was_on_its_way_to_a_silent_primary_is_carried_to_the_next_one_once() {
    let mut cluster = Cluster::start(3, json!({})).await;
    let keys = cluster.keys_of_shards(1).await;
    for round in 1..=3 {
        let (shard, key) = keys.iter().nth(round).map(|(shard, keys)| (*shard, &keys[0])).unwrap();
        let primary = cluster.primary_of(shard).await;
        let coordinator = cluster.others(primary)[0];
        cluster.nodes[primary].pause();
        let asked = Instant::now();
        let url = cluster.nodes[coordinator].url(&format!("/v1/kv/{key}?op=incr"));
        let answer = cluster.http.post(url).send().await.unwrap();
        let took = asked.elapsed();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        assert_eq!(answer.text().await.unwrap(), "1");
        println!("answered after {took:?}");
        assert!(took <= SILENT_BUDGET, "{took:?}");
        cluster.nodes[primary].resume();
        cluster.wait_healthy(PATIENCE).await;
        cluster.wait_equal(PATIENCE).await;
        for node in 0..3 {
            assert_eq!(cluster.get(node, key).await.as_deref(), Some("1"), "{key}, shard {shard}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_catches_up_with_what_it_missed() {
    let mut cluster = Cluster::start(3, json!({})).await;
    for n in 0..300 {
        assert_eq!(cluster.put(n % 3, &format!("before{n}"), "v").await.status(), 201);
    }
    cluster.nodes[1].kill();
    for n in 0..300 {
        let answer = cluster.put(if n % 2 == 0 { 0 } else { 2 }, &format!("while{n}"), "v").await;
        assert_eq!(answer.status(), 201);
        let url = cluster.nodes[0].url(&format!("/v1/kv/before{n}"));
        assert_eq!(cluster.http.delete(url).send().await.unwrap().status(), 204);
    }
    cluster.restart(1).await;
    cluster.wait_healthy(PATIENCE).await;
    cluster.wait_equal(PATIENCE).await;
    assert_eq!(cluster.get(1, "while299").await.as_deref(), Some("v"));
    assert_eq!(cluster.get(1, "before0").await, None, "what was deleted stays so");
    assert_eq!(cluster.dump(1).await.len(), 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_were_killed_everything_acknowledged_is_there_again() {
    for wal_mode in ["async", "sync"] {
        let mut cluster = Cluster::start(3, json!({ "wal_mode": wal_mode })).await;
        let load = Load::start(&cluster).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let record = load.stop().await;
        cluster.nodes.iter_mut().for_each(crate::support::Node::kill);
        cluster.nodes.iter_mut().for_each(crate::support::Node::spawn);
        let began = Instant::now();
        cluster.wait_ready().await;
        cluster.wait_healthy(PATIENCE).await;
        println!("{wal_mode}: healthy again {:?} after the start", began.elapsed());
        cluster.wait_equal(PATIENCE).await;
        record.assert_nothing_lost(&cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lone_node_acknowledged_outlives_its_kill() {
    let mut cluster = Cluster::start(1, json!({ "addrs": [] })).await;
    let load = Load::start(&cluster).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let record = load.stop().await;
    record.assert_only_in_flight_failed();
    cluster.nodes[0].kill();
    cluster.restart(0).await;
    record.assert_nothing_lost(&cluster).await;
}
