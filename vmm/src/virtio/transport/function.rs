//! One virtio device as a PCI function.

use super::attention::Attention;
use super::common::{CommonRegisters, Due, NO_VECTOR, QueueRegisters};
use super::interrupt::{ConfigChange, ConfigInterrupt, NoInterrupt};
use super::layout::{self, BAR_SIZE, NOTIFY_MULTIPLIER, Region};
use crate::pci::{self, ConfigSpace, MMIO_WINDOW, Msix, Vector};
use crate::virtio::chain::can_be_written;
use crate::virtio::device::{DeviceTraits, GuestMemory, Interrupt, Resources, RunningQueue, StartError, VirtioDevice};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Lets the hypervisor turn a guest's write to `address` into an event without waking a vCPU thread.
pub trait Doorbells {
    fn connect(&self, address: u64, kick: &EventFd) -> io::Result<()>;
    fn disconnect(&self, address: u64, kick: &EventFd) -> io::Result<()>;
}

#[derive(Debug)]
pub struct VirtioFunction {
    slot: u8,
    /// Start of the window, 0 while there is none. Outside of the lock: the bus asks every function for each access,
    /// and one that is being stopped must not hold up the others.
    window: AtomicU32,
    /// One per queue, outside of the lock for the same reason.
    kicks: Vec<EventFd>,
    vectors: Vec<Arc<Vector>>,
    change: Arc<ConfigChange>,
    attention: Arc<Attention>,
    memory: GuestMemory,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ConfigSpace,
    /// Offset of the byte of `config` that holds MSI-X `enable`.
    msix_control: usize,
    msix: Msix,
    common: CommonRegisters,
    device: Box<dyn VirtioDevice>,
    /// Addresses where the hypervisor watches each queue's doorbell; as long as `kicks`.
    doorbells: Vec<Option<u64>>,
    running: bool,
}

impl VirtioFunction {
    /// Each queue gets an interrupt of its own, and configuration changes get one.
    pub fn new(
        slot: u8,
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        attention: Arc<Attention>,
    ) -> io::Result<Self> {
        let traits = device.traits();
        let queues = traits.queue_sizes.len();
        let msix = Msix::new(queues + 1)?;
        #[expect(clippy::cast_possible_truncation, reason = "the window lies below 4 GiB")]
        let address = MMIO_WINDOW.start as u32 + u32::from(slot) * BAR_SIZE;
        let (config, msix_control) = layout::config_space(traits.device_type, address, queues, &msix);
        let vectors = u16::try_from(queues + 1).map_err(io::Error::other)?;
        Ok(Self {
            slot,
            window: AtomicU32::new(0),
            kicks: (0..queues).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?,
            vectors: msix.vectors().to_vec(),
            change: Arc::default(),
            attention,
            memory,
            inner: Mutex::new(Inner {
                config,
                msix_control,
                msix,
                common: CommonRegisters::new(traits.features, traits.queue_sizes, vectors),
                device,
                doorbells: vec![None; queues],
                running: false,
            }),
        })
    }

    pub fn slot(&self) -> u8 {
        self.slot
    }

    /// The function's interrupts, by vector number.
    pub fn vectors(&self) -> &[Arc<Vector>] {
        &self.vectors
    }

    /// Does what the guest's register writes asked for. Called by the main thread alone.
    pub fn service(&self, doorbells: &dyn Doorbells) {
        let mut inner = self.lock();
        match inner.common.due() {
            Some(Due::Start) => self.start(&mut inner),
            // A device whose I/O hangs asks for service when it ends; until then its memory is not the driver's again.
            Some(Due::Reset) if inner.stop() => inner.common.reset(),
            Some(Due::Reset) | None => {}
        }
        self.place_doorbells(&mut inner, doorbells);
    }

    /// Takes the device out for good: the function has left the bus. The device is asked to stop; how long that takes is
    /// the caller's concern.
    pub fn retire(&self, doorbells: &dyn Doorbells) -> Box<dyn VirtioDevice> {
        let mut inner = self.lock();
        inner.running = false;
        self.place_doorbells(&mut inner, doorbells);
        let mut device = std::mem::replace(&mut inner.device, Box::new(Gone));
        device.request_stop();
        device
    }

    fn start(&self, inner: &mut Inner) {
        let interrupt = Arc::new(ConfigInterrupt {
            change: Arc::clone(&self.change),
            vector: self.interrupt(inner.common.config_vector()),
        });
        let result = self
            .resources(inner, interrupt.clone())
            .and_then(|resources| inner.device.start(resources).map_err(|error| error.to_string()));
        inner.running = result.is_ok();
        inner.common.started(result.is_ok());
        if let Err(error) = result {
            crate::guest_warn!(slot = self.slot, error, "virtio device does not start");
            if let Err(error) = interrupt.trigger() {
                crate::guest_warn!(%error, "cannot interrupt the driver");
            }
        }
    }

