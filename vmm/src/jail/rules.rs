//! Which system calls each kind of thread may make, and with which arguments.
//!
//! No list has a call that opens, names, creates or executes anything: threads work with the descriptors that they
//! have. A filter is inherited, so the main thread, which starts device threads, is allowed what they are. vCPU
//! threads start before the main thread is confined and have the narrowest list.

use super::ThreadKind;
use kvm_bindings::{kvm_ioeventfd, kvm_irq_routing, kvm_irqfd, kvm_userspace_memory_region};
use libc::c_long;
use nix::{request_code_none, request_code_write};

/// One call; allowed if all of its arguments are right. A call with several rules is allowed by each of them.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub call: c_long,
    pub arguments: &'static [Argument],
}

/// A test of the low half of an argument: all that are tested are 32 bits wide to the kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// Argument of this index has this value.
    Is(u8, u64),
    /// Argument of this index has this value in the bits of this mask.
    Has(u8, u64, u64),
}

use Argument::{Has, Is};

const fn any(call: c_long) -> Rule {
    Rule { call, arguments: &[] }
}

const fn with(call: c_long, arguments: &'static [Argument]) -> Rule {
    Rule { call, arguments }
}

const KVM: u8 = 0xae;
pub const KVM_RUN: u64 = request_code_none!(KVM, 0x80);
pub const KVM_SET_USER_MEMORY_REGION: u64 = request_code_write!(KVM, 0x46, size_of::<kvm_userspace_memory_region>());
pub const KVM_SET_GSI_ROUTING: u64 = request_code_write!(KVM, 0x6a, size_of::<kvm_irq_routing>());
pub const KVM_IRQFD: u64 = request_code_write!(KVM, 0x76, size_of::<kvm_irqfd>());
pub const KVM_IOEVENTFD: u64 = request_code_write!(KVM, 0x79, size_of::<kvm_ioeventfd>());

const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;

/// Never executable: what an attacker writes must not become code.
const NOT_EXECUTABLE: &[Argument] = &[Has(2, libc::PROT_EXEC as u64, 0)];

/// Memory, locks, time and random numbers, the log, and the end of a thread or of the process.
const EVERY_THREAD: &[Rule] = &[
    any(libc::SYS_read),
    any(libc::SYS_write),
    any(libc::SYS_close),
    // Debug builds of the standard library look before they close.
    with(libc::SYS_fcntl, &[Is(1, libc::F_GETFD as u64)]),
    with(libc::SYS_mmap, NOT_EXECUTABLE),
    with(libc::SYS_mprotect, NOT_EXECUTABLE),
    any(libc::SYS_munmap),
    any(libc::SYS_mremap),
    any(libc::SYS_madvise),
    any(libc::SYS_brk),
    any(libc::SYS_futex),
    any(libc::SYS_sched_yield),
    // The allocator sizes its arenas by the number of CPUs.
    any(libc::SYS_sched_getaffinity),
    any(libc::SYS_getrandom),
    // Where the vDSO cannot tell the time.
    any(libc::SYS_clock_gettime),
    any(libc::SYS_restart_syscall),
    any(libc::SYS_sigaltstack),
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
    // abort(3).
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigaction),
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_getpid),
    any(libc::SYS_gettid),
    with(libc::SYS_tgkill, &[Is(2, libc::SIGABRT as u64)]),
];

/// What epoll loops do besides.
const EVENT_LOOP: &[Rule] = &[any(libc::SYS_epoll_wait), any(libc::SYS_epoll_ctl)];

const VCPU: &[Rule] = &[with(libc::SYS_ioctl, &[Is(1, KVM_RUN)])];

/// Scattered I/O at offsets, flush, discard.
const BLOCK: &[Rule] = &[
    any(libc::SYS_preadv),
    with(libc::SYS_preadv2, &[Is(5, libc::RWF_NOWAIT as u64)]),
    with(libc::SYS_fadvise64, &[Is(3, libc::POSIX_FADV_WILLNEED as u64)]),
    any(libc::SYS_pwritev),
    any(libc::SYS_fsync),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fallocate),
];

/// Frames to the tap and from it, scattered in guest memory, and what the tap may leave to the guest.
const NET: &[Rule] =
    &[any(libc::SYS_readv), any(libc::SYS_writev), with(libc::SYS_ioctl, &[Is(1, libc::TUNSETOFFLOAD)])];

/// Bytes of streams, scattered in guest memory; the end of a direction.
const VSOCK: &[Rule] = &[any(libc::SYS_readv), any(libc::SYS_shutdown)];

