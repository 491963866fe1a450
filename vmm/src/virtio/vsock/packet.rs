//! Packets of the guest: the header is copied once and parsed; nothing reads it from guest memory again.

use super::spec::{self, HEADER_LENGTH, HOST_CID, Header, MAX_PAYLOAD};
use crate::virtio::chain::{Buffer, ChainError, Memory, Slice};

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub guest: u32,
    pub host: u32,
}

/// What a side lets the other send: `allocated` bytes more than it has `forwarded`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    pub allocated: u32,
    pub forwarded: u32,
}

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request,
    Response,
    Reset,
    /// The sender will receive, or send, no more.
    Shutdown {
        receive: bool,
        send: bool,
    },
    Data,
    CreditUpdate,
    CreditRequest,
    /// Nothing that a stream socket says: unknown operation or socket type, or a payload longer than the packet.
    Invalid,
}

/// A packet from the guest, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub ports: Ports,
    /// As the guest wrote it: a reset must carry the same, or the guest's socket does not hear it.
    pub socket_type: u16,
    pub operation: Operation,
    pub credit: Credit,
    /// Payload in bytes; 0 unless the operation is `Data`.
    pub length: u32,
}

/// Why a packet gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("packet without a whole header: {0}")]
    Header(#[from] ChainError),
    #[error("packet from context {src_cid} to {dst_cid}")]
    Address { src_cid: u64, dst_cid: u64 },
}

impl Packet {
    /// Reads the header of a packet that `guest_cid` sent.
    pub fn read(memory: &Memory, buffer: &Buffer, guest_cid: u32) -> Result<Self, PacketError> {
        let mut bytes = [0; HEADER_LENGTH];
        buffer.copy_to(memory, 0, &mut bytes)?;
        Self::parse(&Header::from_bytes(&bytes), buffer.len() - HEADER_LENGTH, guest_cid)
    }

    /// `room` is how many bytes follow the header.
    fn parse(header: &Header, room: usize, guest_cid: u32) -> Result<Self, PacketError> {
        let Header { src_cid, dst_cid, .. } = *header;
        if src_cid != u64::from(guest_cid) || dst_cid != HOST_CID {
            return Err(PacketError::Address { src_cid, dst_cid });
        }
        let operation = operation(header, room);
        Ok(Self {
            ports: Ports { guest: header.src_port, host: header.dst_port },
            socket_type: header.socket_type,
            operation,
            credit: Credit { allocated: header.buf_alloc, forwarded: header.fwd_cnt },
            length: if operation == Operation::Data { header.len } else { 0 },
        })
    }

    /// The payload, still in guest memory.
    pub fn payload<'m>(&self, memory: &'m Memory, buffer: &Buffer) -> Result<Vec<Slice<'m>>, ChainError> {
        buffer.slices(memory, HEADER_LENGTH..HEADER_LENGTH + self.length as usize)
    }
}

fn operation(header: &Header, room: usize) -> Operation {
    if header.socket_type != spec::TYPE_STREAM && header.op != spec::OP_RST {
        return Operation::Invalid;
    }
    match header.op {
        spec::OP_REQUEST => Operation::Request,
        spec::OP_RESPONSE => Operation::Response,
        spec::OP_RST => Operation::Reset,
        spec::OP_SHUTDOWN => Operation::Shutdown {
            receive: header.flags & spec::SHUTDOWN_RECEIVE != 0,
            send: header.flags & spec::SHUTDOWN_SEND != 0,
        },
        spec::OP_RW if header.len <= MAX_PAYLOAD && header.len as usize <= room => Operation::Data,
        spec::OP_CREDIT_UPDATE => Operation::CreditUpdate,
        spec::OP_CREDIT_REQUEST => Operation::CreditRequest,
        _ => Operation::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: u32 = 3;

    fn data(len: u32) -> Header {
        Header {
            src_cid: GUEST.into(),
            dst_cid: HOST_CID,
            src_port: 7,
            dst_port: 9,
            len,
            socket_type: spec::TYPE_STREAM,
            op: spec::OP_RW,
            ..Header::default()
        }
    }

    fn parsed(header: &Header, room: usize) -> Operation {
        Packet::parse(header, room, GUEST).unwrap().operation
    }

    #[test]
    fn a_payload_longer_than_its_packet_is_invalid() {
        assert_eq!(parsed(&data(100), 100), Operation::Data);
        assert_eq!(parsed(&data(101), 100), Operation::Invalid);
        assert_eq!(parsed(&data(u32::MAX), 100), Operation::Invalid);
        assert_eq!(parsed(&data(MAX_PAYLOAD + 1), 1 << 20), Operation::Invalid);
    }

    #[test]
    fn a_packet_in_the_name_of_another_context_is_dropped() {
        for (src_cid, dst_cid) in [(4, HOST_CID), (HOST_CID, 3), (3, 3), (1 << 32 | 3, HOST_CID), (3, u64::MAX)] {
            let header = Header { src_cid, dst_cid, ..data(0) };
            assert_eq!(Packet::parse(&header, 0, GUEST), Err(PacketError::Address { src_cid, dst_cid }));
        }
    }

    #[test]
    fn unknown_operations_and_socket_types_are_invalid() {
        for op in [0, 8, u16::MAX] {
            assert_eq!(parsed(&Header { op, ..data(0) }, 0), Operation::Invalid);
        }
        assert_eq!(parsed(&Header { socket_type: 2, ..data(0) }, 0), Operation::Invalid);
    }

    #[test]
    fn a_reset_of_any_type_is_a_reset() {
        let header = Header { socket_type: 2, op: spec::OP_RST, ..data(0) };
        assert_eq!(parsed(&header, 0), Operation::Reset);
    }

    #[test]
    fn only_data_has_a_payload() {
        let header = Header { op: spec::OP_SHUTDOWN, flags: spec::SHUTDOWN_SEND, ..data(50) };
        let packet = Packet::parse(&header, 100, GUEST).unwrap();
        assert_eq!(packet.operation, Operation::Shutdown { receive: false, send: true });
        assert_eq!(packet.length, 0);
    }
}
