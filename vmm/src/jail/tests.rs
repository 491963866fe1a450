#![expect(unsafe_code, reason = "a jail is tried out in a forked child, with raw system calls")]

use super::*;
use crate::virtio::block::{Block, Options};
use crate::virtio::console::Console;
use crate::virtio::device::VirtioDevice;
use crate::virtio::fs::Fs;
use crate::virtio::net::Net;
use crate::virtio::pmem::Pmem;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Driver, skip};
use crate::virtio::vsock::Vsock;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, Uid, fork, pipe};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

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
    assert_eq!(limit("Max processes"), ["256", "256"]);
    // Not dumpable: its files in /proc belong to root.
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
fn an_abort_is_seen_as_one() {
    for kind in ThreadKind::ALL {
        let child = forked(|| {
            confine_thread(kind).unwrap();
            std::process::abort();
        });
        assert!(matches!(waitpid(child, None).unwrap(), WaitStatus::Signaled(_, Signal::SIGABRT, _)), "{kind:?}");
    }
}

#[test]
fn only_vcpus_run_the_guest() {
    let run = [u64::from(u32::MAX), rules::KVM_RUN, 0];
    for kind in ThreadKind::ALL {
        let expected = if kind == ThreadKind::Vcpu { FINE } else { KILLED };
        assert_eq!(ends_with(kind, libc::SYS_ioctl, run), expected, "{kind:?}");
    }
}

fn start_and_stop(device: impl VirtioDevice) {
    Driver::start(device, 0).stop();
}

/// What hot-plug and a guest's drivers make the main thread do, with the threads' own filters on top.
#[test]
fn a_confined_main_thread_makes_and_starts_every_device() {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(4096).unwrap();
    let (_log, console) = pipe().unwrap();
    let (server, _peer) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (stream, _host) = UnixStream::pair().unwrap();
    let child = forked(|| {
        confine_thread(ThreadKind::Main).unwrap();
        start_and_stop(Block::new(disk, false, Options::default()).unwrap());
        start_and_stop(Console::new(console));
        start_and_stop(Fs::new("share", server).unwrap());
        start_and_stop(Pmem::new(1 << 32, 2 << 20));
        start_and_stop(Rng::new());
        let (vsock, connector) = Vsock::new(3, EventFd::new(EFD_NONBLOCK).unwrap()).unwrap();
        connector.connect(1024, stream.into(), Box::new(drop));
        start_and_stop(vsock);
    });
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
}

/// A tap device with the header that virtio-net wants, in the network namespace of the calling process.
fn tap() -> fs::File {
    let tap = fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all of its fields are numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
    // SAFETY: the request is valid for the call.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }, 0);
    tap
}

#[test]
fn a_confined_main_thread_makes_and_starts_a_network_interface() {
    let test = "a_confined_main_thread_makes_and_starts_a_network_interface";
    if !root(test) {
        return;
    }
    if !Path::new("/dev/net/tun").exists() {
        return skip(test, "/dev/net/tun");
    }
    let child = forked(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let tap = tap();
        confine_thread(ThreadKind::Main).unwrap();
        start_and_stop(Net::new(tap, [2, 0, 0, 0, 0, 1], 1500).unwrap());
    });
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
}

#[test]
fn the_kinds_of_requests_to_kvm_have_the_numbers_of_its_interface() {
    assert_eq!(rules::KVM_RUN, 0xae80);
    assert_eq!(rules::KVM_SET_GSI_ROUTING, 0x4008_ae6a);
    assert_eq!(rules::KVM_IRQFD, 0x4020_ae76);
    assert_eq!(rules::KVM_IOEVENTFD, 0x4040_ae79);
}