/// Requests, events, hot-plug.
const MAIN: &[Rule] = &[
    any(libc::SYS_recvmsg),
    any(libc::SYS_sendmsg),
    any(libc::SYS_epoll_create1),
    any(libc::SYS_eventfd2),
    // Images that are attached as memory. They can be mapped for reading alone, since their descriptors are.
    with(libc::SYS_ioctl, &[Is(1, KVM_SET_USER_MEMORY_REGION)]),
    with(libc::SYS_ioctl, &[Is(1, KVM_SET_GSI_ROUTING)]),
    with(libc::SYS_ioctl, &[Is(1, KVM_IRQFD)]),
    with(libc::SYS_ioctl, &[Is(1, KVM_IOEVENTFD)]),
    with(libc::SYS_ioctl, &[Is(1, libc::FIONBIO)]),
    with(libc::SYS_fcntl, &[Is(1, libc::F_DUPFD_CLOEXEC as u64)]),
    with(libc::SYS_fcntl, &[Is(1, libc::F_GETFL as u64)]),
    with(libc::SYS_fcntl, &[Is(1, libc::F_SETFL as u64)]),
    // What a disk is and how long; of descriptors only.
    with(libc::SYS_statx, &[Has(2, EMPTY_PATH, EMPTY_PATH)]),
    with(libc::SYS_newfstatat, &[Has(3, EMPTY_PATH, EMPTY_PATH)]),
    any(libc::SYS_lseek),
    // Whether a file server's socket is one.
    with(libc::SYS_getsockopt, &[Is(1, libc::SOL_SOCKET as u64), Is(2, libc::SO_TYPE as u64)]),
];

/// The flags that the C library starts a thread with.
const NEW_THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// Starting a thread, and what it does until it has a filter of its own.
const THREAD_START: &[Rule] = &[
    with(libc::SYS_clone, &[Is(0, NEW_THREAD)]),
    // Refused by another filter, with an error that makes the C library use clone(2).
    any(libc::SYS_clone3),
    any(libc::SYS_set_robust_list),
    any(libc::SYS_rseq),
    with(libc::SYS_prctl, &[Is(0, libc::PR_SET_NAME as u64)]),
    with(libc::SYS_prctl, &[Is(0, libc::PR_SET_NO_NEW_PRIVS as u64)]),
    // Without flags: one of them makes a descriptor.
    with(libc::SYS_seccomp, &[Is(0, libc::SECCOMP_SET_MODE_FILTER as u64), Is(1, 0)]),
];

/// The rules of a kind of thread.
pub fn of(kind: ThreadKind) -> impl Iterator<Item = &'static Rule> {
    let lists: &[&[Rule]] = match kind {
        ThreadKind::Main => &[EVERY_THREAD, EVENT_LOOP, MAIN, THREAD_START, BLOCK, NET, VSOCK],
        ThreadKind::Vcpu => &[EVERY_THREAD, VCPU],
        ThreadKind::Block => &[EVERY_THREAD, EVENT_LOOP, BLOCK],
        ThreadKind::Net => &[EVERY_THREAD, EVENT_LOOP, NET],
        ThreadKind::Vsock => &[EVERY_THREAD, EVENT_LOOP, VSOCK],
        ThreadKind::Reaper => &[EVERY_THREAD],
        ThreadKind::Balloon
        | ThreadKind::Console
        | ThreadKind::Fs
        | ThreadKind::Memory
        | ThreadKind::Pmem
        | ThreadKind::Rng => &[EVERY_THREAD, EVENT_LOOP],
    };
    lists.iter().copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn calls(kind: ThreadKind) -> BTreeSet<c_long> {
        of(kind).map(|rule| rule.call).collect()
    }

    /// Calls that reach something which was not handed in, or make something that outlives the filter's idea of it.
    const REACHING: &[c_long] = &[
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_open_by_handle_at,
        libc::SYS_creat,
        libc::SYS_memfd_create,
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_sendto,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_chroot,
        libc::SYS_pivot_root,
        libc::SYS_io_uring_setup,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_shmget,
        libc::SYS_prlimit64,
        libc::SYS_pkey_mprotect,
        libc::SYS_personality,
    ];

    #[test]
    fn no_thread_may_reach_what_it_was_not_given() {
        for kind in ThreadKind::ALL {
            let calls = calls(kind);
            assert!(REACHING.iter().all(|call| !calls.contains(call)), "{kind:?}");
        }
    }

    #[test]
    fn the_main_thread_may_do_what_the_threads_it_starts_may() {
        let allowed: BTreeSet<String> = of(ThreadKind::Main).map(|rule| format!("{rule:?}")).collect();
        for kind in ThreadKind::ALL.into_iter().filter(|kind| *kind != ThreadKind::Vcpu) {
            assert!(of(kind).all(|rule| allowed.contains(&format!("{rule:?}"))), "{kind:?}");
        }
    }

    #[test]
    fn only_the_main_thread_starts_threads() {
        for kind in ThreadKind::ALL {
            assert_eq!(calls(kind).contains(&libc::SYS_clone), kind == ThreadKind::Main, "{kind:?}");
        }
    }

    #[test]
    fn device_control_is_always_limited_to_one_request() {
        for kind in ThreadKind::ALL {
            let ioctls = of(kind).filter(|rule| rule.call == libc::SYS_ioctl);
            assert!(ioctls.into_iter().all(|rule| matches!(rule.arguments, [Is(1, _)])), "{kind:?}");
        }
    }

    #[test]
    fn no_call_has_rules_with_and_without_arguments() {
        for kind in ThreadKind::ALL {
            let mut free = BTreeMap::new();
            for rule in of(kind) {
                let seen = free.entry(rule.call).or_insert(rule.arguments.is_empty());
                assert_eq!(*seen, rule.arguments.is_empty(), "{kind:?}: call {}", rule.call);
            }
        }
    }
}
