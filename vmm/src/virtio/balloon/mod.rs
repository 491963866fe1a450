//! virtio-balloon (virtio 1.3, section 5.5), for free page reporting alone: the guest tells which of its pages are free, and
//! the node takes them back until the guest touches them again.
//!
//! The balloon itself stays empty. The driver sets its two queues up all the same; nobody serves them.

mod report;
#[cfg(test)]
mod tests;

use super::device::{DeviceTraits, Resources, RunningQueue, StartError, VirtioDevice};
use super::ring::Ring;
use super::service::ServiceThread;
use report::Report;
use virtio_queue::Queue;

/// Traditional memory balloon.
const DEVICE_TYPE: u16 = 5;

/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
const PAGE_REPORTING: u64 = 1 << 5;

/// Inflating and deflating come before it. The specification counts queues that are not offered, too, and calls it 4; Linux
/// gives queues that are there the numbers from 0 on.
const REPORTING_QUEUE: usize = 2;

#[derive(Debug, Default)]
pub struct Balloon {
    thread: ServiceThread<Report>,
    /// Of the balloon: kept to be given back.
    idle: [Option<RunningQueue>; REPORTING_QUEUE],
}

impl Balloon {
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Balloon {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits { device_type: DEVICE_TYPE, features: PAGE_REPORTING, queue_sizes: &[16, 16, 64] }
    }

    /// The balloon's wanted size, which is 0.
    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        self.idle = [0, 1].map(|index| resources.queues.get_mut(index).and_then(Option::take));
        // A driver that does not report has no such queue.
        if resources.queues.get(REPORTING_QUEUE).is_some_and(Option::is_some) {
            let ring = Ring::take(&mut resources, REPORTING_QUEUE)?;
            self.thread.start(ring, Report)?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        let [inflate, deflate] = self.idle.each_mut().map(|queue| queue.take().map(|running| running.queue));
        vec![inflate, deflate, self.thread.stop()]
    }
}
