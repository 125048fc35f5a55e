//! From an open data directory to a member of a cluster that serves.
//!
//! The order: who this node is (a new directory is born into a cluster first), its data, its
//! connections, consensus, then the rest. A new member's number is written down after consensus has
//! its file, so that the file is never missing for a member.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::birth::{Birth, Word};
use crate::config::{Config, HostPort};
use crate::consensus::{self, Consensus};
use crate::controller;
use crate::disk::Os;
use crate::disk::home::Home;
use crate::gossip::{self, Gossip};
use crate::peer::{self, Identity, Timing, Transport};
use crate::replication::{Replication, Shelf};
use crate::topology::{Announcement, Cluster, Command, NodeId};

use super::cluster::{self, Parts, Settings};
use super::data::{self, Data};
use super::newborn::{self, Born, Nursery};
use super::node::Node;
use super::peers::{PeerCarrier, Peers, consensus_call};
use super::ways::Ways;

/// Shards whose copying may be under way to one node, in rounds of some shards each.
const MOVES_PER_NODE_MAX: usize = 2;

/// Raft's log and vote, in the data directory.
pub(super) const TOPOLOGY_FILE: &str = "topology.redb";

/// An address to which nothing is ever sent: it is asked which of this machine's addresses leads
/// outside (RFC 5737).
const ELSEWHERE: &str = "192.0.2.1:9";

/// The node's port, bound for both protocols.
pub(super) struct PeerPort {
    listener: TcpListener,
    datagrams: tokio::net::UdpSocket,
    addr: SocketAddr,
}

impl PeerPort {
    pub(super) async fn bind(addr: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(addr)
            .await
            .with_context(|| format!("cannot listen on {addr}, TCP (gossip_bind_addr)"))?;
        let addr = listener.local_addr().context("cannot tell gossip_bind_addr")?;
        let datagrams = tokio::net::UdpSocket::bind(addr)
            .await
            .with_context(|| format!("cannot listen on {addr}, UDP (gossip_bind_addr)"))?;
        Ok(Self { listener, datagrams, addr })
    }
}

/// Brings the node to where it serves.
pub(super) async fn bring_up(
    node: Arc<Node>,
    port: PeerPort,
) -> anyhow::Result<(Arc<Data>, Arc<cluster::Cluster>)> {
    let loaded = node.config();
    let config = &loaded.config;
    let home = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || data::open_home(&config)).await??
    };
    let mut about = announcement(config, &home, port.addr, node.client_addr.port());
    let peers = Peers::new(node.coordinator.clone());
    let secrets = secrets(config);
    let transport = Transport::start(
        peer::Config {
            listen: port.listener,
            identity: identity(&about, None, home.identity().num_shards),
            secrets: secrets.clone(),
            tls: super::load_peer_tls(config, None)?,
            timing: Timing::default(),
        },
        peers.clone(),
    )
    .context("cannot serve other nodes")?;
    let transport = Arc::new(transport);
    let (dead, dead_seen) = watch::channel(Arc::default());
    let ways = Ways::new(transport.clone(), node.metrics.clone());
    let part = Part {
        config,
        transport: &transport,
        ways: &ways,
        peers: &peers,
        dead: dead_seen,
        node: &node,
    };
    let (home, me, early) = part.settle_membership(home, &about).await?;

    let data = {
        let node = node.clone();
        let load = move || {
            data::load_home(&node.config().config, home, node.metrics.clone(), &node.loading)
        };
        Arc::new(tokio::task::spawn_blocking(load).await.context("loading the data panicked")??)
    };
    let life = data.replica.me().life;
    about.life = life;
    let cluster = Cluster {
        id: data.cluster_id,
        hash_seed: data.hash_seed,
        num_shards: data.replica.placement().num_shards(),
    };
    transport.set_identity(identity(&about, Some((cluster.id, me)), cluster.num_shards));
    let consensus = match early {
        Some(consensus) => consensus,
        None => part.open_consensus(me, false).await?,
    };
    let carrier = Arc::new(PeerCarrier(ways.clone()));
    let shelf =
        Shelf { disk: Arc::new(Os), dir: config.data_dir.clone(), cluster_id: data.cluster_id };
    let replication = Replication::new(data.replica.clone(), carrier, shelf, node.metrics.clone());
    let gossip = start_gossip(config, port.datagrams, cluster.id, me, &about, &node);
    let cluster = cluster::Cluster::start(Parts {
        me,
        about,
        transport,
        ways,
        gossip,
        consensus,
        replication: replication.clone(),
        metrics: node.metrics.clone(),
        settings: settings(config),
        dead,
    });
    // Only this start sets it.
    let _ = peers.cluster.set(Arc::downgrade(&cluster));
    node.coordinator.serve(replication, cluster.topology(), getrandom::u64()?);
    Ok((data, cluster))
}

