//! What is held for clients, counted and bounded: for each connection, and for all of a port.
//!
//! Bodies on their way in and out, heads, buffers, the state of streams: each is a [`Charge`] of its
//! connection's [`Watch`] for as long as it is there. Values on their way out are charged once no
//! table has them any more: until then they are counted there, and a thousand may read the same one.
//!
//! Invariant: a connection that passes its own bound is ended. When all pass theirs together, those
//! are ended that hold most for longest ([`Registry::tick`]), and no body grows meanwhile.
//!
//! [`Registry::tick`]: super::watch::Registry::tick

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::watch::Watch;
use crate::store::Entry;

/// Values below this are charged like any other body: to keep account of each would cost more.
pub(super) const VALUE_BYTES_MIN: usize = 16 << 10;

/// Bytes of bodies that arrive between two looks at which values have been replaced.
const STIRRED_BYTES_MAX: usize = 8 << 20;

/// What a port may hold for its clients.
#[derive(Debug)]
pub(super) struct Budget {
    held: AtomicUsize,
    bytes_max: AtomicUsize,
    connection_bytes_max: AtomicUsize,
    /// Values on their way out, of all connections.
    values: AtomicUsize,
    stirred: AtomicUsize,
    /// Somebody ought to look who holds too much.
    pub(super) look: Notify,
}

impl Budget {
    /// So many bytes for all, and for one connection.
    pub(super) fn new(bytes_max: usize, connection_bytes_max: usize) -> Self {
        Self {
            held: AtomicUsize::new(0),
            bytes_max: AtomicUsize::new(bytes_max),
            connection_bytes_max: AtomicUsize::new(connection_bytes_max),
            values: AtomicUsize::new(0),
            stirred: AtomicUsize::new(0),
            look: Notify::new(),
        }
    }

    /// Puts new bounds in force.
    pub(super) fn configure(&self, bytes_max: usize, connection_bytes_max: usize) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
        self.connection_bytes_max.store(connection_bytes_max, Ordering::Relaxed);
        self.look.notify_one();
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max.load(Ordering::Relaxed)
    }

    pub(super) fn connection_bytes_max(&self) -> usize {
        self.connection_bytes_max.load(Ordering::Relaxed)
    }

    /// Bytes charged, values that no table has any more apart.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether any value may be on its way out.
    pub(super) fn has_values(&self) -> bool {
        self.values.load(Ordering::Relaxed) > 0
    }

    /// Whether so much more may be taken in. Somewhat beyond the bound, so that there is time to end
    /// those who hold most.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let max = self.bytes_max();
        self.held().saturating_add(bytes) <= max.saturating_add(max / 4)
    }

    fn add(&self, bytes: usize) {
        if self.held.fetch_add(bytes, Ordering::Relaxed) + bytes > self.bytes_max() {
            self.look.notify_one();
        }
    }

    fn take(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that values arrived, which may have replaced others.
    pub(super) fn stirs(&self, bytes: usize) {
        if self.stirred.fetch_add(bytes, Ordering::Relaxed) + bytes > STIRRED_BYTES_MAX
            && self.has_values()
        {
            self.stirred.store(0, Ordering::Relaxed);
            self.look.notify_one();
        }
    }
}

/// What one connection holds.
#[derive(Debug)]
pub(super) struct Held {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
    /// What the last answer has, which is charged once the peer does not take it.
    answer: AtomicUsize,
    /// What was charged for want of a peer that takes it.
    untaken: AtomicUsize,
    /// Bytes that may come ahead of who reads them, those beyond the connection's window included.
    ahead: AtomicUsize,
    values: Mutex<Values>,
}

#[derive(Debug, Default)]
struct Values {
    next: u64,
    entries: HashMap<u64, Entry>,
}

