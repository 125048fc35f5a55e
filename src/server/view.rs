//! The cluster as this node sees it, in the words of port 7702.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::consensus::Leadership;
use crate::controller::{self, ShardState, Sight};
use crate::entry::ShardId;
use crate::gossip;
use crate::metrics::{Readings, ShardCounts};
use crate::ops;
use crate::shard::Part;
use crate::topology::{Configuration, Member, NodeId, Seat, Standing, Topology};

use super::cluster::Cluster;
use super::control;
use super::stop_lease;
use super::udp;

/// How often it is looked at how many moves are left.
const MOVES_LOOKED_AT_EVERY: Duration = Duration::from_secs(2);

/// One moment of the cluster.
pub(super) struct ClusterView<'a> {
    cluster: &'a Cluster,
    topology: Arc<Topology>,
    sight: Sight,
    states: Vec<ShardState>,
    leadership: Leadership,
}

impl<'a> ClusterView<'a> {
    pub(super) fn of(cluster: &'a Cluster) -> Self {
        let topology = cluster.topology_now();
        let mut sight = cluster.sight();
        // Of itself it need not remember what it last told.
        sight.reports.insert(cluster.me, Arc::new(control::make_report(cluster)));
        let states = controller::shard_states(&topology, &sight, &cluster.settings().controller);
        let leadership = cluster.consensus().leadership().borrow().clone();
        Self { cluster, topology, sight, states, leadership }
    }

    /// The topology's revision.
    pub(super) fn epoch(&self) -> u64 {
        self.topology.revision
    }

    pub(super) fn leader(&self) -> Option<String> {
        self.leadership.leader.map(|node| self.topology.name(node))
    }

    /// For how long nobody has led the topology, if nobody does.
    pub(super) fn leaderless_for(&self) -> Option<Duration> {
        self.leadership.leader.is_none().then(|| self.leadership.since.elapsed())
    }

    pub(super) fn members(&self) -> Vec<ops::Member> {
        let mut shards: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        for configuration in &self.topology.shards {
            for seat in configuration.seats() {
                if self.topology.is_present(seat) {
                    shards.entry(seat.node).or_default().0 += 1;
                }
            }
            shards.entry(configuration.primary.node).or_default().1 += 1;
        }
        let member = |member: &Member| {
            let about = &member.about;
            let (shards, primaries) = shards.get(&member.node).copied().unwrap_or_default();
            ops::Member {
                node_id: about.name.clone(),
                status: self.status(member),
                client_addr: Some(about.client_addr.clone()),
                gossip_addr: Some(about.peer_addr.clone()),
                zone: about.zone.clone(),
                region: about.region.clone(),
                version: about.version.clone(),
                shards,
                primaries,
                leader: self.leadership.leader == Some(member.node),
            }
        };
        self.topology.members.values().map(member).collect()
    }

    fn status(&self, member: &Member) -> ops::MemberStatus {
        let stays = member.standing == Standing::Member;
        let seems = match self.cluster.seems(member.node) {
            // Who answers over TCP lives, whether its datagrams come in or not.
            _ if self.reaches(member.node) => Some(gossip::State::Alive),
            seems => seems,
        };
        match seems {
            Some(gossip::State::Suspect) => ops::MemberStatus::Suspect,
            Some(gossip::State::Dead) => ops::MemberStatus::Dead,
            Some(gossip::State::Left) => ops::MemberStatus::Leaving,
            _ if !stays => ops::MemberStatus::Leaving,
            Some(gossip::State::Alive) => ops::MemberStatus::Alive,
            None => ops::MemberStatus::Joining,
        }
    }

    /// Whether it is this node, or one that answers over TCP.
    fn reaches(&self, node: NodeId) -> bool {
        node == self.cluster.me || self.cluster.is_reached(node)
    }

    /// What is still to be copied, moved and balanced.
    pub(super) fn outlook(&self) -> ops::Outlook {
        let settings = self.cluster.settings().controller;
        let outlook = controller::Outlook::new(&self.topology, &self.sight, &settings);
        let (settled, moves_left) = (outlook.is_settled, outlook.moves_left);
        let mut pace = self.cluster.pace.lock();
        pace.observe(self.sight.now, moves_left);
        // Of what is not told in moves nobody knows how long it takes.
        let eta = if settled || moves_left > 0 { pace.estimate(moves_left) } else { None };
        ops::Outlook { settled, moves_left: moves_left as u64, eta }
    }

