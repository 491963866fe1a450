//! virtio-rng (virtio 1.3, section 5.4): random numbers of the host for the guest's pool.

mod request;
#[cfg(test)]
mod tests;

use super::device::{DeviceTraits, Resources, StartError, VirtioDevice};
use super::ring::Ring;
use super::service::ServiceThread;
use request::Fill;
use virtio_queue::Queue;

/// Entropy device.
const DEVICE_TYPE: u16 = 4;

/// The only queue: buffers to fill.
const REQUEST_QUEUE: usize = 0;

#[derive(Debug, Default)]
pub struct Rng {
    thread: ServiceThread<Fill>,
}

impl Rng {
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits { device_type: DEVICE_TYPE, features: 0, queue_sizes: &[64] }
    }

    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let ring = Ring::take(&mut resources, REQUEST_QUEUE)?;
        self.thread.start(ring, Fill)
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        vec![self.thread.stop()]
    }
}
