//! Which entries go first when memory is short: S3-FIFO, in lists that run through the entries.
//!
//! After Yang et al., "FIFO queues are all you need for cache eviction" (SOSP 2023): newcomers
//! enter a small queue of a twentieth of the bytes; what is read twice there moves to the main
//! queue; the main queue gives each entry another round per read. Keys that left not long ago
//! ([`super::ghost`]) enter the main queue at once. A read costs one store of a counter.
//!
//! What is read once in the small queue moves on trial: as long as enough of those are read in the
//! main queue too ([`Trials`]). Where most entries are written, read once and never again, they
//! leave at once.
//!
//! Invariant: every entry of the table is in exactly one queue. Picking removes nothing: victims
//! stay until the table removes them, by a record.

use super::entry::{Entry, EntryRef, Link};
use crate::entry::Timestamp;

/// The small queue's share of the bytes is one in this many.
const SMALL_SHARE: u64 = 20;

/// Reads that carry an entry from the small queue to the main one for certain.
const READS_TO_PROMOTE: u8 = 2;

/// Entries moved on in one pick before it disregards reads: bounds how long a pick takes.
const STEPS_MAX: usize = 4096;

/// A doubly linked list through the entries, oldest at the front.
struct Fifo {
    front: Link,
    back: Link,
    bytes: u64,
}

impl Fifo {
    const fn new() -> Self {
        Self { front: Link::NONE, back: Link::NONE, bytes: 0 }
    }

    /// The entry that a link of this list leads to.
    fn at<'a>(link: Link) -> Option<EntryRef<'a>> {
        // SAFETY: links of a list lead to entries in it, which whoever pushed them keeps alive
        // until they are unlinked; no reference made here outlives the call that made it.
        unsafe { link.entry() }
    }

    fn push(&mut self, entry: &Entry) {
        entry.set_older(self.back);
        entry.set_newer(Link::NONE);
        match Self::at(self.back) {
            Some(back) => back.set_newer(entry.link()),
            None => self.front = entry.link(),
        }
        self.back = entry.link();
        self.bytes += entry.size();
    }

    fn unlink(&mut self, entry: &Entry) {
        self.join(entry.older(), entry.newer());
        entry.set_older(Link::NONE);
        entry.set_newer(Link::NONE);
        self.bytes -= entry.size();
    }

    /// Makes `older` and `newer` neighbours, either of which may be the list's end.
    fn join(&mut self, older: Link, newer: Link) {
        match Self::at(older) {
            Some(older) => older.set_newer(newer),
            None => self.front = newer,
        }
        match Self::at(newer) {
            Some(newer) => newer.set_older(older),
            None => self.back = older,
        }
    }

    fn substitute(&mut self, old: &Entry, new: &Entry) {
        let (older, newer) = (old.older(), old.newer());
        new.set_older(older);
        new.set_newer(newer);
        match Self::at(older) {
            Some(older) => older.set_newer(new.link()),
            None => self.front = new.link(),
        }
        match Self::at(newer) {
            Some(newer) => newer.set_older(new.link()),
            None => self.back = new.link(),
        }
        self.bytes = self.bytes - old.size() + new.size();
    }
}

/// How those fare that came to the main queue by one read: the share, in 65,536ths, that was read
/// there before its turn, as a moving average over some 32 of them.
struct Trials {
    passed: u16,
}

impl Trials {
    /// Below this share one read is not enough. Where keys come back it is two fifths or more,
    /// where they are read once and no more it is near zero.
    const PASSED_MIN: u16 = u16::MAX / 6;

    const WINDOW: u16 = 32;

    fn note(&mut self, passed: bool) {
        self.passed -= self.passed / Self::WINDOW;
        if passed {
            self.passed += u16::MAX / Self::WINDOW;
        }
    }

    /// Whether an entry read once goes on trial. One in 16 always does, the same whenever it is
    /// asked: a share that has become better must be seen.
    fn admit(&self, entry: &Entry) -> bool {
        let spread = entry.version().0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.passed >= Self::PASSED_MIN || spread >> 60 == 0
    }
}

/// The queues of one table.
pub(super) struct Queues {
    small: Fifo,
    main: Fifo,
    trials: Trials,
}

impl Queues {
    pub(super) const fn new() -> Self {
        Self { small: Fifo::new(), main: Fifo::new(), trials: Trials { passed: u16::MAX / 2 } }
    }

