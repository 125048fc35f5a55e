//! A batch under way: operations in, results out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{self, FuturesOrdered, Stream};
use http_body_util::BodyExt;
use serde::Serialize;

use super::super::client::{Client, heavy};
use super::super::held::{Charge, Outgoing};
use super::super::intake;
use super::super::json::{self, AcksText, VersionText};
use super::super::problem::{Kind, Problem};
use super::super::settings::Limits;
use super::super::tokens::Verb;
use super::super::watch::{Busy, Watch};
use super::step::Step;
use super::{Shared, counted_as};
use crate::coordinator::{Got, IdempotencyKey, Read, Write, Written};
use crate::entry::{Key, Timestamp, Verdict};
use crate::metrics::Op;
use crate::store::{Found, Lookup};

/// Operations of one batch that are under way at once.
const WINDOW: usize = 128;

/// Bytes of results that are gathered before they are sent, while more come at once.
const CHUNK_BYTES: usize = 64 << 10;

/// How often a result asks for room that there is not, at first and at last.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(5);
const NO_ROOM_PAUSE_MAX: Duration = Duration::from_millis(200);

/// How a batch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// `{"ops":[…]}` in, `{"results":[…]}` out.
    Document,
    /// An operation a line in, a result a line out.
    Lines,
}

impl Framing {
    /// Appends what `append` writes, as the result behind so many others.
    fn frame(self, out: &mut Vec<u8>, results: u64, append: impl FnOnce(&mut Vec<u8>)) {
        if self == Self::Document && results > 0 {
            out.push(b',');
        }
        append(out);
        if self == Self::Lines {
            out.push(b'\n');
        }
    }
}

/// What an operation came to.
enum Done {
    /// An entry; for how long its copy has been out of touch with the primary.
    Got(Found, Option<Duration>, Option<Outgoing>),
    Written(Written),
    Failed(Problem),
}

type Running = Pin<Box<dyn Future<Output = Done> + Send>>;

/// A batch under way.
pub(super) struct Run {
    client: Arc<Client>,
    shared: Shared,
    source: Source,
    /// Read, but not begun: its key is in use, or the window is full.
    waiting: Option<Step>,
    running: FuturesOrdered<Running>,
    /// The keys of `running`, in its order.
    keys: VecDeque<Option<Key>>,
    framing: Framing,
    results: u64,
    /// Bytes of the results so far.
    answer_bytes: usize,
    out: Vec<u8>,
    /// For `out`.
    charge: Charge,
    state: State,
    started: Instant,
    failed: bool,
    _busy: Busy<Arc<Watch>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The source has ended; results are still to come.
    Finishing,
    /// All is written.
    Ended,
}

impl Run {
    pub(super) fn of_document(
        client: Arc<Client>,
        shared: Shared,
        steps: Vec<Step>,
        charge: Option<Charge>,
    ) -> Self {
        let steps = Source::Steps(steps.into_iter(), charge);
        let mut run = Self::new(client, shared, steps, Framing::Document);
        run.out.extend_from_slice(b"{\"results\":[");
        run
    }

    pub(super) fn of_lines(
        client: Arc<Client>,
        shared: Shared,
        body: Body,
        header: Option<Bytes>,
    ) -> Self {
        let lines = Lines::new(&client.watch, body, header);
        Self::new(client, shared, Source::Lines(lines), Framing::Lines)
    }

    fn new(client: Arc<Client>, shared: Shared, source: Source, framing: Framing) -> Self {
        let busy = Busy::mark(Arc::clone(&client.watch));
        Self {
            charge: Charge::new(&client.watch, 0),
            client,
            shared,
            source,
            waiting: None,
            running: FuturesOrdered::new(),
            keys: VecDeque::new(),
            framing,
            results: 0,
            answer_bytes: 0,
            out: Vec::new(),
            state: State::Reading,
            started: Instant::now(),
            failed: false,
            _busy: busy,
        }
    }

