//! Root filesystems made of EROFS layers: the guest gets the layers' files as a disk or as memory, and the node mounts
//! nothing of them.
//!
//! containerd 2.1's erofs snapshotter mounts each layer on the node and gives an overlay of them. That of 2.2 and later names the files.
//!
//! ```text
//! Directories::of     what an overlay is made of; pure
//! find                its layers' files, when all of them are EROFS
//! Stack::open         the files that a stack of mounts names
//! Pod::layer_access   whether the guest gets them as a disk or as memory; pure
//! Registry            which files the pod's disks have, and who uses them; pure
//! scratch             the disk for what the container writes
//! ```

mod access;
mod blob;
mod directories;
mod loops;
mod mounted;
mod registry;
pub(super) mod scratch;

pub(super) use super::file_id::FileId;
pub(super) use access::Pod;
pub(super) use blob::Blob;
pub(super) use registry::{Key, Part, Registry};

use super::SandboxError;
use super::mount::Overlay;
use super::rootfs::{LayerStack, Upper};
use directories::Directories;
use mounted::Mounted;
use std::path::Path;

/// What a root filesystem consists of.
#[derive(Debug)]
pub(super) struct Stack {
    /// Top first, none twice.
    pub layers: Vec<Layer>,
    pub upper: Upper,
}

/// A layer, and the files that have its content if it only describes it.
#[derive(Debug)]
pub(super) struct Layer {
    pub blob: Blob,
    pub devices: Vec<Blob>,
}

impl Stack {
    pub fn open(stack: &LayerStack) -> Result<Self, SandboxError> {
        let layers = stack.lower.iter().map(|file| {
            let open = |path: &Path| Blob::open(path).map_err(SandboxError::host("use layer", &path.display()));
            let layer = Layer {
                blob: open(&file.blob)?,
                devices: file.devices.iter().map(|path| open(path)).collect::<Result<_, _>>()?,
            };
            match layer.check() {
                Ok(()) => Ok(layer),
                Err(error) => Err(SandboxError::host("use layer", &file.blob.display())(error)),
            }
        });
        Ok(Self::new(layers.collect::<Result<_, _>>()?, stack.upper.clone()))
    }

    fn new(layers: Vec<Layer>, upper: Upper) -> Self {
        let mut stack = Self { layers: Vec::with_capacity(layers.len()), upper };
        for layer in layers {
            // overlayfs refuses a layer that comes twice. The upper one hides all that the lower one has.
            if !stack.layers.iter().any(|other| other.blob.id == layer.blob.id) {
                stack.layers.push(layer);
            }
        }
        stack
    }
}

impl Layer {
    fn check(&self) -> std::io::Result<()> {
        let (wanted, named) = (usize::from(self.blob.devices), self.devices.len());
        if wanted != named {
            return Err(blob::refused(format!("it is on {wanted} more devices, and {named} are named")));
        }
        if self.devices.iter().any(|device| device.devices > 0) {
            return Err(blob::refused("one of its devices is on more devices".to_owned()));
        }
        if self.devices.iter().chain([&self.blob]).any(|blob| blob.too_large) {
            return Err(blob::refused("it is an EROFS that the guest's kernel cannot mount".to_owned()));
        }
        Ok(())
    }
}

/// The layers of an overlay whose lower directories are all EROFS file systems, each of one file. `None`: it is something
/// else, to be mounted on the node.
pub(super) fn find(overlay: &Overlay) -> Result<Option<Stack>, SandboxError> {
    let Some(directories) = Directories::of(overlay) else { return Ok(None) };
    if directories.lower.len() > vmm_protocol::MAX_PARTS {
        return Ok(None);
    }
    let Some(table) = mounted::table(&directories.lower)? else { return Ok(None) };
    let mut layers = Vec::with_capacity(directories.lower.len());
    for directory in &directories.lower {
        let Some(mounted) = Mounted::at(directory, &table) else { return Ok(None) };
        let object = format!("{} of {}", mounted.file().display(), directory.display());
        let blob = mounted.open(directory).map_err(SandboxError::host("use layer", &object))?;
        // Content on further devices, which only the node's mount knows, or nothing that the guest could mount.
        if blob.devices > 0 || blob.too_large {
            return Ok(None);
        }
        layers.push(Layer { blob, devices: Vec::new() });
    }
    Ok(Some(Stack::new(layers, directories.upper.map_or(Upper::None, Upper::Directory))))
}
