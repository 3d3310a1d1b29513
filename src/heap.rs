//! What the process asks of the memory that the system gives it: one heap for all threads, large pages where much is read.
//!
//! It knows the C library and the kernel only. Invariant: whatever is asked, memory holds what it held.

#[cfg(target_os = "linux")]
use std::mem::MaybeUninit;

/// Lets all threads allocate from one heap, unless `MALLOC_ARENA_MAX` says otherwise.
///
/// By itself the GNU C library gives threads heaps of their own. What one thread frees is then of no use to another, and
/// resident memory keeps growing with the number of assets although nothing is held. One heap costs some speed, because
/// threads wait for each other at it; README's benchmarks tell how much. Other C libraries are left as they are. To be
/// called before a second thread starts.
pub fn share() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        one_arena();
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn one_arena() {
    // SAFETY: `mallopt` takes two numbers and sets one of the allocator's; no other thread runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Asks for large pages below what will be pushed onto `memory`, up to its capacity: who streams through much memory
/// then looks up few addresses. Where the system does not give them, nothing changes.
pub fn prefer_large_pages<T>(memory: &mut Vec<T>) {
    #[cfg(target_os = "linux")]
    advise(memory.spare_capacity_mut());
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn advise<T>(memory: &mut [MaybeUninit<T>]) {
    /// Of all systems that have several sizes, the commonest.
    const LARGE: usize = 2 << 20;
    let range = memory.as_ptr_range();
    let first = range.start.addr().next_multiple_of(LARGE);
    let length = range.end.addr().saturating_sub(first) / LARGE * LARGE;
    if length > 0 {
        let start = range.start.with_addr(first).cast_mut().cast();
        // SAFETY: the range is part of one allocation, and the advice changes nothing that can be read.
        unsafe { libc::madvise(start, length, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_asked_large_pages_for_is_memory_as_any() {
        for count in [0, 5, 3 << 20] {
            let mut memory: Vec<u64> = Vec::with_capacity(count);
            prefer_large_pages(&mut memory);
            memory.extend(0..count as u64);
            assert!(memory.iter().copied().eq(0..count as u64));
        }
    }
}
