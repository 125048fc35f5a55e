//! A few copies of one shard, and messages carried by hand.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Acks, Answer, Arc, Budget, Condition, Configuration, Envelope, Event, HashKeys, History,
    Message, Need, OVERDUE_TICKS, Operation, Outputs, Part, Piece, Position, RESEND_TICKS, Request,
    Rest, Seat, Setting, Shard, ShardId, Timestamp, Ttl, Version,
};
use crate::entry::{Key, RequestId, Verdict};
use crate::store::{Config, EvictionPolicy};
use crate::topology::{Copies, NodeId};

pub(super) const NOW: Timestamp = Timestamp(1_800_000_000_000);

pub(super) fn seat(node: u64) -> Seat {
    Seat { node: NodeId(node), life: 1 }
}

fn copy(node: u64) -> Shard {
    let config = Config {
        max_memory: 1 << 20,
        eviction_ratio: 0.9,
        eviction_policy: EvictionPolicy::S3Fifo,
        replication_log: 1 << 18,
    };
    let setting = Setting {
        me: seat(node),
        region: 0,
        budget: Arc::new(Budget::new(&config)),
        keys: HashKeys::seeded(node),
        source: node,
        num_shards: 1,
    };
    Shard::new(ShardId(0), Arc::new(setting))
}

pub(super) fn copies() -> Vec<Shard> {
    (1..=3).map(copy).collect()
}

pub(super) fn three_voters(epoch: u32, primary: u64) -> Arc<Configuration> {
    let (old_voters, learners) = (Vec::new(), Vec::new());
    let voters = vec![seat(1), seat(2), seat(3)];
    let primary = seat(primary);
    Arc::new(Configuration { epoch, primary, voters, old_voters, learners, unclean: false })
}

/// Settles whatever a copy has logged.
fn settle(shard: &mut Shard, out: &mut Outputs) {
    let settled = shard.to_settle();
    shard.settled(settled, NOW, out);
}

/// Carries messages between the copies until nobody says anything; whom `cut` names hears nothing.
pub(super) fn carry(shards: &mut [Shard], mut out: Outputs, cut: &[u64]) -> Vec<(u64, Answer)> {
    let mut answers = Vec::new();
    loop {
        answers.append(&mut out.answers);
        let messages = std::mem::take(&mut out.messages);
        if messages.is_empty() {
            return answers;
        }
        for envelope in messages {
            let (from, to) = (envelope.from.node.0, envelope.to.node.0);
            if !cut.contains(&to) && !cut.contains(&from) {
                let shard = &mut shards[to as usize - 1];
                shard.receive(envelope, NOW, &mut out);
                settle(shard, &mut out);
            }
        }
    }
}

/// Tells all but those cut off of a configuration, and lets its primary lead.
pub(super) fn configure(shards: &mut [Shard], configuration: &Arc<Configuration>, cut: &[u64]) {
    let mut out = Outputs::default();
    for shard in shards.iter_mut().filter(|shard| !cut.contains(&shard.setting.me.node.0)) {
        shard.configure(configuration.clone(), NOW, &mut out);
        settle(shard, &mut out);
        // Its first record, if it leads at once.
        settle(shard, &mut out);
    }
    carry(shards, out, cut);
}

pub(super) fn put(key: &'static str, ttl: Ttl, counter: u64) -> Request {
    Request {
        key: Key::new(key.as_bytes(), 64).expect("short"),
        operation: Operation::Put {
            value: Bytes::from_static(b"v"),
            content_type: Bytes::new(),
            ttl,
        },
        condition: Condition::Always,
        id: RequestId::Counted { incarnation: 1, counter, waits_from: 0 },
    }
}

/// Has a primary order a write; carries it to those that are not cut off.
pub(super) fn write(shards: &mut [Shard], at: u64, request: Request, now: Timestamp, cut: &[u64]) {
    let mut out = Outputs::default();
    let shard = &mut shards[at as usize - 1];
    shard.write(request, None, now, &mut out).expect("it leads");
    settle(shard, &mut out);
    carry(shards, out, cut);
}

