//! One entry, one allocation: header, key, content type and value.
//!
//! Invariant: key, content type and value never change once the entry exists, so a handle may be
//! read on any thread, long after the table let go of the entry. What does change (version,
//! expiry, queue links) is read and written by the table alone, under its caller's lock; handles
//! do not show it, so nobody can see half a change.
//!
//! The store's `unsafe` code is here, in [`super::queues`], and where the table keeps the promises
//! that the queues ask for.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, offset_of};
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use bytes::Bytes;

use super::allocator::usable_size;
use crate::entry::{CONTENT_TYPE_BYTES_MAX, KEY_BYTES_CEILING, Timestamp, Version};

/// Stands for "never" in the header's expiry.
const NEVER: u64 = u64::MAX;

/// Reads are counted up to this (two bits, as in S3-FIFO).
const READS_MAX: u8 = 3;
const READS_MASK: u8 = 0b0011;
const IN_MAIN: u8 = 0b0100;
const ON_TRIAL: u8 = 0b1000;

/// Handles to one entry beyond this are a leak; the process stops before the count wraps.
const HANDLES_MAX: u32 = u32::MAX / 2;

/// Bits of a pointer that hold the address; the 16 above are free for a [`Slot`]'s tag.
const ADDRESS_BITS: u32 = 48;
const ADDRESS_MASK: usize = (1 << ADDRESS_BITS) - 1;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the store keeps 16-bit tags in the upper bits of 64-bit pointers");

/// What stands before the payload. Fields are ordered so that nothing is lost to alignment: the
/// payload begins right behind `mark`, inside the padding that the type's alignment adds.
#[repr(C)]
struct Header {
    older: AtomicPtr<Header>,
    newer: AtomicPtr<Header>,
    version: AtomicU64,
    expires_at: AtomicU64,
    handles: AtomicU32,
    value_len: u32,
    key_len: u16,
    content_type_len: u8,
    mark: AtomicU8,
}

const PAYLOAD_OFFSET: usize = offset_of!(Header, mark) + 1;
const _: () = assert!(PAYLOAD_OFFSET == 44, "the header has grown");

fn layout_of(payload_len: usize) -> Layout {
    let size = (PAYLOAD_OFFSET + payload_len).max(size_of::<Header>());
    Layout::from_size_align(size, align_of::<Header>()).expect("an entry is far below isize::MAX")
}

/// Bytes of memory that an entry of these lengths occupies, the table's index apart.
pub(super) fn size_of_entry(key_len: usize, content_type_len: usize, value_len: usize) -> u64 {
    usable_size(layout_of(key_len + content_type_len + value_len).size()) as u64
}

/// A handle to an entry's key, content type and value. Cheap to clone; the memory stays until the
/// last handle, and every [`Bytes`] made from one, is gone.
pub struct Entry(NonNull<Header>);

// SAFETY: a handle reads fields that never change after construction, and otherwise only atomics;
// the count of handles makes sure that exactly one thread frees the allocation.
unsafe impl Send for Entry {}
// SAFETY: as above; every method of `&Entry` is a read of constant fields or an atomic operation.
unsafe impl Sync for Entry {}

