//! What this node does for any coordinator, its own included: the operations at its copies.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::entry::{Key, Position, RequestId, Timestamp};
use crate::replica::{Replica, Seen, Wait, Work};
use crate::shard::{Answer, EntryCopy, Need, Request};
use crate::store::{Found, Lookup};
use crate::wire::{Ask, Reply};

use super::{Coordinator, Data, PATIENCE, RETRY_AFTER};

/// Entries looked at for one page of a listing.
pub(super) const LOOKED_AT_MAX: usize = 20_000;

/// Entries looked at under one hold of a shard's lock.
pub(super) const STEP: usize = 256;

/// Bytes of values in one page.
pub(super) const PAGE_BYTES_MAX: usize = 16 << 20;

/// A place in the row of those who wait, given back when dropped.
struct Waiting<'a> {
    replica: &'a Arc<Replica>,
    wait: Wait,
    over: bool,
}

impl Waiting<'_> {
    /// The answer; `None` if it did not come in time.
    async fn answer(mut self, patience: Duration) -> Option<Answer> {
        let answer = match self.wait.try_answer() {
            Some(answer) => Some(answer),
            None => tokio::time::timeout(patience, self.wait.answer()).await.ok(),
        };
        self.over = answer.is_some();
        answer
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.replica.forget(&self.wait);
        }
    }
}

impl Coordinator {
    /// Does what another node's coordinator asks.
    pub async fn answer(&self, ask: Ask) -> Reply {
        match self.0.data.get() {
            Some(data) => data.answer(ask, PATIENCE).await,
            None => {
                tokio::time::sleep(RETRY_AFTER / 20).await;
                Reply::NoCopy
            }
        }
    }
}

impl Data {
    pub(super) async fn answer(&self, ask: Ask, patience: Duration) -> Reply {
        match ask {
            Ask::Write { request, need } => self.write_here(request, need, patience).await,
            Ask::Recall { key, id, need } => self.recall_here(&key, id, need, patience).await,
            Ask::Get { key, linearizable: true } => self.get_linearizable(&key, patience).await,
            Ask::Get { key, linearizable: false } => match self.look_up(&key, None) {
                Some(seen) if seen.leads && seen.level => entry_of(&key, seen),
                // It was away: another may lead by now.
                Some(seen) if seen.leads => self.get_linearizable(&key, patience).await,
                _ => Reply::NoCopy,
            },
            Ask::Peek { key, written } => match self.look_up(&key, written) {
                Some(seen) => entry_of(&key, seen),
                None => Reply::NoCopy,
            },
            Ask::Scan { shard, leading, from, prefix, limit } => {
                let replica = self.replica();
                self.replication.notice_absence(Timestamp::now());
                let serves = shard.0 < replica.placement().num_shards()
                    && replica.is_readable(shard)
                    && replica.is_level(shard).is_ok()
                    && (!leading || replica.is_active(shard));
                if !serves {
                    return Reply::NoCopy;
                }
                let (found, next, _) = self.scan_here(shard, from, &prefix, limit as usize);
                let entries = found.iter().map(copy_of).collect();
                Reply::Page { entries, next, life: self.life }
            }
        }
    }

    pub(super) async fn write_here(
        &self,
        request: Request,
        need: Option<Need>,
        patience: Duration,
    ) -> Reply {
        let mut work = Work::default();
        let ordered = self.replica().write(request, need, Timestamp::now(), &mut work);
        let wait = match ordered {
            Ok((ordered, wait)) => Ok((ordered, wait.map(|wait| self.waiting(wait)))),
            Err(refusal) => Err(refusal),
        };
        // Also what made room is to be carried out.
        if self.replication.carry_out_together(work).await.is_err() {
            return Reply::Unknown;
        }
        match wait {
            Err(refusal) => self.reply_of(refusal),
            Ok((ordered, None)) => match self.replica().wal().room().await {
                Ok(()) => Reply::Ordered(ordered, None),
                Err(_) => Reply::Unknown,
            },
            Ok((ordered, Some(waiting))) => match waiting.answer(patience).await {
                Some(Answer::Done(acks)) => Reply::Ordered(ordered, Some(acks)),
                Some(Answer::Deposed) | None => Reply::Unknown,
            },
        }
    }

