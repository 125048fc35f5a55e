//! A table's index: from a key to its entry, in order of keyed hashes.
//!
//! Extendible hashing (Fagin et al., 1979): a directory, addressed by a hash's leading bits, over
//! [`Page`]s. A page that is full at its largest size splits in two by the next bit, so no insert
//! ever moves more than one page. Pages cover contiguous ranges of hashes, so a walk in hash order
//! goes page by page, and a position in it stays good whatever splits in between. Pages give their
//! memory back as they empty; they are not joined again (an empty one costs 32 bytes).

use std::ops::ControlFlow;

use super::allocator::usable_size_of_array;
use super::entry::{Entry, EntryRef, Slot};
use super::page::{NEVER, Page};
use crate::entry::Timestamp;

/// A page of this many slots splits rather than grow: 8 KiB, some 900 entries.
const PAGE_SLOTS_MAX: usize = 1024;

/// Pages this deep grow rather than split: only equal hashes could fill them.
const DEPTH_MAX: u8 = 24;

/// Keys of the hash that orders entries: the process's own, so that nobody can aim at a place in
/// a table. One process shares them among its tables, and positions mean nothing to another.
#[derive(Clone, Debug)]
pub struct HashKeys {
    state: ahash::RandomState,
}

impl HashKeys {
    /// Fresh random keys.
    pub fn random() -> Self {
        Self { state: ahash::RandomState::new() }
    }

    /// Keys made from a seed: for simulations and tests that must repeat.
    pub fn seeded(seed: u64) -> Self {
        Self { state: ahash::RandomState::with_seeds(seed, !seed, seed.rotate_left(32), 1) }
    }

    /// A number that tells these keys from others without giving them away. A cursor carries it,
    /// so that one from before a restart, or from another node, is recognised.
    pub fn id(&self) -> u32 {
        (self.hash(b"cursor") >> 32) as u32
    }

    /// The place of `key` in the order of a walk.
    pub fn hash(&self, key: &[u8]) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        let mut hasher = self.state.build_hasher();
        hasher.write(key);
        hasher.finish()
    }
}

/// The index of one table.
pub(super) struct Index {
    keys: HashKeys,
    /// Page numbers by the `depth` leading bits of a hash.
    directory: Vec<u32>,
    depth: u8,
    pages: Vec<Page>,
    page_bytes: u64,
    len: usize,
}

impl Index {
    pub(super) fn new(keys: HashKeys) -> Self {
        let (directory, pages) = (vec![0], vec![Page::empty(0)]);
        Self { keys, directory, depth: 0, pages, page_bytes: 0, len: 0 }
    }

    pub(super) fn keys(&self) -> &HashKeys {
        &self.keys
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory that pages and directory occupy, entries apart.
    pub(super) fn bytes(&self) -> u64 {
        self.page_bytes
            + usable_size_of_array::<u32>(self.directory.capacity())
            + usable_size_of_array::<Page>(self.pages.capacity())
    }

    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.keys.hash(key)
    }

