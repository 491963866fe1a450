//! One connection as a state machine: packets and stream events in, decisions out. It holds no descriptor, no
//! bytes and no clock.
//!
//! The host opens every connection. What is due is asked for with [`Connection::due`] and noted with
//! [`Connection::sent`], since the guest's receive queue decides when a packet can leave.
//!
//! ```text
//!  Requesting ──REQUEST sent──► Requested ──RESPONSE──► Established
//!      │                            │                    │       │
//!      │stream failed   stream failed or wrong packet    │       │ both directions ended and flushed,
//!      │                            ▼                    │       │ RST sent
//!      │                        Resetting ◄──────────────┘       │
//!      │                            │ RST sent                   │
//!      └────────────────────────────┴──────────► Reset ◄─────────┘
//!                                                  ▲
//!                        RST received in any state ┘
//! ```
//!
//! While established, the two directions end on their own:
//! - host to guest ends when the stream reaches its end (told with SHUTDOWN) or the guest will receive no more;
//! - guest to host ends when the guest will send no more and what it sent is flushed to the stream, or the stream
//!   takes no more (told with SHUTDOWN).
//!
//! In `Reset` the guest does not know the connection any more, but bytes that it sent before may still wait for the
//! stream. The connection is over when these are gone.

use super::packet::{Credit, Operation, Packet};
use std::net::Shutdown;
use std::num::Wrapping;

/// Bytes that a guest may send ahead of the stream: the bound of what is buffered for one connection.
pub const BUFFER: u32 = 256 * 1024;

/// The guest hears of forwarded bytes at the latest when they make up this part of its credit.
const CREDIT_STEP: u32 = BUFFER / 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Requesting,
    Requested,
    Established,
    Resetting,
    Reset,
}

/// A packet that should go to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Request,
    Reset,
    /// Bytes from the stream, at most this many.
    Data(u32),
    /// We will receive, or send, no more.
    Shutdown {
        receive: bool,
        send: bool,
    },
    CreditUpdate,
    CreditRequest,
}

/// What a received packet asks for, besides what becomes due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    Nothing,
    /// The guest accepted the connection.
    Established,
    /// The guest refused the connection.
    Refused,
    /// The payload belongs to the stream; [`Connection::forwarded`] follows when the stream has it.
    Deliver,
    /// Bytes waiting for the stream are void: the connection was aborted.
    Discard,
    /// The guest has no such connection.
    Unknown,
}

#[derive(Debug)]
pub struct Connection {
    state: State,

    /// Bytes that the guest sent, and how many of them the stream took. The difference is buffered.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest knows it.
    told_forwarded: Wrapping<u32>,
    credit_wanted: bool,

    /// Bytes sent to the guest, and its side of the credit.
    sent: Wrapping<u32>,
    guest_credit: Credit,
    credit_asked: bool,

    guest_sends: bool,
    guest_receives: bool,
    stream_sends: bool,
    stream_receives: bool,
    told_receive_ended: bool,
    told_send_ended: bool,
    shut_read: bool,
    shut_write: bool,
}

impl Connection {
    /// A connection of which the guest does not know yet.
    pub fn new() -> Self {
        Self {
            state: State::Requesting,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told_forwarded: Wrapping(0),
            credit_wanted: false,
            sent: Wrapping(0),
            guest_credit: Credit::default(),
            credit_asked: false,
            guest_sends: true,
            guest_receives: true,
            stream_sends: true,
            stream_receives: true,
            told_receive_ended: false,
            told_send_ended: false,
            shut_read: false,
            shut_write: false,
        }
    }

    /// Takes a packet of the guest.
    pub fn receive(&mut self, packet: &Packet) -> Reaction {
        self.guest_credit = packet.credit;
        if self.guest_room() > 0 {
            self.credit_asked = false;
        }
        match (self.state, packet.operation) {
            (State::Reset, Operation::Reset) => Reaction::Nothing,
            (State::Reset, _) => Reaction::Unknown,
            (state, Operation::Reset) => {
                self.state = State::Reset;
                if state == State::Requested { Reaction::Refused } else { Reaction::Nothing }
            }
            (State::Resetting, _) => Reaction::Nothing,
            (State::Requested, Operation::Response) => {
                self.state = State::Established;
                Reaction::Established
            }
            (State::Established, Operation::Data) => self.receive_data(packet.length),
            (State::Established, Operation::Shutdown { receive, send }) => {
                self.guest_receives &= !receive;
                self.guest_sends &= !send;
                Reaction::Nothing
            }
            (State::Established, Operation::CreditUpdate) => Reaction::Nothing,
            (State::Established, Operation::CreditRequest) => {
                self.credit_wanted = true;
                Reaction::Nothing
            }
            _ => self.abort(),
        }
    }

