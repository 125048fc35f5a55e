//! Asks after members of which no way tells, before anything is done on the strength of their
//! silence: at every address where they may be, from here and from every member that is connected.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::controller::Inquiry;
use crate::peer::{Identity, KnockError};
use crate::topology::{NodeId, Seat};
use crate::wire::{self, Kind};

use super::cluster::Cluster;
use super::peers::Knock;

/// How long whoever sits at an address is given to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How long another member is given to ask.
const OTHERS_WITHIN: Duration = Duration::from_secs(2);

/// A node that stays silent is asked again so long after it was asked last.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Most addresses that are tried for one node.
const ADDRESSES_MAX: usize = 16;

/// What came of asking.
#[derive(Debug, Serialize, Deserialize)]
struct Finding {
    /// Whether the node answered, in the life that was asked for.
    is_found: bool,
    /// Whether a connection was taken somewhere, and nothing said on it.
    may_hang: bool,
    /// By which address: what happened.
    tried: Vec<(String, String)>,
}

/// Asks after these nodes in the background, those that were asked a moment ago left out.
pub(super) fn begin(cluster: &Arc<Cluster>, nodes: BTreeSet<NodeId>) {
    let now = cluster.now();
    let mut inquiries = cluster.inquiries.lock();
    inquiries.retain(|node, _| nodes.contains(node));
    for node in nodes {
        let asked = inquiries.entry(node).or_default();
        if asked.began.is_none_or(|at| now.saturating_sub(at) >= ASK_EVERY) {
            asked.began = Some(now);
            let asking = cluster.clone();
            cluster.run(async move { inquire(&asking, node, now).await });
        }
    }
}

/// The last inquiry after a node.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// When it began.
    began: Option<Duration>,
    /// What the last one that came to its end came to.
    pub(super) inquiry: Option<Inquiry>,
    /// What was last said of it in the log.
    told: String,
}

/// Asks from here and from every member that is connected.
async fn inquire(cluster: &Arc<Cluster>, node: NodeId, at: Duration) {
    let topology = cluster.topology_now();
    let Some(member) = topology.members.get(&node) else { return };
    let seat = member.seat();
    let others = topology.members.values().filter(|m| m.node != node && m.node != cluster.me);
    let ask_others = others.map(|other| async move {
        let body = wire::to_vec(&seat);
        let asked = cluster.ways().call(other.node, Kind::Inquiry, &body, OTHERS_WITHIN);
        let finding = asked.await.ok().and_then(|answer| wire::get::<Finding>(&answer).ok());
        (other.about.name.clone(), finding)
    });
    let here = look_for(cluster, seat, &member.about.name);
    let (here, others) = futures_util::join!(here, join_all(ask_others));
    let mut findings = others.iter().filter_map(|(_, finding)| finding.as_ref()).chain([&here]);
    let is_answered = findings.clone().any(|finding| finding.is_found);
    let may_hang = findings.any(|finding| finding.may_hang);
    let told = tell(&member.about.name, &here, &others, is_answered);
    let mut inquiries = cluster.inquiries.lock();
    let Some(asked) = inquiries.get_mut(&node) else { return };
    asked.inquiry = Some(Inquiry { at, is_answered, may_hang });
    if asked.told != told {
        tracing::info!("{told}");
        asked.told = told;
    }
    drop(inquiries);
    cluster.evidence.notify_waiters();
}

/// What was asked and what answered, in one line.
fn tell(
    name: &str,
    here: &Finding,
    others: &[(String, Option<Finding>)],
    is_answered: bool,
) -> String {
    let tried: Vec<String> =
        here.tried.iter().map(|(addr, outcome)| format!("at {addr} ({outcome})")).collect();
    let through = others.iter().map(|(other, finding)| {
        let outcome = match finding {
            Some(Finding { is_found: true, .. }) => "it answers there",
            Some(_) => "no answer there either",
            None => "not connected",
        };
        format!("through {other} ({outcome})")
    });
    let ways: Vec<String> = tried.into_iter().chain(through).collect();
    let outcome = if is_answered { "it answers" } else { "no answer by any way" };
    format!("{name} is silent and was asked {}: {outcome}", ways.join(", "))
}

/// Answers another member that asks after a node.
pub(super) async fn answer(cluster: &Arc<Cluster>, body: &Bytes) -> Vec<u8> {
    match wire::get::<Seat>(body) {
        Ok(seat) => {
            let name = cluster.topology_now().name(seat.node);
            wire::to_vec(&look_for(cluster, seat, &name).await)
        }
        Err(_) => Vec::new(),
    }
}

/// What came of asking at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    Found,
    /// The connection was taken, and nothing said on it.
    Silent,
    Failed,
}

impl Try {
    /// What the answer, or its absence, means for the seat of a member of that name. One that has
    /// just started, and still reads its log, knows no number yet, and may remember everything.
    fn of(asked: &Result<Identity, KnockError>, seat: Seat, name: &str) -> (Self, String) {
        match asked {
            Ok(who) if who.node == Some(seat.node) && who.life == seat.life => {
                (Self::Found, "it answers".to_owned())
            }
            Ok(who) if who.node.is_none() && who.name == name => {
                (Self::Found, "it is starting".to_owned())
            }
            Ok(who) => (Self::Failed, format!("{} answers", who.name)),
            Err(error @ KnockError::TimedOut) => (Self::Silent, error.to_string()),
            Err(error) => (Self::Failed, error.to_string()),
        }
    }
}

/// Asks for a node at every address where it may be.
async fn look_for(cluster: &Arc<Cluster>, seat: Seat, name: &str) -> Finding {
    let knock = wire::to_vec(&Knock::Whereabouts);
    let tries = cluster.addresses_of(seat.node).into_iter().take(ADDRESSES_MAX).map(|addr| {
        let knock = &knock;
        async move {
            let transport = cluster.transport();
            let asked = transport.call_addr(&addr, Kind::Knock as u8, knock, ANSWER_WITHIN).await;
            let (outcome, told) = Try::of(&asked.map(|(who, _)| who), seat, name);
            (addr, outcome, told)
        }
    });
    let outcomes = join_all(tries).await;
    Finding {
        is_found: outcomes.iter().any(|(_, outcome, _)| *outcome == Try::Found),
        may_hang: outcomes.iter().any(|(_, outcome, _)| *outcome == Try::Silent),
        tried: outcomes.into_iter().map(|(addr, _, told)| (addr, told)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEAT: Seat = Seat { node: NodeId(2), life: 7 };

    fn of(node: Option<u64>, name: &str, life: u64) -> Try {
        let who = Identity {
            cluster_id: node.map(|_| 1),
            node: node.map(NodeId),
            name: name.to_owned(),
            life,
            version: "0.1.0".to_owned(),
            num_shards: 16,
            peer_addr: "127.0.0.1:7701".to_owned(),
        };
        Try::of(&Ok(who), SEAT, "node2").0
    }

    #[test]
    fn who_is_starting_is_there_and_another_life_or_name_is_not() {
        assert_eq!(of(Some(2), "node2", 7), Try::Found);
        assert_eq!(of(None, "node2", 7), Try::Found, "it reads its log");
        assert_eq!(of(Some(2), "node2", 8), Try::Failed, "it has forgotten");
        assert_eq!(of(Some(3), "node3", 7), Try::Failed);
        assert_eq!(of(None, "node4", 9), Try::Failed, "a newborn at its old address");
        assert_eq!(Try::of(&Err(KnockError::TimedOut), SEAT, "node2").0, Try::Silent);
        assert_eq!(Try::of(&Err(KnockError::Lost), SEAT, "node2").0, Try::Failed);
    }
}
