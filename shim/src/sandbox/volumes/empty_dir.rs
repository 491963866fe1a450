//! emptyDirs, as kubelet prepares them: a directory of the node, or a tmpfs mounted on it.
//!
//! The guest has a disk or memory in place of it. The disk is a sparse image in the directory itself: there, kubelet
//! counts its blocks and removes it with the pod, also after a crash. The node never mounts it.

use super::classify::EmptyDirPath;
use crate::sandbox::file_id::FileId;
use crate::sandbox::layers::scratch;
use crate::sandbox::mountinfo::mounts;
use crate::sandbox::policy::Resolved;
use crate::sandbox::spec::shown;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the image is called. A dot hides it from who looks at the volume on the node.
const IMAGE: &str = ".bulkhead-empty-dir.ext4";

/// How much is looked at of a directory that should have nothing in it.
const MAX_DEPTH: u32 = 64;
const MAX_DIRECTORIES: u32 = 4096;

/// Where an emptyDir's files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Medium {
    Disk,
    Memory { bytes: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Owner {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    fn of(metadata: &Metadata) -> Self {
        Self { mode: metadata.mode() & 0o7777, uid: metadata.uid(), gid: metadata.gid() }
    }
}

/// An emptyDir that was found, and which part of it is meant.
#[derive(Debug)]
pub(in super::super) struct EmptyDir {
    /// The pod's name for it.
    pub name: String,
    pub key: FileId,
    pub owner: Owner,
    directory: Resolved,
    /// Empty: all of it.
    pub below: PathBuf,
    pub part: Owner,
    pub part_is_directory: bool,
}

impl EmptyDir {
    /// `meant` is what a container is to see. `None`: it is not what its name says.
    pub(super) fn find(path: &EmptyDirPath, meant: &Metadata) -> io::Result<Option<Self>> {
        let directory = Resolved::open(&path.volume)?;
        let metadata = File::from(directory.fd.try_clone()?).metadata()?;
        let part = if path.below.as_os_str().is_empty() {
            FileId::of(&metadata)
        } else {
            let resolve =
                ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
            let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
            match openat2(&directory.fd, &path.below, how) {
                Ok(part) => FileId::of(&File::from(part).metadata()?),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        };
        // Something else may be mounted over what has the name.
        let same = directory.path == path.volume && metadata.is_dir() && part == FileId::of(meant);
        let name = path.volume.file_name().and_then(|name| name.to_str()).filter(|_| same);
        Ok(name.map(|name| Self {
            name: shown(name),
            key: FileId::of(&metadata),
            owner: Owner::of(&metadata),
            directory,
            below: path.below.clone(),
            part: Owner::of(meant),
            part_is_directory: meant.is_dir(),
        }))
    }

    /// What to make in the guest, or why the directory has to be shared.
    pub fn medium(&self) -> io::Result<Result<Medium, &'static str>> {
        let medium = if self.is_mounted()? {
            let found = fstatfs(&self.directory.fd)?;
            if found.filesystem_type() != TMPFS_MAGIC {
                return Ok(Err("a file system that is not memory is mounted there"));
            }
            let block = u64::try_from(found.block_size()).unwrap_or(0);
            Medium::Memory { bytes: found.blocks().saturating_mul(block) }
        } else {
            Medium::Disk
        };
        let mut left = MAX_DIRECTORIES;
        let empty = has_no_files(&self.path(), self.key.device, MAX_DEPTH, &mut left)?;
        Ok(if empty { Ok(medium) } else { Err("the node has files in it") })
    }

    /// A new disk for the volume, of `limit` bytes or what the directory's file system has.
    pub fn make_image(&self, template: &Path, limit: u64) -> io::Result<File> {
        let image = self.path().join(IMAGE);
        let open = || File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&image);
        // The VMM gets the same open file, so that it is locked for as long as a guest has it.
        let lock = |file: &File| {
            file.try_lock().map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another microVM writes to it"))
        };
        match open() {
            // Of a microVM of this pod that is gone. It may have died at any moment, and has no journal.
            Ok(left) => lock(&left).and_then(|()| std::fs::remove_file(&image))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let make = || {
            scratch::make(template, &image, limit.min(scratch::capacity(&self.path())?))?;
            let file = open()?;
            lock(&file).map(|()| file)
        };
        let made = make();
        if made.is_err() {
            std::fs::remove_file(&image).ok();
        }
        made
    }

    /// The directory that was found, whatever has its name by now.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.fd.as_raw_fd()))
    }

    fn is_mounted(&self) -> io::Result<bool> {
        let (id, table) = (self.directory.mount_id()?, std::fs::read("/proc/self/mountinfo")?);
        let own = mounts(&table).find(|mount| mount.id == id.as_bytes());
        Ok(own.is_some_and(|mount| mount.point == self.directory.path))
    }
}

