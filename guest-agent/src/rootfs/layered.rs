//! A root filesystem of image layers, with a disk of its own for what the container writes.

use super::layers::{Held, Layer, Layers, MAX_OPTIONS};
use super::options::MountOptions;
use super::{blocking, detach, scratch, unmount_disk};
use crate::error::Error;
use crate::id::PciAddress;
use crate::pci::PciBus;
use agent_protocol::agent::LayeredRoot;
use agent_protocol::agent::layered_root::Upper as Message;
use nix::mount::{MsFlags, mount};
use nix::unistd::{Gid, Uid, chown};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The one file system that disks to write to have.
const EXT4: &str = "ext4";

/// Of the directory that takes what is written, on a disk that somebody else made.
const UPPER_MODE: u32 = 0o755;

/// As the shim describes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Stack {
    /// Top first. None: the root is what is written.
    layers: Vec<Layer>,
    upper: Option<Upper>,
}

/// A disk with an ext4 for what the container writes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Upper {
    address: PciAddress,
    /// `None`: it is ours, and to be grown to the size of its disk.
    options: Option<MountOptions>,
    /// Of the root directory, when it is made.
    mode: u32,
    owner: (u32, u32),
}

impl Stack {
    pub fn parse(root: &LayeredRoot) -> Result<Self, Error> {
        let upper = match &root.upper {
            None if root.lower.is_empty() => return Err(Error::invalid("root filesystem", "", "it has no layers")),
            None => None,
            Some(Message::Scratch(disk)) => Some(Upper {
                address: PciAddress::parse(&disk.pci_address)?,
                options: None,
                mode: disk.mode & 0o7777,
                owner: (disk.uid, disk.gid),
            }),
            Some(Message::Block(disk)) if disk.filesystem == EXT4 => Some(Upper {
                address: PciAddress::parse(&disk.pci_address)?,
                options: Some(MountOptions::parse(&disk.options)?),
                mode: UPPER_MODE,
                owner: (0, 0),
            }),
            Some(Message::Block(disk)) => {
                return Err(Error::invalid("filesystem", &disk.filesystem, "only ext4 takes what a container writes"));
            }
            Some(_) => return Err(Error::invalid("upper directory", "", "this agent does not know its kind")),
        };
        Ok(Self { layers: Layer::parse_all(&root.lower)?, upper })
    }
}

/// What a mounted stack consists of.
#[derive(Debug)]
pub struct Layered {
    layers: Arc<Layers>,
    held: Mutex<Held>,
    scratch: Option<PathBuf>,
}

impl Layered {
    /// Mounts `stack` on `target`. A writable disk is mounted beside it.
    pub async fn mount(stack: Stack, target: &Path, pci: &PciBus, layers: &Arc<Layers>) -> Result<Self, Error> {
        let (held, lower) = layers.acquire(&stack.layers).await?;
        let scratch = stack.upper.as_ref().map(|_| target.with_file_name("scratch"));
        let made = Self { layers: Arc::clone(layers), held: Mutex::new(held), scratch };
        let mounted = made.mount_over(&lower, stack.upper, target.to_owned(), pci).await;
        match mounted {
            Ok(()) => Ok(made),
            Err(error) => {
                if let Err(error) = made.unmount(target.to_owned()).await {
                    tracing::warn!(%error, "a root filesystem that could not be mounted left something behind");
                }
                Err(error)
            }
        }
    }

    async fn mount_over(
        &self,
        lower: &[PathBuf],
        upper: Option<Upper>,
        target: PathBuf,
        pci: &PciBus,
    ) -> Result<(), Error> {
        if let (Some(upper), Some(place)) = (upper, self.scratch.clone()) {
            let disk = pci.disk(&upper.address).await?;
            blocking(move || mount_upper(&upper, &disk, &place)).await?;
        }
        let (lower, scratch) = (lower.to_owned(), self.scratch.clone());
        blocking(move || mount_stack(&lower, scratch.as_deref(), &target)).await
    }

    /// Unmounts all; what was written has reached its disk when this returns. Idempotent.
    pub async fn unmount(&self, target: PathBuf) -> Result<(), Error> {
        let scratch = self.scratch.clone();
        let unmounted = blocking(move || match scratch {
            // Only then is there something to lose.
            Some(scratch) => unmount_disk(&target).and(unmount_disk(&scratch)),
            None => detach(&target),
        });
        let result = unmounted.await;
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        self.layers.release(held).await;
        result
    }
}

