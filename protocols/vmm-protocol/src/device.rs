//! Devices that can be attached to a running machine.

use crate::FdSlot;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;

/// Names an attached device in later requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceId(pub u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Device {
    /// A raw disk. Its format is never probed.
    Block {
        /// A regular file or a block device.
        image: FdSlot,
        read_only: bool,
        limit: RateLimit,
    },
    /// Read-only files as one disk or one region of memory, each at its place of [`crate::part_offsets`].
    Layers {
        /// Regular files open for reading alone, 1 to [`crate::MAX_PARTS`]. None may change while it is attached.
        parts: Vec<FdSlot>,
        access: LayerAccess,
    },
    Net {
        /// A tap device with `IFF_VNET_HDR`, whose header length was not changed since it was made.
        tap: FdSlot,
        mac: [u8; 6],
        mtu: u16,
    },
    /// A virtio-fs share.
    Fs {
        /// What the guest mounts by; at most 36 bytes.
        tag: String,
        /// `SOCK_SEQPACKET` socket to the file server: one FUSE request or reply per packet.
        server: FdSlot,
    },
}

/// How a guest reads layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerAccess {
    /// virtio-blk.
    Disk { limit: RateLimit },
    /// virtio-pmem: the files' own pages, up to a multiple of 2 MiB. The guest has 16 KiB less for each MiB.
    Memory,
}

/// How fast a guest may use a disk. A second's worth may be used at once after a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Read and written together; `None` is no limit.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Reads, writes, flushes and discards.
    pub operations_per_second: Option<NonZeroU32>,
}

/// Where a device sits on the guest's only PCI bus; the function is always 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    device: u8,
}

impl PciAddress {
    /// Slots on the bus.
    pub const SLOTS: u8 = 32;

    pub fn new(device: u8) -> Option<Self> {
        (device < Self::SLOTS).then_some(Self { device })
    }

    pub fn device(self) -> u8 {
        self.device
    }
}

impl fmt::Display for PciAddress {
    /// As the guest's sysfs spells it: `0000:00:04.0`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "0000:00:{:02x}.0", self.device)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not the address of a device on PCI bus 0: {0:?}")]
pub struct InvalidPciAddress(String);

impl FromStr for PciAddress {
    type Err = InvalidPciAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let device = text.strip_prefix("0000:00:").and_then(|rest| rest.strip_suffix(".0"));
        device
            .filter(|digits| digits.len() == 2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .and_then(Self::new)
            .ok_or_else(|| InvalidPciAddress(text.chars().take(32).collect()))
    }
}

impl TryFrom<String> for PciAddress {
    type Error = InvalidPciAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}