impl Entry {
    /// A new entry, not yet in any queue.
    ///
    /// # Panics
    /// When a length is beyond its bound ([`KEY_BYTES_CEILING`], [`CONTENT_TYPE_BYTES_MAX`],
    /// 4 GiB): such entries are refused long before.
    pub(super) fn new(
        key: &[u8],
        content_type: &[u8],
        value: &[u8],
        version: Version,
        expires_at: Option<Timestamp>,
    ) -> Self {
        assert!(key.len() <= KEY_BYTES_CEILING, "key beyond its ceiling");
        assert!(content_type.len() <= CONTENT_TYPE_BYTES_MAX, "content type beyond its bound");
        let header = Header {
            older: AtomicPtr::new(ptr::null_mut()),
            newer: AtomicPtr::new(ptr::null_mut()),
            version: AtomicU64::new(version.0),
            expires_at: AtomicU64::new(expires_at.map_or(NEVER, |at| at.0)),
            handles: AtomicU32::new(1),
            value_len: u32::try_from(value.len()).expect("value below 4 GiB"),
            key_len: u16::try_from(key.len()).expect("checked above"),
            content_type_len: u8::try_from(content_type.len()).expect("checked above"),
            mark: AtomicU8::new(0),
        };
        let layout = layout_of(key.len() + content_type.len() + value.len());
        // SAFETY: the layout's size is at least the header's, never zero.
        let memory = unsafe { alloc(layout) };
        let Some(at) = NonNull::new(memory.cast::<Header>()) else { handle_alloc_error(layout) };
        assert!(at.addr().get() & !ADDRESS_MASK == 0, "address above 48 bits");
        // SAFETY: the allocation is fresh, aligned for a header and at least as large; the header
        // is written first, then the payload, over what is the header's padding. The layout has
        // room for the three parts one behind the other.
        unsafe {
            at.write(header);
            let mut to = memory.add(PAYLOAD_OFFSET);
            for part in [key, content_type, value] {
                ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
                to = to.add(part.len());
            }
        }
        Self(at)
    }

    fn header(&self) -> &Header {
        // SAFETY: the handle keeps the allocation alive; the header was written when it was made
        // and its changing fields are atomics.
        unsafe { self.0.as_ref() }
    }

    fn payload(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: callers stay within the lengths that the allocation was made for; the payload
        // was written then and never changes; the handle keeps it alive.
        unsafe {
            let start = self.0.as_ptr().cast::<u8>().add(PAYLOAD_OFFSET + offset);
            std::slice::from_raw_parts(start, len)
        }
    }

    fn payload_len(&self) -> usize {
        let header = self.header();
        usize::from(header.key_len)
            + usize::from(header.content_type_len)
            + header.value_len as usize
    }

    /// The key's bytes.
    pub fn key(&self) -> &[u8] {
        self.payload(0, usize::from(self.header().key_len))
    }

    /// The content type as the client sent it; empty if unset.
    pub fn content_type(&self) -> &[u8] {
        let header = self.header();
        self.payload(usize::from(header.key_len), usize::from(header.content_type_len))
    }

    /// The value's bytes.
    pub fn value_bytes(&self) -> &[u8] {
        let header = self.header();
        let offset = usize::from(header.key_len) + usize::from(header.content_type_len);
        self.payload(offset, header.value_len as usize)
    }

    /// The value, sharing the entry's memory.
    pub fn value(&self) -> Bytes {
        struct Value(Entry);
        impl AsRef<[u8]> for Value {
            fn as_ref(&self) -> &[u8] {
                self.0.value_bytes()
            }
        }
        Bytes::from_owner(Value(self.clone()))
    }

    /// How many handles there are, this one included. Others may come and go at any time, but one
    /// that is the only one stays so until it is cloned.
    pub fn handles(&self) -> u32 {
        self.header().handles.load(Ordering::Relaxed)
    }

    /// Bytes of memory that the entry occupies.
    pub fn size(&self) -> u64 {
        usable_size(layout_of(self.payload_len()).size()) as u64
    }

    /// The present version. For the table only: it may change by the next touch.
    pub(super) fn version(&self) -> Version {
        Version(self.header().version.load(Ordering::Relaxed))
    }