    /// The results, made as they are taken.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        stream::unfold(self, |mut run| async {
            let chunk = run.next_chunk().await?;
            Some((Ok(chunk), run))
        })
    }

    async fn next_chunk(&mut self) -> Option<Bytes> {
        while self.out.len() < CHUNK_BYTES && self.state != State::Ended {
            // Its connection's turn: that may have other batches under way.
            if self.client.watch.turn().is_over(Instant::now()) {
                tokio::task::yield_now().await;
            }
            self.begin_waiting();
            let may_read = self.state == State::Reading && self.waiting.is_none();
            tokio::select! {
                biased;
                Some(done) = self.running.next(), if !self.running.is_empty() => {
                    self.keys.pop_front();
                    let done = self.bounded(done);
                    self.append(done).await;
                }
                step = self.source.next(&self.client, &self.shared), if may_read => match step {
                    Some(step) => self.waiting = Some(step),
                    None => self.state = State::Finishing,
                },
                // What there is goes out as soon as more would have to be waited for.
                () = std::future::ready(()), if !self.out.is_empty() => break,
                else => self.end(),
            }
            if self.state == State::Finishing && self.running.is_empty() && self.waiting.is_none() {
                self.end();
            }
        }
        (!self.out.is_empty()).then(|| {
            let out = std::mem::take(&mut self.out);
            let mut charge =
                std::mem::replace(&mut self.charge, Charge::new(&self.client.watch, 0));
            charge.set(out.capacity());
            charge.around(out)
        })
    }

    /// Begins the operation that waits, if nothing under way has its key.
    fn begin_waiting(&mut self) {
        if self.running.len() >= WINDOW {
            return;
        }
        let Some(step) = self.waiting.take() else {
            return;
        };
        if step.key().is_some_and(|key| self.keys.iter().flatten().any(|busy| busy == key)) {
            self.waiting = Some(step);
            return;
        }
        self.keys.push_back(step.key().cloned());
        self.running.push_back(Box::pin(carry_out(
            Arc::clone(&self.client),
            self.shared.clone(),
            step,
        )));
    }

    fn end(&mut self) {
        self.state = State::Ended;
        if self.framing == Framing::Document {
            self.out.extend_from_slice(b"]}");
        }
        // A body that broke off cannot be followed by another request.
        self.client.watch.leaves_unread(self.source.broke_off());
    }

    /// Refuses a value where a document's answer is long enough without it.
    fn bounded(&self, done: Done) -> Done {
        let bytes_max = self.shared.limits.batch_answer_bytes();
        if self.answer_bytes < bytes_max
            || self.framing == Framing::Lines
            || !matches!(done, Done::Got(..))
        {
            return done;
        }
        let detail = format!(
            "the batch's answer has {bytes_max} bytes already, the limit; ask for this key in \
             another batch, or send the operations as lines of application/x-ndjson"
        );
        Done::Failed(Problem::new(Kind::TooLarge, detail))
    }

    async fn append(&mut self, done: Done) {
        let done = match done {
            Done::Got(found, stale, Some(outgoing)) => {
                return self.append_large(found, stale, outgoing).await;
            }
            done => done,
        };
        let before = self.out.len();
        self.framing.frame(&mut self.out, self.results, |out| match &done {
            Done::Got(found, stale, _) => json::append_got(out, found, *stale, Timestamp::now()),
            Done::Written(written) => append_written(out, *written),
            Done::Failed(problem) => {
                self.failed |= problem.kind.status().is_server_error();
                json::append(out, &problem.fields());
            }
        });
        self.results += 1;
        self.answer_bytes += self.out.len() - before;
    }

    /// As [`Self::append`], once there is room for it, and where it holds up nobody.
    async fn append_large(&mut self, found: Found, stale: Option<Duration>, outgoing: Outgoing) {
        let before = self.out.len();
        let entry = found.entry.clone();
        let more = heavy(move || json::shown_bytes(entry.value_bytes())).await;
        let mut waits = NO_ROOM_PAUSE;
        while self.charge.grow(before + more).is_err() {
            tokio::time::sleep(waits).await;
            waits = (2 * waits).min(NO_ROOM_PAUSE_MAX);
        }
        let mut out = std::mem::take(&mut self.out);
        let (framing, results) = (self.framing, self.results);
        self.results += 1;
        self.out = heavy(move || {
            out.reserve_exact(more);
            framing.frame(&mut out, results, |out| {
                json::append_got(out, &found, stale, Timestamp::now());
            });
            drop(outgoing);
            out
        })
        .await;
        self.answer_bytes += self.out.len() - before;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let batch = self.client.node.metrics.op(Op::Batch);
        batch.record(self.started.elapsed(), !self.failed);
    }
}

