//! What a node waits for before there is a cluster, in words for the log.

use std::fmt;

/// Why nothing was heard from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Silence {
    /// Its name could not be resolved.
    Unresolved,
    /// No connection, or no answer in time.
    NoAnswer,
    /// A connection, but this node or that one refused the other: another secret, TLS, version.
    /// Whoever refused has logged why.
    Refused,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unresolved => "the name does not resolve",
            Self::NoAnswer => "no answer",
            Self::Refused => "refused, see the log above",
        })
    }
}

/// A node that is silent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// Its name, if it is known.
    pub name: Option<String>,
    /// Where it should be reached.
    pub addr: String,
    /// What came of the last knock there.
    pub why: Option<Silence>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} at {}", self.addr)?,
            None => f.write_str(&self.addr)?,
        }
        self.why.map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

/// Why there is neither a founding nor a joining yet. `Display` is a line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Some of those listed, or listed by those, or who knocked, are silent.
    Silent(Vec<Missing>),
    /// This node's word is with a founder who is silent.
    FounderSilent(Missing),
    /// All is well: another node founds, then this one joins.
    Founder(String),
    /// All is well: this node founds as soon as all of these have given their word.
    Words(Vec<String>),
    /// Two nodes have one name.
    SameName {
        /// The name.
        name: String,
        /// Where the one and the other say that they are reached.
        addrs: [String; 2],
    },
    /// The addresses belong to more than one cluster.
    Clusters(Vec<(String, u128)>),
    /// There is a cluster, but the members that were met are silent now.
    MembersSilent(Vec<Missing>),
    /// More nodes than can be born together.
    Crowd(usize),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(missing) => write!(
                f,
                "there is no cluster yet, and these nodes are silent: {}; start them, or take them \
                 out of every node's addrs; if they are gone for good, start one node with \
                 --bootstrap",
                List(missing)
            ),
            Self::FounderSilent(founder) => write!(
                f,
                "there is no cluster yet: {founder} was about to found it with this node's word, \
                 and is silent; start it again; if it is gone for good, start one node with \
                 --bootstrap"
            ),
            Self::Founder(name) => {
                write!(f, "{name} founds the cluster; this node joins it then")
            }
            Self::Words(names) => write!(
                f,
                "this node founds the cluster as soon as all of these agree: {}",
                List(names)
            ),
            Self::SameName { name, addrs: [one, other] } => write!(
                f,
                "there is no cluster yet: two nodes are called {name}, at {one} and at {other}; \
                 give one of them another node_id"
            ),
            Self::Clusters(members) => {
                let members: Vec<String> = members
                    .iter()
                    .map(|(addr, cluster)| format!("{addr} of cluster {cluster:032x}"))
                    .collect();
                write!(
                    f,
                    "members of different clusters answer: {}; clusters are never merged: leave \
                     in addrs only those of the cluster that this node is to join",
                    List(&members)
                )
            }
            Self::MembersSilent(missing) => write!(
                f,
                "there is a cluster to join, but its members are silent now: {}; start one of them",
                List(missing)
            ),
            Self::Crowd(max) => write!(
                f,
                "more than {max} nodes want to be born together; start one of them with \
                 --bootstrap, and the others join it"
            ),
        }
    }
}

struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            item.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_names_who_is_missing_where_and_why() {
        let missing = |name: Option<&str>, addr: &str, why| Missing {
            name: name.map(str::to_owned),
            addr: addr.to_owned(),
            why,
        };
        let waiting = Waiting::Silent(vec![
            missing(Some("node1"), "10.0.1.10:7701", Some(Silence::NoAnswer)),
            missing(None, "db4:7701", Some(Silence::Unresolved)),
            missing(None, "db5:7701", None),
        ]);
        assert_eq!(
            waiting.to_string(),
            "there is no cluster yet, and these nodes are silent: node1 at 10.0.1.10:7701 (no \
             answer), db4:7701 (the name does not resolve), db5:7701; start them, or take them \
             out of every node's addrs; if they are gone for good, start one node with --bootstrap"
        );
    }
}
