//! Reports to the other members, and the controller beside the Raft leader.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::controller::{
    self, Break, Controller, Failure, Link, Note, Report, Role, ShardReport, Transfer,
};
use crate::entry::{Position, ShardId};
use crate::peer::{Down, State};
use crate::replica::ShardStatus;
use crate::shard::Part;
use crate::topology::{Command, NodeId, Outcome, Topology};
use crate::wire::{self, Kind};

use super::cluster::{COMMAND_PATIENCE, Cluster};
use super::inquiry;

/// How often the leader is told how this node's shards are, and how often it plans.
const PACE: Duration = Duration::from_millis(100);

/// The others are told each time that so many reports went to the leader.
const OTHERS_EVERY: u32 = 3;

/// A failover that has not come to its end after so long is counted no more.
const FAILOVER_MAX: Duration = Duration::from_secs(600);

/// Tells the leader, and now and then the others, how this node is.
pub(super) async fn report(cluster: Arc<Cluster>) {
    let leadership = cluster.consensus().leadership();
    let mut turn = 0_u32;
    loop {
        let mut evidence = pin!(cluster.evidence.notified());
        // From here on nothing is missed, also while the report is made.
        evidence.as_mut().enable();
        let report = Arc::new(make_report(&cluster));
        let leader = leadership.borrow().leader;
        let members: Vec<NodeId> = cluster.topology_now().members.keys().copied().collect();
        let all = turn.is_multiple_of(OTHERS_EVERY);
        let bytes = wire::to_vec(&*report);
        for node in members {
            if node != cluster.me && (all || Some(node) == leader) {
                cluster.ways().send(node, Kind::Report, |into| into.extend_from_slice(&bytes));
            }
        }
        cluster.take_report(cluster.me, report);
        let evident = tokio::time::timeout(PACE, evidence).await.is_ok();
        // What is evident goes to everybody: whoever leads next should know.
        turn = if evident { 0 } else { turn + 1 };
        if evident {
            tokio::time::sleep(PACE / 20).await;
        }
    }
}

/// How this node is at this moment.
pub(super) fn make_report(cluster: &Cluster) -> Report {
    let topology = cluster.topology_now();
    let links = cluster.transport().links().borrow().clone();
    let mut offsets: Vec<i64> =
        links.values().filter_map(|link| link.clock_offset_millis).chain([0]).collect();
    offsets.sort_unstable();
    let median = offsets[offsets.len() / 2];
    let replica = cluster.replication().replica();
    let me = replica.me();
    let has_seat = |shard: ShardId| topology.shard(shard).is_some_and(|c| c.names(me));
    let shards = replica
        .status()
        .into_iter()
        .filter(|status| has_seat(status.shard) || status.position != Position::default());
    Report {
        at: cluster.now(),
        life: me.life,
        reachable: links
            .iter()
            .filter_map(|(node, link)| Some((*node, link_of(link.state)?)))
            .collect(),
        clock_offset_ms: -median,
        hears: cluster.heard_in_gossip(),
        disk_delay_ms: millis(replica.wal().disk_delay()),
        shards: shards.map(shard_report).collect(),
    }
}

