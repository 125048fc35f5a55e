//! The places for connections on this port: a bounded number, for whoever comes.
//!
//! Invariant: when one too many comes, room is made for it. Of the address that would hold the most
//! places, the newcomer's counted, the one goes that has been without a request for longest; so
//! whoever holds many places loses its own. No newcomer goes before what it sent was looked at, and no
//! health check under way while there is another; so these get through, however many come. A connection
//! that an operator's request is being carried out for keeps its place, unless more than half are such.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How long a connection may take over what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until its first request is there.
    pub(super) first_head: Duration,
    /// Until its next request is there.
    pub(super) next_head: Duration,
    /// Until it has taken an answer.
    pub(super) answer: Duration,
}

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    /// Rises with each request; tells whose was last.
    requests: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    held: BTreeMap<u64, (Arc<Place>, AbortHandle)>,
}

/// What became of a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// There was room.
    Free,
    /// A connection from this address was cut off for it.
    InsteadOf(IpAddr),
    /// None of the others was looked at yet; it was turned away.
    Not,
}

/// One connection's place.
#[derive(Debug)]
pub(super) struct Place {
    address: IpAddr,
    entered: Instant,
    /// When it asked last, by [`Places::requests`].
    last: AtomicU64,
    has_asked: AtomicBool,
    /// Whether what it sent was looked at.
    is_seen: AtomicBool,
    /// Health checks that are being answered.
    probes: AtomicU32,
    /// Requests of an operator that are being carried out.
    trusted: AtomicU32,
    /// Since when part of an answer has been waiting to be taken.
    stalled: Mutex<Option<Instant>>,
}

/// A place, until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    visit: Visit,
    number: u64,
}

/// Where a request comes from, as its handlers see it.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    places: Arc<Places>,
    place: Arc<Place>,
}

/// A request that gives a place more weight, until this is dropped.
#[derive(Debug)]
pub(super) struct Weight(Arc<Place>, fn(&Place) -> &AtomicU32);

impl Places {
    /// So many places.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, requests: AtomicU64::new(0), table: Mutex::default() })
    }

    /// Takes in a connection from `address`, whose task `spawn` starts.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        spawn: impl FnOnce(Held) -> AbortHandle,
    ) -> Entered {
        let place = Arc::new(Place::new(address, self.next_request()));
        let mut table = self.table.lock();
        let cut_off = match table.held.len() >= self.most {
            false => None,
            true => match table.to_go(place.holder(), self.most / 2) {
                Some(number) => table.held.remove(&number),
                None => return Entered::Not,
            },
        };
        let number = table.next;
        table.next += 1;
        let visit = Visit { places: Arc::clone(self), place: Arc::clone(&place) };
        // Under the lock: the task cannot leave before it is entered.
        let task = spawn(Held { visit, number });
        table.held.insert(number, (place, task));
        drop(table);
        match cut_off {
            None => Entered::Free,
            Some((place, task)) => {
                task.abort();
                Entered::InsteadOf(place.address)
            }
        }
    }

    /// Whether there is no room, and none to be made before some were looked at.
    pub(super) fn are_swamped(&self) -> bool {
        let table = self.table.lock();
        let mut places = table.held.values().map(|(place, _)| place);
        table.held.len() >= self.most
            && places.clone().any(|place| !place.is_seen.load(Ordering::Relaxed))
            && !places.any(|place| place.may_go(false))
    }

    /// Cuts off whoever has not taken its answer for longest. Whether there was one.
    fn end_stalled(&self) -> bool {
        let table = self.table.lock();
        let stalled = table.held.values().filter_map(|(place, task)| {
            let since = *place.stalled.lock();
            since.map(|since| (since, task))
        });
        match stalled.min_by_key(|(since, _)| *since) {
            Some((_, task)) => {
                task.abort();
                true
            }
            None => false,
        }
    }

    fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }
}

impl Table {
    /// Whom one from `newcomer` displaces. Of operators' requests as many as `kept` keep their places.
    fn to_go(&self, newcomer: IpAddr, kept: usize) -> Option<u64> {
        let trusted = self.held.values().filter(|(place, _)| place.is_trusted()).count();
        let trusted_go = trusted > kept;
        // For each holder how many places, and of these the one that goes first.
        let mut holders = HashMap::<IpAddr, (usize, Option<(bool, u64, u64)>)>::new();
        for (number, (place, _)) in &self.held {
            let own = usize::from(place.holder() == newcomer);
            let (count, first) = holders.entry(place.holder()).or_insert((own, None));
            *count += 1;
            if place.may_go(trusted_go) {
                let is_probe = place.probes.load(Ordering::Relaxed) > 0;
                let this = (is_probe, place.last.load(Ordering::Relaxed), *number);
                *first = Some(first.map_or(this, |first| first.min(this)));
            }
        }
        let to_go = holders.into_values().filter_map(|(count, first)| Some((count, first?)));
        to_go.max_by_key(|(count, first)| (*count, Reverse(*first))).map(|(_, first)| first.2)
    }
}

