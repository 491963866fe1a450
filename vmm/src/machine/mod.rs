//! The machine: guest memory, vCPUs with their local interrupt controllers, a PCI bus with devices.

mod devices;
mod exits;
mod growth;
mod interrupts;
mod kernel;
mod latch;
mod memory;
mod prefault;
mod regions;
mod serial;
mod setup;
mod snapshot;
mod vcpu;
mod x86_64;

pub use devices::{Attachment, DeviceError};
pub use kernel::KernelError;
pub use memory::{MemoryError, OverlayError, overlay};
pub use setup::{Description, MachineError, Resources};
pub use snapshot::{RestoreResources, SnapshotError, read_state};
pub use vcpu::Stop;
pub(crate) use vcpu::run_until;

use crate::moments::Moments;
use crate::pci::{Bus, SLOTS};
use crate::virtio::device::{GuestMemory, VirtioDevice};
use crate::virtio::failure::Failures;
use crate::virtio::transport::{Attention, VirtioFunction};
use crate::virtio::vsock::Connector;
pub(crate) use exits::Exits;
pub use growth::GrowError;
use growth::Growth;
use interrupts::{Interrupts, KvmDoorbells};
use kvm_ioctls::{VcpuFd, VmFd};
#[cfg(test)]
pub(crate) use latch::AddressLatch;
use regions::Regions;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use vmm_protocol::{DeviceId, PciAddress};
use vmm_sys_util::eventfd::EventFd;

/// A machine, as the main thread holds it. Its vCPU threads hold the bus; they end with the process.
#[derive(Debug)]
pub struct Machine {
    /// As devices see it: images can only be read.
    memory: GuestMemory,
    /// What the guest may be given later.
    growth: Growth,
    bus: Arc<Bus>,
    attention: Arc<Attention>,
    interrupts: Interrupts,
    doorbells: KvmDoorbells,
    functions: BTreeMap<u8, Arc<VirtioFunction>>,
    attached: HashMap<DeviceId, u8>,
    next_id: u32,
    failures: Arc<Failures>,
    connector: Connector,
    ready: EventFd,
    stop: Arc<Stop>,
    processors: u8,
    /// vCPUs until they are started.
    vcpus: Vec<VcpuFd>,
    exits: Arc<Exits>,
    /// What the guest sees as memory of its own.
    regions: Regions,
    /// Where those are that were attached, by slot.
    mapped: HashMap<u8, u64>,
    /// Guest addresses of the root image.
    root_image: Range<u64>,
    /// What its making took.
    moments: Moments,
    /// Of a machine that is to be saved.
    template: Option<snapshot::Template>,
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("all PCI slots are taken")]
    NoSlot,
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("cannot connect the device's interrupts")]
    Interrupts(#[source] io::Error),
    #[error("cannot make the device's event descriptors")]
    Events(#[source] io::Error),
}

impl Machine {
    /// Starts the vCPUs: from here on the guest runs.
    pub fn run(&mut self) -> io::Result<()> {
        for vcpu in std::mem::take(&mut self.vcpus) {
            vcpu::spawn(vcpu, Arc::clone(&self.exits), Arc::clone(&self.stop))?;
        }
        Ok(())
    }

    /// The ends of the stages of its making.
    pub fn take_moments(&mut self) -> Moments {
        std::mem::take(&mut self.moments)
    }

    /// Why the machine stopped, once [`Stop::event`] is readable.
    pub fn stop(&self) -> &Arc<Stop> {
        &self.stop
    }

    /// Work for [`Machine::service`] while its event is readable.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Signalled when the agent called the ready port.
    pub fn ready(&self) -> &EventFd {
        &self.ready
    }

    /// What devices cannot do any more.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Opens connections to the guest.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Does what vCPUs asked for.
    pub fn service(&self) {
        let wanted = self.attention.take();
        for slot in wanted.slots() {
            if let Some(function) = self.functions.get(&slot) {
                function.service(&self.doorbells);
            }
        }
        if wanted.routes()
            && let Err(error) = self.interrupts.apply()
        {
            crate::guest_warn!(%error, "cannot route interrupts");
        }
    }

    /// Hot-plugs a device. The guest sees it when it looks.
    pub fn attach(&mut self, attachment: Attachment) -> Result<(DeviceId, PciAddress), AttachError> {
        let slot = self.free_slot().ok_or(AttachError::NoSlot)?;
        let address = PciAddress::new(slot).ok_or(AttachError::NoSlot)?;
        let id = DeviceId(self.next_id);
        let reporter = self.failures.reporter(id);
        let (device, mapped) = attachment.into_device(self.processors, reporter, &mut self.regions)?;
        let inserted = self.insert(slot, device);
        match (inserted, mapped) {
            (Ok(()), Some(start)) => drop(self.mapped.insert(slot, start)),
            (Err(error), Some(start)) => {
                self.regions.remove(start).map_err(DeviceError::from)?;
                return Err(error);
            }
            (inserted, None) => inserted?,
        }
        self.next_id += 1;
        self.attached.insert(id, slot);
        Ok((id, address))
    }

    /// The guest does not find a device any more that was attached. False when there is none by this id.
    pub fn withdraw(&self, id: DeviceId) -> bool {
        let slot = self.attached.get(&id);
        slot.inspect(|slot| self.bus.hide(**slot)).is_some()
    }

    /// Removes a device that was attached, and returns what is left of it: its threads were asked to end, but stopping and
    /// dropping it may take as long as its I/O. `None` when there is none by this id.
    pub fn detach(&mut self, id: DeviceId) -> Option<Box<dyn VirtioDevice>> {
        let slot = self.attached.remove(&id)?;
        // Off the bus first, so that the guest cannot start it again.
        self.bus.remove(slot);
        let device = self.functions.remove(&slot).map(|function| function.retire(&self.doorbells));
        self.interrupts.disconnect(slot);
        if let Err(error) = self.interrupts.apply() {
            tracing::warn!(%error, "cannot route interrupts");
        }
        if let Some(start) = self.mapped.remove(&slot)
            && let Err(error) = self.regions.remove(start)
        {
            tracing::warn!(%error, "an image stays mapped");
        }
        device
    }

    fn free_slot(&self) -> Option<u8> {
        (devices::FIRST_FREE_SLOT..)
            .take_while(|slot| usize::from(*slot) < SLOTS && !(*slot == growth::SLOT && self.growth.may_come()))
            .find(|slot| !self.functions.contains_key(slot))
    }

    fn insert(&mut self, slot: u8, device: Box<dyn VirtioDevice>) -> Result<(), AttachError> {
        let memory = Arc::clone(&self.memory);
        let function = VirtioFunction::new(slot, device, memory, Arc::clone(&self.attention));
        let function = Arc::new(function.map_err(AttachError::Events)?);
        self.interrupts.connect(slot, function.vectors()).map_err(AttachError::Interrupts)?;
        if !self.bus.insert(slot, function.clone()) {
            self.interrupts.disconnect(slot);
            return Err(AttachError::NoSlot);
        }
        self.functions.insert(slot, function);
        Ok(())
    }
}

/// KVM for one machine.
type Vm = Arc<VmFd>;
