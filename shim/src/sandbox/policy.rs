//! Which paths of the node a pod may mount: those that the operator names, and what kubelet and containerd keep for
//! this pod.
//!
//! A tenant who may write to a volume can swap a directory in it for a link at any moment. So a source is looked up
//! once, judged by the real name of what was found, and used through the descriptor that was judged.

mod origin;
mod sockets;

pub(super) use sockets::ListedSocket;

use super::SandboxError;
use super::guest_spec::HostMount;
use super::spec::{PodUid, SandboxSpec, SpecError};
use crate::identifier::Identifier;
use bulkhead_config::Config;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Where the CRI plugin keeps its files, below containerd's directories.
const CRI: &str = "io.containerd.grpc.v1.cri";

/// What kubelet mounts of a pod's directory. The whole of it would bring the mounts below it along.
const OF_POD: [&str; 3] = ["containers", "etc-hosts", "volumes"];

/// There, kubelet binds what `subPath` names of a volume.
const SUBPATHS: &str = "volume-subpaths";

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

    /// The kernel's number for the mount that it was found on.
    pub fn mount_id(&self) -> io::Result<String> {
        let descriptor = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        let id = descriptor.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        Ok(id.ok_or(io::ErrorKind::InvalidData)?.trim().to_owned())
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        File::from(self.fd.try_clone()?).metadata()
    }

    fn is_socket(&self) -> io::Result<bool> {
        Ok(self.metadata()?.file_type().is_socket())
    }

    /// The same once more, if it is a socket.
    pub fn socket(&self) -> io::Result<Option<Self>> {
        let again = || Ok(Self { path: self.path.clone(), fd: self.fd.try_clone()? });
        if self.is_socket()? { again().map(Some) } else { Ok(None) }
    }

    /// By the kernel's mark: its name may be someone else's by now.
    fn is_removed(&self) -> bool {
        self.path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)")
    }

    /// The names that a bind mount's content has elsewhere on the node.
    pub fn other_names(&self) -> io::Result<Vec<PathBuf>> {
        let table = std::fs::read("/proc/self/mountinfo")?;
        Ok(origin::other_names(&table, &self.mount_id()?, &self.path))
    }
}

/// What one pod may mount.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// Real names. They are not looked up: a link on the way may be in a tenant's hands.
    host_paths: Vec<PathBuf>,
    /// Sockets, and directories of such. Real names.
    host_sockets: Vec<PathBuf>,
    kubelet: PathBuf,
    containerd: Vec<PathBuf>,
    pod: Identifier,
    uid: Option<PodUid>,
}

impl Policy {
    pub fn new(config: &Config, spec: &SandboxSpec) -> Self {
        Self {
            host_paths: config.host_paths.clone(),
            host_sockets: config.host_sockets.clone(),
            kubelet: config.kubelet_directory.clone(),
            containerd: config.containerd_directories.clone(),
            pod: spec.id.id.clone(),
            uid: spec.pod_uid.clone(),
        }
    }

    /// Looks up where kubelet and containerd keep their files, once for all mounts of a container.
    pub fn of_container(&self, container: &Identifier) -> ContainerPolicy {
        let cri: Vec<_> = self.cri_directories().collect();
        let pod = self.pod_directory();
        let mut places = self.host_paths.clone();
        places.extend(pod.iter().flat_map(|pod| OF_POD.map(|name| pod.join(name))));
        for cri in &cri {
            for (kind, id) in [("sandboxes", &self.pod), ("containers", container), ("image-volumes", &self.pod)] {
                places.push(cri.join(kind).join(id.as_str()));
            }
        }
        let sandboxes = cri.iter().map(|cri| cri.join("sandboxes").join(self.pod.as_str())).collect();
        let sockets = self.host_sockets.clone();
        ContainerPolicy { container: container.clone(), places, sockets, pod, sandboxes }
    }

    /// Their owners may have put these directories elsewhere; no tenant can.
    fn cri_directories(&self) -> impl Iterator<Item = PathBuf> {
        self.containerd.iter().filter_map(|directory| Some(Resolved::open(&directory.join(CRI)).ok()?.path))
    }

    /// kubelet's directory for this pod.
    fn pod_directory(&self) -> Option<PathBuf> {
        let pods = Resolved::open(&self.kubelet.join("pods")).ok()?;
        Some(pods.path.join(self.uid.as_ref()?.as_str()))
    }
}

/// What one container may mount. All paths are real names.
#[derive(Debug)]
pub(super) struct ContainerPolicy {
    container: Identifier,
    /// With what is below them.
    places: Vec<PathBuf>,
    sockets: Vec<PathBuf>,
    /// kubelet's directory for the pod.
    pub pod: Option<PathBuf>,
    /// containerd's, for its sandbox.
    pub sandboxes: Vec<PathBuf>,
}

/// A source that may be mounted.
#[derive(Debug)]
pub(super) struct Admitted {
    pub source: Resolved,
    /// By which of its names. None of a socket.
    pub names: Vec<PathBuf>,
}

impl ContainerPolicy {
    /// Looks the source of a mount up and allows it, or not. Takes as long as the source's file system does.
    pub fn admit(&self, mount: &HostMount) -> Result<Admitted, SandboxError> {
        let source = mount.source.display();
        let found = Resolved::open(&mount.source);
        let what = format!("{source} with container {}", self.container);
        let found = found.map_err(SandboxError::host("share", &what))?;
        let socket = found.is_socket().map_err(SandboxError::host("share", &what))?;
        let names = if socket { Vec::new() } else { self.names(&found).map_err(SandboxError::host("share", &what))? };
        if !names.is_empty() || socket && self.allows_socket(&found) {
            return Ok(Admitted { source: found, names });
        }
        // The tenant is told the name it wrote: where a link leads is the operator's to know.
        let (container, real) = (&self.container, found.path.display());
        tracing::warn!(%container, source = %source, found = %real, "a mount is not allowed");
        // Long as it may be: kubelet's own paths are, and the end is what differs.
        let source = source.to_string();
        let key = if socket { "a socket, and not allowed: see host_sockets" } else { "not allowed: see host_paths" };
        let reason = format!("{} of the node is {key} in config.toml", source.escape_debug());
        Err(SpecError::Mount { destination: mount.destination.display().to_string(), reason }.into())
    }

    /// A socket leads to a program of the node, whoever's directory it is in: none is allowed that is not listed.
    fn allows_socket(&self, found: &Resolved) -> bool {
        !found.is_removed() && self.sockets.iter().any(|listed| found.path.starts_with(listed))
    }

    /// By which of its names something may be mounted: its own, or for a part of a volume those of its origin.
    fn names(&self, found: &Resolved) -> io::Result<Vec<PathBuf>> {
        if found.is_removed() {
            return Ok(Vec::new());
        }
        let subpaths = self.pod.as_ref().map(|pod| pod.join(SUBPATHS));
        let mut names = match subpaths.filter(|subpaths| found.path.starts_with(subpaths)) {
            None => vec![found.path.clone()],
            // kubelet binds a part of any volume here, that of a hostPath too: what counts is where it comes from.
            Some(subpaths) => {
                let mut names = found.other_names()?;
                names.retain(|name| !name.starts_with(&subpaths));
                names
            }
        };
        names.retain(|name| self.places.iter().any(|place| name.starts_with(place)));
        Ok(names)
    }
}

#[cfg(test)]
mod tests;
