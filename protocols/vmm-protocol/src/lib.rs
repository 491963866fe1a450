//! Messages between the shim and one VMM process.
//!
//! One message is one packet of a `SOCK_SEQPACKET` Unix socket: JSON text of at most [`MAX_MESSAGE`] bytes,
//! with up to [`MAX_FDS`] descriptors attached (`SCM_RIGHTS`). A message names its descriptors by position
//! ([`FdSlot`]). No I/O happens here. The VMM trusts the shim; the shim treats what a VMM says as hostile,
//! since a guest may have taken the VMM over. `docs/protocols/vmm.md` is the prose of this crate.

#![forbid(unsafe_code)]

mod device;
mod layers;
mod machine;
mod moments;

pub use device::{Device, DeviceId, LayerAccess, PciAddress, RateLimit};
pub use layers::{MAX_PARTS, PART_ALIGNMENT, part_offsets};
pub use machine::{Jail, MAX_MEMORY_MIB, MAX_VCPUS, MEMORY_BLOCK_MIB, MIN_MEMORY_MIB, Machine, Restore};
pub use moments::{MAX_MOMENTS, Moment, Stage};

use serde::{Deserialize, Serialize};

/// Must be equal on both sides: shim and VMM ship together.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 32 * 1024;

/// Most descriptors on one message: the parts of a disk of layers, and room. The kernel's own limit is 253.
pub const MAX_FDS: usize = 140;

const _: () = assert!(MAX_PARTS < MAX_FDS && MAX_FDS <= 253);

/// Longest text of an error that the VMM reports, in bytes. Longer ones are cut by the VMM.
pub const MAX_ERROR: usize = 1024;

/// vsock port of the host that the guest calls when its agent's services listen: the only one that means anything.
/// The agent's protocol names it too.
pub const READY_PORT: u32 = 1024;

/// Position of a descriptor among those attached to the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSlot(pub u8);

/// What the shim asks. Each request gets one [`Reply`] with the same `id`, not necessarily in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub id: u32,
    pub call: Call,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// The first request: enter the jail, build the machine, run it.
    Boot(Box<Machine>),
    /// The first request instead of `Boot`: a machine made from a template. Its agent listens: there is no
    /// [`Event::AgentReady`].
    Restore(Box<Restore>),
    /// Save a machine that was booted as a template into two empty files. The process exits after the answer.
    Snapshot { memory: FdSlot, state: FdSlot },
    /// Hot-plug a device; answered with [`Answer::Attached`]. The guest sees it when it rescans its PCI bus.
    Attach(Device),
    /// Have the guest not find a device any more: it may be about to look for others. The driver that has it is not disturbed.
    Withdraw { device: DeviceId },
    /// Remove a device that the guest has let go of.
    Detach { device: DeviceId },
    /// Connect `stream`, one end of a `SOCK_STREAM` socket pair, to a vsock port of the guest. Answered when
    /// the guest accepted or refused. Half-closing the stream half-closes the connection.
    Connect { port: u32, stream: FdSlot },
    /// Let the guest take this much memory besides what it started with, in MiB: a multiple of [`MEMORY_BLOCK_MIB`], at most
    /// [`Machine::growth_mib`]. Answered with [`Answer::Memory`]; the guest takes it when it sees fit.
    Memory { mib: u32 },
}

/// What the VMM sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    Reply(Reply),
    Event(Event),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    pub id: u32,
    /// The error is one sentence for the operator.
    pub result: Result<Answer, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// The request was carried out.
    Done,
    /// The machine runs; what its making took, in order.
    Running { moments: Vec<Moment> },
    /// The device sits at this address and goes by this id.
    Attached { device: DeviceId, address: PciAddress },
    /// The guest is given memory by the device at this address. The first call for memory plugs it.
    Memory { address: PciAddress },
}

/// What happens without being asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The guest connected to the ready port: the agent's services listen.
    AgentReady,
    /// A device cannot do what the guest asks of it, for a reason on the node's side; one sentence. Sent once for each
    /// device, at most. The guest sees errors, and the device stays.
    DeviceFailed { device: DeviceId, reason: String },
    /// The machine has stopped; the VMM exits after this message.
    Stopped(StopReason),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StopReason {
    /// The guest powered off or reset (a kernel panic ends as a reset).
    GuestStopped,
    /// The VMM or KVM failed, with one sentence.
    Failed(String),
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("message of {0} bytes; the limit is {MAX_MESSAGE}")]
    TooLong(usize),
    #[error("malformed message")]
    Malformed(#[source] serde_json::Error),
}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let bytes = serde_json::to_vec(message).map_err(ProtocolError::Malformed)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(ProtocolError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// Parses one packet.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ProtocolError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(ProtocolError::TooLong(bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(ProtocolError::Malformed)
}

#[cfg(test)]
mod tests;