    fn resources(&self, inner: &Inner, config_interrupt: Arc<dyn Interrupt>) -> Result<Resources, String> {
        let features = inner.common.accepted_features();
        let event_index = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.kicks.len());
        for (index, (registers, kick)) in inner.common.queues().iter().zip(&self.kicks).enumerate() {
            if !registers.enabled {
                queues.push(None);
                continue;
            }
            let queue = checked_queue(registers, event_index, &self.memory)
                .ok_or_else(|| format!("queue {index} does not lie in guest memory"))?;
            let kick = kick.try_clone().map_err(|error| error.to_string())?;
            queues.push(Some(RunningQueue { queue, kick, interrupt: self.interrupt(registers.vector) }));
        }
        let ended = self.attention.waker(self.slot);
        Ok(Resources { memory: Arc::clone(&self.memory), features, queues, config_interrupt, ended })
    }

    fn interrupt(&self, vector: u16) -> Arc<dyn Interrupt> {
        match self.vectors.get(usize::from(vector)) {
            Some(chosen) if vector != NO_VECTOR => Arc::clone(chosen) as Arc<dyn Interrupt>,
            _ => Arc::new(NoInterrupt),
        }
    }

    /// Makes the hypervisor watch the doorbells of a running device, wherever the guest has its window now.
    fn place_doorbells(&self, inner: &mut Inner, doorbells: &dyn Doorbells) {
        let window = inner.config.window().filter(|_| inner.running);
        let queues = inner.common.queues();
        for (index, (placed, kick)) in inner.doorbells.iter_mut().zip(&self.kicks).enumerate() {
            let enabled = queues.get(index).is_some_and(|queue| queue.enabled);
            let wanted = window.as_ref().filter(|_| enabled).map(|window| layout::doorbell(window, index));
            if *placed == wanted {
                continue;
            }
            if let Some(address) = placed.take()
                && let Err(error) = doorbells.disconnect(address, kick)
            {
                crate::guest_warn!(slot = self.slot, %error, "cannot move a doorbell");
            }
            // Without it, kicks still arrive through the vCPU's exit.
            match wanted.map(|address| (address, doorbells.connect(address, kick))) {
                Some((address, Ok(()))) => *placed = Some(address),
                Some((_, Err(error))) => crate::guest_warn!(slot = self.slot, %error, "cannot place a doorbell"),
                None => {}
            }
        }
    }

    fn kick(&self, offset: u64) {
        let queue = usize::try_from(offset / u64::from(NOTIFY_MULTIPLIER)).ok();
        if let Some(kick) = queue.and_then(|queue| self.kicks.get(queue))
            && let Err(error) = kick.write(1)
        {
            crate::guest_warn!(slot = self.slot, %error, "cannot pass a kick on");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// False when the device needs more time.
    fn stop(&mut self) -> bool {
        self.running = false;
        let ended = self.device.request_stop();
        if ended {
            // What the rings hold is the driver's again: it asked for a reset.
            drop(self.device.stop());
        }
        ended
    }
}

/// In the place of a device that was taken out, for a vCPU that is inside of the function still.
#[derive(Debug)]
struct Gone;

impl VirtioDevice for Gone {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits { device_type: 0, features: 0, queue_sizes: &[] }
    }

    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn start(&mut self, _resources: Resources) -> Result<(), StartError> {
        Err(StartError::BackendLost)
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        Vec::new()
    }
}

/// The queue that the driver described, if all of it lies in guest memory, where the device can return requests.
fn checked_queue(registers: &QueueRegisters, event_index: bool, memory: &GuestMemory) -> Option<Queue> {
    let mut queue = Queue::new(registers.max_size).ok()?;
    queue.try_set_size(registers.size).ok()?;
    queue.try_set_desc_table_address(GuestAddress(registers.descriptors)).ok()?;
    queue.try_set_avail_ring_address(GuestAddress(registers.driver)).ok()?;
    queue.try_set_used_ring_address(GuestAddress(registers.device)).ok()?;
    queue.set_event_idx(event_index);
    queue.set_ready(true);
    // A flags word, an index, 8 bytes for each request, and the index that asks for a kick.
    let used = 6 + 8 * usize::from(registers.size);
    let is_valid = queue.is_valid(memory.as_ref());
    (is_valid && can_be_written(memory, GuestAddress(registers.device), used)).then_some(queue)
}

impl pci::Function for VirtioFunction {
    fn read_config(&self, offset: u8, data: &mut [u8]) {
        self.lock().config.read(offset, data);
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        let mut inner = self.lock();
        let before = (inner.config.window(), inner.config.byte(inner.msix_control));
        inner.config.write(offset, data);
        let (window, control) = (inner.config.window(), inner.config.byte(inner.msix_control));
        if before.1 != control && inner.msix.set_control(control) {
            self.attention.want_routes();
        }
        if before.0 != window {
            let start = window.map_or(0, |window| u32::try_from(window.start).unwrap_or(0));
            self.window.store(start, Ordering::Release);
            self.attention.want_service(self.slot);
        }
    }

    fn window(&self) -> Option<Range<u64>> {
        let start = u64::from(self.window.load(Ordering::Acquire));
        (start != 0).then(|| start..start + u64::from(BAR_SIZE))
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Region::at(offset) {
            Region::Common(offset) => {
                let generation = self.change.generation.load(Ordering::Acquire);
                self.lock().common.read(offset, generation, data);
            }
            Region::Isr => {
                if let Some(first) = data.first_mut() {
                    *first = self.change.isr.swap(0, Ordering::AcqRel);
                }
            }
            Region::Device(offset) => {
                self.lock().device.read_config(usize::try_from(offset).unwrap_or(usize::MAX), data);
            }
            Region::MsixTable(offset) => self.lock().msix.read_table(offset, data),
            Region::MsixPending(offset) => self.lock().msix.read_pending(offset, data),
            Region::Notify(_) | Region::Unused => {}
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        match Region::at(offset) {
            Region::Common(offset) => {
                if self.lock().common.write(offset, data) {
                    self.attention.want_service(self.slot);
                }
            }
            Region::Device(offset) => {
                self.lock().device.write_config(usize::try_from(offset).unwrap_or(usize::MAX), data);
            }
            Region::Notify(offset) => self.kick(offset),
            Region::MsixTable(offset) => {
                if self.lock().msix.write_table(offset, data) {
                    self.attention.want_routes();
                }
            }
            Region::Isr | Region::MsixPending(_) | Region::Unused => {}
        }
    }
}

#[cfg(test)]
mod storm_tests;
#[cfg(test)]
mod tests;
