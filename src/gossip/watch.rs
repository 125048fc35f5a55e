//! Who seems alive: from how long each node has been silent.
//!
//! Pure: every function is told the time. A node counts as heard when a datagram of its present
//! process came in here, or when somebody heard here says that it heard it. foca's verdict weighs
//! only together with silence: that foca has a node down makes a suspect dead, but not a node that
//! is being heard (it is about to come back in its next generation).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::datagram::Heard;
use super::identity::Id;
use super::session::NODES_MAX;
use super::{Seen, State};
use crate::complaint::{Kind, brief, complain};
use crate::topology::NodeId;

/// A node that has been dead or gone for so long is no longer spoken of, nor knocked at.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// How long a silence means what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeouts {
    /// Silence after which a node is suspected.
    pub(super) suspect: Duration,
    /// Silence after which it is taken for dead.
    pub(super) dead: Duration,
}

/// The nodes that have been seen.
pub(super) struct Watch {
    timeouts: Timeouts,
    nodes: BTreeMap<NodeId, Watched>,
    changed: bool,
}

struct Watched {
    id: Id,
    /// When it was last heard, here or by others.
    heard: Instant,
    /// When it was last heard here.
    heard_here: Option<Instant>,
    /// Whether that is not too long ago.
    is_heard_here: bool,
    /// Whether foca has the present identity down.
    is_down: bool,
    state: State,
    since: Instant,
    addr: Option<SocketAddr>,
}

impl Watch {
    /// Nobody has been seen yet.
    pub(super) fn new(timeouts: Timeouts) -> Self {
        Self { timeouts, nodes: BTreeMap::new(), changed: false }
    }

