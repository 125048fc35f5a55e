//! Transports on loopback, talking to each other, to imposters and through proxies.

mod life;
mod refusals;
mod traffic;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::*;

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(20);

const CLUSTER: u128 = 0xc1;

/// Answers with what it was sent.
const ECHO: u8 = 1;
/// Answers after 300 ms.
const LATE: u8 = 2;
/// Never answers.
const NEVER: u8 = 3;
/// Answers how many one-way frames have come so far.
const COUNT: u8 = 4;
/// Answers the sender's name and number.
const WHO: u8 = 5;
/// A handler that fails.
const PANIC: u8 = 6;

/// Keeps what comes in.
#[derive(Default)]
struct Inbox {
    frames: Mutex<Vec<(String, u8, Bytes)>>,
    arrived: Notify,
}

impl Handler for Inbox {
    fn frames(&self, from: &Identity, frames: &mut dyn Iterator<Item = (u8, Bytes)>) {
        let mut kept = self.frames.lock();
        kept.extend(frames.map(|(kind, body)| (from.name.clone(), kind, body)));
        drop(kept);
        self.arrived.notify_one();
    }

    async fn request(&self, from: &Identity, kind: u8, body: Bytes) -> Bytes {
        match kind {
            ECHO => body,
            LATE => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                body
            }
            NEVER => std::future::pending().await,
            COUNT => Bytes::from(self.frames.lock().len().to_string()),
            WHO => Bytes::from(format!("{} {:?}", from.name, from.node.map(|node| node.0))),
            _ => panic!("as the test wants it"),
        }
    }
}

impl Inbox {
    /// Waits until there are as many frames.
    async fn frames(&self, count: usize) -> Vec<(String, u8, Bytes)> {
        let enough = async {
            while self.frames.lock().len() < count {
                self.arrived.notified().await;
            }
        };
        timeout(LONG, enough).await.expect("the frames arrive");
        self.frames.lock().clone()
    }
}

/// A node with a transport.
struct Node {
    transport: Transport,
    inbox: Arc<Inbox>,
}

/// What a node is made with.
struct Spec {
    identity: Identity,
    secrets: Vec<Vec<u8>>,
    tls: Option<Tls>,
    timing: Timing,
    listen: SocketAddr,
}

/// A member `node<n>` of the usual cluster, which pings often.
fn member(n: u64) -> Spec {
    let timing = Timing {
        ping: Duration::from_millis(20),
        silent_after: Duration::from_secs(2),
        close_after: Duration::from_secs(4),
        redial_min: Duration::from_millis(10),
        redial_max: Duration::from_millis(100),
        ..Timing::default()
    };
    let identity = Identity {
        cluster_id: Some(CLUSTER),
        node: Some(NodeId(n)),
        name: format!("node{n}"),
        life: 100 + n,
        version: "0.1.0".to_owned(),
        num_shards: 16,
        peer_addr: String::new(),
    };
    Spec {
        identity,
        secrets: vec![b"secret".to_vec()],
        tls: None,
        timing,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
    }
}

/// A member that soon takes quiet for silence; a machine that is busy elsewhere may look like it.
fn impatient(n: u64) -> Spec {
    let mut spec = member(n);
    spec.timing.silent_after = Duration::from_millis(200);
    spec.timing.close_after = Duration::from_secs(1);
    spec
}

fn newborn(name: &str) -> Spec {
    let Spec { identity, secrets, tls, timing, listen } = member(99);
    let name = name.to_owned();
    let identity = Identity { cluster_id: None, node: None, name, ..identity };
    Spec { identity, secrets, tls, timing, listen }
}

impl Spec {
    fn secrets(mut self, secrets: &[&str]) -> Self {
        self.secrets = secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect();
        self
    }

    async fn start(self) -> Node {
        let Self { mut identity, secrets, tls, timing, listen } = self;
        let listen = TcpListener::bind(listen).await.unwrap();
        identity.peer_addr = listen.local_addr().unwrap().to_string();
        let inbox = Arc::<Inbox>::default();
        let config = Config { listen, identity, secrets, tls, timing };
        let transport = Transport::start(config, Arc::clone(&inbox)).unwrap();
        Node { transport, inbox }
    }
}

impl Node {
    fn addr(&self) -> String {
        self.transport.local_addr().to_string()
    }

