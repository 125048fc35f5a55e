//! The side that dials: keeps one connection to one other node, and knows how it stands.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use super::addresses::{Addresses, News, Source};
use super::calls::Calls;
use super::connect::{self, OpenError};
use super::frame::Head;
use super::handshake::{Agreed, Failure};
use super::hello::{Identity, Purpose};
use super::link::{Down, Measure, Silence};
use super::outbox::Outbox;
use super::record::{Inbound, InboundError, Sealer};
use super::refusal::{Objection, Refusal};
use super::shared::{LAST_WORDS_MAX, Shared, Standing};
use super::tls::{self, Reader, Stream, Writer};
use super::{Peer, random_u64, wall_millis};
use crate::topology::NodeId;

/// How often what pings have measured is published.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// A connection that lasted this long starts the pauses from the shortest again.
const STEADY_AFTER: Duration = Duration::from_secs(1);

/// What goes over one connection: frames out, and requests waiting for their answers.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) outbox: Arc<Outbox>,
    pub(super) calls: Calls,
}

/// Keeps the connection to one node.
pub(super) struct Dialler {
    node: NodeId,
    name: Mutex<String>,
    addresses: Mutex<Addresses>,
    lane: ArcSwapOption<Lane>,
    /// The other side was heard of: dial without waiting any longer.
    woken: Notify,
    /// It says that it is elsewhere now.
    moved: Notify,
    removed: CancellationToken,
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialler").field("node", &self.node).finish_non_exhaustive()
    }
}

/// How an attempt ended.
enum Outcome {
    /// There was a connection, or there was none. `again`: another address is left to try.
    Down { why: Down, lasted: Duration, again: bool },
    /// This node has another identity.
    Renewed,
    /// The transport stops, or the node is no peer any more.
    Over,
}

impl Dialler {
    pub(super) fn new(node: NodeId, peer: Peer) -> Self {
        Self {
            node,
            addresses: Mutex::new(Addresses::new(&peer.addr)),
            name: Mutex::new(peer.name),
            lane: ArcSwapOption::empty(),
            woken: Notify::new(),
            moved: Notify::new(),
            removed: CancellationToken::new(),
        }
    }

    /// Follows the node to where the topology has it. A connection that stands is kept.
    pub(super) fn retarget(&self, peer: &Peer) {
        self.name.lock().clone_from(&peer.name);
        self.hear(Source::Topology, &peer.addr);
    }

    /// Takes note of where a node is that introduces itself, if it is this one.
    pub(super) fn met(&self, shared: &Shared, identity: &Identity) {
        let life = shared.links.life(self.node).unwrap_or(0);
        if identity.name == *self.name.lock() && identity.life >= life {
            self.hear(Source::Itself, &identity.peer_addr);
        }
    }

    /// Takes note of where the node is said to be.
    pub(super) fn hear(&self, source: Source, addr: &str) {
        let news = self.addresses.lock().hear(source, addr);
        match news {
            News::None => return,
            News::Found => {}
            News::Moved => self.moved.notify_one(),
        }
        self.wake();
    }

