//! How long the guest may take for true what it was told of a file.
//!
//! The share has two kinds of content, told apart by where the host mounts it:
//!
//! ```text
//!  <container>/rootfs  changed by the guest alone: what it knows stays true
//!  .volumes/<n>        volumes, which the host changes as well: true for a second
//! ```
//!
//! A root file system is known by its device number. Only numbers that no disk has count (those of overlays): a root
//! that is a directory of the host's disk may share its device with a volume.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// For what the host may change.
pub const SHORT: Duration = Duration::from_secs(1);

/// For what it does not.
pub const LONG: Duration = Duration::from_secs(3600);

/// The share's own inode.
const ROOT: u64 = 1;

/// Most that is remembered of each kind. Beyond it, everything is asked for again.
const MOST: usize = 4096;

#[derive(Debug, Default)]
pub struct Freshness {
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Inodes of the containers' directories.
    containers: HashSet<u64>,
    /// Inode of the directory that volumes are mounted in.
    volumes: HashSet<u64>,
    /// Devices of root file systems.
    private: HashSet<u64>,
}

/// An entry of a directory, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    pub parent: u64,
    pub name: &'a [u8],
    pub inode: u64,
    pub device: u64,
}

impl Freshness {
    /// How long attributes and names on this device stay true.
    pub fn of(&self, device: u64) -> Duration {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if known.private.contains(&device) { LONG } else { SHORT }
    }

    /// Takes note of an entry that the guest is told of, and says how long its name stays true: where the host mounts
    /// something, never for long. `parent_device` is asked for where it matters.
    pub fn learn(&self, found: Found<'_>, parent_device: impl FnOnce() -> Option<u64>) -> Duration {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let in_container = known.containers.contains(&found.parent);
        let in_volumes = known.volumes.contains(&found.parent);
        drop(known);
        if found.parent != ROOT && !in_container && !in_volumes {
            return self.of(found.device);
        }
        if found.parent == ROOT && found.name == b".volumes" {
            self.note(|known| insert(&mut known.volumes, found.inode));
        } else if found.parent == ROOT {
            self.note(|known| insert(&mut known.containers, found.inode));
        } else if in_volumes {
            // Its number may have been that of a root file system that is gone.
            self.note(|known| {
                known.private.remove(&found.device);
            });
        } else if in_container && found.name == b"rootfs" {
            let mounted = parent_device().is_some_and(|parent| parent != found.device);
            if mounted && libc::major(found.device) == 0 {
                self.note(|known| insert(&mut known.private, found.device));
            }
        }
        SHORT
    }

    fn note(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.write().unwrap_or_else(PoisonError::into_inner));
    }
}

fn insert(set: &mut HashSet<u64>, value: u64) {
    if set.len() >= MOST {
        set.clear();
    }
    set.insert(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: u64 = 20;
    const OVERLAY: u64 = 30;
    const CONTAINER: u64 = 2;
    const VOLUMES: u64 = 4;

    fn learn(freshness: &Freshness, parent: u64, name: &[u8], inode: u64, device: u64) {
        freshness.learn(Found { parent, name, inode, device }, || Some(SHARE));
    }

    fn with_container() -> Freshness {
        let freshness = Freshness::default();
        learn(&freshness, ROOT, b"container", CONTAINER, SHARE);
        learn(&freshness, ROOT, b".volumes", VOLUMES, SHARE);
        freshness
    }

    #[test]
    fn a_mounted_overlay_stays_true() {
        let freshness = with_container();
        learn(&freshness, CONTAINER, b"rootfs", 3, OVERLAY);
        assert_eq!(freshness.of(OVERLAY), LONG);
        assert_eq!(freshness.of(SHARE), SHORT);
    }

    #[test]
    fn a_root_on_a_disk_or_not_mounted_does_not() {
        let freshness = with_container();
        let disk = libc::makedev(8, 1);
        learn(&freshness, CONTAINER, b"rootfs", 3, disk);
        learn(&freshness, CONTAINER, b"rootfs", 3, SHARE);
        assert_eq!(freshness.of(disk), SHORT);
        assert_eq!(freshness.of(SHARE), SHORT);
    }

    #[test]
    fn a_name_counts_only_at_its_place() {
        let freshness = with_container();
        learn(&freshness, 99, b"rootfs", 3, OVERLAY);
        learn(&freshness, VOLUMES, b"rootfs", 3, OVERLAY);
        learn(&freshness, CONTAINER, b".volumes", 6, SHARE);
        learn(&freshness, 6, b"rootfs", 3, OVERLAY);
        assert_eq!(freshness.of(OVERLAY), SHORT);
    }

    #[test]
    fn a_volume_takes_the_number_of_a_root_that_is_gone() {
        let freshness = with_container();
        learn(&freshness, CONTAINER, b"rootfs", 3, OVERLAY);
        learn(&freshness, VOLUMES, b"0", 5, OVERLAY);
        assert_eq!(freshness.of(OVERLAY), SHORT);
    }

    #[test]
    fn memory_is_bounded() {
        let freshness = Freshness::default();
        for inode in 0..3 * MOST as u64 {
            learn(&freshness, ROOT, b"x", inode + 2, SHARE);
        }
        assert!(freshness.known.read().unwrap().containers.len() <= MOST);
    }
}