impl Place {
    fn new(address: IpAddr, now: u64) -> Self {
        Self {
            address,
            entered: Instant::now(),
            last: AtomicU64::new(now),
            has_asked: AtomicBool::new(false),
            is_seen: AtomicBool::new(false),
            probes: AtomicU32::new(0),
            trusted: AtomicU32::new(0),
            stalled: Mutex::new(None),
        }
    }

    /// Who holds it: an address, or the network that one customer gets of IPv6.
    fn holder(&self) -> IpAddr {
        match self.address {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Ipv6Addr::from_bits(network).into()
            }
            address @ IpAddr::V4(_) => address,
        }
    }

    /// Whether a request of an operator is being carried out for it.
    fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed) > 0
    }

    /// Whether it may be cut off for another.
    fn may_go(&self, trusted_go: bool) -> bool {
        self.is_seen.load(Ordering::Relaxed) && (trusted_go || !self.is_trusted())
    }

    /// What it sent so far was looked at.
    pub(super) fn seen(&self) {
        self.is_seen.store(true, Ordering::Relaxed);
    }

    /// Which request of the port was its last.
    pub(super) fn last_request(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// An answer waits to be taken, or has been.
    pub(super) fn stalls(&self, stalls: bool) {
        let mut stalled = self.stalled.lock();
        match stalls {
            true => _ = stalled.get_or_insert_with(Instant::now),
            false => *stalled = None,
        }
    }

    /// When its time is over, as things stand. The time until its next request is hyper's to watch.
    pub(super) fn deadline(&self, patience: Patience) -> Option<Instant> {
        let answer = self.stalled.lock().map(|since| since + patience.answer);
        let has_asked = self.has_asked.load(Ordering::Relaxed);
        let first_head = (!has_asked).then(|| self.entered + patience.first_head);
        answer.into_iter().chain(first_head).min()
    }
}

impl Held {
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.visit.place
    }

    /// A request has come.
    pub(super) fn asks(&self) -> Visit {
        let place = &self.visit.place;
        place.has_asked.store(true, Ordering::Relaxed);
        place.last.store(self.visit.places.next_request(), Ordering::Relaxed);
        self.visit.clone()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.visit.places.table.lock().held.remove(&self.number);
    }
}

impl Visit {
    /// It is an operator's: the place is kept for as long as what this returns.
    pub(super) fn trust(&self) -> Weight {
        self.weigh(|place| &place.trusted)
    }

    /// It is a health check: others go before it, for as long as what this returns.
    pub(super) fn probe(&self) -> Weight {
        self.weigh(|place| &place.probes)
    }

    fn weigh(&self, which: fn(&Place) -> &AtomicU32) -> Weight {
        which(&self.place).fetch_add(1, Ordering::Relaxed);
        Weight(Arc::clone(&self.place), which)
    }

