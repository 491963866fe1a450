//! MSI-X: the table that the guest programs, and the vectors that device threads trigger.
//!
//! A vector's interrupt goes through an irqfd whose route in KVM holds the message. Routes are written by the main
//! thread, since a vCPU may make no call but `KVM_RUN`. So a vector knows whether the route in KVM is that of its
//! message; until it is, and while the guest masks the vector, an interrupt is kept as pending.

use crate::virtio::device::Interrupt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ENTRY_SIZE: u64 = 16;
const ENTRY_MASKED: u32 = 1;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;

/// Where an interrupt goes: the guest's words, opaque to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    pub address_low: u32,
    pub address_high: u32,
    pub data: u32,
}

#[derive(Debug)]
struct VectorState {
    message: MsiMessage,
    masked: bool,
    /// MSI-X is enabled and the function is not masked as a whole.
    open: bool,
    /// KVM's route holds `message`.
    routed: bool,
    pending: bool,
}

/// One interrupt of a device.
#[derive(Debug)]
pub struct Vector {
    irqfd: EventFd,
    state: Mutex<VectorState>,
}

impl Vector {
    pub fn new() -> io::Result<Self> {
        let state =
            VectorState { message: MsiMessage::default(), masked: true, open: false, routed: false, pending: false };
        Ok(Self { irqfd: EventFd::new(EFD_NONBLOCK)?, state: Mutex::new(state) })
    }