    /// Other timeouts from now on.
    pub(super) fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts;
    }

    /// What has changed since this was last asked; `None` if nothing has.
    pub(super) fn news(&mut self) -> Option<BTreeMap<NodeId, Seen>> {
        std::mem::take(&mut self.changed).then(|| {
            let seen = |watched: &Watched| Seen {
                peer: watched.id.peer(),
                state: watched.state,
                since: watched.since,
                is_heard_here: watched.is_heard_here,
                addr: watched.addr,
            };
            self.nodes.iter().map(|(&node, watched)| (node, seen(watched))).collect()
        })
    }

    /// The nodes, with their identities and states.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Id, State)> {
        self.nodes.values().map(|watched| (&watched.id, watched.state))
    }

    /// A node's present identity.
    pub(super) fn id(&self, node: NodeId) -> Option<&Id> {
        self.nodes.get(&node).map(|watched| &watched.id)
    }

    /// A node's state.
    pub(super) fn state(&self, node: NodeId) -> Option<State> {
        self.nodes.get(&node).map(|watched| watched.state)
    }

    /// Whether nobody is heard.
    pub(super) fn is_alone(&self) -> bool {
        !self.nodes.values().any(|watched| watched.state == State::Alive)
    }

    /// How long a node has not been heard, here or by others.
    pub(super) fn silence(&self, node: NodeId, now: Instant) -> Duration {
        let heard = self.nodes.get(&node).map(|watched| watched.heard);
        heard.map_or(Duration::MAX, |heard| now.saturating_duration_since(heard))
    }

    /// Whether a living node is reached at that address.
    pub(super) fn lives_at(&self, addr: SocketAddr) -> bool {
        self.nodes.values().any(|w| w.addr == Some(addr) && w.state == State::Alive)
    }

    /// Where a node is reached, if that is known.
    pub(super) fn addr(&self, node: NodeId) -> Option<SocketAddr> {
        self.nodes.get(&node)?.addr
    }

    /// Sets where a node is reached.
    pub(super) fn set_addr(&mut self, node: NodeId, addr: SocketAddr) {
        if let Some(watched) = self.nodes.get_mut(&node)
            && watched.addr != Some(addr)
        {
            watched.addr = Some(addr);
            self.changed = true;
        }
    }

    /// A node is there under this identity, as foca says. Answers whether there was room for it.
    pub(super) fn up(&mut self, id: &Id, now: Instant) -> bool {
        let is_full = self.nodes.len() >= NODES_MAX;
        match self.nodes.get_mut(&id.node) {
            None if is_full => return false,
            None => {
                let (kind, name) = (Kind::of_members("appeared"), brief(id.name()));
                complain!(INFO, kind, node = %name, "{name} seems alive");
                let watched = Watched {
                    id: id.clone(),
                    heard: now,
                    heard_here: None,
                    is_heard_here: false,
                    is_down: false,
                    state: State::Alive,
                    since: now,
                    addr: None,
                };
                self.nodes.insert(id.node, watched);
                self.changed = true;
            }
            Some(watched) => {
                watched.is_down = false;
                if id.is_after(&watched.id) {
                    watched.rename(id, now);
                    self.changed = true;
                }
            }
        }
        true
    }

    /// foca has given an identity up.
    pub(super) fn down(&mut self, id: &Id) {
        if let Some(watched) = self.nodes.get_mut(&id.node)
            && watched.id == *id
        {
            watched.is_down = true;
        }
    }

    /// A node's present process was heard here.
    pub(super) fn heard(&mut self, node: NodeId, now: Instant) {
        if let Some(watched) = self.nodes.get_mut(&node) {
            watched.heard = now;
            watched.heard_here = Some(now);
        }
    }

    /// A node that is heard here says whom it has heard.
    pub(super) fn heard_by_others(&mut self, heard: &[Heard], now: Instant) {
        for Heard { node, millis } in heard {
            let at = now.checked_sub(Duration::from_millis((*millis).into()));
            if let (Some(watched), Some(at)) = (self.nodes.get_mut(&NodeId(*node)), at) {
                watched.heard = watched.heard.max(at);
            }
        }
    }

    /// Whom this node has heard itself, of late.
    pub(super) fn hearing(&self, now: Instant) -> impl Iterator<Item = Heard> {
        let heard = move |watched: &Watched| {
            let silence = now.saturating_duration_since(watched.heard_here?);
            let millis = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
            (watched.state != State::Left && silence < self.timeouts.suspect)
                .then_some(Heard { node: watched.id.node.0, millis })
        };
        self.nodes.values().filter_map(heard)
    }

    /// A node said goodbye in this generation. Answers the identity, if that is the present one.
    pub(super) fn left(&mut self, node: NodeId, generation: u64, now: Instant) -> Option<Id> {
        let watched = self.nodes.get_mut(&node)?;
        if watched.id.generation != generation || watched.state == State::Left {
            return None;
        }
        let name = brief(watched.id.name());
        complain!(INFO, Kind::of_members("left"), node = %name, "{name} left");
        watched.enter(State::Left, now);
        self.changed = true;
        Some(watched.id.clone())
    }

    /// This process did not run for that long: nobody's silence in that time counts.
    pub(super) fn excuse(&mut self, span: Duration, now: Instant) {
        let excused = |at: Instant| (at + span).min(now);
        for watched in self.nodes.values_mut() {
            watched.heard = excused(watched.heard);
            watched.heard_here = watched.heard_here.map(excused);
        }
    }

    /// Draws the conclusions from silence.
    pub(super) fn judge(&mut self, now: Instant) {
        for watched in self.nodes.values_mut() {
            let is_heard_here = watched
                .heard_here
                .is_some_and(|at| now.saturating_duration_since(at) < self.timeouts.suspect);
            self.changed |= watched.is_heard_here != is_heard_here;
            watched.is_heard_here = is_heard_here;
            let silence = now.saturating_duration_since(watched.heard);
            let state = watched.judged(silence, self.timeouts);
            if state == watched.state {
                continue;
            }
            let (name, silent) = (brief(watched.id.name()), silence.as_secs_f64());
            match state {
                State::Alive => {
                    let kind = Kind::of_members("back");
                    complain!(INFO, kind, node = %name, "{name} seems alive again");
                }
                State::Suspect => {
                    let kind = Kind::of_members("suspect");
                    complain!(INFO, kind, node = %name, "{name} is suspected: silent for {silent:.1} s");
                }
                State::Dead => {
                    let kind = Kind::of_members("dead");
                    complain!(INFO, kind, node = %name, "{name} seems dead: silent for {silent:.1} s");
                }
                State::Left => {}
            }
            watched.enter(state, now);
            self.changed = true;
        }
        let count = self.nodes.len();
        self.nodes.retain(|_, watched| {
            let is_gone = matches!(watched.state, State::Dead | State::Left);
            !is_gone || now.saturating_duration_since(watched.since) < FORGET_AFTER
        });
        self.changed |= self.nodes.len() < count;
    }
}

