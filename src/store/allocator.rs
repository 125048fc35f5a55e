//! What memory really costs: the allocator's size classes.
//!
//! Whatever is asked of jemalloc is rounded up to a size class; that class is what the store
//! charges. This module only asks; it allocates nothing.

/// The bytes that an allocation of `bytes` occupies; 0 for none.
pub(super) fn usable_size(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    // SAFETY: `nallocx` reads its arguments only; a size above zero and no flags is always valid.
    unsafe { tikv_jemalloc_sys::nallocx(bytes, 0) }
}

/// The bytes that a vector of `capacity` elements of `T` occupies.
pub(super) fn usable_size_of_array<T>(capacity: usize) -> u64 {
    usable_size(capacity * size_of::<T>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_charged_by_the_size_class_it_occupies() {
        assert_eq!(usable_size(0), 0);
        assert_eq!(usable_size(160), 160);
        assert_eq!(usable_size(161), 192);
        let live = Vec::<u8>::with_capacity(161);
        // SAFETY: the pointer is to a live allocation of the global allocator, jemalloc.
        let actual = unsafe { tikv_jemallocator::usable_size(live.as_ptr()) };
        assert_eq!(actual, 192, "jemalloc must be the global allocator");
    }
}
