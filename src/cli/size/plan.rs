//! What a cluster needs for so much data: pure reckoning, from a question to an answer.
//!
//! The formulas are those of `docs/size.md`. What the code itself knows is asked of it: what an
//! entry occupies ([`size_of_entry`]), where copies come to stand ([`Rooms`]), the defaults and
//! ranges of the configuration's keys.
//!
//! Caveats: shards are taken for equally full, nodes for equally large, and items for like each
//! other. What stands after a loss is reckoned as if copies were placed anew on what is left.

use std::collections::{BTreeMap, BTreeSet};

use bytesize::ByteSize;
use serde::Serialize;

use crate::config::Key;
use crate::entry::{KEY_BYTES_CEILING, ShardId};
use crate::peer::OUTBOX_BYTES_MAX;
use crate::store::{REPLICATION_LOG_PART, size_of_entry};
use crate::topology::NodeId;
use crate::topology::placement::{Relocation, Room, Rooms};

/// An item's key and value, where nothing is said of them.
pub(super) const ITEM_BYTES_ASSUMED: u64 = 1000;

/// A key, where only the value's size is said.
pub(super) const KEY_BYTES_ASSUMED: u64 = 32;

/// An item's part of the index, and of the memory of keys that are gone.
const INDEX_BYTES: u64 = 15;

/// What a write costs in the log beside key and value.
const LOG_BYTES: u64 = 70;

/// What the allocator takes for each byte that it hands out.
const ALLOCATOR_SHARE: f64 = 1.1;

/// An idle client connection.
const CONNECTION_BYTES: u64 = 25_000;

/// The program itself, its log's buffers, and the system around it.
const SYSTEM_BYTES: u64 = 300_000_000;

/// Two snapshots and a log, and what the log grows by while a snapshot is written.
const DISK_SHARE: f64 = 3.5;

/// Segments of the log that are taken in full from the start, and the topology.
const DISK_BYTES: u64 = 1_000_000_000;

/// Below this many shards for each node, primaries and data do not spread evenly any more.
const SHARDS_PER_NODE_MIN: u64 = 5;

/// From this many nodes on, nobody counts on one more to bear one more loss.
const EVEN_NODES_TELL_BELOW: u64 = 10;

/// Less data than this, and the unit may be a slip.
const DATA_BYTES_PLAUSIBLE: u64 = 1_000_000;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) amount: Amount,
    pub(super) nodes: u64,
    pub(super) zones: Option<u64>,
    pub(super) replication_factor: u64,
    pub(super) num_shards: u16,
    /// Share of the memory that shall be free, 0 to 1.
    pub(super) headroom: f64,
    /// Bytes of keys and values that clients write in a second.
    pub(super) write_rate: Option<u64>,
}

/// How much there is to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Amount {
    /// Keys and values, in bytes.
    pub(super) data_bytes: u64,
    pub(super) items: u64,
    /// The size that each item has, rather than the mean of many; key and value.
    pub(super) like_each_other: Option<(u64, u64)>,
}

impl Amount {
    /// What an item occupies beside its key and value, in bytes.
    ///
    /// The allocator rounds entries up to its size classes. Items of one size all lose the same by
    /// that; those of many sizes lose the mean over sizes from half to one and a half of theirs.
    fn overhead(&self) -> u64 {
        let beside = |payload: u64| {
            size_of_entry(0, 0, usize::try_from(payload).unwrap_or(usize::MAX)) - payload
        };
        let entry = self.like_each_other.map_or_else(
            || {
                let mean = self.data_bytes / self.items.max(1);
                let sizes = 32..=96;
                let count = sizes.clone().count() as u64;
                sizes.map(|part| beside(mean * part / 64)).sum::<u64>().div_ceil(count)
            },
            |(key, value)| beside(key + value),
        );
        entry + INDEX_BYTES
    }
}

/// What is needed; `node` is the one with most to keep.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) data_bytes: u64,
    pub(super) items: u64,
    pub(super) item_overhead_bytes: u64,
    /// Keys and values on each node, were they spread quite evenly.
    pub(super) even_data_bytes: u64,
    pub(super) nodes: u64,
    pub(super) zones: Option<u64>,
    /// Of each shard; fewer than `replication_factor` where there are fewer nodes.
    pub(super) copies: u64,
    pub(super) num_shards: u16,
    pub(super) node: Node,
    /// What is left after the loss of a node, and of a zone.
    pub(super) losses: Vec<Loss>,
    pub(super) writes: Option<Writes>,
    pub(super) warnings: Vec<String>,
}