fn link_of(state: State) -> Option<Link> {
    let State::Down { since, why } = state else { return Some(Link::Up) };
    let why = match why {
        Down::Untried => return None,
        Down::Refused => Break::Refused,
        Down::Reset => Break::Reset,
        Down::Silent => Break::Silent,
        Down::Unreachable => Break::Unreachable,
        Down::Rejected(_) => Break::Rejected,
    };
    Some(Link::Down { why, for_ms: millis(since.elapsed()) })
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

fn shard_report(status: ShardStatus) -> ShardReport {
    ShardReport {
        shard: status.shard,
        epoch: status.epoch,
        last: status.position,
        role: match status.part {
            Part::Follower => Role::Follower,
            Part::Waiting => Role::Waiting,
            Part::TakingOver => Role::TakingOver,
            Part::Active => Role::Active,
        },
        copies: if status.part == Part::Active { status.acknowledged } else { Vec::new() },
        committed: status.committed,
        vouches: status.vouches,
    }
}

/// Plans, and has done what is planned, as long as this node leads the topology.
pub(super) async fn control(cluster: Arc<Cluster>) {
    let mut leadership = cluster.consensus().leadership();
    let mut transfer = Transfer::default();
    loop {
        if leadership.wait_for(|now| now.leads).await.is_err() {
            return;
        }
        let elected = cluster.now();
        let mut controller = Controller::new();
        let mut failovers = Failovers::default();
        let mut told = Vec::new();
        while leadership.borrow().leads {
            let sight = cluster.sight();
            let topology = cluster.topology_now();
            failovers.observe(&cluster, &topology, &sight);
            let (voters, successors) = cluster.consensus().successors();
            if let Some(next) = transfer.plan(&sight, elected, &voters, &successors) {
                let next_name = topology.name(next);
                tracing::info!(
                    "{next_name} is better connected, or has the faster disk; it is asked to lead the \
                     topology"
                );
                cluster.consensus().hand_over(next).await;
            }
            let plan = controller.plan(&topology, &sight, &cluster.settings().controller);
            inquiry::begin(&cluster, plan.inquire);
            // What may lose writes is said before it can take place: this node may never hear whether
            // it did.
            let (grave, others): (Vec<Note>, Vec<Note>) =
                plan.notes.into_iter().partition(|note| matches!(note, Note::Recovered { .. }));
            if grave != told {
                grave.iter().for_each(tell);
                told = grave;
            }
            let mut took_place = true;
            for command in plan.commands {
                let before = topology.clone();
                match cluster.consensus().propose(command.clone(), COMMAND_PATIENCE).await {
                    Ok(Outcome::Configured(0)) => took_place = false,
                    Ok(_) => failovers.begin(&cluster, &before, &sight, &command, &others),
                    Err(error) => {
                        tracing::debug!(%error, "a plan did not take place");
                        took_place = false;
                    }
                }
            }
            if took_place {
                others.iter().for_each(tell);
            }
            if let Some(step) = plan.lease {
                let ended = cluster.consensus().propose_as_leader(step.into(), COMMAND_PATIENCE);
                if let Err(error) = ended.await {
                    tracing::debug!(%error, "the stop lease's end did not take place");
                }
            }
            let _ = tokio::time::timeout(PACE, cluster.evidence.notified()).await;
        }
    }
}

fn tell(note: &Note) {
    if note.is_warning() {
        tracing::warn!("{note}");
    } else {
        tracing::info!("{note}");
    }
}

/// Failovers under way: the moment of the first sign, by shard.
#[derive(Default)]
struct Failovers(BTreeMap<ShardId, (u32, Duration)>);

impl Failovers {
    /// Takes note of the shards whose failed primary a command has replaced.
    fn begin(
        &mut self,
        cluster: &Cluster,
        before: &Topology,
        sight: &controller::Sight,
        command: &Command,
        notes: &[Note],
    ) {
        let Command::Configure(changes) = command else { return };
        let failed: Vec<&str> = notes
            .iter()
            .filter_map(|note| match note {
                Note::FailedOver { node, why, .. } if *why != Failure::LostMemory => {
                    Some(node.as_str())
                }
                _ => None,
            })
            .collect();
        for change in changes {
            let Some(old) = before.shard(change.shard) else { continue };
            let gone = old.primary;
            if gone == change.to.primary || !failed.contains(&before.name(gone.node).as_str()) {
                continue;
            }
            cluster.metrics.failovers.inc();
            let first = first_sign(sight, gone.node).unwrap_or(sight.now);
            self.0.insert(change.shard, (change.from_epoch, first));
        }
    }

    /// Measures those whose new primary has reported itself active.
    fn observe(&mut self, cluster: &Cluster, topology: &Topology, sight: &controller::Sight) {
        self.0.retain(|shard, (from_epoch, first)| {
            let age = sight.now.saturating_sub(*first);
            let Some(configuration) = topology.shard(*shard) else { return false };
            let report = sight.reports.get(&configuration.primary.node);
            let active = report.is_some_and(|report| {
                report.shards.iter().any(|copy| {
                    copy.shard == *shard && copy.role == Role::Active && copy.epoch > *from_epoch
                })
            });
            if active {
                cluster.metrics.failover_duration.record(age);
            }
            !active && age < FAILOVER_MAX
        });
    }
}

/// When the first member lost its connection to a node.
fn first_sign(sight: &controller::Sight, node: NodeId) -> Option<Duration> {
    let signs = sight.reports.values().filter_map(|report| match report.reachable.get(&node)? {
        Link::Up => None,
        Link::Down { for_ms, .. } => {
            Some(report.at.saturating_sub(Duration::from_millis(u64::from(*for_ms))))
        }
    });
    signs.min()
}
