//! PID 1: forks the agent, reaps, and turns the machine off when the agent ends.
//!
//! The fork comes before any thread, so the parent stays a program of a few system calls that can't fail for the
//! agent's reasons. The agent's end, wanted or not, is the machine's end: the reset is a triple fault, which the VMM
//! takes as the stop.

#![expect(unsafe_code, reason = "fork")]

use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{ForkResult, Pid, fork, sync};
use std::process::ExitCode;

/// Returns in the child only: with what `agent` returned.
pub fn run(agent: impl FnOnce() -> ExitCode) -> ExitCode {
    // SAFETY: this is the first thing that the program does, so there is no other thread.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => agent(),
        Ok(ForkResult::Parent { child }) => watch(child),
        Err(errno) => {
            eprintln!("bulkhead-agent: cannot fork: {errno}");
            power_off()
        }
    }
}

fn watch(agent: Pid) -> ! {
    // Nobody has a reason to signal PID 1, and nothing here could be done about it.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None).ok();
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, 0)) if pid == agent => break,
            Ok(status) if status.pid() == Some(agent) => {
                eprintln!("bulkhead-agent: unexpected end of the agent, {status:?}: turning the machine off");
                break;
            }
            // An orphan from before the agent was the subreaper, or a status that nix can't name.
            Ok(_) | Err(Errno::EINTR | Errno::EINVAL) => {}
            Err(_) => break,
        }
    }
    power_off()
}

fn power_off() -> ! {
    sync();
    loop {
        // Only an error returns. Without a machine to turn off there is nothing left to do.
        reboot(RebootMode::RB_AUTOBOOT).ok();
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
