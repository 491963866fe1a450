//! All connections of a guest: who a packet belongs to, and whose turn it is to send.
//!
//! Connections that have something for the guest stand in a round and send one packet a turn, or a few. A stream that stalls
//! leaves the round, so it blocks nobody else.

use super::channel::Channel;
use super::connection::Due;
use super::connector::{Connect, ConnectError};
use super::packet::{Credit, Operation, Packet, Ports};
use super::spec::{self, HEADER_LENGTH, HOST_CID, Header};
use crate::guest_warn;
use crate::virtio::chain::{Buffer, Chain, ChainError, Memory};
use std::collections::{BTreeMap, VecDeque};
use vmm_protocol::READY_PORT;
use vmm_sys_util::epoll::EventSet;

/// Most connections at once.
pub const MAX_CONNECTIONS: usize = 1024;

/// Host ports count up from here, so that one is not used again while packets for its last user may be on the way.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Most resets that wait for receive buffers. A guest that provokes more without taking them gets no answer.
const MAX_RESETS: usize = 128;

/// What a packet of the guest means beyond its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    Nothing,
    /// The guest has called the ready port.
    Ready,
}

#[derive(Debug)]
pub struct Muxer {
    guest_cid: u32,
    /// By host port, which is unique among them.
    channels: BTreeMap<u32, Channel>,
    /// Host ports of the channels that may have something to send, each once.
    round: VecDeque<u32>,
    /// Answers to packets that belong to no connection.
    resets: VecDeque<Header>,
    next_host_port: u32,
}

impl Muxer {
    pub fn new(guest_cid: u32) -> Self {
        Self {
            guest_cid,
            channels: BTreeMap::new(),
            round: VecDeque::new(),
            resets: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
        }
    }

    /// Begins a connection. `None` if there are too many, of which the caller has then been told.
    pub fn open(&mut self, request: Connect) -> Option<&Channel> {
        let Connect { port, stream, mut done } = request;
        if self.channels.len() >= MAX_CONNECTIONS {
            done.answer(Err(ConnectError::TooMany));
            return None;
        }
        let host = self.free_host_port();
        self.channels.insert(host, Channel::new(Ports { guest: port, host }, stream, done));
        self.settle(host);
        self.channels.get(&host)
    }

    /// Drops a connection of which the guest has not heard.
    pub fn abandon(&mut self, host_port: u32, error: ConnectError) {
        if let Some(mut channel) = self.channels.remove(&host_port) {
            channel.fail(error);
        }
    }

    fn free_host_port(&mut self) -> u32 {
        // Ends: there are more ports than connections.
        loop {
            let port = self.next_host_port;
            self.next_host_port = port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.channels.contains_key(&port) {
                return port;
            }
        }
    }

    /// Takes a packet of the guest.
    pub fn receive(&mut self, memory: &Memory, buffer: &Buffer) -> Result<Notice, ChainError> {
        let packet = match Packet::read(memory, buffer, self.guest_cid) {
            Ok(packet) => packet,
            Err(error) => {
                guest_warn!(%error, "dropped a vsock packet");
                return Ok(Notice::Nothing);
            }
        };
        let host = packet.ports.host;
        if let Some(channel) = self.channels.get_mut(&host).filter(|channel| channel.ports() == packet.ports) {
            let known = channel.receive(&packet, &packet.payload(memory, buffer)?);
            self.settle(host);
            if known {
                return Ok(Notice::Nothing);
            }
        }
        Ok(self.receive_unknown(&packet))
    }

    /// The guest may connect to nothing: every packet without a connection is answered with a reset, except resets.
    fn receive_unknown(&mut self, packet: &Packet) -> Notice {
        if packet.operation != Operation::Reset && self.resets.len() < MAX_RESETS {
            let header = self.header(packet.ports, Credit::default());
            self.resets.push_back(Header { op: spec::OP_RST, socket_type: packet.socket_type, ..header });
        }
        if packet.operation == Operation::Request && packet.ports.host == READY_PORT {
            return Notice::Ready;
        }
        Notice::Nothing
    }

