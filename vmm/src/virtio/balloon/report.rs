//! A report is a chain of writable buffers: the guest's free pages. They may be used again when it is answered.

use crate::jail::ThreadKind;
use crate::virtio::chain::{Chain, Memory};
use crate::virtio::discard::drop_pages;
use crate::virtio::service::Service;

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
