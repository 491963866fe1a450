//! Devices on their way out. Ending one takes as long as its I/O, and a disk may hang for ever: a thread of its own
//! waits for each, and the shim is answered within a bound. A device that takes longer is left behind with its threads
//! and descriptors, and so few may be that they cannot use the process up.

use super::session::Answers;
use crate::jail::{ThreadKind, confine_thread};
use crate::virtio::device::VirtioDevice;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_protocol::Answer;

/// How long a removal may take until it is answered anyhow.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Devices that may be left behind before no more are attached.
pub const MOST_LEFT_BEHIND: usize = 8;

/// All of them that are not gone yet, by the requests that wait, or waited, for them.
#[derive(Debug, Default)]
pub struct Departures(Vec<Departure>);

#[derive(Debug)]
struct Departure {
    request: u32,
    /// `None`: it was answered, and the device is left behind.
    deadline: Option<Instant>,
}

impl Departures {
    /// Ends a device and pushes the answer to `request` when that is done.
    pub fn begin(&mut self, request: u32, device: Box<dyn VirtioDevice>, answers: &Arc<Answers>, now: Instant) {
        let answers = Arc::clone(answers);
        let reap = move || {
            if let Err(error) = confine_thread(ThreadKind::Reaper) {
                tracing::error!(%error, "cannot confine a thread");
                std::process::abort();
            }
            let mut device = device;
            drop(device.stop());
            // Closes its descriptors: the last close of a disk writes back what the node has of it in memory.
            drop(device);
            answers.push(request, Ok(Answer::Done));
        };
        let thread = std::thread::Builder::new().name(ThreadKind::Reaper.name().into()).stack_size(64 * 1024);
        // The answer comes at the deadline then. The device's threads have been asked to end.
        if let Err(error) = thread.spawn(reap) {
            tracing::error!(%error, "cannot start a thread that waits for a removed device");
        }
        self.0.push(Departure { request, deadline: now.checked_add(LIMIT) });
    }

    /// Whether an answer of this number is still to be sent. A device that is gone is forgotten.
    pub fn may_answer(&mut self, request: u32) -> bool {
        let Some(index) = self.0.iter().position(|departure| departure.request == request) else { return true };
        self.0.swap_remove(index).deadline.is_some()
    }

    /// Requests that are to be answered although their devices are not gone.
    pub fn expire(&mut self, now: Instant) -> Vec<u32> {
        let late = self.0.iter_mut().filter(|departure| departure.deadline.is_some_and(|deadline| deadline <= now));
        late.map(|departure| {
            departure.deadline = None;
            departure.request
        })
        .collect()
    }

    /// When to call [`Self::expire`] next.
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().filter_map(|departure| departure.deadline).min()
    }

    pub fn left_behind(&self) -> usize {
        self.0.iter().filter(|departure| departure.deadline.is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::{DeviceTraits, Resources, StartError};
    use std::sync::mpsc::{Receiver, channel};
    use virtio_queue::Queue;

    /// Stops when its channel is closed.
    #[derive(Debug)]
    struct Hangs(Receiver<()>);

    impl VirtioDevice for Hangs {
        fn traits(&self) -> DeviceTraits {
            DeviceTraits { device_type: 0, features: 0, queue_sizes: &[] }
        }

        fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

        fn start(&mut self, _resources: Resources) -> Result<(), StartError> {
            Ok(())
        }

        fn stop(&mut self) -> Vec<Option<Queue>> {
            let _ = self.0.recv();
            Vec::new()
        }
    }

    #[test]
    fn a_device_that_hangs_is_answered_in_time_and_left_behind_until_it_ends() {
        let answers = Arc::new(Answers::new().unwrap());
        let mut departures = Departures::default();
        let now = Instant::now();
        let (hang, hangs) = channel();
        departures.begin(7, Box::new(Hangs(hangs)), &answers, now);
        assert_eq!(departures.next(), Some(now + LIMIT));
        assert_eq!((departures.expire(now), departures.left_behind()), (vec![], 0));
        assert_eq!((departures.expire(now + LIMIT), departures.left_behind()), (vec![7], 1));
        assert_eq!((departures.expire(now + LIMIT), departures.next()), (vec![], None));
        assert!(answers.take().is_empty());
        drop(hang);
        crate::virtio::testing::eventually("it ends", || !answers.is_empty());
        assert_eq!(answers.take(), [(7, Ok(Answer::Done))]);
        assert!(!departures.may_answer(7), "it was answered before");
        assert_eq!(departures.left_behind(), 0);
        assert!(departures.may_answer(8), "other requests are answered as ever");
    }

    #[test]
    fn a_device_that_ends_at_once_is_answered_once() {
        let answers = Arc::new(Answers::new().unwrap());
        let mut departures = Departures::default();
        departures.begin(7, Box::new(Hangs(channel().1)), &answers, Instant::now());
        crate::virtio::testing::eventually("it ends", || !answers.is_empty());
        assert!(departures.may_answer(7));
        assert_eq!((departures.next(), departures.left_behind()), (None, 0));
    }
}
