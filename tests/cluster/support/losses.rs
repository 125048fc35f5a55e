//! What a network loses on its way from one node to another.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Which packets are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Traffic {
    /// Gossip.
    Udp,
    /// Connections, new ones and those there are.
    Tcp,
    /// Connections that the node they come from has dialled, and no others.
    Dialled,
    /// All of it.
    Any,
}

/// Packets that go from one node to another and are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Loss {
    from: usize,
    to: usize,
    traffic: Traffic,
    /// So many of a hundred, by chance.
    percent: u8,
}

impl Loss {
    /// All that goes that way.
    pub(crate) const fn of(traffic: Traffic, from: usize, to: usize) -> Self {
        Self { from, to, traffic, percent: 100 }
    }

    /// All that goes between two nodes.
    pub(crate) const fn between(traffic: Traffic, a: usize, b: usize) -> [Self; 2] {
        [Self::of(traffic, a, b), Self::of(traffic, b, a)]
    }

    /// Only so many of a hundred packets, by chance.
    pub(crate) const fn at(self, percent: u8) -> Self {
        Self { percent, ..self }
    }

    /// Whether nothing that needs a connection gets through between the two any more.
    pub(crate) fn cuts(&self, a: usize, b: usize) -> bool {
        let is_between = self.touches(a) && self.touches(b);
        is_between && self.percent == 100 && self.traffic != Traffic::Udp
    }

    pub(super) const fn touches(&self, node: usize) -> bool {
        self.from == node || self.to == node
    }

    /// The rule by which a switch with a port for each node loses them. Addresses are none of its
    /// business, and how they are looked up goes on: a network that is mended works at once.
    fn rule(&self, port: impl Fn(usize) -> String) -> String {
        let which = match self.traffic {
            Traffic::Udp => "meta l4proto udp",
            Traffic::Tcp => "meta l4proto tcp",
            // Whoever dials does so from a port that the system gave it.
            Traffic::Dialled => "tcp dport < 32768",
            Traffic::Any => "",
        };
        let chance = match self.percent {
            100 => String::new(),
            percent => format!("numgen random mod 100 < {percent}"),
        };
        let (from, to) = (port(self.from), port(self.to));
        format!("iifname {from} oifname {to} meta protocol ip {which} {chance} counter drop")
    }
}

/// The whole of a switch's rules, in the place of those there were.
pub(super) fn rules(losses: &BTreeSet<Loss>, port: impl Fn(usize) -> String + Copy) -> String {
    let mut rules = "table bridge losses\ndelete table bridge losses\n\
         table bridge losses {\nchain forward {\ntype filter hook forward priority 0\n"
        .to_owned();
    for loss in losses {
        writeln!(rules, "{}", loss.rule(port)).unwrap();
    }
    rules + "}\n}\n"
}

/// How many packets the rules have lost, as the switch lists them.
pub(super) fn lost(listing: &str) -> u64 {
    let counts = listing.split("counter packets ").skip(1);
    counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}
