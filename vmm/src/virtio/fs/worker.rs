//! The device's thread: requests to the server's socket, replies back to the ring.
//!
//! ```text
//!  ring ──pop──► packet ──send──► server        a full socket holds the packet, and with it both rings,
//!   ▲                               │           until the socket takes it
//!   └──push── pending[tag] ◄──recv──┘
//! ```
//!
//! Memory is bounded: one packet each way, and at most as many pending requests as the rings have entries.

use super::request::{Header, Kind, error_reply, reply_is_whole, reply_tag, set_unique};
use super::spec::{EMPTY_REPLY, MAX_PACKET};
use crate::guest_warn;
use crate::jail::ThreadKind;
use crate::virtio::chain::Buffer;
use crate::virtio::ring::{Request, Ring, RingError};
use crate::worker::{Handler, Watch};
use nix::errno::Errno;
use nix::unistd::{read, write};
use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;

/// Tokens below this one are those of the queues.
const SERVER: u64 = 2;

/// Replies taken before other events get their turn.
const REPLY_BATCH: usize = 64;

/// A request that the driver waits for.
#[derive(Debug)]
struct Pending {
    queue: usize,
    head: u16,
    unique: u64,
    answer: Buffer,
}

/// A packet that the socket did not take yet.
#[derive(Debug)]
struct Unsent {
    length: usize,
    tag: u64,
    request: Pending,
    kind: Kind,
}

#[derive(Debug)]
pub struct Relay {
    rings: [Ring; 2],
    server: Arc<OwnedFd>,
    /// The server has closed its socket.
    lost: bool,
    next_tag: u64,
    pending: HashMap<u64, Pending>,
    unsent: Option<Unsent>,
    outgoing: Box<[u8]>,
    incoming: Box<[u8]>,
}

impl Relay {
    pub fn new(rings: [Ring; 2], server: Arc<OwnedFd>, next_tag: u64) -> Self {
        Self {
            rings,
            server,
            lost: false,
            next_tag,
            pending: HashMap::new(),
            unsent: None,
            outgoing: vec![0; MAX_PACKET].into(),
            // A reply that fills it was too long, and cut.
            incoming: vec![0; MAX_PACKET + 1].into(),
        }
    }

    /// The first tag that was not used.
    pub fn next_tag(&self) -> u64 {
        self.next_tag
    }

    #[cfg(test)]
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    pub fn into_queues(self) -> [Queue; 2] {
        self.rings.map(Ring::into_queue)
    }

    /// Forwards what is on a ring, as far as the socket takes it.
    fn forward(&mut self, queue: usize) -> Result<(), RingError> {
        self.rings[queue].disable_kicks()?;
        for _ in 0..self.rings[queue].size() {
            if self.unsent.is_some() || self.pending.len() >= self.capacity() {
                // The socket's next event brings us back here.
                return self.rings[queue].interrupt();
            }
            match self.rings[queue].pop()? {
                Some(request) => self.take(queue, request)?,
                None if self.rings[queue].enable_kicks()? => {}
                None => return self.rings[queue].interrupt(),
            }
        }
        self.rings[queue].kick();
        self.rings[queue].interrupt()
    }

    /// Most requests that an honest driver can have in flight.
    fn capacity(&self) -> usize {
        self.rings.iter().map(|ring| usize::from(ring.size())).sum()
    }

    fn take(&mut self, queue: usize, request: Request) -> Result<(), RingError> {
        let Ok(chain) = request.chain else {
            return self.rings[queue].push(request.head, 0);
        };
        let mut pending = Pending { queue, head: request.head, unique: 0, answer: chain.writable };
        let length = chain.readable.len();
        let Some(packet) = self.outgoing.get_mut(..length) else { return self.fail(&pending, Errno::EINVAL) };
        // The one copy of the request: it is parsed here and forwarded from here.
        if chain.readable.copy_to(self.rings[queue].memory(), 0, packet).is_err() {
            return self.fail(&pending, Errno::EINVAL);
        }
        let Some(header) = Header::parse(packet) else { return self.fail(&pending, Errno::EINVAL) };
        pending.unique = header.unique;
        if header.kind == Kind::Interrupt {
            return self.rings[queue].push(request.head, 0);
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        set_unique(packet, tag);
        self.send(Unsent { length, tag, request: pending, kind: header.kind })
    }

    /// Sends the packet in `outgoing`, or keeps it for later.
    fn send(&mut self, unsent: Unsent) -> Result<(), RingError> {
        if self.lost {
            return self.fail_unsent(&unsent);
        }
        loop {
            match write(&self.server, &self.outgoing[..unsent.length]) {
                Ok(_) if unsent.kind == Kind::Replied => {
                    self.pending.insert(unsent.tag, unsent.request);
                    return Ok(());
                }
                Ok(_) => return self.rings[unsent.request.queue].push(unsent.request.head, 0),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.unsent = Some(unsent);
                    return Ok(());
                }
                // This packet will not go, others may.
                Err(Errno::EMSGSIZE | Errno::ENOBUFS | Errno::ENOMEM) => return self.fail_unsent(&unsent),
                Err(_) => {
                    self.fail_unsent(&unsent)?;
                    return self.lose_server();
                }
            }
        }
    }

