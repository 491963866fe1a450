//! The guest's only PCI bus: configuration mechanism #1, one function per slot, MSI-X, no legacy interrupts.

mod bus;
mod config;
mod msix;

pub use bus::{Bus, CONFIG_ADDRESS, CONFIG_DATA, SLOTS};
pub use config::{ConfigSpace, Identity, SIZE as CONFIG_SIZE};
pub use msix::{MsiMessage, Msix, SavedVector, Vector};

use std::ops::Range;

/// Guest addresses that base address registers may take. Nothing else of the machine is in here.
pub const MMIO_WINDOW: Range<u64> = 0xc000_0000..0xfec0_0000;

/// A device function as the bus sees it. vCPUs call it at the same time.
pub trait Function: Send + Sync + std::fmt::Debug {
    /// Reads 1, 2 or 4 bytes of configuration space; never across a double word.
    fn read_config(&self, offset: u8, data: &mut [u8]);

    /// Writes 1, 2 or 4 bytes of configuration space; never across a double word.
    fn write_config(&self, offset: u8, data: &[u8]);

    /// Where the guest's accesses reach base address register 0; `None` while it decodes nothing.
    fn window(&self) -> Option<Range<u64>>;

    /// Reads at `offset` of the window. Any length, any alignment.
    fn read_bar(&self, offset: u64, data: &mut [u8]);

    /// Writes at `offset` of the window. Any length, any alignment.
    fn write_bar(&self, offset: u64, data: &[u8]);
}