pub(super) fn at(epoch: u32, seq: u64) -> Position {
    Position { epoch, seq }
}

#[test]
fn three_copies_agree_and_one_that_was_away_comes_level() {
    let mut shards = copies();
    configure(&mut shards, &three_voters(1, 1), &[]);
    assert_eq!(shards[0].part(), Part::Active);
    write(&mut shards, 1, put("a", Ttl::Unlimited, 0), NOW, &[3]);
    assert_eq!((shards[1].last(), shards[2].last()), (at(1, 2), at(1, 1)));
    write(&mut shards, 1, put("b", Ttl::Unlimited, 1), NOW, &[]);
    let hashes: Vec<u64> = shards.iter().map(|shard| shard.table().content_hash()).collect();
    assert_eq!(shards[2].last(), at(1, 3));
    assert!(hashes[0] != 0 && hashes.iter().all(|hash| *hash == hashes[0]));
}

#[test]
fn a_record_that_a_voter_does_not_acknowledge_counts_as_missed_once() {
    let mut shards = copies();
    configure(&mut shards, &three_voters(1, 1), &[]);
    // A second in which whom `cut` names hears nothing; gives what was counted.
    let a_second = |shards: &mut [Shard], cut: &[u64]| -> u64 {
        let mut missed = 0;
        for _ in 0..OVERDUE_TICKS {
            let mut out = Outputs::default();
            shards[0].tick(NOW, &mut out);
            for event in out.events.drain(..) {
                if let Event::Missed { records } = event {
                    missed += records;
                }
            }
            carry(shards, out, cut);
        }
        missed
    };
    write(&mut shards, 1, put("a", Ttl::Unlimited, 0), NOW, &[]);
    assert_eq!(a_second(&mut shards, &[3]), 0, "nothing is missing");
    write(&mut shards, 1, put("a", Ttl::Unlimited, 1), NOW, &[3]);
    write(&mut shards, 1, put("b", Ttl::Unlimited, 2), NOW, &[3]);
    assert_eq!(a_second(&mut shards, &[3]), 2);
    assert_eq!(a_second(&mut shards, &[3]), 0, "they were counted");
    write(&mut shards, 1, put("c", Ttl::Unlimited, 3), NOW, &[2, 3]);
    assert_eq!(a_second(&mut shards, &[2, 3]), 2, "one record, and two voters without it");
    assert_eq!(a_second(&mut shards, &[]), 0, "both are level again");
}

#[test]
fn a_primary_leads_only_once_its_own_fence_is_durable() {
    let mut shard = copy(1);
    let mut out = Outputs::default();
    shard.configure(three_voters(4, 1), NOW, &mut out);
    for from in [2, 3] {
        let (from, to) = (seat(from), seat(1));
        let message = Message::Fenced { last: Position::default() };
        let envelope = Envelope { shard: ShardId(0), from, to, epoch: 4, message };
        shard.receive(envelope, NOW, &mut out);
    }
    // Others' fences are enough for a majority. But if it came back without its own, it would lead
    // this epoch a second time, with other records.
    assert_eq!(shard.last(), Position::default());
    settle(&mut shard, &mut out);
    assert_eq!(shard.last(), at(4, 1));
}

#[test]
fn a_linearizable_read_orders_the_removal_of_what_it_judged_expired() {
    let mut shards = copies();
    configure(&mut shards, &three_voters(1, 1), &[]);
    let ttl = Ttl::For(Duration::from_millis(100));
    write(&mut shards, 1, put("lock", ttl, 0), NOW, &[]);
    let mut out = Outputs::default();
    let later = Timestamp(NOW.0 + 200);
    let lookup = shards[0].get_linearizable(b"lock", 7, later, &mut out).expect("it leads");
    assert!(lookup.found().is_none());
    settle(&mut shards[0], &mut out);
    let answers = carry(&mut shards, out, &[]);
    assert_eq!(answers, [(7, Answer::Done(Acks { had: 3, of: 3 }))]);
    // The next primary's clock is slow: there the lock would not have expired yet.
    configure(&mut shards, &three_voters(2, 2), &[]);
    assert!(shards[1].get(b"lock", NOW).found().is_none());
}

