//! The kernel's own filesystems, and memory for everything that changes: the root is read-only.

use crate::error::Error;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

/// One mount, as data.
struct Mount {
    filesystem: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
    /// Without an optional one, containers lack a feature; without the others there are no containers.
    optional: bool,
}

const NOTHING_SPECIAL: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// In the order in which they depend on each other.
const PLAN: [Mount; 9] = [
    required("proc", "/proc", NOTHING_SPECIAL, ""),
    required("sysfs", "/sys", NOTHING_SPECIAL, ""),
    required("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
    required("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "gid=5,mode=0620,ptmxmode=0666"),
    // As large as other runtimes make that of a pod, which this is.
    required("tmpfs", "/dev/shm", NOTHING_SPECIAL, "mode=1777,size=64m"),
    Mount { optional: true, ..required("mqueue", "/dev/mqueue", NOTHING_SPECIAL, "") },
    required("tmpfs", "/run", NO_DEVICES, "mode=0755"),
    required("tmpfs", "/tmp", NO_DEVICES, "mode=1777"),
    required("cgroup2", "/sys/fs/cgroup", NOTHING_SPECIAL, "nsdelegate,memory_recursiveprot"),
];

const fn required(filesystem: &'static str, target: &'static str, flags: MsFlags, data: &'static str) -> Mount {
    Mount { filesystem, target, flags, data, optional: false }
}

pub(super) fn mount_all() -> Result<(), Error> {
    for entry in PLAN {
        match entry.mount() {
            Err(error) if entry.optional => tracing::warn!(%error, "optional mount is missing"),
            other => other?,
        }
    }
    Ok(())
}

impl Mount {
    fn mount(&self) -> Result<(), Error> {
        // In a directory that is a mount already; in the read-only root the image has them all.
        std::fs::create_dir_all(self.target).map_err(Error::system("create", self.target))?;
        match mount(Some(self.filesystem), self.target, Some(self.filesystem), self.flags, Some(self.data)) {
            // The kernel mounts devtmpfs itself if it is configured to.
            Ok(()) | Err(Errno::EBUSY) => Ok(()),
            Err(errno) => Err(Error::system("mount", self.target)(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PLAN;

    #[test]
    fn a_mount_point_comes_after_the_filesystem_that_it_is_in() {
        for (index, entry) in PLAN.iter().enumerate() {
            let later = &PLAN[index + 1..];
            assert!(
                !later.iter().any(|other| entry.target.starts_with(&format!("{}/", other.target))),
                "{}",
                entry.target
            );
        }
    }

    #[test]
    fn nothing_is_mounted_twice() {
        let mut targets: Vec<_> = PLAN.iter().map(|entry| entry.target).collect();
        targets.sort_unstable();
        targets.dedup();
        assert_eq!(targets.len(), PLAN.len());
    }
}
