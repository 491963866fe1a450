//! Devices that answer one queue, request by request: what their threads have in common.

use super::chain::{Chain, Memory};
use super::device::StartError;
use super::ring::Ring;
use crate::jail::ThreadKind;
use crate::worker::{Handler, Watch, Worker};
use std::io;
use std::ops::ControlFlow;
use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;

const KICK: u64 = 0;

/// What a device does with a request.
pub trait Service: Send + 'static {
    const THREAD: ThreadKind;

    /// Carries out a request and returns how many bytes were written to its writable buffer.
    fn serve(&mut self, memory: &Memory, chain: &Chain) -> u32;
}

#[derive(Debug)]
struct Served<S> {
    ring: Ring,
    service: S,
}

impl<S: Service> Handler for Served<S> {
    fn begin(&mut self, watch: &Watch) -> io::Result<()> {
        self.ring.watch(watch, KICK)?;
        // The driver may have kicked before anybody listened.
        self.ring.kick();
        Ok(())
    }

    fn handle(&mut self, _token: u64, _events: EventSet, _watch: &Watch) -> ControlFlow<()> {
        self.ring.acknowledge();
        match self.ring.serve(|memory, chain| self.service.serve(memory, chain)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                error.report(S::THREAD);
                ControlFlow::Break(())
            }
        }
    }
}

/// The thread of such a device, while it is started.
#[derive(Debug)]
pub struct ServiceThread<S>(Option<Worker<Served<S>>>);

impl<S> Default for ServiceThread<S> {
    fn default() -> Self {
        Self(None)
    }
}

impl<S: Service> ServiceThread<S> {
    pub fn start(&mut self, ring: Ring, service: S) -> Result<(), StartError> {
        let worker = Worker::spawn(S::THREAD, Served { ring, service }).map_err(StartError::Worker)?;
        self.0 = Some(worker);
        Ok(())
    }

    /// Ends the thread after the request that it is at, and returns its queue.
    pub fn stop(&mut self) -> Option<Queue> {
        let served = self.0.take()?.stop();
        served
            .inspect_err(|error| tracing::error!(thread = S::THREAD.name(), %error, "cannot end a device thread"))
            .ok()
            .map(|served| served.ring.into_queue())
    }
}
