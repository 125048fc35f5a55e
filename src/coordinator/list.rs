//! Work over many keys: listing, and deleting under a prefix, both in bounded steps.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::entry::{Key, ShardId, Timestamp, Verdict};
use crate::shard::{Condition, Need, Operation};
use crate::store::Found;
use crate::topology::{Copies, NodeId};
use crate::wire::{self, Ask, Reply};

use super::read::found_of;
use super::serve::{LOOKED_AT_MAX, PAGE_BYTES_MAX};
use super::{
    Consistency, Coordinator, Counted, Data, Error, IdempotencyKey, Page, RETRY_AFTER, Write,
};

/// Deletions under way at a time.
const DELETIONS_MAX: usize = 64;

/// Keys asked of a primary at a time.
const KEYS_MAX: u32 = 1000;

/// How long another node may take for a page.
const PAGE_PATIENCE: Duration = Duration::from_secs(5);

/// Where a listing goes on: on which node, in which life of its process, in which shard, and where
/// in its hash order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    node: NodeId,
    life: u64,
    shard: u16,
    from: u64,
}

impl Cursor {
    fn parse(text: &str, num_shards: u16) -> Option<Self> {
        if text.len() != 52 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let number = |range| u64::from_str_radix(&text[range], 16).ok();
        let cursor = Self {
            node: NodeId(number(0..16)?),
            life: number(16..32)?,
            shard: u16::from_str_radix(&text[32..36], 16).ok()?,
            from: number(36..52)?,
        };
        (cursor.shard < num_shards).then_some(cursor)
    }

    fn to_text(self) -> String {
        format!("{:016x}{:016x}{:04x}{:016x}", self.node.0, self.life, self.shard, self.from)
    }
}

/// A part of a shard's keys, and where to go on.
struct Part {
    entries: Vec<Found>,
    next: Option<u64>,
    node: NodeId,
    life: u64,
    looked_at: usize,
    /// For how long that copy has been out of touch with its primary.
    stale: Option<Duration>,
}