    /// The present expiry. For the table only: it may change by the next touch.
    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        let at = self.header().expires_at.load(Ordering::Relaxed);
        (at != NEVER).then_some(Timestamp(at))
    }

    /// Whether the entry has expired at `now`.
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.header().expires_at.load(Ordering::Relaxed) <= now.0
    }

    /// Sets version and expiry. For the table only, under its caller's exclusive lock.
    pub(super) fn stamp(&self, version: Version, expires_at: Option<Timestamp>) {
        self.header().version.store(version.0, Ordering::Relaxed);
        self.header().expires_at.store(expires_at.map_or(NEVER, |at| at.0), Ordering::Relaxed);
    }

    /// Reads counted since the entry came, or was last passed over, at most [`READS_MAX`].
    pub(super) fn reads(&self) -> u8 {
        self.header().mark.load(Ordering::Relaxed) & READS_MASK
    }

    /// Counts a read. Two at once may count as one: it is a hint.
    pub(super) fn count_read(&self) {
        let mark = self.header().mark.load(Ordering::Relaxed);
        if mark & READS_MASK < READS_MAX {
            self.header().mark.store(mark + 1, Ordering::Relaxed);
        }
    }

    /// Whether the entry is in the main queue (else the small one).
    pub(super) fn is_in_main(&self) -> bool {
        self.header().mark.load(Ordering::Relaxed) & IN_MAIN != 0
    }

    /// Sets the queue and the count of reads. For the table only, under exclusive lock.
    pub(super) fn set_mark(&self, in_main: bool, reads: u8) {
        let queue = if in_main { IN_MAIN } else { 0 };
        self.header().mark.store(queue | reads.min(READS_MAX), Ordering::Relaxed);
    }

    /// Takes over queue, reads and trial. For the table only, under exclusive lock.
    pub(super) fn copy_mark(&self, old: &Self) {
        self.header().mark.store(old.header().mark.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Puts the entry on trial. For the table only, under exclusive lock.
    pub(super) fn begin_trial(&self) {
        self.header().mark.fetch_or(ON_TRIAL, Ordering::Relaxed);
    }

    /// Ends the entry's trial; whether it was on one. For the table only, under exclusive lock.
    pub(super) fn end_trial(&self) -> bool {
        self.header().mark.fetch_and(!ON_TRIAL, Ordering::Relaxed) & ON_TRIAL != 0
    }

    /// Where the entry is, for the queues.
    pub(super) fn link(&self) -> Link {
        Link(self.0.as_ptr())
    }

    /// The entry before this one in its queue.
    pub(super) fn older(&self) -> Link {
        Link(self.header().older.load(Ordering::Relaxed))
    }

    /// The entry behind this one in its queue.
    pub(super) fn newer(&self) -> Link {
        Link(self.header().newer.load(Ordering::Relaxed))
    }

    pub(super) fn set_older(&self, link: Link) {
        self.header().older.store(link.0, Ordering::Relaxed);
    }

    pub(super) fn set_newer(&self, link: Link) {
        self.header().newer.store(link.0, Ordering::Relaxed);
    }
}

impl Clone for Entry {
    fn clone(&self) -> Self {
        let before = self.header().handles.fetch_add(1, Ordering::Relaxed);
        if before > HANDLES_MAX {
            std::process::abort();
        }
        Self(self.0)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.header().handles.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // Every other handle's reads happened before its release above.
        fence(Ordering::Acquire);
        let layout = layout_of(self.payload_len());
        // SAFETY: this was the last handle; the allocation was made with the same layout, which
        // follows from lengths that never change. The header has nothing to drop.
        unsafe { dealloc(self.0.as_ptr().cast(), layout) }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &format_args!("\"{}\"", self.key().escape_ascii()))
            .field("value_len", &self.value_bytes().len())
            .finish_non_exhaustive()
    }
}

/// An entry borrowed from whoever holds a handle; costs nothing.
pub(super) struct EntryRef<'a> {
    entry: ManuallyDrop<Entry>,
    holder: PhantomData<&'a Entry>,
}

impl EntryRef<'_> {
    /// # Safety
    /// `at` is an entry's header, and someone holds a handle to it all through the lifetime.
    unsafe fn new(at: NonNull<Header>) -> Self {
        Self { entry: ManuallyDrop::new(Entry(at)), holder: PhantomData }
    }
}

impl Deref for EntryRef<'_> {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// An entry's place in a queue: its address, without a claim on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Link(*mut Header);

// SAFETY: an address; using it is what `entry` puts under a promise.
unsafe impl Send for Link {}
// SAFETY: as above.
unsafe impl Sync for Link {}

impl Link {
    pub(super) const NONE: Self = Self(ptr::null_mut());

    /// The entry there, if the link leads anywhere.
    ///
    /// # Safety
    /// Someone holds a handle to the entry all through `'a`.
    pub(super) unsafe fn entry<'a>(self) -> Option<EntryRef<'a>> {
        // SAFETY: a link that is not null came from `Entry::link`; the caller keeps the entry.
        NonNull::new(self.0).map(|at| unsafe { EntryRef::new(at) })
    }
}

