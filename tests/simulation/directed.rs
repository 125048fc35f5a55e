//! Schedules that chance does not hit: those of figure 8 in Raft's paper (Ongaro and Ousterhout,
//! 2014), of a primary that changes its voters too early, and of one that was deposed and is asked.
//! Copies alone, messages by hand.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;

use aegiskv::entry::{Key, Position, RequestId, ShardId, Timestamp};
use aegiskv::shard::{
    Answer, Condition, Envelope, Message, Need, Operation, Outputs, Part, Refused, Request,
    Setting, Shard, Ttl,
};
use aegiskv::store::{Budget, Config, EvictionPolicy, HashKeys};
use aegiskv::topology::{Configuration, Copies, NodeId, Seat};

const NOW: Timestamp = Timestamp(1_800_000_000_000);

/// With a value so large the record fills a message of its own.
const LARGE: usize = 1 << 20;

const TICKET: u64 = 9;

fn seat(node: u64) -> Seat {
    Seat { node: NodeId(node), life: 1 }
}

fn seats(nodes: &[u64]) -> Vec<Seat> {
    nodes.iter().copied().map(seat).collect()
}

fn configuration(epoch: u32, primary: u64, voters: &[u64], old_voters: &[u64]) -> Configuration {
    Configuration {
        epoch,
        primary: seat(primary),
        voters: seats(voters),
        old_voters: seats(old_voters),
        learners: Vec::new(),
        unclean: false,
    }
}

fn request(value_bytes: usize) -> Request {
    let value = Bytes::from(vec![b'v'; value_bytes]);
    Request {
        key: Key::new(&b"k"[..], 8).expect("short"),
        operation: Operation::Put { value, content_type: Bytes::new(), ttl: Ttl::Unlimited },
        condition: Condition::Always,
        id: RequestId::Counted { incarnation: 1, counter: 0, waits_from: 0 },
    }
}

/// Whether an envelope arrives.
type Passes<'a> = &'a dyn Fn(&Envelope) -> bool;

struct Copied {
    shards: Vec<Shard>,
    answers: Vec<(u64, Answer)>,
}

impl Copied {
    fn new(nodes: u64) -> Self {
        let config = Config {
            max_memory: 1 << 30,
            eviction_ratio: 0.9,
            eviction_policy: EvictionPolicy::None,
            replication_log: 16 << 20,
        };
        let shard = |node| {
            let setting = Setting {
                me: seat(node),
                region: 0,
                budget: Arc::new(Budget::new(&config)),
                keys: HashKeys::seeded(node),
                source: node,
                num_shards: 1,
            };
            Shard::new(ShardId(0), Arc::new(setting))
        };
        Self { shards: (1..=nodes).map(shard).collect(), answers: Vec::new() }
    }

    fn of(&mut self, node: u64) -> &mut Shard {
        &mut self.shards[node as usize - 1]
    }

    /// Lets a copy act, and carries what comes of it, and of that, as far as it passes.
    fn act<T>(
        &mut self,
        node: u64,
        passes: Passes<'_>,
        act: impl FnOnce(&mut Shard, &mut Outputs) -> T,
    ) -> T {
        let mut out = Outputs::default();
        let result = act(self.of(node), &mut out);
        self.settle(node, &mut out);
        loop {
            self.answers.append(&mut out.answers);
            let messages = std::mem::take(&mut out.messages);
            if messages.is_empty() {
                return result;
            }
            for envelope in messages.into_iter().filter(|envelope| passes(envelope)) {
                let to = envelope.to.node.0;
                self.of(to).receive(envelope, NOW, &mut out);
                self.settle(to, &mut out);
            }
        }
    }

    fn settle(&mut self, node: u64, out: &mut Outputs) {
        // Twice: settling a fence may bring a first record.
        for _ in 0..2 {
            let shard = self.of(node);
            let settled = shard.to_settle();
            shard.settled(settled, NOW, out);
        }
    }

    fn configure(&mut self, node: u64, configuration: &Configuration, passes: Passes<'_>) {
        let configuration = Arc::new(configuration.clone());
        self.act(node, passes, |shard, out| shard.configure(configuration, NOW, out));
    }

    fn write(&mut self, node: u64, bytes: usize, passes: Passes<'_>) -> Result<(), Refused> {
        let need = Need { copies: Copies::Majority, committed: true };
        let request = request(bytes);
        let wait = Some((TICKET, need));
        self.act(node, passes, |shard, out| shard.write(request, wait, NOW, out).map(drop))
    }

    fn has(&mut self, node: u64) -> bool {
        self.of(node).get(b"k", NOW).found().is_some()
    }
}

fn among(nodes: &'static [u64]) -> impl Fn(&Envelope) -> bool {
    move |envelope| nodes.contains(&envelope.from.node.0) && nodes.contains(&envelope.to.node.0)
}

