//! The file of one layer.
//!
//! Its superblock is read to see that the file is what its mount says, and whole. The guest reads the rest.

use super::FileId;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Of EROFS, in the file and in `statfs`.
pub(super) const MAGIC: u32 = 0xe0f5_e1e2;

const SUPERBLOCK: u64 = 1024;

/// Bytes of the superblock that are looked at.
const LENGTH: usize = 128;

/// File systems of more than 2^32 blocks.
const INCOMPAT_48BIT: u32 = 0x80;

/// Features that only compressed file systems have: padding, algorithms, tails, fragments.
const INCOMPAT_COMPRESSED: u32 = 0x01 | 0x02 | 0x10 | 0x20;

/// The guest's kernel maps blocks that are pages.
const PAGE_BITS: u32 = 12;

/// A layer's file, open for reading.
#[derive(Debug)]
pub(in super::super) struct Blob {
    pub file: File,
    pub id: FileId,
    pub length: u64,
    /// Of the file system.
    pub blocks: u64,
    /// How many more files have content of it.
    pub devices: u16,
    /// It has more blocks than the guest's kernel can count.
    pub too_large: bool,
    /// Its files' pages are the files of the image: a guest can have them as its memory.
    pub can_be_mapped: bool,
}

impl Blob {
    /// `path` is looked up once; a name that is swapped for a link meanwhile is not followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = std::fs::canonicalize(path)?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = File::options().read(true).custom_flags(flags).open(&path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(refused("it is not a regular file".to_owned()));
        }
        let length = metadata.len();
        let mut bytes = [0; LENGTH];
        if length < SUPERBLOCK + LENGTH as u64 {
            return Err(refused(format!("it is cut: {length} bytes are no file system")));
        }
        file.read_exact_at(&mut bytes, SUPERBLOCK)?;
        let superblock = Superblock::parse(&bytes).ok_or_else(|| refused("it is not EROFS".to_owned()))?;
        if superblock.bytes > length {
            return Err(refused(format!("it is cut: {length} of {} bytes are there", superblock.bytes)));
        }
        Ok(Self {
            file,
            id: FileId::of(&metadata),
            length,
            blocks: superblock.blocks,
            devices: superblock.devices,
            too_large: superblock.too_large,
            can_be_mapped: superblock.can_be_mapped,
        })
    }
}

pub(super) fn refused(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    blocks: u64,
    bytes: u64,
    devices: u16,
    too_large: bool,
    can_be_mapped: bool,
}

impl Superblock {
    fn parse(bytes: &[u8; LENGTH]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let block_bits = u32::from(bytes[12]);
        let blocks = u64::from(number(36));
        let devices = u16::from_le_bytes([bytes[86], bytes[87]]);
        if number(0) != MAGIC || !(9..=16).contains(&block_bits) {
            return None;
        }
        let features = number(80);
        Some(Self {
            blocks,
            bytes: blocks << block_bits,
            devices,
            too_large: features & INCOMPAT_48BIT != 0,
            can_be_mapped: block_bits == PAGE_BITS && features & INCOMPAT_COMPRESSED == 0,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// A file that says it is EROFS of so many blocks of 4096 bytes, and has `length` bytes.
    pub fn image(path: &Path, blocks: u32, length: u64) {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[12] = 12;
        bytes[36..40].copy_from_slice(&blocks.to_le_bytes());
        let file = File::create(path).unwrap();
        file.write_all_at(&bytes, SUPERBLOCK).unwrap();
        file.set_len(length).unwrap();
    }

    #[test]
    fn a_whole_layer_is_opened() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("layer.erofs");
        image(&path, 3, 3 * 4096);
        let blob = Blob::open(&path).unwrap();
        assert_eq!((blob.length, blob.blocks, blob.devices), (3 * 4096, 3, 0));
        assert_eq!(blob.id.inode, std::fs::metadata(&path).unwrap().ino());
    }

    #[test]
    fn a_cut_layer_is_refused_with_its_lengths() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("layer.erofs");
        let refusal = |length| {
            image(&path, 3, length);
            Blob::open(&path).unwrap_err().to_string()
        };
        assert_eq!(refusal(8192), "it is cut: 8192 of 12288 bytes are there");
        assert_eq!(refusal(1024), "it is cut: 1024 bytes are no file system");
        assert_eq!(refusal(0), "it is cut: 0 bytes are no file system");
    }

    #[test]
    fn what_is_no_layer_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("layer.erofs");
        std::fs::write(&path, [0; 8192]).unwrap();
        assert_eq!(Blob::open(&path).unwrap_err().to_string(), "it is not EROFS");
        assert_eq!(Blob::open(root.path()).unwrap_err().to_string(), "it is not a regular file");
        assert_eq!(Blob::open(&root.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn any_superblock_is_survived() {
        let mut state = 0x5eed_u64;
        for _ in 0..10_000 {
            let mut bytes = [0; LENGTH];
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = u8::try_from(state >> 56).unwrap();
            }
            bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            let _ = Superblock::parse(&bytes);
        }
    }

    #[test]
    fn blocks_that_are_no_pages_cannot_be_mapped() {
        let superblock = |block_bits, features: u8| {
            let mut bytes = [0; LENGTH];
            bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            (bytes[12], bytes[80]) = (block_bits, features);
            Superblock::parse(&bytes).unwrap().can_be_mapped
        };
        assert!(superblock(12, 0));
        // Chunks and a table of devices.
        assert!(superblock(12, 0x04 | 0x08));
        assert!(!superblock(9, 0) && !superblock(14, 0));
        for compressed in [0x01, 0x02, 0x10, 0x20, 0xff] {
            assert!(!superblock(12, compressed), "{compressed:#x}");
        }
    }

    #[test]
    fn a_file_system_of_several_devices_is_told() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("layer.erofs");
        image(&path, 3, 3 * 4096);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&1_u16.to_le_bytes(), SUPERBLOCK + 86).unwrap();
        assert_eq!(Blob::open(&path).unwrap().devices, 1);
    }
}