impl Coordinator {
    /// One page of the live keys under `prefix`, of `limit` entries at most. A key that is
    /// there throughout a listing is seen at least once.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while starting or stopping, or when no copy of a shard could be
    /// asked; [`Error::Cursor`].
    pub async fn list(
        &self,
        prefix: &[u8],
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, Error> {
        let data = self.admit()?;
        let num_shards = data.replica().placement().num_shards();
        let mut at = match cursor {
            None => None,
            Some(text) => Some(Cursor::parse(text, num_shards).ok_or(Error::Cursor)?),
        };
        let mut shard = at.map_or(0, |cursor| cursor.shard);
        let mut entries = Vec::new();
        let (mut looked_at, mut bytes) = (0, 0);
        let mut stale = None;
        loop {
            let left = limit - entries.len();
            let part = data.part(ShardId(shard), at, prefix, left).await?;
            bytes += part.entries.iter().map(|e| e.entry.value_bytes().len()).sum::<usize>();
            entries.extend(part.entries);
            looked_at += part.looked_at;
            stale = part.stale.max(stale);
            let place = |shard, from| Cursor { node: part.node, life: part.life, shard, from };
            let next = match part.next {
                Some(from) => place(shard, from),
                None if shard + 1 == num_shards => {
                    return Ok(Page { entries, cursor: None, stale });
                }
                None => {
                    shard += 1;
                    at = None;
                    place(shard, 0)
                }
            };
            // A part that ends within its shard has looked at as much as a page may.
            let full = entries.len() >= limit || bytes >= PAGE_BYTES_MAX;
            if full || part.next.is_some() || looked_at >= LOOKED_AT_MAX {
                return Ok(Page { entries, cursor: Some(next.to_text()), stale });
            }
        }
    }

    /// Deletes every live key under `prefix`, or with `dry_run` only counts them. Keys written
    /// meanwhile may stay.
    ///
    /// # Errors
    /// As for [`Coordinator::write`]; keys deleted before the error stay deleted.
    pub async fn delete_prefix(
        &self,
        prefix: &Key,
        dry_run: bool,
        idempotency: Option<IdempotencyKey>,
        consistency: Consistency,
    ) -> Result<Counted, Error> {
        let data = self.admit()?;
        if let Some(id) = idempotency
            && let Some(counted) = self.counted_before(data, prefix, id).await?
        {
            return Ok(counted);
        }
        let mut count = 0;
        for shard in data.replica().placement().shards() {
            let mut from = Some(0);
            while let Some(at) = from {
                let (keys, next) = self.keys_at_primary(data, shard, at, prefix).await?;
                count += if dry_run { keys.len() as u64 } else { self.delete_all(keys).await? };
                from = next;
                tokio::task::yield_now().await;
            }
        }
        if dry_run {
            return Ok(Counted { count, acks: None });
        }
        // One more record, without effect: it keeps the sum for a retry.
        let sum = self.write(Write {
            key: prefix.clone(),
            operation: Operation::Note(Verdict::Counted(count)),
            condition: Condition::Always,
            idempotency,
            consistency,
        });
        Ok(Counted { count, acks: sum.await?.acks })
    }

    /// What the same request came to before.
    async fn counted_before(
        &self,
        data: &Data,
        prefix: &Key,
        id: IdempotencyKey,
    ) -> Result<Option<Counted>, Error> {
        let shard = data.replica().placement().shard_of(prefix.as_bytes());
        let need = Need { copies: Copies::Majority, committed: false };
        let ask = Ask::Recall { key: prefix.clone(), id: id.id(), need };
        match self.ask_primary(data, shard, &ask).await? {
            (Reply::Ordered(ordered, acks), _) => match ordered.verdict {
                Verdict::Counted(count) => Ok(Some(Counted { count, acks })),
                _ => Err(Error::IdempotencyMismatch),
            },
            (Reply::NotOrdered, _) => Ok(None),
            (other, unsure) => Err(data.error_of(other, unsure)),
        }
    }

    /// Live keys under `prefix` as the shard's primary has them: what was acknowledged is there.
    async fn keys_at_primary(
        &self,
        data: &Data,
        shard: ShardId,
        from: u64,
        prefix: &Key,
    ) -> Result<(Vec<Key>, Option<u64>), Error> {
        let prefix = prefix.to_bytes();
        let ask = Ask::Scan { shard, leading: true, from, prefix, limit: KEYS_MAX };
        match self.ask_primary(data, shard, &ask).await?.0 {
            Reply::Page { entries, next, .. } => {
                Ok((entries.into_iter().map(|entry| entry.key).collect(), next))
            }
            other => Err(data.error_of(other, false)),
        }
    }

    /// Deletes these keys where they are live; says how many were.
    async fn delete_all(&self, keys: Vec<Key>) -> Result<u64, Error> {
        let deletions = stream::iter(keys).map(|key| {
            self.write(Write {
                key,
                operation: Operation::Delete,
                condition: Condition::Present,
                idempotency: None,
                consistency: Consistency::Configured,
            })
        });
        deletions
            .buffer_unordered(DELETIONS_MAX)
            .try_fold(0, |count, written| async move {
                Ok(count + u64::from(written.verdict == Verdict::Deleted))
            })
            .await
    }
}

impl Data {
    /// Keys of one shard: from where the cursor says, or, if that copy is gone, from the start of
    /// the nearest one that is level; else of this node's own, as it is.
    async fn part(
        &self,
        shard: ShardId,
        cursor: Option<Cursor>,
        prefix: &[u8],
        limit: usize,
    ) -> Result<Part, Error> {
        self.replication.notice_absence(Timestamp::now());
        let me = self.replica().me().node;
        let is_readable = self.replica().is_readable(shard);
        if let Some(Cursor { node, life, from, .. }) = cursor {
            if node == me && life == self.life && is_readable {
                return Ok(self.part_here(shard, from, prefix, limit));
            }
            if node != me
                && let Some(part) = self.part_of(node, shard, from, prefix, limit).await
                && (part.life == life || from == 0)
            {
                return Ok(part);
            }
        }
        if is_readable && self.replica().is_level(shard).is_ok() {
            return Ok(self.part_here(shard, 0, prefix, limit));
        }
        let carrier = self.replication.carrier();
        for node in self.nearest(shard) {
            // Whoever has a copy to fall back on waits for nobody that is not heard.
            if (!is_readable || carrier.silent_for(node).is_none())
                && let Some(part) = self.part_of(node, shard, 0, prefix, limit).await
            {
                return Ok(part);
            }
        }
        if is_readable {
            return Ok(self.part_here(shard, 0, prefix, limit));
        }
        Err(Error::Unavailable {
            why: "no copy of one of the shards could be read",
            retry_after: RETRY_AFTER,
        })
    }

    fn part_here(&self, shard: ShardId, from: u64, prefix: &[u8], limit: usize) -> Part {
        let stale = match self.replica().is_level(shard) {
            Ok(()) => self.stale(shard),
            Err(away_since) => Some(self.at_least_stale(shard, away_since)),
        };
        let (entries, next, looked_at) = self.scan_here(shard, from, prefix, limit);
        Part { entries, next, node: self.replica().me().node, life: self.life, looked_at, stale }
    }

    async fn part_of(
        &self,
        node: NodeId,
        shard: ShardId,
        from: u64,
        prefix: &[u8],
        limit: usize,
    ) -> Option<Part> {
        let prefix = Bytes::copy_from_slice(prefix);
        let ask = Ask::Scan { shard, leading: false, from, prefix, limit: limit as u32 };
        let ask = wire::to_vec(&ask);
        let answer = self.replication.carrier().call(node, ask, PAGE_PATIENCE).await.ok()?;
        let Reply::Page { entries, next, life } = wire::get(&answer).ok()? else { return None };
        let looked_at = entries.len();
        let now = Timestamp::now();
        let live = entries.iter().filter(|entry| entry.expires_at.is_none_or(|at| at > now));
        let entries = live.map(found_of).collect();
        Some(Part { entries, next, node, life, looked_at, stale: self.stale(shard) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_says_where_to_go_on_and_nonsense_is_none() {
        let cursor = Cursor { node: NodeId(3), life: 7, shard: 255, from: u64::MAX };
        let text = cursor.to_text();
        assert_eq!(text, "0000000000000003000000000000000700ffffffffffffffffff");
        assert_eq!(Cursor::parse(&text, 256), Some(cursor));
        assert_eq!(Cursor::parse(&text, 255), None);
        assert_eq!(Cursor::parse(&text[1..], 256), None);
        assert_eq!(Cursor::parse("nonsense", 256), None);
    }
}