/// Figure 8: a record of an older epoch gets to a majority, and is given up all the same. Answers
/// whether somebody was told that it is safe.
fn told_of_what_is_given_up() -> bool {
    let mut copies = Copied::new(3);
    let all = [1, 2, 3];
    copies.configure(1, &configuration(1, 1, &all, &[]), &|_| true);
    assert_eq!(copies.of(1).part(), Part::Active);
    // Ordered by 1, it reaches nobody.
    copies.write(1, LARGE, &|_| false).expect("1 leads");
    // 2 leads with a record of its own, which reaches nobody.
    copies.configure(2, &configuration(2, 2, &all, &[]), &|envelope| {
        among(&[2, 3])(envelope) && !matches!(envelope.message, Message::Append { .. })
    });
    assert_eq!(copies.of(2).last(), Position { epoch: 2, seq: 2 });
    // 1 leads again, and brings 3 the old record, but none of its new epoch.
    let has_old = Cell::new(false);
    copies.configure(1, &configuration(3, 1, &all, &[]), &|envelope| {
        // While 3 lacks the old record it cannot take the new one, but sees that it is behind.
        let came = has_old.get();
        if let Message::Append { records, .. } = &envelope.message
            && let [record] = records.as_slice()
        {
            has_old.set(came || record.position == Position { epoch: 1, seq: 2 });
            return among(&[1, 3])(envelope) && !(came && record.position.epoch == 3);
        }
        among(&[1, 3])(envelope)
    });
    copies.answers.clear();
    let told = copies.write(1, LARGE, &|_| false).is_ok()
        && copies
            .answers
            .iter()
            .any(|(ticket, answer)| *ticket == TICKET && matches!(answer, Answer::Done(_)));
    // 2 leads again: its log is the longer one.
    copies.configure(2, &configuration(4, 2, &all, &[]), &among(&[2, 3]));
    assert!(copies.of(2).is_active() && !copies.has(2) && !copies.has(3));
    told
}

/// A primary that takes its voters' change for done before it is. Answers whether what was
/// committed is lost.
fn lost_by_changing_voters() -> bool {
    let mut copies = Copied::new(5);
    copies.configure(1, &configuration(1, 1, &[1, 2, 3], &[]), &among(&[1, 2]));
    copies.write(1, 1, &among(&[1, 2])).expect("1 leads");
    assert_eq!(copies.answers.len(), 1, "1 and 2 have it");
    // 3 leads both sets; the new ones raise their fences, and get no record yet.
    let joint = configuration(2, 3, &[3, 4, 5], &[1, 2, 3]);
    copies.configure(3, &joint, &|envelope| {
        let record = matches!(envelope.message, Message::Append { .. });
        among(&[2, 3, 4])(envelope) && !(record && envelope.to.node.0 > 3)
    });
    assert!(copies.has(3));
    if copies.of(3).part() != Part::Active {
        // By the rules there is no change before it is.
        return false;
    }
    copies.configure(4, &configuration(3, 4, &[3, 4, 5], &[]), &among(&[4, 5]));
    copies.of(4).is_active() && !copies.has(4)
}

/// A copy that was away asks a primary that three of five have left for another. Answers whether it
/// takes itself for level, and lacks what was committed before it woke.
fn level_by_a_deposed_primary() -> bool {
    let mut copies = Copied::new(5);
    let all = [1, 2, 3, 4, 5];
    copies.configure(1, &configuration(1, 1, &all, &[]), &|_| true);
    copies.configure(2, &configuration(1, 1, &all, &[]), &|_| true);
    assert!(copies.of(2).is_level());
    copies.configure(3, &configuration(2, 3, &all, &[]), &among(&[3, 4, 5]));
    copies.write(3, 1, &among(&[3, 4, 5])).expect("3 leads");
    assert_eq!(copies.answers.len(), 1, "3, 4 and 5 have it");
    let away = (NOW, Timestamp(NOW.0 + 8_000));
    copies.act(2, &among(&[1, 2]), |shard, out| shard.was_away(away, out));
    copies.of(2).is_level() && !copies.has(2)
}

#[test]
fn a_primary_tells_where_the_log_ends_only_once_a_majority_confirms_it() {
    assert!(!level_by_a_deposed_primary());
}

#[test]
fn figure_8_a_majority_of_copies_is_not_enough_for_a_record_of_an_older_epoch() {
    assert!(!told_of_what_is_given_up());
}

#[test]
fn voters_change_only_once_a_record_of_the_epoch_is_committed() {
    assert!(!lost_by_changing_voters());
}

#[cfg(feature = "mutations")]
mod broken {
    use aegiskv::mutation::{Mutation, set};

    #[test]
    fn figure_8_shows_what_counting_older_records_does() {
        set(Some(Mutation::OlderEpochsCount));
        assert!(super::told_of_what_is_given_up());
        set(None);
    }

    #[test]
    fn a_primary_that_tells_where_its_log_ends_unconfirmed_shows_what_is_old() {
        set(Some(Mutation::ReadIndexUnconfirmed));
        assert!(super::level_by_a_deposed_primary());
        set(None);
    }

    #[test]
    fn a_primary_active_at_once_loses_what_was_committed() {
        set(Some(Mutation::ActiveAtOnce));
        assert!(super::lost_by_changing_voters());
        set(None);
    }
}