    fn page_of(&self, hash: u64) -> usize {
        self.directory[prefix(hash, self.depth)] as usize
    }

    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<EntryRef<'_>> {
        let page = &self.pages[self.page_of(hash)];
        let at = page.find(tag(hash, page.depth), |entry| entry.key() == key)?;
        page.slot(at).entry()
    }

    /// The slot that holds `key`. Whoever changes the entry's expiry tells [`Self::expects`].
    pub(super) fn slot_mut(&mut self, hash: u64, key: &[u8]) -> Option<&mut Slot> {
        let number = self.page_of(hash);
        let page = &mut self.pages[number];
        let at = page.find(tag(hash, page.depth), |entry| entry.key() == key)?;
        Some(page.slot_mut(at))
    }

    /// Takes note that the entry of this hash now expires at `expires_at`.
    pub(super) fn expects(&mut self, hash: u64, expires_at: Option<Timestamp>) {
        let number = self.page_of(hash);
        let page = &mut self.pages[number];
        page.expires_from = page.expires_from.min(expires_at.map_or(NEVER, |at| at.0));
    }

    /// Takes in an entry whose key is not there.
    pub(super) fn insert(&mut self, hash: u64, entry: Entry) {
        loop {
            let number = self.page_of(hash);
            let page = &mut self.pages[number];
            if !page.is_full() {
                page.insert(entry, tag(hash, page.depth));
                self.len += 1;
                return;
            }
            if page.slot_count() < PAGE_SLOTS_MAX || page.depth >= DEPTH_MAX {
                self.page_bytes -= page.bytes();
                page.grow();
                self.page_bytes += page.bytes();
            } else {
                self.split(number, hash);
            }
        }
    }

    /// Splits a page, which covers `hash`, in two.
    fn split(&mut self, number: usize, hash: u64) {
        let depth = self.pages[number].depth;
        if depth == self.depth {
            self.directory = self.directory.iter().flat_map(|&page| [page, page]).collect();
            self.depth += 1;
        }
        let page = std::mem::replace(&mut self.pages[number], Page::empty(depth));
        self.page_bytes -= page.bytes();
        let expires_from = page.expires_from;
        let (mut lower, mut upper) = (Vec::new(), Vec::new());
        for entry in page.into_entries() {
            let hash = self.keys.hash(entry.key());
            let half = if tag(hash, depth) >> 15 == 0 { &mut lower } else { &mut upper };
            half.push((hash, entry));
        }
        let span = 1 << (self.depth - depth);
        let first = prefix(hash, depth) * span;
        let upper_number = self.pages.len();
        let as_stored = u32::try_from(upper_number).expect("depth bounds the number of pages");
        self.directory[first + span / 2..first + span].fill(as_stored);
        self.pages[number] = self.filled(depth + 1, expires_from, lower);
        let upper = self.filled(depth + 1, expires_from, upper);
        self.pages.push(upper);
    }

    fn filled(&mut self, depth: u8, expires_from: u64, entries: Vec<(u64, Entry)>) -> Page {
        let mut page = Page::with_room(depth, entries.len());
        for (hash, entry) in entries {
            page.insert(entry, tag(hash, depth));
        }
        // What the page remembered may lie before what its entries say; keep the bound it had.
        page.expires_from = expires_from;
        self.page_bytes += page.bytes();
        page
    }

    /// Takes `key` out.
    pub(super) fn remove(&mut self, hash: u64, key: &[u8]) -> Option<Entry> {
        let number = self.page_of(hash);
        let page = &mut self.pages[number];
        let at = page.find(tag(hash, page.depth), |entry| entry.key() == key)?;
        let entry = page.remove(at)?;
        self.len -= 1;
        if page.is_sparse() {
            self.page_bytes -= page.bytes();
            page.shrink();
            self.page_bytes += page.bytes();
        }
        Some(entry)
    }

    /// Visits entries in order of their hashes, from hash `from` on. After a break the walk still
    /// visits what has the very same hash, then returns the hash to go on from; `None` is the end.
    pub(super) fn walk(
        &self,
        from: u64,
        mut visit: impl FnMut(&Entry) -> ControlFlow<()>,
    ) -> Option<u64> {
        let mut page_from = from;
        loop {
            let page = &self.pages[self.page_of(page_from)];
            let mut walk = Walk { keys: &self.keys, from, visit: &mut visit, stop_after: None };
            let first_tag = tag(page_from, page.depth);
            if let Some(last) = walk.page(page, first_tag) {
                return last.checked_add(1);
            }
            page_from = end_of_page(page_from, page.depth)?;
        }
    }

    /// Calls `found` for every entry expired at `now`, page by page from the one that covers
    /// `from`, until `visits_max` entries have been looked at (the last page is finished). Pages
    /// that hold nothing expired cost nothing. Returns where to go on; `None` is the end.
    pub(super) fn sweep(
        &mut self,
        from: u64,
        visits_max: usize,
        now: Timestamp,
        mut found: impl FnMut(&Entry),
    ) -> Option<u64> {
        let (mut from, mut visits) = (from, 0);
        while visits < visits_max {
            let number = self.page_of(from);
            let page = &mut self.pages[number];
            if page.expires_from <= now.0 {
                let mut earliest = NEVER;
                for (_, entry) in page.ordered(0) {
                    earliest = earliest.min(entry.expires_at().map_or(NEVER, |at| at.0));
                    if entry.is_expired(now) {
                        found(&entry);
                    }
                }
                visits += page.len();
                page.expires_from = earliest;
            }
            from = end_of_page(from, page.depth)?;
        }
        Some(from)
    }
}

