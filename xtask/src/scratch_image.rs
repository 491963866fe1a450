//! The template of writable disks: an empty ext4, copied by the shim and grown by the guest's kernel to the size of its disk.
//!
//! Neither the node nor the guest needs a mkfs, and the node's kernel never reads what a guest wrote.

use crate::cache::{self, Inputs};
use crate::run;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

const LENGTH: u64 = 4 << 20;

/// The same bytes from every version of mke2fs: nothing is left to its defaults.
///
/// No journal: the disk does not outlive its pod. 4096 inodes in each 128 MiB: files of 32 KiB on average. Room for the
/// descriptors of 128 GiB; beyond it the kernel changes the layout by itself.
const MKE2FS: [&str; 19] = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-I",
    "256",
    "-N",
    "4096",
    "-m",
    "0",
    "-e",
    "remount-ro",
    "-O",
    "none,64bit,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,metadata_csum,\
     resize_inode,sparse_super",
    "-E",
    "lazy_itable_init=1,nodiscard,root_owner=0:0,resize=33554432,hash_seed=b01c4ead-0000-4000-8000-000000000001",
    "-Ub01c4ead-0000-4000-8000-000000000002",
];

/// The path of the template, made first if the cache has none.
pub fn build() -> Result<PathBuf> {
    let inputs = Inputs::default().value("mke2fs", MKE2FS.join(" ")).value("length", LENGTH.to_le_bytes());
    let entry = cache::entry("scratch-image", &inputs, |into| {
        let image = into.join("scratch.ext4");
        std::fs::File::create(&image)?.set_len(LENGTH)?;
        // Otherwise it writes down when it was made.
        let mut mke2fs = Command::new("mke2fs");
        run::run(mke2fs.env("E2FSPROGS_FAKE_TIME", "1").env("SOURCE_DATE_EPOCH", "1").args(MKE2FS).arg(&image))
    })?;
    Ok(entry.join("scratch.ext4"))
}
