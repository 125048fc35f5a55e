//! What is shown, made for many at once.
//!
//! Invariant: whoever asks sees the state of a moment after it asked, and those who ask for the same
//! meanwhile share one answer. One page is made at a time, and after it the desk rests nine times as
//! long as that took: however many ask in a loop, it costs a tenth of one core at most. Answers not
//! yet taken come to a bounded number of bytes; who takes none makes room.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};

use super::places::Visit;
use super::problem::Problem;

/// The desk rests so many times as long as it worked, but not longer than that.
const REST: u32 = 9;
const REST_MAX: Duration = Duration::from_millis(250);

/// Bytes of answers that may wait to be taken, in KiB.
const WAITING_KIB_MAX: u32 = 16 << 10;

/// How often room is looked for while there is none, and how many times.
const ROOM_PAUSE: Duration = Duration::from_millis(20);
const ROOM_ATTEMPTS_MAX: u32 = 100;

/// Where pages are made, one at a time.
#[derive(Debug)]
pub(super) struct Desk {
    /// When the next one may be begun.
    free_at: Arc<Mutex<Instant>>,
    room: Arc<Semaphore>,
    /// Whether the runtime's workers are kept free of it.
    is_aside: bool,
}

impl Desk {
    /// One for what takes its time.
    pub(super) fn aside() -> Arc<Self> {
        Arc::new(Self::new(true))
    }

    /// One for what must not wait for another thread.
    pub(super) fn at_hand() -> Arc<Self> {
        Arc::new(Self::new(false))
    }

    fn new(is_aside: bool) -> Self {
        Self {
            free_at: Arc::new(Mutex::new(Instant::now())),
            room: Arc::new(Semaphore::new(WAITING_KIB_MAX as usize)),
            is_aside,
        }
    }

    async fn make(
        &self,
        visit: Option<&Visit>,
        render: impl FnOnce() -> Sheet + Send + 'static,
    ) -> Result<Copy, Problem> {
        let mut free_at = Arc::clone(&self.free_at).lock_owned().await;
        sleep_until(*free_at).await;
        let begun = Instant::now();
        // With the lock: who hangs up meanwhile spares nobody the rest.
        let work = move || {
            let sheet = render();
            *free_at = Instant::now() + (begun.elapsed() * REST).min(REST_MAX);
            sheet
        };
        let sheet = match self.is_aside {
            false => work(),
            true => tokio::task::spawn_blocking(work).await.map_err(|error| {
                tracing::error!(%error, "a page could not be made");
                Problem::failed("the page could not be made; the log says why")
            })?,
        };
        let Sheet { status, content_type, body } = sheet;
        let room = self.room_for(body.len(), visit).await?;
        let body = Bytes::from_owner(Kept { body, _room: room });
        Ok(Copy { begun, status, content_type, body })
    }

    async fn room_for(
        &self,
        bytes: usize,
        visit: Option<&Visit>,
    ) -> Result<OwnedSemaphorePermit, Problem> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(WAITING_KIB_MAX);
        for _ in 0..ROOM_ATTEMPTS_MAX {
            if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(kib) {
                return Ok(room);
            }
            if let Some(visit) = visit {
                visit.make_room();
            }
            sleep(ROOM_PAUSE).await;
        }
        Err(Problem::unavailable("others do not take their answers, and hold all memory for them"))
    }
}

/// One page of this port.
#[derive(Debug)]
pub(super) struct Page {
    desk: Arc<Desk>,
    latest: Mutex<Option<Copy>>,
}

/// A page as it is made.
pub(super) struct Sheet {
    status: StatusCode,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Sheet {
    pub(super) fn text(content_type: &'static str, body: String) -> Self {
        Self { status: StatusCode::OK, content_type, body: body.into_bytes() }
    }

    pub(super) fn json(body: &impl Serialize) -> Self {
        Self::json_with(StatusCode::OK, body)
    }

    pub(super) fn json_with(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("what is shown has names for keys");
        Self { status, content_type: "application/json", body }
    }
}

/// A page as it is handed out; clones share the bytes.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    begun: Instant,
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

impl IntoResponse for Copy {
    fn into_response(self) -> Response {
        let content_type = [(CONTENT_TYPE, HeaderValue::from_static(self.content_type))];
        (self.status, content_type, self.body).into_response()
    }
}

/// Bytes, and their share of what may wait.
struct Kept {
    body: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Page {
    pub(super) fn of(desk: &Arc<Desk>) -> Self {
        Self { desk: Arc::clone(desk), latest: Mutex::new(None) }
    }

    /// The page as of now, made by `render` unless somebody else has it made.
    ///
    /// # Errors
    /// A [`Problem`] where it cannot be made, or kept.
    pub(super) async fn show(
        &self,
        visit: Option<&Visit>,
        render: impl FnOnce() -> Sheet + Send + 'static,
    ) -> Result<Copy, Problem> {
        let asked = Instant::now();
        let mut latest = self.latest.lock().await;
        if let Some(copy) = latest.as_ref().filter(|copy| copy.begun >= asked) {
            return Ok(copy.clone());
        }
        // What nobody waits for any more is given up before the next takes its room.
        *latest = None;
        let copy = self.desk.make(visit, render).await?;
        Ok(latest.insert(copy).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use futures_util::future::join_all;

    use super::*;

    fn page() -> Page {
        Page::of(&Desk::aside())
    }

    /// Takes its time, and says how often it was made.
    fn counted(made: &Arc<AtomicU32>) -> impl FnOnce() -> Sheet + Send + use<> {
        let made = Arc::clone(made);
        move || {
            thread::sleep(Duration::from_millis(5));
            let number = made.fetch_add(1, Ordering::Relaxed) + 1;
            Sheet::text("text/plain", number.to_string())
        }
    }

    #[tokio::test]
    async fn who_asks_for_the_same_shares_it_and_nobody_sees_what_was_before() {
        let (page, made) = (page(), Arc::default());
        let all = join_all((0..100).map(|_| page.show(None, counted(&made)))).await;
        // The first one's was begun before the others asked, or not; the next serves them all.
        let made_for_all = made.load(Ordering::Relaxed);
        assert!(made_for_all <= 2, "{made_for_all}");
        assert_eq!(all.into_iter().filter(Result::is_ok).count(), 100);
        let next = page.show(None, counted(&made)).await.unwrap();
        assert_eq!(next.body, (made_for_all + 1).to_string());
    }

    #[tokio::test]
    async fn the_desk_rests_longer_than_it_works_even_if_nobody_waits() {
        let (page, made) = (page(), Arc::default());
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(500) {
            // Its asker hangs up at once.
            let hurried =
                tokio::time::timeout(Duration::from_millis(1), page.show(None, counted(&made)));
            let _ = hurried.await;
        }
        let made = made.load(Ordering::Relaxed);
        assert!((1..=11).contains(&made), "{made} times 5 ms of work in 500 ms");
    }

    #[tokio::test]
    async fn answers_that_are_not_taken_come_to_a_bounded_number_of_bytes() {
        let desk = Desk::at_hand();
        let big = || Sheet::text("text/plain", "x".repeat(6 << 20));
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(Page::of(&desk).show(None, big).await.unwrap());
        }
        let page = Page::of(&desk);
        let none = page.show(None, big).await.err().map(|problem| problem.into_response());
        assert_eq!(none.unwrap().status(), 503);
        held.pop();
        assert!(page.show(None, big).await.is_ok());
        // Its own last one is in nobody's way.
        assert!(page.show(None, big).await.is_ok());
        assert!(page.show(None, big).await.is_ok());
    }
}
