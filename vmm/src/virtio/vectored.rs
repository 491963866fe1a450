//! System calls that move bytes between a descriptor and scattered guest memory, without a copy of our own.
#![expect(unsafe_code, reason = "vectored system calls take pointers")]

use super::chain::{Buffer, Memory};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// Pieces of guest memory that one call moves at most: as many as a disk's request has data buffers.
const PIECES: usize = 256;

/// Reads at `offset` into a range of a buffer, as `preadv(2)`: perhaps less than asked for.
pub fn read_at(
    file: impl AsFd,
    offset: u64,
    memory: &Memory,
    buffer: &Buffer,
    range: Range<usize>,
) -> io::Result<usize> {
    transfer(&file, offset, (memory, buffer, range), |descriptor, pieces, count, offset| {
        // SAFETY: the pieces are valid regions of guest memory, which stays mapped while `memory` is borrowed.
        unsafe { libc::preadv(descriptor, pieces, count, offset) }
    })
}

/// The same without waiting for a disk: what the node has in memory. `WouldBlock` when that is nothing; the node starts to
/// read it then.
pub fn read_cached_at(
    file: impl AsFd,
    offset: u64,
    memory: &Memory,
    buffer: &Buffer,
    range: Range<usize>,
) -> io::Result<usize> {
    transfer(&file, offset, (memory, buffer, range), |descriptor, pieces, count, offset| {
        // SAFETY: as in `read_at`.
        unsafe { libc::preadv2(descriptor, pieces, count, offset, libc::RWF_NOWAIT) }
    })
}

/// Writes a range of a buffer at `offset`, as `pwritev(2)`: perhaps less than asked for.
pub fn write_at(
    file: impl AsFd,
    offset: u64,
    memory: &Memory,
    buffer: &Buffer,
    range: Range<usize>,
) -> io::Result<usize> {
    transfer(&file, offset, (memory, buffer, range), |descriptor, pieces, count, offset| {
        // SAFETY: as in `read_at`.
        unsafe { libc::pwritev(descriptor, pieces, count, offset) }
    })
}

/// Has `call` move bytes between the file at `offset` and a range of a buffer. The pieces that it gets are valid for as long
/// as it runs.
fn transfer(
    file: impl AsFd,
    offset: u64,
    (memory, buffer, range): (&Memory, &Buffer, Range<usize>),
    call: impl Fn(RawFd, *const libc::iovec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut pieces = Pieces::new();
    pieces.fill(memory, buffer, range)?;
    retry(|| call(file.as_fd().as_raw_fd(), pieces.pointer(), pieces.count(), offset))
}

/// Writes `head` and then a range of a buffer as one packet, as `writev(2)`. A packet in more pieces than one call takes is
/// refused.
pub fn write_packet(
    packets: impl AsFd,
    head: &[u8],
    memory: &Memory,
    buffer: &Buffer,
    range: Range<usize>,
) -> io::Result<usize> {
    let mut pieces = Pieces::new();
    pieces.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
    pieces.fill(memory, buffer, range)?;
    if pieces.filled == PIECES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: as in `read_at`; `head` is borrowed for as long, and `writev` only reads.
    retry(|| unsafe { libc::writev(packets.as_fd().as_raw_fd(), pieces.pointer(), pieces.count()) })
}

/// Reads a packet into ranges of buffers, as `readv(2)`. `None` when these are too scattered for one call: nothing was read.
pub fn read_packet<'b>(
    packets: impl AsFd,
    memory: &Memory,
    ranges: impl IntoIterator<Item = (&'b Buffer, Range<usize>)>,
) -> io::Result<Option<usize>> {
    let mut pieces = Pieces::new();
    for (buffer, range) in ranges {
        pieces.fill(memory, buffer, range)?;
    }
    if pieces.filled == PIECES {
        return Ok(None);
    }
    // SAFETY: as in `read_at`.
    retry(|| unsafe { libc::readv(packets.as_fd().as_raw_fd(), pieces.pointer(), pieces.count()) }).map(Some)
}

/// Reads from a stream into ranges of buffers, as `readv(2)`: perhaps less than they have room for.
pub fn read_stream<'b>(
    stream: impl AsFd,
    memory: &Memory,
    ranges: impl IntoIterator<Item = (&'b Buffer, Range<usize>)>,
) -> io::Result<usize> {
    let mut pieces = Pieces::new();
    for (buffer, range) in ranges {
        pieces.fill(memory, buffer, range)?;
    }
    // SAFETY: as in `read_at`.
    retry(|| unsafe { libc::readv(stream.as_fd().as_raw_fd(), pieces.pointer(), pieces.count()) })
}

/// I/O vectors on the stack: a request of a disk shall cost no allocation.
struct Pieces {
    vectors: [MaybeUninit<libc::iovec>; PIECES],
    filled: usize,
}

impl Pieces {
    fn new() -> Self {
        Self { vectors: [MaybeUninit::uninit(); PIECES], filled: 0 }
    }

    /// Takes as much of the range as fits. Guest memory is never unmapped before the process ends, and its guards do
    /// nothing for memory that is mapped: the pointers outlive the slices, which borrow `memory` as the caller does.
    fn fill(&mut self, memory: &Memory, buffer: &Buffer, range: Range<usize>) -> io::Result<()> {
        let filled = buffer.visit_while(memory, range, |slice| {
            let guard = slice.ptr_guard_mut();
            self.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: slice.len() });
            self.filled < PIECES
        });
        filled.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    }

    fn push(&mut self, vector: libc::iovec) {
        if let Some(free) = self.vectors.get_mut(self.filled) {
            free.write(vector);
            self.filled += 1;
        }
    }

    fn pointer(&self) -> *const libc::iovec {
        self.vectors.as_ptr().cast()
    }

    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.filled).unwrap_or(0)
    }
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
