#![expect(unsafe_code, reason = "a jail is tried out in a forked child, with raw system calls")]

use super::*;
use crate::virtio::testing::skip;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, Uid, fork, pipe};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

const JAIL: Jail = Jail { uid: 1_999_999_990, gid: 1_999_999_991 };

/// Runs `child` in a forked process of one thread, which exits with 0 if it returns and with 1 if it panics.
fn forked(child: impl FnOnce()) -> Pid {
    // SAFETY: the C library makes its allocator usable after a fork, and the child takes no lock of ours that another
    // thread may hold. It never returns into the test.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let result = catch_unwind(AssertUnwindSafe(child));
            // SAFETY: ends the process without running what belongs to the parent.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
    }
}

/// A child that waits inside the jail while the test looks at it from outside.
struct Prisoner {
    pid: Pid,
    release: fs::File,
}

impl Prisoner {
    fn new(jail: Jail) -> Self {
        let (entered, child_entered) = pipe().unwrap();
        let (child_release, release) = pipe().unwrap();
        let pid = forked(|| {
            enter(&jail).unwrap();
            confine_thread(ThreadKind::Main).unwrap();
            fs::File::from(child_entered).write_all(b"!").unwrap();
            drop(fs::File::from(child_release).read(&mut [0]));
        });
        fs::File::from(entered).read_exact(&mut [0]).unwrap();
        Self { pid, release: release.into() }
    }

