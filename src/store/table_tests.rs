//! The table against a model, and what it promises one by one.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::store::{Config, EvictionPolicy};

const NOON: Timestamp = Timestamp(1_000_000);
const START: Timestamp = Timestamp(0);

fn budget(max_memory: u64) -> Arc<Budget> {
    let eviction_policy = EvictionPolicy::S3Fifo;
    Arc::new(Budget::new(&Config { max_memory, eviction_ratio: 0.9, eviction_policy }))
}

fn table() -> Table {
    Table::new(budget(1 << 30), HashKeys::seeded(1))
}

fn key(n: u32) -> Key {
    Key::new(format!("key:{n:08}").into_bytes(), KEY_BYTES_CEILING).expect("not empty")
}

fn put(table: &mut Table, n: u32, value: &[u8]) -> i64 {
    table.put(&key(n), value, b"", Version(u64::from(n) + 1), None)
}

fn value_of(table: &Table, n: u32) -> Option<Vec<u8>> {
    let found = table.get(key(n).as_bytes(), NOON).found()?;
    Some(found.entry.value_bytes().to_vec())
}

fn keys_from(table: &Table, from: u64, looks_max: usize) -> (Vec<Vec<u8>>, Option<u64>) {
    let mut keys = Vec::new();
    let next = table.scan(from, looks_max, NOON, |view| {
        keys.push(view.entry.key().to_vec());
        ControlFlow::Continue(())
    });
    (keys, next)
}

impl Table {
    /// Checks the invariants that the module states.
    fn check(&self) {
        let entries = self.index.check();
        assert_eq!(self.queues.check(), entries);
        let (mut entry_bytes, mut content_hash) = (0, 0_u64);
        self.index.walk(0, |entry| {
            entry_bytes += entry.size();
            content_hash =
                content_hash.wrapping_add(KeyMark::of(entry.key()).with(entry.version()));
            ControlFlow::Continue(())
        });
        assert_eq!(content_hash, self.content_hash);
        assert_eq!(self.bytes(), entry_bytes + self.index.bytes() + self.ghost.bytes());
        assert_eq!(self.charged.items, entries as u64);
    }
}

#[test]
fn an_entry_reads_back_whole_and_its_growth_is_told() {
    let mut table = table();
    let before = table.bytes();
    let grew =
        table.put(&key(1), &[7; 100], b"text/plain", Version(5), Some(Timestamp(NOON.0 + 1)));
    assert_eq!(table.bytes(), before.wrapping_add_signed(grew));
    let found = table.get(key(1).as_bytes(), NOON).found().expect("there");
    assert_eq!(found.entry.value(), vec![7; 100]);
    assert_eq!(found.entry.content_type(), b"text/plain");
    assert_eq!((found.version, found.expires_at), (Version(5), Some(Timestamp(NOON.0 + 1))));
    assert_eq!(put(&mut table, 1, &[7; 99]), -16, "176 bytes with the content type, 160 without");
}

#[test]
fn an_expired_entry_is_hidden_at_once_and_reported_until_removed() {
    let mut table = table();
    for n in 0..3000_u32 {
        let expires_at = n.is_multiple_of(3).then_some(Timestamp(NOON.0 + u64::from(n)));
        table.put(&key(n), b"v", b"", Version(1), expires_at);
    }
    let later = Timestamp(NOON.0 + 1500);
    assert!(matches!(table.get(key(1500).as_bytes(), later), Lookup::Miss(Miss::Expired)));
    assert!(matches!(table.get(key(1503).as_bytes(), later), Lookup::Hit(_)));
    for _ in 0..2 {
        let (mut out, mut from) = (Vec::new(), Some(0));
        while let Some(position) = from {
            from = table.sweep(position, 10, later, &mut out);
        }
        assert_eq!(out.len(), 501);
    }
    let mut out = Vec::new();
    assert_eq!(table.sweep(0, usize::MAX, Timestamp(NOON.0 - 1), &mut out), None);
    assert!(out.is_empty(), "nothing has expired earlier");
    table.touch(key(1).as_bytes(), Version(2), Some(NOON));
    assert_eq!(table.sweep(0, usize::MAX, NOON, &mut out), None);
    assert_eq!(out.len(), 2, "an expiry set by a touch is seen: {out:?}");
    assert!(table.remove(key(0).as_bytes(), Departure::Expired));
    assert!(matches!(table.get(key(0).as_bytes(), later), Lookup::Miss(Miss::Expired)));
}

