//! What the jail consists of, as data.

use caps::Capability;
use libc::c_long;
use nix::sched::CloneFlags;

/// The served directory, seen from inside.
pub const SHARE: &str = "/share";

pub const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// What a file server does in the name of its clients.
pub const CAPABILITIES: &[Capability] = &[
    Capability::CAP_CHOWN,
    // The guest's kernel has checked permissions; it knows the groups of its processes, which we do not.
    Capability::CAP_DAC_OVERRIDE,
    // Hard links to open files, in kernels before 6.10.
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    // New files belong to the user that makes them.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    // Device nodes are entries like others; nobody opens them here.
    Capability::CAP_MKNOD,
    // `security.capability`, which package managers set.
    Capability::CAP_SETFCAP,
];

/// Most open files: those that the guest's kernel remembers, and as many again for those that its processes have open.
pub const OPEN_FILES: u64 = 2 * crate::remembered::MOST as u64;

/// What threads may call. Nothing that executes, mounts, traces, signals others, connects, or opens by file handle:
/// a handle reaches every file of a file system.
pub const SYSTEM_CALLS: &[c_long] = &[
    // The socket and the log.
    libc::SYS_recvfrom,
    libc::SYS_write,
    libc::SYS_writev,
    // Open files.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    // Names.
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    // Extended attributes.
    libc::SYS_getxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    // In whose name, of this thread.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_umask,
    // Memory, locks, time, the end of a thread and of the process.
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
];
