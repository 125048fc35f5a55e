//! The side that was dialled: hands over frames, carries out requests, answers pings.
//!
//! While as many requests are under way as may be, nothing more is read of the connection, and the
//! dialler is told meanwhile that it is not forgotten. A node that cannot dial the other one sends
//! its own frames and requests over the connection that came from there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::dialler::Lane;
use super::frame::Head;
use super::hello::{Identity, Purpose};
use super::intake::{Intake, Slot};
use super::link::Silence;
use super::record::{Inbound, InboundError, Sealer};
use super::refusal::Objection;
use super::registry::Place;
use super::shared::{LAST_WORDS_MAX, Shared};
use super::tls::{Reader, Writer};
use super::wall_millis;
use crate::topology::NodeId;

/// How long one request on a connection of its own may take.
const KNOCK_MAX: Duration = Duration::from_secs(60);

/// A connection that was taken in.
pub(super) struct Accepted {
    pub(super) from: Arc<Identity>,
    pub(super) purpose: Purpose,
    /// Cancelled when this node takes on another identity.
    pub(super) renewed: CancellationToken,
    pub(super) place: Option<Place>,
    /// Its share of the connections that are taken in.
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) inbound: Inbound<Reader>,
    pub(super) writer: Writer,
    pub(super) sealer: Option<Sealer>,
    /// The other side's IP address.
    pub(super) peer: String,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("it was closed: {0}")]
    Inbound(#[from] InboundError),
    #[error("it makes no sense: {0}")]
    Objection(#[from] Objection),
    #[error("nothing can be written to it")]
    Writer,
    #[error("nothing was heard")]
    Silent,
    #[error("it is not needed any more")]
    Over,
    #[error("the transport stops")]
    Stopping,
}

/// Serves a connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, accepted: Accepted) {
    let Accepted { from, purpose, renewed, place, permit, inbound, mut writer, sealer, peer } =
        accepted;
    let lane = Arc::new(Lane::default());
    let outbox = Arc::clone(&lane.outbox);
    let stall_max = shared.timing.close_after;
    let mut writing = {
        let outbox = Arc::clone(&outbox);
        AbortOnDropHandle::new(tokio::spawn(async move {
            outbox.write_to(&mut writer, sealer, stall_max).await
        }))
    };
    let whom = format!("{} ({peer})", from.name);
    let back = match (purpose, from.node) {
        (Purpose::Link, Some(node)) => Some(WayBack::open(&shared, node, &lane)),
        _ => None,
    };
    let mut connection = Connection {
        intake: Intake::new(Arc::clone(&shared), from, outbox),
        shared,
        inbound,
        lane,
        answered: Instant::now(),
    };
    let ended = connection.shared.ended.clone();
    let end = connection.run(purpose, place.as_ref(), &renewed, &mut writing).await;
    // From here on another connection of the same process is welcome.
    drop((place, back));
    debug!("connection from {whom} ended: {end}");
    let objection = match end {
        End::Stopping => None,
        End::Objection(objection) => Some(objection),
        End::Inbound(error) if !matches!(error, InboundError::Io(_)) => {
            Some(Objection::Inbound(error))
        }
        _ => return connection.close(),
    };
    if let Some(objection) = objection {
        connection.shared.object(&objection, &peer, &whom);
        connection.lane.outbox.push_urgent(Head::Farewell { code: objection.refusal().code() });
    }
    connection.lane.outbox.finish();
    tokio::select! {
        _ = timeout(LAST_WORDS_MAX, &mut writing) => {}
        () = ended.cancelled() => {}
    }
    connection.close();
    drop(permit);
}

/// A connection by which its dialler can be reached as well, until dropped.
struct WayBack {
    shared: Arc<Shared>,
    node: NodeId,
    lane: Arc<Lane>,
}

impl WayBack {
    fn open(shared: &Arc<Shared>, node: NodeId, lane: &Arc<Lane>) -> Self {
        shared.ways_back.lock().insert(node, Arc::clone(lane));
        Self { shared: Arc::clone(shared), node, lane: Arc::clone(lane) }
    }
}

impl Drop for WayBack {
    fn drop(&mut self) {
        let mut ways_back = self.shared.ways_back.lock();
        // Another connection may have come in its stead.
        if ways_back.get(&self.node).is_some_and(|lane| Arc::ptr_eq(lane, &self.lane)) {
            ways_back.remove(&self.node);
        }
    }
}

struct Connection {
    shared: Arc<Shared>,
    intake: Intake,
    inbound: Inbound<Reader>,
    /// What goes back to the dialler.
    lane: Arc<Lane>,
    /// When the dialler was last told that it is heard.
    answered: Instant,
}

