//! vCPU threads.

use super::exits::Exits;
use crate::jail::{self, ThreadKind};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use vmm_protocol::StopReason;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How the first vCPU that stops tells the main thread.
#[derive(Debug)]
pub struct Stop {
    reason: Mutex<Option<StopReason>>,
    event: EventFd,
}

impl Stop {
    pub fn new() -> io::Result<Self> {
        Ok(Self { reason: Mutex::new(None), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Readable once the machine has stopped.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Why it stopped.
    pub fn reason(&self) -> Option<StopReason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first reason counts.
    pub fn signal(&self, reason: StopReason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        if self.event.write(1).is_err() {
            // Nobody would ever learn of it: an ended process is what the shim watches for.
            std::process::abort();
        }
    }
}

/// Runs a vCPU on a thread of its own until the machine stops. The process ends then, so nobody waits for it.
pub fn spawn(vcpu: VcpuFd, exits: Arc<Exits>, stop: Arc<Stop>) -> io::Result<()> {
    let name = ThreadKind::Vcpu.name().into();
    std::thread::Builder::new().name(name).stack_size(256 * 1024).spawn(move || {
        let reason = match jail::confine_thread(ThreadKind::Vcpu) {
            Ok(()) => run(vcpu, &exits),
            Err(error) => StopReason::Failed(format!("cannot confine a vCPU thread: {error}")),
        };
        stop.signal(reason);
    })?;
    Ok(())
}

/// Emulations that KVM may refuse in a row.
///
/// KVM does not emulate an instruction while an event is being delivered. Under QEMU's emulation of SVM, which leaves the
/// last page fault in EXITINTINFO as no longer valid, a newer KVM (seen with 7.2, not with 6.12) takes that for one.
/// Entering the guest again clears it. A guest that makes this happen for real is stopped after a few rounds.
const MAX_REFUSALS: u32 = 4;

/// Runs a vCPU until its guest stops.
pub fn run(vcpu: VcpuFd, exits: &Exits) -> StopReason {
    match run_until(vcpu, exits, || false) {
        Ok(_) => StopReason::Failed("a vCPU was left without being asked for".into()),
        Err(reason) => reason,
    }
}

/// The same, or until a signal interrupts it and `wanted` says that this was meant. The vCPU is then between two
/// instructions: KVM has completed what the last exit began before it noticed the signal.
pub fn run_until(mut vcpu: VcpuFd, exits: &Exits, wanted: impl Fn() -> bool) -> Result<VcpuFd, StopReason> {
    let mut refusals = 0;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::InternalError) if refusals < MAX_REFUSALS => refusals += 1,
            Ok(exit) => {
                refusals = 0;
                if let Some(reason) = exits.handle(exit) {
                    return Err(reason);
                }
            }
            Err(error) if error.errno() == libc::EINTR && wanted() => return Ok(vcpu),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) if error.errno() == libc::EFAULT => return Err(StopReason::Failed(exits.lost_memory(None))),
            Err(error) => return Err(StopReason::Failed(format!("cannot run a vCPU: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests;
