//! How many of the requests for keys find them, by made-up traces, with a seventh of the keys held.

use super::*;

const KEYS: usize = 100_000;
const SHARDS: usize = 16;
const REQUESTS: u32 = 500_000;

/// What every sixth request is for; the others are for the keys by their popularity.
#[derive(Clone, Copy, PartialEq)]
enum Sixth {
    Popular,
    /// A key that nobody asks for again.
    Once,
    /// A key that is asked for twice, and never again.
    Twice,
}

/// A node's tables, evicted from in turn, in front of something that has every key.
struct Cache {
    budget: Arc<Budget>,
    tables: Vec<Table>,
    next: usize,
    /// The sums of the keys' popularity by Zipf's law, exponent 0.99.
    sums: Vec<f64>,
    random: u64,
    fresh: u32,
}

impl Cache {
    fn new() -> Self {
        let budget = budget(2_800_000);
        let keys = HashKeys::seeded(1);
        let tables = (0..SHARDS).map(|_| Table::new(Arc::clone(&budget), keys.clone())).collect();
        let mut sum = 0.0;
        let share = |rank: usize| {
            sum += (rank as f64).powf(-0.99);
            sum
        };
        let sums = (1..=KEYS).map(share).collect();
        Self { budget, tables, next: 0, sums, random: 1, fresh: KEYS as u32 }
    }

    /// A key by its popularity.
    fn popular(&mut self) -> u32 {
        // splitmix64 (Steele et al., 2014), of a counter.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 * self.sums[KEYS - 1];
        self.sums.partition_point(|sum| *sum < at) as u32
    }

    /// Asks for a key, stores it if it is not there, and makes room. Returns whether it was there.
    fn ask(&mut self, n: u32) -> bool {
        let table = &mut self.tables[n.wrapping_mul(0x9e37_79b9) as usize >> 7 & (SHARDS - 1)];
        let hit = table.get(key(n).as_bytes(), NOON).found().is_some();
        if !hit {
            put(table, n, &[0; 100]);
        }
        while self.budget.over_watermark() {
            self.next = (self.next + 1) % SHARDS;
            let table = &mut self.tables[self.next];
            for victim in table.evict_candidates(self.budget.excess(), 16, NOON) {
                table.remove(victim.key.as_bytes(), victim.departure);
            }
        }
        hit
    }

    /// The share of hits in the second half of the requests, in percent.
    fn hits(&mut self, sixth: Sixth) -> f64 {
        let mut hits = 0;
        for n in 0..REQUESTS {
            let key = match sixth {
                Sixth::Once | Sixth::Twice if n % 6 == 5 => {
                    self.fresh += u32::from(sixth == Sixth::Once || n % 12 == 5);
                    self.fresh
                }
                _ => self.popular(),
            };
            hits += u32::from(self.ask(key) && n >= REQUESTS / 2);
        }
        f64::from(hits) * 200.0 / f64::from(REQUESTS)
    }
}

// Where two reads are asked for always, and the small queue has a tenth, these are 80.40 and 65.95.
#[test]
fn one_read_is_enough_where_keys_come_back() {
    let (zipf, scans) = (Cache::new().hits(Sixth::Popular), Cache::new().hits(Sixth::Once));
    assert!(zipf >= 80.6, "{zipf}");
    assert!(scans >= 66.5, "{scans}");
}

// Where one read is always enough, this is 71.94.
#[test]
fn one_read_is_not_enough_where_keys_are_read_once() {
    let pairs = Cache::new().hits(Sixth::Twice);
    assert!(pairs >= 74.0, "{pairs}");
}
