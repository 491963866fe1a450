//! Volumes for containers to write to: memory or a disk of the guest, and parts of them that are mounted alone.
//!
//! A part is looked up once and bound to a place of its own: containers that write to the volume may put a link where a
//! directory was at any moment.

use super::{Kind, Volumes};
use crate::error::Error;
use crate::id::VolumeId;
use crate::rootfs::scratch;
use agent_protocol::agent::{MemoryVolume, PartOfVolume, ScratchDisk};
use agent_protocol::files::entry_path;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, Uid, chown, fchown};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What mke2fs leaves for fsck, which nobody runs here.
const LOST_AND_FOUND: &str = "lost+found";

impl Volumes {
    /// Memory, which counts as that of the containers that write to it. It is there when this returns.
    pub fn prepare_memory(&self, id: &VolumeId, volume: &MemoryVolume) -> Result<(), Error> {
        let options = memory_options(volume)?;
        self.add(id, Kind::Directory, |path| {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NODEV, Some(options.as_str()))
                .map_err(Error::system("mount", path.display()))?;
            Ok(None)
        })
    }

    /// A disk that nothing has written to yet.
    pub fn prepare_disk(&self, id: &VolumeId, volume: &ScratchDisk, disk: &Path) -> Result<(), Error> {
        self.add(id, Kind::Directory, |path| {
            scratch::mount(disk, path, MsFlags::MS_NODEV)?;
            let own = || -> io::Result<()> {
                std::fs::remove_dir(path.join(LOST_AND_FOUND))?;
                chown(path, Some(Uid::from_raw(volume.uid)), Some(Gid::from_raw(volume.gid)))?;
                // After the owner, a change of which takes bits away.
                std::fs::set_permissions(path, Permissions::from_mode(volume.mode & 0o7777))
            };
            own().map_err(Error::system("prepare", path.display()))?;
            Ok(None)
        })
    }

    /// A part of one of the above. What is missing of its path are directories, which are made.
    pub fn prepare_part(&self, id: &VolumeId, part: &PartOfVolume) -> Result<(), Error> {
        let (kind, found) = self.find_part(part)?;
        self.add(id, kind, |path| {
            // The kernel's own link: what was found, whatever has its name by now.
            let source = format!("/proc/self/fd/{}", found.as_raw_fd());
            mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(Error::system("mount", path.display()))?;
            Ok(None)
        })
    }

    fn find_part(&self, part: &PartOfVolume) -> Result<(Kind, OwnedFd), Error> {
        let shown = String::from_utf8_lossy(&part.path);
        let invalid = |reason: &str| Error::invalid("part of a volume", &shown, reason);
        let below = entry_path(&part.path).ok_or_else(|| invalid("it must be relative, short and without `..`"))?;
        let whole = VolumeId::parse(&part.volume)?;
        let volume = self.get(&whole)?;
        if volume.content.is_some() {
            return Err(invalid("containers do not write to its volume"));
        }
        let find = || -> io::Result<_> {
            let root = openat2(AT_FDCWD, &volume.path, OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY))?;
            let found = find(&root, below, part)?;
            let metadata = File::from(found.try_clone()?).metadata()?;
            Ok((found, metadata))
        };
        let (found, metadata) = find().map_err(Error::system("find", format!("{shown:.80?} in volume {whole}")))?;
        match metadata.file_type() {
            kind if kind.is_dir() => Ok((Kind::Directory, found)),
            kind if kind.is_file() => Ok((Kind::File, found)),
            _ => Err(invalid("it is neither a directory nor a regular file")),
        }
    }
}

/// Follows links, as long as they stay in the volume.
fn find(root: &OwnedFd, below: &Path, part: &PartOfVolume) -> nix::Result<OwnedFd> {
    let mut found = root.try_clone().map_err(|_| Errno::EMFILE)?;
    let mut path = std::path::PathBuf::new();
    for name in below {
        path.push(name);
        found = match open_below(root, &path) {
            Err(Errno::ENOENT) => {
                match mkdirat(&found, name, Mode::S_IRWXU) {
                    Ok(()) => own(&found, Path::new(name), part)?,
                    // A link that leads nowhere stays one, as the look-up below says.
                    Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno),
                }
                open_below(root, &path)?
            }
            result => result?,
        };
    }
    Ok(found)
}

