//! Wire layout of virtio-mem.

/// Memory device.
pub const DEVICE_TYPE: u16 = 24;

/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`: the driver keeps off what it has not plugged.
pub const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// `struct virtio_mem_config`.
pub const CONFIG_LENGTH: usize = 56;

/// `struct virtio_mem_req`.
pub const REQUEST_LENGTH: usize = 24;

/// `struct virtio_mem_resp`.
pub const RESPONSE_LENGTH: u32 = 10;

/// Configuration, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub block: u64,
    pub start: u64,
    /// Of the region, and of the part of it that may be used.
    pub length: u64,
    pub plugged: u64,
    pub requested: u64,
}

impl Config {
    pub fn bytes(&self) -> [u8; CONFIG_LENGTH] {
        let mut bytes = [0; CONFIG_LENGTH];
        // The second is the NUMA node, which counts with a feature that is not offered.
        let fields = [self.block, 0, self.start, self.length, self.length, self.plugged, self.requested];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

/// What the driver asks. Ranges are a guest address and a number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Plug(u64, u16),
    Unplug(u64, u16),
    UnplugAll,
    State(u64, u16),
}

impl Request {
    pub fn parse(bytes: &[u8; REQUEST_LENGTH]) -> Option<Self> {
        let (kind, _) = bytes.split_first_chunk::<2>()?;
        let (start, rest) = bytes[8..].split_first_chunk::<8>()?;
        let (blocks, _) = rest.split_first_chunk::<2>()?;
        let (start, blocks) = (u64::from_le_bytes(*start), u16::from_le_bytes(*blocks));
        match u16::from_le_bytes(*kind) {
            0 => Some(Self::Plug(start, blocks)),
            1 => Some(Self::Unplug(start, blocks)),
            2 => Some(Self::UnplugAll),
            3 => Some(Self::State(start, blocks)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    Done,
    /// Of a range, in the order of the specification.
    State(State),
    /// Not now.
    Refused,
    /// Try again.
    Busy,
    /// The request makes no sense.
    Wrong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Plugged,
    Unplugged,
    Mixed,
}

impl Response {
    pub fn bytes(self) -> [u8; RESPONSE_LENGTH as usize] {
        let (kind, state): (u16, u16) = match self {
            Self::Done | Self::State(State::Plugged) => (0, 0),
            Self::State(State::Unplugged) => (0, 1),
            Self::State(State::Mixed) => (0, 2),
            Self::Refused => (1, 0),
            Self::Busy => (2, 0),
            Self::Wrong => (3, 0),
        };
        let mut bytes = [0; RESPONSE_LENGTH as usize];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        bytes
    }
}