    /// The stop lease that is held, as far as this node knows.
    pub(super) fn stop_lease(&self) -> Option<ops::Lease> {
        let held = self.topology.leases.held.as_ref();
        held.map(|lease| stop_lease::shown(&self.topology, lease))
    }

    /// What is wrong with UDP from other members, for each.
    pub(super) fn lost_udp(&self) -> Vec<String> {
        let unheard = self.cluster.unheard.borrow();
        let members = unheard.iter().filter_map(|node| self.topology.members.get(node));
        members.map(|member| udp::in_words(&member.about)).collect()
    }

    pub(super) fn shards(&self) -> Vec<ops::Shard> {
        self.topology
            .shards
            .iter()
            .zip(&self.states)
            .enumerate()
            .map(|(id, (configuration, state))| {
                self.shard(ShardId(id as u16), configuration, *state)
            })
            .collect()
    }

    fn shard(&self, id: ShardId, configuration: &Configuration, state: ShardState) -> ops::Shard {
        let names = |seats: &[Seat]| {
            let mut names: Vec<String> =
                seats.iter().map(|seat| self.topology.name(seat.node)).collect();
            names.dedup();
            names
        };
        let positions = self.sight.reports.iter().filter_map(|(node, report)| {
            let copy = report.shards.iter().find(|copy| copy.shard == id)?;
            configuration.seat_of(*node)?;
            Some((self.topology.name(*node), copy.last.into()))
        });
        ops::Shard {
            shard: id.0,
            epoch: u64::from(configuration.epoch),
            primary: Some(self.topology.name(configuration.primary.node)),
            voters: names(&configuration.voters),
            learners: names(&configuration.learners),
            state,
            positions: positions.collect(),
        }
    }

    /// Copies on this node that vote, or did before it lost its memory, and are behind; and those
    /// of the former whose shards are served.
    pub(super) fn copies_behind(&self) -> (u64, u64) {
        let replica = self.cluster.replication().replica();
        let me = replica.me();
        let (mut behind, mut coming) = (0, 0);
        let lost = |seat: &Seat| seat.node == me.node && seat.life != me.life;
        behind += self.topology.shards.iter().filter(|c| c.voters.iter().any(lost)).count() as u64;
        for status in replica.status() {
            let votes = self.topology.shard(status.shard).is_some_and(|c| c.is_voter(me));
            if votes && !status.level {
                let state = self.states.get(usize::from(status.shard.0));
                behind += 1;
                coming += u64::from(state.is_some_and(|state| *state != ShardState::Unavailable));
            }
        }
        (behind, coming)
    }

    /// What the gauges show of the cluster.
    pub(super) fn fill(&self, readings: &mut Readings) {
        let me = self.cluster.replication().replica().me();
        let mut counts = ShardCounts::default();
        for state in &self.states {
            *match state {
                ShardState::Healthy => &mut counts.healthy,
                ShardState::UnderReplicated => &mut counts.under_replicated,
                ShardState::CatchingUp => &mut counts.catching_up,
                ShardState::Moving => &mut counts.moving,
                ShardState::Unavailable => &mut counts.unavailable,
            } += 1;
        }
        readings.shards = counts;
        let named = self.topology.shards.iter().filter(|configuration| configuration.names(me));
        readings.shards_owned = named.count() as u64;
        let status = self.cluster.replication().replica().status();
        let led: Vec<_> = status.iter().filter(|status| status.part == Part::Active).collect();
        readings.shard_primaries = led.len() as u64;
        let lag = led.iter().flat_map(|status| {
            status.acknowledged.iter().map(|(_, acked)| status.position.seq.saturating_sub(*acked))
        });
        readings.replica_lag_records = lag.max().unwrap_or(0);
        let living = self.topology.members.keys().filter(|node| {
            self.reaches(**node) || self.cluster.seems(**node) == Some(gossip::State::Alive)
        });
        readings.cluster_members = living.count() as u64;
        readings.cluster_members_expected = self.topology.members.len() as u64;
        readings.gossip_unheard_peers = self.cluster.unheard.borrow().len() as u64;
        readings.topology_leader = self.leadership.leads;
        readings.stop_lease = self.stop_lease().map(|lease| (lease.node_id, lease.holder));
    }
}

/// Looks now and then how many moves are left, so that their pace is known to whoever asks.
pub(super) async fn follow_moves(cluster: Arc<Cluster>) {
    loop {
        tokio::time::sleep(MOVES_LOOKED_AT_EVERY).await;
        ClusterView::of(&cluster).outlook();
    }
}