    /// Where the node may be, the likeliest first.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.addresses.lock().all().to_vec()
    }

    /// Dials at once if it is waiting to.
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Ends for good.
    pub(super) fn remove(&self) {
        self.removed.cancel();
    }

    /// The connection, if there is one.
    pub(super) fn lane(&self) -> Option<Arc<Lane>> {
        self.lane.load_full()
    }

    /// Runs `send` with the connection, if there is one.
    pub(super) fn with_lane<T>(&self, send: impl FnOnce(&Lane) -> T) -> Option<T> {
        self.lane.load().as_ref().map(|lane| send(lane))
    }

    /// Dials, keeps the connection while it lasts, and dials again.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let mut backoff = Backoff::default();
        loop {
            let standing = shared.standing();
            let outcome = match self.may_dial(&standing.identity) {
                false => {
                    shared.links.remove(self.node);
                    self.interrupted(&shared, &standing).await
                }
                true => {
                    shared.links.enter(self.node);
                    self.attempt(&shared, &standing).await
                }
            };
            let pause = match outcome {
                Outcome::Over => break,
                Outcome::Renewed | Outcome::Down { again: true, .. } => continue,
                Outcome::Down { why, lasted, again: false } => {
                    let (min, max) = (shared.timing.redial_min, shared.timing.redial_max);
                    // Who was just let in is a member as soon as it has written that down.
                    let rejected =
                        matches!(why, Down::Rejected(refusal) if refusal != Refusal::NotMember);
                    backoff.pause(min, max, rejected, lasted >= STEADY_AFTER, random_u64())
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.woken.notified() => {}
                outcome = self.interrupted(&shared, &standing) => {
                    if matches!(outcome, Outcome::Over) {
                        break;
                    }
                }
            }
        }
        // A dialler that was removed and added again has a new self, whose link this is not.
        let current = shared.diallers.load().get(&self.node).cloned();
        if current.is_none_or(|current| Arc::ptr_eq(&current, &self)) {
            shared.links.remove(self.node);
        }
    }

    fn may_dial(&self, us: &Identity) -> bool {
        us.is_member() && us.node != Some(self.node)
    }

    async fn interrupted(&self, shared: &Shared, standing: &Standing) -> Outcome {
        tokio::select! {
            () = self.removed.cancelled() => Outcome::Over,
            () = shared.stopping.cancelled() => Outcome::Over,
            () = standing.renewed.cancelled() => Outcome::Renewed,
        }
    }

    async fn attempt(&self, shared: &Shared, standing: &Standing) -> Outcome {
        let (addr, is_likeliest) = {
            let addresses = self.addresses.lock();
            (addresses.next().to_owned(), addresses.is_at_start())
        };
        let opened = tokio::select! {
            outcome = self.interrupted(shared, standing) => return outcome,
            opened = self.open(shared, &standing.identity, &addr) => opened,
        };
        match opened {
            Ok((stream, agreed)) => {
                self.addresses.lock().works(&addr);
                self.keep(shared, standing, stream, agreed, &addr).await
            }
            Err(error) => {
                let whom = format!("{} ({addr})", self.name.lock());
                match &error {
                    OpenError::Failure(Failure::Objection(objection)) => {
                        shared.object(objection, &addr, &whom);
                    }
                    OpenError::Failure(Failure::Told(refusal)) => {
                        shared.told(*refusal, &addr, &whom);
                    }
                    other => debug!("cannot connect to {whom}: {other}"),
                }
                let why = error.down();
                // What an address says at which it once was tells nothing of the node.
                if is_likeliest {
                    shared.links.down(self.node, why);
                }
                let mut addresses = self.addresses.lock();
                let again = match why {
                    Down::Rejected(Refusal::OtherNode) => addresses.is_anothers(&addr),
                    _ => addresses.failed(&addr),
                };
                Outcome::Down { why, lasted: Duration::ZERO, again }
            }
        }
    }

    async fn open(
        &self,
        shared: &Shared,
        us: &Identity,
        addr: &str,
    ) -> Result<(Stream, Agreed), OpenError> {
        let (stream, agreed) = connect::open(shared, us, addr, Purpose::Link).await?;
        match agreed.identity.node {
            Some(found) if found != self.node => {
                let objection = Objection::OtherNode { expected: self.node, found };
                Err(Failure::from(objection).into())
            }
            _ => Ok((stream, agreed)),
        }
    }

    /// Keeps a connection to its end.
    async fn keep(
        &self,
        shared: &Shared,
        standing: &Standing,
        stream: Stream,
        agreed: Agreed,
        addr: &str,
    ) -> Outcome {
        let began = Instant::now();
        let (sealer, opener) = agreed.keys.unzip();
        let (reader, writer) = tls::split(stream);
        let lane = Arc::new(Lane::default());
        let mut writing = write(&lane, writer, sealer, shared.timing.close_after);
        self.lane.store(Some(Arc::clone(&lane)));
        let whom = format!("{} ({})", agreed.identity.name, agreed.identity.peer_addr);
        shared.links.up(self.node, agreed.identity.life);
        info!("connected to {whom}");

        let mut connection = Connection {
            shared,
            node: self.node,
            life: agreed.identity.life,
            whom: &whom,
            lane: &lane,
            inbound: Inbound::new(reader, opener),
            measure: Measure::default(),
            published: None,
            silent: false,
        };
        let end = tokio::select! {
            why = connection.run() => Ok(why),
            _ = &mut writing => Ok(Down::Reset),
            () = self.moved_from(addr) => Ok(Down::Reset),
            outcome = self.interrupted(shared, standing) => Err(outcome),
        };
        self.lane.store(None);
        if matches!(end, Err(Outcome::Over)) {
            // What is queued still goes out.
            lane.outbox.finish();
            tokio::select! {
                _ = timeout(LAST_WORDS_MAX, &mut writing) => {}
                () = shared.ended.cancelled() => {}
            }
        }
        lane.calls.close(lane.outbox.close());
        let why = match &end {
            Ok(why) => *why,
            Err(Outcome::Over) => return Outcome::Over,
            Err(_renewed) => Down::Reset,
        };
        if shared.links.down(self.node, why) {
            info!("the connection to {whom} is down: {why}");
        }
        match end {
            Ok(why) => Outcome::Down { why, lasted: began.elapsed(), again: false },
            Err(outcome) => outcome,
        }
    }

    /// Waits until the node says that it is not at `addr` any more: then its process there is gone.
    async fn moved_from(&self, addr: &str) {
        loop {
            self.moved.notified().await;
            if self.addresses.lock().next() != addr {
                return;
            }
        }
    }
}

fn write(
    lane: &Lane,
    mut writer: Writer,
    sealer: Option<Sealer>,
    stall_max: Duration,
) -> AbortOnDropHandle<()> {
    let outbox = Arc::clone(&lane.outbox);
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = outbox.write_to(&mut writer, sealer, stall_max).await {
            debug!(%error, "cannot write to another node");
        }
    }))
}

