//! vCPU threads that can be asked for their vCPU. Only a machine that becomes a template has them: no tenant's guest ever
//! runs there, and a thread that may be signalled needs more than the filter of the others allows.

use crate::machine::Exits;
use crate::machine::run_until;
use kvm_ioctls::VcpuFd;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_protocol::StopReason;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Between two signals. One that arrives just before `KVM_RUN` is lost.
const AGAIN: Duration = Duration::from_millis(2);

/// Far longer than any exit takes.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct PausableVcpu {
    thread: JoinHandle<Result<VcpuFd, StopReason>>,
    wanted: Arc<AtomicBool>,
}

extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl PausableVcpu {
    /// Runs a vCPU on a thread of its own. `stopped` is called when the guest stops by itself.
    pub fn spawn(
        vcpu: VcpuFd,
        exits: Arc<Exits>,
        stopped: impl FnOnce(StopReason) + Send + 'static,
    ) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), interrupt).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let wanted = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&wanted);
        let thread = std::thread::Builder::new().name("vcpu".into()).stack_size(256 * 1024).spawn(move || {
            let ended = run_until(vcpu, &exits, || asked.load(Ordering::Acquire));
            if let Err(reason) = &ended {
                stopped(reason.clone());
            }
            ended
        })?;
        Ok(Self { thread, wanted })
    }

    /// Takes the vCPU out of its guest, with nothing left to complete.
    pub fn pause(self) -> Result<VcpuFd, StopReason> {
        self.wanted.store(true, Ordering::Release);
        let deadline = Instant::now() + LIMIT;
        while !self.thread.is_finished() {
            if Instant::now() > deadline {
                return Err(StopReason::Failed("a vCPU does not leave its guest".into()));
            }
            if let Err(error) = self.thread.kill(SIGRTMIN()) {
                // It ended meanwhile.
                tracing::debug!(%error, "cannot signal a vCPU thread");
            }
            std::thread::sleep(AGAIN);
        }
        self.thread.join().unwrap_or_else(|_| Err(StopReason::Failed("a vCPU thread panicked".into())))
    }
}