fn open_below(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(root, path, OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve))
}

/// Of a directory that was just made; a link that took its name is not followed.
fn own(parent: &impl AsFd, name: &Path, part: &PartOfVolume) -> nix::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat2(parent, name, OpenHow::new().flags(flags))?;
    fchown(&made, Some(Uid::from_raw(part.uid)), Some(Gid::from_raw(part.gid)))?;
    fchmod(&made, Mode::from_bits_truncate(part.mode & 0o7777))
}

fn memory_options(volume: &MemoryVolume) -> Result<String, Error> {
    let MemoryVolume { bytes, mode, uid, gid, .. } = volume;
    // To the kernel, nothing is no limit.
    if *bytes == 0 {
        return Err(Error::invalid("volume size", "0", "it has no room at all"));
    }
    Ok(format!("size={bytes},mode={:o},uid={uid},gid={gid}", mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{id, volume};
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;

    /// A volume in a plain directory.
    fn writable() -> (tempfile::TempDir, Volumes, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(root.path().join("v"));
        volumes.add(&id(), Kind::Directory, |_| Ok(None)).unwrap();
        let path = root.path().join("v/v1");
        (root, volumes, path)
    }

    fn part(path: &str) -> PartOfVolume {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        PartOfVolume { volume: "v1".to_owned(), path: path.into(), mode: 0o2770, uid, gid, ..Default::default() }
    }

    #[test]
    fn what_is_missing_of_a_part_is_made() {
        let (_root, volumes, path) = writable();
        std::fs::create_dir(path.join("there")).unwrap();
        std::fs::set_permissions(path.join("there"), Permissions::from_mode(0o700)).unwrap();
        let (kind, found) = volumes.find_part(&part("there/a/b")).unwrap();
        assert!(matches!(kind, Kind::Directory));
        let inode = File::from(found).metadata().unwrap().ino();
        assert_eq!(std::fs::metadata(path.join("there/a/b")).unwrap().ino(), inode);
        let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("there"), mode("there/a"), mode("there/a/b")), (0o700, 0o2770, 0o2770));
    }

    #[test]
    fn a_file_that_is_there_is_the_part() {
        let (_root, volumes, path) = writable();
        std::fs::write(path.join("file"), "").unwrap();
        symlink("file", path.join("link")).unwrap();
        for name in ["file", "link"] {
            assert!(matches!(volumes.find_part(&part(name)).unwrap().0, Kind::File));
        }
    }

    #[test]
    fn a_part_is_below_its_volume() {
        let (root, volumes, path) = writable();
        symlink(root.path(), path.join("absolute")).unwrap();
        symlink("../..", path.join("up")).unwrap();
        symlink("nowhere", path.join("dangling")).unwrap();
        for name in ["absolute", "absolute/x", "up", "up/x", "dangling", "../x", "/etc", "", "a/../b"] {
            assert!(volumes.find_part(&part(name)).is_err(), "{name}");
        }
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
        assert!(!path.join("nowhere").exists());
    }

    #[test]
    fn configuration_has_no_parts_and_others_take_no_files() {
        let root = tempfile::tempdir().unwrap();
        let (pushed, _) = volume(root.path());
        assert!(pushed.find_part(&part("x")).is_err());
        let (_root, volumes, _) = writable();
        let error = volumes.put(&id(), 1, &[], true).unwrap_err();
        assert_eq!(error.to_string(), "volume \"v1\" is not valid: its files are not the shim's");
        assert!(volumes.take_file(&id(), 1).is_err());
    }

    #[test]
    fn a_place_that_is_a_file_goes_too() {
        let (root, volumes, _) = writable();
        let two = VolumeId::parse("v2").unwrap();
        volumes.add(&two, Kind::File, |_| Ok(None)).unwrap();
        assert!(root.path().join("v/v2").is_file());
        volumes.release(&two).unwrap();
        assert!(!root.path().join("v/v2").exists());
    }

    #[test]
    fn memory_has_a_size() {
        let volume = MemoryVolume { bytes: 1 << 20, mode: 0o42777, gid: 2000, ..Default::default() };
        assert_eq!(memory_options(&volume).unwrap(), "size=1048576,mode=2777,uid=0,gid=2000");
        assert!(memory_options(&MemoryVolume::default()).is_err());
    }
}
