//! virtio-console (virtio 1.3, section 5.3): the guest kernel's log, one way.
//!
//! There is one port and nobody types: the receive queue's buffers stay where they are. What the guest writes goes
//! to a pipe of the shim, as much of it as the shim takes and [`log`]'s limits allow. The guest never waits for it.

mod log;
mod request;
#[cfg(test)]
mod tests;

use super::device::{DeviceTraits, Resources, StartError, VirtioDevice};
use super::ring::Ring;
use super::service::ServiceThread;
use log::Log;
use request::Transmit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use virtio_queue::Queue;

const DEVICE_TYPE: u16 = 3;

const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;

#[derive(Debug)]
pub struct Console {
    /// Outlives resets, with which a guest could begin its limits anew else.
    log: Arc<Mutex<Log>>,
    /// Kept while started, only to be returned.
    receive: Option<Queue>,
    transmit: ServiceThread<Transmit>,
}

impl Console {
    /// A console that writes to `pipe`, which has to be the writing end of a pipe. It becomes non-blocking.
    pub fn new(pipe: OwnedFd) -> Self {
        Self { log: Arc::new(Mutex::new(Log::new(pipe))), receive: None, transmit: ServiceThread::default() }
    }
}

impl VirtioDevice for Console {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits { device_type: DEVICE_TYPE, features: 0, queue_sizes: &[16, 64] }
    }

    /// No feature is offered that would make a field of the configuration valid.
    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let transmit = Ring::take(&mut resources, TRANSMIT_QUEUE)?;
        let log = Transmit::new(Arc::clone(&self.log)).map_err(StartError::Worker)?;
        self.transmit.start(transmit, log)?;
        self.receive = resources.queues.swap_remove(RECEIVE_QUEUE).map(|running| running.queue);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        vec![self.receive.take(), self.transmit.stop()]
    }
}
