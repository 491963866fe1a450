//! What lies where in BAR 0, and the PCI capabilities that say so.

use crate::pci::{ConfigSpace, Identity, Msix};
use std::ops::Range;

/// Size of BAR 0.
pub const BAR_SIZE: u32 = 0x8000;

/// Bytes of doorbell per queue.
pub const NOTIFY_MULTIPLIER: u32 = 4;

const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;
const REGION_SIZE: u32 = 0x1000;

const VENDOR_CAPABILITY: u8 = 0x09;
const MSIX_CAPABILITY: u8 = 0x11;

const VIRTIO_VENDOR: u16 = 0x1af4;
/// Device numbers of modern devices start here.
const VIRTIO_DEVICE_BASE: u16 = 0x1040;
/// Class "unclassified": Linux finds its drivers by vendor and device.
const CLASS: u16 = 0xff00;

/// A part of BAR 0, with the offset within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    Common(u64),
    Isr,
    Device(u64),
    Notify(u64),
    MsixTable(u64),
    MsixPending(u64),
    Unused,
}

impl Region {
    pub fn at(offset: u64) -> Self {
        let within = |start: u32| offset.checked_sub(u64::from(start)).filter(|at| *at < u64::from(REGION_SIZE));
        if let Some(at) = within(COMMON) {
            Self::Common(at)
        } else if within(ISR) == Some(0) {
            Self::Isr
        } else if let Some(at) = within(DEVICE) {
            Self::Device(at)
        } else if let Some(at) = within(NOTIFY) {
            Self::Notify(at)
        } else if let Some(at) = within(MSIX_TABLE) {
            Self::MsixTable(at)
        } else if let Some(at) = within(MSIX_PENDING) {
            Self::MsixPending(at)
        } else {
            Self::Unused
        }
    }
}

/// Guest address of a queue's doorbell in a window.
pub fn doorbell(window: &Range<u64>, queue: usize) -> u64 {
    window.start + u64::from(NOTIFY) + queue as u64 * u64::from(NOTIFY_MULTIPLIER)
}

/// The configuration space of a virtio device, and the offset of message control's high byte.
pub fn config_space(device_type: u16, address: u32, queues: usize, msix: &Msix) -> (ConfigSpace, usize) {
    let identity = Identity {
        vendor: VIRTIO_VENDOR,
        device: VIRTIO_DEVICE_BASE + device_type,
        revision: 1,
        class: CLASS,
        subsystem: VIRTIO_DEVICE_BASE + device_type,
    };
    let mut space = ConfigSpace::new(identity);
    space.set_bar(address, BAR_SIZE);
    let doorbells = u32::try_from(queues).unwrap_or(0).saturating_mul(NOTIFY_MULTIPLIER);
    for (kind, offset, length) in [(1, COMMON, super::common::LENGTH), (3, ISR, 1), (4, DEVICE, REGION_SIZE)] {
        space.add_capability(VENDOR_CAPABILITY, &virtio_capability(kind, offset, length, None));
    }
    let notify = virtio_capability(2, NOTIFY, doorbells, Some(NOTIFY_MULTIPLIER));
    space.add_capability(VENDOR_CAPABILITY, &notify);
    let control = space.add_capability(MSIX_CAPABILITY, &msix.capability(MSIX_TABLE, MSIX_PENDING)) + 3;
    space.set_writable(control, Msix::CONTROL_HIGH_WRITABLE);
    (space, control)
}

/// `struct virtio_pci_cap` after its first two bytes (virtio 1.3, section 4.1.4), all in BAR 0.
fn virtio_capability(kind: u8, offset: u32, length: u32, multiplier: Option<u32>) -> Vec<u8> {
    let mut body = vec![if multiplier.is_some() { 20 } else { 16 }, kind, 0, 0, 0, 0];
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&length.to_le_bytes());
    body.extend(multiplier.iter().flat_map(|value| value.to_le_bytes()));
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_cover_the_bar_without_overlap() {
        assert_eq!(Region::at(0x0fff), Region::Common(0xfff));
        assert_eq!(Region::at(0x1000), Region::Isr);
        assert_eq!(Region::at(0x1001), Region::Unused);
        assert_eq!(Region::at(0x2004), Region::Device(4));
        assert_eq!(Region::at(0x3008), Region::Notify(8));
        assert_eq!(Region::at(0x4010), Region::MsixTable(0x10));
        assert_eq!(Region::at(0x5000), Region::MsixPending(0));
        assert_eq!(Region::at(0x6000), Region::Unused);
        assert_eq!(Region::at(u64::MAX), Region::Unused);
    }
}