/// What a node keeps, and what to give it.
#[derive(Debug, Serialize)]
pub(super) struct Node {
    pub(super) shards: u64,
    /// Keys and values of these shards, with what each item costs beside.
    pub(super) used_bytes: u64,
    /// What records kept for other nodes take beside, at most.
    pub(super) recent_records_bytes: u64,
    /// For the key of that name.
    pub(super) max_memory_mb: u64,
    pub(super) machine_bytes: u64,
    pub(super) disk_bytes: u64,
}

/// A loss, and how the others stand then.
#[derive(Debug, Serialize)]
pub(super) struct Loss {
    pub(super) of: &'static str,
    pub(super) nodes_left: u64,
    /// Shards that take no writes until what was lost comes back.
    pub(super) shards_stopped: u64,
    /// What each of the others keeps, once they have taken over what can be.
    pub(super) used_bytes: u64,
}

/// What writes cost each node, in bytes a second at most.
#[derive(Debug, Serialize)]
pub(super) struct Writes {
    pub(super) log_bytes: u64,
    /// Log and snapshots together.
    pub(super) disk_bytes: u64,
    /// Sent to other nodes.
    pub(super) network_bytes: u64,
}

/// Reckons what `question` needs.
pub(super) fn answer(question: &Question) -> Answer {
    let Question { amount, nodes, .. } = *question;
    let zones = sizes_of_zones(nodes, question.zones.unwrap_or(1));
    let layout = Layout::new(&zones, question.replication_factor, question.num_shards);
    let overhead = amount.overhead();
    let all_bytes = amount.data_bytes + amount.items.saturating_mul(overhead);
    let of = |bytes: u64, shards: u64| {
        (u128::from(bytes) * u128::from(shards) / u128::from(question.num_shards)) as u64
    };
    let used = |shards| of(all_bytes, shards);

    let mut losses = Vec::new();
    if nodes > 1 {
        losses.push(layout.worst_loss("node", question, used));
    }
    if question.zones.is_some_and(|zones| zones > 1) {
        losses.push(layout.worst_loss("zone", question, used));
    }
    let used_bytes = used(layout.fullest);
    let worst = losses.iter().map(|loss| loss.used_bytes).max().unwrap_or(0);
    let copies = question.replication_factor.min(nodes);
    let log = if copies > 1 { 1.0 / REPLICATION_LOG_PART as f64 } else { 0.0 };
    let ratio = eviction_ratio();
    let free_now = used_bytes as f64 / ((1.0 - question.headroom).min(ratio) - log);
    let worst = worst as f64 / (ratio - log);
    let max_memory_mb = (free_now.max(worst) / f64::from(1 << 20)).ceil() as u64;
    let max_memory = max_memory_mb << 20;

    let mut answer = Answer {
        data_bytes: amount.data_bytes,
        items: amount.items,
        item_overhead_bytes: overhead,
        even_data_bytes: (u128::from(amount.data_bytes) * u128::from(copies) / u128::from(nodes))
            as u64,
        nodes,
        zones: question.zones,
        copies,
        num_shards: question.num_shards,
        node: Node {
            shards: layout.fullest,
            used_bytes,
            recent_records_bytes: (max_memory as f64 * log) as u64,
            max_memory_mb,
            machine_bytes: machine_bytes(max_memory, nodes),
            disk_bytes: (max_memory as f64 * DISK_SHARE) as u64 + DISK_BYTES,
        },
        losses,
        writes: question.write_rate.map(|rate| {
            let writes = rate.saturating_mul(amount.items) / amount.data_bytes.max(1);
            let log_bytes = of(rate + writes * LOG_BYTES, layout.fullest);
            let network_bytes = if nodes > 1 { rate * copies / nodes } else { 0 };
            Writes { log_bytes, disk_bytes: 2 * log_bytes, network_bytes }
        }),
        warnings: Vec::new(),
    };
    answer.warnings = warnings(question, &answer);
    answer
}

