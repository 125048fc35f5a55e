//! The table against a map, under random operations; every account is checked after each.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

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
        self.table.put(
            key(n.into()).as_bytes(),
            value,
            content_type,
            held.version,
            held.expires_at,
        );
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
