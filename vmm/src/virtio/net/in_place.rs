//! Frames that are read into the guest's own buffers.

use super::spec::{HEADER_LENGTH, MAX_FRAME, TAP_HEADER_LENGTH};
use super::tap::Link;
use super::worker::Arrival;
use crate::virtio::chain::{Chain, Memory};
use crate::virtio::ring::{Request, Ring, RingError};
use crate::virtio::vectored;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::sync::Arc;

/// Room for the longest frame.
const ROOM: usize = HEADER_LENGTH + MAX_FRAME;

/// Buffers taken from the ring ahead of the frames that they are for, in its order.
#[derive(Debug, Default)]
pub struct Gathered {
    buffers: VecDeque<(u16, Chain)>,
    room: usize,
}

impl Gathered {
    /// Gives the guest the link's next frame. `None`: nothing was read, since the buffers have no room for the longest one or are
    /// too scattered; none is held then.
    pub fn take(&mut self, link: &impl Link, ring: &mut Ring) -> Result<Option<Arrival>, RingError> {
        let memory = Arc::clone(ring.memory());
        let arrival = if self.gather(ring)? { self.read(link, &memory) } else { None };
        match arrival {
            Some(Arrival::Frame(length)) => self.give(ring, &memory, length)?,
            Some(Arrival::Nothing | Arrival::Lost) => {}
            None => self.release(ring),
        }
        Ok(arrival)
    }

    /// Puts all buffers back on the ring.
    pub fn release(&mut self, ring: &mut Ring) {
        ring.unpop(u16::try_from(self.buffers.len()).unwrap_or(u16::MAX));
        *self = Self::default();
    }

    /// Takes as many as the longest frame needs. False if there are not so many, or one is of no use: who copies takes care of
    /// those.
    fn gather(&mut self, ring: &mut Ring) -> Result<bool, RingError> {
        while self.room < ROOM {
            match ring.pop()? {
                Some(Request { head, chain: Ok(chain) }) if chain.writable.len() >= HEADER_LENGTH => {
                    self.room += chain.writable.len();
                    self.buffers.push_back((head, chain));
                }
                other => {
                    ring.unpop(u16::from(other.is_some()));
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Reads a frame behind the tap's header; the last field of the driver's is left out.
    fn read(&self, link: &impl Link, memory: &Memory) -> Option<Arrival> {
        let mut buffers = self.buffers.iter().map(|(_, chain)| &chain.writable);
        let first = buffers.next()?;
        loop {
            let ranges = [(first, 0..TAP_HEADER_LENGTH), (first, HEADER_LENGTH..first.len())];
            let ranges = ranges.into_iter().chain(buffers.clone().map(|buffer| (buffer, 0..buffer.len())));
            let read = vectored::read_packet(link, memory, ranges).transpose()?;
            let read = read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
            if let Some(arrival) = Arrival::of(read) {
                return Some(arrival);
            }
        }
    }

    /// Gives the guest the buffers that hold a frame of this length.
    fn give(&mut self, ring: &mut Ring, memory: &Memory, length: usize) -> Result<(), RingError> {
        let mut used: u16 = 0;
        let mut covered = 0;
        for (_, chain) in &self.buffers {
            if covered >= length {
                break;
            }
            covered += chain.writable.len();
            used += 1;
        }
        if let Some((_, first)) = self.buffers.front() {
            // The memory was there a moment ago, and stays.
            let _ = first.writable.copy_from(memory, TAP_HEADER_LENGTH, &used.to_le_bytes());
        }
        let mut rest = length;
        for (head, chain) in self.buffers.drain(..usize::from(used)) {
            let part = rest.min(chain.writable.len());
            rest -= part;
            self.room -= chain.writable.len();
            ring.recycle(chain);
            // At most a frame.
            ring.push(head, u32::try_from(part).unwrap_or(0))?;
        }
        Ok(())
    }
}
