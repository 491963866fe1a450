//! Writes to the PCI address port, which KVM collects instead of leaving the guest for each.
//!
//! A configuration access is a write of the address and then an access of the data port. Only the second one needs this
//! process, which then reads the collected addresses first. KVM has one ring for all vCPUs of a machine; a guest that
//! lets two of them access the ports at once races with itself.
#![expect(unsafe_code, reason = "a page that KVM shares")]

use crate::pci::CONFIG_ADDRESS;
use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

const PAGE: usize = 4096;
const ENTRIES: usize = (PAGE - 2 * size_of::<u32>()) / size_of::<kvm_coalesced_mmio>();

/// `struct kvm_coalesced_mmio_ring` with its entries. KVM writes `last` and entries up to it, its reader `first`.
#[repr(C)]
struct Ring {
    first: AtomicU32,
    last: AtomicU32,
    entries: [kvm_coalesced_mmio; ENTRIES],
}

const _: () = assert!(size_of::<Ring>() <= PAGE);

/// The reader's end of the ring.
#[derive(Debug)]
pub struct AddressLatch {
    ring: Mutex<NonNull<Ring>>,
}

// SAFETY: the page is mapped until the value is dropped, and the lock lets one thread at a time read from it.
unsafe impl Send for AddressLatch {}
// SAFETY: as above.
unsafe impl Sync for AddressLatch {}

impl AddressLatch {
    /// Has KVM collect from now on. `vcpu` may be any of the machine.
    pub fn new(vm: &VmFd, vcpu: &VcpuFd) -> io::Result<Self> {
        let offset = libc::off_t::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as libc::off_t;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let page = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), PAGE, access, libc::MAP_SHARED, vcpu.as_raw_fd(), offset)
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ring = NonNull::new(page.cast()).ok_or(io::ErrorKind::InvalidData)?;
        let latch = Self { ring: Mutex::new(ring) };
        vm.register_coalesced_mmio(IoEventAddress::Pio(u64::from(CONFIG_ADDRESS)), 4)?;
        Ok(latch)
    }

    /// The last address that was collected, if one was since the last time.
    pub fn take(&self) -> Option<u32> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the page stays mapped while `self` exists, and its two numbers are accessed atomically.
        let (first, last) = unsafe { (&ring.as_ref().first, &ring.as_ref().last) };
        let end = last.load(Ordering::Acquire) as usize;
        let mut next = first.load(Ordering::Relaxed) as usize;
        let mut address = None;
        // Numbers beyond the ring, which KVM never writes, would end the loop and nothing else.
        while next != end && next < ENTRIES && end < ENTRIES {
            // SAFETY: the entry lies in the ring, and KVM does not write it again before `first` has passed it.
            let entry = unsafe { (&raw const (*ring.as_ptr()).entries[next]).read_volatile() };
            // What is narrower than the register changes nothing, as on the bus.
            if entry.len == 4 && entry.phys_addr == u64::from(CONFIG_ADDRESS) {
                let [a, b, c, d, ..] = entry.data;
                address = Some(u32::from_le_bytes([a, b, c, d]));
            }
            next = (next + 1) % ENTRIES;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below the number of entries")]
        first.store(next as u32, Ordering::Release);
        address
    }
}

impl Drop for AddressLatch {
    fn drop(&mut self) {
        let ring = self.ring.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `new` made this mapping with this length, and nothing refers to it any more.
        unsafe { libc::munmap(ring.as_ptr().cast(), PAGE) };
    }
}
