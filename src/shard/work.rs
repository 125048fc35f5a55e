//! Clients' operations, and the shard's own removals, at an active primary.

use bytes::Bytes;

use super::operation::{Condition, Live, Operation};
use super::primary::Need;
use super::requests::{Outcome, Recall};
use super::{Outputs, Shard};
use crate::entry::{
    Departure, Effect, KEY_BYTES_CEILING, Key, RequestId, Timestamp, Verdict, Version,
};
use crate::metrics::Miss;
use crate::store::Lookup;
use crate::topology::Copies;

/// A write to one key.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// The key.
    pub key: Key,
    /// What to do.
    pub operation: Operation,
    /// What must hold for it.
    pub condition: Condition,
    /// Who asks.
    pub id: RequestId,
}

/// A write that stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ordered {
    /// What it came to.
    pub verdict: Verdict,
    /// Its version.
    pub version: Version,
}

/// Why a write was not ordered.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize,
)]
pub enum Refused {
    /// This copy is not the active primary: ask again, here or elsewhere.
    #[error("this copy does not lead its shard")]
    NotActive,
    /// The client's own request id belongs to another request.
    #[error("the idempotency key was used for another request")]
    Mismatch,
    /// Too many of the clients' own request ids are remembered already.
    #[error("too many idempotency keys are remembered")]
    TooManyKeyed,
    /// A duplicate that comes too late to be told its answer.
    #[error("a duplicate of a request that nobody waits for any more")]
    Late,
}

/// What one step of a sweep found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Entries removed because their time had run out.
    pub expired: usize,
    /// Where to go on; `None` at the end.
    pub next: Option<u64>,
}

impl Shard {
    /// Judges a write against the newest state and orders it; with `wait`, under that ticket an
    /// answer comes once the need holds.
    ///
    /// # Errors
    /// [`Refused`]; then nothing was ordered.
    pub fn write(
        &mut self,
        request: Request,
        wait: Option<(u64, Need)>,
        now: Timestamp,
        out: &mut Outputs,
    ) -> Result<Ordered, Refused> {
        let Request { key, operation, condition, id } = request;
        if !self.is_active() {
            return Err(Refused::NotActive);
        }
        let mut seq = self.behind_all();
        let ordered = match self.recall(id, now)? {
            Some(done) => done,
            None => {
                let what = self.judge(&key, operation, condition, now, out);
                let verdict = what.1;
                if mutated!(RefusalUnrecorded) && matches!(verdict, Verdict::ConditionFailed(_)) {
                    return Ok(self.refuse_unrecorded(verdict, wait, out));
                }
                let record = self.order(Some(key), what, id, now, out);
                seq = record.position.seq;
                Ordered { verdict, version: record.version }
            }
        };
        if let Some((ticket, mut need)) = wait {
            if mutated!(RefusalUncommitted)
                && matches!(ordered.verdict, Verdict::ConditionFailed(_))
            {
                need = Need { copies: Copies::Count(1), committed: false };
            }
            self.wait(ticket, seq, need, false, out);
        }
        Ok(ordered)
    }

    /// Looks up whether a request was ordered before; `ticket` waits as for a write.
    ///
    /// # Errors
    /// [`Refused`] as [`Shard::write`] would answer.
    pub fn recall_request(
        &mut self,
        id: RequestId,
        wait: (u64, Need),
        now: Timestamp,
        out: &mut Outputs,
    ) -> Result<Option<Ordered>, Refused> {
        if !self.is_active() {
            return Err(Refused::NotActive);
        }
        let done = self.recall(id, now)?;
        if done.is_some() {
            self.wait(wait.0, self.behind_all(), wait.1, false, out);
        }
        Ok(done)
    }

    /// Looks a key up so that the answer, once `ticket` is answered, is as if there were one copy:
    /// the epoch is confirmed, and all that was seen is committed.
    ///
    /// # Errors
    /// [`Refused::NotActive`].
    pub fn get_linearizable(
        &mut self,
        key: &[u8],
        ticket: u64,
        now: Timestamp,
        out: &mut Outputs,
    ) -> Result<Lookup, Refused> {
        if !self.is_active() {
            return Err(Refused::NotActive);
        }
        let lookup = self.table.get(key, now);
        if let (Lookup::Miss(Miss::Expired), Ok(key)) =
            (&lookup, Key::new(Bytes::copy_from_slice(key), KEY_BYTES_CEILING))
        {
            // As for a write: no slower clock may show it again.
            self.remove(key, Departure::Expired, now, out);
        }
        let need = Need { copies: Copies::Majority, committed: true };
        let seen = if mutated!(GetSeesUncommitted) { self.committed() } else { self.last().seq };
        self.wait(ticket, seen, need, !mutated!(GetUnconfirmed), out);
        Ok(lookup)
    }

