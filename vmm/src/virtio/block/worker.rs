//! Serves one queue of a disk.
//!
//! Requests are carried out one after the other, by system calls of this thread: for what the node has in memory nothing is
//! cheaper (docs/adr/0016). Where several wait, those whose data the node must fetch are only begun, and finished when
//! all have been looked at: the node's disk works on all of them at once, and what is in memory does not wait for it.

use super::disk::{Disk, Progress, Reading};
use crate::jail::ThreadKind;
use crate::virtio::chain::Chain;
use crate::virtio::device::GuestMemory;
use crate::virtio::ring::{Request, Ring, RingError};
use crate::worker::{Handler, Watch};
use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;

const KICK: u64 = 0;

#[derive(Debug)]
pub struct Requests {
    ring: Ring,
    memory: GuestMemory,
    disk: Arc<Disk>,
    /// Begun and not finished, the oldest first.
    begun: VecDeque<Begun>,
}

#[derive(Debug)]
struct Begun {
    head: u16,
    chain: Chain,
    reading: Reading,
}

impl Requests {
    pub fn new(ring: Ring, disk: Arc<Disk>) -> Self {
        let memory = Arc::clone(ring.memory());
        Self { ring, memory, disk, begun: VecDeque::new() }
    }

    pub fn into_queue(self) -> Queue {
        self.ring.into_queue()
    }

    fn serve(&mut self, watch: &Watch) -> Result<(), RingError> {
        self.ring.disable_kicks()?;
        // A driver that adds requests as fast as they are served must not keep the thread from its stop event.
        let mut left = self.ring.size();
        loop {
            // The guest decides how long a ring full of requests takes, and who stops us is the main thread.
            while left > 0 && !watch.is_stopping() && !watch.is_paused() {
                let Some(request) = self.ring.pop()? else { break };
                left -= 1;
                self.begin(request)?;
                if let Some(moment) = self.disk.next() {
                    watch.pause_until(moment);
                }
            }
            if let Some(begun) = self.begun.pop_front() {
                // What is done need not wait for this one.
                self.ring.interrupt()?;
                self.finish(begun)?;
            } else if watch.is_stopping() || watch.is_paused() {
                return self.ring.interrupt();
            } else if left == 0 {
                self.ring.kick();
                return self.ring.interrupt();
            } else if !self.ring.enable_kicks()? {
                return self.ring.interrupt();
            }
        }
    }

    fn begin(&mut self, Request { head, chain }: Request) -> Result<(), RingError> {
        let Ok(chain) = chain else { return self.ring.push(head, 0) };
        // Only a hostile driver offers what it has not got back. Its buffers are in use.
        if self.begun.iter().any(|begun| begun.head == head) {
            return self.ring.push(head, 0);
        }
        let others = !self.begun.is_empty() || self.ring.has_more()?;
        match self.disk.begin(&self.memory, &chain, others) {
            Progress::Done(written) => {
                self.ring.recycle(chain);
                self.ring.push(head, written)
            }
            Progress::Reads(reading) => {
                self.begun.push_back(Begun { head, chain, reading });
                Ok(())
            }
        }
    }

    fn finish(&mut self, Begun { head, chain, reading }: Begun) -> Result<(), RingError> {
        let written = self.disk.finish(&self.memory, &chain, reading);
        self.ring.recycle(chain);
        self.ring.push(head, written)
    }
}

impl Handler for Requests {
    fn begin(&mut self, watch: &Watch) -> io::Result<()> {
        self.ring.watch_kicks(watch, KICK)?;
        if let Some(moment) = self.disk.next() {
            watch.pause_until(moment);
        }
        // The driver may have kicked before anybody listened.
        self.ring.kick();
        Ok(())
    }

    fn handle(&mut self, _token: u64, _events: EventSet, watch: &Watch) -> ControlFlow<()> {
        self.resume(watch)
    }

    fn resume(&mut self, watch: &Watch) -> ControlFlow<()> {
        match self.serve(watch) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                error.report(ThreadKind::Block);
                ControlFlow::Break(())
            }
        }
    }
}