impl Held {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        let zero = || AtomicUsize::new(0);
        Self {
            budget,
            bytes: zero(),
            answer: zero(),
            untaken: zero(),
            ahead: zero(),
            values: Mutex::default(),
        }
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Bytes charged, values that no table has any more apart.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Charges so many more bytes; how many it had before.
    pub(super) fn add(&self, bytes: usize) -> usize {
        self.budget.add(bytes);
        self.bytes.fetch_add(bytes, Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) {
        self.budget.take(bytes);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes how large the answer is that is about to be sent.
    pub(super) fn answers(&self, bytes: usize) {
        self.answer.store(bytes, Ordering::Relaxed);
    }

    /// How large the answer is that is being sent.
    pub(super) fn answer(&self) -> usize {
        self.answer.load(Ordering::Relaxed)
    }

    /// Notes bytes, charged already, that go once the peer takes what it was sent.
    pub(super) fn leaves_untaken(&self, bytes: usize) {
        self.untaken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The peer takes bytes again, or is gone.
    pub(super) fn is_taken(&self) {
        if self.untaken.load(Ordering::Relaxed) > 0 {
            self.take(self.untaken.swap(0, Ordering::Relaxed));
        }
    }

    /// Calls `see` with each large value on its way out.
    pub(super) fn each_value(&self, mut see: impl FnMut(&Entry)) {
        self.values.lock().entries.values().for_each(&mut see);
    }
}

/// Bytes that are held for a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    watch: Arc<Watch>,
    bytes: usize,
}

/// There is no room for so much more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Charge {
    pub(super) fn new(watch: &Arc<Watch>, bytes: usize) -> Self {
        let mut charge = Self { watch: Arc::clone(watch), bytes: 0 };
        charge.set(bytes);
        charge
    }

    /// Makes it so many bytes. What is there anyhow is charged, room or not.
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.watch.holds(bytes - self.bytes);
        } else if bytes < self.bytes {
            self.watch.held().take(self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// Makes it so many bytes if there is room for them.
    ///
    /// # Errors
    /// [`NoRoom`], and nothing is changed: what needs them is refused.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let held = self.watch.held();
        let more = bytes.saturating_sub(self.bytes);
        let fits = held.bytes().saturating_add(more) <= held.budget.connection_bytes_max();
        if more > 0 && !(fits && held.budget.has_room(more)) {
            held.budget.look.notify_one();
            return Err(NoRoom);
        }
        self.set(bytes);
        Ok(())
    }

    /// The same bytes of memory, in charge until the last of them is gone.
    pub(super) fn around(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        struct Charged<T>(T, #[expect(dead_code, reason = "held")] Charge);
        impl<T: AsRef<[u8]>> AsRef<[u8]> for Charged<T> {
            fn as_ref(&self) -> &[u8] {
                self.0.as_ref()
            }
        }
        Bytes::from_owner(Charged(bytes, self))
    }

    /// Keeps the bytes charged until the peer takes what it was sent, if it does not now.
    pub(super) fn settle(mut self) {
        if self.watch.is_write_blocked() {
            self.watch.held().leaves_untaken(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.watch.held().take(self.bytes);
    }
}

/// What may come of a body ahead of who reads it, until it is dropped. All of a connection together
/// are charged for its window at most.
#[derive(Debug)]
pub(super) struct Ahead {
    watch: Arc<Watch>,
    bytes: usize,
    window: usize,
}

impl Ahead {
    pub(super) fn new(watch: &Arc<Watch>, bytes: usize, window: usize) -> Self {
        let before = watch.held().ahead.fetch_add(bytes, Ordering::Relaxed);
        watch.holds((before + bytes).min(window) - before.min(window));
        Self { watch: Arc::clone(watch), bytes, window }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let held = self.watch.held();
        let before = held.ahead.fetch_sub(self.bytes, Ordering::Relaxed);
        held.take(before.min(self.window) - (before - self.bytes).min(self.window));
    }
}

/// A large value on its way out, until it is dropped.
#[derive(Debug)]
pub(super) struct Outgoing {
    watch: Arc<Watch>,
    number: u64,
}

/// Handles to the entry that stand for one [`Outgoing`]: the account's own, and the one it is for.
const HANDLES_EACH: usize = 2;

impl Outgoing {
    /// Keeps account of a handle to an entry, which must go with what is returned; nothing where its
    /// value is small.
    pub(super) fn of(watch: &Arc<Watch>, entry: &Entry) -> Option<Self> {
        if entry.value_bytes().len() < VALUE_BYTES_MIN {
            return None;
        }
        let held = watch.held();
        held.budget.values.fetch_add(1, Ordering::Relaxed);
        let mut values = held.values.lock();
        let number = values.next;
        values.next += 1;
        values.entries.insert(number, entry.clone());
        Some(Self { watch: Arc::clone(watch), number })
    }

    /// An entry's value as a body, sharing its memory. Whether that is charged by its length: else
    /// it is only while no table has it any more.
    pub(super) fn value(watch: &Arc<Watch>, entry: &Entry) -> (Bytes, bool) {
        struct Value(Entry, #[expect(dead_code, reason = "held")] Outgoing);
        impl AsRef<[u8]> for Value {
            fn as_ref(&self) -> &[u8] {
                self.0.value_bytes()
            }
        }
        match Self::of(watch, entry) {
            None => (entry.value(), true),
            Some(outgoing) => (Bytes::from_owner(Value(entry.clone(), outgoing)), false),
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let held = self.watch.held();
        let entry = held.values.lock().entries.remove(&self.number);
        held.budget.values.fetch_sub(1, Ordering::Relaxed);
        drop(entry);
    }
}

/// Which of the values on their way out no table has any more.
#[derive(Debug, Default)]
pub(super) struct Detached {
    /// By address: accounts, handles, bytes.
    entries: HashMap<usize, (usize, usize, usize)>,
}

impl Detached {
    /// Among those of these connections.
    pub(super) fn among<'a>(held: impl Iterator<Item = &'a Held>) -> Self {
        let mut entries = HashMap::new();
        held.for_each(|held| {
            held.each_value(|entry| {
                let (accounts, handles, bytes) = entries.entry(address(entry)).or_insert((0, 0, 0));
                *accounts += 1;
                (*handles, *bytes) = (entry.handles() as usize, entry.size() as usize);
            });
        });
        entries.retain(|_, (accounts, handles, _)| *handles <= HANDLES_EACH * *accounts);
        Self { entries }
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        self.entries.values().map(|(_, _, bytes)| bytes).sum()
    }

    /// Bytes of those that a connection holds.
    pub(super) fn of(&self, held: &Held) -> usize {
        if self.entries.is_empty() {
            return 0;
        }
        let mut own = HashSet::new();
        held.each_value(|entry| {
            own.insert(address(entry));
        });
        own.iter().filter_map(|at| self.entries.get(at)).map(|(_, _, bytes)| bytes).sum()
    }
}

fn address(entry: &Entry) -> usize {
    entry.value_bytes().as_ptr().addr()
}