#[test]
fn a_touch_changes_version_and_expiry_and_keeps_the_value() {
    let mut table = table();
    put(&mut table, 1, b"v");
    let before = table.get(key(1).as_bytes(), NOON).found().expect("there");
    assert!(table.touch(key(1).as_bytes(), Version(9), Some(Timestamp(NOON.0 + 5))));
    let after = table.get(key(1).as_bytes(), NOON).found().expect("there");
    assert_eq!((after.version, after.expires_at), (Version(9), Some(Timestamp(NOON.0 + 5))));
    assert_eq!((before.version, before.expires_at), (Version(2), None), "what was read stays");
    assert_eq!(after.entry.value_bytes(), b"v");
    assert!(!table.touch(key(2).as_bytes(), Version(9), None));
}

#[test]
fn misses_tell_how_the_key_left() {
    let mut table = table();
    let miss = |table: &Table, n| match table.get(key(n).as_bytes(), NOON) {
        Lookup::Miss(miss) => miss,
        Lookup::Hit(_) => panic!("{n} is there"),
    };
    let left = [(1, Departure::Deleted), (2, Departure::Evicted), (3, Departure::Expired)];
    for (n, departure) in left {
        put(&mut table, n, b"v");
        assert!(table.remove(key(n).as_bytes(), departure));
        assert!(!table.remove(key(n).as_bytes(), departure));
    }
    assert_eq!(miss(&table, 1), Miss::Deleted);
    assert_eq!(miss(&table, 2), Miss::Evicted);
    assert_eq!(miss(&table, 3), Miss::Expired);
    assert_eq!(miss(&table, 4), Miss::Absent);
}

#[test]
fn handles_outlive_replacement_removal_clearing_and_the_table() {
    let mut table = table();
    (1..=4).for_each(|n| drop(put(&mut table, n, format!("value {n}").as_bytes())));
    let values: Vec<Bytes> = (1..=4)
        .map(|n| table.get(key(n).as_bytes(), NOON).found().expect("there").entry.value())
        .collect();
    put(&mut table, 1, b"other");
    table.remove(key(2).as_bytes(), Departure::Deleted);
    let reader = std::thread::spawn({
        let values = values.clone();
        move || values.concat()
    });
    table.clear();
    drop(table);
    assert_eq!(values.concat(), b"value 1value 2value 3value 4");
    assert_eq!(reader.join().expect("thread"), b"value 1value 2value 3value 4");
}

#[test]
fn the_budget_counts_all_tables_and_forgets_dropped_ones() {
    let budget = budget(1 << 30);
    let mut one = Table::new(Arc::clone(&budget), HashKeys::seeded(1));
    let mut two = Table::new(Arc::clone(&budget), HashKeys::seeded(1));
    (0..5000).for_each(|n| drop(put(&mut one, n, b"1")));
    (0..100).for_each(|n| drop(put(&mut two, n, b"2")));
    assert_eq!((budget.used(), budget.items()), (one.bytes() + two.bytes(), 5100));
    drop(one);
    assert_eq!((budget.used(), budget.items()), (two.bytes(), 100));
    two.clear();
    assert_eq!(budget.items(), 0);
    assert!(budget.used() < 100);
}

