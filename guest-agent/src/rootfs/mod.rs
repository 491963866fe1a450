//! A container's root filesystem, mounted in its bundle.
//!
//! It comes from a directory of the pod's file share, from a disk that the VMM has just attached, or from layers of an
//! image with a disk for what is written.

mod layered;
mod layers;
mod options;
mod partition;
pub mod scratch;
mod share;

pub use layers::Layers;
pub use share::{Share, forget};

use crate::agent::Agent;

use crate::error::Error;
use crate::id::{PciAddress, share_path};
use agent_protocol::agent::LayeredRoot;
use layered::{Layered, Stack};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use options::MountOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Filesystems that a disk may carry. The kernel has more; these are what snapshotters make.
const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "erofs"];

/// How long an unmount may find the disk busy before it is done lazily.
const BUSY: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// Where a root filesystem comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    Shared(PathBuf),
    Block { address: PciAddress, filesystem: String, options: MountOptions },
    Layers(Stack),
}

impl Source {
    pub fn shared(path: &str) -> Result<Self, Error> {
        share_path(path).map(Self::Shared)
    }

    pub fn block(address: &str, filesystem: &str, options: &[String]) -> Result<Self, Error> {
        if !FILESYSTEMS.contains(&filesystem) {
            return Err(Error::invalid("filesystem", filesystem, format!("it is not one of {FILESYSTEMS:?}")));
        }
        let options = MountOptions::parse(options)?;
        Ok(Self::Block { address: PciAddress::parse(address)?, filesystem: filesystem.to_owned(), options })
    }

    pub fn layers(root: &LayeredRoot) -> Result<Self, Error> {
        Stack::parse(root).map(Self::Layers)
    }
}

/// A mounted root filesystem. It stays until `unmount`.
#[derive(Debug)]
pub struct Rootfs {
    target: PathBuf,
    base: Base,
}

/// What taking it away involves.
#[derive(Debug)]
enum Base {
    Share,
    /// It must be clean before the VMM takes it away.
    Disk,
    Layers(Layered),
}

impl Rootfs {
    /// Mounts `source` on the directory `target`.
    pub async fn mount(source: Source, target: PathBuf, agent: &Agent) -> Result<Self, Error> {
        let place = target.clone();
        let base = match source {
            Source::Shared(path) => {
                agent.share.ensure().await?;
                blocking(move || bind(&path, &place)).await?;
                Base::Share
            }
            Source::Block { address, filesystem, options } => {
                let disk = agent.pci.disk(&address).await?;
                blocking(move || mount_disk(&disk, &place, &filesystem, &options)).await?;
                Base::Disk
            }
            Source::Layers(stack) => Base::Layers(Layered::mount(stack, &place, &agent.pci, &agent.layers).await?),
        };
        Ok(Self { target, base })
    }

    /// Unmounts; a disk's content has reached the disk when this returns. Idempotent.
    pub async fn unmount(&self) -> Result<(), Error> {
        let target = self.target.clone();
        match &self.base {
            Base::Share => blocking(move || detach(&target)).await,
            Base::Disk => blocking(move || unmount_disk(&target)).await,
            Base::Layers(layered) => layered.unmount(target).await,
        }
    }
}

/// Mounting waits for other machines' answers, so it must not hold the event loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::system("run", "a thread"))?
}

fn bind(path: &Path, target: &Path) -> Result<(), Error> {
    mount(Some(path), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(Error::system("mount", path.display()))
}

/// Mounts the file system of a disk.
pub fn mount_disk(disk: &Path, target: &Path, filesystem: &str, options: &MountOptions) -> Result<(), Error> {
    let mount_as = |options: &MountOptions| {
        mount(Some(disk), target, Some(filesystem), options.flags, Some(options.data.as_str()))
    };
    let unreplayed = options.without_replay(filesystem);
    let mounted = match (mount_as(options), unreplayed) {
        // A view of what was in use: its journal cannot be replayed on a disk that is not to be written.
        (Err(Errno::EROFS), Some(options)) => {
            tracing::warn!(disk = %disk.display(), filesystem, "mounted without replaying its journal");
            mount_as(&options)
        }
        (result, _) => result,
    };
    mounted.map_err(Error::system("mount", format!("{} as {filesystem}", disk.display())))
}

/// Unmounts a disk, whose content has reached it when this returns. Takes 2 s longer when it is in use.
pub fn unmount_disk(target: &Path) -> Result<(), Error> {
    let started = std::time::Instant::now();
    loop {
        match umount2(target, MntFlags::empty()) {
            Err(Errno::EBUSY) if started.elapsed() < BUSY => std::thread::sleep(POLL),
            Err(Errno::EBUSY) => {
                // A process that can't be killed holds it. What was written is saved at least.
                tracing::warn!(target = %target.display(), "a file system is busy: unmounting lazily");
                nix::unistd::sync();
                return detach(target);
            }
            other => return unmounted(other, target),
        }
    }
}

fn detach(target: &Path) -> Result<(), Error> {
    unmounted(umount2(target, MntFlags::MNT_DETACH), target)
}

fn unmounted(result: nix::Result<()>, target: &Path) -> Result<(), Error> {
    match result {
        // Not a mount point (any more), or not even a directory.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::system("unmount", target.display())(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_filesystems_are_mounted_from_disks() {
        assert!(Source::block("0000:00:05.0", "ext4", &[]).is_ok());
        let error = Source::block("0000:00:05.0", "proc", &[]).unwrap_err();
        assert!(error.to_string().starts_with("filesystem \"proc\" is not valid"), "{error}");
        assert!(Source::block("05.0", "ext4", &[]).is_err());
    }
}
