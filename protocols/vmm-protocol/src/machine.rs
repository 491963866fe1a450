//! The machine description: everything that a VMM needs to boot, with descriptors for all it may touch.

use crate::FdSlot;
use serde::{Deserialize, Serialize};

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u8 = 32;

/// Smallest guest memory, in MiB: below it the guest kernel does not reach the agent.
pub const MIN_MEMORY_MIB: u32 = 64;

/// Largest guest memory, in MiB (1 TiB).
pub const MAX_MEMORY_MIB: u32 = 1 << 20;

/// Memory is given to a running guest in pieces of this size, in MiB.
pub const MEMORY_BLOCK_MIB: u32 = 2;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The shim's [`crate::VERSION`].
    pub version: String,
    pub jail: Jail,
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// Memory that the guest may be given later ([`crate::Call::Memory`]), in MiB: a multiple of [`MEMORY_BLOCK_MIB`], which
    /// with `memory_mib` is no more than [`MAX_MEMORY_MIB`]. A machine that is to be saved has none.
    pub growth_mib: u32,
    /// Kernel parameters that the shim adds to the VMM's own.
    pub command_line: String,
    /// `/dev/kvm`.
    pub kvm: FdSlot,
    /// The guest kernel, an uncompressed ELF `vmlinux`, read-only.
    pub kernel: FdSlot,
    /// The guest's root image, EROFS, a multiple of 2 MiB long, read-only.
    pub root_image: FdSlot,
    /// Pipe for the guest kernel's log.
    pub console: FdSlot,
    /// Adds a serial port to the machine that shows the kernel's messages from its first instruction on.
    pub debug_serial: bool,
    /// The machine is to be saved: it accepts [`crate::Call::Snapshot`], and must never run anything of a pod, since its
    /// threads are jailed but not confined.
    pub template: bool,
}

/// A machine that goes on where a saved one was. Everything that is not here is in the template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// The shim's [`crate::VERSION`].
    pub version: String,
    pub jail: Jail,
    /// 1 to as many as the template's guest was told of. The first goes on where it was; the guest starts the others.
    pub vcpus: u8,
    /// `/dev/kvm`.
    pub kvm: FdSlot,
    /// The template's memory, read-only. Its pages are shared until they are written.
    pub memory: FdSlot,
    /// The template's state, read-only.
    pub state: FdSlot,
    /// The root image that the saved machine had, read-only.
    pub root_image: FdSlot,
    /// Pipe for the guest kernel's log.
    pub console: FdSlot,
    /// As in [`Machine::growth_mib`].
    pub growth_mib: u32,
}

/// Who the VMM becomes before it touches anything of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jail {
    /// User of this pod alone; never 0.
    pub uid: u32,
    /// Group of this pod alone; never 0.
    pub gid: u32,
}
