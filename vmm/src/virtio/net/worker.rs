//! The device's thread: frames from the link to the guest and back.
//!
//! A frame from the link waits here until the guest has buffers for it, one frame at most. While it waits, nobody
//! listens to the link: the link's own queue drops what is too much. The guest's next kick of the receive queue
//! goes on. A frame from the guest that the link does not take is dropped, as a wire would.
//!
//! Long frames come in rows. After one, the next is read into the guest's buffers, without the copy; what that takes to prepare
//! would make short ones dearer.

use super::in_place::Gathered;
use super::request::tap_header;
use super::spec::{HEADER_LENGTH, MAX_FRAME, TAP_HEADER_LENGTH};
use super::tap::{Link, offloads};
use crate::guest_warn;
use crate::jail::ThreadKind;
use crate::virtio::chain::{Chain, Memory};
use crate::virtio::ring::{Ring, RingError};
use crate::virtio::vectored;
use crate::worker::{Handler, Watch};
use nix::errno::Errno;
use nix::unistd::read;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;

const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const LINK: u64 = 2;

/// From here on, a copy costs more than looking up the guest's buffers.
const LONG: usize = 8 << 10;

/// Frames received before other events get their turn.
const BATCH: usize = 64;

/// Where the tap's header is read to: its fields come first in the driver's header, whose last field the tap lacks.
pub(super) const TAP_HEADER: usize = HEADER_LENGTH - TAP_HEADER_LENGTH;

#[derive(Debug)]
pub struct Traffic<L> {
    link: L,
    receive: Ring,
    transmit: Ring,
    features: u64,
    /// The frame that waits for buffers, with the driver's header.
    frame: Box<[u8]>,
    /// Its length with header; zero when none waits.
    waiting: usize,
    /// Whether the last frame was a long one.
    long: bool,
    /// For long frames. None while frames are short.
    gathered: Gathered,
    listening: Listening,
}

/// Whether the link's events are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    Yes,
    /// Not until the guest has buffers.
    Paused,
    /// Never again: the link is gone.
    Lost,
}

/// What the link has.
pub(super) enum Arrival {
    /// A frame of this length with the driver's header.
    Frame(usize),
    Nothing,
    Lost,
}

impl Arrival {
    /// `length` is what a read returned: with the tap's header. `None`: less than a header is no frame.
    pub fn of(read: Result<usize, Errno>) -> Option<Self> {
        match read {
            Ok(0) => Some(Self::Lost),
            Ok(length) => (length > TAP_HEADER_LENGTH).then_some(Self::Frame(TAP_HEADER + length)),
            Err(Errno::EINTR) => None,
            Err(Errno::EAGAIN) => Some(Self::Nothing),
            Err(error) => {
                guest_warn!(%error, "network interface has lost its tap device");
                Some(Self::Lost)
            }
        }
    }
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    /// It is with the guest, or can never be.
    Done,
    /// The guest has not enough buffers now.
    NoBuffers,
}

impl<L: Link> Traffic<L> {
    pub fn new(link: L, receive: Ring, transmit: Ring, features: u64) -> Self {
        let frame = vec![0; HEADER_LENGTH + MAX_FRAME].into();
        Self {
            link,
            receive,
            transmit,
            features,
            frame,
            waiting: 0,
            long: false,
            gathered: Gathered::default(),
            listening: Listening::Yes,
        }
    }

    pub fn into_queues(mut self) -> [Queue; 2] {
        self.gathered.release(&mut self.receive);
        [self.receive.into_queue(), self.transmit.into_queue()]
    }

    /// Receives frames until the link has none or the guest has no buffers.
    fn receive(&mut self, watch: &Watch) -> Result<(), RingError> {
        self.receive.disable_kicks()?;
        for _ in 0..BATCH {
            if self.waiting == 0 {
                match self.arrival()? {
                    Arrival::Frame(length) => self.long = length >= LONG,
                    // The link's event comes again with its next frame.
                    Arrival::Nothing => {
                        self.listen(Listening::Yes, watch);
                        return self.receive.interrupt();
                    }
                    Arrival::Lost => {
                        self.listen(Listening::Lost, watch);
                        return self.receive.interrupt();
                    }
                }
            }
            if self.waiting > 0 && self.deliver()? == Delivery::NoBuffers {
                self.listen(Listening::Paused, watch);
                return self.receive.interrupt();
            }
            self.waiting = 0;
        }
        self.listen(Listening::Yes, watch);
        self.receive.interrupt()
    }

    /// Takes a frame from the link. It is with the guest already, or waits.
    fn arrival(&mut self) -> Result<Arrival, RingError> {
        if self.long && self.merges() {
            if let Some(arrival) = self.gathered.take(&self.link, &mut self.receive)? {
                return Ok(arrival);
            }
        } else {
            self.gathered.release(&mut self.receive);
        }
        loop {
            let read = read(&self.link, &mut self.frame[TAP_HEADER..]);
            let Some(arrival) = Arrival::of(read) else { continue };
            if let Arrival::Frame(length) = arrival {
                self.frame.copy_within(TAP_HEADER..HEADER_LENGTH, 0);
                self.waiting = length;
            }
            return Ok(arrival);
        }
    }

