//! A copy of a whole shard, piece by piece, while it changes.
//!
//! Who needs one asks for each piece, so that the source keeps nothing of it: a piece has the
//! entries from one place of the table on, and the records ordered since the piece before. Entries
//! of a later place are as of then, those of earlier ones were changed by the records: at the end
//! all are as of the last piece. The old state stays in use until then.

use bytes::Bytes;

use super::history::History;
use super::message::{EntryCopy, Mark, Message, Piece, Rest};
use super::{Event, Kept, Logged, Outputs, RESEND_TICKS, Role, Shard, apply};
use crate::entry::{Position, Timestamp, Version};
use crate::store::{Table, View};
use crate::topology::Seat;
use crate::wal::Frame;

/// Bytes of entries in a piece; one more may go over.
const PIECE_BYTES: usize = 256 << 10;

/// Entries in a piece.
const PIECE_ENTRIES: usize = 2048;

/// The source holds its recent records for so many ticks after a piece was asked for.
const HOLD_TICKS: u32 = 40;

/// After so many ticks without a new piece the copy is given up.
const SILENCE_TICKS_MAX: u32 = 200;

/// How far a copy that is being brought here has come.
#[derive(Debug)]
pub(super) enum Fetch {
    /// It is wanted from this seat, and may begin when there is a place free.
    Wanted(Seat),
    /// Pieces come.
    Coming(Box<Incoming>),
    /// It is complete, and being made durable.
    Complete { from: Seat, session: u64 },
}

impl Fetch {
    pub(super) fn source(&self) -> Option<Seat> {
        match self {
            Self::Wanted(from) | Self::Complete { from, .. } => Some(*from),
            Self::Coming(incoming) => Some(incoming.from),
        }
    }
}

#[derive(Debug)]
pub(super) struct Incoming {
    from: Seat,
    session: u64,
    after: Option<Mark>,
    table: Table,
    ticks: u32,
}

/// A complete copy, not yet in use.
#[derive(Debug)]
pub struct Staged {
    /// Which: unlike any other of the node, in all its lives.
    pub session: u64,
    epoch: u32,
    table: Table,
    history: History,
    highest: Version,
    requests: Vec<Kept>,
}

impl Staged {
    /// Its entries.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Where its log ends.
    pub fn position(&self) -> Position {
        self.history.last()
    }

    /// Its highest version.
    pub fn highest(&self) -> Version {
        self.highest
    }

    /// The request ids that come with it.
    pub fn requests(&self) -> &[Kept] {
        &self.requests
    }
}

impl Shard {
    /// Whether a copy is wanted here: [`Shard::begin_copy`] when there is a place free.
    pub fn wants_copy(&self) -> bool {
        matches!(self.fetch, Some(Fetch::Wanted(_)))
    }

    /// Whether a copy is under way here.
    pub fn is_copying(&self) -> bool {
        matches!(self.fetch, Some(Fetch::Coming(_) | Fetch::Complete { .. }))
    }

    /// Begins the copy that is wanted. `session` must be unlike any other of the node, ever.
    pub fn begin_copy(&mut self, session: u64, out: &mut Outputs) {
        let Some(Fetch::Wanted(from)) = self.fetch else { return };
        let table = Table::new(self.setting.budget.clone(), self.setting.keys.clone());
        let incoming = Incoming { from, session, after: None, table, ticks: 0 };
        self.fetch = Some(Fetch::Coming(Box::new(incoming)));
        self.say(from, self.fence, Message::AskPiece { session, after: None }, out);
    }

    /// Puts a complete copy, now durable, in the place of what was there. Refuses a stale one.
    pub fn adopt(&mut self, staged: Staged, now: Timestamp, out: &mut Outputs) -> bool {
        let expected = matches!(&self.fetch, Some(Fetch::Complete { session, .. })
            if *session == staged.session);
        if !expected
            || staged.epoch != self.fence
            || staged.position() < self.last() && self.vouches()
        {
            if expected {
                self.fetch = None;
            }
            return false;
        }
        let Some(Fetch::Complete { from, .. }) = self.fetch.take() else { return false };
        let position = staged.position();
        self.table = staged.table;
        self.log.adopt(staged.history, staged.highest, staged.requests);
        self.vouched = self.setting.me.life;
        out.log.push(Logged::Frame(Frame::Adopt {
            shard: self.id,
            session: u128::from(staged.session),
            position,
            fence: self.fence,
            life: self.vouched,
        }));
        if matches!(self.role, Role::Taking { .. }) {
            self.after_taking(now, out);
        } else {
            self.say(from, self.fence, Message::Ack { seq: position.seq }, out);
        }
        true
    }

