//! Work over many keys: listing, and deleting under a prefix, both in bounded steps.

use std::ops::ControlFlow;

use crate::entry::{Key, ShardId, Timestamp, Verdict};
use crate::replica::Ordered;
use crate::shard::{Condition, Operation};
use crate::wal::Lsn;

use super::{Consistency, Coordinator, Counted, Data, Error, IdempotencyKey, Page, Write};

/// Most entries looked at for one page of a listing: a rare prefix gives short pages, never slow
/// ones.
const LOOKED_AT_MAX: usize = 20_000;

/// Entries looked at under one hold of a shard's lock.
const STEP: usize = 256;

/// Where a listing goes on: the life that gave it, the shard, the place in hash order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    life: u64,
    shard: u16,
    from: u64,
}

impl Cursor {
    fn parse(text: &str, life: u64, num_shards: u16) -> Option<Self> {
        if text.len() != 36 || !text.is_ascii() {
            return None;
        }
        let cursor = Self {
            life: u64::from_str_radix(&text[..16], 16).ok()?,
            shard: u16::from_str_radix(&text[16..20], 16).ok()?,
            from: u64::from_str_radix(&text[20..], 16).ok()?,
        };
        (cursor.life == life && cursor.shard < num_shards).then_some(cursor)
    }

    fn to_text(self) -> String {
        format!("{:016x}{:04x}{:016x}", self.life, self.shard, self.from)
    }
}

impl Coordinator {
    /// One page of the live keys under `prefix`, of `limit` entries at most. A key that is
    /// there throughout a listing is seen at least once.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while starting or stopping; [`Error::Cursor`].
    pub fn list(&self, prefix: &[u8], cursor: Option<&str>, limit: usize) -> Result<Page, Error> {
        let Data { replica, life, .. } = self.admit()?;
        let (life, num_shards) = (*life, replica.placement().num_shards());
        let mut at = match cursor {
            None => Cursor { life, shard: 0, from: 0 },
            Some(text) => Cursor::parse(text, life, num_shards).ok_or(Error::Cursor)?,
        };
        let now = Timestamp::now();
        let mut entries = Vec::new();
        let mut looked_at = 0;
        while entries.len() < limit && looked_at < LOOKED_AT_MAX {
            let next = replica.scan(ShardId(at.shard), at.from, STEP, now, |view| {
                looked_at += 1;
                if view.entry.key().starts_with(prefix) {
                    entries.push(view.to_found());
                }
                if entries.len() < limit {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
            match next {
                Some(from) => at.from = from,
                None if at.shard + 1 == num_shards => return Ok(Page { entries, cursor: None }),
                None => at = Cursor { life, shard: at.shard + 1, from: 0 },
            }
        }
        Ok(Page { entries, cursor: Some(at.to_text()) })
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
        let now = Timestamp::now();
        if let Some(id) = idempotency {
            let recalled = data.replica.recall(prefix, id.id(), now);
            let done = recalled.map_err(|refusal| data.refused(refusal))?;
            if let Some(Ordered { verdict: Verdict::Counted(count), lsn, .. }) = done {
                let acks = data.settle(lsn, self.waits(consistency)).await?;
                return Ok(Counted { count, acks });
            }
        }
        let mut count = 0;
        for shard in data.replica.placement().shards() {
            let mut from = Some(0);
            while let Some(at) = from {
                let mut keys = Vec::new();
                from = data.replica.scan(shard, at, STEP, now, |view| {
                    if view.entry.key().starts_with(prefix.as_bytes()) {
                        keys.push(view.to_key());
                    }
                    ControlFlow::Continue(())
                });
                count += if dry_run { keys.len() as u64 } else { self.delete_all(&keys).await? };
                tokio::task::yield_now().await;
            }
        }
        if dry_run {
            return Ok(Counted { count, acks: data.settle(Lsn::default(), true).await? });
        }
        // One more record, without effect: it keeps the sum for a retry, and whoever has it has
        // all of this request's deletions, which stand before it in the log.
        let sum = self.write(Write {
            key: prefix.clone(),
            operation: Operation::Note(Verdict::Counted(count)),
            condition: Condition::Always,
            idempotency,
            consistency,
        });
        Ok(Counted { count, acks: sum.await?.acks })
    }

    /// Deletes these keys where they are live; says how many were.
    async fn delete_all(&self, keys: &[Key]) -> Result<u64, Error> {
        let mut count = 0;
        for key in keys {
            let deletion = self.write(Write {
                key: key.clone(),
                operation: Operation::Delete,
                condition: Condition::Present,
                idempotency: None,
                consistency: Consistency::Async,
            });
            count += u64::from(deletion.await?.verdict == Verdict::Deleted);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_only_in_the_life_that_gave_it() {
        let cursor = Cursor { life: 7, shard: 255, from: u64::MAX };
        let text = cursor.to_text();
        assert_eq!(text, "000000000000000700ffffffffffffffffff");
        assert_eq!(Cursor::parse(&text, 7, 256), Some(cursor));
        assert_eq!(Cursor::parse(&text, 8, 256), None);
        assert_eq!(Cursor::parse(&text, 7, 255), None);
        assert_eq!(Cursor::parse(&text[1..], 7, 256), None);
        assert_eq!(Cursor::parse("nonsense", 7, 256), None);
    }
}