    fn fail_unsent(&mut self, unsent: &Unsent) -> Result<(), RingError> {
        match unsent.kind {
            Kind::Replied => self.fail(&unsent.request, Errno::EIO),
            Kind::Silent | Kind::Interrupt => self.rings[unsent.request.queue].push(unsent.request.head, 0),
        }
    }

    /// Answers a request with an error.
    fn fail(&mut self, request: &Pending, error: Errno) -> Result<(), RingError> {
        let ring = &mut self.rings[request.queue];
        let reply = error_reply(request.unique, error as i32);
        let fits = request.answer.copy_from(ring.memory(), 0, &reply).is_ok();
        ring.push(request.head, if fits { EMPTY_REPLY } else { 0 })
    }

    /// Takes replies from the server.
    fn receive(&mut self) -> Result<(), RingError> {
        for _ in 0..REPLY_BATCH {
            match read(&self.server, &mut self.incoming) {
                Ok(0) => return self.lose_server(),
                Ok(length) => self.complete(length)?,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return self.lose_server(),
            }
        }
        Ok(())
    }

    /// Completes the request that the packet of `length` bytes in `incoming` answers.
    fn complete(&mut self, length: usize) -> Result<(), RingError> {
        let reply = &mut self.incoming[..length];
        // Nobody waits for it: a late reply from before a reset, or a server that makes things up.
        let Some(request) = reply_tag(reply).and_then(|tag| self.pending.remove(&tag)) else { return Ok(()) };
        if length > MAX_PACKET || !reply_is_whole(reply) {
            return self.fail(&request, Errno::EIO);
        }
        set_unique(reply, request.unique);
        let ring = &mut self.rings[request.queue];
        if request.answer.copy_from(ring.memory(), 0, reply).is_err() {
            return self.fail(&request, Errno::EIO);
        }
        // At most MAX_PACKET.
        ring.push(request.head, u32::try_from(length).unwrap_or(0))
    }

    /// Fails everything that waits for the server, now and from now on.
    fn lose_server(&mut self) -> Result<(), RingError> {
        if !self.lost {
            // Once per start, and the guest starts the device as often as it likes.
            guest_warn!("file server is gone, its share fails from now on");
        }
        self.lost = true;
        if let Some(unsent) = self.unsent.take() {
            self.fail_unsent(&unsent)?;
        }
        let pending: Vec<Pending> = self.pending.drain().map(|(_, request)| request).collect();
        pending.iter().try_for_each(|request| self.fail(request, Errno::EIO))
    }

    fn react(&mut self, token: u64, watch: &Watch) -> Result<(), RingError> {
        match self.rings.get(usize::try_from(token).unwrap_or(usize::MAX)) {
            Some(ring) => ring.acknowledge(),
            None => {
                self.receive()?;
                if let Some(unsent) = self.unsent.take() {
                    self.send(unsent)?;
                }
            }
        }
        for queue in 0..self.rings.len() {
            self.forward(queue)?;
        }
        self.watch_server(watch);
        Ok(())
    }

    /// Waits for room in the socket only while a packet needs it, and for nothing on a socket that is closed.
    fn watch_server(&self, watch: &Watch) {
        let room = if self.unsent.is_some() { EventSet::OUT } else { EventSet::empty() };
        let result = if self.lost {
            watch.remove(&*self.server)
        } else {
            watch.modify(&*self.server, EventSet::IN | room, SERVER)
        };
        // Removing a second time fails, which changes nothing.
        let _ = result;
    }
}

impl Handler for Relay {
    fn begin(&mut self, watch: &Watch) -> io::Result<()> {
        for (token, ring) in (0..).zip(&self.rings) {
            ring.watch(watch, token)?;
            ring.kick();
        }
        watch.add(&*self.server, EventSet::IN, SERVER)
    }

    fn handle(&mut self, token: u64, _events: EventSet, watch: &Watch) -> ControlFlow<()> {
        match self.react(token, watch) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                error.report(ThreadKind::Fs);
                ControlFlow::Break(())
            }
        }
    }
}
