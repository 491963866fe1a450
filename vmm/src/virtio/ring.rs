//! A running queue together with the memory it lives in.
//!
//! A ring keeps two kinds of fault apart: one bad chain costs its sender that request, a broken ring (an index that
//! jumps, rings outside memory) ends the device until the driver resets it.

use super::chain::{Chain, ChainError, Memory};
use super::device::{GuestMemory, Resources, RunningQueue, StartError};
use crate::jail::ThreadKind;
use crate::worker::Watch;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::epoll::EventSet;

/// A ring that cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("driver broke a queue: {0}")]
    Broken(#[source] virtio_queue::Error),
    #[error("cannot interrupt the driver: {0}")]
    Interrupt(#[source] io::Error),
}

impl RingError {
    /// Logs the end of a device's service.
    pub fn report(&self, thread: ThreadKind) {
        crate::guest_warn!(thread = thread.name(), error = %self, "device stops until the driver resets it");
    }
}

/// A request taken from the ring; [`Ring::push`] gives it back.
#[derive(Debug)]
pub struct Request {
    /// Names the request on the ring. A hostile driver may have two with the same head.
    pub head: u16,
    pub chain: Result<Chain, ChainError>,
}

/// A queue that is being served.
#[derive(Debug)]
pub struct Ring {
    memory: GuestMemory,
    running: RunningQueue,
    /// Requests went back since the driver was last considered for an interrupt.
    returned: bool,
    /// Space for the next request.
    spare: Vec<Chain>,
}

impl Ring {
    /// Takes queue `index` out of a device's resources.
    pub fn take(resources: &mut Resources, index: usize) -> Result<Self, StartError> {
        let running = resources.queues.get_mut(index).and_then(Option::take);
        let running = running.ok_or(StartError::QueueDisabled(index))?;
        Ok(Self { memory: Arc::clone(&resources.memory), running, returned: false, spare: Vec::new() })
    }

    /// Ends serving and returns the queue where it stands.
    pub fn into_queue(self) -> Queue {
        self.running.queue
    }

    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Most requests that a well-behaved driver has in flight.
    pub fn size(&self) -> u16 {
        self.running.queue.size()
    }

    /// Has `watch` report the driver's kicks as `token`.
    pub fn watch(&self, watch: &Watch, token: u64) -> io::Result<()> {
        watch.add(&self.running.kick, EventSet::IN, token)
    }

    /// The same, once for each kick: there is nothing to [`Ring::acknowledge`], which saves a system call. Its counter
    /// only grows, and the kernel keeps it from overflowing.
    pub fn watch_kicks(&self, watch: &Watch, token: u64) -> io::Result<()> {
        watch.add(&self.running.kick, EventSet::IN | EventSet::EDGE_TRIGGERED, token)
    }

    /// Takes note of a kick.
    pub fn acknowledge(&self) {
        // Fails only when there is nothing to take: the counter was read since the event.
        let _ = self.running.kick.read();
    }

    /// Kicks ourselves, to come back to the ring after other events.
    pub fn kick(&self) {
        // Fails only when the counter is at its limit, and then an event is pending anyhow.
        let _ = self.running.kick.write(1);
    }

    /// Takes the next request, if there is one.
    pub fn pop(&mut self) -> Result<Option<Request>, RingError> {
        let memory: &Memory = &self.memory;
        let next = self.running.queue.iter(memory).map_err(RingError::Broken)?.next();
        let Some(descriptors) = next else { return Ok(None) };
        let space = self.spare.pop().unwrap_or_default();
        let head = descriptors.head_index();
        Ok(Some(Request { head, chain: Chain::parse(memory, descriptors, space) }))
    }

    /// Whether the driver has added requests that were not taken.
    pub fn has_more(&self) -> Result<bool, RingError> {
        let available = self.running.queue.avail_idx(&*self.memory, Ordering::Acquire).map_err(RingError::Broken)?;
        Ok(available.0 != self.running.queue.next_avail())
    }

    /// Gives back what [`Ring::pop`] returned, so that the next request needs no space of its own.
    pub fn recycle(&mut self, chain: Chain) {
        self.spare.push(chain);
    }

    /// Undoes the last `count` calls of [`Ring::pop`].
    pub fn unpop(&mut self, count: u16) {
        let next = self.running.queue.next_avail();
        self.running.queue.set_next_avail(next.wrapping_sub(count));
    }

    /// Returns a request of which the device wrote the first `written` bytes.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        self.returned = true;
        self.running.queue.add_used(&*self.memory, head, written).map_err(RingError::Broken)
    }

    /// Asks for a kick at the next request. True when one came in between, for which there is no kick.
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        self.running.queue.enable_notification(&*self.memory).map_err(RingError::Broken)
    }

    /// Spares the driver its kicks while the ring is being looked at anyhow.
    pub fn disable_kicks(&mut self) -> Result<(), RingError> {
        self.running.queue.disable_notification(&*self.memory).map_err(RingError::Broken)
    }

    /// Interrupts the driver if it wants to hear of the requests returned since the last call.
    pub fn interrupt(&mut self) -> Result<(), RingError> {
        let returned = std::mem::take(&mut self.returned);
        if returned && self.running.queue.needs_notification(&*self.memory).map_err(RingError::Broken)? {
            self.running.interrupt.trigger().map_err(RingError::Interrupt)?;
        }
        Ok(())
    }

    /// Serves what is on the ring, each request to its end. `serve` returns how many bytes it wrote; chains that
    /// are no requests go back empty.
    pub fn serve(&mut self, watch: &Watch, mut serve: impl FnMut(&Memory, &Chain) -> u32) -> Result<(), RingError> {
        let memory = Arc::clone(&self.memory);
        self.disable_kicks()?;
        for _ in 0..self.size() {
            // The guest decides how long a ring full of requests takes, and who stops us is the main thread.
            if watch.is_stopping() || watch.is_paused() {
                return self.interrupt();
            }
            match self.pop()? {
                Some(Request { head, chain: Ok(chain) }) => {
                    let written = serve(&memory, &chain);
                    self.recycle(chain);
                    self.push(head, written)?;
                }
                Some(Request { head, chain: Err(_) }) => self.push(head, 0)?,
                None if self.enable_kicks()? => {}
                None => return self.interrupt(),
            }
        }
        // A driver that adds requests as fast as they are served must not keep the thread from its stop event.
        self.kick();
        self.interrupt()
    }
}