    fn receive_data(&mut self, length: u32) -> Reaction {
        if !self.guest_sends || length > BUFFER - self.buffered() {
            return self.abort();
        }
        self.received += length;
        if self.stream_receives {
            return Reaction::Deliver;
        }
        // In flight when the guest was told that nobody listens.
        self.forwarded += length;
        Reaction::Nothing
    }

    fn abort(&mut self) -> Reaction {
        self.state = State::Resetting;
        self.forwarded = self.received;
        Reaction::Discard
    }

    /// The stream took `bytes` of what was received.
    pub fn forwarded(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.buffered());
        self.forwarded += bytes;
    }

    /// The stream was read to its end.
    pub fn stream_ended(&mut self) {
        self.stream_sends = false;
    }

    /// The stream takes no more bytes; what is buffered for it is void.
    pub fn stream_closed(&mut self) {
        match self.state {
            // Nobody waits for the guest's answer any more.
            State::Requesting | State::Requested => self.stream_failed(),
            State::Established | State::Resetting | State::Reset => {
                self.stream_receives = false;
                self.forwarded = self.received;
            }
        }
    }

    /// The stream cannot be used any more.
    pub fn stream_failed(&mut self) {
        self.forwarded = self.received;
        self.state = match self.state {
            State::Requesting | State::Reset => State::Reset,
            State::Requested | State::Established | State::Resetting => State::Resetting,
        };
    }

    /// The packet that should go to the guest next. `readable` says whether the stream may have bytes.
    pub fn due(&self, readable: bool) -> Option<Due> {
        match self.state {
            State::Requesting => Some(Due::Request),
            State::Requested | State::Reset => None,
            State::Resetting => Some(Due::Reset),
            State::Established => self.due_established(readable),
        }
    }

    fn due_established(&self, readable: bool) -> Option<Due> {
        let outbound = self.stream_sends && self.guest_receives;
        if !outbound && self.inbound_ended() {
            return Some(Due::Reset);
        }
        let room = self.guest_room();
        if outbound && readable && room > 0 {
            return Some(Due::Data(room));
        }
        let receive = !self.stream_receives && !self.told_receive_ended;
        let send = !self.stream_sends && !self.told_send_ended;
        if receive || send {
            return Some(Due::Shutdown { receive, send });
        }
        if self.credit_wanted || (self.forwarded - self.told_forwarded).0 >= CREDIT_STEP {
            return Some(Due::CreditUpdate);
        }
        (outbound && readable && !self.credit_asked).then_some(Due::CreditRequest)
    }

    /// Notes that a due packet went to the guest, data with its true length.
    pub fn sent(&mut self, due: Due) {
        // Every packet carries the credit.
        self.told_forwarded = self.forwarded;
        self.credit_wanted = false;
        match due {
            Due::Request => self.state = State::Requested,
            Due::Reset => self.state = State::Reset,
            Due::Data(bytes) => self.sent += bytes,
            Due::Shutdown { receive, send } => {
                self.told_receive_ended |= receive;
                self.told_send_ended |= send;
            }
            Due::CreditUpdate => {}
            Due::CreditRequest => self.credit_asked = true,
        }
    }

    /// The direction in which the stream must be shut down now, each reported once.
    pub fn shut_stream(&mut self) -> Option<Shutdown> {
        let read = !self.guest_receives && !self.shut_read;
        let write = !self.guest_sends && self.buffered() == 0 && !self.shut_write;
        self.shut_read |= read;
        self.shut_write |= write;
        match (read, write) {
            (false, false) => None,
            (true, false) => Some(Shutdown::Read),
            (false, true) => Some(Shutdown::Write),
            (true, true) => Some(Shutdown::Both),
        }
    }

    /// The credit that packets to the guest carry.
    pub fn credit(&self) -> Credit {
        Credit { allocated: BUFFER, forwarded: self.forwarded.0 }
    }

    /// Nothing is left to do: neither side knows the connection.
    pub fn is_over(&self) -> bool {
        self.state == State::Reset && self.buffered() == 0
    }

    fn inbound_ended(&self) -> bool {
        !self.stream_receives || (!self.guest_sends && self.buffered() == 0)
    }

    /// Bytes received that the stream has not taken.
    pub fn buffered(&self) -> u32 {
        (self.received - self.forwarded).0
    }

    /// Bytes that the guest takes now; none if its numbers make no sense.
    fn guest_room(&self) -> u32 {
        let in_flight = (self.sent - Wrapping(self.guest_credit.forwarded)).0;
        self.guest_credit.allocated.saturating_sub(in_flight)
    }
}
