//! A connection together with its stream: does the I/O that the state machine decides.
//!
//! Bytes go straight between the socket and guest memory. Only what the socket does not take at once is copied, into
//! a backlog that the guest's credit bounds.

use super::backlog::Backlog;
use super::connection::{Connection, Due, Reaction};
use super::connector::{ConnectError, Done};
use super::packet::{Credit, Packet, Ports};
use super::spec::{HEADER_LENGTH, MAX_PAYLOAD};
use crate::virtio::chain::{Chain, Memory, Slice};
use crate::virtio::vectored;
use nix::unistd::write;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use vm_memory::VolatileMemoryError;
use vm_memory::io::WriteVolatile;
use vmm_sys_util::epoll::EventSet;

#[derive(Debug)]
pub struct Channel {
    ports: Ports,
    connection: Connection,
    stream: UnixStream,
    /// The stream may have bytes, or room. Events are edges: each holds until the socket says otherwise.
    readable: bool,
    writable: bool,
    backlog: Backlog,
    done: Done,
    /// The channel has its place in the muxer's round.
    pub scheduled: bool,
}

impl Channel {
    pub fn new(ports: Ports, stream: UnixStream, done: Done) -> Self {
        Self {
            ports,
            connection: Connection::new(),
            stream,
            readable: true,
            writable: true,
            backlog: Backlog::default(),
            done,
            scheduled: false,
        }
    }

    pub fn ports(&self) -> Ports {
        self.ports
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub fn credit(&self) -> Credit {
        self.connection.credit()
    }

    pub fn is_over(&self) -> bool {
        self.connection.is_over()
    }

    /// Something may have to go to the guest; whether a readable stream has bytes is seen only by reading it.
    pub fn wants_to_send(&self) -> bool {
        self.connection.due(self.readable).is_some()
    }

    /// Tells who asked for the connection that there is none.
    pub fn fail(&mut self, error: ConnectError) {
        self.done.answer(Err(error));
    }

    /// Takes a packet of the guest with its payload. False if the guest has no such connection.
    pub fn receive(&mut self, packet: &Packet, payload: &[Slice<'_>]) -> bool {
        match self.connection.receive(packet) {
            Reaction::Nothing => {}
            Reaction::Established => self.done.answer(Ok(())),
            Reaction::Refused => self.done.answer(Err(ConnectError::Refused(self.ports.guest))),
            Reaction::Deliver => self.deliver(payload),
            Reaction::Discard => self.backlog.clear(),
            Reaction::Unknown => return false,
        }
        self.shut_stream();
        true
    }

    /// Takes readiness of the stream.
    pub fn stream_event(&mut self, events: EventSet) {
        // Why a stream hung up or failed shows when it is read.
        self.readable |= events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR);
        if events.contains(EventSet::HANG_UP) {
            self.connection.stream_closed();
            self.backlog.clear();
        } else if events.contains(EventSet::OUT) {
            self.writable = true;
            self.flush();
        }
        self.shut_stream();
    }

    /// What goes to the guest next; `None` when nothing is due after all. Data was read into `targets`, of which each has room
    /// behind a header: as many bytes as are told, which may fill several.
    pub fn produce(&mut self, memory: &Memory, targets: &[Chain]) -> Option<Due> {
        loop {
            let due = match self.connection.due(self.readable)? {
                // Nothing was read: the stream is not readable any more and something else may be due.
                Due::Data(most) => match self.read(memory, targets, most.min(MAX_PAYLOAD)) {
                    0 => continue,
                    length => Due::Data(length),
                },
                control => control,
            };
            self.connection.sent(due);
            return Some(due);
        }
    }

    fn read(&mut self, memory: &Memory, targets: &[Chain], most: u32) -> u32 {
        let mut left = most as usize;
        let ranges = targets.iter().map(|target| {
            let buffer = &target.writable;
            let length = left.min(buffer.len() - HEADER_LENGTH);
            left -= length;
            (buffer, HEADER_LENGTH..HEADER_LENGTH + length)
        });
        match vectored::read_stream(&self.stream, memory, ranges) {
            Ok(0) => self.connection.stream_ended(),
            // No more than `most`.
            Ok(length) => return u32::try_from(length).unwrap_or(most),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => {
                self.connection.stream_failed();
                self.backlog.clear();
            }
        }
        self.readable = false;
        0
    }

    fn deliver(&mut self, payload: &[Slice<'_>]) {
        for slice in payload {
            let mut rest = *slice;
            while self.writable && self.backlog.is_empty() && !rest.is_empty() {
                let written = uninterrupted(|| self.stream.write_volatile(&rest));
                let Some(later) = self.wrote(written).and_then(|length| rest.offset(length).ok()) else { break };
                rest = later;
            }
            // The connection counts the rest as buffered, unless writing has shown that nobody wants it.
            if self.connection.buffered() > 0 {
                self.backlog.push(&rest);
            }
        }
    }

    fn flush(&mut self) {
        while self.writable && !self.backlog.is_empty() {
            // Not the stream's own `write`, which is sendto(2): no thread may call that.
            let front = self.backlog.front();
            let written = uninterrupted(|| {
                write(&self.stream, front).map_err(|error| VolatileMemoryError::IOError(error.into()))
            });
            let Some(length) = self.wrote(written) else { break };
            self.backlog.consume(length);
        }
    }

    /// Notes what a write came to. `None` if the stream takes nothing now, or ever.
    fn wrote(&mut self, result: io::Result<usize>) -> Option<usize> {
        let error = match result {
            Ok(0) => ErrorKind::WouldBlock.into(),
            Ok(length) => {
                self.connection.forwarded(u32::try_from(length).unwrap_or(u32::MAX));
                return Some(length);
            }
            Err(error) => error,
        };
        self.writable = false;
        match error.kind() {
            ErrorKind::WouldBlock => return None,
            ErrorKind::BrokenPipe => self.connection.stream_closed(),
            _ => self.connection.stream_failed(),
        }
        self.backlog.clear();
        None
    }

    fn shut_stream(&mut self) {
        if let Some(direction) = self.connection.shut_stream() {
            // Fails only when the peer is gone, which reading and writing will tell.
            let _ = self.stream.shutdown(direction);
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.fail(ConnectError::StreamClosed(self.ports.guest));
    }
}

/// Repeats a call that a signal interrupted.
fn uninterrupted(mut call: impl FnMut() -> Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    loop {
        match call() {
            Ok(length) => return Ok(length),
            Err(VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::Interrupted => {}
            Err(VolatileMemoryError::IOError(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}
