//! virtio-pmem (virtio 1.3, section 5.19): tells the driver where the machine has mapped a read-only image.
//!
//! The mapping and its read-only memory slot belong to the machine. Here is only the device that announces them and
//! its flush queue, which has nothing to flush.

mod request;
mod spec;
#[cfg(test)]
mod tests;

use super::device::{DeviceTraits, Resources, StartError, VirtioDevice, read_config_bytes};
use super::ring::Ring;
use super::service::ServiceThread;
use request::Flush;
use virtio_queue::Queue;

/// The only queue: flush requests.
const REQUEST_QUEUE: usize = 0;

#[derive(Debug)]
pub struct Pmem {
    config: [u8; spec::CONFIG_LENGTH],
    thread: ServiceThread<Flush>,
}

impl Pmem {
    /// A device for the `length` bytes that are mapped at `guest_address`.
    pub fn new(guest_address: u64, length: u64) -> Self {
        Self { config: spec::config(guest_address, length), thread: ServiceThread::default() }
    }
}

impl VirtioDevice for Pmem {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits { device_type: spec::DEVICE_TYPE, features: 0, queue_sizes: &[16] }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let ring = Ring::take(&mut resources, REQUEST_QUEUE)?;
        self.thread.start(ring, Flush)
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        vec![self.thread.stop()]
    }
}
