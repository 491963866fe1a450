//! What KVM holds of a machine besides its vCPUs: the clock that guests read, and interrupt controllers and a timer where
//! the machine has them in the kernel.

use super::codec::{CodecError, Reader, Saved, Writer};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

#[derive(Debug, thiserror::Error)]
#[error("KVM cannot {0}")]
pub struct VmError(&'static str, #[source] kvm_ioctls::Error);

pub struct VmState {
    /// Nanoseconds since the guest's kernel began, as the paravirtual clock tells them.
    clock: u64,
    chips: Vec<kvm_irqchip>,
    timer: Option<kvm_pit_state2>,
}

impl std::fmt::Debug for VmState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("VmState")
            .field("clock", &self.clock)
            .field("chips", &self.chips.len())
            .field("timer", &self.timer.is_some())
            .finish()
    }
}

impl VmState {
    pub fn read(vm: &VmFd) -> Result<Self, VmError> {
        let mut chips = Vec::new();
        for chip_id in CHIPS {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            if there("read an interrupt controller", vm.get_irqchip(&mut chip))?.is_some() {
                chips.push(chip);
            }
        }
        let timer = there("read the timer", vm.get_pit2())?;
        let clock = vm.get_clock().map_err(|error| VmError("read the clock", error))?.clock;
        Ok(Self { clock, chips, timer })
    }

    /// Before the vCPUs get their state: it holds what their local APICs have accepted of the controllers.
    pub fn write(&self, vm: &VmFd) -> Result<(), VmError> {
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(|error| VmError("set an interrupt controller", error))?;
        }
        if let Some(timer) = &self.timer {
            vm.set_pit2(timer).map_err(|error| VmError("set the timer", error))?;
        }
        Ok(())
    }

    /// Lets the guest's clock go on from where it was, however long ago that is: a guest that finds itself hours later sees
    /// every timeout expire. After the vCPUs have their state, and before one runs.
    pub fn continue_clock(&self, vm: &VmFd) -> Result<(), VmError> {
        let clock = kvm_clock_data { clock: self.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(|error| VmError("set the clock", error))
    }
}

/// `None` when the machine does not have the device.
fn there<T>(step: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<Option<T>, VmError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.errno() == libc::ENXIO => Ok(None),
        Err(error) => Err(VmError(step, error)),
    }
}

impl Saved for VmState {
    fn save(&self, writer: &mut Writer) {
        writer.number(self.clock);
        writer.list(&self.chips, Writer::object);
        writer.option(self.timer.as_ref(), Writer::object);
    }

    fn load(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            clock: reader.number("the clock")?,
            chips: reader
                .list("the interrupt controllers", CHIPS.len(), |reader| reader.object("an interrupt controller"))?,
            timer: reader.option("the timer", |reader| reader.object("the timer"))?,
        })
    }
}
