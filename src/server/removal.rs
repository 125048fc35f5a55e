//! A node that was removed from its cluster: how it learns so, and what it says.

use std::path::PathBuf;

use super::cluster::Cluster;

/// This node was removed from its cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this node was removed from its cluster, as {told_by}; to keep it out, disable its service; to \
     let it join anew, move its data directory {} away and start it",
    data_dir.display()
)]
pub struct Removed {
    /// Who says so.
    told_by: String,
    data_dir: PathBuf,
}

/// Waits until this node learns that it is no member any more: from a member, or by its own copy of
/// the topology.
pub(super) async fn removal(cluster: &Cluster, data_dir: PathBuf) -> Removed {
    let (mut told, mut topology) = (cluster.transport().removed_by(), cluster.topology());
    let told_by = tokio::select! {
        Ok(by) = told.wait_for(Option::is_some) => {
            let by = by.as_deref().unwrap_or("a member");
            format!("{by} says")
        }
        Ok(_) = topology.wait_for(|now| now.roster().has_removed(cluster.me)) => {
            "its own copy of the topology says".to_owned()
        }
        // Both have ended: so has this node's part in the cluster.
        else => std::future::pending().await,
    };
    Removed { told_by, data_dir }
}
