//! The pod's file share: directories of the node that the guest reaches through the file server.
//!
//! ```text
//! <sandbox>/tree/<container>/rootfs, .volumes/<n>    empty places, made by the shim
//! <sandbox>/share                                    read-only view of tree, the files mounted over the places
//! ```
//! A pod that shares nothing has none of this and no server.

mod places;

pub(super) use places::Places;

use super::SandboxError;
use super::cgroup::Cgroup;
use super::host::{Host, SandboxDirectory};
use super::mount::{DetachedTree, Overlay, TreeOptions, make_share, remove_skeleton, unmount_all};
use super::policy::Resolved;
use super::process::{Process, Program, packet_pair};
use crate::identifier::Identifier;
use nix::sys::socket::{setsockopt, sockopt};
use places::{Key, VOLUMES, make_place};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Makes the empty share of a sandbox. What a failed attempt left is no hindrance.
pub(super) fn make(directory: &SandboxDirectory) -> Result<(), SandboxError> {
    let (tree, share) = (directory.tree(), directory.share());
    if tree.exists() || share.exists() {
        remove(directory)?;
    }
    for path in [&tree, &share] {
        std::fs::create_dir(path).map_err(SandboxError::host("create", &path.display()))?;
    }
    make_share(&tree, &share).map_err(SandboxError::host("mount", &share.display()))
}

/// Unmounts and removes the share with all that is in it. Nothing there is fine.
pub(super) fn remove(directory: &SandboxDirectory) -> Result<(), SandboxError> {
    unmount_all(&directory.share()).map_err(SandboxError::host("unmount", &directory.share().display()))?;
    for part in [directory.share(), directory.tree()] {
        remove_skeleton(&part, &[]).map_err(SandboxError::host("remove", &part.display()))?;
    }
    Ok(())
}

/// Twice the largest request, a write of 128 KiB: the kernel takes its own headers from it. Nodes may have less for sockets that say nothing
/// (`net.core.wmem_default`), and every such write would fail.
const SEND_ROOM: usize = 264 << 10;

/// Starts the file server of a share. Returns it with the VMM's end of its socket.
pub(super) fn serve(
    host: &Host,
    directory: &SandboxDirectory,
    cgroup: &Cgroup,
    oom_score: u16,
) -> Result<(Process, OwnedFd), SandboxError> {
    let share = directory.share();
    let (ours, theirs) = packet_pair().map_err(SandboxError::host("create", "the file server's socket"))?;
    let sized = setsockopt(&theirs, sockopt::SndBufForce, &SEND_ROOM).map_err(io::Error::from);
    sized.map_err(SandboxError::host("size", "the file server's socket"))?;
    let path = host.file_server();
    let arguments = [OsStr::new("--root"), share.as_os_str()];
    let program = Program { name: "file server", path: &path, arguments: &arguments, oom_score };
    Ok((Process::spawn(&program, ours, cgroup)?, theirs))
}

/// One container's part of the share.
#[derive(Clone, Debug)]
pub(super) struct ContainerShare {
    tree: PathBuf,
    share: PathBuf,
    name: Identifier,
    volumes: Places,
    /// Held while something is added. A source is looked up without it, since that may hang.
    closed: Arc<Mutex<bool>>,
}

impl ContainerShare {
    pub fn new(directory: &SandboxDirectory, container: &Identifier, volumes: &Places) -> Self {
        let of = |path: PathBuf| path.join(container.as_str());
        Self {
            tree: of(directory.tree()),
            share: of(directory.share()),
            name: container.clone(),
            volumes: volumes.clone(),
            closed: Arc::default(),
        }
    }

    pub fn container(&self) -> &Identifier {
        &self.name
    }

