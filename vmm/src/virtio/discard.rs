//! Guest memory that goes back to the node until the guest touches it again.
#![expect(unsafe_code, reason = "madvise(2) drops pages by their address")]

use super::chain::Slice;
use std::io;

/// Of the host and of the guest.
const PAGE: usize = 4096;

/// Gives the node back what lies wholly within a piece of guest memory. It reads as zeroes, or as its file says, from then on.
pub fn drop_pages(slice: &Slice<'_>) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    let start = guard.as_ptr();
    let skipped = start.align_offset(PAGE);
    let length = slice.len().saturating_sub(skipped) / PAGE * PAGE;
    if length == 0 {
        return Ok(());
    }
    // SAFETY: the pages belong to the slice, which is guest memory and stays mapped while it is borrowed. Nothing of this
    // process depends on what guest memory holds: the guest may change it at any moment.
    let dropped = unsafe { libc::madvise(start.wrapping_add(skipped).cast(), length, libc::MADV_DONTNEED) };
    if dropped == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
