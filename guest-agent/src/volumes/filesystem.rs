//! Volumes on a disk that has a file system and keeps it: the pod's volumes of the node's drivers.

use super::{Kind, Volumes};
use crate::error::Error;
use crate::id::{PciAddress, VolumeId};
use crate::rootfs::{Source, mount_disk};
use agent_protocol::agent::FilesystemVolume;
use nix::unistd::{Gid, chown};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// What kubelet gives the directories of a volume that belongs to a group: its members may do what the owner may.
const OF_GROUP: u32 = 0o2770;

/// The disk that the volume is on.
pub fn address(volume: &FilesystemVolume) -> Result<PciAddress, Error> {
    PciAddress::parse(&volume.disk.pci_address)
}

impl Volumes {
    /// The file system is mounted when this returns: without devices and set-user-id programs.
    pub fn prepare_filesystem(&self, id: &VolumeId, volume: &FilesystemVolume, disk: &Path) -> Result<(), Error> {
        let mut options = volume.disk.options.clone();
        options.extend(["nodev", "nosuid"].map(str::to_owned));
        let source = Source::block(&volume.disk.pci_address, &volume.disk.filesystem, &options)?;
        let Source::Block { filesystem, options, .. } = source else {
            return Err(Error::invalid("volume", id.as_str(), "it is not on a disk"));
        };
        let group = volume.group.as_ref().map(|group| group.gid);
        self.add(id, Kind::Disk, |path| {
            mount_disk(disk, path, &filesystem, &options)?;
            let give = group.map_or(Ok(()), |gid| give(path, gid));
            give.map_err(Error::system("change the group of", path.display()))?;
            Ok(None)
        })
    }
}

/// Has the top directory belong to a group, unless it does: a volume that is read-only may.
fn give(path: &Path, gid: u32) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    let mode = metadata.mode() & 0o7777;
    if metadata.gid() != gid {
        chown(path, None, Some(Gid::from_raw(gid)))?;
    }
    // After the group, a change of which takes bits away.
    if metadata.gid() != gid || mode & OF_GROUP != OF_GROUP {
        std::fs::set_permissions(path, Permissions::from_mode(mode | OF_GROUP))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_protocol::agent::BlockVolume;

    #[test]
    fn the_top_directory_belongs_to_the_group() {
        let root = tempfile::tempdir().unwrap();
        let gid = nix::unistd::getegid().as_raw();
        std::fs::set_permissions(root.path(), Permissions::from_mode(0o705)).unwrap();
        give(root.path(), gid).unwrap();
        give(root.path(), gid).unwrap();
        let metadata = root.path().metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o2775, gid));
    }

    #[test]
    fn only_known_file_systems_on_disks_are_volumes() {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(root.path().join("v"));
        let prepare = |filesystem: &str| {
            let disk = BlockVolume {
                pci_address: "0000:00:05.0".to_owned(),
                filesystem: filesystem.to_owned(),
                ..BlockVolume::default()
            };
            let volume = FilesystemVolume { disk: Some(disk).into(), ..FilesystemVolume::default() };
            let id = VolumeId::parse("v1").unwrap();
            volumes.prepare_filesystem(&id, &volume, Path::new("/nonexistent")).unwrap_err().to_string()
        };
        assert!(prepare("btrfs").starts_with("filesystem \"btrfs\" is not valid"), "{}", prepare("btrfs"));
        assert!(prepare("ext4").starts_with("cannot mount /nonexistent as ext4"), "{}", prepare("ext4"));
        assert!(!root.path().join("v/v1").exists(), "a failed attempt leaves nothing");
        assert!(address(&FilesystemVolume::default()).is_err());
    }
}
