//! One page of a table's index: an open-addressed array of tagged handles, in hash order.
//!
//! A page covers a contiguous range of hashes. An entry's *tag* is the 16 bits of its hash that
//! follow the bits all hashes of the page share; the tag scales to the entry's home slot.
//! Invariant: going round the array, tags never fall, no entry stands before its home, and no
//! empty slot lies between an entry and its home (linear probing, ordered: Amble and Knuth 1974).
//! So hits and misses alike end after a few neighbouring slots, at nine tenths full; an ordered
//! walk needs no sorting; and growth needs no hash computed again.
//!
//! Why not one of hashbrown's tables a page: those have a power of two of buckets of nine bytes,
//! which jemalloc rounds up by a tenth, and half of which a page that has just split leaves empty:
//! 16 bytes an entry on average. Here a slot has eight bytes, arrays grow by single size classes
//! (a seventh to a quarter), and an entry pays 9 to 11.

use super::allocator::{usable_size, usable_size_of_array};
use super::entry::{Entry, EntryRef, Slot};

/// Smallest array of a page that holds anything.
const SLOTS_MIN: usize = 8;

/// The expiry mark of a page in which nothing expires.
pub(super) const NEVER: u64 = u64::MAX;

/// One page.
pub(super) struct Page {
    slots: Box<[Slot]>,
    len: u32,
    /// How many leading hash bits all entries of the page share.
    pub(super) depth: u8,
    /// No entry of the page expires before this (milliseconds since 1970).
    pub(super) expires_from: u64,
}

impl Page {
    /// A page with room for one entry more than `len`.
    pub(super) fn with_room(depth: u8, len: usize) -> Self {
        Self { slots: empty_slots(slots_for(len)), len: 0, depth, expires_from: NEVER }
    }

    /// A page that occupies no memory yet.
    pub(super) fn empty(depth: u8) -> Self {
        Self { slots: Box::default(), len: 0, depth, expires_from: NEVER }
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of memory that the array occupies.
    pub(super) fn bytes(&self) -> u64 {
        usable_size_of_array::<Slot>(self.slots.len())
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= len_max(self.slots.len())
    }

    /// Whether more than half of the array is unused.
    pub(super) fn is_sparse(&self) -> bool {
        self.len == 0 || (self.len() * 2 < self.slots.len() && self.slots.len() > SLOTS_MIN)
    }

    fn home(&self, tag: u16) -> usize {
        (usize::from(tag) * self.slots.len()) >> u16::BITS
    }

    /// Whether `other`, which stands at `at`, comes no later than `tag`, whose home is `home`, at
    /// or before `at` going round. What has gone round the array's end (its home lies further on)
    /// comes before everything at home at the start.
    fn passes(&self, other: u16, at: usize, tag: u16, home: usize) -> bool {
        if at >= home {
            other <= tag || self.home(other) > at
        } else {
            other <= tag && self.home(other) > at
        }
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    /// Where the entry of this tag that `is_it` accepts stands.
    pub(super) fn find(&self, tag: u16, mut is_it: impl FnMut(&Entry) -> bool) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let home = self.home(tag);
        let mut at = home;
        loop {
            let slot = &self.slots[at];
            let entry = slot.entry()?;
            if slot.tag() == tag && is_it(&entry) {
                return Some(at);
            }
            if !self.passes(slot.tag(), at, tag, home) {
                return None;
            }
            at = self.after(at);
        }
    }

    pub(super) fn slot(&self, at: usize) -> &Slot {
        &self.slots[at]
    }

    pub(super) fn slot_mut(&mut self, at: usize) -> &mut Slot {
        &mut self.slots[at]
    }

    /// Takes in an entry whose key is not there.
    ///
    /// # Panics
    /// When the page is full.
    pub(super) fn insert(&mut self, entry: Entry, tag: u16) {
        assert!(!self.is_full(), "a full page must grow or split first");
        let expiry = entry.expires_at().map_or(NEVER, |at| at.0);
        self.expires_from = self.expires_from.min(expiry);
        self.place(Slot::new(entry, tag), tag);
    }

    fn place(&mut self, slot: Slot, tag: u16) {
        let home = self.home(tag);
        let mut at = home;
        while !self.slots[at].is_empty() && self.passes(self.slots[at].tag(), at, tag, home) {
            at = self.after(at);
        }
        let mut gap = at;
        while !self.slots[gap].is_empty() {
            gap = self.after(gap);
        }
        if gap >= at {
            self.slots[at..=gap].rotate_right(1);
        } else {
            let last = self.slots.len() - 1;
            self.slots[..=gap].rotate_right(1);
            self.slots.swap(0, last);
            self.slots[at..].rotate_right(1);
        }
        self.slots[at] = slot;
        self.len += 1;
    }

    /// Takes out the entry at `at`; those behind it that are not at home move up.
    pub(super) fn remove(&mut self, at: usize) -> Option<Entry> {
        let entry = self.slots[at].take()?;
        self.len -= 1;
        let mut end = self.after(at);
        while !self.slots[end].is_empty() && self.home(self.slots[end].tag()) != end {
            end = self.after(end);
        }
        if end > at {
            self.slots[at..end].rotate_left(1);
        } else {
            let last = self.slots.len() - 1;
            self.slots[at..].rotate_left(1);
            if end > 0 {
                self.slots.swap(last, 0);
                self.slots[..end].rotate_left(1);
            }
        }
        Some(entry)
    }

    /// Moves to an array of the next size.
    pub(super) fn grow(&mut self) {
        self.resize(next_slot_count(self.slots.len().max(SLOTS_MIN - 1)));
    }

    /// Moves to the smallest array with a little room.
    pub(super) fn shrink(&mut self) {
        match self.len() {
            0 => *self = Self::empty(self.depth),
            len => self.resize(slots_for(len + len / 8)),
        }
    }

    fn resize(&mut self, slot_count: usize) {
        let before = std::mem::replace(&mut self.slots, empty_slots(slot_count));
        self.len = 0;
        for slot in before {
            if !slot.is_empty() {
                let tag = slot.tag();
                self.place(slot, tag);
            }
        }
    }

    /// How many slots at the array's start belong to tags whose home is near its end.
    fn wrapped(&self) -> usize {
        let gone_round =
            |(at, slot): &(usize, &Slot)| !slot.is_empty() && self.home(slot.tag()) > *at;
        self.slots.iter().enumerate().take_while(gone_round).count()
    }

    /// The entries with tags of at least `from`, in order of their tags.
    pub(super) fn ordered(&self, from: u16) -> impl Iterator<Item = (u16, EntryRef<'_>)> {
        let wrapped = self.wrapped();
        let start = self.home(from).max(wrapped);
        self.slots[start..]
            .iter()
            .chain(&self.slots[..wrapped])
            .filter_map(|slot| slot.entry().map(|entry| (slot.tag(), entry)))
            .skip_while(move |(tag, _)| *tag < from)
    }

    /// Gives all entries away, in order of nothing.
    pub(super) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.slots.into_iter().filter_map(|mut slot| slot.take())
    }
}

