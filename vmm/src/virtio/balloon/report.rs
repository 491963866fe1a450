//! A report is a chain of writable buffers: the guest's free pages. They may be used again when it is answered.
#![expect(unsafe_code, reason = "madvise(2) drops pages by their address")]

use crate::jail::ThreadKind;
use crate::virtio::chain::{Chain, Memory, Slice};
use crate::virtio::service::Service;
use std::io;

/// Of the host and of the guest.
const PAGE: usize = 4096;

#[derive(Debug)]
pub struct Report;

impl Service for Report {
    const THREAD: ThreadKind = ThreadKind::Balloon;

    fn serve(&mut self, memory: &Memory, chain: &Chain) -> u32 {
        let free = &chain.writable;
        // What cannot be dropped stays, which costs memory alone.
        let visited = free.visit_while(memory, 0..free.len(), |slice| {
            drop_pages(&slice).inspect_err(|error| tracing::debug!(%error, "cannot take free pages back")).is_ok()
        });
        if let Err(error) = visited {
            tracing::debug!(%error, "a report of free pages makes no sense");
        }
        0
    }
}

/// Gives the node back what lies wholly within a piece of guest memory. It reads as zeroes, or as its file says, from then on.
fn drop_pages(slice: &Slice<'_>) -> io::Result<()> {
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
