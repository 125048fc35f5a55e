//! What a load came to, and the questions asked of it: what failed, what was lost, how long nobody
//! could write, how slow it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;

use super::Cluster;
use super::load::number;
use super::stalls::Stall;

/// Latency is looked at in windows of this length.
const WINDOW: Duration = Duration::from_secs(1);

/// Requests under way at a time while everything is read back.
const READERS: usize = 16;

/// Complaints shown of very many.
const SHOWN_MAX: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A write to a key of its own.
    Insert,
    /// A write to the same key as before.
    Overwrite,
    /// An increment.
    Count,
    Read,
}

/// What a counter was told to do, one at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) acknowledged: u64,
    /// Increments of unknown outcome.
    pub(crate) unknown: u64,
}

impl Count {
    /// Whether it may have come to that.
    pub(crate) fn may_be(&self, value: &str) -> bool {
        let range = self.acknowledged..=self.acknowledged + self.unknown;
        value.parse().is_ok_and(|value: u64| range.contains(&value))
    }
}

/// One operation, both attempts. Times count from the beginning of the load.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    /// The shard of what was overwritten or read; says nothing of an insert.
    pub(crate) shard: u16,
    /// Where the first attempt went.
    pub(crate) node: usize,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    pub(crate) first_failure: Option<String>,
    /// Why the second attempt failed too.
    pub(crate) failure: Option<String>,
}

/// Something that was done to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disturbance {
    pub(crate) node: usize,
    pub(crate) at: Duration,
    /// From here on clients kept away.
    pub(crate) told: Duration,
    /// The node was itself again.
    pub(crate) over: Option<Duration>,
}

#[derive(Default)]
pub(crate) struct Record {
    pub(crate) ops: Vec<Op>,
    /// The last acknowledged value of each key.
    pub(crate) acknowledged: BTreeMap<String, u64>,
    /// Values of keys that were written with an unknown outcome: a node that was silent may carry
    /// such a write out when it wakes, after later ones.
    pub(crate) unknown: BTreeSet<(String, u64)>,
    /// The counters, each of which nobody else counts up.
    pub(crate) counts: BTreeMap<String, Count>,
    /// Answers that cannot be right.
    pub(crate) wrong: Vec<String>,
    pub(crate) disturbances: Vec<Disturbance>,
    /// When the machine kept the test itself from running.
    pub(crate) stalls: Vec<Stall>,
}

impl Record {
    pub(crate) fn add(&mut self, other: Self) {
        self.ops.extend(other.ops);
        self.acknowledged.extend(other.acknowledged);
        self.unknown.extend(other.unknown);
        self.counts.extend(other.counts);
        self.wrong.extend(other.wrong);
    }

    /// Whether a key may have the value `read` once `written` was acknowledged.
    pub(crate) fn may_show(&self, key: &str, read: u64, written: u64) -> bool {
        read >= written || self.unknown.contains(&(key.to_owned(), read))
    }

    /// No answer was one that cannot be right.
    pub(crate) fn assert_right(&self) {
        assert!(self.wrong.is_empty(), "wrong answers: {:#?}", first_few(&self.wrong));
    }

    /// Nothing but what was in flight on a disturbed node failed, and nothing failed twice.
    pub(crate) fn assert_only_in_flight_failed(&self) {
        assert!(self.ops.len() > 100, "only {} operations: no load", self.ops.len());
        self.assert_right();
        let twice: Vec<_> = self.ops.iter().filter(|op| op.failure.is_some()).collect();
        assert!(twice.is_empty(), "{} failed twice: {:#?}", twice.len(), first_few(&twice));
        let is_excused = |op: &Op| {
            let in_flight =
                |d: &Disturbance| d.node == op.node && op.began <= d.told && op.ended >= d.at;
            self.disturbances.iter().any(in_flight)
        };
        let failed = self.ops.iter().filter(|op| op.first_failure.is_some());
        let (excused, others): (Vec<_>, Vec<_>) = failed.partition(|op| is_excused(op));
        println!(
            "{} operations; {} were in flight on a disturbed node and needed their second attempt",
            self.ops.len(),
            excused.len()
        );
        assert!(
            others.is_empty(),
            "{} failed at first elsewhere; {:?}: {:#?}",
            others.len(),
            self.disturbances,
            first_few(&others)
        );
    }

