//! The disk for what a container writes: a sparse ext4 image in the snapshot's own upper directory.
//!
//! There, containerd counts it as the container's usage and removes it with the snapshot, also after a crash. The node never
//! mounts it: the guest grows it and writes to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What the image is called, and until it is whole.
const NAME: &str = ".bulkhead-upper.ext4";
const UNFINISHED: &str = ".bulkhead-upper.new";

/// What is copied of the template at a time. Zeroes are left out.
const BLOCK: usize = 4096;

/// A longer template is none of ours.
const MAX_TEMPLATE: u64 = 64 << 20;

/// A disk, and what the directory that it stands for is like.
#[derive(Debug)]
pub(in super::super) struct ScratchFile {
    pub file: File,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// The image in `upper`, made of `template` with `limit` bytes if it is not there. `None` when the directory has something
/// else in it: what another runtime wrote is not in the image.
pub(in super::super) fn open(template: &Path, upper: &Path, limit: u64) -> io::Result<Option<ScratchFile>> {
    let directory = std::fs::symlink_metadata(upper)?;
    if !directory.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    let (image, unfinished) = (upper.join(NAME), upper.join(UNFINISHED));
    for entry in std::fs::read_dir(upper)? {
        let name = entry?.file_name();
        if name != NAME && name != UNFINISHED {
            return Ok(None);
        }
    }
    if !image.try_exists()? {
        remove(&unfinished)?;
        if let Err(error) = make(template, &unfinished, limit.min(capacity(upper)?)) {
            remove(&unfinished)?;
            return Err(error);
        }
        std::fs::rename(&unfinished, &image)?;
    }
    let file = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&image)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("the writable layer is not a file"));
    }
    // The VMM gets the same open file, so that it is locked for as long as a guest has it.
    file.try_lock().map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another microVM writes to it"))?;
    Ok(Some(ScratchFile { file, mode: directory.mode(), owner: (directory.uid(), directory.gid()) }))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes of the file system that the image is in: it never promises more. A project's quota shows here too.
pub(in super::super) fn capacity(directory: &Path) -> io::Result<u64> {
    let found = nix::sys::statvfs::statvfs(directory)?;
    Ok(found.blocks().saturating_mul(found.fragment_size()))
}

/// A sparse copy of `template`, with `limit` bytes.
pub(in super::super) fn make(template: &Path, image: &Path, limit: u64) -> io::Result<()> {
    let from = File::open(template)?;
    let length = from.metadata()?.len();
    if length > MAX_TEMPLATE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the template of writable disks is too long"));
    }
    let to = File::options().write(true).create_new(true).mode(0o600).open(image)?;
    let mut block = [0; BLOCK];
    for offset in (0..length).step_by(BLOCK) {
        let count = BLOCK.min(usize::try_from(length - offset).unwrap_or(BLOCK));
        from.read_exact_at(&mut block[..count], offset)?;
        if block[..count].iter().any(|byte| *byte != 0) {
            to.write_all_at(&block[..count], offset)?;
        }
    }
    // Whole blocks, and never less than the file system has.
    to.set_len(limit.max(length).next_multiple_of(BLOCK as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn places() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let [template, upper] = ["template", "fs"].map(|name| root.path().join(name));
        let mut bytes = vec![0; 64 * BLOCK];
        bytes[1024] = 7;
        bytes[40 * BLOCK] = 9;
        std::fs::write(&template, bytes).unwrap();
        std::fs::create_dir(&upper).unwrap();
        (root, template, upper)
    }

    #[test]
    fn an_image_is_a_sparse_copy_of_the_template() {
        let (_root, template, upper) = places();
        let scratch = open(&template, &upper, 1 << 30).unwrap().unwrap();
        let metadata = scratch.file.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 <= 16 * BLOCK as u64, "{} blocks", metadata.blocks());
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        let mut byte = [0];
        scratch.file.read_exact_at(&mut byte, 40 * BLOCK as u64).unwrap();
        assert_eq!(byte, [9]);
        assert_eq!(scratch.mode, std::fs::metadata(&upper).unwrap().mode());
    }

    #[test]
    fn what_a_container_wrote_is_there_when_it_is_started_again() {
        let (_root, template, upper) = places();
        let first = open(&template, &upper, 1 << 20).unwrap().unwrap();
        first.file.write_all_at(b"kept", 8192).unwrap();
        let busy = open(&template, &upper, 1 << 20).unwrap_err();
        assert_eq!(busy.to_string(), "another microVM writes to it");
        drop(first);
        std::fs::write(upper.join(UNFINISHED), "of a crash").unwrap();
        let again = open(&template, &upper, 1 << 20).unwrap().unwrap();
        let mut bytes = [0; 4];
        again.file.read_exact_at(&mut bytes, 8192).unwrap();
        assert_eq!(&bytes, b"kept");
    }

    #[test]
    fn a_directory_with_content_is_left_to_the_node() {
        let (_root, template, upper) = places();
        std::fs::write(upper.join("etc"), "").unwrap();
        assert!(open(&template, &upper, 1 << 20).unwrap().is_none());
        assert!(!upper.join(NAME).exists());
    }

    #[test]
    fn a_link_is_not_followed() {
        let (root, template, upper) = places();
        let victim = root.path().join("victim");
        std::fs::write(&victim, "x").unwrap();
        std::os::unix::fs::symlink(&victim, upper.join(NAME)).unwrap();
        open(&template, &upper, 1 << 20).unwrap_err();
        assert_eq!(std::fs::read(victim).unwrap(), b"x");
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let (root, _, upper) = places();
        open(&root.path().join("none"), &upper, 1 << 20).unwrap_err();
        assert_eq!(std::fs::read_dir(&upper).unwrap().count(), 0);
        assert!(open(&root.path().join("none"), &root.path().join("gone"), 1).is_err());
    }
}