/// A slot of a page: empty, or a handle to an entry with a 16-bit tag, in eight bytes.
///
/// The tag lives in the pointer's upper 16 bits, which addresses of a process leave unused.
pub(super) struct Slot(*mut Header);

// SAFETY: a slot is a handle (or nothing), and a handle may go to and be read by any thread.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    pub(super) const EMPTY: Self = Self(ptr::null_mut());

    pub(super) fn new(entry: Entry, tag: u16) -> Self {
        let at = ManuallyDrop::new(entry).0.as_ptr();
        Self(at.map_addr(|address| address | usize::from(tag) << ADDRESS_BITS))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_null()
    }

    /// The tag; 0 for an empty slot.
    pub(super) fn tag(&self) -> u16 {
        (self.0.addr() >> ADDRESS_BITS) as u16
    }

    fn header(&self) -> Option<NonNull<Header>> {
        NonNull::new(self.0.map_addr(|address| address & ADDRESS_MASK))
    }

    pub(super) fn entry(&self) -> Option<EntryRef<'_>> {
        // SAFETY: the slot holds a handle for as long as it is borrowed.
        self.header().map(|at| unsafe { EntryRef::new(at) })
    }

    /// Empties the slot and gives its handle away.
    pub(super) fn take(&mut self) -> Option<Entry> {
        let at = self.header();
        self.0 = ptr::null_mut();
        at.map(Entry)
    }

    /// Puts `entry` in the place of the one held, under the same tag.
    pub(super) fn replace(&mut self, entry: Entry) -> Option<Entry> {
        let tag = self.tag();
        let before = self.take();
        *self = Self::new(entry, tag);
        before
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &[u8], content_type: &[u8], value: &[u8]) -> Entry {
        Entry::new(key, content_type, value, Version(7), Some(Timestamp(9)))
    }

    #[test]
    fn the_benchmark_entry_fills_the_160_byte_class() {
        assert_eq!(size_of_entry(16, 0, 100), 160);
        assert_eq!(entry(&[1; 16], b"", &[2; 100]).size(), 160);
        assert_eq!(size_of_entry(1, 0, 0), 48);
    }

    #[test]
    fn the_three_parts_come_back_as_they_went_in() {
        let e = entry(b"k", b"text/plain", b"value");
        assert_eq!(e.key(), b"k");
        assert_eq!(e.content_type(), b"text/plain");
        assert_eq!(e.value_bytes(), b"value");
        let bare = entry(b"k", b"", b"");
        assert_eq!((bare.content_type(), bare.value_bytes()), (&b""[..], &b""[..]));
    }

    #[test]
    fn a_value_outlives_the_entry_it_came_from_also_on_another_thread() {
        let e = entry(b"k", b"", b"still here");
        let value = e.value();
        drop(e);
        let read = std::thread::spawn(move || value.to_vec()).join().expect("thread");
        assert_eq!(read, b"still here");
    }

    #[test]
    fn a_slot_keeps_tag_and_entry_apart() {
        let mut slot = Slot::new(entry(b"a", b"", b"1"), 0xffff);
        assert_eq!(slot.tag(), 0xffff);
        assert_eq!(slot.entry().expect("held").key(), b"a");
        let before = slot.replace(entry(b"a", b"", b"2")).expect("held");
        assert_eq!(before.value_bytes(), b"1");
        assert_eq!(slot.tag(), 0xffff);
        assert_eq!(slot.take().expect("held").value_bytes(), b"2");
        assert!(slot.is_empty() && slot.entry().is_none() && slot.tag() == 0);
    }

    #[test]
    fn reads_are_counted_up_to_three_and_leave_the_queue_mark_alone() {
        let e = entry(b"a", b"", b"");
        e.set_mark(true, 0);
        e.begin_trial();
        for _ in 0..9 {
            e.count_read();
        }
        assert_eq!((e.reads(), e.is_in_main()), (3, true));
        assert!(e.end_trial() && !e.end_trial());
        assert_eq!((e.reads(), e.is_in_main()), (3, true));
    }
}