#[test]
fn a_scan_in_steps_shows_every_key_once_when_nothing_changes() {
    let mut table = table();
    (0..10_000).for_each(|n| drop(put(&mut table, n, b"v")));
    assert!(table.index.page_count() > 8);
    let (mut seen, mut from, mut calls) = (Vec::new(), Some(0), 0);
    while let Some(position) = from {
        let (keys, next) = keys_from(&table, position, 100);
        assert!(keys.len() <= 100);
        seen.extend(keys);
        (from, calls) = (next, calls + 1);
    }
    assert_eq!(seen.len(), 10_000);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 10_000);
    assert!((100..=101).contains(&calls), "{calls}");
}

#[test]
fn a_scan_sees_keys_that_stay_while_pages_split_and_shrink() {
    let mut table = table();
    (0..1000).for_each(|n| drop(put(&mut table, n, b"v")));
    let (mut seen, mut from, mut fresh) = (BTreeSet::new(), Some(0), 1000);
    while let Some(position) = from {
        let (keys, next) = keys_from(&table, position, 50);
        seen.extend(keys);
        from = next;
        (0..1000).for_each(|n| drop(put(&mut table, fresh + n, b"v")));
        if fresh > 4000 {
            (fresh - 3000..fresh - 2000).for_each(|n| {
                table.remove(key(n).as_bytes(), Departure::Deleted);
            });
        }
        fresh += 1000;
        if fresh > 60_000 {
            break;
        }
    }
    // New keys outrun a scan that takes 50 while 1000 come; finish it without more of them.
    while let Some(position) = from {
        let (keys, next) = keys_from(&table, position, 50);
        seen.extend(keys);
        from = next;
    }
    assert!((0..1000).all(|n| seen.contains(key(n).as_bytes())));
    table.check();
}

