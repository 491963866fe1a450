//! What a vCPU's exit from the guest leads to.

use super::latch::AddressLatch;
use super::regions::ReadOnly;
use super::serial::{self, DebugSerial};
use crate::pci::{Bus, CONFIG_ADDRESS, CONFIG_DATA};
use kvm_ioctls::VcpuExit;
use std::sync::Arc;
use vmm_protocol::StopReason;

/// Everything that a vCPU can reach outside of the guest's memory.
#[derive(Debug)]
pub struct Exits {
    pub bus: Arc<Bus>,
    pub latch: AddressLatch,
    pub serial: Option<DebugSerial>,
    /// Guest addresses of images that are mapped.
    pub read_only: Arc<ReadOnly>,
}

impl Exits {
    /// Carries out one exit. Returns why the machine stops, if it does.
    pub fn handle(&self, exit: VcpuExit<'_>) -> Option<StopReason> {
        match exit {
            VcpuExit::IoIn(port, data) => self.read_port(port, data),
            VcpuExit::IoOut(port, data) => self.write_port(port, data),
            VcpuExit::MmioRead(address, data) => {
                if !self.bus.read_memory(address, data) {
                    crate::guest_warn!(address, "guest reads memory that is not there");
                }
            }
            VcpuExit::MmioWrite(address, data) => self.write_memory(address, data),
            // A processor that cannot go on resets the machine: so does Linux reboot.
            VcpuExit::Shutdown | VcpuExit::SystemEvent(..) | VcpuExit::Hlt => return Some(StopReason::GuestStopped),
            VcpuExit::Intr => {}
            VcpuExit::InternalError => return failed("KVM cannot emulate an instruction of the guest".into()),
            VcpuExit::FailEntry(reason, _) => {
                return failed(format!("processor refuses the guest: reason {reason:#x}"));
            }
            VcpuExit::MemoryFault { gpa, .. } => return failed(self.lost_memory(Some(gpa))),
            other => return failed(format!("guest stopped in an unknown way: {other:?}")),
        }
        None
    }

    /// What it means that the node has no page for an address of the guest. Older KVMs do not say which.
    pub fn lost_memory(&self, address: Option<u64>) -> String {
        let place = address.map(|address| format!(" at {address:#x}")).unwrap_or_default();
        match address {
            Some(address) if !self.read_only.contains(address) => format!("the guest's memory{place} is gone"),
            _ => format!(
                "the guest's memory{place} cannot be read: a file that is mapped there was cut, or its disk fails"
            ),
        }
    }

    fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if is_config(port) {
            self.catch_up();
            self.bus.read_port(port, data);
        } else if let (Some(serial), Some(register), [value]) = (&self.serial, serial_register(port), data) {
            *value = serial.read(register);
        }
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        if is_config(port) {
            self.catch_up();
            self.bus.write_port(port, data);
        } else if let (Some(serial), Some(register), [value]) = (&self.serial, serial_register(port), data) {
            serial.write(register, *value);
        }
    }

    /// What KVM collected came before the access that is carried out now.
    pub fn catch_up(&self) {
        if let Some(address) = self.latch.take() {
            self.bus.write_port(CONFIG_ADDRESS, &address.to_le_bytes());
        }
    }

    fn write_memory(&self, address: u64, data: &[u8]) {
        if self.bus.write_memory(address, data) {
            return;
        }
        if self.read_only.contains(address) {
            crate::guest_warn!(address, "guest writes to a read-only image");
        } else {
            crate::guest_warn!(address, "guest writes memory that is not there");
        }
    }
}

fn is_config(port: u16) -> bool {
    (CONFIG_ADDRESS..CONFIG_DATA + 4).contains(&port)
}

fn serial_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(serial::BASE).filter(|register| *register < serial::LENGTH)?;
    u8::try_from(register).ok()
}

#[expect(clippy::unnecessary_wraps, reason = "reads as the exit's result")]
fn failed(reason: String) -> Option<StopReason> {
    Some(StopReason::Failed(reason))
}
