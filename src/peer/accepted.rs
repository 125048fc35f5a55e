//! The side that was dialled: hands over frames, carries out requests, answers pings.
//!
//! Invariants: one-way frames are handed over in the order in which they came, and before any
//! request behind them is begun. At most [`REQUESTS_MAX`] requests of a connection are under way;
//! beyond that nothing more is read of it, and the dialler is told meanwhile that it is not
//! forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::frame::Head;
use super::hello::{Identity, Purpose};
use super::link::Silence;
use super::outbox::Outbox;
use super::record::{Inbound, InboundError, Sealer};
use super::refusal::Objection;
use super::registry::Place;
use super::shared::{LAST_WORDS_MAX, Shared};
use super::tls::{Reader, Writer};
use super::{Handler, wall_millis};

/// Most requests of one connection that are carried out at a time.
pub(super) const REQUESTS_MAX: u32 = 1024;

/// Frames that are handed over at once, at most.
const FRAMES_MAX: usize = 4096;

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
pub(super) async fn serve<H: Handler>(shared: Arc<Shared>, handler: Arc<H>, accepted: Accepted) {
    let Accepted { from, purpose, renewed, place, permit, inbound, mut writer, sealer, peer } =
        accepted;
    let outbox = Arc::new(Outbox::default());
    let stall_max = shared.timing.close_after;
    let mut writing = {
        let outbox = Arc::clone(&outbox);
        AbortOnDropHandle::new(tokio::spawn(async move {
            outbox.write_to(&mut writer, sealer, stall_max).await
        }))
    };
    let whom = format!("{} ({peer})", from.name);
    let mut connection = Connection {
        shared,
        handler,
        from,
        inbound,
        outbox,
        slots: Arc::new(Semaphore::new(REQUESTS_MAX as usize)),
        frames: Vec::new(),
        answered: Instant::now(),
    };
    let ended = connection.shared.ended.clone();
    let end = connection.run(purpose, place.as_ref(), &renewed, &mut writing).await;
    // From here on another connection of the same process is welcome.
    drop(place);
    debug!("connection from {whom} ended: {end}");
    let objection = match end {
        End::Stopping => None,
        End::Objection(objection) => Some(objection),
        End::Inbound(error) if !matches!(error, InboundError::Io(_)) => {
            Some(Objection::Inbound(error))
        }
        _ => {
            connection.outbox.close();
            return;
        }
    };
    if let Some(objection) = objection {
        connection.shared.object(&objection, &peer, &whom);
        connection.outbox.push_urgent(Head::Farewell { code: objection.refusal().code() });
    }
    connection.outbox.finish();
    tokio::select! {
        _ = timeout(LAST_WORDS_MAX, &mut writing) => {}
        () = ended.cancelled() => {}
    }
    connection.outbox.close();
    drop(permit);
}

struct Connection<H> {
    shared: Arc<Shared>,
    handler: Arc<H>,
    from: Arc<Identity>,
    inbound: Inbound<Reader>,
    outbox: Arc<Outbox>,
    slots: Arc<Semaphore>,
    /// One-way frames that are not handed over yet.
    frames: Vec<(u8, Bytes)>,
    /// When the dialler was last told that it is heard.
    answered: Instant,
}

impl<H: Handler> Connection<H> {
    /// Serves it for its purpose; why it ends.
    async fn run<W>(
        &mut self,
        purpose: Purpose,
        place: Option<&Place>,
        renewed: &CancellationToken,
        writing: &mut AbortOnDropHandle<W>,
    ) -> End {
        let shared = Arc::clone(&self.shared);
        let removed = shared.removed(self.from.node);
        // In this order, so that nothing is taken from a node that comes after it was removed.
        match (purpose, place) {
            (Purpose::Link, Some(place)) => tokio::select! {
                biased;
                objection = removed => {
                    // What it asked as a member is answered.
                    let _ = timeout(LAST_WORDS_MAX, all_returned(&self.slots)).await;
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
                    all_returned(&self.slots).await;
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
        let slot = self.slot().await;
        self.begin(slot, number, kind, body);
        tokio::select! {
            () = all_returned(&self.slots) => {}
            // It says nothing more; that it goes away is what ends the wait.
            said = self.inbound.fill() => return no_more(said),
        }
        self.outbox.finish();
        no_more(self.inbound.fill().await)
    }

    /// Takes all frames that have arrived.
    async fn take_frames(&mut self) -> Result<(), End> {
        while let Some((head, body)) = self.inbound.next()? {
            match head {
                Head::OneWay { kind } => {
                    self.frames.push((kind, body));
                    if self.frames.len() == FRAMES_MAX {
                        self.hand_over();
                    }
                }
                Head::Request { number, kind } => {
                    self.hand_over();
                    let slot = self.slot().await;
                    self.begin(slot, number, kind, body);
                }
                Head::Ping { number, .. } => self.tell_heard(number),
                Head::Answer { .. } | Head::Pong { .. } => {
                    return Err(Objection::Unexpected("answer").into());
                }
                Head::Farewell { .. } => return Err(End::Over),
            }
        }
        self.hand_over();
        // Behind many bytes a ping comes late; the dialler must not take that for silence.
        if self.answered.elapsed() >= self.shared.timing.ping {
            self.tell_heard(0);
        }
        Ok(())
    }

    fn hand_over(&mut self) {
        if !self.frames.is_empty() {
            self.handler.frames(&self.from, &mut self.frames.drain(..));
        }
    }

    fn tell_heard(&mut self, number: u64) {
        self.answered = Instant::now();
        self.outbox.push_urgent(Head::Pong { number, wall_millis: wall_millis() });
    }

    /// Waits until one more request may be carried out.
    async fn slot(&mut self) -> OwnedSemaphorePermit {
        loop {
            tokio::select! {
                biased;
                slot = Arc::clone(&self.slots).acquire_owned() => {
                    return slot.expect("nobody closes it");
                }
                () = sleep(self.shared.timing.ping) => self.tell_heard(0),
            }
        }
    }

    /// Has a request carried out, by a task of its own that ends with the transport. It outlives
    /// the connection: what was begun is brought to its end, though nobody is told.
    fn begin(&self, slot: OwnedSemaphorePermit, number: u64, kind: u8, body: Bytes) {
        let (handler, from) = (Arc::clone(&self.handler), Arc::clone(&self.from));
        let (outbox, ended) = (Arc::clone(&self.outbox), self.shared.ended.clone());
        self.shared.tracker.spawn(async move {
            let _slot = slot;
            let answered = async {
                let answer = handler.request(&from, kind, body).await;
                let head = Head::Answer { number };
                if !outbox.push_when_room(head, &answer).await && !outbox.is_closed() {
                    let (to, bytes) = (&from.name, answer.len());
                    warn!(%to, bytes, "an answer is too long to be sent; it will be missed");
                }
            };
            tokio::select! {
                () = answered => {}
                () = ended.cancelled() => {}
            }
        });
    }
}

/// Waits until all of a connection's requests are answered.
async fn all_returned(slots: &Semaphore) {
    let all = slots.acquire_many(REQUESTS_MAX).await;
    drop(all.expect("nobody closes it"));
}

/// What it means that a connection for one request says more.
fn no_more(said: Result<(), InboundError>) -> End {
    match said {
        Ok(()) => Objection::Unexpected("second frame").into(),
        Err(error) => error.into(),
    }
}