    /// The descriptor to register with KVM.
    pub fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }

    /// The message that KVM's route must hold, once the guest has written one.
    pub fn message(&self) -> Option<MsiMessage> {
        let message = self.state().message;
        (message != MsiMessage::default()).then_some(message)
    }

    /// KVM's route of this vector now holds `message`. Delivers what waited for it.
    pub fn set_routed(&self, message: MsiMessage) {
        let mut state = self.state();
        if state.message == message {
            state.routed = true;
            self.deliver(&mut state);
        }
    }

    /// Changes what the guest controls; true when the interrupt is wanted but KVM's route is stale.
    fn update(&self, change: impl FnOnce(&mut VectorState)) -> bool {
        let mut state = self.state();
        let before = state.message;
        change(&mut state);
        state.routed &= state.message == before;
        self.deliver(&mut state);
        state.open && !state.masked && !state.routed
    }

    fn deliver(&self, state: &mut VectorState) {
        if state.pending && state.open && !state.masked && state.routed {
            state.pending = false;
            if let Err(error) = self.irqfd.write(1) {
                crate::guest_warn!(%error, "cannot deliver an interrupt");
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, VectorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupt for Vector {
    fn trigger(&self) -> io::Result<()> {
        let mut state = self.state();
        state.pending = true;
        self.deliver(&mut state);
        Ok(())
    }
}

/// What a snapshot holds of a vector. Routes are written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedVector {
    pub message: MsiMessage,
    pub masked: bool,
    pub pending: bool,
}

/// The MSI-X structure of a function.
#[derive(Debug)]
pub struct Msix {
    vectors: Vec<Arc<Vector>>,
    open: bool,
}

impl Msix {
    pub fn new(count: usize) -> io::Result<Self> {
        let vectors = (0..count).map(|_| Vector::new().map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self { vectors, open: false })
    }

    pub fn vectors(&self) -> &[Arc<Vector>] {
        &self.vectors
    }

    /// The body of the PCI capability: message control, then where table and pending bits lie in BAR 0.
    pub fn capability(&self, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        let last = u16::try_from(self.vectors.len() - 1).unwrap_or(0);
        body[0..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..10].copy_from_slice(&pending.to_le_bytes());
        body
    }

    /// The high byte of message control, which the guest may write: `enable` and `mask all`.
    pub const CONTROL_HIGH_WRITABLE: u8 = ((CONTROL_ENABLE | CONTROL_MASK_ALL) >> 8) as u8;

    /// The guest wrote the high byte of message control; true when routes must be written.
    pub fn set_control(&mut self, high: u8) -> bool {
        let control = u16::from(high) << 8;
        let open = control & CONTROL_ENABLE != 0 && control & CONTROL_MASK_ALL == 0;
        self.open = open;
        let mut stale = false;
        for vector in &self.vectors {
            stale |= vector.update(|state| state.open = open);
        }
        stale
    }

    /// Reads the table. Only aligned accesses of 4 or 8 bytes are defined; others read zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !defined(offset, data.len()) {
            return;
        }
        for (index, word) in data.chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&self.table_word(offset + 4 * index as u64).to_le_bytes());
        }
    }

    /// Writes the table; true when routes must be written. Accesses that are not defined are ignored.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> bool {
        if !defined(offset, data.len()) {
            return false;
        }
        let mut stale = false;
        for (word, offset) in data.as_chunks::<4>().0.iter().zip((offset..).step_by(4)) {
            stale |= self.set_table_word(offset, u32::from_le_bytes(*word));
        }
        stale
    }

    /// Each vector as the guest has programmed it.
    pub fn save(&self) -> Vec<SavedVector> {
        let save = |vector: &Arc<Vector>| {
            let state = vector.state();
            SavedVector { message: state.message, masked: state.masked, pending: state.pending }
        };
        self.vectors.iter().map(save).collect()
    }

    /// Takes over what was saved of a structure with as many vectors; false when this one has others. For one that is new
    /// and not enabled: [`Msix::set_control`] follows, and routes.
    pub fn restore(&mut self, saved: &[SavedVector]) -> bool {
        for (vector, saved) in self.vectors.iter().zip(saved) {
            let mut state = vector.state();
            (state.message, state.masked, state.pending) = (saved.message, saved.masked, saved.pending);
        }
        self.vectors.len() == saved.len()
    }

    /// Reads the pending bits, one per vector.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (index, vector) in self.vectors.iter().enumerate() {
            let byte = (index as u64 / 8).checked_sub(offset).and_then(|byte| usize::try_from(byte).ok());
            if let Some(byte) = byte.and_then(|byte| data.get_mut(byte)) {
                *byte |= u8::from(vector.state().pending) << (index % 8);
            }
        }
    }

    fn vector(&self, offset: u64) -> Option<&Vector> {
        self.vectors.get(usize::try_from(offset / ENTRY_SIZE).ok()?).map(AsRef::as_ref)
    }

    fn table_word(&self, offset: u64) -> u32 {
        let Some(vector) = self.vector(offset) else { return 0 };
        let state = vector.state();
        match offset % ENTRY_SIZE {
            0 => state.message.address_low,
            4 => state.message.address_high,
            8 => state.message.data,
            _ => u32::from(state.masked),
        }
    }

    fn set_table_word(&mut self, offset: u64, value: u32) -> bool {
        let Some(vector) = self.vector(offset) else { return false };
        vector.update(|state| match offset % ENTRY_SIZE {
            0 => state.message.address_low = value,
            4 => state.message.address_high = value,
            8 => state.message.data = value,
            _ => state.masked = value & ENTRY_MASKED != 0,
        })
    }
}