#[test]
fn a_scan_stops_where_its_visitor_says_and_hides_what_expired() {
    let mut table = table();
    (0..100).for_each(|n| drop(put(&mut table, n, b"v")));
    table.put(&key(200), b"v", b"", Version(1), Some(NOON));
    let mut shown = 0;
    let next = table.scan(0, usize::MAX, NOON, |_| {
        shown += 1;
        if shown == 30 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(shown, 30);
    assert_eq!(keys_from(&table, next.expect("more"), usize::MAX).0.len(), 70);
    let mut all = 0;
    table.scan(0, usize::MAX, START, |_| {
        all += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(all, 101, "a snapshot sees what has expired but was not removed");
}

#[test]
fn what_was_read_twice_outlives_what_was_not() {
    let mut table = table();
    (0..100).for_each(|n| drop(put(&mut table, n, &[0; 50])));
    for n in 0..10 {
        table.get(key(n).as_bytes(), NOON);
        table.get(key(n).as_bytes(), NOON);
    }
    table.get(key(10).as_bytes(), NOON);
    for _ in 0..80 {
        let victims = table.evict_candidates(1, 1, NOON);
        assert_eq!(victims.len(), 1);
        assert_eq!(victims, table.evict_candidates(1, 1, NOON), "the same until removed");
        assert_eq!(victims[0].departure, Departure::Evicted);
        table.remove(victims[0].key.as_bytes(), Departure::Evicted);
        table.check();
    }
    assert!((0..10).all(|n| value_of(&table, n).is_some()));
    assert!((10..90).all(|n| value_of(&table, n).is_none()));
}

#[test]
fn a_key_that_returns_after_eviction_enters_the_main_queue() {
    let mut table = table();
    (0..3).for_each(|n| drop(put(&mut table, n, b"v")));
    table.remove(key(0).as_bytes(), Departure::Evicted);
    table.remove(key(1).as_bytes(), Departure::Deleted);
    (0..2).for_each(|n| drop(put(&mut table, n, b"v")));
    let in_main = |n: u32| {
        let found = table.peek(key(n).as_bytes(), NOON).found().expect("there");
        found.entry.is_in_main()
    };
    assert!(in_main(0) && !in_main(1) && !in_main(2));
}

#[test]
fn a_scan_does_not_save_from_eviction_and_a_peek_neither() {
    let mut table = table();
    (0..10).for_each(|n| drop(put(&mut table, n, b"v")));
    for _ in 0..3 {
        keys_from(&table, 0, usize::MAX);
        table.peek(key(0).as_bytes(), NOON);
    }
    let victims = table.evict_candidates(1, 1, NOON);
    assert_eq!(victims[0].key, key(0), "oldest first");
}

#[test]
fn candidates_are_worth_what_was_asked_and_expired_ones_are_called_so() {
    let mut table = table();
    (0..100).for_each(|n| drop(put(&mut table, n, &[0; 100])));
    table.put(&key(0), b"v", b"", Version(1), Some(NOON));
    (0..3).for_each(|_| drop(table.get(key(0).as_bytes(), START)));
    let victims = table.evict_candidates(1000, 64, NOON);
    assert_eq!(victims[0].departure, Departure::Expired, "read or not");
    assert_eq!(victims.len(), 7, "64 bytes expired and six of 160");
    assert_eq!(table.evict_candidates(u64::MAX, 5, NOON).len(), 5);
    assert_eq!(table.evict_candidates(u64::MAX, usize::MAX, NOON).len(), 100);
}

#[test]
fn one_hit_wonders_do_not_flush_the_working_set() {
    // Room for some 1000 entries; between two reads of each of 500 keys, 1500 others pass, read
    // once. Least-recently-used would keep none of the 500.
    let budget = budget(200_000);
    let mut table = Table::new(Arc::clone(&budget), HashKeys::seeded(1));
    let (mut hits, mut reads) = (0, 0);
    for n in 0..20_000 {
        let hot = n * 7 % 500;
        for wanted in [hot, 100_000 + n, 200_000 + n, 300_000 + n] {
            let hit = value_of(&table, wanted).is_some();
            if wanted == hot {
                (hits, reads) = (hits + u32::from(hit), reads + 1);
            }
            if !hit {
                put(&mut table, wanted, &[0; 100]);
            }
            while budget.over_watermark() {
                for victim in table.evict_candidates(budget.excess(), 16, NOON) {
                    table.remove(victim.key.as_bytes(), victim.departure);
                }
            }
        }
    }
    assert!(hits * 100 >= reads * 95, "{hits} of {reads}");
    table.check();
}

#[test]
fn content_hashes_agree_for_equal_contents_whatever_the_way_there() {
    let mut one = Table::new(budget(1 << 30), HashKeys::seeded(1));
    let mut two = Table::new(budget(1 << 30), HashKeys::seeded(2));
    (0..500).for_each(|n| drop(put(&mut one, n, b"v")));
    (0..600).rev().for_each(|n| drop(put(&mut two, n, b"v")));
    assert_ne!(one.content_hash(), two.content_hash());
    (500..600).for_each(|n| drop(two.remove(key(n).as_bytes(), Departure::Deleted)));
    assert_eq!(one.content_hash(), two.content_hash());
    two.touch(key(3).as_bytes(), Version(99), None);
    assert_ne!(one.content_hash(), two.content_hash());
    two.clear();
    assert_eq!(two.content_hash(), 0);
}

#[test]
fn the_content_hash_is_the_same_on_every_machine() {
    let mut table = table();
    table.put(&key(1), b"v", b"", Version(1), None);
    assert_eq!(table.content_hash(), 17_577_358_482_993_293_107);
}

#[derive(Clone, Debug)]
enum Op {
    Put { key: u16, value_len: usize, content_type: u8, ttl: Option<u8> },
    Get { key: u16, keep: bool },
    Touch { key: u16, ttl: Option<u8> },
    Remove { key: u16, departure: Departure },
    RemoveRange { first: u16, count: u16 },
    Fill { first: u16, count: u16 },
    Pass { millis: u8 },
    Sweep { from: u64, remove: bool },
    Evict { bytes: u16, max: usize },
    Scan { from: u64, looks: usize },
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..4000_u16;
    let departure =
        prop_oneof![Just(Departure::Deleted), Just(Departure::Expired), Just(Departure::Evicted)];
    prop_oneof![
        8 => (key(), 0..300_usize, 0..20_u8, any::<Option<u8>>()).prop_map(
            |(key, value_len, content_type, ttl)| Op::Put { key, value_len, content_type, ttl }
        ),
        6 => (key(), any::<bool>()).prop_map(|(key, keep)| Op::Get { key, keep }),
        3 => (key(), any::<Option<u8>>()).prop_map(|(key, ttl)| Op::Touch { key, ttl }),
        4 => (key(), departure).prop_map(|(key, departure)| Op::Remove { key, departure }),
        1 => (key(), 1..2500_u16).prop_map(|(first, count)| Op::RemoveRange { first, count }),
        3 => (key(), 1..2500_u16).prop_map(|(first, count)| Op::Fill { first, count }),
        2 => any::<u8>().prop_map(|millis| Op::Pass { millis }),
        2 => (any::<u64>(), any::<bool>()).prop_map(|(from, remove)| Op::Sweep { from, remove }),
        3 => (any::<u16>(), 1..50_usize).prop_map(|(bytes, max)| Op::Evict { bytes, max }),
        2 => (any::<u64>(), 1..200_usize).prop_map(|(from, looks)| Op::Scan { from, looks }),
        1 => (0..20_u8).prop_map(|n| if n == 0 { Op::Clear } else { Op::Pass { millis: n } }),
    ]
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    value: Vec<u8>,
    content_type: Vec<u8>,
    version: Version,
    expires_at: Option<Timestamp>,
}

struct Pair {
    table: Table,
    model: BTreeMap<Vec<u8>, Held>,
    now: Timestamp,
    version: u64,
    kept: Vec<(Bytes, Vec<u8>)>,
}

impl Pair {
    fn live(&self, held: &Held) -> bool {
        held.expires_at.is_none_or(|at| at > self.now)
    }

    fn expiry(&self, ttl: Option<u8>) -> Option<Timestamp> {
        ttl.map(|ttl| Timestamp(self.now.0 + u64::from(ttl)))
    }

    fn put(&mut self, n: u16, value_len: usize, content_type_len: u8, ttl: Option<u8>) {
        self.version += 1;
        let held = Held {
            value: vec![n as u8; value_len],
            content_type: vec![b't'; usize::from(content_type_len)],
            version: Version(self.version),
            expires_at: self.expiry(ttl),
        };
        let (value, content_type) = (&held.value, &held.content_type);
        self.table.put(&key(n.into()), value, content_type, held.version, held.expires_at);
        self.model.insert(key(n.into()).as_bytes().to_vec(), held);
    }

    fn get(&mut self, n: u16, keep: bool) {
        let key = key(n.into());
        let found = self.table.get(key.as_bytes(), self.now).found();
        let held = self.model.get(key.as_bytes()).filter(|held| self.live(held));
        assert_eq!(found.is_some(), held.is_some(), "{key:?}");
        if let (Some(found), Some(held)) = (found, held) {
            assert_eq!(found.entry.value_bytes(), held.value);
            assert_eq!(found.entry.content_type(), held.content_type);
            assert_eq!((found.version, found.expires_at), (held.version, held.expires_at));
            if keep {
                self.kept.push((found.entry.value(), held.value.clone()));
            }
        }
    }

    fn remove(&mut self, key: &[u8], departure: Departure) {
        let was_there = self.model.remove(key).is_some();
        assert_eq!(self.table.remove(key, departure), was_there);
    }

    fn sweep(&mut self, from: u64, remove: bool) {
        let (mut out, mut next) = (Vec::new(), Some(if remove { 0 } else { from }));
        while let Some(position) = next {
            next = self.table.sweep(position, 100, self.now, &mut out);
        }
        let expired: BTreeSet<_> =
            self.model.iter().filter(|(_, held)| !self.live(held)).map(|(key, _)| key).collect();
        assert!(out.iter().all(|key| expired.contains(&key.as_bytes().to_vec())));
        if remove {
            assert_eq!(out.len(), expired.len());
            for key in out {
                self.remove(key.as_bytes(), Departure::Expired);
            }
        }
    }

    fn evict(&mut self, bytes: u64, max: usize) {
        let victims = self.table.evict_candidates(bytes, max, self.now);
        assert_eq!(victims.is_empty(), self.model.is_empty());
        assert!(victims.len() <= max);
        let distinct: BTreeSet<_> = victims.iter().map(|victim| &victim.key).collect();
        assert_eq!(distinct.len(), victims.len());
        for victim in victims {
            assert_eq!(self.model[victim.key.as_bytes()].version, victim.version);
            self.remove(victim.key.as_bytes(), victim.departure);
        }
    }

    fn scan(&self, from: u64, looks: usize) {
        let hash = |key: &[u8]| self.table.index.hash(key);
        let mut seen = BTreeSet::new();
        let next = self.table.scan(from, looks, self.now, |view| {
            assert!(seen.insert((hash(view.entry.key()), view.entry.key().to_vec())));
            ControlFlow::Continue(())
        });
        let expected: BTreeSet<_> = self
            .model
            .iter()
            .filter(|(_, held)| self.live(held))
            .map(|(key, _)| (hash(key), key.clone()))
            .filter(|(hash, _)| *hash >= from && next.is_none_or(|next| *hash < next))
            .collect();
        assert_eq!(seen, expected);
        assert!(seen.len() <= looks);
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Put { key, value_len, content_type, ttl } => {
                self.put(key, value_len, content_type, ttl);
            }
            Op::Get { key, keep } => self.get(key, keep),
            Op::Touch { key: n, ttl } => {
                self.version += 1;
                let (version, expires_at) = (Version(self.version), self.expiry(ttl));
                let held = self.model.get_mut(key(n.into()).as_bytes());
                let was_there = self.table.touch(key(n.into()).as_bytes(), version, expires_at);
                assert_eq!(was_there, held.is_some());
                if let Some(held) = held {
                    (held.version, held.expires_at) = (version, expires_at);
                }
            }
            Op::Remove { key: n, departure } => self.remove(key(n.into()).as_bytes(), departure),
            Op::RemoveRange { first, count } => (first..first + count)
                .for_each(|n| self.remove(key(n.into()).as_bytes(), Departure::Deleted)),
            Op::Fill { first, count } => (first..first + count)
                .for_each(|n| self.put(n, usize::from(n % 40), 0, (n % 5 == 0).then_some(9))),
            Op::Pass { millis } => self.now = Timestamp(self.now.0 + u64::from(millis)),
            Op::Sweep { from, remove } => self.sweep(from, remove),
            Op::Evict { bytes, max } => self.evict(bytes.into(), max),
            Op::Scan { from, looks } => self.scan(from, looks),
            Op::Clear => {
                self.table.clear();
                self.model.clear();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_table_behaves_as_a_map_and_its_accounts_are_exact(ops in vec(op(), 1..60)) {
        let budget = budget(1 << 30);
        let table = Table::new(Arc::clone(&budget), HashKeys::seeded(3));
        let (model, kept) = (BTreeMap::new(), Vec::new());
        let mut pair = Pair { table, model, now: NOON, version: 0, kept };
        for op in ops {
            pair.apply(op);
            pair.table.check();
            prop_assert_eq!(pair.table.len(), pair.model.len());
            prop_assert_eq!(budget.used(), pair.table.bytes());
            prop_assert_eq!(budget.items(), pair.model.len() as u64);
        }
        drop(pair.table);
        prop_assert_eq!((budget.used(), budget.items()), (0, 0));
        for (value, expected) in pair.kept {
            prop_assert_eq!(&value[..], &expected[..]);
        }
    }
}