fn mount_upper(wanted: &Upper, disk: &Path, place: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(place).map_err(Error::system("create", place.display()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match &wanted.options {
        None => scratch::mount(disk, place, flags)?,
        Some(options) => mount(Some(disk), place, Some(EXT4), options.flags | flags, Some(options.data.as_str()))
            .map_err(Error::system("mount as ext4", disk.display()))?,
    }
    let (upper, work) = (place.join("upper"), place.join("work"));
    if upper.exists() {
        // The container's own, of an earlier run.
        return Ok(());
    }
    let make = || {
        std::fs::create_dir(&upper)?;
        let (uid, gid) = wanted.owner;
        chown(&upper, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        std::fs::set_permissions(&upper, Permissions::from_mode(wanted.mode))?;
        std::fs::create_dir_all(&work)
    };
    make().map_err(Error::system("prepare", place.display()))
}

fn mount_stack(lower: &[PathBuf], scratch: Option<&Path>, target: &Path) -> Result<(), Error> {
    // Nothing to lay over anything: overlayfs refuses.
    let single = match (lower, scratch) {
        ([layer], None) => Some(layer.clone()),
        ([], Some(scratch)) => Some(scratch.join("upper")),
        _ => None,
    };
    if let Some(single) = single {
        return rebind(&single, target).map_err(Error::system("mount", single.display()));
    }
    let options = overlay_options(lower, scratch);
    if options.len() >= MAX_OPTIONS {
        return Err(Error::invalid("stack of layers", "", "it is longer than mount(2) takes"));
    }
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .map_err(Error::system("mount the layers at", target.display()))
}

/// Without the flags of where it was mounted at first: a container's root may have programs that change users, and devices.
fn rebind(directory: &Path, target: &Path) -> nix::Result<()> {
    mount(Some(directory), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    mount(None::<&str>, target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REMOUNT, None::<&str>)
}

fn overlay_options(lower: &[PathBuf], scratch: Option<&Path>) -> String {
    let lower: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
    let lower = format!("lowerdir={}", lower.join(":"));
    match scratch {
        None => lower,
        Some(scratch) => {
            let place = scratch.display();
            format!("{lower},upperdir={place}/upper,workdir={place}/work")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_protocol::agent::layered_root::Upper;
    use agent_protocol::agent::{BlockVolume, Layer as Message, ScratchDisk};
    use agent_protocol::{LAYERS, MAX_ID, MAX_LAYERS};

    fn root(upper: Option<Upper>) -> LayeredRoot {
        let layer = Message { pci_address: "0000:00:05.0".to_owned(), part: 1, length: 4096, ..Message::default() };
        LayeredRoot { lower: vec![layer], upper, ..LayeredRoot::default() }
    }

    #[test]
    fn the_longest_stack_fits_mounts_page() {
        let lower: Vec<_> = (0..MAX_LAYERS).map(|k| Path::new(LAYERS).join((9000 + k).to_string())).collect();
        let scratch = Path::new("/run/bulkhead/containers").join("x".repeat(MAX_ID)).join("scratch");
        assert!(overlay_options(&lower, Some(&scratch)).len() < MAX_OPTIONS);
    }

    #[test]
    fn layers_are_listed_top_first() {
        let lower = [PathBuf::from("/l/2"), PathBuf::from("/l/1")];
        assert_eq!(overlay_options(&lower, None), "lowerdir=/l/2:/l/1");
        let expected = "lowerdir=/l/2:/l/1,upperdir=/s/upper,workdir=/s/work";
        assert_eq!(overlay_options(&lower, Some(Path::new("/s"))), expected);
    }

    #[test]
    fn an_upper_of_another_kind_is_refused() {
        let scratch = |address: &str| {
            Upper::Scratch(ScratchDisk { pci_address: address.to_owned(), mode: 0o40755, ..ScratchDisk::default() })
        };
        assert_eq!(Stack::parse(&root(None)).unwrap().upper, None);
        assert_eq!(Stack::parse(&root(Some(scratch("0000:00:06.0")))).unwrap().upper.unwrap().mode, 0o755);
        assert!(Stack::parse(&root(Some(scratch("")))).is_err());
        assert!(Stack::parse(&root(Some(block("xfs")))).is_err());
    }

    fn block(filesystem: &str) -> Upper {
        let (pci_address, filesystem) = ("0000:00:06.0".to_owned(), filesystem.to_owned());
        Upper::Block(BlockVolume { pci_address, filesystem, ..BlockVolume::default() })
    }

    #[test]
    fn a_disk_that_somebody_else_made_keeps_its_size() {
        let upper = Stack::parse(&root(Some(block("ext4")))).unwrap().upper.unwrap();
        assert_eq!(upper.options, Some(MountOptions::parse(&[]).unwrap()));
    }

    #[test]
    fn a_root_without_layers_has_a_disk() {
        let stack = |upper| Stack::parse(&LayeredRoot { upper, ..LayeredRoot::default() });
        assert!(stack(Some(block("ext4"))).unwrap().layers.is_empty());
        assert!(stack(None).is_err());
    }
}