    /// Bytes of memory that the entries occupy.
    pub(super) fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }

    fn queue_of(&mut self, entry: &Entry) -> &mut Fifo {
        if entry.is_in_main() { &mut self.main } else { &mut self.small }
    }

    /// Puts an entry in; to the main queue if `to_main`.
    ///
    /// # Safety
    /// The entry is in no queue, and the caller keeps a handle to it until it has unlinked it or
    /// dropped the queues.
    pub(super) unsafe fn push(&mut self, entry: &Entry, to_main: bool) {
        entry.set_mark(to_main, 0);
        self.queue_of(entry).push(entry);
    }

    /// Takes an entry out.
    ///
    /// # Safety
    /// The entry is in these queues.
    pub(super) unsafe fn unlink(&mut self, entry: &Entry) {
        self.queue_of(entry).unlink(entry);
    }

    /// Puts `new` in the place of `old`, with its reads and one more.
    ///
    /// # Safety
    /// `old` is in these queues; for `new` holds what [`Self::push`] asks.
    pub(super) unsafe fn substitute(&mut self, old: &Entry, new: &Entry) {
        new.copy_mark(old);
        new.count_read();
        self.queue_of(old).substitute(old, new);
    }

    /// Names victims worth `bytes_wanted` or more, at most `victims_max`, to `victim`; entries
    /// found read on the way there move on, and what has expired at `now` goes whatever its reads.
    /// Names at least one if there is one. Until they are removed, the next pick names them again.
    pub(super) fn pick(
        &mut self,
        bytes_wanted: u64,
        victims_max: usize,
        now: Timestamp,
        mut victim: impl FnMut(&Entry),
    ) {
        let (mut small_next, mut main_next) = (self.small.front, self.main.front);
        let (mut small_named, mut main_named) = (0, 0);
        let (mut victims, mut steps) = (0, 0);
        while victims < victims_max && small_named + main_named < bytes_wanted.max(1) {
            let small_left = self.small.bytes - small_named;
            let main_left = self.main.bytes - main_named;
            let small_is_due = small_left * SMALL_SHARE > small_left + main_left;
            let from_small = Fifo::at(main_next).is_none() || small_is_due;
            let from = if from_small { &mut small_next } else { &mut main_next };
            let Some(entry) = Fifo::at(*from) else { break };
            *from = entry.newer();
            steps += 1;
            let ignore_reads = steps > STEPS_MAX || entry.is_expired(now);
            if entry.end_trial() {
                self.trials.note(entry.reads() > 0);
            }
            match (from_small, entry.reads()) {
                (true, reads) if reads >= READS_TO_PROMOTE && !ignore_reads => {
                    self.requeue(&entry, 0);
                    keep_going(&mut main_next, &entry);
                }
                (true, 1) if !ignore_reads && self.trials.admit(&entry) => {
                    self.requeue(&entry, 0);
                    entry.begin_trial();
                    keep_going(&mut main_next, &entry);
                }
                (false, reads) if reads > 0 && !ignore_reads => {
                    self.requeue(&entry, reads - 1);
                    keep_going(&mut main_next, &entry);
                }
                _ => {
                    *(if from_small { &mut small_named } else { &mut main_named }) += entry.size();
                    victims += 1;
                    victim(&entry);
                }
            }
        }
    }

    /// Moves an entry to the back of the main queue.
    fn requeue(&mut self, entry: &Entry, reads: u8) {
        self.queue_of(entry).unlink(entry);
        entry.set_mark(true, reads);
        self.main.push(entry);
    }
}

/// Lets a pick that had come to the end of the main queue go on with what was just put there.
fn keep_going(main_next: &mut Link, moved: &Entry) {
    if *main_next == Link::NONE {
        *main_next = moved.link();
    }
}

#[cfg(test)]
impl Queues {
    /// Checks links and sums, and returns how many entries both queues hold.
    pub(super) fn check(&self) -> usize {
        let mut entries = 0;
        for (queue, is_main) in [(&self.small, false), (&self.main, true)] {
            let (mut at, mut before, mut bytes) = (queue.front, Link::NONE, 0);
            while let Some(entry) = Fifo::at(at) {
                assert!(entry.older() == before, "links lead both ways");
                assert_eq!(entry.is_in_main(), is_main);
                bytes += entry.size();
                entries += 1;
                (before, at) = (at, entry.newer());
            }
            assert!(queue.back == before, "the back is the last");
            assert_eq!(bytes, queue.bytes);
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Version;

    #[test]
    fn few_go_on_trial_where_none_passes_and_all_where_many_pass() {
        let mut trials = Trials { passed: u16::MAX / 2 };
        let entries: Vec<_> =
            (0..1600).map(|n| Entry::new(b"k", b"", b"v", Version(n), None)).collect();
        let admitted = |trials: &Trials| entries.iter().filter(|e| trials.admit(e)).count();
        assert_eq!(admitted(&trials), 1600);
        (0..100).for_each(|_| trials.note(false));
        assert_eq!((admitted(&trials), admitted(&trials)), (101, 101), "the same ones");
        (0..100).for_each(|n| trials.note(n % 5 < 2));
        assert_eq!(admitted(&trials), 1600);
        (0..10_000).for_each(|_| trials.note(true));
        assert_eq!(admitted(&trials), 1600);
    }
}