/// Most entries in an array: nine tenths, and at least one slot empty.
fn len_max(slot_count: usize) -> usize {
    slot_count.saturating_sub(slot_count / 10 + 1)
}

/// Slots of the array that is one size class larger.
fn next_slot_count(slot_count: usize) -> usize {
    usable_size((slot_count + 1) * size_of::<Slot>()) / size_of::<Slot>()
}

/// Slots of the smallest array that is not full with `len` entries.
fn slots_for(len: usize) -> usize {
    let mut slots = next_slot_count(len.max(SLOTS_MIN - 1));
    while len_max(slots) <= len {
        slots = next_slot_count(slots);
    }
    slots
}

fn empty_slots(count: usize) -> Box<[Slot]> {
    (0..count).map(|_| Slot::EMPTY).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Version;

    fn entry(tag: u16) -> Entry {
        Entry::new(&tag.to_be_bytes(), b"", b"", Version(1), None)
    }

    fn page_of(tags: &[u16]) -> Page {
        let mut page = Page::empty(0);
        for &tag in tags {
            if page.is_full() {
                page.grow();
            }
            page.insert(entry(tag), tag);
        }
        page
    }

    fn tags(page: &Page, from: u16) -> Vec<u16> {
        page.ordered(from).map(|(tag, _)| tag).collect()
    }

    #[test]
    fn entries_are_walked_in_order_of_tags_also_when_they_wrap_round_the_end() {
        let page = page_of(&[0xffff, 0xfffe, 3, 0xfffe, 0xfffd, 1]);
        assert_eq!(tags(&page, 0), [1, 3, 0xfffd, 0xfffe, 0xfffe, 0xffff]);
        assert_eq!(tags(&page, 2), [3, 0xfffd, 0xfffe, 0xfffe, 0xffff]);
        assert_eq!(tags(&page, 0xffff), [0xffff]);
        assert_eq!(tags(&Page::empty(0), 0), [0_u16; 0]);
    }

    #[test]
    fn removal_leaves_every_other_entry_findable() {
        let all = [0xffff_u16, 0xfffe, 0xfffd, 0xfffc, 0, 1, 2];
        for gone in all {
            let mut page = page_of(&all);
            let at = page.find(gone, |_| true).expect("present");
            page.remove(at).expect("present");
            for tag in all {
                assert_eq!(page.find(tag, |_| true).is_some(), tag != gone, "{tag} less {gone}");
            }
        }
    }

    #[test]
    fn a_page_of_nine_hundred_fits_eight_kibibytes() {
        assert_eq!(Page::with_room(0, 900).bytes(), 8192);
        assert_eq!(Page::with_room(0, 460).bytes(), 5120);
        assert_eq!(Page::empty(0).bytes(), 0);
    }

    #[test]
    fn a_page_shrinks_as_it_empties() {
        let tags: Vec<u16> = (0..900).map(|n| n * 70).collect();
        let mut page = page_of(&tags);
        assert_eq!(page.slot_count(), 1024);
        for &tag in &tags[..895] {
            let at = page.find(tag, |_| true).expect("present");
            page.remove(at);
            if page.is_sparse() {
                page.shrink();
            }
        }
        assert!(page.slot_count() <= 14, "{}", page.slot_count());
        assert!(tags[895..].iter().all(|&tag| page.find(tag, |_| true).is_some()));
    }
}