#[test]
fn what_is_declared_to_count_goes_on_from_a_position_that_no_other_has() {
    let mut shards = copies();
    configure(&mut shards, &three_voters(1, 1), &[]);
    write(&mut shards, 1, put("a", Ttl::Unlimited, 0), NOW, &[]);
    let alone = Configuration {
        voters: vec![seat(3)],
        learners: vec![seat(1), seat(2)],
        unclean: true,
        ..Configuration::clone(&three_voters(2, 3))
    };
    let mut out = Outputs::default();
    shards[2].configure(Arc::new(alone), NOW, &mut out);
    assert_eq!(shards[2].last(), at(2, 3));
    assert_eq!(shards[2].log.history.common(&shards[0].log.history), None);
    // Told again, as after a restart, it does not begin anew once more.
    settle(&mut shards[2], &mut out);
    let last = shards[2].last();
    assert_eq!(last, at(2, 4));
    shards[2].configuration = None;
    let again = Configuration { unclean: true, ..Configuration::clone(&three_voters(2, 3)) };
    shards[2].configure(Arc::new(again), NOW, &mut out);
    assert_eq!(shards[2].last(), last);
}

#[test]
fn a_copy_that_gave_a_write_up_does_not_hold_it() {
    let mut shards = copies();
    configure(&mut shards, &three_voters(1, 1), &[]);
    // The first primary's clock is ahead; its last record reaches nobody.
    let ahead = Timestamp(NOW.0 + 5_000);
    write(&mut shards, 1, put("a", Ttl::Unlimited, 0), ahead, &[2, 3]);
    let given_up = shards[0].highest_version();
    assert!(shards[0].holds_write(b"a", given_up) && !shards[0].holds_write(b"b", given_up));
    configure(&mut shards, &three_voters(2, 2), &[1]);
    for (counter, key) in [(1, "a"), (2, "b")] {
        write(&mut shards, 2, put(key, Ttl::Unlimited, counter), NOW, &[1]);
    }
    // Though the first has seen a higher version, it does not hold the write.
    let kept = shards[1].highest_version();
    assert!(kept < given_up && shards[1].holds_write(b"b", kept));
    assert!(!shards[0].holds_write(b"b", kept));
    let late = three_voters(2, 2);
    let mut out = Outputs::default();
    shards[0].configure(late, NOW, &mut out);
    for _ in 0..RESEND_TICKS {
        shards[1].tick(NOW, &mut out);
    }
    carry(&mut shards, out, &[]);
    assert_eq!(shards[0].last(), shards[1].last());
    assert!(shards[0].holds_write(b"b", kept) && !shards[0].holds_write(b"a", given_up));
    assert!(shards[0].highest_version() >= Version::at(ahead, 0), "never given out again");
}

#[test]
fn a_copy_that_has_all_and_a_slow_disk_is_asked_and_sent_nothing_twice() {
    let mut shards = copies();
    configure(&mut shards, &three_voters(1, 1), &[]);
    // Copy 2 has the record, and its log is slow; copy 3 lacks it.
    let mut out = Outputs::default();
    shards[0].write(put("a", Ttl::Unlimited, 0), None, NOW, &mut out).expect("it leads");
    settle(&mut shards[0], &mut out);
    let arrives = out.messages.iter().find(|envelope| envelope.to == seat(2)).expect("to copy 2");
    shards[1].receive(arrives.clone(), NOW, &mut Outputs::default());
    assert_eq!((shards[1].last(), shards[2].last()), (at(1, 2), at(1, 1)));
    let mut out = Outputs::default();
    for _ in 0..8 * RESEND_TICKS {
        shards[0].tick(NOW, &mut out);
    }
    let brings = |envelope: &Envelope| match &envelope.message {
        Message::Append { records, .. } => records.len(),
        _ => 0,
    };
    assert!(!out.messages.is_empty());
    assert_eq!(out.messages.iter().map(brings).sum::<usize>(), 0, "{:?}", out.messages);
    carry(&mut shards, out, &[]);
    assert_eq!(shards[2].last(), at(1, 2));
}

