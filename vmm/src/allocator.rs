//! The C library's allocator, made fit for confined threads.
#![expect(unsafe_code, reason = "the C library's settings")]

/// Keeps all threads on one heap. When the heap of a single thread shrinks, the C library opens a file below `/proc`,
/// which ends a confined process. One heap is also less memory. To be called before the first thread starts.
pub fn use_one_heap() {
    // SAFETY: sets a number in the allocator; no other thread runs yet.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        tracing::warn!("the C library's allocator has no single heap");
    }
}