fn defined(offset: u64, length: usize) -> bool {
    matches!(length, 4 | 8) && offset.is_multiple_of(length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENABLE: u8 = 0x80;
    const MASK_ALL: u8 = 0x40;
    const MESSAGE: MsiMessage = MsiMessage { address_low: 0xfee0_0000, address_high: 0, data: 0x31 };

    fn programmed() -> Msix {
        let mut msix = Msix::new(2).unwrap();
        msix.set_control(ENABLE);
        msix.write_table(0, &0xfee0_0000_u64.to_le_bytes());
        msix.write_table(8, &0x31_u32.to_le_bytes());
        msix
    }

    fn unmask(msix: &mut Msix) -> bool {
        msix.write_table(12, &0_u32.to_le_bytes())
    }

    fn delivered(msix: &Msix) -> bool {
        msix.vectors()[0].irqfd().read().is_ok()
    }

    fn pending(msix: &Msix) -> bool {
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits);
        bits[0] & 1 != 0
    }

    #[test]
    fn vectors_start_masked() {
        let msix = Msix::new(2).unwrap();
        for entry in 0..2 {
            let mut control = [0; 4];
            msix.read_table(entry * 16 + 12, &mut control);
            assert_eq!(u32::from_le_bytes(control), 1);
        }
    }

    #[test]
    fn an_interrupt_waits_for_unmask_and_route() {
        let mut msix = programmed();
        let vector = Arc::clone(&msix.vectors()[0]);
        vector.trigger().unwrap();
        assert!(!delivered(&msix) && pending(&msix));
        assert!(unmask(&mut msix), "the route is stale");
        assert!(!delivered(&msix) && pending(&msix));
        vector.set_routed(MESSAGE);
        assert!(delivered(&msix) && !pending(&msix));
    }

    #[test]
    fn masking_holds_an_interrupt_back_and_unmasking_needs_no_new_route() {
        let mut msix = programmed();
        unmask(&mut msix);
        msix.vectors()[0].set_routed(MESSAGE);
        msix.write_table(12, &1_u32.to_le_bytes());
        msix.vectors()[0].trigger().unwrap();
        assert!(!delivered(&msix) && pending(&msix));
        assert!(!unmask(&mut msix));
        assert!(delivered(&msix));
    }

    #[test]
    fn a_new_message_is_not_sent_through_the_old_route() {
        let mut msix = programmed();
        unmask(&mut msix);
        msix.vectors()[0].set_routed(MESSAGE);
        assert!(msix.write_table(8, &0x41_u32.to_le_bytes()));
        msix.vectors()[0].trigger().unwrap();
        assert!(!delivered(&msix));
        msix.vectors()[0].set_routed(MESSAGE);
        assert!(!delivered(&msix), "the route that was written is older than the message");
        msix.vectors()[0].set_routed(MsiMessage { data: 0x41, ..MESSAGE });
        assert!(delivered(&msix));
    }

    #[test]
    fn the_function_mask_covers_every_vector() {
        let mut msix = programmed();
        unmask(&mut msix);
        msix.vectors()[0].set_routed(MESSAGE);
        msix.set_control(ENABLE | MASK_ALL);
        msix.vectors()[0].trigger().unwrap();
        assert!(!delivered(&msix) && pending(&msix));
        msix.set_control(ENABLE);
        assert!(delivered(&msix));
    }

    #[test]
    fn a_restored_vector_delivers_what_was_pending_once_it_is_routed() {
        let mut saved = programmed();
        saved.vectors()[0].trigger().unwrap();
        unmask(&mut saved);
        let mut msix = Msix::new(2).unwrap();
        assert!(msix.restore(&saved.save()));
        assert_eq!(msix.save(), saved.save());
        assert!(msix.set_control(ENABLE), "the route has to be written");
        assert!(!delivered(&msix) && pending(&msix));
        msix.vectors()[0].set_routed(MESSAGE);
        assert!(delivered(&msix) && !pending(&msix));
        assert!(!Msix::new(3).unwrap().restore(&saved.save()));
    }

    #[test]
    fn accesses_of_other_sizes_or_beyond_the_table_are_ignored() {
        let mut msix = programmed();
        for (offset, length) in [(0, 1), (0, 2), (2, 4), (4, 8), (32, 4), (u64::MAX - 7, 8), (1, 3), (0, 16)] {
            msix.write_table(offset, &vec![0xa5; length]);
            let mut data = vec![0xa5; length];
            msix.read_table(offset, &mut data);
            assert!(offset == 0 || data.iter().all(|byte| *byte == 0), "{offset:#x} {length}");
        }
        assert_eq!(msix.vectors()[0].message(), Some(MESSAGE));
    }
}
