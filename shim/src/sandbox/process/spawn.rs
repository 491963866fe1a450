//! Starts a program in a cgroup: `clone3` with `CLONE_INTO_CGROUP` (clone(2), Linux 5.7), then `execve`.
//!
//! A process that is forked first and joins by writing to `cgroup.procs` takes the kernel's lock of all forks and exits for writing. Taking it
//! waits for a grace period of RCU, 11 to 15 ms, and meanwhile nobody on the node forks.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout};
use std::convert::Infallible;
use std::ffi::{CString, OsStr, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// include/uapi/linux/sched.h. libc's are of a type that is too short for two of them.
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child of the shim that runs a program. Dropping it kills the process, unless it has been waited for.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// Readable when the process has ended.
    pidfd: AsyncFd<OwnedFd>,
    reaped: bool,
}

/// What the child gets, all of it made before there is one: nothing may be allocated between clone and exec, since another thread may hold
/// the allocator's lock for ever in the child's copy.
struct Birth<'a> {
    path: CString,
    arguments: Vec<CString>,
    standard: [BorrowedFd<'a>; 3],
}

/// Runs the program with these as its descriptors 0 to 2 and no others, an empty environment, and / as its directory. An error tells why it does not run.
///
/// Needs tokio's runtime.
pub(super) fn spawn(
    path: &Path,
    arguments: &[&OsStr],
    standard: [BorrowedFd<'_>; 3],
    cgroup: &File,
) -> io::Result<Child> {
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let path = text(path.as_os_str())?;
    let arguments = arguments.iter().map(|argument| text(argument)).collect::<io::Result<_>>()?;
    let (failure, failure_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (pid, pidfd) = clone_into(&Birth { path, arguments, standard }, cgroup, failure_end.as_fd())?;
    // SAFETY: an `OwnedFd` is one open descriptor until it is dropped, and the `AsyncFd` owns it.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.inspect_err(|_| kill(pid))?;
    let child = Child { pid, pidfd, reaped: false };
    drop(failure_end);
    // Closed by the program's execution, or written to before the process ends.
    let mut number = [0; size_of::<i32>()];
    match File::from(failure).read(&mut number)? {
        0 => Ok(child),
        _ => Err(child.never_ran(i32::from_ne_bytes(number))),
    }
}

fn clone_into(birth: &Birth<'_>, cgroup: &File, failure: BorrowedFd<'_>) -> io::Result<(Pid, OwnedFd)> {
    let mut argv: Vec<*const c_char> = vec![birth.path.as_ptr()];
    argv.extend(birth.arguments.iter().map(|argument| argument.as_ptr()));
    argv.push(ptr::null());
    let mut pidfd = -1i32;
    let mut request = libc::clone_args {
        // A handler of the shim's has no business in the child.
        flags: CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP,
        pidfd: ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: u64::from(cgroup.as_raw_fd().unsigned_abs()),
    };
    // SAFETY: the request is as long as said and `pidfd` outlives the call. Without CLONE_VM and a stack this is a fork: the child has a copy of
    // all memory, and calls nothing but what is safe in a signal handler until it executes a program or ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut request, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let Err(error) = execute(birth, &argv);
            // The parent reads it. There is nobody to tell when that fails.
            let _ = nix::unistd::write(failure, &(error as i32).to_ne_bytes());
            // SAFETY: ends the child without running what the shim would at its own end.
            unsafe { libc::_exit(127) }
        }
        pid => {
            let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
            // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
            Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
    }
}

/// In the child.
fn execute(birth: &Birth<'_>, argv: &[*const c_char]) -> Result<Infallible, Errno> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // SAFETY: no handler is installed. The shim ignores this one, as every program in Rust, which execution would keep.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    // A node that goes down asks every process to end. The shim ends its own, once the guest has written what it has.
    for asked in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: no handler is installed.
        unsafe { signal(asked, SigHandler::SigIgn) }?;
    }
    // Rust opens 0 to 2 before `main` where they are closed, so that none of these is one of them.
    let [input, output, error] = birth.standard;
    dup2_stdin(input)?;
    dup2_stdout(output)?;
    dup2_stderr(error)?;
    chdir(c"/")?;
    let (first, last) = (3u32, u32::MAX);
    // SAFETY: the call marks descriptors of the child; no memory is passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) })?;
    let environment = [ptr::null()];
    // SAFETY: path and arguments end with a zero byte, both lists with a null pointer, and all of them outlive the call.
    unsafe { libc::execve(birth.path.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
    Err(Errno::last())
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if !self.reaped {
            kill(self.pid);
        }
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> io::Result<WaitStatus> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
            match waitid(Id::PIDFd(ready.get_inner().as_fd()), flags)? {
                WaitStatus::StillAlive => ready.clear_ready(),
                status => {
                    self.reaped = true;
                    return Ok(status);
                }
            }
        }
    }

    /// It ends at once: it could not become its program.
    fn never_ran(mut self, number: i32) -> io::Error {
        self.reaped = waitid(Id::PIDFd(self.pidfd.get_ref().as_fd()), WaitPidFlag::WEXITED).is_ok();
        io::Error::from_raw_os_error(number)
    }
}

/// Of a child that has not been waited for: until then the pid is its own.
fn kill(pid: Pid) {
    nix::sys::signal::kill(pid, Signal::SIGKILL).ok();
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
