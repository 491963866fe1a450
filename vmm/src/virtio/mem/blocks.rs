//! Which blocks of the region the driver has plugged, and how many it may have.

use super::spec::{Config, State};
use std::ops::Range;

/// Bytes of a block: a huge page of the host's.
pub const BLOCK: u64 = 2 << 20;

/// Linux adds memory in pieces of this size at least, and ignores a shorter rest of the region.
const LINUX_BLOCK: u64 = 128 << 20;

#[derive(Debug)]
pub struct Blocks {
    start: u64,
    plugged: Vec<bool>,
    count: u64,
    /// Blocks that the driver is to have.
    requested: u64,
}

/// Why blocks are not plugged or unplugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// More than the guest is to have.
    TooMany,
    /// Not blocks of the region, or not in the state that the request supposes.
    Wrong,
}

impl Blocks {
    /// For memory at these guest addresses, which are whole blocks.
    pub fn new(addresses: &Range<u64>) -> Self {
        let blocks = usize::try_from((addresses.end - addresses.start) / BLOCK).unwrap_or(0);
        Self { start: addresses.start, plugged: vec![false; blocks], count: 0, requested: 0 }
    }

    /// `bytes` are whole blocks, at most as many as there are.
    pub fn request(&mut self, bytes: u64) {
        self.requested = (bytes / BLOCK).min(self.plugged.len() as u64);
    }

    pub fn config(&self) -> Config {
        let length = (self.plugged.len() as u64 * BLOCK).next_multiple_of(LINUX_BLOCK);
        let (plugged, requested) = (self.count * BLOCK, self.requested * BLOCK);
        Config { block: BLOCK, start: self.start, length, plugged, requested }
    }

    pub fn plug(&mut self, start: u64, blocks: u16) -> Result<(), Refusal> {
        if self.count + u64::from(blocks) > self.requested {
            return Err(Refusal::TooMany);
        }
        self.change(start, blocks, true).map(drop)
    }

    /// Returns the addresses that the driver has given up.
    pub fn unplug(&mut self, start: u64, blocks: u16) -> Result<Range<u64>, Refusal> {
        self.change(start, blocks, false)
    }

    /// Returns all addresses of the region.
    pub fn unplug_all(&mut self) -> Range<u64> {
        self.plugged.fill(false);
        self.count = 0;
        self.start..self.start + self.plugged.len() as u64 * BLOCK
    }

    /// What of the region these blocks are. What lies behind its memory is never plugged.
    pub fn state(&self, start: u64, blocks: u16) -> Option<State> {
        let first = self.index(start).filter(|_| blocks > 0)?;
        let end = first + usize::from(blocks);
        if end as u64 > self.config().length / BLOCK {
            return None;
        }
        let known = self.plugged.get(first..end.min(self.plugged.len())).unwrap_or_default();
        Some(match known.iter().filter(|plugged| **plugged).count() {
            0 => State::Unplugged,
            count if count == usize::from(blocks) => State::Plugged,
            _ => State::Mixed,
        })
    }

    fn change(&mut self, start: u64, blocks: u16, plugged: bool) -> Result<Range<u64>, Refusal> {
        let first = self.index(start).filter(|_| blocks > 0).ok_or(Refusal::Wrong)?;
        let range = first..first + usize::from(blocks);
        let range = self.plugged.get_mut(range).filter(|range| range.iter().all(|block| *block != plugged));
        range.ok_or(Refusal::Wrong)?.fill(plugged);
        let blocks = u64::from(blocks);
        self.count = if plugged { self.count + blocks } else { self.count - blocks };
        Ok(start..start + blocks * BLOCK)
    }

