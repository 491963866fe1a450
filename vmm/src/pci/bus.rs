//! The bus: configuration accesses through two I/O ports, memory accesses by window.

use super::{ConfigSpace, Function, Identity};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// I/O port that selects a configuration register (32 bits).
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// First of the four I/O ports that show the selected register.
pub const CONFIG_DATA: u16 = 0xcfc;

pub const SLOTS: usize = 32;

const ENABLE: u32 = 1 << 31;

type Slots = [Option<Arc<dyn Function>>; SLOTS];

#[derive(Debug)]
pub struct Bus {
    /// What the guest wrote to [`CONFIG_ADDRESS`]. A guest that races with itself gets what it asked for last.
    address: AtomicU32,
    /// Slot 0: Linux believes in mechanism #1 only when it finds a host bridge.
    host_bridge: ConfigSpace,
    slots: RwLock<Slots>,
    /// A bit for each slot whose function is on its way out.
    hidden: AtomicU32,
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus {
    pub fn new() -> Self {
        let identity = Identity { vendor: 0x8086, device: 0x0d57, revision: 0, class: 0x0600, subsystem: 0 };
        Self {
            address: AtomicU32::new(0),
            host_bridge: ConfigSpace::new(identity),
            slots: RwLock::new(Slots::default()),
            hidden: AtomicU32::new(0),
        }
    }

    /// The register that the guest has selected, for a snapshot.
    pub fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Selects it in a restored machine.
    pub fn set_address(&self, address: u32) {
        self.address.store(address, Ordering::Relaxed);
    }

    /// Puts a function into a slot from 1 to 31; false when the slot is taken or does not exist.
    pub fn insert(&self, slot: u8, function: Arc<dyn Function>) -> bool {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        match slots.get_mut(usize::from(slot)) {
            Some(free @ None) if slot != 0 => {
                *free = Some(function);
                true
            }
            _ => false,
        }
    }

    /// Who looks for a function finds none in this slot any more. Its window stays.
    pub fn hide(&self, slot: u8) {
        self.hidden.fetch_or(bit(slot), Ordering::Relaxed);
    }

    /// Takes a function off the bus. A vCPU may be inside one of its methods still.
    pub fn remove(&self, slot: u8) -> Option<Arc<dyn Function>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        self.hidden.fetch_and(!bit(slot), Ordering::Relaxed);
        slots.get_mut(usize::from(slot)).and_then(Option::take)
    }

    /// The guest reads a port of mechanism #1.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if port == CONFIG_ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
        } else if let Some((slot, offset)) = self.selected(port, data.len()) {
            if slot == 0 {
                self.host_bridge.read(offset, data);
            } else if let Some(function) = self.function(slot) {
                function.read_config(offset, data);
            }
        }
    }

    /// The guest writes a port of mechanism #1.
    pub fn write_port(&self, port: u16, data: &[u8]) {
        if port == CONFIG_ADDRESS {
            if let Ok(bytes) = data.try_into() {
                self.address.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
            }
        } else if let Some((slot, offset)) = self.selected(port, data.len())
            && let Some(function) = self.function(slot)
        {
            function.write_config(offset, data);
        }
    }

    /// The guest reads memory that is not RAM. False when no device is there.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        match self.decode(address) {
            Some((function, offset)) => {
                function.read_bar(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// The guest writes memory that is not RAM. False when no device is there.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> bool {
        match self.decode(address) {
            Some((function, offset)) => {
                function.write_bar(offset, data);
                true
            }
            None => false,
        }
    }

    /// Slot and offset that a data port access of `length` bytes reaches; `None` off bus 0 or function 0, or
    /// across the end of the double word.
    fn selected(&self, port: u16, length: usize) -> Option<(u8, u8)> {
        let lane = usize::from(port.checked_sub(CONFIG_DATA)?);
        let address = self.address.load(Ordering::Relaxed);
        let [register, function, bus, _] = address.to_le_bytes();
        let on_bus = address & ENABLE != 0 && bus == 0 && function.trailing_zeros() >= 3;
        if !on_bus || !matches!(length, 1 | 2 | 4) || lane + length > 4 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a lane is below 4")]
        let offset = (register & !3) | lane as u8;
        Some((function >> 3, offset))
    }

    /// What answers in a slot's configuration space.
    fn function(&self, slot: u8) -> Option<Arc<dyn Function>> {
        if self.hidden.load(Ordering::Relaxed) & bit(slot) != 0 {
            return None;
        }
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(usize::from(slot))?.clone()
    }

    /// The function behind an address. Where a guest lets windows overlap, the lowest slot answers, and hidden ones last: what a guest
    /// has let go of, it may give to a new function before the old one is gone.
    fn decode(&self, address: u64) -> Option<(Arc<dyn Function>, u64)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let hidden = self.hidden.load(Ordering::Relaxed);
        let find = |is_hidden: bool| {
            slots.iter().zip(0..).find_map(|(function, slot)| {
                let function = function.as_ref().filter(|_| (hidden & bit(slot) != 0) == is_hidden)?;
                let window = function.window().filter(|window| window.contains(&address))?;
                Some((Arc::clone(function), address - window.start))
            })
        };
        find(false).or_else(|| find(true))
    }
}

