//! One virtio device as a PCI function.

use super::attention::Attention;
use super::common::{CommonRegisters, Due, NO_VECTOR, QueueRegisters};
use super::interrupt::{ConfigChange, ConfigInterrupt, NoInterrupt};
use super::layout::{self, BAR_SIZE, NOTIFY_MULTIPLIER, Region};
use super::state::{FunctionState, Position, StateError};
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
            Some(Due::Start) => self.start(&mut inner, &[]),
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

    /// Stops the device and tells what a new function needs to go on as this one. What was asked of the main thread has to
    /// be done before.
    pub fn save(&self) -> Result<FunctionState, StateError> {
        let mut inner = self.lock();
        let common = inner.common.save().ok_or(StateError::Busy(self.slot))?;
        let running = std::mem::take(&mut inner.running);
        let queues = if running { inner.device.stop() } else { Vec::new() };
        let position = |queue: Option<&Option<Queue>>| queue.and_then(Option::as_ref).map(Position::of);
        let positions: Vec<_> = (0..common.queues.len()).map(|index| position(queues.get(index))).collect();
        let lost =
            |(registers, position): (&QueueRegisters, &Option<Position>)| registers.enabled && position.is_none();
        if running && common.queues.iter().zip(&positions).any(lost) {
            return Err(StateError::Lost(self.slot));
        }
        Ok(FunctionState {
            slot: self.slot,
            config: *inner.config.bytes(),
            vectors: inner.msix.save(),
            common,
            isr: self.change.isr.load(Ordering::Acquire),
            generation: self.change.generation.load(Ordering::Acquire),
            running,
            positions,
        })
    }

    /// Makes this new function one that was saved, and starts its device where that stood. Routes and doorbells follow,
    /// and then [`Self::wake`].
    pub fn restore(&self, state: &FunctionState, doorbells: &dyn Doorbells) -> Result<(), StateError> {
        let mut inner = self.lock();
        let same = inner.config.restore(&state.config)
            && inner.common.restore(&state.common)
            && inner.msix.restore(&state.vectors)
            && state.slot == self.slot;
        if !same {
            return Err(StateError::Other(self.slot));
        }
        self.change.isr.store(state.isr, Ordering::Release);
        self.change.generation.store(state.generation, Ordering::Release);
        let control = inner.config.byte(inner.msix_control);
        inner.msix.set_control(control);
        self.publish_window(&inner);
        if state.running {
            self.start(&mut inner, &state.positions);
            if !inner.running {
                return Err(StateError::Start(self.slot));
            }
        }
        self.place_doorbells(&mut inner, doorbells);
        Ok(())
    }

    /// Makes device and driver look at their rings: neither knows whether the kick or the interrupt for what is there came
    /// before the snapshot. One too many costs a look.
    pub fn wake(&self) -> io::Result<()> {
        let inner = self.lock();
        if !inner.running {
            return Ok(());
        }
        for (registers, kick) in inner.common.queues().iter().zip(&self.kicks).filter(|(queue, _)| queue.enabled) {
            kick.write(1)?;
            self.interrupt(registers.vector).trigger()?;
        }
        Ok(())
    }

    /// Starts the device with its queues at the given positions, or at their beginning.
    fn start(&self, inner: &mut Inner, positions: &[Option<Position>]) {
        let interrupt = Arc::new(ConfigInterrupt {
            change: Arc::clone(&self.change),
            vector: self.interrupt(inner.common.config_vector()),
        });
        let result = self
            .resources(inner, interrupt.clone(), positions)
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

    fn resources(
        &self,
        inner: &Inner,
        config_interrupt: Arc<dyn Interrupt>,
        positions: &[Option<Position>],
    ) -> Result<Resources, String> {
        let features = inner.common.accepted_features();
        let event_index = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.kicks.len());
        for (index, (registers, kick)) in inner.common.queues().iter().zip(&self.kicks).enumerate() {
            if !registers.enabled {
                queues.push(None);
                continue;
            }
            let position = positions.get(index).copied().flatten();
            let queue = checked_queue(registers, event_index, position, &self.memory)
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

    fn publish_window(&self, inner: &Inner) {
        let start = inner.config.window().map_or(0, |window| u32::try_from(window.start).unwrap_or(0));
        self.window.store(start, Ordering::Release);
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
fn checked_queue(
    registers: &QueueRegisters,
    event_index: bool,
    position: Option<Position>,
    memory: &GuestMemory,
) -> Option<Queue> {
    let mut queue = Queue::new(registers.max_size).ok()?;
    queue.try_set_size(registers.size).ok()?;
    queue.try_set_desc_table_address(GuestAddress(registers.descriptors)).ok()?;
    queue.try_set_avail_ring_address(GuestAddress(registers.driver)).ok()?;
    queue.try_set_used_ring_address(GuestAddress(registers.device)).ok()?;
    queue.set_event_idx(event_index);
    if let Some(Position { next_avail, next_used }) = position {
        queue.set_next_avail(next_avail);
        queue.set_next_used(next_used);
    }
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
            self.publish_window(&inner);
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
