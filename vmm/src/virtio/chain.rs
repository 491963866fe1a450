//! Descriptor chains, read once and checked: what a device knows of one request before it looks at a byte.
//!
//! A chain that is cut short, loops, names memory that is not there or mixes the two directions is refused as a
//! whole. Addresses are kept instead of host pointers, so that a chain may outlive the call that took it.

use std::ops::Range;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap, Permissions, VolatileSlice};

/// Guest memory as devices borrow it.
pub type Memory = GuestMemoryMmap<()>;

/// Part of a buffer, in host memory that the guest may change at any moment.
pub type Slice<'m> = VolatileSlice<'m, ()>;

/// Most descriptors of one chain: what one vectored system call takes (`IOV_MAX`).
const MAX_DESCRIPTORS: usize = 1024;

/// Why a chain is not a request. Only its sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("descriptor chain has no descriptor that can be read")]
    Empty,
    #[error("descriptor chain loops or ends in a descriptor that is not there")]
    Cut,
    #[error("descriptor chain is longer than {MAX_DESCRIPTORS}")]
    TooLong,
    #[error("descriptor names an address that is not guest memory")]
    NotMemory,
    #[error("readable descriptor follows a writable one")]
    Order,
    #[error("buffer is shorter than what it must hold")]
    Short,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    address: GuestAddress,
    length: usize,
}

/// Scattered guest memory that reads as one range of bytes.
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    segments: Vec<Segment>,
    length: usize,
}

/// The two buffers of a request.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// What the driver sends.
    pub readable: Buffer,
    /// Where the device answers.
    pub writable: Buffer,
}

impl Chain {
    /// Reads the descriptors of a chain into the space of one that is not needed any more.
    pub fn parse(memory: &Memory, descriptors: DescriptorChain<&Memory>, mut chain: Self) -> Result<Self, ChainError> {
        chain.readable.clear();
        chain.writable.clear();
        let mut more = None;
        for (index, descriptor) in descriptors.enumerate() {
            if index == MAX_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            more = Some(descriptor.has_next());
            let length = descriptor.len() as usize;
            if !memory.check_range(descriptor.addr(), length, Permissions::ReadWrite) {
                return Err(ChainError::NotMemory);
            }
            let segment = Segment { address: descriptor.addr(), length };
            if descriptor.is_write_only() {
                if !can_be_written(memory, segment.address, length) {
                    return Err(ChainError::NotMemory);
                }
                chain.writable.push(segment);
            } else if chain.writable.segments.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(ChainError::Order);
            }
        }
        match more {
            None => Err(ChainError::Empty),
            // The queue's iterator ends without a word where it cannot follow a chain.
            Some(true) => Err(ChainError::Cut),
            Some(false) => Ok(chain),
        }
    }
}

/// Whether devices may write to a range of guest memory. Images can only be read: a write would end this process.
pub fn can_be_written(memory: &Memory, start: GuestAddress, length: usize) -> bool {
    // Images lie between RAM and what it grows by, in a window that is longer than any range of a descriptor, so that nothing
    // between two addresses of RAM is one.
    let last = start.0.saturating_add(length.saturating_sub(1) as u64);
    [start, GuestAddress(last)].into_iter().all(|address| {
        let region = vm_memory::GuestMemoryBackend::find_region(memory, address);
        region.is_some_and(|region| region.prot() & libc::PROT_WRITE != 0)
    })
}

impl Buffer {
    /// One piece of guest memory.
    #[cfg(test)]
    pub fn of(address: u64, length: usize) -> Self {
        Self { segments: vec![Segment { address: GuestAddress(address), length }], length }
    }

    fn clear(&mut self) {
        self.length = 0;
        self.segments.clear();
    }

    fn push(&mut self, segment: Segment) {
        // Cannot overflow: the queue's iterator ends a chain before it exceeds 4 GiB.
        self.length += segment.length;
        self.segments.push(segment);
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Copies bytes of the guest, starting `offset` bytes into the buffer.
    pub fn copy_to(&self, memory: &Memory, offset: usize, target: &mut [u8]) -> Result<(), ChainError> {
        let mut done = 0;
        self.visit(memory, offset..offset.saturating_add(target.len()), |slice| {
            done += slice.copy_to(&mut target[done..]);
        })
    }

    /// Copies bytes to the guest, starting `offset` bytes into the buffer.
    pub fn copy_from(&self, memory: &Memory, offset: usize, source: &[u8]) -> Result<(), ChainError> {
        let mut rest = source;
        self.visit(memory, offset..offset.saturating_add(source.len()), |slice| {
            let (part, later) = rest.split_at(slice.len());
            slice.copy_from(part);
            rest = later;
        })
    }

    /// The host memory of a range of the buffer, for vectored system calls.
    pub fn slices<'m>(&self, memory: &'m Memory, range: Range<usize>) -> Result<Vec<Slice<'m>>, ChainError> {
        let mut slices = Vec::with_capacity(self.segments.len());
        self.visit(memory, range, |slice| slices.push(slice))?;
        Ok(slices)
    }

    fn visit<'m>(
        &self,
        memory: &'m Memory,
        range: Range<usize>,
        mut each: impl FnMut(Slice<'m>),
    ) -> Result<(), ChainError> {
        self.visit_while(memory, range, |slice| {
            each(slice);
            true
        })
    }

    /// Shows the host memory of a range of the buffer piece by piece, until `each` answers false.
    pub fn visit_while<'m>(
        &self,
        memory: &'m Memory,
        range: Range<usize>,
        mut each: impl FnMut(Slice<'m>) -> bool,
    ) -> Result<(), ChainError> {
        if range.end > self.length {
            return Err(ChainError::Short);
        }
        let mut skip = range.start;
        let mut wanted = range.end.saturating_sub(range.start);
        for segment in &self.segments {
            if wanted == 0 {
                break;
            }
            if skip >= segment.length {
                skip -= segment.length;
                continue;
            }
            let length = wanted.min(segment.length - skip);
            // Cannot wrap: `parse` has checked the whole segment.
            let address = GuestAddress(segment.address.0 + skip as u64);
            let parts =
                memory.get_slices(address, length, Permissions::ReadWrite).map_err(|_| ChainError::NotMemory)?;
            for part in parts {
                if !each(part.map_err(|_| ChainError::NotMemory)?) {
                    return Ok(());
                }
            }
            skip = 0;
            wanted -= length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
