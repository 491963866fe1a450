//! Where the files of a [`crate::Device::Layers`] are in its address space. Both ends compute it, so that no number of one
//! is believed by the other.

use std::ops::Range;

/// Most files of one disk: as many layers as an image may have.
pub const MAX_PARTS: usize = 128;

/// Each file starts at a multiple of this many bytes: a page, and a block of every filesystem in question.
pub const PART_ALIGNMENT: u64 = 4096;

/// The bytes of the disk that each file has, in order, without the zeroes up to the next file. `None` when there is none, or
/// too many, or an empty one, or when no disk is that long.
pub fn part_offsets(lengths: &[u64]) -> Option<Vec<Range<u64>>> {
    if lengths.is_empty() || lengths.len() > MAX_PARTS {
        return None;
    }
    let mut start = 0_u64;
    let place = |&length: &u64| {
        let end = start.checked_add(length).filter(|_| length > 0)?;
        let place = start..end;
        // What follows, if only zeroes, must be addressable too.
        start = end.checked_next_multiple_of(PART_ALIGNMENT).filter(|end| i64::try_from(*end).is_ok())?;
        Some(place)
    };
    lengths.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_start_at_pages_and_do_not_overlap() {
        assert_eq!(part_offsets(&[4096, 1, 8192]).unwrap(), [0..4096, 4096..4097, 8192..16384]);
        let lengths: Vec<u64> = (1..=MAX_PARTS as u64).map(|number| number * 517).collect();
        let places = part_offsets(&lengths).unwrap();
        assert!(places.iter().zip(&lengths).all(|(place, length)| place.end - place.start == *length));
        assert!(places.iter().all(|place| place.start.is_multiple_of(PART_ALIGNMENT)));
        let gaps = places.windows(2).map(|pair| pair[1].start.checked_sub(pair[0].end).unwrap());
        assert!(gaps.max().unwrap() < PART_ALIGNMENT);
    }

    #[test]
    fn what_no_disk_can_be_has_no_places() {
        for lengths in [&[][..], &[0], &[4096, 0], &[u64::MAX], &[1 << 62, 1 << 62], &[i64::MAX as u64], &[1; 129]] {
            assert_eq!(part_offsets(lengths), None, "{} parts", lengths.len());
        }
    }
}
