//! When a VMM was done with what: for a trace of one start.

use serde::{Deserialize, Serialize};

/// Most moments of an answer that the shim looks at.
pub const MAX_MOMENTS: usize = 16;

/// A part of a machine's making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The program was started, and has its first request.
    Program,
    Jail,
    /// Guest memory, with a kernel or a template in it.
    Memory,
    /// KVM's machine and vCPUs.
    Kvm,
    /// The bus and its devices.
    Devices,
    /// Of a template: the devices' threads, where they were.
    Restored,
    /// The vCPUs' threads, and the main thread's confinement.
    Threads,
}

/// The end of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moment {
    pub stage: Stage,
    /// The node's `CLOCK_MONOTONIC`, in nanoseconds.
    pub at_ns: u64,
}