    /// Memory is short for answers: cuts off who has not taken one for longest. Whether there was one.
    pub(super) fn make_room(&self) -> bool {
        self.places.end_stalled()
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enters, is looked at, and stays until it is cut off.
    fn enter(places: &Arc<Places>, address: &str, visits: &mut Vec<Visit>) -> Entered {
        let entered = enter_unseen(places, address, visits);
        visits.last().unwrap().place.seen();
        entered
    }

    fn enter_unseen(places: &Arc<Places>, address: &str, visits: &mut Vec<Visit>) -> Entered {
        places.enter(address.parse().unwrap(), |held| {
            visits.push(held.visit.clone());
            tokio::spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            })
            .abort_handle()
        })
    }

    fn cut_off(address: &str) -> Entered {
        Entered::InsteadOf(address.parse().unwrap())
    }

    #[tokio::test]
    async fn who_holds_most_places_loses_the_one_it_used_longest_ago() {
        let (places, mut visits) = (Places::new(4), Vec::new());
        for address in ["10.0.0.9", "10.0.0.1", "10.0.0.2", "10.0.0.2"] {
            assert_eq!(enter(&places, address, &mut visits), Entered::Free);
        }
        assert_eq!(enter(&places, "127.0.0.1", &mut visits), cut_off("10.0.0.2"));
        // All hold one; the newcomer's own is displaced, not the older ones of others.
        assert_eq!(enter(&places, "10.0.0.1", &mut visits), cut_off("10.0.0.1"));
        // A stranger to all displaces the one that has been silent for longest.
        visits[0].place.last.store(places.next_request(), Ordering::Relaxed);
        assert_eq!(enter(&places, "10.0.0.4", &mut visits), cut_off("10.0.0.2"));
        assert_eq!(places.table.lock().held.len(), 4);
    }

    #[tokio::test]
    async fn nobody_goes_before_it_was_looked_at_and_others_before_a_health_check() {
        let (places, mut visits) = (Places::new(3), Vec::new());
        for _ in 0..3 {
            enter_unseen(&places, "10.0.0.1", &mut visits);
        }
        assert!(places.are_swamped());
        visits[1].place.seen();
        visits[2].place.seen();
        assert!(!places.are_swamped());
        let probe = visits[1].probe();
        let left = |places: &Places| places.table.lock().held.keys().copied().collect::<Vec<_>>();
        enter_unseen(&places, "10.0.0.1", &mut visits);
        assert_eq!(left(&places), [0, 1, 3]);
        enter_unseen(&places, "10.0.0.1", &mut visits);
        assert_eq!(left(&places), [0, 3, 4], "there was no other");
        drop(probe);
        let trusted = [0, 3, 4].map(|number| {
            visits[number].place.seen();
            visits[number].trust()
        });
        assert!(!places.are_swamped(), "it is full of operators");
        drop(trusted);
    }

    #[tokio::test]
    async fn a_network_of_ipv6_is_one_holder() {
        let (places, mut visits) = (Places::new(3), Vec::new());
        for address in ["2001:db8::9", "2001:db8:0:1::1", "2001:db8:0:1::2"] {
            enter(&places, address, &mut visits);
        }
        assert_eq!(enter(&places, "::1", &mut visits), cut_off("2001:db8:0:1::1"));
    }

    #[tokio::test]
    async fn an_operators_request_keeps_its_place() {
        let (places, mut visits) = (Places::new(2), Vec::new());
        enter(&places, "10.0.0.1", &mut visits);
        enter(&places, "10.0.0.1", &mut visits);
        let _first = visits[0].trust();
        for address in ["10.0.0.1", "10.0.0.1", "10.0.0.1"] {
            assert_eq!(enter(&places, address, &mut visits), cut_off("10.0.0.1"));
            assert!(places.table.lock().held.contains_key(&0));
        }
    }

    #[tokio::test]
    async fn the_first_request_and_each_answer_have_their_time() {
        let (places, mut visits) = (Places::new(2), Vec::new());
        let (s, address) = (Duration::from_secs, "10.0.0.1".parse().unwrap());
        let patience = Patience { first_head: s(10), next_head: s(75), answer: s(5) };
        enter(&places, "10.0.0.1", &mut visits);
        let place = &visits[0].place;
        assert_eq!(place.deadline(patience), Some(place.entered + s(10)));
        places.enter(address, |held| {
            held.asks();
            assert_eq!(held.place().deadline(patience), None);
            held.place().stalls(true);
            let since = held.place().stalled.lock().unwrap();
            held.place().stalls(true);
            assert_eq!(held.place().deadline(patience), Some(since + s(5)));
            held.place().stalls(false);
            assert_eq!(held.place().deadline(patience), None);
            tokio::spawn(async move { drop(held) }).abort_handle()
        });
    }

    #[tokio::test]
    async fn requests_of_operators_fill_no_more_than_half_for_good() {
        let (places, mut visits) = (Places::new(4), Vec::new());
        for _ in 0..4 {
            enter(&places, "10.0.0.1", &mut visits);
        }
        let _half: Vec<_> = visits[..2].iter().map(Visit::trust).collect();
        assert_eq!(enter(&places, "10.0.0.2", &mut visits), cut_off("10.0.0.1"));
        assert!(places.table.lock().held.keys().copied().eq([0, 1, 3, 4]), "the first other goes");
        let _more = visits[3].trust();
        assert_eq!(enter(&places, "10.0.0.3", &mut visits), cut_off("10.0.0.1"));
        assert!(places.table.lock().held.keys().copied().eq([1, 3, 4, 5]), "now the first of all");
    }

    #[tokio::test]
    async fn where_memory_is_short_who_takes_no_answer_goes() {
        let (places, mut visits) = (Places::new(2), Vec::new());
        enter(&places, "10.0.0.1", &mut visits);
        enter(&places, "10.0.0.2", &mut visits);
        assert!(!visits[0].make_room());
        visits[1].place.stalls(true);
        assert!(visits[0].make_room());
        while places.table.lock().held.len() == 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(places.table.lock().held[&0].0.address.to_string(), "10.0.0.1");
    }
}
