//! Members that are connected and whose datagrams do not come in: UDP is lost between the two, and
//! TCP works. The cluster goes on as it is; the operator is told what to open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::topology::{Announcement, NodeId};

use super::cluster::Cluster;

/// How often it is looked at.
const PACE: Duration = Duration::from_secs(1);

/// Whose datagrams are lost, and how that has seemed of late.
#[derive(Debug, Default)]
pub(super) struct Losses(BTreeMap<NodeId, Course>);

#[derive(Debug, Default)]
struct Course {
    is_lost: bool,
    /// Since when it has seemed otherwise.
    otherwise_since: Option<Duration>,
}

impl Losses {
    /// Takes in whether, at `now`, the datagrams of each connected member seem lost; whose are from
    /// now on, or are not any more. Believes only what has seemed so for as long as `patience`. A
    /// member that is not connected is forgotten: nothing tells UDP from the rest then.
    fn observe(
        &mut self,
        seems_lost: &BTreeMap<NodeId, bool>,
        now: Duration,
        patience: Duration,
    ) -> Vec<(NodeId, bool)> {
        self.0.retain(|node, _| seems_lost.contains_key(node));
        let mut changes = Vec::new();
        for (node, seems_lost) in seems_lost {
            let course = self.0.entry(*node).or_default();
            if *seems_lost == course.is_lost {
                course.otherwise_since = None;
                continue;
            }
            let since = *course.otherwise_since.get_or_insert(now);
            if now.saturating_sub(since) >= patience {
                *course = Course { is_lost: *seems_lost, otherwise_since: None };
                changes.push((*node, *seems_lost));
            }
        }
        changes
    }

    fn lost(&self) -> BTreeSet<NodeId> {
        let lost = self.0.iter().filter(|(_, course)| course.is_lost);
        lost.map(|(node, _)| *node).collect()
    }
}

/// What is wrong with UDP from a member, and what to do.
pub(super) fn in_words(member: &Announcement) -> String {
    let port = member.peer_addr.rsplit(':').next().unwrap_or_default();
    format!("no UDP from {}, TCP works: open {port}/udp between them", member.name)
}

/// Watches for members whose datagrams are lost, and tells of changes.
pub(super) async fn watch(cluster: Arc<Cluster>) {
    let mut losses = Losses::default();
    loop {
        tokio::time::sleep(PACE).await;
        let patience = cluster.settings().suspect_timeout;
        let changes = losses.observe(&cluster.lost_datagrams(), cluster.now(), patience);
        let topology = cluster.topology_now();
        for (node, is_lost) in changes {
            let Some(member) = topology.members.get(&node) else { continue };
            if is_lost {
                tracing::warn!("{}", in_words(&member.about));
            } else {
                tracing::info!("UDP from {} is heard again", member.about.name);
            }
        }
        cluster.unheard.send_replace(losses.lost());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn observe(losses: &mut Losses, seems: &[(u64, bool)], second: u64) -> Vec<(u64, bool)> {
        let seems = seems.iter().map(|(node, lost)| (NodeId(*node), *lost)).collect();
        let changes = losses.observe(&seems, Duration::from_secs(second), PATIENCE);
        changes.into_iter().map(|(node, lost)| (node.0, lost)).collect()
    }

    #[test]
    fn a_loss_is_told_once_when_it_has_lasted_and_so_is_its_end() {
        let mut losses = Losses::default();
        let quiet = |changes: Vec<(u64, bool)>| assert_eq!(changes, []);
        quiet(observe(&mut losses, &[(2, false), (3, true)], 0));
        quiet(observe(&mut losses, &[(2, false), (3, true)], 4));
        assert_eq!(observe(&mut losses, &[(2, true), (3, true)], 5), [(3, true)]);
        quiet(observe(&mut losses, &[(2, false), (3, true)], 9));
        assert_eq!(losses.lost(), BTreeSet::from([NodeId(3)]));
        // A datagram now and then is no end of it, nor is one that is missed a loss.
        quiet(observe(&mut losses, &[(2, true), (3, false)], 10));
        quiet(observe(&mut losses, &[(2, false), (3, true)], 14));
        quiet(observe(&mut losses, &[(2, true), (3, false)], 15));
        assert_eq!(observe(&mut losses, &[(2, false), (3, false)], 20), [(3, false)]);
        assert!(losses.lost().is_empty());
    }

    #[test]
    fn of_a_member_that_is_not_connected_nothing_is_known() {
        let mut losses = Losses::default();
        observe(&mut losses, &[(2, true)], 0);
        assert_eq!(observe(&mut losses, &[(2, true)], 5), [(2, true)]);
        assert_eq!(observe(&mut losses, &[], 6), []);
        assert!(losses.lost().is_empty());
        assert_eq!(observe(&mut losses, &[(2, true)], 7), []);
        assert_eq!(observe(&mut losses, &[(2, true)], 12), [(2, true)]);
    }

    #[test]
    fn the_words_say_what_to_open() {
        let about = |peer_addr: &str| Announcement {
            name: "node2".to_owned(),
            peer_addr: peer_addr.to_owned(),
            ..Announcement::default()
        };
        let words = "no UDP from node2, TCP works: open 7701/udp between them";
        assert_eq!(in_words(&about("10.0.0.2:7701")), words);
        assert_eq!(in_words(&about("[::1]:7711")), words.replace("7701", "7711"));
    }
}