impl Connection {
    fn close(&self) {
        self.lane.calls.close(self.lane.outbox.close());
    }

    /// Serves it for its purpose; why it ends.
    async fn run<W>(
        &mut self,
        purpose: Purpose,
        place: Option<&Place>,
        renewed: &CancellationToken,
        writing: &mut AbortOnDropHandle<W>,
    ) -> End {
        let shared = Arc::clone(&self.shared);
        let removed = shared.removed(self.intake.from().node);
        // In this order, so that nothing is taken from a node that comes after it was removed.
        match (purpose, place) {
            (Purpose::Link, Some(place)) => tokio::select! {
                biased;
                objection = removed => {
                    // What it asked as a member is answered.
                    let _ = timeout(LAST_WORDS_MAX, self.intake.all_returned()).await;
                    objection.into()
                }
                () = place.entry().replaced.cancelled() => End::Over,
                () = renewed.cancelled() => End::Over,
                () = shared.ended.cancelled() => End::Over,
                _ = writing => End::Writer,
                end = self.link(place) => end,
            },
            _ => tokio::select! {
                biased;
                objection = removed => objection.into(),
                () = shared.ended.cancelled() => End::Over,
                _ = writing => End::Writer,
                end = timeout(KNOCK_MAX, self.knock()) => end.unwrap_or(End::Silent),
            },
        }
    }

    /// Serves a member's connection.
    async fn link(&mut self, place: &Place) -> End {
        let timing = self.shared.timing;
        let stopping = self.shared.stopping.clone();
        let mut silence = Silence::new(Instant::now(), timing.step_max());
        let mut ticks = interval(timing.ping);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                filled = self.inbound.fill() => {
                    silence.heard(Instant::now());
                    place.entry().heard();
                    let taken = match filled {
                        Ok(()) => self.take_frames().await,
                        Err(error) => Err(error.into()),
                    };
                    if let Err(end) = taken {
                        return end;
                    }
                }
                _ = ticks.tick() => {
                    if silence.quiet(Instant::now()) >= timing.close_after {
                        return End::Silent;
                    }
                }
                () = stopping.cancelled() => {
                    self.intake.all_returned().await;
                    return End::Stopping;
                }
            }
        }
    }

    /// Serves a connection that is for one request.
    async fn knock(&mut self) -> End {
        let request = timeout(self.shared.timing.handshake_max, async {
            loop {
                if let Some(frame) = self.inbound.next()? {
                    return Ok::<_, InboundError>(frame);
                }
                self.inbound.fill().await?;
            }
        });
        let (head, body) = match request.await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return error.into(),
            Err(_elapsed) => return End::Silent,
        };
        let Head::Request { number, kind } = head else {
            return Objection::Unexpected("frame that is no request").into();
        };
        let slot = self.intake.slot().await;
        self.intake.begin(slot, number, kind, body);
        tokio::select! {
            () = self.intake.all_returned() => {}
            // It says nothing more; that it goes away is what ends the wait.
            said = self.inbound.fill() => return no_more(said),
        }
        self.lane.outbox.finish();
        no_more(self.inbound.fill().await)
    }

    /// Takes all frames that have arrived.
    async fn take_frames(&mut self) -> Result<(), End> {
        while let Some((head, body)) = self.inbound.next()? {
            match head {
                Head::OneWay { kind } => self.intake.one_way(kind, body),
                Head::Request { number, kind } => {
                    let slot = self.slot().await;
                    self.intake.begin(slot, number, kind, body);
                }
                Head::Answer { number } => self.lane.calls.answer(number, body),
                Head::Ping { number, .. } => self.tell_heard(number),
                Head::Pong { .. } => return Err(Objection::Unexpected("answer").into()),
                Head::Farewell { .. } => return Err(End::Over),
            }
        }
        self.intake.hand_over();
        // Behind many bytes a ping comes late; the dialler must not take that for silence.
        if self.answered.elapsed() >= self.shared.timing.ping {
            self.tell_heard(0);
        }
        Ok(())
    }

    fn tell_heard(&mut self, number: u64) {
        self.answered = Instant::now();
        self.lane.outbox.push_urgent(Head::Pong { number, wall_millis: wall_millis() });
    }

    /// Waits until one more request may be carried out.
    async fn slot(&mut self) -> Slot {
        loop {
            tokio::select! {
                biased;
                slot = self.intake.slot() => return slot,
                () = sleep(self.shared.timing.ping) => self.tell_heard(0),
            }
        }
    }
}

/// What it means that a connection for one request says more.
fn no_more(said: Result<(), InboundError>) -> End {
    match said {
        Ok(()) => Objection::Unexpected("second frame").into(),
        Err(error) => error.into(),
    }
}
