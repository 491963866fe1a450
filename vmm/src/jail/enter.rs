//! Carries out a jail plan. Nothing here decides anything.
#![expect(unsafe_code, reason = "capabilities, prctl and close_range have no safe interface")]

use super::JailError;
use super::plan::{JailPlan, Step};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::unshare;
use nix::sys::resource::setrlimit;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{chdir, pivot_root, setgroups, setresgid, setresuid};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// A directory that every host has. The new root is mounted over it for a moment, in our own mount namespace.
const STAGE: &str = "/run";

/// One inode is the root itself, so that the file system stays empty even if it could be written to.
const ROOT_OPTIONS: &str = "size=4k,nr_inodes=1,mode=0000";

/// Closes all descriptors but the standard ones.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: the caller says that no object of this process owns a descriptor yet besides the standard ones.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn run(plan: &JailPlan) -> Result<(), JailError> {
    check_threads()?;
    check_descriptors()?;
    for step in plan.steps() {
        take(*step).map_err(|source| JailError::Step { step: *step, source })?;
    }
    Ok(())
}

/// Some of the steps change only the calling thread.
fn check_threads() -> Result<(), JailError> {
    let count = numbers("/proc/self/task")?.len();
    if count == 1 { Ok(()) } else { Err(JailError::Threads(count)) }
}

/// An open directory would be a way out of the empty root.
fn check_descriptors() -> Result<(), JailError> {
    for descriptor in numbers("/proc/self/fd")? {
        // SAFETY: it was open a moment ago and there is no other thread; if it was the listing's own, `fstat` says
        // that it is not open any more.
        let status = fstat(unsafe { BorrowedFd::borrow_raw(descriptor) });
        match status {
            Ok(status) if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR => {
                return Err(JailError::Directory(descriptor));
            }
            Ok(_) | Err(Errno::EBADF) => {}
            Err(source) => return Err(JailError::Inspect { path: "/proc/self/fd", source }),
        }
    }
    Ok(())
}

/// The numbers that name the entries of a directory in /proc.
fn numbers(path: &'static str) -> Result<Vec<i32>, JailError> {
    let inspect = |source| JailError::Inspect { path, source };
    let mut directory =
        Dir::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(inspect)?;
    let own: RawFd = directory.as_raw_fd();
    let mut numbers = Vec::new();
    for entry in directory.iter() {
        let entry = entry.map_err(inspect)?;
        let number = entry.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok());
        numbers.extend(number.filter(|number| *number != own));
    }
    Ok(numbers)
}

fn take(step: Step) -> nix::Result<()> {
    match step {
        Step::Unshare(kinds) => unshare(kinds),
        Step::IsolateMounts => {
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        }
        Step::EmptyRoot => empty_root(),
        Step::Limit(resource, value) => setrlimit(resource, value, value),
        Step::DropBoundingCapabilities => drop_bounding_capabilities(),
        Step::DropGroups => setgroups(&[]),
        Step::BecomeGroup(gid) => setresgid(gid, gid, gid),
        Step::BecomeUser(uid) => setresuid(uid, uid, uid),
        Step::DropCapabilities => drop_capabilities(),
        Step::ForbidTracing => process_control(libc::PR_SET_DUMPABLE, 0, 0).map(drop),
        Step::ForbidNewPrivileges => process_control(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop),
    }
}

fn empty_root() -> nix::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("none"), STAGE, Some("tmpfs"), flags, Some(ROOT_OPTIONS))?;
    chdir(STAGE)?;
    // The old root lands on top of the new one, where it can be let go of without a directory to hold it.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

fn drop_bounding_capabilities() -> nix::Result<()> {
    for capability in 0.. {
        match process_control(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(_) => {}
            // Beyond the kernel's last capability; the first one always exists.
            Err(Errno::EINVAL) if capability > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `struct __user_cap_header_struct` and `struct __user_cap_data_struct` of capset(2).
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two sets of 32 capabilities each.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

fn drop_capabilities() -> nix::Result<()> {
    process_control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0)?;
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let none = [CapabilitySets::default(); 2];
    // SAFETY: both pointers are valid for the call, with the layout that the version in the header says.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(result).map(drop)
}

fn process_control(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> nix::Result<libc::c_int> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used here take numbers, and no pointers.
    Errno::result(unsafe { libc::prctl(option, first, second, zero, zero) })
}
