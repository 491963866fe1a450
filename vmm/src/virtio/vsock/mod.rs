//! virtio-vsock (virtio 1.3, section 5.10): stream connections from the host to the guest.
//!
//! The shim reaches the agent through this device and nothing else. Connections go one way: the shim hands over one
//! end of a socket pair per connection, and the device carries it to a port of the guest. The guest can connect to
//! nothing; only its call of the ready port is noticed.
//!
//! ```text
//!  Connector ──requests──► worker ──► muxer ──► channel: connection (pure state) + stream + backlog
//!                            │ rx, tx queues               │
//!                          guest                         shim
//! ```

mod backlog;
mod channel;
mod connection;
mod connector;
mod muxer;
mod packet;
mod spec;
mod worker;

#[cfg(test)]
mod connection_tests;
#[cfg(test)]
mod storm_tests;
#[cfg(test)]
mod tests;

pub use connector::{ConnectError, Connector};
pub use muxer::MAX_CONNECTIONS;

use super::device::{DeviceTraits, Resources, StartError, VirtioDevice, read_config_bytes};
use crate::jail::ThreadKind;
use crate::worker::Worker;
use std::io;
use std::sync::Arc;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;
use worker::VsockWorker;

#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    connector: Connector,
    ready: Arc<EventFd>,
    worker: Option<Worker<VsockWorker>>,
}

impl Vsock {
    /// A device for the guest with `guest_cid`, and the handle that opens connections. `ready` is signalled when the
    /// guest calls the ready port.
    pub fn new(guest_cid: u32, ready: EventFd) -> io::Result<(Self, Connector)> {
        let connector = Connector::new()?;
        let device = Self { guest_cid, connector: connector.clone(), ready: Arc::new(ready), worker: None };
        Ok((device, connector))
    }
}

impl VirtioDevice for Vsock {
    fn traits(&self) -> DeviceTraits {
        // Without a feature bit the device serves stream sockets.
        DeviceTraits { device_type: spec::DEVICE_TYPE, features: 0, queue_sizes: spec::QUEUE_SIZES }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn start(&mut self, resources: Resources) -> Result<(), StartError> {
        let inbox = Arc::clone(self.connector.inbox());
        let handler = VsockWorker::new(resources, self.guest_cid, inbox, Arc::clone(&self.ready))?;
        self.worker = Some(Worker::spawn(ThreadKind::Vsock, handler).map_err(StartError::Worker)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        let ended = self.worker.take().map(Worker::stop);
        match ended {
            Some(Ok(handler)) => handler.into_queues(),
            Some(Err(error)) => {
                tracing::error!(%error, "cannot end the vsock thread");
                vec![None, None, None]
            }
            None => vec![None, None, None],
        }
    }
}