impl Watched {
    fn judged(&self, silence: Duration, timeouts: Timeouts) -> State {
        match silence {
            _ if self.state == State::Left => State::Left,
            _ if silence >= timeouts.dead => State::Dead,
            _ if silence < timeouts.suspect => State::Alive,
            _ if self.is_down => State::Dead,
            // Timeouts may have been changed; but only hearing it makes a dead node a lesser worry.
            _ if self.state == State::Dead => State::Dead,
            _ => State::Suspect,
        }
    }

    fn enter(&mut self, state: State, now: Instant) {
        self.state = state;
        self.since = now;
    }

    /// The node has come back in a later generation or life, so it was there not long ago.
    fn rename(&mut self, id: &Id, now: Instant) {
        let name = brief(id.name());
        match self.state {
            State::Alive if id.life > self.id.life => {
                let kind = Kind::of_members("new_life");
                complain!(INFO, kind, node = %name, "{name} came back in a new life");
            }
            State::Alive => tracing::debug!(?id, "came back in a later generation"),
            _ => {
                let kind = Kind::of_members("back");
                complain!(INFO, kind, node = %name, "{name} seems alive again");
                self.enter(State::Alive, now);
            }
        }
        if id.addr() != self.id.addr() {
            self.addr = None;
        }
        self.heard = now;
        self.id = id.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::Peer;

    const NODE: NodeId = NodeId(2);

    fn id(life: u64, generation: u64) -> Id {
        let peer =
            Peer { node: NODE, name: "node2".to_owned(), life, addr: "10.0.0.2:7701".to_owned() };
        Id::new(&peer, generation)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn watch(start: Instant) -> Watch {
        let mut watch = Watch::new(Timeouts { suspect: seconds(5), dead: seconds(10) });
        assert!(watch.up(&id(1, 1), start));
        watch.heard(NODE, start);
        watch
    }

    fn state(watch: &mut Watch, at: Instant) -> State {
        watch.judge(at);
        watch.state(NODE).expect("it was seen")
    }

    #[test]
    fn silence_makes_a_suspect_and_then_a_dead_node_and_a_word_makes_it_alive() {
        let start = Instant::now();
        let mut watch = watch(start);
        assert_eq!(state(&mut watch, start + Duration::from_millis(4_999)), State::Alive);
        assert_eq!(state(&mut watch, start + seconds(5)), State::Suspect);
        assert_eq!(state(&mut watch, start + Duration::from_millis(9_999)), State::Suspect);
        assert_eq!(state(&mut watch, start + seconds(10)), State::Dead);
        watch.heard(NODE, start + seconds(20));
        assert_eq!(state(&mut watch, start + seconds(20)), State::Alive);
        let news = watch.news().expect("much has changed");
        assert_eq!(news[&NODE].since, start + seconds(20));
        assert!(watch.news().is_none());
    }

    #[test]
    fn foca_makes_a_suspect_dead_but_not_a_node_that_is_heard() {
        let start = Instant::now();
        let mut watch = watch(start);
        watch.down(&id(1, 1));
        assert_eq!(state(&mut watch, start + seconds(4)), State::Alive);
        assert_eq!(state(&mut watch, start + seconds(6)), State::Dead);
        watch.up(&id(1, 2), start + seconds(7));
        assert_eq!(state(&mut watch, start + seconds(7)), State::Alive);
        watch.down(&id(1, 1));
        assert_eq!(state(&mut watch, start + seconds(13)), State::Suspect);
    }

    #[test]
    fn what_others_hear_counts_by_its_age() {
        let start = Instant::now();
        let mut watch = watch(start);
        let heard = |millis| [Heard { node: 2, millis }];
        watch.heard_by_others(&heard(1_000), start + seconds(8));
        assert_eq!(state(&mut watch, start + seconds(11)), State::Alive);
        // An older word than what is known already changes nothing.
        watch.heard_by_others(&heard(6_000), start + seconds(11));
        assert_eq!(state(&mut watch, start + seconds(12)), State::Suspect);
        // Only what was heard here is passed on: rumours do not keep each other alive.
        assert_eq!(watch.hearing(start + seconds(1)).count(), 1);
        assert_eq!(watch.hearing(start + seconds(8)).count(), 0);
    }

    #[test]
    fn it_is_told_whether_a_nodes_own_datagrams_come_in_here() {
        let start = Instant::now();
        let mut watch = watch(start);
        let seen = |watch: &mut Watch, at: Instant| {
            watch.judge(at);
            watch.news().map(|seen| (seen[&NODE].state, seen[&NODE].is_heard_here))
        };
        assert_eq!(seen(&mut watch, start), Some((State::Alive, true)));
        watch.heard_by_others(&[Heard { node: 2, millis: 0 }], start + seconds(4));
        assert_eq!(seen(&mut watch, start + seconds(4)), None);
        assert_eq!(seen(&mut watch, start + seconds(5)), Some((State::Alive, false)));
        watch.heard(NODE, start + seconds(6));
        assert_eq!(seen(&mut watch, start + seconds(6)), Some((State::Alive, true)));
        // Nor does the time count in which this process did not run.
        watch.excuse(seconds(60), start + seconds(67));
        assert_eq!(seen(&mut watch, start + seconds(68)), None);
    }

    #[test]
    fn who_left_stays_gone_until_a_later_generation_comes() {
        let start = Instant::now();
        let mut watch = watch(start);
        assert_eq!(watch.left(NODE, 7, start), None);
        assert_eq!(watch.left(NODE, 1, start), Some(id(1, 1)));
        watch.heard(NODE, start + seconds(1));
        watch.up(&id(1, 1), start + seconds(1));
        assert_eq!(state(&mut watch, start + seconds(1)), State::Left);
        assert_eq!(state(&mut watch, start + seconds(20)), State::Left);
        watch.up(&id(1, 2), start + seconds(21));
        assert_eq!(state(&mut watch, start + seconds(21)), State::Alive);
    }

    #[test]
    fn a_later_life_wins_over_any_generation_of_an_earlier() {
        let start = Instant::now();
        let mut watch = watch(start);
        watch.up(&id(2, 0), start);
        watch.up(&id(1, 99), start);
        assert_eq!(watch.id(NODE).map(|id| (id.life, id.generation)), Some((2, 0)));
    }

    #[test]
    fn nobody_is_blamed_for_the_time_in_which_this_process_did_not_run() {
        let start = Instant::now();
        let mut watch = watch(start);
        watch.excuse(seconds(60), start + seconds(61));
        assert_eq!(state(&mut watch, start + seconds(62)), State::Alive);
        assert_eq!(state(&mut watch, start + seconds(66)), State::Suspect);
    }

    #[test]
    fn the_dead_are_forgotten_after_an_hour() {
        let start = Instant::now();
        let mut watch = watch(start);
        assert_eq!(state(&mut watch, start + seconds(10)), State::Dead);
        assert_eq!(state(&mut watch, start + seconds(3_609)), State::Dead);
        watch.judge(start + seconds(3_610));
        assert_eq!(watch.state(NODE), None);
        assert!(watch.news().is_some_and(|seen| seen.is_empty()));
    }
}
