//! A request of virtio-rng is a writable buffer; filling it is all there is to do.
#![expect(unsafe_code, reason = "getrandom(2) writes to a pointer")]

use crate::jail::ThreadKind;
use crate::virtio::chain::{Buffer, Chain, Memory};
use crate::virtio::service::Service;
use std::io;

/// Most bytes of one request. The rest of a longer buffer stays untouched, as the specification allows, so that the
/// guest decides neither how long the thread is busy nor how much it allocates.
pub const MAX_FILL: usize = 64 * 1024;

/// Bytes fetched from the kernel at once.
const BLOCK: usize = 4096;

#[derive(Debug)]
pub struct Fill;

impl Service for Fill {
    const THREAD: ThreadKind = ThreadKind::Rng;

    fn serve(&mut self, memory: &Memory, chain: &Chain) -> u32 {
        let filled = fill(memory, &chain.writable);
        // At most MAX_FILL.
        u32::try_from(filled).unwrap_or(0)
    }
}

/// Fills a buffer and returns how far.
fn fill(memory: &Memory, buffer: &Buffer) -> usize {
    let wanted = buffer.len().min(MAX_FILL);
    let mut filled = 0;
    let mut block = [0; BLOCK];
    while filled < wanted {
        let part = &mut block[..BLOCK.min(wanted - filled)];
        if random(part).is_err() || buffer.copy_from(memory, filled, part).is_err() {
            break;
        }
        filled += part.len();
    }
    filled
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        // SAFETY: pointer and length are those of a slice that we hold exclusively.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => done += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