    /// Keeps connections to these alone.
    fn dial(&self, peers: &[(u64, &str)]) {
        let peer = |(n, addr): &(u64, &str)| {
            (NodeId(*n), Peer { name: format!("node{n}"), addr: (*addr).to_owned() })
        };
        self.transport.set_peers(peers.iter().map(peer).collect());
    }

    fn link(&self, n: u64) -> Option<Link> {
        self.transport.links().borrow().get(&NodeId(n)).cloned()
    }

    /// Waits until the link to node `n` is as wanted.
    async fn until(&self, n: u64, wanted: impl Fn(&Link) -> bool) -> Link {
        let mut links = self.transport.links();
        let found = links.wait_for(|links| links.get(&NodeId(n)).is_some_and(&wanted));
        let found = timeout(LONG, found).await;
        match found {
            Ok(links) => links.expect("the transport lives")[&NodeId(n)].clone(),
            Err(_elapsed) => panic!("the link stays {:?}", self.link(n)),
        }
    }

    async fn until_up(&self, n: u64) -> Link {
        self.until(n, Link::is_up).await
    }

    async fn until_down(&self, n: u64) -> Down {
        match self
            .until(n, |link| matches!(link.state, State::Down { why, .. } if why != Down::Untried))
            .await
            .state
        {
            State::Down { why, .. } => why,
            State::Up => unreachable!("it was waited for"),
        }
    }

    async fn call(&self, n: u64, kind: u8, body: &[u8]) -> Result<Bytes, CallError> {
        let write = |out: &mut Vec<u8>| out.extend_from_slice(body);
        self.transport.call(NodeId(n), kind, write, LONG).await
    }

    async fn knock(
        &self,
        addr: &str,
        kind: u8,
        body: &[u8],
    ) -> Result<(Identity, Bytes), KnockError> {
        self.transport.call_addr(addr, kind, body, LONG).await
    }

    /// Sends as soon as that is taken.
    async fn send_soon(&self, to: u64, kind: u8, body: &[u8]) {
        let sent = async {
            while !self.send(to, kind, body) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, sent).await.unwrap();
    }

    fn send(&self, n: u64, kind: u8, body: &[u8]) -> bool {
        self.transport.send(NodeId(n), kind, |out| out.extend_from_slice(body))
    }

    fn refused(&self, refusal: Refusal) -> u64 {
        self.transport.refusals().count(refusal)
    }

    /// Waits until a refusal has been counted.
    async fn until_refused(&self, refusal: Refusal) {
        let counted = async {
            while self.refused(refusal) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(LONG, counted).await;
        assert!(waited.is_ok(), "{refusal:?} is not counted: {:?}", self.counts());
    }

    fn counts(&self) -> BTreeMap<Refusal, u64> {
        let count = |refusal| (refusal, self.refused(refusal));
        Refusal::ALL.into_iter().map(count).filter(|(_, count)| *count > 0).collect()
    }
}

/// Two nodes, 1 and 2, the first connected to the second.
async fn pair(one: Spec, two: Spec) -> (Node, Node) {
    let (one, two) = (one.start().await, two.start().await);
    one.dial(&[(2, &two.addr())]);
    one.until_up(2).await;
    (one, two)
}

/// Stands between a dialler and a node: keeps what passes, and can stop forwarding or spoil it.
struct Proxy {
    addr: String,
    open: watch::Sender<bool>,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    passed: Mutex<Vec<u8>>,
    spoils: AtomicBool,
}

impl Proxy {
    async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let open = watch::Sender::new(true);
        let gate = open.clone();
        let wire = Arc::<Wire>::default();
        let tapped = Arc::clone(&wire);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&target).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                for (from, to) in [(near_read, far_write), (far_read, near_write)] {
                    let (open, wire) = (gate.subscribe(), Arc::clone(&tapped));
                    tokio::spawn(Self::forward(from, to, open, wire));
                }
            }
        });
        Self { addr, open, wire }
    }

    async fn forward(
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        mut open: watch::Receiver<bool>,
        wire: Arc<Wire>,
    ) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            wire.passed.lock().extend_from_slice(&bytes[..count]);
            if wire.spoils.load(Ordering::Relaxed) {
                bytes[count - 1] ^= 1;
            }
            if open.wait_for(|open| *open).await.is_err()
                || to.write_all(&bytes[..count]).await.is_err()
            {
                return;
            }
        }
    }
}
