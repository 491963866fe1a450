//! Partitions of a disk that has no table: the shim says where they are.
//!
//! The kernel has no parser for partition tables, so that nothing on a disk can make one.
#![expect(unsafe_code, reason = "the calls that add partitions and grow a filesystem have no safe wrapper")]

use std::ffi::{c_int, c_longlong};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const ADD: c_int = 1;
const DELETE: c_int = 2;

/// `struct blkpg_partition` of `linux/blkpg.h`.
#[repr(C)]
struct Partition {
    start: c_longlong,
    length: c_longlong,
    number: c_int,
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Request {
    operation: c_int,
    flags: c_int,
    length: c_int,
    data: *const Partition,
}

nix::ioctl_write_ptr_bad!(blkpg, nix::request_code_none!(0x12, 105), Request);
nix::ioctl_write_ptr!(resize_ext4, b'f', 16, u64);

/// Adds bytes of `disk` as its partition `number`, whose device is there when this returns.
pub fn add(disk: &Path, number: u32, start: u64, length: u64) -> io::Result<PathBuf> {
    change(disk, ADD, number, start, length)?;
    Ok(name(disk, number))
}

pub fn delete(disk: &Path, number: u32) -> io::Result<()> {
    change(disk, DELETE, number, 0, 0)
}

fn change(disk: &Path, operation: c_int, number: u32, start: u64, length: u64) -> io::Result<()> {
    let signed = |bytes: u64| c_longlong::try_from(bytes).map_err(io::Error::other);
    let number = c_int::try_from(number).map_err(io::Error::other)?;
    let partition = Partition { start: signed(start)?, length: signed(length)?, number, names: [0; 128] };
    let size = c_int::try_from(size_of::<Partition>()).map_err(io::Error::other)?;
    let request = Request { operation, flags: 0, length: size, data: &raw const partition };
    let disk = File::open(disk)?;
    // SAFETY: the request and the partition that it points to outlive the call, which only reads them.
    unsafe { blkpg(disk.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// As the kernel spells it: `vdb1`, and `loop0p1` after a digit.
fn name(disk: &Path, number: u32) -> PathBuf {
    let disk = disk.as_os_str().to_string_lossy();
    let separator = if disk.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
    PathBuf::from(format!("{disk}{separator}{number}"))
}

/// Grows the ext4 of `disk`, mounted at `place`, to the size of its disk.
pub fn grow(disk: &Path, place: &Path) -> io::Result<()> {
    let length = File::open(disk)?.seek(SeekFrom::End(0))?;
    let blocks = length / nix::sys::statvfs::statvfs(place)?.block_size();
    let place = File::open(place)?;
    // SAFETY: the kernel reads the number, which outlives the call.
    unsafe { resize_ext4(place.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_as_the_kernel_does() {
        assert_eq!(name(Path::new("/dev/vdb"), 12), Path::new("/dev/vdb12"));
        assert_eq!(name(Path::new("/dev/pmem1"), 1), Path::new("/dev/pmem1p1"));
    }

    #[test]
    fn the_kernels_structures_have_their_sizes() {
        assert_eq!(size_of::<Partition>(), 152);
        assert_eq!(size_of::<Request>(), 24);
    }

    #[test]
    fn what_is_no_disk_has_no_partitions() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(add(file.path(), 1, 0, 4096).is_err());
        assert!(add(file.path(), u32::MAX, 0, 4096).is_err());
        assert!(add(file.path(), 1, u64::MAX, 4096).is_err());
    }
}
