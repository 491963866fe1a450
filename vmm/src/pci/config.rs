//! Configuration space of a type 0 function: bytes, and which of their bits the guest may change.

use super::MMIO_WINDOW;
use std::ops::Range;

/// Bytes of a configuration space.
pub const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_MASTER: u8 = 1 << 2;
/// `Interrupt Disable`, bit 10, in the register's high byte.
const COMMAND_HIGH_NO_INTX: u8 = 1 << 2;
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// What a function says that it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Class and subclass.
    pub class: u16,
    pub subsystem: u16,
}

#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    /// A set bit may be changed by the guest. Probing a base address register for its size falls out of this:
    /// the address bits below its size stay zero.
    writable: [u8; SIZE],
    capabilities_end: usize,
    /// Where the next capability's offset goes.
    link: usize,
    bar_size: u32,
}

impl ConfigSpace {
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            capabilities_end: FIRST_CAPABILITY,
            link: CAPABILITIES_POINTER,
            bar_size: 0,
        };
        space.bytes[0x00..0x02].copy_from_slice(&identity.vendor.to_le_bytes());
        space.bytes[0x02..0x04].copy_from_slice(&identity.device.to_le_bytes());
        space.bytes[0x08] = identity.revision;
        space.bytes[0x0a..0x0c].copy_from_slice(&identity.class.to_le_bytes());
        space.bytes[0x2c..0x2e].copy_from_slice(&identity.vendor.to_le_bytes());
        space.bytes[0x2e..0x30].copy_from_slice(&identity.subsystem.to_le_bytes());
        space.writable[COMMAND] = COMMAND_MEMORY | COMMAND_MASTER;
        space.writable[COMMAND + 1] = COMMAND_HIGH_NO_INTX;
        space
    }

    /// Makes base address register 0 a 32-bit memory window; `size` is a power of two of at least 16 bytes.
    pub fn set_bar(&mut self, address: u32, size: u32) {
        debug_assert!(size.is_power_of_two() && size >= 16 && address.is_multiple_of(size));
        self.bytes[BAR0..BAR0 + 4].copy_from_slice(&address.to_le_bytes());
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
        self.bar_size = size;
    }

    /// Adds a capability and returns its offset. `body` follows the identifier and the link to the next one.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let offset = self.capabilities_end;
        let end = offset + 2 + body.len();
        self.bytes[offset] = id;
        self.bytes[offset + 2..end].copy_from_slice(body);
        #[expect(clippy::cast_possible_truncation, reason = "capabilities lie within 256 bytes, or the copy panics")]
        let pointer = offset as u8;
        self.bytes[self.link] = pointer;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.link = offset + 1;
        self.capabilities_end = end.next_multiple_of(4);
        offset
    }

    /// Lets the guest change the bits of `mask` at `offset`.
    pub fn set_writable(&mut self, offset: usize, mask: u8) {
        self.writable[offset] = mask;
    }

    pub fn byte(&self, offset: usize) -> u8 {
        self.bytes[offset]
    }

    pub fn read(&self, offset: u8, data: &mut [u8]) {
        let offset = usize::from(offset);
        match self.bytes.get(offset..offset + data.len()) {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0xff),
        }
    }

    pub fn write(&mut self, offset: u8, data: &[u8]) {
        for (index, new) in data.iter().enumerate() {
            let Some(mask) = self.writable.get(usize::from(offset) + index) else { return };
            let byte = &mut self.bytes[usize::from(offset) + index];
            *byte = (*byte & !mask) | (new & mask);
        }
    }

    pub fn bytes(&self) -> &[u8; SIZE] {
        &self.bytes
    }

    /// Takes over the saved bytes of a function like this one; false when it was another, whose fixed bytes differ.
    pub fn restore(&mut self, saved: &[u8; SIZE]) -> bool {
        self.write(0, saved);
        self.bytes == *saved
    }

    /// The addresses that base address register 0 decodes now. An address outside of [`MMIO_WINDOW`] decodes
    /// nothing: the guest can't lay a device over memory.
    pub fn window(&self) -> Option<Range<u64>> {
        if self.bar_size == 0 || self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return None;
        }
        let bytes = [self.bytes[BAR0], self.bytes[BAR0 + 1], self.bytes[BAR0 + 2], self.bytes[BAR0 + 3]];
        let start = u64::from(u32::from_le_bytes(bytes));
        let end = start + u64::from(self.bar_size);
        (MMIO_WINDOW.start <= start && end <= MMIO_WINDOW.end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space =
            ConfigSpace::new(Identity { vendor: 0x1af4, device: 0x1042, revision: 1, class: 0xff00, subsystem: 2 });
        space.set_bar(0xc000_8000, 0x8000);
        space
    }

    fn bar(space: &ConfigSpace) -> u32 {
        let mut bytes = [0; 4];
        space.read(0x10, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn writing_ones_to_a_bar_reads_back_its_size() {
        let mut space = space();
        space.write(0x10, &u32::MAX.to_le_bytes());
        assert_eq!(!bar(&space) + 1, 0x8000);
        space.write(0x10, &0xd000_1234_u32.to_le_bytes());
        assert_eq!(bar(&space), 0xd000_0000);
    }

    #[test]
    fn unused_bars_and_the_rom_have_no_size() {
        let mut space = space();
        for register in [0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
            space.write(register, &u32::MAX.to_le_bytes());
            let mut bytes = [1; 4];
            space.read(register, &mut bytes);
            assert_eq!(bytes, [0; 4]);
        }
    }

    #[test]
    fn a_window_opens_with_the_memory_bit_and_only_inside_the_mmio_range() {
        let mut space = space();
        assert_eq!(space.window(), None);
        space.write(0x04, &[0xff, 0xff]);
        assert_eq!(space.window(), Some(0xc000_8000..0xc001_0000));
        for outside in [0_u32, 0x1000_0000, 0xbfff_8000, 0xfec0_0000, 0xffff_8000] {
            space.write(0x10, &outside.to_le_bytes());
            assert_eq!(space.window(), None, "{outside:#x}");
        }
    }

    #[test]
    fn identity_and_header_type_cannot_be_written() {
        let mut space = space();
        for offset in (0..=252_u8).step_by(4).filter(|offset| ![0x04, 0x10].contains(offset)) {
            let mut before = [0; 4];
            space.read(offset, &mut before);
            space.write(offset, &[0xa5; 4]);
            let mut after = [0; 4];
            space.read(offset, &mut after);
            assert_eq!(before, after, "{offset:#x}");
        }
    }

    #[test]
    fn only_the_bytes_of_the_same_function_are_restored() {
        let mut saved = space();
        saved.write(0x04, &[6, 0]);
        saved.write(0x10, &0xd000_0000_u32.to_le_bytes());
        let mut restored = space();
        assert!(restored.restore(saved.bytes()));
        assert_eq!(restored.window(), saved.window());
        let mut other = *saved.bytes();
        other[0x02] ^= 1;
        assert!(!space().restore(&other));
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(0x09, &[4, 1, 2]);
        let second = space.add_capability(0x11, &[0; 10]);
        assert_eq!(usize::from(space.byte(0x34)), first);
        assert_eq!(usize::from(space.byte(first + 1)), second);
        assert_eq!(space.byte(second), 0x11);
        assert_eq!(space.byte(second + 1), 0);
        assert!(second.is_multiple_of(4));
    }

    #[test]
    fn accesses_beyond_the_end_read_ones_and_write_nothing() {
        let mut space = space();
        let mut data = [0; 4];
        space.read(254, &mut data);
        assert_eq!(data, [0xff; 4]);
        space.write(254, &[1; 4]);
    }
}
