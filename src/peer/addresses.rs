//! Where a node may be, the likeliest address first.
//!
//! Pure. What was heard last is tried first, the others in turn. Whoever answers at an address must
//! prove to be the node, so an address that is wrong costs an attempt and nothing else.

/// Most addresses that are kept of one node.
const ADDRESSES_MAX: usize = 6;

/// Who says where a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The topology, which changes last.
    Topology,
    /// The node itself, when it connected or knocked.
    Itself,
    /// Gossip, as the node says there.
    Gossip,
    /// Gossip, by where the node's datagrams come from or go to.
    Datagrams,
    /// Another member that is connected with the node.
    Member,
}

const SOURCES: usize = 5;

/// What an address that was heard means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing new.
    None,
    /// It should be tried.
    Found,
    /// The node says itself that it is elsewhere now: its process is another one.
    Moved,
}

/// The addresses of one node.
#[derive(Debug)]
pub(super) struct Addresses {
    /// Never empty; the likeliest first.
    known: Vec<String>,
    /// What each source said last.
    told: [Option<String>; SOURCES],
    /// The place in `known` of the next attempt.
    at: usize,
}

impl Addresses {
    /// Starts from what the topology says.
    pub(super) fn new(addr: &str) -> Self {
        let mut told = [const { None }; SOURCES];
        told[Source::Topology as usize] = Some(addr.to_owned());
        Self { known: vec![addr.to_owned()], told, at: 0 }
    }

    /// A source says that the node is at `addr`. Only what it has not just said counts.
    pub(super) fn hear(&mut self, source: Source, addr: &str) -> News {
        let before = self.told[source as usize].replace(addr.to_owned());
        let says_so_itself = matches!(source, Source::Itself | Source::Gossip);
        let news = match before {
            Some(before) if before == addr => News::None,
            Some(_) if says_so_itself => News::Moved,
            _ if self.known[0] == addr => News::None,
            _ => News::Found,
        };
        if news != News::None {
            self.prefer(addr);
        }
        news
    }

    /// The address to try next.
    pub(super) fn next(&self) -> &str {
        &self.known[self.at]
    }

    /// Whether the next attempt begins a round through all addresses.
    pub(super) fn is_at_start(&self) -> bool {
        self.at == 0
    }

    /// The node is at `addr`.
    pub(super) fn works(&mut self, addr: &str) {
        self.prefer(addr);
    }

    /// The node could not be had at `addr`. Whether another address is left to try in this round.
    pub(super) fn failed(&mut self, addr: &str) -> bool {
        if self.known[self.at] == addr {
            self.at = (self.at + 1) % self.known.len();
        }
        self.at != 0
    }

    /// Another node is at `addr`, which goes if it is not the only one. Whether another is left to
    /// try at once.
    pub(super) fn is_anothers(&mut self, addr: &str) -> bool {
        if self.known.len() == 1 || self.known[self.at] != addr {
            return self.failed(addr);
        }
        self.known.remove(self.at);
        self.at %= self.known.len();
        true
    }

    /// All of them, the likeliest first.
    pub(super) fn all(&self) -> &[String] {
        &self.known
    }

    fn prefer(&mut self, addr: &str) {
        self.known.retain(|known| known != addr);
        self.known.insert(0, addr.to_owned());
        self.known.truncate(ADDRESSES_MAX);
        self.at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_last_is_tried_first_and_the_others_in_turn() {
        let mut addresses = Addresses::new("old:1");
        assert_eq!(addresses.hear(Source::Gossip, "new:1"), News::Found);
        assert_eq!(addresses.hear(Source::Member, "newer:1"), News::Found);
        assert_eq!(addresses.all(), ["newer:1", "new:1", "old:1"]);
        assert_eq!(addresses.next(), "newer:1");
        assert!(addresses.failed("newer:1"));
        assert_eq!(addresses.next(), "new:1");
        assert!(addresses.failed("new:1"));
        assert!(!addresses.failed("old:1"), "the round is over");
        assert_eq!(addresses.next(), "newer:1");
        addresses.works("old:1");
        assert_eq!(addresses.all(), ["old:1", "newer:1", "new:1"]);
    }

    #[test]
    fn what_a_source_repeats_is_no_news() {
        let mut addresses = Addresses::new("a:1");
        assert_eq!(addresses.hear(Source::Topology, "a:1"), News::None);
        assert_eq!(addresses.hear(Source::Itself, "b:1"), News::Found);
        for (source, addr) in [(Source::Topology, "a:1"), (Source::Itself, "b:1")] {
            assert_eq!(addresses.hear(source, addr), News::None);
        }
        assert_eq!(addresses.next(), "b:1");
        assert_eq!(addresses.hear(Source::Topology, "c:1"), News::Found);
        assert_eq!(addresses.next(), "c:1");
    }

    #[test]
    fn a_node_that_says_another_address_than_before_has_moved() {
        let mut addresses = Addresses::new("a:1");
        assert_eq!(addresses.hear(Source::Gossip, "a:1"), News::None);
        assert_eq!(addresses.hear(Source::Gossip, "b:1"), News::Moved);
        assert_eq!(addresses.hear(Source::Itself, "b:1"), News::None, "known already");
        assert_eq!(addresses.hear(Source::Itself, "a:1"), News::Moved, "and back");
        assert_eq!(addresses.hear(Source::Datagrams, "x:1"), News::Found);
        assert_eq!(addresses.hear(Source::Datagrams, "y:1"), News::Found, "no word of its own");
        assert_eq!(addresses.hear(Source::Gossip, "y:1"), News::Moved, "now it is");
    }

    #[test]
    fn an_address_where_another_node_is_goes_unless_it_is_the_last() {
        let mut addresses = Addresses::new("a:1");
        addresses.hear(Source::Member, "b:1");
        assert!(addresses.is_anothers("b:1"));
        assert_eq!(addresses.all(), ["a:1"]);
        assert!(!addresses.is_anothers("a:1"));
        assert_eq!(addresses.all(), ["a:1"]);
    }

    #[test]
    fn addresses_are_bounded() {
        let mut addresses = Addresses::new("a:0");
        for port in 1..20 {
            addresses.hear(Source::Gossip, &format!("a:{port}"));
        }
        assert_eq!(addresses.all(), ["a:19", "a:18", "a:17", "a:16", "a:15", "a:14"]);
    }

    #[test]
    fn what_is_heard_in_the_middle_of_a_round_is_tried_next() {
        let mut addresses = Addresses::new("a:1");
        addresses.hear(Source::Member, "b:1");
        assert!(addresses.failed("b:1"));
        addresses.hear(Source::Gossip, "c:1");
        assert_eq!(addresses.next(), "c:1");
        assert!(!addresses.failed("a:1"), "the attempt that ends now was at another address");
        assert_eq!(addresses.next(), "c:1");
    }
}
