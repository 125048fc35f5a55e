//! What memory really costs: the allocator's size classes.
//!
//! Whatever is asked of jemalloc is rounded up to a size class; that class is what the store
//! charges. This module only asks and sets; it allocates nothing.

/// jemalloc's settings, which it looks up under this name as the process starts. Freed pages go
/// back to the system within about a second, on jemalloc's own thread: else an idle node would
/// keep what it freed, a tenth more than it is charged for after a load. A thread looks through its
/// own cache after each megabyte, not after each 64 KiB, which are seven requests' read buffers. The
/// environment's `_RJEM_MALLOC_CONF` overrides them.
// SAFETY: no other symbol has this name but jemalloc's own weak one, which is made to be replaced;
// it is a pointer to a string that ends in zero.
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
static SETTINGS: &[u8; 89] =
    b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_gc_incr_bytes:1048576\0";

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
    fn freed_pages_go_back_within_a_second() {
        let (mut decay_ms, mut len) = (0_isize, size_of::<isize>());
        // SAFETY: the option is a signed size; `decay_ms` and `len` have room for it.
        let error = unsafe {
            tikv_jemalloc_sys::mallctl(
                c"opt.dirty_decay_ms".as_ptr(),
                (&raw mut decay_ms).cast(),
                &raw mut len,
                std::ptr::null_mut(),
                0,
            )
        };
        assert_eq!((error, decay_ms), (0, 1000));
    }

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
