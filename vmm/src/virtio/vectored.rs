//! System calls that move bytes between a descriptor and scattered guest memory, without a copy of our own.
#![expect(unsafe_code, reason = "vectored system calls take pointers")]

use super::chain::Slice;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use vm_memory::volatile_memory::PtrGuardMut;

/// Reads at `offset` into guest memory, as `preadv(2)`.
pub fn read_at(file: impl AsFd, offset: u64, slices: &[Slice]) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let target = Vector::new(&[], slices);
    // SAFETY: `target` holds valid regions of guest memory, which stay mapped while the slices are borrowed.
    retry(|| unsafe { libc::preadv(file.as_fd().as_raw_fd(), target.pointer(), target.count(), offset) })
}

/// Writes guest memory at `offset`, as `pwritev(2)`.
pub fn write_at(file: impl AsFd, offset: u64, slices: &[Slice]) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let source = Vector::new(&[], slices);
    // SAFETY: as in `read_at`.
    retry(|| unsafe { libc::pwritev(file.as_fd().as_raw_fd(), source.pointer(), source.count(), offset) })
}

/// Writes `head` and then guest memory as one packet, as `writev(2)`.
pub fn write_packet(packets: impl AsFd, head: &[u8], slices: &[Slice]) -> io::Result<usize> {
    let source = Vector::new(head, slices);
    // SAFETY: as in `read_at`; `head` is borrowed for as long, and `writev` only reads.
    retry(|| unsafe { libc::writev(packets.as_fd().as_raw_fd(), source.pointer(), source.count()) })
}

/// I/O vectors, with what keeps their memory in place.
struct Vector {
    vectors: Vec<libc::iovec>,
    _guards: Vec<PtrGuardMut>,
}

impl Vector {
    /// `head` must only be read through the vector.
    fn new(head: &[u8], slices: &[Slice]) -> Self {
        let mut vectors = Vec::with_capacity(slices.len() + 1);
        let mut guards = Vec::with_capacity(slices.len());
        if !head.is_empty() {
            vectors.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
        }
        for slice in slices {
            let guard = slice.ptr_guard_mut();
            vectors.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: slice.len() });
            guards.push(guard);
        }
        Self { vectors, _guards: guards }
    }

    fn pointer(&self) -> *const libc::iovec {
        self.vectors.as_ptr()
    }

    /// Chains are short enough for `IOV_MAX`; the kernel refuses what is not.
    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.vectors.len()).unwrap_or(libc::c_int::MAX)
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
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
