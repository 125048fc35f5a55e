//! The changes of one plan, as they gather: at most one for each shard.

use std::collections::BTreeMap;

use super::evidence::Failure;
use super::note::{HandOver, Note};
use super::view::View;
use crate::entry::ShardId;
use crate::topology::placement::relative;
use crate::topology::{Change, Command, Configuration, NodeId, Seat};

/// Why a shard changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// Its primary seems failed.
    FailedOver(Failure),
    /// Another primary is better, and the present one can hand over.
    HandedOver(HandOver),
    /// Its primary was restarted and needs another epoch.
    Renewed,
    /// No majority with memory was left.
    Recovered,
    /// Copies come or go.
    Copies,
}

pub(super) struct Draft<'a> {
    pub(super) view: &'a View<'a>,
    changes: BTreeMap<ShardId, (Configuration, Reason)>,
    /// How many shards each node leads, with the changes.
    primaries: BTreeMap<NodeId, usize>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(view: &'a View<'a>) -> Self {
        let mut primaries = BTreeMap::new();
        for (_, configuration) in view.shards() {
            *primaries.entry(configuration.primary.node).or_default() += 1;
        }
        Self { view, changes: BTreeMap::new(), primaries }
    }

    /// Whether the shard changes.
    pub(super) fn touches(&self, shard: ShardId) -> bool {
        self.changes.contains_key(&shard)
    }

    /// Changes a shard; instead of what was drafted for it before.
    pub(super) fn set(&mut self, shard: ShardId, to: Configuration, reason: Reason) {
        let before = match self.changes.get(&shard) {
            Some((drafted, _)) => drafted.primary.node,
            None => self.view.configuration(shard).primary.node,
        };
        if let Some(count) = self.primaries.get_mut(&before) {
            *count -= 1;
        }
        *self.primaries.entry(to.primary.node).or_default() += 1;
        self.changes.insert(shard, (to, reason));
    }

    /// The same copies, another primary.
    pub(super) fn lead(&mut self, shard: ShardId, primary: Seat, reason: Reason) {
        let present = self.view.configuration(shard).clone();
        self.set(shard, Configuration { primary, unclean: false, ..present }, reason);
    }

    /// How many shards a node leads, with the changes.
    pub(super) fn primaries(&self, node: NodeId) -> usize {
        self.primaries.get(&node).copied().unwrap_or(0)
    }

    /// What a node leads, and `more`, for the memory it has. To be compared, nothing more.
    pub(super) fn load(&self, node: NodeId, more: usize) -> u128 {
        let memory_bytes = self.view.node(node).map_or(0, super::view::Node::memory_bytes);
        relative(self.primaries(node) + more, memory_bytes)
    }

    /// One command for all changes, and a note for each reason and former primary.
    pub(super) fn finish(self) -> (Option<Command>, Vec<Note>) {
        let mut moved: BTreeMap<(Reason, NodeId), BTreeMap<NodeId, usize>> = BTreeMap::new();
        let mut changes = Vec::with_capacity(self.changes.len());
        for (shard, (to, reason)) in self.changes {
            let present = self.view.configuration(shard);
            if !matches!(reason, Reason::Copies | Reason::Renewed) {
                // Recovered shards are told of together, wherever they were led before.
                let from =
                    if reason == Reason::Recovered { NodeId(0) } else { present.primary.node };
                *moved.entry((reason, from)).or_default().entry(to.primary.node).or_default() += 1;
            }
            changes.push(Change { shard, from_epoch: present.epoch, to });
        }
        let name = |node| self.view.topology.name(node);
        let note = |((reason, from), to): ((Reason, NodeId), BTreeMap<NodeId, usize>)| {
            let node = name(from);
            let to: Vec<_> = to.into_iter().map(|(node, shards)| (name(node), shards)).collect();
            Some(match reason {
                Reason::FailedOver(why) => Note::FailedOver { node, why, to },
                Reason::HandedOver(why) => Note::HandedOver { node, why, to },
                Reason::Recovered => Note::Recovered { to, asked: self.view.gone() },
                Reason::Copies | Reason::Renewed => return None,
            })
        };
        let notes = moved.into_iter().filter_map(note).collect();
        ((!changes.is_empty()).then_some(Command::Configure(changes)), notes)
    }
}
