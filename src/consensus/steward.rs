//! Beside the leader: keeps the group's membership what the topology makes of it.
//!
//! One change at a time, and none that could not be committed: a change of voters is begun only
//! while a majority of both sets seems alive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use tokio::time::{sleep, timeout};

use super::voters::{choose_voters, majority};
use super::{Inner, Metrics, Node, Nodes};
use crate::topology::{NodeId, Topology};

/// The membership is looked at this often, besides when something changed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A change that takes longer is left to itself, and looked at again.
const CHANGE_WITHIN: Duration = Duration::from_secs(5);

/// A learner that is at most so many entries behind may vote.
const BEHIND_MAX: u64 = 64;

/// A snapshot is made early when the log behind it has come to so many bytes.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// One step towards the right membership.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Members that are not in the group, or under another name or address.
    Set(Nodes),
    /// These vote, and nobody else.
    Vote(BTreeSet<NodeId>),
    /// This node leads without a vote: one that votes is to lead.
    Resign,
    /// These are members no more.
    Remove(BTreeSet<NodeId>),
}

/// Looks after the membership for as long as this node leads, again and again; and after the size
/// of the log, always.
pub(super) async fn keep_membership(inner: Arc<Inner>) {
    let mut topology = inner.topology.clone();
    let mut leadership = inner.leadership.subscribe();
    let mut dead_since = BTreeMap::new();
    loop {
        look_at_the_dead(&inner, &mut dead_since);
        if leadership.borrow_and_update().leads {
            let topology = topology.borrow_and_update().clone();
            if let Some(step) = inner.next_step(&topology, &dead_since) {
                inner.take(step).await;
            }
        } else {
            topology.mark_unchanged();
        }
        if inner.store.log_bytes() > LOG_BYTES_MAX && inner.raft.trigger().snapshot().await.is_err()
        {
            return;
        }
        tokio::select! {
            result = topology.changed() => if result.is_err() { return },
            result = leadership.changed() => if result.is_err() { return },
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

fn look_at_the_dead(inner: &Inner, dead_since: &mut BTreeMap<NodeId, Instant>) {
    let dead = inner.config.dead.borrow().clone();
    dead_since.retain(|node, _| dead.contains(node));
    for node in dead.iter() {
        dead_since.entry(*node).or_insert_with(Instant::now);
    }
}

impl Inner {
    fn next_step(
        &self,
        topology: &Topology,
        dead_since: &BTreeMap<NodeId, Instant>,
    ) -> Option<Step> {
        let metrics = self.raft.metrics().borrow().clone();
        let dead = |node: NodeId| dead_since.get(&node).map(Instant::elapsed);
        next_step(topology, &metrics, self.config.replace_dead_after, dead)
    }

    async fn take(&self, step: Step) {
        tracing::debug!(?step, "the topology's Raft membership changes");
        let change = match step {
            Step::Set(nodes) => ChangeMembers::SetNodes(nodes),
            Step::Resign => return self.resign(None).await,
            Step::Vote(voters) => ChangeMembers::ReplaceAllVoters(voters),
            Step::Remove(nodes) => ChangeMembers::RemoveNodes(nodes),
        };
        // Whatever comes of it is seen in the membership; what did not take place is tried again.
        match timeout(CHANGE_WITHIN, self.raft.change_membership(change, true)).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => tracing::debug!("the membership did not change: {e}"),
            Err(_) => tracing::debug!("the membership has not changed yet"),
        }
    }
}

/// What is to be changed next, if anything. `dead` says how long a node has been dead.
fn next_step(
    topology: &Topology,
    metrics: &Metrics,
    replace_dead_after: Duration,
    dead: impl Fn(NodeId) -> Option<Duration>,
) -> Option<Step> {
    let membership = metrics.membership_config.membership();
    let known: Nodes = membership.nodes().map(|(node, about)| (*node, about.clone())).collect();
    let wanted: Nodes = topology
        .members
        .values()
        .map(|member| {
            let (name, addr) = (member.about.name.clone(), member.about.peer_addr.clone());
            (member.node, Node { name, addr })
        })
        .collect();
    if wanted.is_empty() {
        return None;
    }
    let set: Nodes =
        wanted.into_iter().filter(|(node, about)| known.get(node) != Some(about)).collect();
    if !set.is_empty() {
        return Some(Step::Set(set));
    }

    let me = metrics.id;
    let sets = membership.get_joint_config();
    // While the voters change, those that are to come.
    let present = sets.last().cloned().unwrap_or_default();
    let caught_up = |node: NodeId| {
        let matching = metrics.replication.as_ref().and_then(|all| all.get(&node).copied());
        let matching = matching.flatten().map(|log_id| log_id.index);
        matching.is_some_and(|index| index + BEHIND_MAX >= metrics.last_log_index.unwrap_or(0))
    };
    let able = |node: NodeId| {
        node == me
            || match dead(node) {
                None => present.contains(&node) || caught_up(node),
                Some(since) => present.contains(&node) && since < replace_dead_after,
            }
    };
    let chosen = choose_voters(topology, &present, me, able);
    if chosen != present || sets.len() > 1 {
        let alive = |node: NodeId| node == me || dead(node).is_none();
        let possible = sets.iter().all(|set| majority(set, alive)) && majority(&chosen, alive);
        return possible.then_some(Step::Vote(chosen));
    }
    if !chosen.contains(&me) {
        return Some(Step::Resign);
    }
    let gone = |node: &NodeId| !topology.members.contains_key(node) && !present.contains(node);
    let gone: BTreeSet<NodeId> = known.into_keys().filter(gone).collect();
    (!gone.is_empty()).then_some(Step::Remove(gone))
}
