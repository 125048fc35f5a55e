//! Whom to knock at: the addresses that the seeds lead to and that no living member answers from.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use super::State;
use super::names::Names;
use super::watch::Watch;
use crate::topology::NodeId;

/// Most seeds that are knocked at.
const SEEDS_MAX: usize = 256;

/// Knocks that are remembered, to know who answered which.
const KNOCKS_MAX: usize = 1_024;

/// The seeds.
#[derive(Default)]
pub(super) struct Seeds {
    seeds: Vec<String>,
    knocks: VecDeque<(u64, SocketAddr)>,
    /// Who answered at an address.
    answered: BTreeMap<SocketAddr, NodeId>,
}

impl Seeds {
    /// These from now on.
    pub(super) fn set(&mut self, seeds: Vec<String>) {
        if seeds.len() > SEEDS_MAX {
            let count = seeds.len();
            tracing::warn!("addrs names {count} seeds; the first {SEEDS_MAX} are used");
        }
        self.seeds = seeds;
        self.seeds.truncate(SEEDS_MAX);
        self.answered.clear();
    }

    /// The seeds as they were given.
    pub(super) fn names(&self) -> &[String] {
        &self.seeds
    }

    /// The addresses to knock at now. This node itself is reached at `own`.
    pub(super) fn unmet(&mut self, own: &str, names: &Names, watch: &Watch) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.seeds.iter().flat_map(|seed| names.all(seed)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        self.answered.retain(|address, _| addresses.binary_search(address).is_ok());
        let own = names.all(own);
        let answered = |address: &SocketAddr| {
            let node = self.answered.get(address);
            node.is_some_and(|node| watch.state(*node) == Some(State::Alive))
        };
        addresses.retain(|address| {
            !own.contains(address) && !answered(address) && !watch.lives_at(*address)
        });
        addresses
    }

    /// A datagram with that counter went to a seed's address.
    pub(super) fn knocked(&mut self, counter: u64, address: SocketAddr) {
        if self.knocks.len() == KNOCKS_MAX {
            self.knocks.pop_front();
        }
        self.knocks.push_back((counter, address));
    }

    /// Somebody answered the datagram with that counter.
    pub(super) fn answered(&mut self, counter: u64, by: NodeId) {
        if let Some(&(_, address)) = self.knocks.iter().find(|(knock, _)| *knock == counter) {
            self.answered.insert(address, by);
        }
    }
}