/// Directories are kubelet's, made for a `subPath`. More of them than anybody makes count as files.
fn has_no_files(directory: &Path, device: u64, depth: u32, left: &mut u32) -> io::Result<bool> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if depth == MAX_DEPTH && entry.file_name() == IMAGE && metadata.is_file() {
            continue;
        }
        if !metadata.is_dir() || metadata.dev() != device || depth == 0 || *left == 0 {
            return Ok(false);
        }
        *left -= 1;
        if !has_no_files(&entry.path(), device, depth - 1, left)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir, create_dir_all, metadata, write};
    use std::os::unix::fs::{FileExt, symlink};

    struct Node {
        root: tempfile::TempDir,
        volume: PathBuf,
    }

    impl Node {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let volume = root.path().canonicalize().unwrap().join("cache");
            create_dir(&volume).unwrap();
            write(root.path().join("template"), [7; 8192]).unwrap();
            Self { root, volume }
        }

        fn find(&self, below: &str) -> Option<EmptyDir> {
            let path = EmptyDirPath { volume: self.volume.clone(), below: below.into() };
            EmptyDir::find(&path, &metadata(self.volume.join(below)).unwrap()).unwrap()
        }

        fn medium(&self) -> Result<Medium, &'static str> {
            self.find("").unwrap().medium().unwrap()
        }

        fn image(&self, limit: u64) -> io::Result<File> {
            self.find("").unwrap().make_image(&self.root.path().join("template"), limit)
        }
    }

    #[test]
    fn an_empty_directory_is_a_disk_and_directories_for_parts_are_nothing() {
        let node = Node::new();
        assert_eq!(node.medium(), Ok(Medium::Disk));
        create_dir_all(node.volume.join("a/b")).unwrap();
        drop(node.image(1 << 20).unwrap());
        assert_eq!(node.medium(), Ok(Medium::Disk));
        let part = node.find("a/b").unwrap();
        assert_eq!((part.name.as_str(), part.below.as_path()), ("cache", Path::new("a/b")));
        assert_eq!(part.part, Owner::of(&metadata(node.volume.join("a/b")).unwrap()));
    }

    #[test]
    fn what_the_node_wrote_is_shared() {
        for place in ["a/b/file", "file", "a/.bulkhead-empty-dir.ext4"] {
            let node = Node::new();
            let file = node.volume.join(place);
            create_dir_all(file.parent().unwrap()).unwrap();
            symlink("nowhere", file).unwrap();
            assert_eq!(node.medium(), Err("the node has files in it"), "{place}");
        }
        let node = Node::new();
        symlink("/etc/passwd", node.volume.join(IMAGE)).unwrap();
        assert_eq!(node.medium(), Err("the node has files in it"));
        assert!(node.image(1 << 20).is_err());
    }

    #[test]
    fn a_tree_without_an_end_is_not_walked() {
        let node = Node::new();
        create_dir_all(node.volume.join("a/".repeat(MAX_DEPTH as usize + 1))).unwrap();
        assert!(node.medium().is_err());
    }

    #[test]
    fn another_thing_with_the_name_is_not_the_volume() {
        let node = Node::new();
        create_dir(node.volume.join("a")).unwrap();
        let path = EmptyDirPath { volume: node.volume.clone(), below: "a".into() };
        assert!(EmptyDir::find(&path, &metadata("/etc").unwrap()).unwrap().is_none());
        let gone = EmptyDirPath { below: "b".into(), ..path.clone() };
        assert!(EmptyDir::find(&gone, &metadata("/etc").unwrap()).unwrap().is_none());
        let link = node.volume.with_file_name("link");
        symlink(&node.volume, &link).unwrap();
        let linked = EmptyDirPath { volume: link, below: PathBuf::new() };
        assert!(EmptyDir::find(&linked, &metadata(&node.volume).unwrap()).unwrap().is_none());
    }

    #[test]
    fn an_image_is_hidden_and_as_large_as_the_limit() {
        let node = Node::new();
        let image = node.image(1 << 30).unwrap();
        let found = image.metadata().unwrap();
        assert_eq!((found.len(), found.mode() & 0o7777), (1 << 30, 0o600));
        assert!(found.blocks() * 512 < 1 << 20);
        let more_than_there_is = 1 << 62;
        drop(image);
        assert!(node.image(more_than_there_is).unwrap().metadata().unwrap().len() < more_than_there_is);
    }

    #[test]
    fn what_a_dead_microvm_left_is_made_anew_and_that_of_a_living_one_is_left_alone() {
        let node = Node::new();
        let first = node.image(1 << 20).unwrap();
        first.write_all_at(b"old", 9000).unwrap();
        assert_eq!(node.image(1 << 20).unwrap_err().to_string(), "another microVM writes to it");
        drop(first);
        let mut bytes = [1; 3];
        node.image(1 << 20).unwrap().read_exact_at(&mut bytes, 9000).unwrap();
        assert_eq!(bytes, [0; 3]);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let node = Node::new();
        std::fs::remove_file(node.root.path().join("template")).unwrap();
        assert!(node.image(1 << 20).is_err());
        assert_eq!(std::fs::read_dir(&node.volume).unwrap().count(), 0);
    }
}
