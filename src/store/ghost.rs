//! What is remembered of keys that are gone: that they left, and how.
//!
//! A direct-mapped array of 16-bit slots: 14 bits of the key's hash and 2 of the reason. It serves
//! eviction (a key evicted not long ago that comes back enters the main queue) and the reason of a
//! miss. It is best effort: a later key may take the slot, and one key in 16 thousand is mistaken
//! for another. It costs two to four bytes an entry, and nothing before the first departure.

use super::allocator::usable_size_of_array;
use crate::entry::Departure;

const SLOTS_MIN: usize = 64;
const SLOTS_MAX: usize = 1 << 22;
const FINGERPRINT_BITS: u32 = 14;
const FINGERPRINT_MASK: u16 = (1 << FINGERPRINT_BITS) - 1;
const EMPTY: u16 = 0;

/// The departed keys of one table.
#[derive(Default)]
pub(super) struct Ghost {
    /// A power of two of them, or none.
    slots: Box<[u16]>,
}

impl Ghost {
    /// Bytes of memory that the slots occupy.
    pub(super) fn bytes(&self) -> u64 {
        usable_size_of_array::<u16>(self.slots.len())
    }

    fn at(&self, hash: u64) -> usize {
        // Neither the bits of the fingerprint nor, mostly, the leading ones that order the index.
        let middle = (hash >> FINGERPRINT_BITS) as u32;
        ((u64::from(middle) * self.slots.len() as u64) >> u32::BITS) as usize
    }

    /// How the key of this hash left, if it is remembered.
    pub(super) fn departure(&self, hash: u64) -> Option<Departure> {
        let slot = *self.slots.get(self.at(hash))?;
        if slot & FINGERPRINT_MASK != hash as u16 & FINGERPRINT_MASK {
            return None;
        }
        match slot >> FINGERPRINT_BITS {
            1 => Some(Departure::Deleted),
            2 => Some(Departure::Expired),
            3 => Some(Departure::Evicted),
            _ => None,
        }
    }

    /// Notes that the key of this hash left a table that now holds `len` entries.
    pub(super) fn note(&mut self, hash: u64, departure: Departure, len: usize) {
        self.fit(len);
        let reason = match departure {
            Departure::Deleted => 1,
            Departure::Expired => 2,
            Departure::Evicted => 3,
        };
        let at = self.at(hash);
        self.slots[at] = reason << FINGERPRINT_BITS | hash as u16 & FINGERPRINT_MASK;
    }

    /// Forgets the key of this hash: it is back.
    pub(super) fn forget(&mut self, hash: u64) {
        if self.departure(hash).is_some() {
            let at = self.at(hash);
            self.slots[at] = EMPTY;
        }
    }

    /// Keeps the number of slots near the number of entries. Neighbours share a slot's memory as
    /// the array grows, and one of them is forgotten as it shrinks.
    fn fit(&mut self, len: usize) {
        let wanted = len.next_power_of_two().clamp(SLOTS_MIN, SLOTS_MAX);
        if self.slots.is_empty() {
            self.slots = vec![EMPTY; wanted].into_boxed_slice();
        }
        while self.slots.len() < wanted {
            self.slots = self.slots.iter().flat_map(|&slot| [slot, slot]).collect();
        }
        // Far above only: a table that hovers about a power of two must not resize all the time.
        while self.slots.len() > wanted * 4 {
            let one_of = |pair: &[u16]| if pair[0] == EMPTY { pair[1] } else { pair[0] };
            self.slots = self.slots.chunks(2).map(one_of).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).wrapping_mul(0xff51_afd7_ed55_8ccd)
    }

    #[test]
    fn the_latest_departure_is_remembered_until_the_key_is_back() {
        let mut ghost = Ghost::default();
        assert_eq!(ghost.departure(hash(1)), None);
        assert_eq!(ghost.bytes(), 0);
        ghost.note(hash(1), Departure::Deleted, 10);
        ghost.note(hash(1), Departure::Evicted, 10);
        assert_eq!(ghost.departure(hash(1)), Some(Departure::Evicted));
        ghost.forget(hash(1));
        assert_eq!(ghost.departure(hash(1)), None);
    }

    #[test]
    fn growing_and_shrinking_keep_what_was_noted() {
        let mut ghost = Ghost::default();
        ghost.note(hash(1), Departure::Expired, 10);
        ghost.note(hash(2), Departure::Deleted, 100_000);
        assert_eq!(ghost.bytes(), 262_144);
        assert_eq!(ghost.departure(hash(1)), Some(Departure::Expired));
        ghost.note(hash(3), Departure::Deleted, 1_000);
        assert_eq!(ghost.bytes(), 8_192);
        assert_eq!(ghost.departure(hash(1)), Some(Departure::Expired));
        assert_eq!(ghost.departure(hash(2)), Some(Departure::Deleted));
    }

    #[test]
    fn most_of_as_many_departures_as_entries_are_remembered_and_few_are_mistaken() {
        let mut ghost = Ghost::default();
        (0..10_000).for_each(|n| ghost.note(hash(n), Departure::Evicted, 10_000));
        let known = (0..10_000).filter(|&n| ghost.departure(hash(n)).is_some()).count();
        let mistaken = (10_000..20_000).filter(|&n| ghost.departure(hash(n)).is_some()).count();
        assert!(known > 6_000 && mistaken < 20, "{known} known, {mistaken} mistaken");
    }
}
