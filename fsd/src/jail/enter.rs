//! Carries the plan of the jail out.
#![expect(unsafe_code, reason = "calls that no crate wraps: securebits and closing descriptors")]

use super::plan::{CAPABILITIES, NAMESPACES, OPEN_FILES, SHARE};
use caps::{CapSet, CapsHashSet};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::unshare;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, pivot_root, setgroups, setresgid, setresuid};
use std::io;
use std::path::{Path, PathBuf};

/// Which step failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct JailError {
    step: &'static str,
    source: io::Error,
}

trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, JailError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, JailError> {
        self.map_err(|error| JailError { step, source: error.into() })
    }
}

/// Where the new root is put together: a directory that every system has and that nothing needs any more.
const SCAFFOLD: &str = "/proc";

/// Jails this process, which must have one thread, to `root`. Returns the directory's path inside.
///
/// Order matters: descriptors and limits first, namespaces before mounts, rights last.
pub fn enter(root: &Path) -> Result<PathBuf, JailError> {
    chdir(root).step("open the served directory")?;
    close_descriptors().step("close what was inherited")?;
    limit_resources()?;
    unshare(NAMESPACES).step("leave the host's namespaces")?;
    change_root()?;
    drop_rights()?;
    Ok(PathBuf::from(SHARE))
}

/// All but socket and log.
fn close_descriptors() -> io::Result<()> {
    // SAFETY: no object of this process owns a descriptor yet besides the standard ones.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn limit_resources() -> Result<(), JailError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).step("forbid core dumps")?;
    // The kernel's own limit may be lower; then as much as there is.
    if setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES).is_err() {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).step("read the limit of open files")?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).step("raise the limit of open files")?;
    }
    Ok(())
}

/// Makes the working directory [`SHARE`] of a root that has nothing else but `/proc`.
fn change_root() -> Result<(), JailError> {
    let none = None::<&str>;
    let sealed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Mounts that the host makes below the share reach us; ours never reach the host.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).step("detach from the host's mounts")?;
    mount(Some("jail"), SCAFFOLD, Some("tmpfs"), sealed, Some("mode=0755,size=16k,nr_inodes=8"))
        .step("mount an empty root")?;
    let inside = |path: &str| format!("{SCAFFOLD}{path}");
    std::fs::create_dir(inside(SHARE)).step("create the share's mount point")?;
    std::fs::create_dir(inside("/proc")).step("create the mount point of proc")?;
    mount(Some("."), inside(SHARE).as_str(), none, MsFlags::MS_BIND | MsFlags::MS_REC, none).step("bind the share")?;
    mount(Some("proc"), inside("/proc").as_str(), Some("proc"), sealed, Some("hidepid=ptraceable,subset=pid"))
        .step("mount proc")?;
    chdir(SCAFFOLD).step("enter the new root")?;
    pivot_root(".", ".").step("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).step("detach the old root")?;
    chdir("/").step("enter the root")?;
    mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | sealed, none)
        .step("make the root read-only")
}

fn drop_rights() -> Result<(), JailError> {
    umask(Mode::empty());
    setgroups(&[]).step("drop the groups")?;
    setresgid(0.into(), 0.into(), 0.into()).step("become group 0")?;
    setresuid(0.into(), 0.into(), 0.into()).step("become user 0")?;
    keep_capabilities_across_users().step("set the secure bits")?;
    limit_capabilities().map_err(io::Error::other).step("drop capabilities")?;
    // Servers of different pods have the same user: none may look into another through /proc.
    prctl::set_dumpable(false).step("forbid tracing")?;
    prctl::set_no_new_privs().step("forbid new privileges")
}

/// New files are made as the user that asks. The thread keeps its capabilities meanwhile: the guest's kernel has
/// checked the permission, with groups that we do not know.
fn keep_capabilities_across_users() -> io::Result<()> {
    /// `SECBIT_NOROOT`, `SECBIT_NO_SETUID_FIXUP` and `SECBIT_NO_CAP_AMBIENT_RAISE`, each with its lock above it.
    const SECURE_BITS: libc::c_ulong = 0b11 | 0b11 << 2 | 0b11 << 6;
    // SAFETY: takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn limit_capabilities() -> Result<(), caps::errors::CapsError> {
    let kept: CapsHashSet = CAPABILITIES.iter().copied().collect();
    // Bounding set first: dropping from it is a right as well.
    for capability in caps::read(None, CapSet::Bounding)? {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}
