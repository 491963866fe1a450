//! KVM's interrupt routes and event descriptors for the devices on the bus.

use crate::pci::Vector;
use crate::virtio::transport::Doorbells;
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Numbers for the messages of one slot.
const VECTORS_PER_SLOT: u32 = 64;

/// Routes of all vectors. There are no others: the machine has no interrupt lines.
#[derive(Debug)]
pub struct Interrupts {
    vm: Arc<VmFd>,
    slots: BTreeMap<u8, Vec<Arc<Vector>>>,
}

fn number(slot: u8, vector: u32) -> u32 {
    u32::from(slot) * VECTORS_PER_SLOT + vector
}

impl Interrupts {
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, slots: BTreeMap::new() }
    }

    /// Connects the vectors of a slot; routes follow when the guest has programmed them.
    pub fn connect(&mut self, slot: u8, vectors: &[Arc<Vector>]) -> io::Result<()> {
        if vectors.len() > VECTORS_PER_SLOT as usize {
            return Err(io::Error::other("device has too many interrupts"));
        }
        for (vector, index) in vectors.iter().zip(0..) {
            self.vm.register_irqfd(vector.irqfd(), number(slot, index)).map_err(io::Error::from)?;
        }
        self.slots.insert(slot, vectors.to_vec());
        Ok(())
    }

    pub fn disconnect(&mut self, slot: u8) {
        for (vector, index) in self.slots.remove(&slot).unwrap_or_default().iter().zip(0..) {
            if let Err(error) = self.vm.unregister_irqfd(vector.irqfd(), number(slot, index)) {
                tracing::warn!(slot, %error, "cannot disconnect an interrupt");
            }
        }
    }

    /// Gives KVM the routes as the guest has programmed them now.
    pub fn apply(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        let mut routed = Vec::new();
        for (slot, vectors) in &self.slots {
            for (vector, index) in vectors.iter().zip(0..) {
                let Some(message) = vector.message() else { continue };
                let mut entry = kvm_irq_routing_entry {
                    gsi: number(*slot, index),
                    type_: KVM_IRQ_ROUTING_MSI,
                    ..Default::default()
                };
                entry.u.msi = kvm_irq_routing_msi {
                    address_lo: message.address_low,
                    address_hi: message.address_high,
                    data: message.data,
                    ..Default::default()
                };
                entries.push(entry);
                routed.push((vector, message));
            }
        }
        let table = KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.vm.set_gsi_routing(&table).map_err(io::Error::from)?;
        for (vector, message) in routed {
            vector.set_routed(message);
        }
        Ok(())
    }
}

/// Doorbells as ioeventfds.
#[derive(Debug)]
pub struct KvmDoorbells(pub Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn connect(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        self.0.register_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch).map_err(Into::into)
    }

    fn disconnect(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        self.0.unregister_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch).map_err(Into::into)
    }
}
