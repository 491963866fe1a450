//! The machine's devices: which are there from the start, and what a message attaches later.

use super::memory::MemoryError;
use super::regions::Regions;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::{self, Block, BlockError, layer_places};
use crate::virtio::console::Console;
use crate::virtio::device::VirtioDevice;
use crate::virtio::failure::Reporter;
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::net::{Net, NetError};
use crate::virtio::pmem::Pmem;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Connector, Vsock};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use vmm_protocol::RateLimit;
use vmm_sys_util::eventfd::EventFd;

/// The guest's address on its vsock: one guest per VMM, so it is always the same.
pub const GUEST_CID: u32 = 3;

/// Slots of the devices that every machine has.
pub const ROOT_SLOT: u8 = 1;
pub const CONSOLE_SLOT: u8 = 2;
pub const RNG_SLOT: u8 = 3;
pub const VSOCK_SLOT: u8 = 4;
pub const BALLOON_SLOT: u8 = 5;
/// First slot for hot-plug.
pub const FIRST_FREE_SLOT: u8 = 6;

/// A device and its slot.
pub type Placed = (u8, Box<dyn VirtioDevice>);

/// A device to attach, with the descriptors that it needs.
#[derive(Debug)]
pub enum Attachment {
    Block { image: File, read_only: bool, limit: RateLimit },
    Layers { parts: Vec<File>, limit: RateLimit },
    LayerMemory { parts: Vec<File> },
    Net { tap: File, mac: [u8; 6], mtu: u16 },
    Fs { tag: String, server: OwnedFd },
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("cannot open the block device")]
    Block(#[from] BlockError),
    #[error("cannot share the file server's directory")]
    Fs(#[from] FsError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("cannot use the tap device")]
    Net(#[from] NetError),
}

impl Attachment {
    /// The device, and where its memory starts if it has some. `vcpus` is how many processors use it at once.
    pub fn into_device(
        self,
        vcpus: u8,
        reporter: Reporter,
        regions: &mut Regions,
    ) -> Result<(Box<dyn VirtioDevice>, Option<u64>), DeviceError> {
        let disk = |limit| block::Options { limit, queues: u16::from(vcpus), reporter: Some(reporter) };
        let device: Box<dyn VirtioDevice> = match self {
            Self::LayerMemory { parts } => {
                let places = layer_places(&parts)?;
                let region = regions.add(&parts.iter().zip(places).collect::<Vec<_>>())?;
                let device = Pmem::new(region.start, region.end - region.start);
                return Ok((Box::new(device), Some(region.start)));
            }
            Self::Block { image, read_only, limit } => Box::new(Block::new(image, read_only, disk(limit))?),
            Self::Layers { parts, limit } => Box::new(Block::layers(parts, disk(limit))?),
            Self::Fs { tag, server } => Box::new(Fs::new(&tag, server)?),
            Self::Net { tap, mac, mtu } => Box::new(Net::new(tap, mac, mtu)?),
        };
        Ok((device, None))
    }
}

/// The devices that every machine has, by slot, and the way to connect to the guest.
pub fn cold(root_image: &Range<u64>, console: OwnedFd, ready: EventFd) -> io::Result<(Vec<Placed>, Connector)> {
    let (vsock, connector) = Vsock::new(GUEST_CID, ready)?;
    let root = Pmem::new(root_image.start, root_image.end - root_image.start);
    let devices: Vec<Placed> = vec![
        (ROOT_SLOT, Box::new(root)),
        (CONSOLE_SLOT, Box::new(Console::new(console))),
        (RNG_SLOT, Box::new(Rng::new())),
        (VSOCK_SLOT, Box::new(vsock)),
        (BALLOON_SLOT, Box::new(Balloon::new())),
    ];
    Ok((devices, connector))
}