fn machine_bytes(max_memory: u64, nodes: u64) -> u64 {
    (max_memory as f64 * ALLOCATOR_SHARE) as u64
        + SYSTEM_BYTES
        + CONNECTION_BYTES * number("max_conns")
        + crate::api::held_bytes_max(max_memory) as u64
        + OUTBOX_BYTES_MAX as u64 * (nodes - 1)
}

/// The default of a key that is a number.
pub(super) fn number(key: &str) -> u64 {
    let default = Key::find(key).and_then(|key| key.default.parse().ok());
    default.expect("the key is in the table, and its default is a whole number")
}

/// The greatest value that a key takes.
fn greatest(key: &str) -> u64 {
    let range = Key::find(key).and_then(|key| key.range);
    range.expect("the key is in the table and has a range").1.unsigned_abs()
}

fn eviction_ratio() -> f64 {
    crate::store::Config::default().eviction_ratio
}

/// So many nodes in so many zones, as evenly as they go.
fn sizes_of_zones(nodes: u64, zones: u64) -> Vec<u64> {
    (0..zones).map(|zone| nodes / zones + u64::from(zone < nodes % zones)).collect()
}

/// Where the shards' copies stand.
struct Layout {
    zones: Vec<u64>,
    sets: Vec<Vec<NodeId>>,
    /// The shards of the node that has most.
    fullest: u64,
}

impl Layout {
    /// Places the copies of all shards on zones of so many nodes, numbered zone by zone.
    fn new(zones: &[u64], copies: u64, num_shards: u16) -> Self {
        let zone_of_each =
            zones.iter().enumerate().flat_map(|(zone, nodes)| (0..*nodes).map(move |_| zone));
        let room =
            |zone: usize| Room { zone: zone.to_string(), memory_bytes: 1, open: true, copies: 0 };
        let rooms: BTreeMap<NodeId, Room> = (0..).map(NodeId).zip(zone_of_each.map(room)).collect();
        let nodes: Vec<NodeId> = rooms.keys().copied().collect();
        let mut rooms = Rooms::new(rooms);
        let copies = usize::try_from(copies).unwrap_or(usize::MAX);
        let mut shards: Vec<(ShardId, Vec<NodeId>)> =
            (0..num_shards).map(|shard| (ShardId(shard), rooms.choose(&[], copies))).collect();
        loop {
            let moves = rooms.relocate(&shards, usize::from(num_shards));
            if moves.is_empty() {
                break;
            }
            for Relocation { shard, from, to } in moves {
                let set = &mut shards[usize::from(shard.0)].1;
                set.iter_mut().filter(|node| **node == from).for_each(|node| *node = to);
            }
        }
        let fullest = nodes.iter().map(|node| rooms.copies(*node)).max().unwrap_or(0) as u64;
        let sets = shards.into_iter().map(|(_, set)| set).collect();
        Self { zones: zones.to_vec(), sets, fullest }
    }

    /// The loss of one node, or of a whole zone, that is worst for the others. `used` says what so
    /// many shards occupy.
    fn worst_loss(&self, of: &'static str, question: &Question, used: impl Fn(u64) -> u64) -> Loss {
        let mut tried = BTreeSet::new();
        let mut worst: Option<Loss> = None;
        for (zone, size) in self.zones.iter().enumerate() {
            if !tried.insert(*size) {
                continue;
            }
            let mut left = self.zones.clone();
            left[zone] = if of == "zone" { 0 } else { size - 1 };
            let first: u64 = self.zones[..zone].iter().sum();
            let gone = first + left[zone]..first + size;
            let stopped = |set: &&Vec<NodeId>| {
                let alive = set.iter().filter(|node| !gone.contains(&node.0)).count();
                alive < set.len() / 2 + 1
            };
            let shards_stopped = self.sets.iter().filter(stopped).count() as u64;
            left.retain(|nodes| *nodes > 0);
            let after = Self::new(&left, question.replication_factor, question.num_shards);
            let loss = Loss {
                of,
                nodes_left: left.iter().sum(),
                shards_stopped,
                used_bytes: used(after.fullest),
            };
            let worse = |than: &Loss| {
                (loss.shards_stopped, loss.used_bytes) > (than.shards_stopped, than.used_bytes)
            };
            if worst.as_ref().is_none_or(worse) {
                worst = Some(loss);
            }
        }
        worst.expect("there is a zone")
    }
}

