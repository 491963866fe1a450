//! Images that the guest sees as memory, each in a read-only slot of KVM's.

use super::Vm;
use super::memory::{self, MemoryError, Window};
use super::x86_64::layout;
use crate::virtio::device::GuestMemory;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

/// The guest's addresses of all images: what vCPUs need to know of them.
#[derive(Debug, Default)]
pub struct ReadOnly(RwLock<Vec<Range<u64>>>);

impl ReadOnly {
    #[cfg(test)]
    pub fn new(range: Range<u64>) -> Self {
        Self(RwLock::new(vec![range]))
    }

    pub fn contains(&self, address: u64) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().any(|range| range.contains(&address))
    }
}

#[derive(Debug)]
pub struct Regions {
    vm: Vm,
    window: Window,
    first_slot: u32,
    regions: Vec<Region>,
    addresses: Arc<ReadOnly>,
}

#[derive(Debug)]
struct Region {
    slot: u32,
    guest: Range<u64>,
}

impl Regions {
    /// `first_slot` and all that follow are free.
    pub fn new(vm: Vm, addresses: &Range<u64>, first_slot: u32) -> Result<Self, MemoryError> {
        let window = Window::new(addresses)?;
        Ok(Self { vm, window, first_slot, regions: Vec::new(), addresses: Arc::default() })
    }

    pub fn addresses(&self) -> Arc<ReadOnly> {
        Arc::clone(&self.addresses)
    }

    /// What devices see of the guest's memory.
    pub fn and_ram(&self, ram: &GuestMemory) -> Result<GuestMemory, MemoryError> {
        self.window.and_ram(ram)
    }

    /// Files in the guest's memory, each at its place of the region. Returns where that is.
    pub fn add(&mut self, files: &[(&File, Range<u64>)]) -> Result<Range<u64>, MemoryError> {
        let size = memory::image_size(files.last().map_or(0, |(_, place)| place.end))?;
        let guest =
            layout::next_image(&self.regions.iter().map(|region| &region.guest), &self.window.addresses(), size);
        let guest = guest.ok_or(MemoryError::NoRoom(size))?;
        let slot = (self.first_slot..).find(|slot| self.regions.iter().all(|region| region.slot != *slot));
        let slot = slot.unwrap_or(u32::MAX);
        let given = self.window.map(guest.start, files).and_then(|()| {
            // From here on the guest can read it.
            memory::give_images(&self.vm, slot, &self.window, &guest)
        });
        if let Err(error) = given {
            self.window.clear(&guest)?;
            return Err(error);
        }
        self.regions.push(Region { slot, guest: guest.clone() });
        self.tell();
        Ok(guest)
    }

    /// Takes away the region that starts there.
    pub fn remove(&mut self, start: u64) -> Result<(), MemoryError> {
        let Some(index) = self.regions.iter().position(|region| region.guest.start == start) else { return Ok(()) };
        // What cannot be taken from KVM stays mapped.
        memory::take_slot(&self.vm, self.regions[index].slot)?;
        let region = self.regions.swap_remove(index);
        self.tell();
        self.window.clear(&region.guest)
    }

    fn tell(&self) {
        let ranges = self.regions.iter().map(|region| region.guest.clone()).collect();
        *self.addresses.0.write().unwrap_or_else(PoisonError::into_inner) = ranges;
    }
}