async fn carry_out(client: Arc<Client>, shared: Shared, step: Step) -> Done {
    let started = Instant::now();
    let (op, result) = match step {
        Step::Refused(problem) => return Done::Failed(problem),
        Step::Get(key) => (Op::Get, get(&client, &shared, &key).await),
        Step::Write(write) => (counted_as(&write.operation), put(&client, &shared, write).await),
    };
    let done = result.unwrap_or_else(Done::Failed);
    let ok = !matches!(&done, Done::Failed(p) if p.kind.status().is_server_error());
    client.node.metrics.op(op).record(started.elapsed(), ok);
    done
}

/// Whether the token lets an operation in; each that it does not is counted, whatever becomes of the
/// batch.
fn judge(client: &Client, shared: &Shared, verb: Verb, key: &Key) -> Result<(), Problem> {
    let grant = shared.standing.grant(&client.node)?;
    let judged = grant.check(verb, key.as_bytes());
    judged.inspect_err(|problem| grant.count(problem.kind.status()))
}

async fn get(client: &Client, shared: &Shared, key: &Key) -> Result<Done, Problem> {
    judge(client, shared, Verb::Read, key)?;
    let read = Read { consistency: shared.consistency, min_version: None };
    match client.node.coordinator.get(key.as_bytes(), read).await? {
        Got { lookup: Lookup::Hit(found), stale } => {
            let outgoing = Outgoing::of(&client.watch, &found.entry);
            Ok(Done::Got(found, stale, outgoing))
        }
        Got { lookup: Lookup::Miss(_), stale } => Err(Problem::absent().with_stale(stale)),
    }
}

async fn put(client: &Client, shared: &Shared, write: Write) -> Result<Done, Problem> {
    judge(client, shared, Verb::Write, &write.key)?;
    written(client.node.coordinator.write(write).await?)
}

fn written(written: Written) -> Result<Done, Problem> {
    match written.verdict {
        Verdict::ConditionFailed(live) => Err(Problem::condition_failed(live)),
        Verdict::NotAnInteger => Err(Problem::not_an_integer()),
        Verdict::Absent => Err(Problem::absent()),
        _ => Ok(Done::Written(written)),
    }
}

#[derive(Serialize)]
struct WrittenText {
    status: u16,
    version: VersionText,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acks: Option<AcksText>,
}

fn append_written(out: &mut Vec<u8>, written: Written) {
    let (status, value) = match written.verdict {
        Verdict::Created => (201, None),
        Verdict::Number(number) => (200, Some(number.to_string())),
        _ => (204, None),
    };
    let status = if written.acks.is_some() { status } else { 202 };
    let acks = written.acks.map(AcksText);
    json::append(out, &WrittenText { status, version: VersionText(written.version), value, acks });
}

/// Where a batch's operations come from.
enum Source {
    /// With what the document is charged.
    Steps(std::vec::IntoIter<Step>, #[expect(dead_code, reason = "held")] Option<Charge>),
    Lines(Lines),
}

impl Source {
    /// The next operation, or nothing at the end. Giving up waiting for it loses nothing.
    async fn next(&mut self, client: &Client, shared: &Shared) -> Option<Step> {
        match self {
            Self::Steps(steps, _) => steps.next(),
            Self::Lines(lines) => lines.next(client, shared).await,
        }
    }

