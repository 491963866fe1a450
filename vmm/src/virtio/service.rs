//! Devices that answer one queue, request by request: what their threads have in common.

use super::chain::{Chain, Memory};
use super::device::StartError;
use super::ring::Ring;
use crate::jail::ThreadKind;
use crate::worker::{Handler, Watch, Worker};
use std::io;
use std::ops::ControlFlow;
use std::time::Instant;
use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;

const KICK: u64 = 0;

/// What a device does with a request.
pub trait Service: Send + 'static {
    const THREAD: ThreadKind;

    /// Carries out a request and returns how many bytes were written to its writable buffer.
    fn serve(&mut self, memory: &Memory, chain: &Chain) -> u32;

    /// When the next request may begin; `None` is at once.
    fn next(&self) -> Option<Instant> {
        None
    }
}

#[derive(Debug)]
struct Served<S> {
    ring: Ring,
    service: S,
}

impl<S: Service> Handler for Served<S> {
    fn begin(&mut self, watch: &Watch) -> io::Result<()> {
        self.ring.watch(watch, KICK)?;
        pause(&self.service, watch);
        // The driver may have kicked before anybody listened.
        self.ring.kick();
        Ok(())
    }

    fn handle(&mut self, _token: u64, _events: EventSet, watch: &Watch) -> ControlFlow<()> {
        self.ring.acknowledge();
        self.resume(watch)
    }

    fn resume(&mut self, watch: &Watch) -> ControlFlow<()> {
        let serve = |memory: &Memory, chain: &Chain| {
            let written = self.service.serve(memory, chain);
            pause(&self.service, watch);
            written
        };
        match self.ring.serve(watch, serve) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                error.report(S::THREAD);
                ControlFlow::Break(())
            }
        }
    }
}

fn pause(service: &impl Service, watch: &Watch) {
    if let Some(moment) = service.next() {
        watch.pause_until(moment);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::{DeviceTraits, Resources, VirtioDevice};
    use crate::virtio::testing::{BUFFERS, Driver, Part};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use virtio_queue::QueueT;

    /// Tells of each request that it begins, and takes as long as it is left waiting.
    #[derive(Debug)]
    struct Slow {
        begun: Sender<()>,
        go_on: Receiver<()>,
    }

    impl Service for Slow {
        const THREAD: ThreadKind = ThreadKind::Pmem;

        fn serve(&mut self, _memory: &Memory, _chain: &Chain) -> u32 {
            self.begun.send(()).unwrap();
            // Disconnected: nothing is to wait for.
            let _ = self.go_on.recv();
            0
        }
    }

    #[derive(Debug)]
    struct Device {
        service: Option<Slow>,
        thread: ServiceThread<Slow>,
    }

    impl VirtioDevice for Device {
        fn traits(&self) -> DeviceTraits {
            DeviceTraits { device_type: 0, features: 0, queue_sizes: &[64] }
        }

        fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

        fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
            self.thread.start(Ring::take(&mut resources, 0)?, self.service.take().unwrap())
        }

        fn stop(&mut self) -> Vec<Option<Queue>> {
            vec![self.thread.stop()]
        }
    }

    #[test]
    fn a_stop_waits_for_one_request_and_not_for_all() {
        let (begun, beginnings) = channel();
        let (permits, go_on) = channel();
        let device = Device { service: Some(Slow { begun, go_on }), thread: ServiceThread::default() };
        let mut driver = Driver::start(device, 0);
        for _ in 0..64 {
            driver.queues[0].add(&[Part::Writable(BUFFERS, 16)]);
        }
        driver.queues[0].kick();
        beginnings.recv().unwrap();
        let queues = std::thread::scope(|scope| {
            let stopped = scope.spawn(|| driver.stop());
            // The thread is asked to stop before the request ends.
            std::thread::sleep(std::time::Duration::from_millis(100));
            drop(permits);
            stopped.join().unwrap()
        });
        assert_eq!(queues[0].next_avail(), 1);
        assert_eq!(beginnings.try_iter().count(), 0);
    }
}