/// A walk through one page.
struct Walk<'a, V> {
    keys: &'a HashKeys,
    from: u64,
    visit: &'a mut V,
    stop_after: Option<u64>,
}

impl<V: FnMut(&Entry) -> ControlFlow<()>> Walk<'_, V> {
    /// Returns the hash after which the visitor wants to stop, if it does.
    fn page(&mut self, page: &Page, first_tag: u16) -> Option<u64> {
        // Entries of one tag stand together, in any order; a group is almost always one entry.
        let mut group: Vec<(u64, EntryRef<'_>)> = Vec::new();
        let mut group_tag = first_tag;
        for (tag, entry) in page.ordered(first_tag) {
            if tag != group_tag {
                self.group(&mut group);
                if self.stop_after.is_some() {
                    return self.stop_after;
                }
                group_tag = tag;
            }
            group.push((self.keys.hash(entry.key()), entry));
        }
        self.group(&mut group);
        self.stop_after
    }

    fn group(&mut self, group: &mut Vec<(u64, EntryRef<'_>)>) {
        group.sort_unstable_by_key(|(hash, _)| *hash);
        for (hash, entry) in group.drain(..) {
            let past = self.stop_after.is_some_and(|last| hash != last);
            if hash < self.from || past {
                continue;
            }
            if (self.visit)(&entry).is_break() {
                self.stop_after = Some(hash);
            }
        }
    }
}

/// The leading `depth` bits of `hash`.
fn prefix(hash: u64, depth: u8) -> usize {
    hash.checked_shr(64 - u32::from(depth)).unwrap_or(0) as usize
}

/// The 16 bits of `hash` that follow its leading `depth`.
fn tag(hash: u64, depth: u8) -> u16 {
    (hash << depth >> 48) as u16
}

/// The first hash behind the page of `depth` that covers `hash`.
fn end_of_page(hash: u64, depth: u8) -> Option<u64> {
    let next = prefix(hash, depth) as u64 + 1;
    if depth == 0 || next >> depth != 0 { None } else { Some(next << (64 - u32::from(depth))) }
}

#[cfg(test)]
impl Index {
    pub(super) fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// Checks what the index promises, and returns how many entries it holds.
    pub(super) fn check(&self) -> usize {
        let mut entries = 0;
        let mut page_bytes = 0;
        for (number, page) in self.pages.iter().enumerate() {
            page_bytes += page.bytes();
            let mut in_page = 0;
            for (entry_tag, entry) in page.ordered(0) {
                let hash = self.keys.hash(entry.key());
                assert_eq!(self.page_of(hash), number, "an entry is in its hash's page");
                assert_eq!(tag(hash, page.depth), entry_tag);
                assert!(self.get(hash, entry.key()).is_some(), "an entry is found by its key");
                assert!(entry.expires_at().is_none_or(|at| at.0 >= page.expires_from));
                in_page += 1;
            }
            assert_eq!(in_page, page.len());
            entries += in_page;
        }
        assert_eq!(page_bytes, self.page_bytes);
        assert_eq!(entries, self.len);
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_where_the_next_prefix_begins() {
        assert_eq!(end_of_page(5, 0), None);
        assert_eq!(end_of_page(5, 1), Some(1 << 63));
        assert_eq!(end_of_page(1 << 63, 1), None);
        assert_eq!(end_of_page(0x4fff << 48, 4), Some(0x5 << 60));
    }

    #[test]
    fn ids_tell_keys_apart_and_repeat_for_a_seed() {
        assert_eq!(HashKeys::seeded(4).id(), HashKeys::seeded(4).id());
        assert_ne!(HashKeys::seeded(4).id(), HashKeys::seeded(5).id());
        assert_ne!(HashKeys::random().id(), HashKeys::random().id());
    }
}
