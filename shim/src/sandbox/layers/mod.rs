//! Root filesystems made of EROFS layers: the guest gets the layers' files as a disk, and the node mounts nothing of them.
//!
//! containerd 2.1's erofs snapshotter mounts each layer on the node and gives an overlay of them.
//!
//! ```text
//! Directories::of   what an overlay is made of; pure
//! find              its layers' files, when all of them are EROFS
//! Registry          which files the pod's disks have, and who uses them; pure
//! scratch           the disk for what the container writes
//! ```

mod blob;
mod directories;
mod loops;
mod mounted;
mod registry;
pub(super) mod scratch;

pub(super) use super::file_id::FileId;
pub(super) use blob::Blob;
pub(super) use registry::{Part, Registry};

use super::SandboxError;
use super::mount::Overlay;
use directories::Directories;
use mounted::Mounted;
use std::path::{Path, PathBuf};

/// What a root filesystem consists of.
#[derive(Debug)]
pub(super) struct Stack {
    /// Top first, none twice.
    pub blobs: Vec<Blob>,
    /// The snapshot's own directory, where a container may write.
    pub upper: Option<PathBuf>,
}

impl Stack {
    /// An image of one layer, with nothing to write to.
    pub fn single(blob: &Path) -> Result<Self, SandboxError> {
        Ok(Self {
            blobs: vec![Blob::open(blob).map_err(SandboxError::host("use layer", &blob.display()))?],
            upper: None,
        })
    }

    fn new(blobs: Vec<Blob>, upper: Option<PathBuf>) -> Self {
        let mut stack = Self { blobs: Vec::with_capacity(blobs.len()), upper };
        for blob in blobs {
            // overlayfs refuses a layer that comes twice. The upper one hides all that the lower one has.
            if !stack.blobs.iter().any(|other| other.id == blob.id) {
                stack.blobs.push(blob);
            }
        }
        stack
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
    let mut blobs = Vec::with_capacity(directories.lower.len());
    for directory in &directories.lower {
        let Some(mounted) = Mounted::at(directory, &table) else { return Ok(None) };
        let object = format!("{} of {}", mounted.file().display(), directory.display());
        let blob = mounted.open(directory).map_err(SandboxError::host("use layer", &object))?;
        // Content on further devices, which only the node's mount knows.
        if blob.needs_more {
            return Ok(None);
        }
        blobs.push(blob);
    }
    Ok(Some(Stack::new(blobs, directories.upper)))
}
