//! Messages of route netlink (`rtnetlink(7)`), the kernel's interface to links, addresses, routes, neighbours and traffic
//! control. The shim reads a pod's network with them on the node; the agent makes the same network in the guest.
//!
//! No I/O happens here. A reader takes the attributes that it knows and leaves the others: kernels newer than this crate
//! add some with every release, and a pod must not fail for that.

#![forbid(unsafe_code)]

mod body;
pub mod numbers;

pub use body::{AddressBody, LinkBody, NeighbourBody, RouteBody, TrafficBody};

use numbers::{IFF_UP, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, RTM_NEWLINK};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The loopback interface has the same index in every network namespace.
pub const LOOPBACK: u32 = 1;

/// `struct nlmsghdr`
const HEADER: usize = 16;

/// `struct nlattr`
const ATTRIBUTE_HEADER: usize = 4;

/// Messages and attributes begin at multiples of it.
const ALIGNMENT: usize = 4;

/// A datagram of the kernel that breaks its own rules.
#[derive(Debug, thiserror::Error)]
#[error("a netlink message is malformed")]
struct Malformed;

/// A message to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl Request {
    /// Changes something; answered with an acknowledgement. `flags` are those of creations.
    pub fn change(kind: u16, flags: u16, body: &[u8]) -> Self {
        Self { kind, flags: NLM_F_REQUEST | NLM_F_ACK | flags, payload: body.to_vec() }
    }

    /// Brings an interface up.
    pub fn bring_up(index: u32) -> Self {
        let body = LinkBody { index, flags: IFF_UP, change: IFF_UP, ..LinkBody::default() };
        Self::change(RTM_NEWLINK, 0, &body.encode())
    }

    /// Asks for all there is of a kind.
    pub fn dump(kind: u16, body: &[u8]) -> Self {
        Self { kind, flags: NLM_F_REQUEST | NLM_F_DUMP, payload: body.to_vec() }
    }

    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        append(&mut self.payload, kind, value);
        self
    }

    #[must_use]
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Text with a zero at its end.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat())
    }

    #[must_use]
    pub fn address(self, kind: u16, value: IpAddr) -> Self {
        match value {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    /// The bytes on the wire.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(HEADER + self.payload.len()).expect("requests are short");
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend(length.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // The kernel fills in the sender's port.
        bytes.extend([0; 4]);
        bytes.extend(&self.payload);
        bytes
    }
}

/// The attributes of a nest: the value of the attribute that holds them.
#[derive(Clone, Debug, Default)]
pub struct Nest(Vec<u8>);

impl Nest {
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        append(&mut self.0, kind, value);
        self
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn append(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("attributes are short");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

/// One message of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The end of a dump, or the acknowledgement of a change.
    End,
    /// One object of a dump.
    Object { kind: u16, payload: &'a [u8] },
}

/// The messages of a datagram that answer the request with this sequence number. An error is the kernel's own, or says that
/// the datagram is malformed.
pub fn replies(datagram: &[u8], sequence: u32) -> impl Iterator<Item = io::Result<Reply<'_>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            match split_message(&mut rest) {
                Ok((number, _)) if number != sequence => {}
                Ok((_, reply)) => return Some(reply),
                Err(malformed) => return Some(Err(io::Error::other(malformed))),
            }
        }
        None
    })
}

fn split_message<'a>(rest: &mut &'a [u8]) -> Result<(u32, io::Result<Reply<'a>>), Malformed> {
    // After an error nothing that follows can be found.
    let bytes = std::mem::take(rest);
    let length = field(bytes, 0).map(u32::from_ne_bytes).ok_or(Malformed)? as usize;
    let kind = field(bytes, 4).map(u16::from_ne_bytes).ok_or(Malformed)?;
    let sequence = field(bytes, 8).map(u32::from_ne_bytes).ok_or(Malformed)?;
    let payload = bytes.get(HEADER..length).ok_or(Malformed)?;
    *rest = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    let reply = match kind {
        NLMSG_ERROR | NLMSG_DONE => match field(payload, 0).map(i32::from_ne_bytes) {
            Some(0) => Ok(Reply::End),
            Some(number) => Err(io::Error::from_raw_os_error(number.saturating_neg())),
            None if kind == NLMSG_DONE => Ok(Reply::End),
            None => return Err(Malformed),
        },
        kind => Ok(Reply::Object { kind, payload }),
    };
    Ok((sequence, reply))
}

/// Attributes in a row, as kind and value. Ends at the first one that is malformed.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(field(rest, 0)?));
        let kind = u16::from_ne_bytes(field(rest, 2)?) & NLA_TYPE_MASK;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of an attribute that is a number.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(field(value, 0)?))
}

/// The value of an attribute that is an IPv4 or IPv6 address; its length tells which.
pub fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(field::<4>(value, 0)?).into()),
        16 => Some(Ipv6Addr::from(field::<16>(value, 0)?).into()),
        _ => None,
    }
}

/// The value of an attribute that is text.
pub fn text(value: &[u8]) -> Option<&str> {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok()
}

pub(crate) fn field<const LENGTH: usize>(bytes: &[u8], offset: usize) -> Option<[u8; LENGTH]> {
    bytes.get(offset..offset + LENGTH)?.try_into().ok()
}

#[cfg(test)]
mod tests;
