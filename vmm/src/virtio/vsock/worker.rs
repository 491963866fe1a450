//! The device thread: queues, streams and connection requests.

use super::connector::{Connect, ConnectError, Inbox};
use super::muxer::{Muxer, Notice};
use super::spec::{self, HEADER_LENGTH};
use crate::guest_warn;
use crate::jail::ThreadKind;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::device::{Resources, StartError};
use crate::virtio::ring::{Ring, RingError};
use crate::worker::{Handler, Watch};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

const RX: u64 = 0;
const TX: u64 = 1;
const INBOX: u64 = 2;
/// Set in the tokens of streams; the rest is the host port.
const STREAM: u64 = 1 << 32;

/// Receive buffers, of a page each, that a stream fills with one call.
const TURN: usize = 8;

#[derive(Debug)]
pub struct VsockWorker {
    rx: Ring,
    tx: Ring,
    /// Only for transport resets, which a running device never sends: its buffers are kept.
    event: Ring,
    /// Receive buffers that are being filled, and their names on the ring.
    buffers: Vec<Chain>,
    heads: Vec<u16>,
    muxer: Muxer,
    inbox: Arc<Inbox>,
    ready: Arc<EventFd>,
}

impl VsockWorker {
    pub fn new(
        mut resources: Resources,
        guest_cid: u32,
        inbox: Arc<Inbox>,
        ready: Arc<EventFd>,
    ) -> Result<Self, StartError> {
        Ok(Self {
            rx: Ring::take(&mut resources, spec::RX)?,
            tx: Ring::take(&mut resources, spec::TX)?,
            event: Ring::take(&mut resources, spec::EVENT)?,
            buffers: Vec::new(),
            heads: Vec::new(),
            muxer: Muxer::new(guest_cid),
            inbox,
            ready,
        })
    }

    /// Where the queues stand, in the order of the specification.
    pub fn into_queues(self) -> Vec<Option<Queue>> {
        [self.rx, self.tx, self.event].into_iter().map(|ring| Some(ring.into_queue())).collect()
    }

    fn open_requested(&mut self, watch: &Watch) {
        for request in self.inbox.take() {
            self.open(request, watch);
        }
    }

    fn open(&mut self, request: Connect, watch: &Watch) {
        let Some(channel) = self.muxer.open(request) else { return };
        let ports = channel.ports();
        // Edges, since interest in a stream changes with the guest's credit and buffers far more often than its
        // readiness does.
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        if let Err(source) = watch.add(channel.stream(), events, STREAM | u64::from(ports.host)) {
            self.muxer.abandon(ports.host, ConnectError::Stream { port: ports.guest, source });
        }
    }

    /// Takes packets of the guest.
    fn receive(&mut self) -> Result<(), RingError> {
        self.tx.disable_kicks()?;
        for _ in 0..self.tx.size() {
            let Some(request) = self.tx.pop()? else {
                if self.tx.enable_kicks()? {
                    continue;
                }
                return self.tx.interrupt();
            };
            let received = request.chain.and_then(|chain| self.muxer.receive(self.tx.memory(), &chain.readable));
            match received {
                Ok(Notice::Nothing) => {}
                // Fails only when the counter is at its limit, and then an event is pending anyhow.
                Ok(Notice::Ready) => drop(self.ready.write(1)),
                Err(error) => guest_warn!(%error, "dropped a vsock packet"),
            }
            self.tx.push(request.head, 0)?;
        }
        // A driver that sends as fast as we receive must not keep the thread from its other events.
        self.tx.kick();
        self.tx.interrupt()
    }

    /// Sends packets to the guest, as far as it has buffers.
    fn send(&mut self) -> Result<(), RingError> {
        if !self.muxer.wants_to_send() {
            return Ok(());
        }
        self.rx.disable_kicks()?;
        let mut wanted = 1;
        for _ in 0..self.rx.size() {
            if !self.muxer.wants_to_send() {
                return self.rx.interrupt();
            }
            let returned = self.take_buffers(wanted)?;
            if self.heads.is_empty() {
                if returned {
                    continue;
                }
                if self.rx.enable_kicks()? {
                    continue;
                }
                return self.rx.interrupt();
            }
            let filled = self.fill_buffers()?;
            // A stream that filled all of them may have more.
            wanted = if filled { TURN } else { 1 };
        }
        self.rx.kick();
        self.rx.interrupt()
    }

    /// Takes receive buffers with room behind a header. True if there is a useless one instead, which has gone back: no more than one, since
    /// a driver may offer it again as fast as it comes.
    fn take_buffers(&mut self, wanted: usize) -> Result<bool, RingError> {
        while self.heads.len() < wanted {
            let Some(request) = self.rx.pop()? else { break };
            let error = match request.chain {
                Ok(chain) if chain.writable.len() > HEADER_LENGTH => {
                    self.heads.push(request.head);
                    self.buffers.push(chain);
                    continue;
                }
                Ok(_) => ChainError::Short,
                Err(error) => error,
            };
            guest_warn!(%error, "returned an unusable vsock receive buffer");
            // Behind the ones that were taken before: those go back in their order, or not at all.
            if !self.heads.is_empty() {
                self.rx.unpop(1);
                break;
            }
            self.rx.push(request.head, 0)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Has the muxer write packets, and gives back the buffers: those with a packet to the guest, the others to the ring. True
    /// if every buffer was filled to its end.
    fn fill_buffers(&mut self) -> Result<bool, RingError> {
        let (heads, buffers, rx) = (&self.heads, &self.buffers, &mut self.rx);
        let memory = Arc::clone(rx.memory());
        let mut full = true;
        let mut sent = 0;
        let mut pushed = Ok(());
        let result = self.muxer.send(&memory, buffers, |length| {
            full &= buffers.get(sent).is_some_and(|buffer| buffer.writable.len() == length as usize);
            if let (Ok(()), Some(head)) = (&pushed, heads.get(sent)) {
                pushed = rx.push(*head, length);
            }
            sent += 1;
        });
        pushed?;
        if let Err(error) = result {
            guest_warn!(%error, "returned an unusable vsock receive buffer");
            if let Some(head) = heads.get(sent) {
                rx.push(*head, 0)?;
                sent += 1;
            }
        }
        full &= sent == heads.len();
        rx.unpop(u16::try_from(heads.len().saturating_sub(sent)).unwrap_or(0));
        self.heads.clear();
        for chain in self.buffers.drain(..) {
            rx.recycle(chain);
        }
        Ok(full)
    }
}

impl Handler for VsockWorker {
    fn begin(&mut self, watch: &Watch) -> io::Result<()> {
        self.rx.watch(watch, RX)?;
        self.tx.watch(watch, TX)?;
        watch.add(&self.inbox.event, EventSet::IN, INBOX)?;
        // The driver may have kicked, and connections may have been asked for, before anybody listened. The inbox's
        // event is pending by itself.
        self.tx.kick();
        Ok(())
    }

    fn handle(&mut self, token: u64, events: EventSet, watch: &Watch) -> ControlFlow<()> {
        let mut result = Ok(());
        match token {
            RX => self.rx.acknowledge(),
            TX => {
                self.tx.acknowledge();
                result = self.receive();
            }
            INBOX => self.open_requested(watch),
            stream => {
                // The low half is the port: see `STREAM`.
                let host_port = u32::try_from(stream & u64::from(u32::MAX)).unwrap_or_default();
                self.muxer.stream_event(host_port, events);
            }
        }
        match result.and_then(|()| self.send()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                error.report(ThreadKind::Vsock);
                ControlFlow::Break(())
            }
        }
    }

    fn end(&mut self) {
        self.muxer.clear();
    }
}
