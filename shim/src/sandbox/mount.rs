//! Mounts on the node, made so that each appears at its place with its restrictions already in force.
#![expect(unsafe_code, reason = "the mount calls that work on descriptors have no safe wrapper")]

use super::mountinfo::mounts;
use super::policy::Resolved;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A copy of a mounted tree that is at no place yet.
#[derive(Debug)]
pub(super) struct DetachedTree {
    root: OwnedFd,
}

/// How a tree relates to its original and to those who use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TreeOptions {
    /// With the mounts below the source.
    pub recursive: bool,
    pub read_only: bool,
    /// What is mounted below the source later appears as well.
    pub follows_source: bool,
}

impl DetachedTree {
    /// Copies the tree of `source`, never with devices or set-user-id programs that the node would honour.
    pub fn copy(source: &Resolved, options: TreeOptions) -> io::Result<Self> {
        let recursive = if options.recursive { libc::AT_RECURSIVE.cast_unsigned() } else { 0 };
        let empty_path = libc::AT_EMPTY_PATH.cast_unsigned();
        let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned() | empty_path | recursive;
        // SAFETY: the path is empty and static; the descriptor outlives the call.
        let descriptor = unsafe { libc::syscall(libc::SYS_open_tree, source.fd.as_raw_fd(), c"".as_ptr(), flags) };
        let descriptor = i32::try_from(descriptor).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just opened it for this caller alone.
        let tree = Self { root: unsafe { OwnedFd::from_raw_fd(descriptor) } };
        tree.restrict(options, recursive)?;
        Ok(tree)
    }

    fn restrict(&self, options: TreeOptions, recursive: u32) -> io::Result<()> {
        let read_only = if options.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
        let propagation = if options.follows_source { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only,
            attr_clr: 0,
            propagation: propagation.bits(),
            userns_fd: 0,
        };
        let flags = libc::AT_EMPTY_PATH.cast_unsigned() | recursive;
        // SAFETY: the path is empty and static; `attributes` outlives the call and its size is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.root.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attributes,
                size_of_val(&attributes),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What the source is: the file that was copied, not one that has taken its name meanwhile.
    pub fn metadata(&self) -> io::Result<std::fs::Metadata> {
        std::fs::File::from(self.root.try_clone()?).metadata()
    }

    pub fn attach(self, target: &Path) -> io::Result<()> {
        let target = c_path(target)?;
        // SAFETY: both paths outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.root.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Mounts a read-only view of `tree` at `share`. What is mounted below it later also appears in mount namespaces derived
/// from this one.
pub(super) fn make_share(tree: &Path, share: &Path) -> io::Result<()> {
    let options = TreeOptions { recursive: false, read_only: true, follows_source: false };
    DetachedTree::copy(&Resolved::open(tree)?, options)?.attach(share)?;
    Ok(mount(None::<&str>, share, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?)
}

/// An overlay to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlay {
    pub read_only: bool,
    /// Every other option, as the snapshotter wrote it.
    pub options: Vec<String>,
}

/// What mount(2) takes as options, its terminator included.
const MAX_OPTIONS: usize = 4096;

impl Overlay {
    pub fn mount(&self, target: &Path) -> io::Result<()> {
        let read_only = if self.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | read_only;
        let options = self.options.join(",");
        if options.len() < MAX_OPTIONS {
            return Ok(mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))?);
        }
        let (base, options) = self.relative().ok_or(io::ErrorKind::ArgumentListTooLong)?;
        // The working directory must be that of this call alone: a thread can have its own.
        let mount = || -> io::Result<()> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            nix::unistd::chdir(&base)?;
            Ok(mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))?)
        };
        let panicked = |_| io::Error::other("the mounting thread panicked");
        std::thread::scope(|scope| scope.spawn(mount).join()).map_err(panicked)?
    }

    /// The same with lower directories relative to what they have in common, when that is short enough.
    fn relative(&self) -> Option<(PathBuf, String)> {
        let lower = self.options.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
        let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
        let base =
            layers.first()?.ancestors().skip(1).find(|base| layers.iter().all(|layer| layer.starts_with(base)))?;
        let relative = layers.iter().filter_map(|layer| layer.strip_prefix(base).ok()?.to_str());
        let lower = format!("lowerdir={}", relative.collect::<Vec<_>>().join(":"));
        let others = self.options.iter().map(String::as_str).filter(|option| !option.starts_with("lowerdir="));
        let options = [lower.as_str()].into_iter().chain(others).collect::<Vec<_>>().join(",");
        (options.len() < MAX_OPTIONS).then(|| (base.to_owned(), options))
    }
}

/// Takes away everything that is mounted at a path and below it, now, even when it is in use. Nothing mounted is fine.
pub(super) fn unmount_all(path: &Path) -> io::Result<()> {
    use nix::errno::Errno;
    // Several mounts may be stacked on one place.
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes a directory that holds nothing but what the shim made: directories and the given files.
///
/// It never descends into a mount, and never removes a file with content that is not named: whatever was mounted here
/// belongs to someone else.
pub(super) fn remove_skeleton(directory: &Path, files: &[&str]) -> io::Result<()> {
    if is_mounted_below(directory)? {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "something is still mounted below it"));
    }
    remove_tree(directory, files)
}

fn remove_tree(directory: &Path, files: &[&str]) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let (path, metadata) = (entry.path(), entry.metadata()?);
        let named = entry.file_name().to_str().is_some_and(|name| files.contains(&name));
        if metadata.is_dir() {
            remove_tree(&path, &[])?;
        } else if named || (metadata.is_file() && metadata.len() == 0) {
            std::fs::remove_file(&path)?;
        }
    }
    std::fs::remove_dir(directory)
}

fn is_mounted_below(directory: &Path) -> io::Result<bool> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(mounts(&table).any(|mount| mount.point.starts_with(directory)))
}

#[cfg(test)]
mod tests;