    /// Everything acknowledged is there, through every node, and was counted once.
    pub(crate) async fn assert_nothing_lost(&self, cluster: &Cluster) {
        assert!(!self.acknowledged.is_empty());
        for index in 0..cluster.nodes.len() {
            let reads = self.acknowledged.iter().map(|(key, written)| async move {
                let value = cluster.get(index, key).await;
                let read = value.as_deref().and_then(number);
                let is_there = read.is_some_and(|read| self.may_show(key, read, *written));
                (!is_there).then(|| format!("{key}: acknowledged {written}, read {read:?}"))
            });
            let reads = futures_util::stream::iter(reads).buffer_unordered(READERS);
            let mut lost: Vec<String> = reads.filter_map(async |lost| lost).collect().await;
            for (key, count) in &self.counts {
                let value = cluster.get(index, key).await.unwrap_or_else(|| "0".to_owned());
                if !count.may_be(&value) {
                    lost.push(format!("{key}: {value}, of {count:?}"));
                }
            }
            let name = &cluster.nodes[index].name;
            assert!(lost.is_empty(), "{name}: {} lost: {:#?}", lost.len(), first_few(&lost));
        }
        println!("{} keys acknowledged, none lost", self.acknowledged.len());
    }

    /// The longest time within `from` and `to` in which no write to some shard ended well, and
    /// which shard that was.
    pub(crate) fn longest_gap(&self, from: Duration, to: Duration) -> (Duration, u16) {
        let mut ends: BTreeMap<u16, Vec<Duration>> = BTreeMap::new();
        for op in &self.ops {
            if op.kind == Kind::Overwrite && op.failure.is_none() {
                ends.entry(op.shard).or_default().push(op.ended);
            }
        }
        let of_shard = |(shard, mut ends): (u16, Vec<Duration>)| {
            ends.retain(|end| (from..=to).contains(end));
            ends.extend([from, to]);
            ends.sort();
            let longest = ends.windows(2).map(|pair| pair[1] - pair[0]).max();
            (longest.unwrap_or_default(), shard)
        };
        ends.into_iter().map(of_shard).max().unwrap_or_default()
    }

    /// The 99th percentile of what operations took that ended within `from` and `to`, those left
    /// out that were in flight on a disturbed node.
    pub(crate) fn p99(&self, from: Duration, to: Duration) -> Duration {
        self.p99_of(&[(from, to)])
    }

