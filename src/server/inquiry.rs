//! Asks after members of which no way tells, before anything is done on the strength of their
//! silence: at every address where they may be, from here and from every member that is connected.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::controller::Inquiry;
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
    let (here, others) = futures_util::join!(look_for(cluster, seat), join_all(ask_others));
    let is_answered = here.is_found
        || others.iter().any(|(_, finding)| finding.as_ref().is_some_and(|f| f.is_found));
    let told = tell(&member.about.name, &here, &others, is_answered);
    let mut inquiries = cluster.inquiries.lock();
    let Some(asked) = inquiries.get_mut(&node) else { return };
    asked.inquiry = Some(Inquiry { at, is_answered });
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
        Ok(seat) => wire::to_vec(&look_for(cluster, seat).await),
        Err(_) => Vec::new(),
    }
}

/// Asks for a node at every address where it may be.
async fn look_for(cluster: &Arc<Cluster>, seat: Seat) -> Finding {
    let knock = wire::to_vec(&Knock::Whereabouts);
    let tries = cluster.addresses_of(seat.node).into_iter().take(ADDRESSES_MAX).map(|addr| {
        let knock = &knock;
        async move {
            let transport = cluster.transport();
            let asked = transport.call_addr(&addr, Kind::Knock as u8, knock, ANSWER_WITHIN).await;
            match asked {
                Ok((who, _)) if who.node == Some(seat.node) && who.life == seat.life => {
                    (addr, true, "it answers".to_owned())
                }
                Ok((who, _)) => (addr, false, format!("{} answers", who.name)),
                Err(error) => (addr, false, error.to_string()),
            }
        }
    });
    let outcomes = join_all(tries).await;
    Finding {
        is_found: outcomes.iter().any(|(_, is_found, _)| *is_found),
        tried: outcomes.into_iter().map(|(addr, _, outcome)| (addr, outcome)).collect(),
    }
}