    /// Looks at the entries from place `from` on and removes those whose time has run out. Only an
    /// active primary does.
    pub fn sweep(
        &mut self,
        from: u64,
        looks_max: usize,
        now: Timestamp,
        out: &mut Outputs,
    ) -> Swept {
        if !self.is_active() {
            return Swept { expired: 0, next: None };
        }
        let mut expired = Vec::new();
        let next = self.table.sweep(from, looks_max, now, &mut expired);
        let count = expired.len();
        for key in expired {
            self.remove(key, Departure::Expired, now, out);
        }
        Swept { expired: count, next }
    }

    /// Evicts entries worth `bytes`, `candidates_max` at most. Only an active primary does.
    /// Answers how many entries went for want of memory, and how many because they had expired.
    pub fn evict(
        &mut self,
        bytes: u64,
        candidates_max: usize,
        now: Timestamp,
        out: &mut Outputs,
    ) -> (usize, usize) {
        if !self.is_active() {
            return (0, 0);
        }
        let (mut evicted, mut expired) = (0, 0);
        for candidate in self.table.evict_candidates(bytes, candidates_max, now) {
            match candidate.departure {
                Departure::Expired => expired += 1,
                _ => evicted += 1,
            }
            self.remove(candidate.key, candidate.departure, now, out);
        }
        (evicted, expired)
    }

    /// The number to wait for where a write was ordered before: the end of the log is far enough
    /// behind it, and of this epoch.
    fn behind_all(&self) -> u64 {
        self.last().seq - u64::from(mutated!(OlderEpochsCount))
    }

    fn recall(&mut self, id: RequestId, now: Timestamp) -> Result<Option<Ordered>, Refused> {
        match self.log.recall(id, now) {
            Recall::New => Ok(None),
            Recall::Done(Outcome { verdict, version }) => Ok(Some(Ordered { verdict, version })),
            Recall::Forgotten => Err(Refused::Late),
            Recall::Mismatch => Err(Refused::Mismatch),
            Recall::Full => Err(Refused::TooManyKeyed),
        }
    }

    fn judge(
        &mut self,
        key: &Key,
        operation: Operation,
        condition: Condition,
        now: Timestamp,
        out: &mut Outputs,
    ) -> (Effect, Verdict) {
        let present = self.table.peek(key.as_bytes(), now);
        if let Lookup::Miss(Miss::Expired) = present {
            // Judged expired here: that goes into the log first, so that no slower clock can
            // bring the entry back.
            self.remove(key.clone(), Departure::Expired, now, out);
        }
        let present = present.found();
        let live = present.as_ref().map(|found| Live {
            version: found.version,
            expires_at: found.expires_at,
            value: found.entry.value_bytes(),
            content_type: found.entry.content_type(),
        });
        let (effect, verdict) = operation.judge(condition, live, now);
        let is_kept = self.log.ring.is_followed();
        (if is_kept { detached(effect) } else { effect }, verdict)
    }

    /// What breaks a rule: see `mutation`.
    fn refuse_unrecorded(
        &mut self,
        verdict: Verdict,
        wait: Option<(u64, Need)>,
        out: &mut Outputs,
    ) -> Ordered {
        if let Some((ticket, need)) = wait {
            self.wait(ticket, self.last().seq, need, false, out);
        }
        Ordered { verdict, version: Version::default() }
    }

    /// Orders the removal of a key by the shard itself.
    fn remove(&mut self, key: Key, why: Departure, now: Timestamp, out: &mut Outputs) {
        let what = (Effect::Remove(why), Verdict::Deleted);
        self.order(Some(key), what, RequestId::Internal, now, out);
    }
}

/// An effect whose bytes are its own: kept among the recent records they must not hold on to the
/// whole buffer that they came in.
fn detached(effect: Effect) -> Effect {
    match effect {
        Effect::Put { value, content_type, expires_at } => {
            Effect::Put { value: Bytes::copy_from_slice(&value), content_type, expires_at }
        }
        other => other,
    }
}
