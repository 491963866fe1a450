//! The guest's physical address space.
//!
//! ```text
//!  0 ──────────── boot tables, then 640 KiB of RAM with the MP table at its end
//!  1 MiB ──────── RAM, kernel
//!  3 GiB ──────── PCI windows (nothing else from here to 4 GiB but the interrupt controllers)
//!  4 GiB ──────── the rest of RAM
//!  next GiB ───── images, read-only, each at a GiB: the guest's root, and what is attached later
//!  next GiB ───── memory that the guest is given later
//! ```

use crate::pci::{MMIO_WINDOW, SLOTS};
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

/// Addresses for images: the shim attaches no more than RAM with its growth, each of at most [`SLOTS`] wastes less than a GiB,
/// and what goes leaves holes. Where they begin does not depend on the growth, of which a template knows nothing.
pub fn images(ram: &[Range<u64>], growth: u64) -> Range<u64> {
    let start = ram.last().map_or(0, |range| range.end).max(ABOVE_HOLE).next_multiple_of(GIB);
    let size = ram.iter().map(|range| range.end - range.start).sum::<u64>() + growth;
    start..start + 2 * (size.next_multiple_of(GIB) + SLOTS as u64 * GIB)
}

/// Addresses for `size` bytes of memory that come later.
pub fn growth(ram: &[Range<u64>], size: u64) -> Range<u64> {
    let start = images(ram, size).end;
    start..start + size
}

/// The lowest place for `size` bytes that no image of `taken` has.
pub fn next_image<'a>(
    taken: &(impl Iterator<Item = &'a Range<u64>> + Clone),
    images: &Range<u64>,
    size: u64,
) -> Option<Range<u64>> {
    let ends = taken.clone().map(|range| range.end.next_multiple_of(GIB));
    let places = ends.chain([images.start]).filter_map(|start| Some(start..start.checked_add(size)?));
    let fits = |place: &Range<u64>| {
        place.end <= images.end && taken.clone().all(|range| range.end <= place.start || place.end <= range.start)
    };
    places.filter(fits).min_by_key(|place| place.start)
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
        assert_eq!(images(&ram(64 << 20), 0), 4 * GIB..70 * GIB);
    }

    #[test]
    fn what_grows_lies_behind_the_images_and_does_not_move_them() {
        let ranges = ram(128 << 20);
        for size in [2 << 20, 384 << 20, 64 * GIB] {
            let (images, growth) = (images(&ranges, size), growth(&ranges, size));
            assert_eq!(images.start, 4 * GIB);
            assert_eq!((growth.start, growth.end), (images.end, images.end + size));
            assert!(growth.start.is_multiple_of(GIB));
        }
    }

    #[test]
    fn an_image_takes_the_lowest_place_that_is_free() {
        let place = |taken: &[Range<u64>], size| {
            next_image(&taken.iter(), &(4 * GIB..20 * GIB), size).map(|place| place.start / GIB)
        };
        assert_eq!(place(&[], 7 * GIB), Some(4));
        let taken = [4 * GIB..4 * GIB + 1, 7 * GIB..8 * GIB];
        assert_eq!(place(&taken, 2 * GIB), Some(5));
        assert_eq!(place(&taken, 3 * GIB), Some(8));
        assert_eq!(place(&taken[1..], GIB), Some(4));
        assert_eq!(place(&taken, 12 * GIB), Some(8));
        assert_eq!(place(&taken, 12 * GIB + 1), None);
        assert_eq!(place(&taken, u64::MAX), None);
    }

    #[test]
    fn the_rest_goes_above_four_gib() {
        let ranges = ram(5 * GIB + (1 << 20));
        assert_eq!(ranges, [0..3 * GIB, 4 * GIB..6 * GIB + (1 << 20)]);
        assert_eq!(images(&ranges, 0).start, 7 * GIB);
    }
}
