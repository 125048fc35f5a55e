//! What a table promises, one by one; [`model`] holds it against a map, [`hits`] against traces.

use std::collections::BTreeSet;

use super::*;
use crate::store::{Config, EvictionPolicy};

#[path = "table_hits.rs"]
mod hits;
#[path = "table_model.rs"]
mod model;

const NOON: Timestamp = Timestamp(1_000_000);
const START: Timestamp = Timestamp(0);

fn budget(max_memory: u64) -> Arc<Budget> {
    let eviction_policy = EvictionPolicy::S3Fifo;
    Arc::new(Budget::new(&Config {
        max_memory,
        eviction_ratio: 0.9,
        eviction_policy,
        replication_log: 0,
    }))
}

fn table() -> Table {
    Table::new(budget(1 << 30), HashKeys::seeded(1))
}

fn key(n: u32) -> Key {
    Key::new(format!("key:{n:08}").into_bytes(), KEY_BYTES_CEILING).expect("not empty")
}

fn put(table: &mut Table, n: u32, value: &[u8]) -> i64 {
    table.put(key(n).as_bytes(), value, b"", Version(u64::from(n) + 1), None)
}

fn fill(table: &mut Table, keys: impl Iterator<Item = u32>, value: &[u8]) {
    for n in keys {
        put(table, n, value);
    }
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
    let grew = table.put(
        key(1).as_bytes(),
        &[7; 100],
        b"text/plain",
        Version(5),
        Some(Timestamp(NOON.0 + 1)),
    );
    assert_eq!(table.bytes(), before.wrapping_add_signed(grew));
    let found = table.get(key(1).as_bytes(), NOON).found().expect("there");
    assert_eq!(found.entry.value(), vec![7; 100]);
    assert_eq!(found.entry.content_type(), b"text/plain");
    assert_eq!((found.version, found.expires_at), (Version(5), Some(Timestamp(NOON.0 + 1))));
    assert_eq!(put(&mut table, 1, &[7; 99]), -32, "192 bytes with the content type, 160 without");
}

#[test]
fn an_expired_entry_is_hidden_at_once_and_reported_until_removed() {
    let mut table = table();
    for n in 0..3000_u32 {
        let expires_at = n.is_multiple_of(3).then_some(Timestamp(NOON.0 + u64::from(n)));
        table.put(key(n).as_bytes(), b"v", b"", Version(1), expires_at);
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
    for n in 1..=4 {
        put(&mut table, n, format!("value {n}").as_bytes());
    }
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
    fill(&mut one, 0..5000, b"1");
    fill(&mut two, 0..100, b"2");
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
    fill(&mut table, 0..10_000, b"v");
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
    fill(&mut table, 0..1000, b"v");
    let (mut seen, mut from, mut fresh) = (BTreeSet::new(), Some(0), 1000);
    while let Some(position) = from {
        let (keys, next) = keys_from(&table, position, 50);
        seen.extend(keys);
        from = next;
        fill(&mut table, fresh..fresh + 1000, b"v");
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
    fill(&mut table, 0..100, b"v");
    table.put(key(200).as_bytes(), b"v", b"", Version(1), Some(NOON));
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
fn what_was_read_outlives_what_was_not() {
    let mut table = table();
    fill(&mut table, 0..100, &[0; 50]);
    for n in 0..10 {
        table.get(key(n).as_bytes(), NOON);
        table.get(key(n).as_bytes(), NOON);
    }
    // On trial: nothing speaks against one read yet.
    table.get(key(10).as_bytes(), NOON);
    for _ in 0..80 {
        let victims = table.evict_candidates(1, 1, NOON);
        assert_eq!(victims.len(), 1);
        assert_eq!(victims, table.evict_candidates(1, 1, NOON), "the same until removed");
        assert_eq!(victims[0].departure, Departure::Evicted);
        table.remove(victims[0].key.as_bytes(), Departure::Evicted);
        table.check();
    }
    assert!((0..=10).all(|n| value_of(&table, n).is_some()));
    assert!((11..91).all(|n| value_of(&table, n).is_none()));
}

#[test]
fn a_key_that_returns_after_eviction_enters_the_main_queue() {
    let mut table = table();
    fill(&mut table, 0..3, b"v");
    table.remove(key(0).as_bytes(), Departure::Evicted);
    table.remove(key(1).as_bytes(), Departure::Deleted);
    fill(&mut table, 0..2, b"v");
    let in_main = |n: u32| {
        let found = table.peek(key(n).as_bytes(), NOON).found().expect("there");
        found.entry.is_in_main()
    };
    assert!(in_main(0) && !in_main(1) && !in_main(2));
}

#[test]
fn a_scan_does_not_save_from_eviction_and_a_peek_neither() {
    let mut table = table();
    fill(&mut table, 0..10, b"v");
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
    fill(&mut table, 0..100, &[0; 100]);
    table.put(key(0).as_bytes(), b"v", b"", Version(1), Some(NOON));
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
    assert!(hits * 100 >= reads * 85, "{hits} of {reads}");
    table.check();
}

#[test]
fn content_hashes_agree_for_equal_contents_whatever_the_way_there() {
    let mut one = Table::new(budget(1 << 30), HashKeys::seeded(1));
    let mut two = Table::new(budget(1 << 30), HashKeys::seeded(2));
    fill(&mut one, 0..500, b"v");
    fill(&mut two, (0..600).rev(), b"v");
    assert_ne!(one.content_hash(), two.content_hash());
    for n in 500..600 {
        two.remove(key(n).as_bytes(), Departure::Deleted);
    }
    assert_eq!(one.content_hash(), two.content_hash());
    two.touch(key(3).as_bytes(), Version(99), None);
    assert_ne!(one.content_hash(), two.content_hash());
    two.clear();
    assert_eq!(two.content_hash(), 0);
}

#[test]
fn the_content_hash_is_the_same_on_every_machine() {
    let mut table = table();
    table.put(key(1).as_bytes(), b"v", b"", Version(1), None);
    assert_eq!(table.content_hash(), 17_577_358_482_993_293_107);
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).and_then(|field| field.parse::<u64>().ok());
    pages.expect("the second field counts resident pages") * 4096
}

#[test]
#[ignore = "fills 350 MB; run alone, with --nocapture, for the figures"]
fn two_million_entries_cost_less_than_58_bytes_each_over_their_payload() {
    const ENTRIES: u32 = 2_000_000;
    const PAYLOAD: f64 = 116.0;
    let budget = budget(8 << 30);
    let keys = HashKeys::random();
    let mut tables: Vec<_> =
        (0..256).map(|_| Table::new(Arc::clone(&budget), keys.clone())).collect();
    let before = resident_bytes();
    for n in 0..ENTRIES {
        let key = Key::new(format!("key:{n:012}").into_bytes(), KEY_BYTES_CEILING).expect("a key");
        let expires_at = Some(Timestamp(NOON.0 + u64::from(n)));
        let table = &mut tables[n as usize % 256];
        table.put(key.as_bytes(), &[b'v'; 100], b"", Version(u64::from(n) + 1), expires_at);
    }
    // Not a wait for an event, but for jemalloc to give back what growing pages left behind.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let charged = budget.used() as f64 / f64::from(ENTRIES) - PAYLOAD;
    let resident = (resident_bytes() - before) as f64 / f64::from(ENTRIES) - PAYLOAD;
    println!("bytes an entry over its payload: {charged:.1} charged, {resident:.1} resident");
    assert!(charged < 58.0, "{charged}");
    assert!(resident < 60.0, "{resident}");
}
