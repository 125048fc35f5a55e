//! Whole nodes on loopback, with short intervals. What needs exact times or odd networks is tested
//! beside the engine; here it is that sockets, clock, look-ups and settings are wired to it.

use std::collections::BTreeSet;
use std::thread;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time;

use super::*;

const INTERVAL: Duration = Duration::from_millis(40);
const SUSPECT: Duration = Duration::from_millis(400);
const DEAD: Duration = Duration::from_millis(800);

/// Longest wait for something that should come about soon: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    gossip: Gossip,
    addr: String,
    refused: Arc<Mutex<BTreeSet<Reason>>>,
}

async fn config(node: u64, bind: &str, secrets: &[&str]) -> (Config, Arc<Mutex<BTreeSet<Reason>>>) {
    let socket = UdpSocket::bind(bind).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let refused: Arc<Mutex<BTreeSet<Reason>>> = Arc::default();
    let counted = refused.clone();
    let config = Config {
        socket,
        cluster_id: 5,
        secrets: secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect(),
        me: Peer {
            node: NodeId(node),
            name: format!("node{node}"),
            life: 1,
            addr: format!("127.0.0.1:{port}"),
        },
        interval: INTERVAL,
        suspect_timeout: SUSPECT,
        dead_timeout: DEAD,
        on_refusal: Arc::new(move |refusal: Refusal| {
            counted.lock().insert(refusal.reason);
        }),
        resolver: system_resolver(),
    };
    (config, refused)
}

async fn start(node: u64, seeds: &[&str]) -> Node {
    start_with(node, seeds, "127.0.0.1:0", &["secret"]).await
}

async fn start_with(node: u64, seeds: &[&str], bind: &str, secrets: &[&str]) -> Node {
    let (config, refused) = config(node, bind, secrets).await;
    let addr = config.me.addr.clone();
    let gossip = Gossip::start(config);
    gossip.set_seeds(seeds.iter().map(|&seed| seed.to_owned()).collect());
    Node { gossip, addr, refused }
}

impl Node {
    /// Waits until this node has seen another in that state.
    #[track_caller]
    fn sees(&self, node: u64, state: State) -> impl Future<Output = ()> {
        let mut members = self.gossip.members();
        let seen = move |members: &Members| {
            members.get(&NodeId(node)).is_some_and(|seen| seen.state == state)
        };
        let caller = std::panic::Location::caller();
        async move {
            let waited = time::timeout(PATIENCE, members.wait_for(seen)).await;
            let waited = waited.is_ok_and(|members| members.is_ok());
            assert!(waited, "{caller}: node{node} is not {state:?}: {:?}", members.borrow());
        }
    }

    async fn refuses(&self, reason: Reason) {
        let until = time::Instant::now() + PATIENCE;
        while !self.refused.lock().contains(&reason) {
            assert!(time::Instant::now() < until, "{reason:?} not in {:?}", self.refused.lock());
            time::sleep(INTERVAL / 4).await;
        }
    }
}

#[tokio::test]
async fn three_nodes_meet_by_one_seed() {
    let one = start(1, &[]).await;
    let two = start(2, &[&one.addr]).await;
    let three = start(3, &[&one.addr, "127.0.0.1:1"]).await;
    for (node, others) in [(&one, [2, 3]), (&two, [1, 3]), (&three, [1, 2])] {
        for other in others {
            node.sees(other, State::Alive).await;
        }
    }
    let seen = two.gossip.members().borrow()[&NodeId(3)].clone();
    assert_eq!((seen.peer.name.as_str(), seen.peer.life), ("node3", 1));
    assert_eq!(seen.addr, three.addr.parse().ok());
}

#[tokio::test]
async fn a_node_that_stops_is_suspected_then_dead_and_alive_when_it_is_back() {
    let one = start(1, &[]).await;
    let two = start(2, &[&one.addr]).await;
    one.sees(2, State::Alive).await;
    two.sees(1, State::Alive).await;
    let stopped = Instant::now();
    two.gossip.stop().await;
    one.sees(2, State::Suspect).await;
    assert!(stopped.elapsed() > SUSPECT - 2 * INTERVAL);
    one.sees(2, State::Dead).await;
    assert!(stopped.elapsed() > DEAD - 2 * INTERVAL);
    let back = start_with(2, &[], &two.addr, &["secret"]).await;
    one.sees(2, State::Alive).await;
    back.sees(1, State::Alive).await;
}

#[tokio::test]
async fn a_node_that_leaves_is_seen_to_have_left() {
    let one = start(1, &[]).await;
    let two = start(2, &[&one.addr]).await;
    let three = start(3, &[&one.addr]).await;
    for (node, other) in [(&one, 3), (&two, 3), (&three, 2), (&three, 1)] {
        node.sees(other, State::Alive).await;
    }
    let began = Instant::now();
    three.gossip.leave().await;
    one.sees(3, State::Left).await;
    two.sees(3, State::Left).await;
    assert!(began.elapsed() < PATIENCE / 4);
    let mut members = three.gossip.members();
    members.mark_unchanged();
    assert!(members.changed().await.is_err(), "it goes on");
}

