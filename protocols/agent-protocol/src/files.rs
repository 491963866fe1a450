//! Limits of `PutFiles`, and the form of its paths: both ends check them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// Longest path of an entry below its volume, and longest target of a link, in bytes.
pub const MAX_PATH: usize = 1024;

/// Most entries of a volume.
pub const MAX_ENTRIES: usize = 4096;

/// Most bytes of content in one call. ttrpc carries 4 MiB.
pub const CHUNK: usize = 1024 * 1024;

/// The link of a volume that leads to its current content; kubelet's name for it.
pub const DATA: &str = "..data";

/// The path that these bytes are, if it names something below a volume and has one spelling.
pub fn entry_path(bytes: &[u8]) -> Option<&Path> {
    let path = Path::new(OsStr::from_bytes(bytes));
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    // Components leave out `.` and repeated slashes: with them, two spellings would name one file.
    let length = path.components().map(|part| part.as_os_str().len() + 1).sum::<usize>();
    (plain && length == bytes.len() + 1 && bytes.len() <= MAX_PATH && !bytes.contains(&0)).then_some(path)
}

/// Where a link leads, which is for the container's programs alone: nobody else follows it.
pub fn link_target(bytes: &[u8]) -> Option<&Path> {
    let legal = !bytes.is_empty() && bytes.len() <= MAX_PATH && !bytes.contains(&0);
    legal.then(|| Path::new(OsStr::from_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_names_are_paths() {
        for path in
            ["greeting", "..data", "..2026_11_22_10_00_00.123/a/b", "...", "a b\n", "x".repeat(MAX_PATH).as_str()]
        {
            assert_eq!(entry_path(path.as_bytes()), Some(Path::new(path)));
        }
        assert!(entry_path(b"\xff\xfe").is_some());
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_path() {
        let long = "x".repeat(MAX_PATH + 1);
        for path in
            ["", "/", "/etc", ".", "..", "a/..", "../a", "a/../b", "./a", "a/.", "a//b", "a/", "a/./b", "a\0b", &long]
        {
            assert_eq!(entry_path(path.as_bytes()), None, "{path:?}");
        }
    }

    #[test]
    fn links_lead_where_they_like() {
        assert_eq!(link_target(b"../../etc"), Some(Path::new("../../etc")));
        for target in ["", "a\0", &"x".repeat(MAX_PATH + 1)] {
            assert_eq!(link_target(target.as_bytes()), None);
        }
    }
}