    /// The same over several stretches of time together.
    pub(crate) fn p99_of(&self, stretches: &[(Duration, Duration)]) -> Duration {
        let falls_in = |ended| stretches.iter().any(|(from, to)| (*from..*to).contains(&ended));
        let within = |op: &&Op| op.first_failure.is_none() && falls_in(op.ended);
        let mut took: Vec<Duration> =
            self.ops.iter().filter(within).map(|op| op.ended - op.began).collect();
        took.sort();
        let rank = (took.len() * 99).div_ceil(100);
        took.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// For how long the machine stalled within `from` and `to`, all in all.
    pub(crate) fn stalled(&self, from: Duration, to: Duration) -> Duration {
        let within = self.stalls.iter().filter(|(at, took)| *at >= from && *at - *took <= to);
        within.map(|(_, took)| *took).sum()
    }

    /// How long after `from` the p99 of windows is at most `limit` again, and what the machine
    /// stalled in that window, and stays so until `to`; and the windows.
    pub(crate) fn calm_after(
        &self,
        from: Duration,
        to: Duration,
        limit: Duration,
    ) -> (Duration, Vec<Duration>) {
        let begins = std::iter::successors(Some(from), |at| Some(*at + WINDOW));
        let begins: Vec<Duration> = begins.take_while(|at| *at + WINDOW <= to).collect();
        let windows: Vec<Duration> = begins.iter().map(|at| self.p99(*at, *at + WINDOW)).collect();
        let is_slow =
            |(at, p99): (&Duration, &Duration)| *p99 > limit + self.stalled(*at, *at + WINDOW);
        let last_slow = begins.iter().zip(&windows).rposition(is_slow);
        let calm = last_slow.map_or(Duration::ZERO, |at| begins[at] + WINDOW - from);
        (calm, windows)
    }
}

fn first_few<T>(all: &[T]) -> &[T] {
    &all[..all.len().min(SHOWN_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn op(shard: u16, began: u64, ended: u64) -> Op {
        Op {
            kind: Kind::Overwrite,
            shard,
            node: 0,
            began: at(began),
            ended: at(ended),
            first_failure: None,
            failure: None,
        }
    }

    fn failed_first(node: usize, began: u64, ended: u64) -> Op {
        Op { node, first_failure: Some("reset".to_owned()), ..op(1, began, ended) }
    }

    fn record(ops: Vec<Op>) -> Record {
        Record { ops, ..Record::default() }
    }

    /// Enough that it counts as a load.
    fn busy(more: Vec<Op>) -> Record {
        let mut ops: Vec<Op> = (0..101).map(|n| op(1, n, n + 1)).collect();
        ops.extend(more);
        let told = Disturbance { node: 2, at: at(500), told: at(510), over: None };
        Record { disturbances: vec![told], ..record(ops) }
    }

    #[test]
    fn the_longest_gap_is_that_of_the_worst_shard_and_edges_count() {
        let mut failed = op(1, 300, 500);
        failed.failure = Some("504".to_owned());
        let load = record(vec![
            op(1, 0, 100),
            failed,
            op(1, 650, 700),
            op(2, 0, 150),
            op(2, 150, 500),
            op(2, 500, 900),
        ]);
        assert_eq!(load.longest_gap(at(0), at(1000)), (at(600), 1));
        assert_eq!(load.longest_gap(at(0), at(600)), (at(500), 1), "nothing came before its end");
        assert_eq!(load.longest_gap(at(650), at(1000)), (at(300), 1));
    }

    #[test]
    fn latency_is_calm_again_after_the_last_slow_window() {
        let quick = (0..50).map(|n| op(1, n * 100, n * 100 + 2));
        let slow = [op(1, 1200, 1500), op(1, 2400, 2900)];
        let load = record(quick.chain(slow).collect());
        assert_eq!(load.p99(at(0), at(1000)), at(2));
        assert_eq!(load.p99(at(1000), at(2000)), at(300));
        let (calm, windows) = load.calm_after(at(0), at(5000), at(4));
        assert_eq!(windows, [at(2), at(300), at(500), at(2), at(2)]);
        assert_eq!(calm, at(3000));
        assert_eq!(load.calm_after(at(3000), at(5000), at(4)).0, at(0));
    }

    #[test]
    fn what_was_in_flight_on_the_disturbed_node_may_need_its_second_attempt() {
        busy(vec![failed_first(2, 450, 600), failed_first(2, 505, 520)])
            .assert_only_in_flight_failed();
    }

    #[test]
    #[should_panic(expected = "1 failed at first elsewhere")]
    fn another_node_has_no_excuse() {
        busy(vec![failed_first(1, 450, 600)]).assert_only_in_flight_failed();
    }

    #[test]
    #[should_panic(expected = "1 failed at first elsewhere")]
    fn what_began_later_has_no_excuse() {
        busy(vec![failed_first(2, 511, 600)]).assert_only_in_flight_failed();
    }

    #[test]
    #[should_panic(expected = "1 failed twice")]
    fn failing_twice_has_no_excuse() {
        let mut op = failed_first(2, 450, 600);
        op.failure = Some("504".to_owned());
        busy(vec![op]).assert_only_in_flight_failed();
    }
}