/// A connection that stands.
struct Connection<'a> {
    shared: &'a Shared,
    node: NodeId,
    life: u64,
    whom: &'a str,
    lane: &'a Lane,
    inbound: Inbound<Reader>,
    measure: Measure,
    /// When a measurement was last published.
    published: Option<Instant>,
    /// Whether it is told to be silent.
    silent: bool,
}

impl Connection<'_> {
    /// Reads answers and sends pings until the connection ends.
    async fn run(&mut self) -> Down {
        let timing = self.shared.timing;
        let mut silence = Silence::new(Instant::now(), timing.step_max());
        let mut ticks = interval(timing.ping);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                filled = self.inbound.fill() => {
                    silence.heard(Instant::now());
                    let taken = match filled {
                        Ok(()) => self.take_frames(),
                        Err(error) => Err(self.broken(error)),
                    };
                    match taken {
                        Ok(()) => self.heard(),
                        Err(why) => return why,
                    }
                }
                _ = ticks.tick() => {
                    let quiet = silence.quiet(Instant::now());
                    if quiet >= timing.close_after {
                        return Down::Silent;
                    }
                    if quiet >= timing.silent_after {
                        self.unheard();
                    }
                    self.ping();
                }
            }
        }
    }

    fn take_frames(&mut self) -> Result<(), Down> {
        loop {
            let (head, body) = match self.inbound.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.broken(error)),
            };
            match head {
                Head::Answer { number } => self.lane.calls.answer(number, body),
                Head::Pong { number, wall_millis } => self.pong(number, wall_millis),
                Head::Farewell { code } => return Err(self.farewell(code)),
                Head::OneWay { .. } | Head::Request { .. } | Head::Ping { .. } => {
                    let objection = Objection::Unexpected("frame that only a dialler sends");
                    return Err(self.object(&objection));
                }
            }
        }
    }

    fn heard(&mut self) {
        if std::mem::take(&mut self.silent) {
            self.shared.links.up(self.node, self.life);
            info!("{} is heard again", self.whom);
        }
    }

    fn unheard(&mut self) {
        if !std::mem::replace(&mut self.silent, true) {
            self.shared.links.down(self.node, Down::Silent);
            info!("nothing is heard from {}", self.whom);
        }
    }

    fn ping(&mut self) {
        let wall_millis = wall_millis();
        let number = self.measure.ping(Instant::now(), wall_millis);
        self.lane.outbox.push_urgent(Head::Ping { number, wall_millis });
    }

    fn pong(&mut self, number: u64, wall_millis: u64) {
        let now = Instant::now();
        let Some((round_trip, offset)) = self.measure.pong(number, now, wall_millis) else {
            return;
        };
        if self.published.is_none_or(|last| now.duration_since(last) >= PUBLISH_INTERVAL) {
            self.published = Some(now);
            self.shared.links.measured(self.node, round_trip, offset);
        }
    }

    fn broken(&self, error: InboundError) -> Down {
        match error {
            InboundError::Io(error) => {
                debug!("the connection to {} broke: {error}", self.whom);
                Down::Reset
            }
            other => self.object(&Objection::Inbound(other)),
        }
    }

    fn object(&self, objection: &Objection) -> Down {
        self.shared.object(objection, self.whom, self.whom);
        Down::Rejected(objection.refusal())
    }

    fn farewell(&self, code: u8) -> Down {
        let refusal = self.shared.farewell(code, self.whom, self.whom);
        refusal.map_or(Down::Reset, Down::Rejected)
    }
}

/// How long to wait before dialling again.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause: at least half of what it could be, so that those who lost a node together
    /// do not come back together.
    fn pause(
        &mut self,
        min: Duration,
        max: Duration,
        rejected: bool,
        was_steady: bool,
        random: u64,
    ) -> Duration {
        if was_steady {
            self.failures = 0;
        }
        let full = min.saturating_mul(1 << self.failures.min(16)).min(max);
        self.failures = self.failures.saturating_add(1);
        let share =
            f64::from(u32::try_from(random >> 32).expect("32 bits are left")) / f64::from(u32::MAX);
        match rejected {
            true => max + max.mul_f64(share / 2.0),
            false => full.mul_f64(0.5 + share / 2.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest_and_start_over_after_a_steady_connection() {
        let mut backoff = Backoff::default();
        let mut next = |steady| backoff.pause(MIN, MAX, false, steady, u64::MAX).as_millis();
        assert_eq!([(); 7].map(|()| next(false)), [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(next(true), 50);
    }

    #[test]
    fn pauses_are_spread_and_a_refusal_waits_the_longest() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(MIN, MAX, false, false, 0).as_millis(), 25);
        assert_eq!(backoff.pause(MIN, MAX, true, false, 0).as_millis(), 1000);
        assert_eq!(backoff.pause(MIN, MAX, true, false, u64::MAX).as_millis(), 1500);
    }
}