/// 0 for a slot that does not exist.
fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    #[derive(Debug)]
    struct Echo;

    impl Function for Echo {
        fn read_config(&self, offset: u8, data: &mut [u8]) {
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = offset + u8::try_from(index).unwrap();
            }
        }
        fn write_config(&self, _: u8, _: &[u8]) {}
        fn window(&self) -> Option<Range<u64>> {
            Some(0xc000_0000..0xc000_1000)
        }
        fn read_bar(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0xff).unwrap());
        }
        fn write_bar(&self, _: u64, _: &[u8]) {}
    }

    /// At the same place.
    #[derive(Debug)]
    struct Other;

    impl Function for Other {
        fn read_config(&self, _: u8, _: &mut [u8]) {}
        fn write_config(&self, _: u8, _: &[u8]) {}
        fn window(&self) -> Option<Range<u64>> {
            Echo.window()
        }
        fn read_bar(&self, _: u64, data: &mut [u8]) {
            data.fill(0x55);
        }
        fn write_bar(&self, _: u64, _: &[u8]) {}
    }

    fn bus() -> Bus {
        let bus = Bus::new();
        assert!(bus.insert(3, Arc::new(Echo)));
        bus
    }

    fn config(bus: &Bus, address: u32, port: u16, length: usize) -> Vec<u8> {
        bus.write_port(CONFIG_ADDRESS, &address.to_le_bytes());
        let mut data = vec![0; length];
        bus.read_port(port, &mut data);
        data
    }

    #[test]
    fn every_lane_and_size_within_a_double_word_reaches_the_register() {
        let bus = bus();
        let address = ENABLE | 3 << 11 | 0x40;
        for (lane, length) in [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2), (2, 2), (0, 4)] {
            let data = config(&bus, address, CONFIG_DATA + lane, length);
            assert_eq!(data[0], 0x40 + u8::try_from(lane).unwrap());
        }
    }

    #[test]
    fn accesses_off_the_bus_read_ones() {
        let bus = bus();
        let on = ENABLE | 3 << 11;
        for address in [on & !ENABLE, on | 1 << 16, on | 1 << 8, ENABLE | 4 << 11] {
            assert_eq!(config(&bus, address, CONFIG_DATA, 4), [0xff; 4], "{address:#x}");
        }
        assert_eq!(config(&bus, on, CONFIG_DATA + 3, 2), [0xff; 2]);
        assert_eq!(config(&bus, on, CONFIG_DATA + 1, 4), [0xff; 4]);
        assert_eq!(config(&bus, on, CONFIG_DATA, 8), [0xff; 8]);
        assert_eq!(config(&bus, on, CONFIG_ADDRESS, 2), [0xff; 2]);
    }

    #[test]
    fn slot_zero_is_a_host_bridge() {
        assert_eq!(config(&bus(), ENABLE | 0x08, CONFIG_DATA + 2, 2), [0x00, 0x06]);
    }

    #[test]
    fn a_taken_slot_the_bridge_and_slots_off_the_bus_are_refused() {
        let bus = bus();
        for slot in [0, 3, 32, 255] {
            assert!(!bus.insert(slot, Arc::new(Echo)), "{slot}");
        }
        assert!(bus.remove(3).is_some());
        assert!(bus.remove(3).is_none());
        assert!(bus.insert(3, Arc::new(Echo)));
    }

    #[test]
    fn a_hidden_function_is_not_found_and_works_until_it_is_removed() {
        let bus = bus();
        bus.hide(3);
        assert_eq!(config(&bus, ENABLE | 3 << 11, CONFIG_DATA, 4), [0xff; 4]);
        let mut data = [0; 1];
        assert!(bus.read_memory(0xc000_0010, &mut data));
        assert!(bus.remove(3).is_some());
        assert!(bus.insert(3, Arc::new(Echo)));
        assert_eq!(config(&bus, ENABLE | 3 << 11, CONFIG_DATA, 4), [0, 1, 2, 3]);
        // There is no such slot.
        bus.hide(32);
    }

    #[test]
    fn a_new_function_has_the_window_of_one_that_is_hidden() {
        let bus = bus();
        bus.insert(5, Arc::new(Other));
        let read = || {
            let mut data = [0; 1];
            bus.read_memory(0xc000_0010, &mut data);
            data[0]
        };
        assert_eq!(read(), 0x10);
        bus.hide(3);
        assert_eq!(read(), 0x55);
        bus.remove(5);
        assert_eq!(read(), 0x10);
    }

    #[test]
    fn memory_outside_of_any_window_reads_ones() {
        let bus = bus();
        let mut data = [0; 8];
        assert!(bus.read_memory(0xc000_0010, &mut data));
        assert_eq!(data, [0x10; 8]);
        assert!(!bus.read_memory(0xc000_1000, &mut data));
        assert_eq!(data, [0xff; 8]);
        assert!(!bus.write_memory(u64::MAX, &data));
    }
}
