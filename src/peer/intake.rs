//! What one connection brings: one-way frames, handed over in their order, and requests, each carried
//! out by a task of its own.
//!
//! Invariants: one-way frames are handed over in the order in which they came, and before any request
//! behind them is begun. At most [`REQUESTS_MAX`] requests of a connection are under way.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Handler;
use super::frame::Head;
use super::hello::Identity;
use super::outbox::Outbox;
use super::shared::Shared;
use crate::complaint::{Kind, brief, complain};

/// Most requests of one connection that are carried out at a time.
pub(super) const REQUESTS_MAX: u32 = 1024;

/// Frames that are handed over at once, at most.
const FRAMES_MAX: usize = 4096;

/// A [`Handler`] of whatever type.
pub(super) trait AnyHandler: Send + Sync {
    fn frames(&self, from: &Identity, frames: &mut dyn Iterator<Item = (u8, Bytes)>);

    fn request<'a>(&'a self, from: &'a Identity, kind: u8, body: Bytes) -> BoxFuture<'a, Bytes>;
}

impl<H: Handler> AnyHandler for H {
    fn frames(&self, from: &Identity, frames: &mut dyn Iterator<Item = (u8, Bytes)>) {
        Handler::frames(self, from, frames);
    }

    fn request<'a>(&'a self, from: &'a Identity, kind: u8, body: Bytes) -> BoxFuture<'a, Bytes> {
        Handler::request(self, from, kind, body).boxed()
    }
}

/// What one connection brings.
pub(super) struct Intake {
    shared: Arc<Shared>,
    /// `None`: the transport is stopping, and nobody takes anything.
    handler: Option<Arc<dyn AnyHandler>>,
    from: Arc<Identity>,
    /// Where answers go.
    outbox: Arc<Outbox>,
    slots: Arc<Semaphore>,
    /// One-way frames that are not handed over yet.
    frames: Vec<(u8, Bytes)>,
}

/// One of the requests that may be carried out at a time.
pub(super) type Slot = OwnedSemaphorePermit;

impl Intake {
    pub(super) fn new(shared: Arc<Shared>, from: Arc<Identity>, outbox: Arc<Outbox>) -> Self {
        let slots = Arc::new(Semaphore::new(REQUESTS_MAX as usize));
        let handler = shared.handler.upgrade();
        Self { shared, handler, from, outbox, slots, frames: Vec::new() }
    }

    /// Who is at the other end.
    pub(super) fn from(&self) -> &Identity {
        &self.from
    }

    /// Takes a one-way frame.
    pub(super) fn one_way(&mut self, kind: u8, body: Bytes) {
        self.frames.push((kind, body));
        if self.frames.len() == FRAMES_MAX {
            self.hand_over();
        }
    }

    /// Hands over the frames that were taken.
    pub(super) fn hand_over(&mut self) {
        let frames = &mut self.frames.drain(..);
        if let Some(handler) = &self.handler
            && frames.len() > 0
        {
            handler.frames(&self.from, frames);
        }
    }

    /// Waits until one more request may be carried out.
    pub(super) async fn slot(&self) -> Slot {
        Arc::clone(&self.slots).acquire_owned().await.expect("nobody closes it")
    }

    /// The same without waiting.
    pub(super) fn try_slot(&self) -> Option<Slot> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Waits until all requests are answered.
    pub(super) async fn all_returned(&self) {
        let all = self.slots.acquire_many(REQUESTS_MAX).await;
        drop(all.expect("nobody closes it"));
    }

    /// Has a request carried out, by a task of its own that ends with the transport. It outlives
    /// the connection: what was begun is brought to its end, though nobody is told.
    pub(super) fn begin(&mut self, slot: Slot, number: u64, kind: u8, body: Bytes) {
        self.hand_over();
        let Some(handler) = self.handler.clone() else { return };
        let from = Arc::clone(&self.from);
        let (outbox, ended) = (Arc::clone(&self.outbox), self.shared.ended.clone());
        self.shared.tracker.spawn(async move {
            let _slot = slot;
            let answered = async {
                let answer = handler.request(&from, kind, body).await;
                let head = Head::Answer { number };
                if !outbox.push_when_room(head, &answer).await && !outbox.is_closed() {
                    let (to, bytes) = (&from.name, answer.len());
                    let kind = Kind::new("nodes", "answer_too_long");
                    complain!(WARN, kind, to = %brief(to), bytes, "an answer is too long to be sent; it will be missed");
                }
            };
            tokio::select! {
                () = answered => {}
                () = ended.cancelled() => {}
            }
        });
    }
}
