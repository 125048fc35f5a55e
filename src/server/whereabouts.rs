//! Where the other members are: what gossip, other members and whoever answers at a seed say of it
//! is handed to the connections, which dial there next.
//!
//! It needs no leader and changes nothing in the topology, so that members that all came back at
//! other addresses find each other, and can then elect one. Each enters its new address in the
//! topology afterwards.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::peer::{Down, Link, Refusal, Source, State};
use crate::topology::NodeId;
use crate::wire::{self, Kind};

use super::cluster::Cluster;
use super::peers::{Knock, KnockReply};

/// How often it is looked whether anybody cannot be found, and one seed asked if so.
const PACE: Duration = Duration::from_secs(1);

/// A member to which there is no connection for so long is looked for.
const MISSED_AFTER: Duration = Duration::from_secs(2);

/// How often a newborn that sits at a member's address is told of its cluster.
const TELL_NEWBORN_PAUSE: Duration = Duration::from_secs(1);

/// How long a member or a seed may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Follows what is said of the members' addresses, and asks if somebody cannot be found.
pub(super) async fn follow(cluster: Arc<Cluster>) {
    let mut seen = cluster.gossip().members();
    let mut turn = 0;
    loop {
        hear_gossip(&cluster);
        cluster.renew_seeds();
        match tokio::time::timeout(PACE, seen.changed()).await {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => return,
            Err(_elapsed) => {}
        }
        if is_anybody_missing(&cluster) {
            ask_members(&cluster).await;
            ask_seed(&cluster, turn).await;
            turn += 1;
        }
    }
}

/// What each connected member is dialled at, and this node itself.
pub(super) fn known(cluster: &Cluster) -> Vec<(NodeId, String)> {
    let connected = connected(cluster).into_iter();
    let found = connected
        .filter_map(|node| Some((node, cluster.transport().addresses(node).into_iter().next()?)));
    found.chain([(cluster.me, cluster.own_addr().to_owned())]).collect()
}

fn hear_gossip(cluster: &Cluster) {
    let seen = cluster.gossip().members().borrow().clone();
    let topology = cluster.topology_now();
    for (node, seen) in seen.iter() {
        let known = topology.members.get(node).map_or(0, |member| member.about.life);
        if seen.peer.life < known {
            continue;
        }
        if let Some(addr) = seen.addr {
            cluster.transport().hear_address(*node, Source::Datagrams, &addr.to_string());
        }
        cluster.transport().hear_address(*node, Source::Gossip, &seen.peer.addr);
    }
}

fn connected(cluster: &Cluster) -> BTreeSet<NodeId> {
    let links = cluster.transport().links().borrow().clone();
    links.iter().filter(|(_, link)| link.is_up()).map(|(node, _)| *node).collect()
}

fn is_anybody_missing(cluster: &Cluster) -> bool {
    let is_missed = |link: &Link| match link.state {
        State::Up => false,
        State::Down { since, .. } => since.elapsed() >= MISSED_AFTER,
    };
    cluster.transport().links().borrow().values().any(is_missed)
}

/// Asks each connected member where the others are.
async fn ask_members(cluster: &Cluster) {
    let body = wire::to_vec(&Knock::Whereabouts);
    let ask = |node| {
        let put = |into: &mut Vec<u8>| into.extend_from_slice(&body);
        cluster.transport().call(node, Kind::Knock as u8, put, ANSWER_WITHIN)
    };
    let answers = futures_util::future::join_all(connected(cluster).into_iter().map(ask)).await;
    answers.iter().flatten().for_each(|answer| hear_answer(cluster, answer));
}

/// Asks at the next seed that is not known to be a connected member's.
async fn ask_seed(cluster: &Cluster, turn: usize) {
    let known: BTreeSet<String> = known(cluster).into_iter().map(|(_, addr)| addr).collect();
    let seeds = cluster.settings().seeds;
    let mut seeds: Vec<&String> = seeds.iter().filter(|seed| !known.contains(*seed)).collect();
    seeds.sort_unstable();
    let Some(seed) = seeds.get(turn % seeds.len().max(1)) else { return };
    let (transport, body) = (cluster.transport(), wire::to_vec(&Knock::Whereabouts));
    match transport.call_addr(seed, Kind::Knock as u8, &body, ANSWER_WITHIN).await {
        Ok((identity, answer)) => {
            if let Some(node) = identity.node {
                transport.hear_address(node, Source::Itself, &identity.peer_addr);
                transport.hear_address(node, Source::Member, seed);
            }
            hear_answer(cluster, &answer);
        }
        Err(error) => tracing::debug!(seed, %error, "nobody at a seed tells where others are"),
    }
}

/// Takes note of what was answered, of members that are not connected.
fn hear_answer(cluster: &Cluster, answer: &[u8]) {
    let Ok(KnockReply::Whereabouts(said)) = wire::get(answer) else { return };
    let connected = connected(cluster);
    for (node, addr) in said.iter().filter(|(node, _)| !connected.contains(node)) {
        cluster.transport().hear_address(*node, Source::Member, addr);
    }
}

/// Tells newborns at members' addresses that they are known: their disks were wiped.
pub(super) async fn tell_newborns(cluster: Arc<Cluster>) {
    let links = cluster.transport().links();
    let body = wire::to_vec(&Knock::Member);
    loop {
        tokio::time::sleep(TELL_NEWBORN_PAUSE).await;
        let newborn = |link: &Link| {
            matches!(link.state, State::Down { why: Down::Rejected(Refusal::NotMember), .. })
        };
        let now = links.borrow().clone();
        for (node, _) in now.iter().filter(|(_, link)| newborn(link)) {
            let Some(addr) = cluster.transport().addresses(*node).into_iter().next() else {
                continue;
            };
            let told =
                cluster.transport().call_addr(&addr, Kind::Knock as u8, &body, TELL_NEWBORN_PAUSE);
            if let Err(error) = told.await {
                tracing::debug!(addr, %error, "a newborn could not be told of its cluster");
            }
        }
    }
}
