//! Loop devices: which file is behind one.
#![expect(unsafe_code, reason = "the call that asks a loop device has no safe wrapper")]

use super::FileId;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const GET_STATUS: libc::c_ulong = 0x4c05;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct Status {
    device: u64,
    inode: u64,
    rdev: u64,
    offset: u64,
    size_limit: u64,
    rest: [u8; 192],
}

pub(super) fn is_loop(name: &str) -> bool {
    let number = name.strip_prefix("loop").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// The name that the file had when the device was set up, or has now.
pub(super) fn backing_file(name: &str) -> Option<PathBuf> {
    let file = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(PathBuf::from(file.strip_suffix('\n').unwrap_or(&file)))
}

/// The file itself, when the device shows all of it.
pub(super) fn file_of(name: &str) -> io::Result<FileId> {
    let device = File::open(Path::new("/dev").join(name))?;
    let mut status = MaybeUninit::<Status>::zeroed();
    nix::ioctl_read_bad!(get_status, GET_STATUS, Status);
    // SAFETY: the kernel writes a structure of this size, which outlives the call; zeroes are one as well.
    let status = unsafe {
        get_status(device.as_raw_fd(), status.as_mut_ptr())?;
        status.assume_init()
    };
    if status.offset != 0 || status.size_limit != 0 {
        return Err(io::Error::other("its loop device shows only a part of it"));
    }
    Ok(FileId { device: status.device, inode: status.inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_devices_are_known_by_their_names() {
        assert!(is_loop("loop0") && is_loop("loop128"));
        assert!(!is_loop("loop") && !is_loop("loop-control") && !is_loop("sda1") && !is_loop("loop1/x"));
    }

    #[test]
    fn the_kernels_structure_has_its_size() {
        assert_eq!(size_of::<Status>(), 232);
    }
}