fn warnings(question: &Question, answer: &Answer) -> Vec<String> {
    let mut warnings = Vec::new();
    about_the_data(question, &mut warnings);
    about_the_nodes(question, answer, &mut warnings);
    about_the_zones(question, answer, &mut warnings);
    about_the_settings(question, answer, &mut warnings);
    warnings
}

fn about_the_data(question: &Question, warnings: &mut Vec<String>) {
    let amount = question.amount;
    if amount.data_bytes < DATA_BYTES_PLAUSIBLE {
        warnings.push(format!(
            "{} bytes is next to nothing; was a unit forgotten, as in 100GB?",
            amount.data_bytes
        ));
    }
    let (key, value) = amount.like_each_other.unwrap_or((0, amount.data_bytes / amount.items));
    for (name, bytes) in [("max_key_bytes", key), ("max_value_bytes", value)] {
        if bytes > number(name) {
            warnings
                .push(format!("set {name} to {bytes} or more; it is {} unless set", number(name)));
        }
    }
}

fn about_the_nodes(question: &Question, answer: &Answer, warnings: &mut Vec<String>) {
    let (nodes, wanted) = (question.nodes, question.replication_factor);
    match nodes {
        1 => warnings.push(
            "one node: while it is gone nothing is served, and what only its disk had is lost \
             with it; take three"
                .to_owned(),
        ),
        2 => warnings.push(
            "two nodes: a majority of two is two, so writes stop when either is gone; take three"
                .to_owned(),
        ),
        _ if nodes < wanted => warnings.push(format!(
            "{nodes} nodes keep {nodes} copies, not {wanted}; add nodes, or set \
             replication_factor to {nodes}"
        )),
        _ if nodes.is_multiple_of(2)
            && nodes < EVEN_NODES_TELL_BELOW
            && question.zones.is_none_or(|zones| nodes % zones != 0) =>
        {
            warnings.push(format!(
                "{nodes} nodes bear no more losses at a time than {}; the last one adds room alone",
                nodes - 1
            ));
        }
        _ => {}
    }
    let copies = answer.copies;
    match copies {
        1 if nodes > 1 => warnings.push(
            "one copy of each shard: what a lost node held is gone with it; set \
             replication_factor to 3"
                .to_owned(),
        ),
        _ if nodes > 2 && copies.is_multiple_of(2) => warnings.push(format!(
            "{copies} copies bear no more losses than {}; set replication_factor to {}",
            copies - 1,
            if copies < nodes { copies + 1 } else { copies - 1 },
        )),
        _ => {}
    }
}

fn about_the_zones(question: &Question, answer: &Answer, warnings: &mut Vec<String>) {
    let Some(zones) = question.zones.filter(|zones| *zones > 1) else { return };
    let stopped: u64 =
        answer.losses.iter().filter(|loss| loss.of == "zone").map(|loss| loss.shards_stopped).sum();
    if zones == 2 {
        warnings.push(
            "two zones: one of them has the majority of the nodes that vote, and when it is gone \
             nothing can be decided; take three"
                .to_owned(),
        );
    } else if stopped > 0 {
        warnings.push(format!(
            "the loss of a zone leaves {stopped} of {} shards without a majority; set \
             replication_factor to {zones}",
            answer.num_shards
        ));
    }
    let even = u64::from(answer.num_shards) * answer.copies;
    if answer.node.shards > even.div_ceil(question.nodes) + 1 {
        warnings.push(format!(
            "{} nodes in {zones} zones do not come out even: those of the smaller zones keep {} \
             shards, where {} would do; make the nodes a multiple of {zones}",
            question.nodes,
            answer.node.shards,
            even.div_ceil(question.nodes)
        ));
    }
}

