//! The zero page: what a boot loader tells Linux (Documentation/arch/x86/zero-page.rst).

use super::layout::{COMMAND_LINE, COMMAND_LINE_SIZE, HIGH_MEMORY, MP_TABLE};
use crate::pci::MMIO_WINDOW;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use std::ops::Range;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Protocol 2.15.
const PROTOCOL: u16 = 0x020f;
const UNDEFINED_LOADER: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;

/// The memory map. What lies between RAM and the PCI windows is reserved, so that Linux, which puts PCI devices into
/// the largest hole, uses the windows.
pub fn memory_map(ram: &[Range<u64>]) -> Vec<(Range<u64>, u32)> {
    let mut map = vec![(0..MP_TABLE, E820_RAM), (MP_TABLE..HIGH_MEMORY, E820_RESERVED)];
    for range in ram {
        let start = range.start.max(if range.start == 0 { HIGH_MEMORY } else { 0 });
        map.push((start..range.end, E820_RAM));
        if range.end < MMIO_WINDOW.start {
            map.push((range.end..MMIO_WINDOW.start, E820_RESERVED));
        }
    }
    map
}

/// The zero page of a machine with this RAM and the command line at its place.
pub fn zero_page(ram: &[Range<u64>]) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.version = PROTOCOL;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    #[expect(clippy::cast_possible_truncation, reason = "both are small constants")]
    {
        params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
        params.hdr.cmdline_size = COMMAND_LINE_SIZE as u32 - 1;
    }
    for (entry, (range, kind)) in params.e820_table.iter_mut().zip(memory_map(ram)) {
        *entry = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: kind };
        params.e820_entries += 1;
    }
    params
}

#[cfg(test)]
mod tests {
    use super::super::layout;
    use super::*;

    #[test]
    fn the_memory_map_is_sorted_and_without_overlap() {
        for mib in [64_u64, 128, 512, 3071, 3072, 3073, 8192, 1 << 20] {
            let ram = layout::ram(mib << 20);
            let map = memory_map(&ram);
            for pair in map.windows(2) {
                assert!(pair[0].0.end <= pair[1].0.start, "{mib} MiB: {map:x?}");
            }
            let usable: u64 = map.iter().filter(|entry| entry.1 == E820_RAM).map(|e| e.0.end - e.0.start).sum();
            assert_eq!(usable, (mib << 20) - (HIGH_MEMORY - MP_TABLE));
        }
    }

    #[test]
    fn the_largest_hole_below_four_gib_is_the_pci_window() {
        for mib in [64_u64, 1024, 3072, 8192] {
            let map = memory_map(&layout::ram(mib << 20));
            let end = map.iter().map(|entry| entry.0.end).filter(|end| *end < 1 << 32).max();
            assert_eq!(end, Some(MMIO_WINDOW.start));
        }
    }

    #[test]
    fn the_zero_page_counts_its_entries() {
        let params = zero_page(&layout::ram(512 << 20));
        assert_eq!(params.e820_entries, 4);
        let header = params.hdr;
        assert_eq!({ header.boot_flag }, 0xaa55);
        assert_eq!({ header.header }.to_le_bytes(), *b"HdrS");
    }
}