    /// Whether a frame may lie in several buffers.
    fn merges(&self) -> bool {
        self.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0
    }

    /// Writes the waiting frame to the guest's buffers: to one, or to several if that was agreed.
    fn deliver(&mut self) -> Result<Delivery, RingError> {
        let most = if self.merges() { self.receive.size() } else { 1 };
        let mut buffers: Vec<(u16, Chain)> = Vec::new();
        let mut room = 0;
        let mut taken = 0;
        while room < self.waiting && taken < most {
            let Some(request) = self.receive.pop()? else {
                // Before the buffers go back: the next kick must come for one more than these.
                if self.receive.enable_kicks()? {
                    continue;
                }
                self.receive.unpop(taken);
                return Ok(Delivery::NoBuffers);
            };
            taken += 1;
            // A chain that is no request is a buffer without room.
            let chain = request.chain.unwrap_or_default();
            room += chain.writable.len();
            buffers.push((request.head, chain));
        }
        if room < self.waiting {
            // All that the ring can hold is not enough: the frame would wait without end. A buffer that never has
            // room goes back, or it would be in the way of every frame.
            self.receive.unpop(taken);
            self.return_useless_buffer()?;
            return Ok(Delivery::Done);
        }
        self.scatter(taken, buffers)?;
        Ok(Delivery::Done)
    }

    fn scatter(&mut self, count: u16, buffers: Vec<(u16, Chain)>) -> Result<(), RingError> {
        self.frame[TAP_HEADER_LENGTH..HEADER_LENGTH].copy_from_slice(&count.to_le_bytes());
        let memory = Arc::clone(self.receive.memory());
        let mut rest = &self.frame[..self.waiting];
        for (head, chain) in buffers {
            let (part, later) = rest.split_at(rest.len().min(chain.writable.len()));
            let written = chain.writable.copy_from(&memory, 0, part).map_or(0, |()| part.len());
            self.receive.recycle(chain);
            // At most a frame.
            self.receive.push(head, u32::try_from(written).unwrap_or(0))?;
            rest = later;
        }
        Ok(())
    }

    fn return_useless_buffer(&mut self) -> Result<(), RingError> {
        let Some(request) = self.receive.pop()? else { return Ok(()) };
        let useful = request.chain.is_ok_and(|chain| chain.writable.len() > HEADER_LENGTH);
        if useful {
            self.receive.unpop(1);
            return Ok(());
        }
        self.receive.push(request.head, 0)
    }

    /// Changes whether the link's events are waited for.
    fn listen(&mut self, listening: Listening, watch: &Watch) {
        if self.listening == listening || self.listening == Listening::Lost {
            return;
        }
        let link = self.link.as_fd().as_raw_fd();
        let result = match listening {
            Listening::Yes => watch.modify(&link, EventSet::IN, LINK),
            Listening::Paused => watch.modify(&link, EventSet::empty(), LINK),
            Listening::Lost => watch.remove(&link),
        };
        match result {
            Ok(()) => self.listening = listening,
            Err(error) => tracing::error!(%error, "cannot change what the network interface waits for"),
        }
    }

    fn react(&mut self, token: u64, events: EventSet, watch: &Watch) -> Result<(), RingError> {
        match token {
            TRANSMIT => {
                let (link, features) = (&self.link, self.features);
                self.transmit.serve(watch, |memory, chain| {
                    send(link, features, memory, chain);
                    0
                })
            }
            RECEIVE => self.receive(watch),
            _ if self.waiting == 0 => self.receive(watch),
            _ => {
                // Errors are reported also while paused, again and again.
                if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
                    self.listen(Listening::Lost, watch);
                }
                Ok(())
            }
        }
    }
}

/// Sends a frame of the guest; one that is malformed or not taken is dropped.
fn send(link: &impl Link, features: u64, memory: &Memory, chain: &Chain) -> Option<()> {
    let frame = &chain.readable;
    let mut header = [0; HEADER_LENGTH];
    frame.copy_to(memory, 0, &mut header).ok()?;
    if frame.len() > HEADER_LENGTH + MAX_FRAME {
        return None;
    }
    let header = tap_header(header, features)?;
    vectored::write_packet(link, &header, memory, frame, HEADER_LENGTH..frame.len()).ok().map(drop)
}

impl<L: Link> Handler for Traffic<L> {
    fn begin(&mut self, watch: &Watch) -> io::Result<()> {
        self.link.set_offloads(offloads(self.features))?;
        self.receive.watch_kicks(watch, RECEIVE)?;
        self.transmit.watch_kicks(watch, TRANSMIT)?;
        self.transmit.kick();
        watch.add(&self.link.as_fd().as_raw_fd(), EventSet::IN, LINK)
    }

    fn handle(&mut self, token: u64, events: EventSet, watch: &Watch) -> ControlFlow<()> {
        match self.react(token, events, watch) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                error.report(ThreadKind::Net);
                ControlFlow::Break(())
            }
        }
    }
}
