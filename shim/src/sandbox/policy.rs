//! Which paths of the node a pod may mount: those that the operator names, and what kubelet and containerd keep for
//! this pod.
//!
//! A tenant who may write to a volume can swap a directory in it for a link at any moment. So a source is looked up
//! once, judged by the real name of what was found, and used through the descriptor that was judged.

use super::SandboxError;
use super::guest_spec::HostMount;
use super::spec::{PodUid, SandboxSpec, SpecError, shown};
use crate::identifier::Identifier;
use bulkhead_config::Config;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where the CRI plugin keeps its files, below containerd's directories.
const CRI: &str = "io.containerd.grpc.v1.cri";

/// A file or directory of the node, found.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Its real name, when it was found.
    pub path: PathBuf,
    /// Not open for reading or writing (`O_PATH`).
    pub fd: OwnedFd,
}

impl Resolved {
    /// Looks up a path of the node. Links are followed, except the kernel's own into other processes.
    pub fn open(source: &Path) -> io::Result<Self> {
        let open = |kind| {
            let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC | kind);
            openat2(AT_FDCWD, source, how.resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS))
        };
        // Only a look-up of a directory mounts what is to be mounted on demand there.
        let fd = match open(OFlag::O_DIRECTORY) {
            Err(Errno::ENOTDIR) => open(OFlag::empty())?,
            result => result?,
        };
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        Ok(Self { path, fd })
    }
}

/// What one pod may mount.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// Real names. They are not looked up: a link on the way may be in a tenant's hands.
    host_paths: Vec<PathBuf>,
    kubelet: PathBuf,
    containerd: Vec<PathBuf>,
    pod: Identifier,
    uid: Option<PodUid>,
}

impl Policy {
    pub fn new(config: &Config, spec: &SandboxSpec) -> Self {
        Self {
            host_paths: config.host_paths.clone(),
            kubelet: config.kubelet_directory.clone(),
            containerd: config.containerd_directories.clone(),
            pod: spec.id.id.clone(),
            uid: spec.pod_uid.clone(),
        }
    }

    /// Looks the source of a mount up and allows it, or not. Takes as long as the source's file system does.
    pub fn admit(&self, container: &Identifier, mount: &HostMount) -> Result<Resolved, SandboxError> {
        let source = mount.source.display();
        let found = Resolved::open(&mount.source);
        let found = found.map_err(SandboxError::host("share", &format!("{source} with container {container}")))?;
        if self.allows(container, &found.path) {
            return Ok(found);
        }
        // The tenant is told the name it wrote: where a link leads is the operator's to know.
        tracing::warn!(%container, source = %source, found = %found.path.display(), "a mount is not allowed");
        let source = shown(&source.to_string());
        let reason = format!("{source} of the node is not allowed: see host_paths in config.toml");
        Err(SpecError::Mount { destination: mount.destination.display().to_string(), reason }.into())
    }

    fn allows(&self, container: &Identifier, path: &Path) -> bool {
        // The kernel's mark of a file that was removed; its name may be someone else's by now.
        let removed = path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)");
        !removed && self.places(container).iter().any(|place| path.starts_with(place))
    }

    fn places(&self, container: &Identifier) -> Vec<PathBuf> {
        let mut places = self.host_paths.clone();
        places.extend(self.pod_directory());
        for directory in &self.containerd {
            // Their owners may have put these directories elsewhere; no tenant can.
            let Ok(cri) = Resolved::open(&directory.join(CRI)) else { continue };
            for (kind, id) in [("sandboxes", &self.pod), ("containers", container), ("image-volumes", &self.pod)] {
                places.push(cri.path.join(kind).join(id.as_str()));
            }
        }
        places
    }

    /// kubelet's directory for this pod.
    fn pod_directory(&self) -> Option<PathBuf> {
        let pods = Resolved::open(&self.kubelet.join("pods")).ok()?;
        Some(pods.path.join(self.uid.as_ref()?.as_str()))
    }
}

#[cfg(test)]
mod tests;
