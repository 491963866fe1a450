//! Guest memory and the mapped root image, with KVM's view of both.
#![expect(unsafe_code, reason = "KVM memory slots name host addresses, and the root image is mapped by hand")]

use super::x86_64::layout;
use crate::virtio::device::GuestMemory;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// The pmem driver maps in units of this size.
const IMAGE_ALIGNMENT: u64 = 2 << 20;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot map {0} MiB of guest memory")]
    Map(u64, #[source] FromRangesError),
    #[error("cannot map the root image")]
    MapImage(#[source] io::Error),
    #[error("root image is {0} bytes long, which is not a multiple of 2 MiB")]
    ImageLength(u64),
    #[error("cannot give KVM memory slot {slot}")]
    Slot { slot: u32, source: kvm_ioctls::Error },
}

/// RAM. Pages are taken from the host when the guest first touches them.
pub fn guest_memory(ram: &[Range<u64>]) -> Result<GuestMemory, MemoryError> {
    let size: u64 = ram.iter().map(|range| range.end - range.start).sum();
    #[expect(clippy::cast_possible_truncation, reason = "addresses are 64 bits wide on every host of this machine")]
    let ranges: Vec<_> =
        ram.iter().map(|range| (GuestAddress(range.start), (range.end - range.start) as usize)).collect();
    GuestMemoryMmap::from_ranges(&ranges).map(Arc::new).map_err(|error| MemoryError::Map(size >> 20, error))
}

/// The root image, mapped so that nothing can write to it: neither the guest, through its slot, nor this process.
#[derive(Debug)]
pub struct RootImage {
    host: *mut libc::c_void,
    length: usize,
    pub guest: Range<u64>,
}

// SAFETY: the mapping is private to this value and read by KVM alone; the pointer is never dereferenced here.
unsafe impl Send for RootImage {}

impl RootImage {
    pub fn map(image: &File, ram: &[Range<u64>]) -> Result<Self, MemoryError> {
        let bytes = image.metadata().map_err(MemoryError::MapImage)?.len();
        if bytes == 0 || !bytes.is_multiple_of(IMAGE_ALIGNMENT) {
            return Err(MemoryError::ImageLength(bytes));
        }
        let length = usize::try_from(bytes).map_err(|_| MemoryError::ImageLength(bytes))?;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing. The file belongs to the
        // operator; were it truncated, the guest's reads would fail, not ours.
        let host = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, image.as_raw_fd(), 0)
        };
        if host == libc::MAP_FAILED {
            return Err(MemoryError::MapImage(io::Error::last_os_error()));
        }
        let start = layout::root_image(ram);
        Ok(Self { host, length, guest: start..start + bytes })
    }
}

impl Drop for RootImage {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping with this length, and nothing but KVM refers to it. KVM keeps its slot, whose
        // accesses then fail in the guest.
        unsafe { libc::munmap(self.host, self.length) };
    }
}

/// Makes RAM and the root image the guest's. Both must outlive the machine's vCPUs.
pub fn give_to_guest(vm: &VmFd, memory: &GuestMemory, image: &RootImage) -> Result<(), MemoryError> {
    let mut slot = 0;
    for region in memory.iter() {
        set_slot(
            vm,
            kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            },
        )?;
        slot += 1;
    }
    set_slot(
        vm,
        kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: image.guest.start,
            memory_size: image.length as u64,
            userspace_addr: image.host as u64,
        },
    )
}

fn set_slot(vm: &VmFd, region: kvm_userspace_memory_region) -> Result<(), MemoryError> {
    let slot = region.slot;
    // SAFETY: the range is a live mapping, held by `GuestMemory` or `RootImage`, which the machine keeps while its
    // vCPUs run.
    unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot { slot, source })
}
