//! Guest memory and mapped images, with KVM's view of both.
#![expect(unsafe_code, reason = "KVM memory slots name host addresses, and images are mapped by hand")]

use crate::virtio::device::GuestMemory;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vm_memory::mmap::{FromRangesError, MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollectionError, GuestRegionMmap,
};

/// The pmem driver maps in units of this size.
const IMAGE_ALIGNMENT: u64 = 2 << 20;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot map {0} MiB of guest memory")]
    Map(u64, #[source] FromRangesError),
    #[error("cannot keep guest memory in small pages")]
    Advise(#[source] io::Error),
    #[error("cannot map an image")]
    MapImage(#[source] io::Error),
    #[error("an image of {0} bytes cannot be mapped")]
    ImageLength(u64),
    #[error("cannot reserve addresses of the guest")]
    Reserve(#[source] MmapRegionError),
    #[error("addresses of the guest are taken")]
    Overlap(#[source] GuestRegionCollectionError),
    #[error("there is no room for an image of {0} bytes among the guest's addresses")]
    NoRoom(u64),
    #[error("cannot give KVM memory slot {slot}")]
    Slot { slot: u32, source: kvm_ioctls::Error },
}

/// RAM. Pages are taken from the host when the guest first touches them, one by one: of a huge page, a guest that idles would
/// use half, and the host's `khugepaged` would make huge ones of what a template shares and of what free page reporting gave back.
pub fn guest_memory(ram: &[Range<u64>]) -> Result<GuestMemory, MemoryError> {
    let size: u64 = ram.iter().map(|range| range.end - range.start).sum();
    #[expect(clippy::cast_possible_truncation, reason = "addresses are 64 bits wide on every host of this machine")]
    let ranges: Vec<_> =
        ram.iter().map(|range| (GuestAddress(range.start), (range.end - range.start) as usize)).collect();
    let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(|error| MemoryError::Map(size >> 20, error))?;
    keep_small(&memory)?;
    Ok(Arc::new(memory))
}

fn keep_small(memory: &GuestMemoryMmap) -> Result<(), MemoryError> {
    for region in memory.iter() {
        let length = usize::try_from(region.len()).unwrap_or(usize::MAX);
        // SAFETY: the range is the region's mapping, and the advice changes no content.
        let result = unsafe { libc::madvise(region.as_ptr().cast(), length, libc::MADV_NOHUGEPAGE) };
        let error = io::Error::last_os_error();
        // EINVAL: a kernel without huge pages.
        if result != 0 && error.raw_os_error() != Some(libc::EINVAL) {
            return Err(MemoryError::Advise(error));
        }
    }
    Ok(())
}

/// Why a file does not come to lie over guest memory.
#[derive(Debug)]
pub enum OverlayError {
    /// Not whole pages of one region.
    Place,
    Map(io::Error),
}

/// Lays a file's pages over guest memory that nobody uses yet. They are shared with others until this process writes to them.
pub fn overlay(
    memory: &GuestMemory,
    start: GuestAddress,
    length: usize,
    file: &File,
    offset: u64,
) -> Result<(), OverlayError> {
    // One slice is of one region, whose host addresses are contiguous.
    let target = memory.get_slice(start, length).map_err(|_| OverlayError::Place)?;
    let offset = libc::off_t::try_from(offset).map_err(|_| OverlayError::Place)?;
    // SAFETY: `target` is `length` bytes of one region of guest memory; the kernel refuses addresses that are not page-aligned.
    // Replacing the pages of a region that nobody uses yet is what guest memory is for; the region's own unmapping covers the
    // new pages too.
    let mapped = unsafe {
        libc::mmap(
            target.ptr_guard_mut().as_ptr().cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED { Err(OverlayError::Map(io::Error::last_os_error())) } else { Ok(()) }
}

/// RAM with memory that the guest is given later. Until the guest touches it, it costs the host addresses alone.
pub fn and_growth(ram: GuestMemory, guest: &Range<u64>) -> Result<GuestMemory, MemoryError> {
    let bytes = guest.end - guest.start;
    if bytes == 0 {
        return Ok(ram);
    }
    let length = usize::try_from(bytes).map_err(|_| MemoryError::ImageLength(bytes))?;
    let builder =
        MmapRegionBuilder::new(length).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).with_mmap_flags(EMPTY);
    let reserved = builder.build().map_err(MemoryError::Reserve)?;
    let region = GuestRegionMmap::new(reserved, GuestAddress(guest.start)).ok_or(MemoryError::ImageLength(bytes))?;
    ram.insert_region(Arc::new(region)).map(Arc::new).map_err(MemoryError::Overlap)
}

/// Guest memory for images, reserved in this process from the start, so that devices can send what lies there whenever it comes.
/// Nothing can write to it: neither the guest, through its slots, nor this process. Where no image is, it reads as zeroes.
#[derive(Debug)]
pub struct Window(Arc<GuestRegionMmap<()>>);

impl Window {
    /// Addresses of the guest, whole pages.
    pub fn new(guest: &Range<u64>) -> Result<Self, MemoryError> {
        let bytes = guest.end - guest.start;
        let length = usize::try_from(bytes).map_err(|_| MemoryError::ImageLength(bytes))?;
        let builder = MmapRegionBuilder::new(length).with_mmap_prot(libc::PROT_READ).with_mmap_flags(EMPTY);
        let reserved = builder.build().map_err(MemoryError::Reserve)?;
        let region = GuestRegionMmap::new(reserved, GuestAddress(guest.start));
        region.map(|region| Self(Arc::new(region))).ok_or(MemoryError::ImageLength(bytes))
    }

    /// RAM with these addresses, as devices see it.
    pub fn and_ram(&self, ram: &GuestMemory) -> Result<GuestMemory, MemoryError> {
        ram.insert_region(Arc::clone(&self.0)).map(Arc::new).map_err(MemoryError::Overlap)
    }

    pub fn addresses(&self) -> Range<u64> {
        let start = self.0.start_addr().0;
        start..start + self.0.len()
    }

    /// Maps each file at its place from the guest's address `start` on.
    pub fn map(&self, start: u64, files: &[(&File, Range<u64>)]) -> Result<(), MemoryError> {
        files.iter().try_for_each(|(file, place)| {
            self.replace(start + place.start, place.end - place.start, libc::MAP_SHARED, file.as_raw_fd())
        })
    }

    /// Takes away what was mapped.
    pub fn clear(&self, guest: &Range<u64>) -> Result<(), MemoryError> {
        self.replace(guest.start, guest.end - guest.start, EMPTY, -1)
    }

    fn replace(&self, start: u64, length: u64, flags: i32, file: i32) -> Result<(), MemoryError> {
        let host = self.host(start, length).ok_or(MemoryError::ImageLength(length))?;
        let bytes = usize::try_from(length).map_err(|_| MemoryError::ImageLength(length))?;
        // SAFETY: the pages lie within a mapping that this value owns and nobody has references into: devices copy from it
        // or name it in system calls. The files belong to the operator; were one cut, the guest's reads and those system
        // calls would fail, and a copy would end this process.
        let mapped = unsafe { libc::mmap(host.cast(), bytes, libc::PROT_READ, flags | libc::MAP_FIXED, file, 0) };
        if mapped == libc::MAP_FAILED { Err(MemoryError::MapImage(io::Error::last_os_error())) } else { Ok(()) }
    }

    /// Where the guest's addresses are in this process.
    fn host(&self, start: u64, length: u64) -> Option<*mut u8> {
        let offset = start.checked_sub(self.0.start_addr().0)?;
        let end = offset.checked_add(length).filter(|end| *end <= self.0.len())?;
        let offset = usize::try_from(offset).ok()?;
        usize::try_from(end).ok()?;
        Some(self.0.as_ptr().wrapping_add(offset))
    }
}

/// Anonymous pages that are no commitment: images' are never written, and memory that comes later is the cgroup's concern.
const EMPTY: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Bytes of guest memory for an image of `length` bytes.
pub fn image_size(length: u64) -> Result<u64, MemoryError> {
    let size = length.checked_next_multiple_of(IMAGE_ALIGNMENT).filter(|size| *size > 0);
    size.ok_or(MemoryError::ImageLength(length))
}

/// Makes RAM the guest's. It must outlive the machine's vCPUs. Returns the next free slot.
pub fn give_ram(vm: &VmFd, memory: &GuestMemory) -> Result<u32, MemoryError> {
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
    Ok(slot)
}

/// Lets the guest read what is mapped in a window, which must outlive the slot.
pub fn give_images(vm: &VmFd, slot: u32, window: &Window, guest: &Range<u64>) -> Result<(), MemoryError> {
    let memory_size = guest.end - guest.start;
    let host = window.host(guest.start, memory_size).ok_or(MemoryError::ImageLength(memory_size))?;
    let (flags, userspace_addr) = (KVM_MEM_READONLY, host as u64);
    set_slot(vm, kvm_userspace_memory_region { slot, flags, guest_phys_addr: guest.start, memory_size, userspace_addr })
}

pub fn take_slot(vm: &VmFd, slot: u32) -> Result<(), MemoryError> {
    set_slot(vm, kvm_userspace_memory_region { slot, ..kvm_userspace_memory_region::default() })
}

fn set_slot(vm: &VmFd, region: kvm_userspace_memory_region) -> Result<(), MemoryError> {
    let slot = region.slot;
    // SAFETY: the range is a live mapping, held by `GuestMemory` or `Window`, which the machine keeps while its
    // vCPUs run.
    unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot { slot, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::x86_64::layout;
    use std::path::Path;

    /// Whether the mapping of a guest's address must not have huge pages.
    fn small(memory: &GuestMemory, guest: u64) -> bool {
        let host = memory.get_host_address(GuestAddress(guest)).unwrap() as usize;
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut here = false;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((start, end)) = first.split_once('-') {
                let address = |text| usize::from_str_radix(text, 16).unwrap();
                here = (address(start)..address(end)).contains(&host);
            } else if here && first == "VmFlags:" {
                return words.any(|flag| flag == "nh");
            }
        }
        panic!("no mapping at {host:#x}");
    }

    #[test]
    fn ram_has_small_pages_and_what_comes_later_those_of_the_host() {
        if !Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            println!("test skipped: this kernel has no huge pages");
            return;
        }
        let (start, end) = (1 << 32, (1 << 32) + (4 << 20));
        let memory = and_growth(guest_memory(&layout::ram(4 << 20)).unwrap(), &(start..end)).unwrap();
        assert!(small(&memory, 0));
        assert!(!small(&memory, start));
    }
}