/// What finding one's place takes.
struct Part<'a> {
    config: &'a Config,
    transport: &'a Arc<Transport>,
    ways: &'a Arc<Ways>,
    peers: &'a Arc<Peers>,
    dead: watch::Receiver<Arc<std::collections::BTreeSet<NodeId>>>,
    node: &'a Arc<Node>,
}

impl Part<'_> {
    /// Finds out which member this node is; a node that is none yet becomes one.
    async fn settle_membership(
        &self,
        mut home: Home,
        about: &Announcement,
    ) -> anyhow::Result<(Home, NodeId, Option<Consensus>)> {
        if let Some(node) = home.identity().node {
            return Ok((home, NodeId(node), None));
        }
        let founder = NodeId(1);
        let born = if home.is_new() {
            self.be_born(about).await?
        } else {
            // A directory from before there were clusters: it is a cluster of one.
            Born::Founder
        };
        let (me, cluster, consensus) = match born {
            Born::Founder => {
                let consensus = self.open_consensus(founder, true).await?;
                let identity = home.identity();
                let cluster = Cluster {
                    id: identity.cluster_id,
                    hash_seed: identity.hash_seed,
                    num_shards: identity.num_shards,
                };
                let about = about.clone();
                consensus.found(Command::Found { cluster, founder, about, epoch: 1 }).await?;
                let founded = consensus.topology().borrow().cluster;
                (founder, founded.unwrap_or(cluster), consensus)
            }
            Born::Joined { node, cluster } => {
                // What an attempt before this one left is another number's.
                remove_file(&self.topology_file())?;
                (node, cluster, self.open_consensus(node, true).await?)
            }
        };
        home.belong(cluster.id, cluster.hash_seed, cluster.num_shards, me.0);
        Ok((home, me, Some(consensus)))
    }

    async fn be_born(&self, about: &Announcement) -> anyhow::Result<Born> {
        let config = self.config;
        let disk = Arc::new(Os);
        let word = Word::load(&*disk, &config.data_dir, &config.node_id)?;
        let birth = Birth::new(
            crate::birth::Config {
                name: config.node_id.clone(),
                instance: newborn::instance()?,
                peer_addr: about.peer_addr.clone(),
                addrs: config.addrs.iter().map(ToString::to_string).collect(),
                bootstrap: self.node.sources.bootstrap,
                interval: config.gossip_interval,
            },
            word,
            std::time::Instant::now(),
        )?;
        let nursery = Nursery::new(birth, disk, config.data_dir.clone());
        let _ = self.peers.nursery.set(nursery.clone());
        let _ = self.node.nursery.set(nursery.clone());
        let born = nursery.run(self.transport, about, config.gossip_interval).await?;
        nursery.forget_word();
        Ok(born)
    }

    fn topology_file(&self) -> PathBuf {
        self.config.data_dir.join(TOPOLOGY_FILE)
    }

    async fn open_consensus(&self, me: NodeId, may_be_new: bool) -> anyhow::Result<Consensus> {
        let config = consensus::Config { may_be_new, ..consensus::Config::new(self.dead.clone()) };
        let call = consensus_call(self.ways);
        let path = self.topology_file();
        Ok(Consensus::open(&path, me, &self.config.node_id, call, config).await?)
    }
}

