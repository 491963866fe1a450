//! Disks for what containers write: an ext4 that is small when it comes, and as large as its disk when it is mounted.

use super::partition;
use crate::error::Error;
use nix::mount::MsFlags;
use std::path::Path;

/// Zeroes for a large file system's inodes are not worth their space; what is deleted is the node's again at once.
const OPTIONS: &str = "noinit_itable,discard";

/// Mounts `disk` on the directory `place`. When it fails, it may be mounted.
pub fn mount(disk: &Path, place: &Path, flags: MsFlags) -> Result<(), Error> {
    nix::mount::mount(Some(disk), place, Some("ext4"), flags, Some(OPTIONS))
        .map_err(Error::system("mount as ext4", disk.display()))?;
    partition::grow(disk, place).map_err(Error::system("grow the filesystem on", disk.display()))
}