    fn index(&self, start: u64) -> Option<usize> {
        let offset = start.checked_sub(self.start)?;
        offset.is_multiple_of(BLOCK).then(|| usize::try_from(offset / BLOCK).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Random;

    const START: u64 = 70 << 30;

    fn blocks(count: u64, requested: u64) -> Blocks {
        let mut blocks = Blocks::new(&(START..START + count * BLOCK));
        blocks.request(requested * BLOCK);
        blocks
    }

    fn at(block: u64) -> u64 {
        START + block * BLOCK
    }

    #[test]
    fn a_driver_gets_what_is_requested_and_no_more() {
        let mut blocks = blocks(100, 3);
        blocks.plug(at(0), 2).unwrap();
        assert_eq!(blocks.plug(at(2), 2), Err(Refusal::TooMany));
        blocks.plug(at(7), 1).unwrap();
        assert_eq!(blocks.plug(at(8), 1), Err(Refusal::TooMany));
        assert_eq!(blocks.config().plugged, 3 * BLOCK);
        assert_eq!(blocks.unplug(at(7), 1), Ok(at(7)..at(8)));
        blocks.plug(at(99), 1).unwrap();
        blocks.request(u64::MAX);
        assert_eq!(blocks.config().requested, 100 * BLOCK);
        assert_eq!(blocks.plug(at(99), 1), Err(Refusal::Wrong), "it is plugged");
        assert_eq!(blocks.unplug_all(), at(0)..at(100));
        assert_eq!(blocks.config().plugged, 0);
    }

    #[test]
    fn what_is_no_block_of_the_region_is_refused() {
        let mut blocks = blocks(100, 100);
        for (start, count) in [
            (at(0), 0),
            (at(0) + 1, 1),
            (at(0) - BLOCK, 1),
            (0, 1),
            (at(100), 1),
            (at(99), 2),
            (at(127), 1),
            (u64::MAX - BLOCK + 1, 1),
            (u64::MAX, 1),
        ] {
            assert_eq!(blocks.plug(start, count), Err(Refusal::Wrong), "{start:#x} {count}");
            assert_eq!(blocks.unplug(start, count), Err(Refusal::Wrong), "{start:#x} {count}");
        }
        assert_eq!(blocks.plug(at(0), u16::MAX), Err(Refusal::TooMany));
        assert_eq!(blocks.state(at(0), 0), None);
        assert_eq!(blocks.state(at(127), 1), Some(State::Unplugged), "Linux sees whole pieces of its own");
        assert_eq!(blocks.state(at(127), 2), None);
        assert_eq!(blocks.state(at(1 << 20), u16::MAX), None);
        assert_eq!(blocks.state(u64::MAX - BLOCK + 1, u16::MAX), None);
    }

    #[test]
    fn the_region_is_as_long_as_linux_needs_it() {
        assert_eq!(blocks(1, 0).config().length, LINUX_BLOCK);
        assert_eq!(blocks(64, 0).config().length, LINUX_BLOCK);
        assert_eq!(blocks(65, 0).config().length, 2 * LINUX_BLOCK);
    }

    #[test]
    fn any_sequence_of_requests_agrees_with_a_model() {
        let mut random = Random::new(0x5eed_0018);
        let mut blocks = blocks(24, 16);
        let mut model = [false; 24];
        for _ in 0..20_000 {
            let first = usize::try_from(random.number() % 26).unwrap();
            let count = usize::try_from(random.number() % 4).unwrap();
            let (start, number) = (at(first as u64), u16::try_from(count).unwrap());
            let plugged = model.iter().filter(|block| **block).count();
            let wanted = random.number().is_multiple_of(2);
            let fits = count > 0 && model.get(first..first + count).is_some_and(|part| !part.contains(&wanted));
            let expected = fits && (!wanted || plugged + count <= 16);
            let changed = if wanted { blocks.plug(start, number) } else { blocks.unplug(start, number).map(drop) };
            assert_eq!(changed.is_ok(), expected);
            if expected {
                model[first..first + count].fill(wanted);
            }
            let plugged = model.iter().filter(|block| **block).count() as u64;
            assert_eq!(blocks.config().plugged, plugged * BLOCK);
        }
    }
}