    /// Takes readiness of a connection's stream.
    pub fn stream_event(&mut self, host_port: u32, events: EventSet) {
        if let Some(channel) = self.channels.get_mut(&host_port) {
            channel.stream_event(events);
            self.settle(host_port);
        }
    }

    /// Something may have to go to the guest.
    pub fn wants_to_send(&self) -> bool {
        !self.resets.is_empty() || !self.round.is_empty()
    }

    /// Writes the next packets to `targets`, each of which is longer than a header, and tells `sent` the length of each: one
    /// packet, or as many as one stream has bytes for. All have one credit, which is true of each of them.
    pub fn send(&mut self, memory: &Memory, targets: &[Chain], mut sent: impl FnMut(u32)) -> Result<(), ChainError> {
        let Some(first) = targets.first() else { return Ok(()) };
        if let Some(header) = self.resets.pop_front() {
            first.writable.copy_from(memory, 0, &header.to_bytes())?;
            sent(header_and(0));
            return Ok(());
        }
        while let Some(host) = self.round.pop_front() {
            let Some(channel) = self.channels.get_mut(&host) else { continue };
            channel.scheduled = false;
            let due = channel.produce(memory, targets);
            let (ports, credit) = (channel.ports(), channel.credit());
            self.settle(host);
            let Some(due) = due else { continue };
            let Due::Data(mut left) = due else {
                let header = with_operation(self.header(ports, credit), due);
                first.writable.copy_from(memory, 0, &header.to_bytes())?;
                sent(header_and(0));
                return Ok(());
            };
            for target in targets {
                let room = target.writable.len() - HEADER_LENGTH;
                let length = left.min(u32::try_from(room).unwrap_or(u32::MAX));
                if length == 0 {
                    break;
                }
                let header = with_operation(self.header(ports, credit), Due::Data(length));
                target.writable.copy_from(memory, 0, &header.to_bytes())?;
                sent(header_and(length));
                left -= length;
            }
            return Ok(());
        }
        Ok(())
    }

    /// Ends all connections, the ones that nobody has accepted yet too.
    pub fn clear(&mut self) {
        for (_, mut channel) in std::mem::take(&mut self.channels) {
            channel.fail(ConnectError::Stopped(channel.ports().guest));
        }
        self.round.clear();
        self.resets.clear();
    }

    /// Puts a channel where it belongs after it changed: into the round, or away.
    fn settle(&mut self, host_port: u32) {
        let Some(channel) = self.channels.get_mut(&host_port) else { return };
        if channel.is_over() {
            self.channels.remove(&host_port);
        } else if channel.wants_to_send() && !channel.scheduled {
            channel.scheduled = true;
            self.round.push_back(host_port);
        }
    }

    fn header(&self, ports: Ports, credit: Credit) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid.into(),
            src_port: ports.host,
            dst_port: ports.guest,
            socket_type: spec::TYPE_STREAM,
            buf_alloc: credit.allocated,
            fwd_cnt: credit.forwarded,
            ..Header::default()
        }
    }
}

fn header_and(payload: u32) -> u32 {
    // Bounded by `MAX_PAYLOAD`.
    u32::try_from(HEADER_LENGTH).expect("a header is short") + payload
}

fn with_operation(header: Header, due: Due) -> Header {
    match due {
        Due::Request => Header { op: spec::OP_REQUEST, ..header },
        Due::Reset => Header { op: spec::OP_RST, ..header },
        Due::Data(len) => Header { op: spec::OP_RW, len, ..header },
        Due::Shutdown { receive, send } => {
            let receive = if receive { spec::SHUTDOWN_RECEIVE } else { 0 };
            let send = if send { spec::SHUTDOWN_SEND } else { 0 };
            Header { op: spec::OP_SHUTDOWN, flags: receive | send, ..header }
        }
        Due::CreditUpdate => Header { op: spec::OP_CREDIT_UPDATE, ..header },
        Due::CreditRequest => Header { op: spec::OP_CREDIT_REQUEST, ..header },
    }
}
