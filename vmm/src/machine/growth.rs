//! Memory that the guest is given while it runs.
//!
//! Its addresses are reserved and given to KVM before the guest starts, which costs neither memory nor a system call later. The
//! device that hands it out is plugged when it is first wanted: most guests never need it, and a template has no such device.

use super::x86_64::layout;
use super::{AttachError, Machine};
use crate::virtio::mem::{BLOCK, Handle, Mem};
use std::ops::Range;
use vmm_protocol::{MEMORY_BLOCK_MIB, PciAddress};

const _: () = assert!(BLOCK == (MEMORY_BLOCK_MIB as u64) << 20);

/// The last: a pod with a device in each slot must get memory, too.
pub const SLOT: u8 = PciAddress::SLOTS - 1;

#[derive(Debug)]
pub struct Growth {
    addresses: Range<u64>,
    /// Once it is plugged: where it is, and the way to its device.
    device: Option<(PciAddress, Handle)>,
}

#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    #[error("machine cannot grow by {0} MiB: {1} MiB are set aside for that, in blocks of {MEMORY_BLOCK_MIB}")]
    Size(u32, u64),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("cannot tell the guest of more memory")]
    Tell(#[source] std::io::Error),
}

impl Growth {
    pub fn new(ram: &[Range<u64>], mib: u32) -> Self {
        Self { addresses: layout::growth(ram, u64::from(mib) << 20), device: None }
    }

    pub fn addresses(&self) -> &Range<u64> {
        &self.addresses
    }

    /// Where images are in a machine that may grow so.
    pub fn images(&self, ram: &[Range<u64>]) -> Range<u64> {
        layout::images(ram, self.size())
    }

    /// Whether the slot is kept for it.
    pub fn may_come(&self) -> bool {
        self.size() > 0
    }

    fn size(&self) -> u64 {
        self.addresses.end - self.addresses.start
    }
}

impl Machine {
    /// Lets the guest have this much besides what it started with. Answers where its device is.
    pub fn grow(&mut self, mib: u32) -> Result<PciAddress, GrowError> {
        let bytes = u64::from(mib) << 20;
        if bytes > self.growth.size() || !mib.is_multiple_of(MEMORY_BLOCK_MIB) || mib == 0 {
            return Err(GrowError::Size(mib, self.growth.size() >> 20));
        }
        if self.growth.device.is_none() {
            let address = PciAddress::new(SLOT).ok_or(AttachError::NoSlot)?;
            let (device, handle) = Mem::new(&self.growth.addresses);
            self.insert(SLOT, Box::new(device))?;
            self.growth.device = Some((address, handle));
        }
        match &self.growth.device {
            Some((address, handle)) => handle.request(bytes).map(|()| *address).map_err(GrowError::Tell),
            None => Err(AttachError::NoSlot.into()),
        }
    }
}