    async fn recall_here(&self, key: &Key, id: RequestId, need: Need, patience: Duration) -> Reply {
        let mut work = Work::default();
        let recalled = self.replica().recall(key, id, need, Timestamp::now(), &mut work);
        let recalled = match recalled {
            Ok(Some((ordered, wait))) => Some((ordered, self.waiting(wait))),
            Ok(None) => None,
            Err(refusal) => return self.reply_of(refusal),
        };
        if self.replication.carry_out(work).await.is_err() {
            return Reply::Unknown;
        }
        let Some((ordered, waiting)) = recalled else { return Reply::NotOrdered };
        match waiting.answer(patience).await {
            Some(Answer::Done(acks)) => Reply::Ordered(ordered, Some(acks)),
            Some(Answer::Deposed) | None => Reply::Unknown,
        }
    }

    async fn get_linearizable(&self, key: &[u8], patience: Duration) -> Reply {
        let mut work = Work::default();
        let now = Timestamp::now();
        let (lookup, waiting) = match self.replica().get_linearizable(key, now, &mut work) {
            Ok((lookup, wait)) => (lookup, self.waiting(wait)),
            Err(refusal) => return self.reply_of(refusal),
        };
        if self.replication.carry_out(work).await.is_err() {
            return Reply::Unknown;
        }
        match waiting.answer(patience).await {
            Some(Answer::Done(_)) => {
                let (position, away_since) = (Position::default(), None);
                let (holds, leads, level) = (true, true, true);
                entry_of(key, Seen { lookup, position, holds, leads, level, away_since })
            }
            Some(Answer::Deposed) | None => Reply::Unknown,
        }
    }

    fn waiting(&self, wait: Wait) -> Waiting<'_> {
        Waiting { replica: self.replica(), wait, over: false }
    }

    /// Live entries under `prefix` from a place of this node's table on, the place after them, and
    /// how many entries were looked at.
    pub(super) fn scan_here(
        &self,
        shard: crate::entry::ShardId,
        from: u64,
        prefix: &[u8],
        limit: usize,
    ) -> (Vec<Found>, Option<u64>, usize) {
        let now = Timestamp::now();
        let mut entries = Vec::new();
        let (mut looked_at, mut bytes) = (0, 0);
        let mut at = Some(from);
        while let Some(place) = at
            && entries.len() < limit
            && looked_at < LOOKED_AT_MAX
            && bytes < PAGE_BYTES_MAX
        {
            at = self.replica().scan(shard, place, STEP, now, |view| {
                looked_at += 1;
                if view.entry.key().starts_with(prefix) {
                    bytes += view.entry.value_bytes().len();
                    entries.push(view.to_found());
                }
                if entries.len() < limit && bytes < PAGE_BYTES_MAX {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
        }
        (entries, at, looked_at)
    }
}

/// What a copy has of a key, as another node is told.
fn entry_of(key: &[u8], seen: Seen) -> Reply {
    let Seen { lookup, position, holds, leads, level, away_since: _ } = seen;
    debug_assert!(lookup.clone().found().is_none_or(|found| found.entry.key() == key));
    let entry = match lookup {
        Lookup::Hit(found) => Ok(copy_of(&found)),
        Lookup::Miss(reason) => Err(reason),
    };
    Reply::Entry { entry, position, holds, leads, level }
}

fn copy_of(found: &Found) -> EntryCopy {
    EntryCopy {
        key: found.key(),
        value: found.entry.value(),
        content_type: Bytes::copy_from_slice(found.entry.content_type()),
        version: found.version,
        expires_at: found.expires_at,
    }
}