#[test]
fn what_is_settled_stays_settled_though_it_is_told_late() {
    let mut shards = vec![copy(1)];
    configure(&mut shards, &Arc::new(Configuration::alone(1, seat(1))), &[]);
    let mut out = Outputs::default();
    let shard = &mut shards[0];
    shard.write(put("a", Ttl::Unlimited, 0), None, NOW, &mut out).expect("it leads");
    let first = shard.to_settle();
    shard.write(put("b", Ttl::Unlimited, 1), None, NOW, &mut out).expect("it leads");
    let second = shard.to_settle();
    shard.settled(second, NOW, &mut out);
    shard.settled(first, NOW, &mut out);
    let need = Need { copies: Copies::All, committed: true };
    let again = put("b", Ttl::Unlimited, 1);
    let ordered = shard.write(again, Some((9, need)), NOW, &mut out).expect("it leads");
    assert_eq!(ordered.verdict, Verdict::Created);
    assert_eq!(out.answers, [(9, Answer::Done(Acks { had: 1, of: 1 }))]);
}

#[test]
fn a_copy_that_could_not_be_kept_is_asked_for_again() {
    let mut shard = copy(2);
    let mut out = Outputs::default();
    shard.configure(three_voters(1, 1), NOW, &mut out);
    let tell = |message| {
        let (from, to) = (seat(1), seat(2));
        Envelope { shard: ShardId(0), from, to, epoch: 1, message }
    };
    shard.receive(tell(Message::TooFarBehind), NOW, &mut out);
    shard.begin_copy(5, &mut out);
    let mut history = History::default();
    history.push(at(1, 9));
    let rest = Rest::End { history, highest: Version(1), requests: Vec::new() };
    let (records, entries) = (Vec::new(), Vec::new());
    let piece = Piece { session: 5, after: None, records, entries, rest };
    shard.receive(tell(Message::Piece(Box::new(piece))), NOW, &mut out);
    assert!(shard.is_copying());
    shard.copy_failed(5);
    assert!(shard.wants_copy() && !shard.is_copying());
}

#[test]
fn a_copy_that_cannot_vouch_for_its_log_claims_none_and_does_not_lead_with_it() {
    let mut shards = copies();
    configure(&mut shards, &three_voters(1, 1), &[]);
    write(&mut shards, 1, put("a", Ttl::Unlimited, 0), NOW, &[3]);
    // The log of 1 is of a life whose memory is lost.
    shards[0].vouched = 0;
    let mut out = Outputs::default();
    let (from, to, message) = (seat(3), seat(1), Message::Fence);
    shards[0].receive(Envelope { shard: ShardId(0), from, to, epoch: 2, message }, NOW, &mut out);
    let fenced = Message::Fenced { last: Position::default() };
    assert_eq!(out.messages.last().map(|envelope| &envelope.message), Some(&fenced));
    configure(&mut shards, &three_voters(3, 1), &[2]);
    assert_eq!(shards[0].part(), Part::TakingOver, "it takes the log of 3, a copy of it");
    assert!(shards[0].wants_copy());
}

#[test]
fn whoever_has_no_seat_any_more_stops_copying() {
    let mut shard = copy(3);
    let mut out = Outputs::default();
    shard.configure(three_voters(1, 1), NOW, &mut out);
    let message = Message::TooFarBehind;
    let (from, to) = (seat(1), seat(3));
    shard.receive(Envelope { shard: ShardId(0), from, to, epoch: 1, message }, NOW, &mut out);
    shard.begin_copy(5, &mut out);
    let two = Configuration {
        voters: vec![seat(1), seat(2)],
        ..Configuration::clone(&three_voters(2, 1))
    };
    shard.configure(Arc::new(two), NOW, &mut out);
    assert!(!shard.is_copying() && !shard.wants_copy());
}