#[tokio::test]
async fn another_secret_keeps_a_node_out_until_it_is_given_the_right_one() {
    let one = start(1, &[]).await;
    let two = start_with(2, &[&one.addr], "127.0.0.1:0", &["another"]).await;
    one.refuses(Reason::WrongSecret).await;
    assert!(one.gossip.members().borrow().is_empty());
    two.gossip.set_secrets(vec![b"secret".to_vec()]);
    one.sees(2, State::Alive).await;
    one.gossip.set_secrets(vec![b"next".to_vec(), b"secret".to_vec()]);
    two.sees(1, State::Dead).await;
    two.refuses(Reason::WrongSecret).await;
    two.gossip.set_secrets(vec![b"secret".to_vec(), b"next".to_vec()]);
    two.sees(1, State::Alive).await;
    one.sees(2, State::Alive).await;
}

#[tokio::test]
async fn a_seed_whose_name_is_known_only_later_is_met_then() {
    let one = start(1, &[]).await;
    let (mut config, _) = config(2, "127.0.0.1:0", &["secret"]).await;
    let known: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let asked = Arc::new(tokio::sync::Notify::new());
    let (answer, ask) = (known.clone(), asked.clone());
    config.resolver = Arc::new(move |name| {
        assert_eq!(name, "seed.test:7701");
        ask.notify_one();
        let answer = *answer.lock();
        let found = answer.map(|address| vec![address]);
        Box::pin(std::future::ready(found.ok_or_else(|| io::ErrorKind::NotFound.into())))
    });
    let two = Gossip::start(config);
    two.set_seeds(vec!["seed.test:7701".to_owned()]);
    for _ in 0..3 {
        time::timeout(PATIENCE, asked.notified()).await.expect("it asks again and again");
    }
    *known.lock() = one.addr.parse().ok();
    one.sees(2, State::Alive).await;
}

#[tokio::test]
async fn a_flood_of_garbage_does_not_part_two_nodes() {
    let one = start(1, &[]).await;
    let two = start(2, &[&one.addr]).await;
    one.sees(2, State::Alive).await;
    two.sees(1, State::Alive).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let until = Instant::now() + DEAD + DEAD / 2;
    let mut sent = 0_u64;
    while Instant::now() < until {
        for _ in 0..100 {
            let _ = socket.send_to(&sent.to_be_bytes(), &one.addr).await;
            sent += 1;
        }
        tokio::task::yield_now().await;
    }
    assert!(one.refused.lock().contains(&Reason::Garbage));
    one.sees(2, State::Alive).await;
    two.sees(1, State::Alive).await;
}

#[tokio::test]
async fn a_node_whose_process_stood_still_is_back_when_it_goes_on() {
    let one = start(1, &[]).await;
    let (seed, (go, freeze)) = (one.addr.clone(), oneshot::channel());
    // A runtime of its own, so that it can be held up as a whole.
    let frozen = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let two = start(2, &[&seed]).await;
            two.sees(1, State::Alive).await;
            freeze.await.unwrap();
            let mut members = two.gossip.members();
            members.mark_unchanged();
            thread::sleep(DEAD * 2);
            time::sleep(SUSPECT / 2).await;
            let state = members.borrow()[&NodeId(1)].state;
            two.sees(1, State::Alive).await;
            time::sleep(DEAD).await;
            state
        })
    });
    one.sees(2, State::Alive).await;
    go.send(()).unwrap();
    one.sees(2, State::Dead).await;
    one.sees(2, State::Alive).await;
    let state = tokio::task::spawn_blocking(|| frozen.join().unwrap()).await.unwrap();
    assert_eq!(state, State::Alive, "it blames others for its own standstill");
}

#[tokio::test]
async fn timeouts_can_be_changed_while_it_runs() {
    let one = start(1, &[]).await;
    let hour = Duration::from_secs(3_600);
    one.gossip.set_timeouts(hour, 2 * hour);
    let two = start(2, &[&one.addr]).await;
    one.sees(2, State::Alive).await;
    two.gossip.stop().await;
    time::sleep(DEAD * 2).await;
    assert_eq!(one.gossip.members().borrow()[&NodeId(2)].state, State::Alive);
    one.gossip.set_timeouts(SUSPECT, DEAD);
    one.sees(2, State::Dead).await;
}

#[tokio::test]
async fn dropping_it_ends_it_and_frees_the_port() {
    let one = start(1, &[]).await;
    let mut members = one.gossip.members();
    drop(one.gossip);
    time::timeout(PATIENCE, async { while members.changed().await.is_ok() {} }).await.unwrap();
    UdpSocket::bind(&one.addr).await.unwrap();
}

#[tokio::test]
async fn a_socket_for_ipv6_and_ipv4_reaches_nodes_of_both() {
    if UdpSocket::bind("[::]:0").await.is_err() {
        println!("SKIP: this machine has no IPv6");
        return;
    }
    let one = start_with(1, &[], "[::]:0", &["secret"]).await;
    let two = start(2, &[&one.addr]).await;
    let (mut config, _) = config(3, "[::1]:0", &["secret"]).await;
    config.me.addr = config.socket.local_addr().unwrap().to_string();
    let three = Gossip::start(config);
    three.set_seeds(vec![one.addr.replace("127.0.0.1", "[::1]")]);
    one.sees(2, State::Alive).await;
    one.sees(3, State::Alive).await;
    two.sees(1, State::Alive).await;
}
