//! Where things are on the node.

use super::SandboxError;
use super::id::SandboxId;
use crate::identifier::Identifier;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The node, as one installation of Bulkhead sees it.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// Holds `bin` and `share`.
    prefix: PathBuf,
    /// Runtime state; gone after a reboot.
    run: PathBuf,
    /// State that survives a reboot.
    state: PathBuf,
    /// The cgroup v2 hierarchy.
    pub cgroups: PathBuf,
}

impl Host {
    /// The siblings of the running program belong to it, wherever it was started from.
    pub fn of_this_program() -> Result<Self, SandboxError> {
        let program = std::fs::read_link("/proc/self/exe").map_err(SandboxError::host("read", "/proc/self/exe"))?;
        let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/")).to_owned();
        Ok(Self {
            prefix,
            run: bulkhead_config::RUN_DIRECTORY.into(),
            state: bulkhead_config::STATE_DIRECTORY.into(),
            cgroups: "/sys/fs/cgroup".into(),
        })
    }

    #[cfg(test)]
    pub fn below(root: &Path) -> Self {
        Self { prefix: root.join("opt"), run: root.join("run"), state: root.join("var"), cgroups: root.join("cgroup") }
    }

    pub fn vmm(&self) -> PathBuf {
        self.prefix.join("bin/bulkhead-vmm")
    }

    pub fn file_server(&self) -> PathBuf {
        self.prefix.join("bin/bulkhead-fsd")
    }

    pub fn kernel(&self) -> PathBuf {
        self.prefix.join("share/vmlinux")
    }

    pub fn root_image(&self) -> PathBuf {
        self.prefix.join("share/guest.erofs")
    }

    /// An empty file system, to be copied for each writable disk.
    pub fn scratch_template(&self) -> PathBuf {
        self.prefix.join("share/scratch.ext4")
    }

    /// Machines that pods are made from.
    pub fn templates(&self) -> PathBuf {
        self.state.join("templates")
    }

    /// One file for each user id in use, with the owner's name in it.
    pub fn uids(&self) -> PathBuf {
        self.run.join("uids")
    }

    /// Records of volumes that pods mount in the guest (docs/direct-volumes.md).
    pub fn direct_volumes(&self) -> PathBuf {
        self.run.join(bulkhead_config::direct_volumes::DIRECTORY)
    }

    /// All that have a directory.
    pub fn sandboxes(&self) -> Vec<SandboxId> {
        let names = |path: &Path| -> Vec<Identifier> {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        };
        let pods = self.run.join("pods");
        let of = |namespace: Identifier| {
            let ids = names(&pods.join(namespace.as_str()));
            ids.into_iter().map(move |id| SandboxId { namespace: namespace.clone(), id })
        };
        names(&pods).into_iter().flat_map(of).collect()
    }

    pub fn directory(&self, id: &SandboxId) -> SandboxDirectory {
        let namespace = self.run.join("pods").join(id.namespace.as_str());
        SandboxDirectory { path: namespace.join(id.id.as_str()), namespace }
    }
}

/// What one sandbox has below the run directory.
#[derive(Clone, Debug)]
pub(super) struct SandboxDirectory {
    pub path: PathBuf,
    /// Shared by the sandboxes of one containerd namespace; goes with the last one.
    pub namespace: PathBuf,
}

impl SandboxDirectory {
    pub fn record(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// The owner's name, ready to be linked to a user id.
    pub fn owner(&self) -> PathBuf {
        self.path.join("owner")
    }

    /// What the guest may reach through the file server: a read-only view of [`Self::tree`], with the containers' files
    /// mounted into it.
    pub fn share(&self) -> PathBuf {
        self.path.join("share")
    }

    /// The directories of the share, made here, so that the guest can add nothing between the mounts.
    pub fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }
}

/// Makes a directory and its missing parents, in a place where others remove parents that are empty.
pub(super) fn create_directories(path: &Path, mode: u32) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(mode);
    // A sandbox that ends may remove the parent just before its child is made here.
    let vanished =
        |result: &io::Result<()>| result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let mut attempts = (0..8).map(|_| builder.create(path));
    attempts.find(|result| !vanished(result)).unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_appear_while_others_remove_the_parent() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().join("namespace");
        std::thread::scope(|scope| {
            for name in ["a", "b"] {
                let parent = &parent;
                scope.spawn(move || {
                    for _ in 0..200 {
                        create_directories(&parent.join(name), 0o700).unwrap();
                        std::fs::remove_dir(parent.join(name)).unwrap();
                        let _ = std::fs::remove_dir(parent);
                    }
                });
            }
        });
    }
}
