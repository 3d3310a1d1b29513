//! How the process shares its heap among threads.
//!
//! It knows the C library's allocator only. Invariant: called before a second thread starts.

/// Lets all threads allocate from one heap, unless `MALLOC_ARENA_MAX` says otherwise.
///
/// By itself the GNU C library gives threads heaps of their own. What one thread frees is then of no use to another, and
/// resident memory keeps growing with the number of assets although nothing is held. One heap costs some speed, because
/// threads wait for each other at it; README's benchmarks tell how much. Other C libraries are left as they are.
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