fn start_gossip(
    config: &Config,
    socket: tokio::net::UdpSocket,
    cluster_id: u128,
    me: NodeId,
    about: &Announcement,
    node: &Arc<Node>,
) -> Gossip {
    let metrics = node.metrics.clone();
    Gossip::start(gossip::Config {
        socket,
        cluster_id,
        secrets: secrets(config),
        me: gossip::Peer {
            node: me,
            name: about.name.clone(),
            life: about.life,
            addr: about.peer_addr.clone(),
        },
        interval: config.gossip_interval,
        suspect_timeout: config.suspect_timeout,
        dead_timeout: config.dead_timeout,
        on_refusal: Arc::new(move |refusal| metrics.refused(refusal.reason.label(), 1)),
        resolver: gossip::system_resolver(),
    })
}

/// What this node says of itself.
fn announcement(config: &Config, home: &Home, bound: SocketAddr, client_port: u16) -> Announcement {
    let first_seed = config.addrs.first();
    let advertise = |told: &Option<HostPort>, bound: &HostPort, port: u16| match told {
        Some(told) => told.to_string(),
        None if bound.is_unspecified() => SocketAddr::new(outward(first_seed), port).to_string(),
        None => match bound.host().parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, port).to_string(),
            Err(_) => format!("{}:{port}", bound.host()),
        },
    };
    let peer_addr =
        advertise(&config.gossip_advertise_addr, &config.gossip_bind_addr, bound.port());
    Announcement {
        name: config.node_id.clone(),
        life: home.identity().incarnation,
        peer_addr,
        client_addr: advertise(&config.client_advertise_addr, &config.bind_addr, client_port),
        zone: config.zone.clone(),
        region: config.region.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        memory_bytes: config.memory_bytes_max(),
    }
}

/// The address that the route to the first seed, or elsewhere, leaves from.
fn outward(seed: Option<&HostPort>) -> IpAddr {
    let target = seed.map_or_else(|| ELSEWHERE.to_owned(), ToString::to_string);
    let found = UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| socket.connect(&target).and_then(|()| socket.local_addr()));
    match found {
        Ok(addr) => addr.ip(),
        Err(error) => {
            tracing::warn!(
                %error,
                target,
                "no route there, so 127.0.0.1 is advertised; set gossip_advertise_addr and \
                 client_advertise_addr to what others reach this node at"
            );
            IpAddr::from([127, 0, 0, 1])
        }
    }
}

fn identity(about: &Announcement, member: Option<(u128, NodeId)>, num_shards: u16) -> Identity {
    Identity {
        cluster_id: member.map(|(cluster_id, _)| cluster_id),
        node: member.map(|(_, node)| node),
        name: about.name.clone(),
        life: about.life,
        version: about.version.clone(),
        num_shards,
        peer_addr: about.peer_addr.clone(),
    }
}

/// The cluster's secrets, as bytes.
pub(super) fn secrets(config: &Config) -> Vec<Vec<u8>> {
    config.gossip_secret.iter().map(|secret| secret.expose().as_bytes().to_vec()).collect()
}

/// What the cluster's parts go by.
pub(super) fn settings(config: &Config) -> Settings {
    use crate::config::UncleanRecovery;
    Settings {
        controller: controller::Settings {
            replication_factor: config.replication_factor as usize,
            rebalance_delay: config.rebalance_delay,
            unclean_recovery: match config.unclean_recovery {
                UncleanRecovery::Serve => controller::UncleanRecovery::Serve,
                UncleanRecovery::Wait => controller::UncleanRecovery::Wait,
            },
            moves_per_node_max: MOVES_PER_NODE_MAX,
        },
        write_copies: config.write_copies(),
        seeds: config.addrs.iter().map(ToString::to_string).collect(),
        suspect_timeout: config.suspect_timeout,
    }
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
