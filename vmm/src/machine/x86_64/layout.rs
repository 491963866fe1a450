//! The guest's physical address space.
//!
//! ```text
//!  0 ──────────── boot tables, then 640 KiB of RAM with the MP table at its end
//!  1 MiB ──────── RAM, kernel
//!  3 GiB ──────── PCI windows (nothing else from here to 4 GiB but the interrupt controllers)
//!  4 GiB ──────── the rest of RAM
//!  next GiB ───── root image, read-only
//! ```

use crate::pci::MMIO_WINDOW;
use std::ops::Range;

const GIB: u64 = 1 << 30;

pub const GDT: u64 = 0x500;
pub const ZERO_PAGE: u64 = 0x7000;
/// Three pages: one table of each level.
pub const PAGE_TABLES: u64 = 0x9000;
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line with its end, in bytes: Linux's `COMMAND_LINE_SIZE`.
pub const COMMAND_LINE_SIZE: usize = 2048;
/// Last KiB of base memory: one of the places where Linux looks.
pub const MP_TABLE: u64 = 0x9_fc00;
pub const BASE_MEMORY_END: u64 = 0xa_0000;
/// Where RAM goes on after the hole below 1 MiB, and where kernels may begin.
pub const HIGH_MEMORY: u64 = 0x10_0000;

pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Pages that KVM needs on Intel processors, outside of RAM and devices.
pub const KVM_TSS: usize = 0xfffb_d000;
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

const BELOW_HOLE: u64 = MMIO_WINDOW.start;
const ABOVE_HOLE: u64 = 4 * GIB;

/// Guest addresses that are RAM for a machine with `size` bytes of it.
pub fn ram(size: u64) -> Vec<Range<u64>> {
    let low = size.min(BELOW_HOLE);
    let mut ranges = Vec::with_capacity(2);
    ranges.push(0..low);
    if size > low {
        ranges.push(ABOVE_HOLE..ABOVE_HOLE + (size - low));
    }
    ranges
}

/// Where the root image starts.
pub fn root_image(ram: &[Range<u64>]) -> u64 {
    ram.last().map_or(0, |range| range.end).max(ABOVE_HOLE).next_multiple_of(GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_below_the_hole_is_one_range() {
        for size in [64 << 20, 3 * GIB] {
            let ranges = ram(size);
            assert_eq!((ranges.len(), &ranges[0]), (1, &(0..size)));
        }
        assert_eq!(root_image(&ram(64 << 20)), 4 * GIB);
    }

    #[test]
    fn the_rest_goes_above_four_gib() {
        let ranges = ram(5 * GIB + (1 << 20));
        assert_eq!(ranges, [0..3 * GIB, 4 * GIB..6 * GIB + (1 << 20)]);
        assert_eq!(root_image(&ranges), 7 * GIB);
    }
}
