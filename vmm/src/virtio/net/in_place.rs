//! Frames that are read into the guest's own buffers.

use super::spec::{HEADER_LENGTH, MAX_FRAME, TAP_HEADER_LENGTH};
use super::tap::Link;
use super::worker::Arrival;
use crate::virtio::chain::{Buffer, Memory};
use crate::virtio::ring::{Request, Ring, RingError};
use crate::virtio::vectored;
use nix::errno::Errno;
use std::sync::Arc;

/// Buffers taken from the ring, in its order.
#[derive(Default)]
struct Gathered(Vec<(u16, Buffer)>);

/// Gives the guest the link's next frame. `None`: nothing was read, since the buffers have no room for the longest one or are too
/// scattered.
pub fn take(link: &impl Link, ring: &mut Ring) -> Result<Option<Arrival>, RingError> {
    let gathered = Gathered::pop(ring)?;
    let memory = Arc::clone(ring.memory());
    let arrival = gathered.read(link, &memory);
    let length = if let Some(Arrival::Frame(length)) = arrival { length } else { 0 };
    gathered.give(ring, &memory, length)?;
    Ok(arrival)
}

impl Gathered {
    /// As many as the longest frame needs. None if there are not so many, or some are of no use: who copies takes care of those.
    fn pop(ring: &mut Ring) -> Result<Self, RingError> {
        let mut gathered = Self::default();
        let mut room = 0;
        while room < HEADER_LENGTH + MAX_FRAME {
            match ring.pop()? {
                Some(Request { head, chain: Ok(chain) }) if chain.writable.len() >= HEADER_LENGTH => {
                    room += chain.writable.len();
                    gathered.0.push((head, chain.writable));
                }
                other => {
                    ring.unpop(gathered.count() + u16::from(other.is_some()));
                    return Ok(Self::default());
                }
            }
        }
        Ok(gathered)
    }

    /// Reads a frame behind the tap's header; the last field of the driver's is left out.
    fn read(&self, link: &impl Link, memory: &Memory) -> Option<Arrival> {
        let [(_, first), others @ ..] = &self.0[..] else { return None };
        loop {
            let ranges = [(first, 0..TAP_HEADER_LENGTH), (first, HEADER_LENGTH..first.len())];
            let ranges = ranges.into_iter().chain(others.iter().map(|(_, buffer)| (buffer, 0..buffer.len())));
            let read = vectored::read_packet(link, memory, ranges).transpose()?;
            let read = read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
            if let Some(arrival) = Arrival::of(read) {
                return Some(arrival);
            }
        }
    }

    /// Gives the guest the buffers that hold a frame of this length, and the others back.
    fn give(self, ring: &mut Ring, memory: &Memory, length: usize) -> Result<(), RingError> {
        let mut written = Vec::new();
        let mut rest = length;
        for (head, buffer) in &self.0 {
            if rest == 0 {
                break;
            }
            let part = rest.min(buffer.len());
            written.push((*head, part));
            rest -= part;
        }
        let used = u16::try_from(written.len()).unwrap_or(u16::MAX);
        ring.unpop(self.count() - used);
        if let (Some((_, first)), 1..) = (self.0.first(), used) {
            // The memory was there a moment ago, and stays.
            let _ = first.copy_from(memory, TAP_HEADER_LENGTH, &used.to_le_bytes());
        }
        for (head, part) in written {
            // At most a frame.
            ring.push(head, u32::try_from(part).unwrap_or(0))?;
        }
        Ok(())
    }

    fn count(&self) -> u16 {
        // A ring has fewer than this.
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }
}
