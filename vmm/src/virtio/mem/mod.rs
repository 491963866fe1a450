//! virtio-mem (virtio 1.3, section 5.15): gives the guest more memory while it runs.
//!
//! The machine has reserved the memory; the device says how much of it the guest is to have, and the driver plugs block by block.
//! A guest that touches what it has not plugged gets zeroed pages, as of all its memory: they are no secret, the region
//! is no larger than what the pod may have, and its cgroup is charged.

mod blocks;
mod request;
mod spec;
#[cfg(test)]
mod tests;

pub use blocks::BLOCK;

use super::device::{DeviceTraits, Interrupt, Resources, StartError, VirtioDevice, read_config_bytes};
use super::ring::Ring;
use super::service::ServiceThread;
use blocks::Blocks;
use request::Requests;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_queue::Queue;

/// The only queue.
const REQUEST_QUEUE: usize = 0;

/// What the device, its thread and the machine know of it.
#[derive(Debug)]
pub struct Shared {
    blocks: Mutex<Blocks>,
    /// While the device is started.
    changed: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Shared {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) -> MutexGuard<'_, Option<Arc<dyn Interrupt>>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says how much the guest is to have.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Whole blocks.
    pub fn request(&self, bytes: u64) -> io::Result<()> {
        self.0.blocks().request(bytes);
        // A driver that is not there yet reads it when it comes.
        self.0.changed().as_ref().map_or(Ok(()), |interrupt| interrupt.trigger())
    }
}

#[derive(Debug)]
pub struct Mem {
    shared: Arc<Shared>,
    thread: ServiceThread<Requests>,
}

impl Mem {
    /// A device for memory at these guest addresses, of which the guest is to have none yet.
    pub fn new(addresses: &Range<u64>) -> (Self, Handle) {
        let shared = Arc::new(Shared { blocks: Mutex::new(Blocks::new(addresses)), changed: Mutex::default() });
        let device = Self { shared: Arc::clone(&shared), thread: ServiceThread::default() };
        (device, Handle(shared))
    }
}

impl VirtioDevice for Mem {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits { device_type: spec::DEVICE_TYPE, features: spec::UNPLUGGED_INACCESSIBLE, queue_sizes: &[16] }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = self.shared.blocks().config();
        read_config_bytes(&config.bytes(), offset, data);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let ring = Ring::take(&mut resources, REQUEST_QUEUE)?;
        self.thread.start(ring, Requests(Arc::clone(&self.shared)))?;
        *self.shared.changed() = Some(resources.config_interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        *self.shared.changed() = None;
        vec![self.thread.stop()]
    }
}
