//! The jail of the VMM process, and the seccomp filter of each kind of thread.
//!
//! The process starts as root, since a jail cannot be built with less, and leaves the host before it touches anything
//! of the guest: namespaces of its own with an empty root and no network, a user of this pod alone, no capabilities.
//! Then each thread gives up the system calls that it does not need. What remains is what the shim handed over.

mod enter;
mod filter;
mod plan;
mod rules;
mod tree;

#[cfg(test)]
mod tests;

pub use plan::{JailPlan, Step};

use nix::errno::Errno;
use std::io;
use std::os::fd::RawFd;
use vmm_protocol::Jail;

/// Why the process is not in its jail. It must end: some of the steps may have been taken.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    #[error("user {uid} or group {gid} cannot be that of a jail")]
    User { uid: u32, gid: u32 },
    #[error("{0} threads are running, of which only one would be jailed")]
    Threads(usize),
    #[error("descriptor {0} is a directory, which would be a way out")]
    Directory(RawFd),
    #[error("cannot inspect {path}")]
    Inspect { path: &'static str, source: Errno },
    #[error("cannot {step}")]
    Step { step: Step, source: Errno },
}

/// Closes what the process has inherited besides control socket and log: whatever else it gets, it is sent. To be called
/// first, before the process owns a descriptor.
pub fn close_inherited() -> io::Result<()> {
    enter::close_inherited()
}

/// Takes the process, which has one thread and is root, into the jail. There is no way back.
pub fn enter(jail: &Jail) -> Result<(), JailError> {
    enter::run(&JailPlan::new(jail)?)
}

/// What a thread does decides which system calls it may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// Control socket, device set-up, hot-plug.
    Main,
    Vcpu,
    Balloon,
    Block,
    Console,
    Fs,
    Memory,
    Net,
    Pmem,
    /// Waits for the end of a removed device.
    Reaper,
    Rng,
    Vsock,
}

impl ThreadKind {
    pub const ALL: [Self; 12] = [
        Self::Main,
        Self::Vcpu,
        Self::Balloon,
        Self::Block,
        Self::Console,
        Self::Fs,
        Self::Memory,
        Self::Net,
        Self::Pmem,
        Self::Reaper,
        Self::Rng,
        Self::Vsock,
    ];

    /// The thread's name, as operators see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Balloon => "balloon",
            Self::Block => "block",
            Self::Console => "console",
            Self::Fs => "fs",
            Self::Memory => "memory",
            Self::Net => "net",
            Self::Pmem => "pmem",
            Self::Reaper => "reaper",
            Self::Rng => "rng",
            Self::Vsock => "vsock",
        }
    }
}

/// Confines the calling thread to what its kind needs. Threads that it starts inherit that.
pub fn confine_thread(kind: ThreadKind) -> io::Result<()> {
    filter::install(kind)
}
