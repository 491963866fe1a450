//! The fixed parts that messages begin with, before their attributes.

use crate::{attributes, field};

/// A body and the attributes after it.
macro_rules! body {
    ($(#[$doc:meta])* $name:ident, $length:literal) => {
        impl $name {
            /// Bytes on the wire.
            pub const LENGTH: usize = $length;

            /// The body of a message and the attributes that follow. `None`: the message is too short.
            pub fn split(payload: &[u8]) -> Option<(Self, impl Iterator<Item = (u16, &[u8])>)> {
                Some((Self::decode(payload)?, attributes(payload.get(Self::LENGTH..)?)))
            }
        }
    };
}

/// `struct ifinfomsg`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkBody {
    /// `ARPHRD_…`
    pub kind: u16,
    pub index: u32,
    /// `IFF_…`
    pub flags: u32,
    /// Which flags a change is about.
    pub change: u32,
}

body!(LinkBody, 16);

impl LinkBody {
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[2..4].copy_from_slice(&self.kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.index.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.change.to_ne_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u16::from_ne_bytes(field(bytes, 2)?),
            index: u32::from_ne_bytes(field(bytes, 4)?),
            flags: u32::from_ne_bytes(field(bytes, 8)?),
            change: u32::from_ne_bytes(field(bytes, 12)?),
        })
    }
}

/// `struct ifaddrmsg`. Flags are an attribute as well, which has more of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressBody {
    pub family: u8,
    pub prefix: u8,
    pub scope: u8,
    /// Of the interface.
    pub index: u32,
}

body!(AddressBody, 8);

impl AddressBody {
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let [a, b, c, d] = self.index.to_ne_bytes();
        [self.family, self.prefix, 0, self.scope, a, b, c, d]
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let [family, prefix, _, scope] = field(bytes, 0)?;
        Some(Self { family, prefix, scope, index: u32::from_ne_bytes(field(bytes, 4)?) })
    }
}

/// `struct rtmsg`, also of routing rules, whose table and action are at the same places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteBody {
    pub family: u8,
    /// Length of the destination's prefix.
    pub prefix: u8,
    /// Length of the source's prefix, for routes that depend on the source.
    pub source_prefix: u8,
    pub service: u8,
    /// The low byte; the attribute has all of it.
    pub table: u8,
    pub protocol: u8,
    pub scope: u8,
    /// `RTN_…`
    pub kind: u8,
    pub flags: u32,
}

body!(RouteBody, 12);

impl RouteBody {
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&[
            self.family,
            self.prefix,
            self.source_prefix,
            self.service,
            self.table,
            self.protocol,
            self.scope,
            self.kind,
        ]);
        bytes[8..].copy_from_slice(&self.flags.to_ne_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let [family, prefix, source_prefix, service, table, protocol, scope, kind] = field(bytes, 0)?;
        let flags = u32::from_ne_bytes(field(bytes, 8)?);
        Some(Self { family, prefix, source_prefix, service, table, protocol, scope, kind, flags })
    }
}

/// `struct ndmsg`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighbourBody {
    pub family: u8,
    /// Of the interface.
    pub index: u32,
    /// `NUD_…`
    pub state: u16,
    /// `NTF_…`
    pub flags: u8,
}

body!(NeighbourBody, 12);

impl NeighbourBody {
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = self.family;
        bytes[4..8].copy_from_slice(&self.index.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.state.to_ne_bytes());
        bytes[10] = self.flags;
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let [family] = field(bytes, 0)?;
        let [flags] = field(bytes, 10)?;
        let index = u32::from_ne_bytes(field(bytes, 4)?);
        Some(Self { family, index, state: u16::from_ne_bytes(field(bytes, 8)?), flags })
    }
}

/// `struct tcmsg`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficBody {
    /// Of the interface.
    pub index: u32,
    pub handle: u32,
    pub parent: u32,
    /// Of a filter: its priority and the protocol that it sees.
    pub info: u32,
}

body!(TrafficBody, 20);

impl TrafficBody {
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[4..8].copy_from_slice(&self.index.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.handle.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.parent.to_ne_bytes());
        bytes[16..].copy_from_slice(&self.info.to_ne_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            index: u32::from_ne_bytes(field(bytes, 4)?),
            handle: u32::from_ne_bytes(field(bytes, 8)?),
            parent: u32::from_ne_bytes(field(bytes, 12)?),
            info: u32::from_ne_bytes(field(bytes, 16)?),
        })
    }
}