    fn status(&self, key: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{key}:"))).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }
}

impl Drop for Prisoner {
    fn drop(&mut self) {
        self.release.write_all(b"!").unwrap();
        assert_eq!(waitpid(self.pid, None).unwrap(), WaitStatus::Exited(self.pid, 0));
    }
}

fn root(test: &str) -> bool {
    let root = Uid::effective().is_root();
    if !root {
        skip(test, "root");
    }
    root
}

#[test]
fn a_jailed_process_has_no_rights() {
    if !root("a_jailed_process_has_no_rights") {
        return;
    }
    let prisoner = Prisoner::new(JAIL);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(prisoner.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(prisoner.status("Uid"), vec![JAIL.uid.to_string(); 4].join(" "));
    assert_eq!(prisoner.status("Gid"), vec![JAIL.gid.to_string(); 4].join(" "));
    assert_eq!(prisoner.status("Groups"), "");
    assert_eq!(prisoner.status("NoNewPrivs"), "1");
    assert_eq!(prisoner.status("Seccomp"), "2");
}

#[test]
fn a_jailed_process_sees_no_file() {
    if !root("a_jailed_process_sees_no_file") {
        return;
    }
    let prisoner = Prisoner::new(JAIL);
    assert_eq!(fs::read_dir(prisoner.proc("root")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(prisoner.proc("cwd")).unwrap().count(), 0);
    let refused = fs::write(prisoner.proc("root/file"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    let mounts = fs::read_to_string(prisoner.proc("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let options = mounts.split_whitespace().nth(5).unwrap();
    assert!(["ro", "nosuid", "nodev", "noexec"].iter().all(|option| options.contains(option)), "{options}");
}

#[test]
fn a_jailed_process_has_no_network_and_no_namespace_of_the_host() {
    if !root("a_jailed_process_has_no_network_and_no_namespace_of_the_host") {
        return;
    }
    let prisoner = Prisoner::new(JAIL);
    let devices = fs::read_to_string(prisoner.proc("net/dev")).unwrap();
    let names: Vec<_> = devices.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(names, ["lo"]);
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let theirs = fs::read_link(prisoner.proc(&format!("ns/{namespace}"))).unwrap();
        assert_ne!(theirs, fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap());
    }
}

#[test]
fn a_jailed_process_is_limited_and_leaves_no_core() {
    if !root("a_jailed_process_is_limited_and_leaves_no_core") {
        return;
    }
    let prisoner = Prisoner::new(JAIL);
    let limits = fs::read_to_string(prisoner.proc("limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(limit("Max open files"), ["4096", "4096"]);
    assert_eq!(limit("Max processes"), ["128", "128"]);
    // Not dumpable: its files in /proc belong to root.
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(prisoner.proc("maps")).unwrap().uid(), 0);
}

#[test]
fn an_open_directory_keeps_a_process_out() {
    if !root("an_open_directory_keeps_a_process_out") {
        return;
    }
    let child = forked(|| {
        let directory = fs::File::open("/").unwrap();
        let error = enter(&JAIL).unwrap_err();
        assert!(matches!(error, JailError::Directory(number) if number == directory.as_raw_fd()));
    });
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
}

#[test]
fn a_process_with_threads_is_not_jailed() {
    let child = forked(|| {
        let other = std::thread::spawn(std::thread::park);
        assert!(matches!(enter(&JAIL), Err(JailError::Threads(2))));
        other.thread().unpark();
        other.join().unwrap();
    });
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
}

/// How a confined child ends that makes one system call with arguments that do no harm.
fn ends_with(kind: ThreadKind, call: libc::c_long, arguments: [u64; 3]) -> WaitStatus {
    let child = forked(|| {
        confine_thread(kind).unwrap();
        // SAFETY: the arguments name no memory; most of them are refused before anything happens.
        unsafe { libc::syscall(call, arguments[0], arguments[1], arguments[2], 0, 0, 0) };
    });
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, status) => WaitStatus::Exited(Pid::from_raw(0), status),
        WaitStatus::Signaled(_, signal, _) => WaitStatus::Signaled(Pid::from_raw(0), signal, false),
        other => other,
    }
}

const KILLED: WaitStatus = WaitStatus::Signaled(Pid::from_raw(0), Signal::SIGSYS, false);
const FINE: WaitStatus = WaitStatus::Exited(Pid::from_raw(0), 0);

#[test]
fn a_forbidden_call_kills_the_process() {
    let none = u64::from(u32::MAX);
    let executable = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    let forbidden = [
        (libc::SYS_openat, [none, 0, 0]),
        (libc::SYS_socket, [1, 1, 0]),
        (libc::SYS_connect, [none, 0, 0]),
        (libc::SYS_execve, [0, 0, 0]),
        (libc::SYS_fork, [0, 0, 0]),
        (libc::SYS_clone, [0, 0, 0]),
        (libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0]),
        (libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0]),
        (libc::SYS_kill, [none, 0, 0]),
        (libc::SYS_tgkill, [none, none, libc::SIGKILL as u64]),
        (libc::SYS_ptrace, [none, 0, 0]),
        (libc::SYS_ioctl, [none, libc::TIOCSTI, 0]),
        (libc::SYS_mmap, [0, 4096, executable]),
        (libc::SYS_mprotect, [0, 4096, executable]),
        (libc::SYS_io_uring_setup, [1, 0, 0]),
        (libc::SYS_userfaultfd, [0, 0, 0]),
    ];
    for kind in ThreadKind::ALL {
        for (call, arguments) in forbidden {
            assert_eq!(ends_with(kind, call, arguments), KILLED, "{kind:?}: call {call}");
        }
    }
}

#[test]
fn only_vcpus_run_the_guest() {
    let run = [u64::from(u32::MAX), 0xae80, 0];
    for kind in ThreadKind::ALL {
        let expected = if kind == ThreadKind::Vcpu { FINE } else { KILLED };
        assert_eq!(ends_with(kind, libc::SYS_ioctl, run), expected, "{kind:?}");
    }
}

#[test]
fn a_confined_main_thread_starts_device_threads() {
    let child = forked(|| {
        confine_thread(ThreadKind::Main).unwrap();
        for kind in ThreadKind::ALL.into_iter().filter(|kind| !matches!(kind, ThreadKind::Main | ThreadKind::Vcpu)) {
            let thread = std::thread::Builder::new().name(kind.name().into()).spawn(move || {
                confine_thread(kind).unwrap();
                // Enough to leave the thread's own arena and map memory.
                vec![1u8; 1 << 20].len()
            });
            assert_eq!(thread.unwrap().join().unwrap(), 1 << 20);
        }
    });
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
}