    fn broke_off(&self) -> bool {
        matches!(self, Self::Lines(lines) if lines.broke_off)
    }
}

/// Takes a right, unless it is taken, however long that takes.
async fn take(is_taken: &mut bool, pause: impl Fn() -> Option<Duration>) {
    while !*is_taken {
        match pause() {
            Some(wait) => tokio::time::sleep(wait).await,
            None => *is_taken = true,
        }
    }
}

/// A body, line by line.
struct Lines {
    body: Body,
    /// For `buffer`.
    charge: Charge,
    /// The stream's `Idempotency-Key`: each line makes an id of its own from it.
    header: Option<Bytes>,
    buffer: BytesMut,
    /// How far `buffer` has been searched for a line's end.
    searched: usize,
    index: u64,
    /// The next operation's right is taken already, of the connection and of the token.
    paid: bool,
    granted: bool,
    ended: bool,
    broke_off: bool,
}

impl Lines {
    fn new(watch: &Arc<Watch>, body: Body, header: Option<Bytes>) -> Self {
        Self {
            body,
            charge: Charge::new(watch, 0),
            header,
            buffer: BytesMut::new(),
            searched: 0,
            index: 0,
            paid: false,
            granted: false,
            ended: false,
            broke_off: false,
        }
    }

    async fn next(&mut self, client: &Client, shared: &Shared) -> Option<Step> {
        loop {
            self.wait_for_right(client, shared).await;
            if let Some(line) = self.buffered_line() {
                if line.trim_ascii().is_empty() {
                    // Others have their turn, however many of these there are.
                    tokio::task::consume_budget().await;
                    continue;
                }
                if let Err(problem) = shared.standing.grant(&client.node) {
                    return Some(self.break_off(problem));
                }
                (self.paid, self.granted) = (false, false);
                self.index += 1;
                let idempotency = self.header.as_deref().map(|h| IdempotencyKey::new(h, &[&line]));
                let limits = client.node.settings.load().limits();
                let shared = Shared { idempotency, limits, ..shared.clone() };
                return Some(Step::of_line(&line, self.index - 1, &shared));
            }
            if self.ended {
                return None;
            }
            let limits = client.node.settings.load().limits();
            if let Err(problem) = self.fill(limits).await {
                return Some(self.break_off(problem));
            }
        }
    }

    /// Reads no further, whatever is still to come; the last answer says why.
    fn break_off(&mut self, problem: Problem) -> Step {
        (self.ended, self.broke_off) = (true, true);
        self.buffer.clear();
        self.searched = 0;
        Step::Refused(problem)
    }

    /// A stream is held up by its rate limits rather than refused: by those in force, whenever it
    /// asks.
    async fn wait_for_right(&mut self, client: &Client, shared: &Shared) {
        take(&mut self.paid, || client.pause(client.node.settings.load().rate)).await;
        // Whoever may do nothing any more is told so, and need not wait for it.
        take(&mut self.granted, || shared.standing.grant(&client.node).ok()?.pause()).await;
    }

    fn buffered_line(&mut self) -> Option<Bytes> {
        let rest = &self.buffer[self.searched..];
        if let Some(at) = rest.iter().position(|b| *b == b'\n') {
            let line = self.buffer.split_to(self.searched + at).freeze();
            self.buffer.advance(1);
            self.searched = 0;
            return Some(line);
        }
        self.searched = self.buffer.len();
        if self.ended && !self.buffer.is_empty() {
            self.searched = 0;
            return Some(self.buffer.split().freeze());
        }
        None
    }

    /// Takes in one more piece of the body.
    async fn fill(&mut self, limits: Limits) -> Result<(), Problem> {
        let line_bytes_max = limits.batch_bytes();
        if self.buffer.len() > line_bytes_max {
            let detail = format!("a line is longer than {line_bytes_max} bytes");
            return Err(Problem::new(Kind::TooLarge, detail));
        }
        let frame = tokio::time::timeout(limits.read_timeout, self.body.frame());
        match frame.await {
            Err(_) => Err(intake::too_slow()),
            Ok(None) => {
                self.ended = true;
                Ok(())
            }
            Ok(Some(frame)) => {
                self.buffer.extend_from_slice(&intake::data(frame)?);
                self.charge.set(self.buffer.capacity());
                Ok(())
            }
        }
    }
}
