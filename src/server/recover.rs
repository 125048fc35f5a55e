//! Founding the topology anew from one survivor, offline, when its majority is gone for good.
//!
//! The survivor gets a number that no node ever had, and becomes the only member, with every shard,
//! as it has it: what it lacks of what others had acknowledged is lost. Versions go on above all
//! that may have been given out. The former topology's file is kept beside the new one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use tokio::sync::watch;

use crate::consensus::{self, Consensus};
use crate::disk::home::{self, Home};
use crate::disk::{Os, remove_if_there};
use crate::entry::ShardId;
use crate::topology::{
    Change, Cluster, Command, Configuration, Member, NodeId, Outcome, Seat, Topology,
};

use super::bring_up::TOPOLOGY_FILE;

/// How far above the known ones epochs go on: others may have gone further than this node heard.
const EPOCH_LEAP: u32 = 1 << 20;

/// How long the founding may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a recovery came to.
#[derive(Debug)]
pub struct Recovered {
    /// The node's name.
    pub name: String,
    /// The members that are none any more, by name.
    pub struck_off: Vec<String>,
    /// The former topology's file.
    pub kept: PathBuf,
}

/// Founds the topology anew from the data directory of one node, which must not run. Blocks.
///
/// # Errors
/// Why nothing was, or could be, changed.
pub fn recover(data_dir: &Path) -> anyhow::Result<Recovered> {
    let disk = Arc::new(Os);
    let identity = home::read_identity(&*disk, data_dir)?
        .with_context(|| format!("{} has no identity.json", data_dir.display()))?;
    let Some(node) = identity.node else {
        bail!("{} is of a node that was never in a cluster; start it", data_dir.display());
    };
    let mut home = Home::open(
        disk,
        home::Config {
            data_dir: data_dir.to_owned(),
            wal_dir: data_dir.to_owned(),
            node_id: identity.node_id.clone(),
            num_shards: identity.num_shards,
            wal_mode: identity.wal_mode.clone(),
            cluster_id: Some(identity.cluster_id),
        },
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let path = data_dir.join(TOPOLOGY_FILE);
    let (recovered, me) = runtime.block_on(found_anew(&path, NodeId(node), &identity))?;
    home.renumber(me.0)?;
    Ok(recovered)
}

async fn found_anew(
    path: &Path,
    node: NodeId,
    identity: &home::Identity,
) -> anyhow::Result<(Recovered, NodeId)> {
    let name = &identity.node_id;
    let old = open(path, node, name, false).await?;
    let topology = old.topology().borrow().clone();
    old.shutdown().await;
    let (Some(cluster), Some(member)) = (topology.cluster, topology.members.get(&node)) else {
        bail!("{} does not know this node as a member", path.display());
    };
    let me = topology.next_node();
    // Founded beside the old one, and put in its place when it is whole.
    let draft = path.with_extension("redb.new");
    remove_if_there(&Os, &draft).with_context(|| format!("cannot remove {}", draft.display()))?;
    let founded = found_at(&draft, me, &topology, (cluster, member), identity).await;
    founded.inspect_err(|_| {
        // The first error tells more; the next attempt removes it.
        let _ = std::fs::remove_file(&draft);
    })?;
    let kept = path.with_extension(format!("redb.before-node-{me}"));
    // It is there only if an attempt was interrupted right here: the same file by another name.
    let replaced = remove_if_there(&Os, &kept)
        .and_then(|()| std::fs::hard_link(path, &kept))
        .and_then(|()| std::fs::rename(&draft, path));
    replaced
        .with_context(|| format!("cannot put a new file in the place of {}", path.display()))?;
    let struck_off = others(&topology, node);
    Ok((Recovered { name: name.clone(), struck_off, kept }, me))
}

/// Makes the new topology's file.
async fn found_at(
    path: &Path,
    me: NodeId,
    topology: &Topology,
    (cluster, member): (Cluster, &Member),
    identity: &home::Identity,
) -> anyhow::Result<()> {
    let new = open(path, me, &identity.node_id, true).await?;
    let epoch = topology.shards.iter().map(|shard| shard.epoch).max().unwrap_or(0) + EPOCH_LEAP;
    let mut about = member.about.clone();
    about.life = identity.incarnation;
    let seat = Seat { node: me, life: about.life };
    new.found(Command::Found { cluster, founder: me, about, epoch }).await?;
    let declared = new.propose(declare_all(cluster.num_shards, epoch, seat), PATIENCE).await?;
    if declared != Outcome::Configured(usize::from(cluster.num_shards)) {
        bail!("the shards could not be declared this node's: {declared:?}");
    }
    new.shutdown().await;
    Ok(())
}

/// Every shard is this node's, whatever may be missing.
fn declare_all(num_shards: u16, epoch: u32, seat: Seat) -> Command {
    let to = Configuration { unclean: true, ..Configuration::alone(epoch + 1, seat) };
    let change = |shard| Change { shard: ShardId(shard), from_epoch: epoch, to: to.clone() };
    Command::Configure((0..num_shards).map(change).collect())
}

fn others(topology: &Topology, node: NodeId) -> Vec<String> {
    let gone = |member: &&Member| member.node != node;
    topology.members.values().filter(gone).map(|member| member.about.name.clone()).collect()
}

async fn open(path: &Path, me: NodeId, name: &str, may_be_new: bool) -> anyhow::Result<Consensus> {
    let (_, dead) = watch::channel(Arc::new(BTreeSet::new()));
    let config = consensus::Config { may_be_new, ..consensus::Config::new(dead) };
    let nobody: consensus::Call =
        Arc::new(|_, _, _, _| async { Err(consensus::CallError::NotSent) }.boxed());
    Ok(Consensus::open(path, me, name, nobody, config).await?)
}