    /// A complete copy could not be made durable: it is wanted again.
    pub fn copy_failed(&mut self, session: u64) {
        if let Some(Fetch::Complete { from, session: failed }) = self.fetch
            && failed == session
        {
            self.fetch = Some(Fetch::Wanted(from));
        }
    }

    pub(super) fn want_copy(&mut self, from: Seat) {
        let expected = match self.role {
            Role::Taking { from: source, .. } => source == from,
            Role::Follower => true,
            _ => false,
        };
        if expected && !self.is_copying() {
            self.fetch = Some(Fetch::Wanted(from));
        }
    }

    pub(super) fn on_ask_piece(
        &mut self,
        to: Seat,
        session: u64,
        after: Option<Mark>,
        out: &mut Outputs,
    ) {
        if !matches!(self.role, Role::Leading(_) | Role::Follower) || !self.vouches() {
            return;
        }
        let source = self.setting.source;
        let records = match after {
            None => Some(Vec::new()),
            Some(mark) if mark.source != source || !self.log.history.contains(mark.last) => None,
            Some(mark) => self.log.tail(mark.last),
        };
        let Some(records) = records else {
            return self.say(to, self.fence, Message::TooFarBehind, out);
        };
        let (entries, next) = self.entries_from(after.map_or(0, |mark| mark.place));
        let last = self.last();
        self.log.ring.hold(Some(last.seq));
        self.hold_ticks = HOLD_TICKS;
        let rest = match next {
            Some(place) => Rest::More(Mark { source, place, last }),
            None => self.rest(),
        };
        let piece = Piece { session, after, records, entries, rest };
        self.say(to, self.fence, Message::Piece(Box::new(piece)), out);
    }

    fn rest(&self) -> Rest {
        let history = self.log.history.clone();
        let (mut highest, mut requests) = (self.log.clock.highest(), self.log.kept_requests());
        if mutated!(CopyWithoutHighest) {
            highest = Version::default();
        }
        if mutated!(CopyWithoutRequests) {
            requests.clear();
        }
        Rest::End { history, highest, requests }
    }

    /// The entries from a place of the table on, and the place after them.
    fn entries_from(&self, place: u64) -> (Vec<EntryCopy>, Option<u64>) {
        use std::ops::ControlFlow;
        let mut entries = Vec::new();
        let mut bytes = 0;
        let next = self.table.scan(place, PIECE_ENTRIES, Timestamp(0), |view| {
            let entry = copy_of(view);
            bytes += entry.value.len() + entry.key.as_bytes().len() + 64;
            entries.push(entry);
            if bytes < PIECE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        (entries, next)
    }

    pub(super) fn on_piece(&mut self, from: Seat, piece: Piece, out: &mut Outputs) {
        let Some(Fetch::Coming(incoming)) = &mut self.fetch else { return };
        let expected = incoming.from == from
            && incoming.session == piece.session
            && incoming.after == piece.after;
        if !expected {
            return;
        }
        piece.records.iter().for_each(|record| apply(&mut incoming.table, record));
        for entry in &piece.entries {
            incoming.table.put(
                entry.key.as_bytes(),
                &entry.value,
                &entry.content_type,
                entry.version,
                entry.expires_at,
            );
        }
        incoming.ticks = 0;
        let session = incoming.session;
        match piece.rest {
            Rest::More(mark) => {
                incoming.after = Some(mark);
                let after = incoming.after;
                self.say(from, self.fence, Message::AskPiece { session, after }, out);
            }
            Rest::End { history, highest, requests } => {
                let complete = Fetch::Complete { from, session };
                let Some(Fetch::Coming(incoming)) = self.fetch.replace(complete) else { return };
                out.events.push(Event::Copied(Box::new(Staged {
                    session,
                    epoch: self.fence,
                    table: incoming.table,
                    history,
                    highest,
                    requests,
                })));
            }
        }
    }

    pub(super) fn tick_copying(&mut self, out: &mut Outputs) {
        if self.hold_ticks > 0 {
            self.hold_ticks -= 1;
            if self.hold_ticks == 0 {
                self.log.ring.hold(None);
            }
        }
        let Some(Fetch::Coming(incoming)) = &mut self.fetch else { return };
        incoming.ticks += 1;
        let (from, session, after) = (incoming.from, incoming.session, incoming.after);
        if incoming.ticks >= SILENCE_TICKS_MAX {
            self.fetch = None;
        } else if incoming.ticks.is_multiple_of(RESEND_TICKS) {
            self.say(from, self.fence, Message::AskPiece { session, after }, out);
        }
    }
}

fn copy_of(view: View<'_>) -> EntryCopy {
    EntryCopy {
        key: view.to_key(),
        value: view.entry.value(),
        content_type: Bytes::copy_from_slice(view.entry.content_type()),
        version: view.version,
        expires_at: view.expires_at,
    }
}