    /// From here on nothing is added through this handle and its clones.
    pub fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn add<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed { Err(io::Error::new(io::ErrorKind::TimedOut, "it came too late")) } else { change() }
    }

    /// The root filesystem's path below the share.
    pub fn rootfs(&self) -> String {
        format!("{}/rootfs", self.name)
    }

    pub fn mount_overlay(&self, overlay: &Overlay) -> Result<(), SandboxError> {
        self.add(|| std::fs::create_dir_all(self.tree.join("rootfs")))
            .map_err(SandboxError::host("create", &self.tree.display()))?;
        // The layers are looked up in this call, so that it may hang. When it returns, its place may have been removed,
        // and it fails.
        let place = self.share.join("rootfs");
        let what = format!("the overlay root filesystem of container {} at {}", self.name, place.display());
        overlay.mount(&place).map_err(SandboxError::host("mount", &what))
    }

    pub fn mount_root_directory(&self, source: &Path, options: TreeOptions) -> Result<(), SandboxError> {
        let mount = || -> io::Result<()> {
            let tree = copy(&Resolved::open(source)?, options)?;
            let directory = tree.metadata()?.is_dir();
            self.add(|| {
                std::fs::create_dir_all(&self.tree)?;
                make_place(&self.tree.join("rootfs"), directory)?;
                tree.attach(&self.share.join("rootfs"))
            })
        };
        mount().map_err(SandboxError::host("share", &self.sharing(source)))
    }

    /// Returns where the guest sees it: where it sees it for the pod's other containers.
    pub fn mount_volume(&self, source: &Resolved, options: TreeOptions) -> Result<String, SandboxError> {
        let mount = || -> io::Result<u64> {
            let tree = copy(source, options)?;
            let key = Key::of(source, &tree, options)?;
            self.add(|| self.volumes.take(&self.name, key, tree))
        };
        let number = mount().map_err(SandboxError::host("share", &self.sharing(&source.path)))?;
        Ok(format!("{}/{VOLUMES}/{number}", agent_protocol::SHARE_MOUNT))
    }

    fn sharing(&self, source: &Path) -> String {
        format!("{} with container {}", source.display(), self.name)
    }

    /// Unmounts and removes all of it. Nothing there is fine.
    pub fn remove(&self) -> Result<(), SandboxError> {
        let volumes = self.volumes.release(&self.name);
        let root = unmount_all(&self.share.join("rootfs")).and_then(|()| remove_skeleton(&self.tree, &[]));
        root.and(volumes).map_err(SandboxError::host("remove", &self.share.display()))
    }
}

/// Copies what can be shared.
fn copy(source: &Resolved, options: TreeOptions) -> io::Result<DetachedTree> {
    let tree = DetachedTree::copy(source, options)?;
    let kind = tree.metadata()?.file_type();
    if kind.is_dir() || kind.is_file() {
        return Ok(tree);
    }
    // A socket, FIFO or device works only with a peer in the same kernel.
    let reason = "it is neither a directory nor a regular file, which is all that a microVM can share";
    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
}

#[cfg(test)]
mod tests {
    use super::super::id::SandboxId;
    use super::*;

    fn container(root: &Path) -> ContainerShare {
        let directory = Host::below(root).directory(&SandboxId::test("ns", "pod"));
        ContainerShare::new(&directory, &"web".parse().unwrap(), &Places::new(&directory))
    }

    #[test]
    fn what_cannot_be_mounted_is_named() {
        let root = tempfile::tempdir().unwrap();
        let files = container(root.path());
        let overlay = Overlay { read_only: false, options: vec!["lowerdir=/nonexistent".to_owned()] };
        let error = files.mount_overlay(&overlay).unwrap_err().to_string();
        let place = root.path().join("run/pods/ns/pod/share/web/rootfs");
        let start = format!("cannot mount the overlay root filesystem of container web at {}: ", place.display());
        assert!(error.starts_with(&start), "{error}");

        let options = TreeOptions { recursive: true, read_only: true, follows_source: false };
        let error = files.mount_root_directory(Path::new("/nonexistent"), options).unwrap_err().to_string();
        assert!(error.starts_with("cannot share /nonexistent with container web: "), "{error}");
    }

    #[test]
    fn a_share_can_be_made_again_after_a_failure() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: mounting needs root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let directory = Host::below(root.path()).directory(&SandboxId::test("ns", "pod"));
        std::fs::create_dir_all(directory.tree()).unwrap();
        make(&directory).unwrap();
        let again = make(&directory);
        remove(&directory).unwrap();
        again.unwrap();
        assert!(!directory.tree().exists() && !directory.share().exists());
    }

    #[test]
    fn a_source_that_answers_late_is_not_mounted() {
        let root = tempfile::tempdir().unwrap();
        let files = container(root.path());
        files.clone().close();
        let options = TreeOptions { recursive: false, read_only: true, follows_source: false };
        files.mount_volume(&Resolved::open(root.path()).unwrap(), options).unwrap_err();
        files.mount_overlay(&Overlay { read_only: false, options: Vec::new() }).unwrap_err();
        assert!(!files.tree.exists());
    }
}