fn about_the_settings(question: &Question, answer: &Answer, warnings: &mut Vec<String>) {
    let shards = u64::from(question.num_shards);
    let wanted = question.nodes * SHARDS_PER_NODE_MIN;
    if shards < wanted {
        warnings.push(format!(
            "{shards} shards are few for {} nodes; set num_shards to {} before the cluster is \
             born, it stays as it is then",
            question.nodes,
            (2 * wanted).next_power_of_two().min(greatest("num_shards"))
        ));
    }
    if question.headroom < 1.0 - eviction_ratio() {
        warnings.push(format!(
            "eviction begins at {:.0}% of max_memory_mb (eviction_ratio), so as much is left \
             free as that takes",
            eviction_ratio() * 100.0
        ));
    }
    let mb = greatest("max_memory_mb");
    if answer.node.max_memory_mb > mb {
        let most = ByteSize::mib(mb).display().si();
        warnings.push(format!("max_memory_mb takes {mb} at most, {most}; take more nodes"));
    }
}

/// The largest key and the largest value that can be kept.
pub(super) fn largest() -> (u64, u64) {
    (KEY_BYTES_CEILING as u64, greatest("max_value_bytes"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::entry::Version;
    use crate::store::{Budget, Config, HashKeys, Table};

    /// 100 GB on so many nodes, in items so large that what they cost beside hardly counts.
    fn question(nodes: u64) -> Question {
        Question {
            amount: Amount { data_bytes: 100_000_000_000, items: 12_500, like_each_other: None },
            nodes,
            zones: None,
            replication_factor: 3,
            num_shards: 256,
            headroom: 0.2,
            write_rate: None,
        }
    }

    fn zoned(nodes: u64, zones: u64) -> Question {
        Question { zones: Some(zones), ..question(nodes) }
    }

    fn gigabytes(bytes: u64) -> f64 {
        (bytes as f64 / 1e8).round() / 10.0
    }

    /// What each loss leaves: of what, nodes, shards that stop, gigabytes on a node.
    fn losses(question: &Question) -> Vec<(&'static str, u64, u64, f64)> {
        let told = |loss: &Loss| {
            (loss.of, loss.nodes_left, loss.shards_stopped, gigabytes(loss.used_bytes))
        };
        answer(question).losses.iter().map(told).collect()
    }

    fn warned(question: &Question) -> String {
        answer(question).warnings.join("\n")
    }

    #[test]
    fn five_nodes_share_three_copies_and_four_of_them_can_hold_all() {
        let answer = answer(&question(5));
        assert_eq!(answer.even_data_bytes, 60_000_000_000);
        assert_eq!(answer.node.shards, 154);
        assert_eq!(gigabytes(answer.node.used_bytes), 60.2);
        assert_eq!(losses(&question(5)), [("node", 4, 0, 75.0)]);
        // A sixteenth is for recent records: 75 GB by 0.8375 is more than 60 GB by 0.7375.
        assert_eq!(gigabytes(answer.node.max_memory_mb << 20), 89.6);
        assert_eq!(gigabytes(answer.node.recent_records_bytes), 5.6);
        // 1.1 x 89.57 + 0.3 + 0.25 + 0.54 + 4 x 0.067, and 3.5 x 89.57 + 1.
        assert_eq!(gigabytes(answer.node.machine_bytes), 99.9);
        assert_eq!(gigabytes(answer.node.disk_bytes), 314.5);
        assert_eq!(answer.warnings, [""; 0]);
    }

    #[test]
    fn three_nodes_hold_all_each_with_headroom_but_never_less_than_eviction_needs() {
        let with = |percent: f64| {
            let question = Question { headroom: percent / 100.0, ..question(3) };
            (gigabytes(answer(&question).node.max_memory_mb << 20), warned(&question))
        };
        assert_eq!(losses(&question(3)), [("node", 2, 0, 100.0)]);
        assert_eq!(with(20.0), (135.6, String::new()));
        assert_eq!(with(50.0), (228.6, String::new()));
        let (size, warning) = with(5.0);
        assert_eq!(size, 119.4);
        assert!(warning.contains("eviction begins at 90%"), "{warning}");
    }

    #[test]
    fn what_an_item_costs_is_what_a_table_is_charged() {
        for (sizes, like_each_other) in [
            (vec![100], Some((16, 100))),
            (vec![624], Some((16, 624))),
            (vec![1000], Some((16, 1000))),
            ((400..1200).collect(), None),
        ] {
            let budget =
                Arc::new(Budget::new(&Config { max_memory: 1 << 40, ..Config::default() }));
            let mut table = Table::new(budget.clone(), HashKeys::seeded(1));
            let mut data_bytes = 0;
            for n in 0..20_000_u64 {
                let value = vec![0; sizes[n as usize % sizes.len()]];
                table.put(format!("{n:016}").as_bytes(), &value, b"", Version(n + 1), None);
                data_bytes += 16 + value.len() as u64;
            }
            let reckoned = Amount { data_bytes, items: 20_000, like_each_other }.overhead();
            let charged = (budget.used() - data_bytes) / 20_000;
            assert!(reckoned >= charged, "{sizes:?}: {reckoned} for {charged}");
            assert!(reckoned <= charged + 8, "{sizes:?}: {reckoned} for {charged}");
        }
    }

    #[test]
    fn the_mate_in_a_zone_takes_over_all_that_stood_there() {
        assert_eq!(losses(&zoned(6, 3)), [("node", 5, 0, 100.0), ("zone", 4, 0, 75.0)]);
        assert_eq!(losses(&zoned(3, 3)), [("node", 2, 0, 100.0), ("zone", 2, 0, 100.0)]);
        assert_eq!(warned(&zoned(6, 3)), "");
    }

    #[test]
    fn zones_that_do_not_come_out_even_cost_room() {
        let answer = answer(&zoned(4, 3));
        assert_eq!(answer.node.shards, 256);
        assert!(warned(&zoned(4, 3)).contains("where 192 would do"), "{:?}", answer.warnings);
        assert!(warned(&zoned(4, 2)).contains("two zones"));
        assert_eq!(losses(&zoned(4, 2))[1], ("zone", 2, 128, 100.0));
        let four_copies = Question { replication_factor: 4, ..zoned(6, 3) };
        assert!(warned(&four_copies).contains("without a majority"));
    }

    #[test]
    fn what_would_not_survive_is_warned_of() {
        let few = Question { replication_factor: 5, ..question(3) };
        let lone = Question { replication_factor: 1, ..question(3) };
        let pair = Question { replication_factor: 2, ..question(3) };
        let crowd = question(60);
        let vast = Question {
            amount: Amount { data_bytes: 60_000_000_000_000, ..question(3).amount },
            ..question(3)
        };
        for (question, words) in [
            (question(1), "one node"),
            (question(2), "two nodes"),
            (question(4), "4 nodes bear no more losses at a time than 3"),
            (few, "3 nodes keep 3 copies, not 5"),
            (lone, "one copy of each shard"),
            (pair, "2 copies bear no more losses than 1; set replication_factor to 3"),
            (crowd, "set num_shards to 1024"),
            (vast, "max_memory_mb takes 16777216 at most"),
        ] {
            assert!(warned(&question).contains(words), "{words:?} in {:?}", warned(&question));
        }
        assert_eq!(losses(&question(1)), []);
        assert_eq!(losses(&question(2)), [("node", 1, 256, 100.0)]);
    }

    #[test]
    fn slips_in_the_data_are_warned_of() {
        let with = |data_bytes, items, like_each_other| {
            let amount = Amount { data_bytes, items, like_each_other };
            warned(&Question { amount, ..question(3) })
        };
        assert!(with(100, 1, None).contains("was a unit forgotten"));
        assert!(with(100_000_000, 10, None).contains("set max_value_bytes to 10000000"));
        assert!(with(4_000_000, 1000, Some((2000, 2000))).contains("set max_key_bytes to 2000"));
    }

    #[test]
    fn writes_are_logged_on_every_copy_and_sent_to_it() {
        let question = Question {
            amount: Amount { data_bytes: 1_000_000_000, items: 1_000_000, like_each_other: None },
            write_rate: Some(20_000_000),
            ..question(6)
        };
        let writes = answer(&question).writes.expect("it was asked");
        // 20,000 writes a second of 1000 + 70 bytes, on three of six nodes.
        assert_eq!(writes.log_bytes, 10_700_000);
        assert_eq!(writes.disk_bytes, 21_400_000);
        assert_eq!(writes.network_bytes, 10_000_000);
    }
}
