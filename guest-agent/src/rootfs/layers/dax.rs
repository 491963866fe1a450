//! Whether a layer that is memory is read as such, without copies in the guest's cache.
//!
//! EROFS turns it off by itself where a device cannot do it, and tells the kernel's log alone. The shim counts on it.

use std::io;
use std::path::Path;

/// The option to mount with. While it is on, the table of mounts has it.
pub const ALWAYS: &str = "dax=always";

/// Refuses what is mounted on `target` when it is not read as memory.
pub fn check(target: &Path) -> io::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    if is_on(&table, target) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel would copy it, although it is mapped"))
}

/// The last mount on a directory is the one that is seen.
fn is_on(table: &str, target: &Path) -> bool {
    let mount = table.lines().rev().filter_map(|line| line.split_once(" - "));
    let options = mount.filter(|(place, _)| place.split(' ').nth(4).map(Path::new) == Some(target));
    let options = options.filter_map(|(_, filesystem)| filesystem.split(' ').nth(2)).next();
    options.is_some_and(|options| options.split(',').any(|option| option == ALWAYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
36 35 259:1 / /run/l/1 ro,relatime - erofs /dev/pmem1p1 ro,user_xattr,acl,cache_strategy=readaround,dax=always
37 35 259:2 / /run/l/2 ro,relatime master:1 - erofs /dev/pmem1p2 ro,user_xattr,acl,cache_strategy=readaround
38 35 259:3 / /run/l/3 ro - erofs /dev/pmem1p3 ro,dax=always
39 35 254:0 / /run/l/3 ro - erofs /dev/vda1 ro,xdax=always
";

    #[test]
    fn memory_is_seen_in_the_table_of_mounts() {
        let on = |place: &str| is_on(TABLE, Path::new(place));
        assert!(on("/run/l/1"));
        assert!(!on("/run/l/2"), "turned off");
        assert!(!on("/run/l/3"), "hidden by another mount");
        assert!(!on("/run/l/4"), "not mounted");
    }

    #[test]
    fn what_is_not_memory_is_refused() {
        let error = check(Path::new("/proc")).unwrap_err().to_string();
        assert_eq!(error, "the kernel would copy it, although it is mapped");
    }
}
