//! What the source of a mount is.

use super::classify::{Found, Kind, PodPaths, VolumePlan};
use super::empty_dir::EmptyDir;
use crate::sandbox::SandboxError;
use crate::sandbox::file_id::FileId;
use crate::sandbox::guest_spec::HostMount;
use crate::sandbox::policy::{Admitted, ContainerPolicy};
use std::io;

#[derive(Debug)]
pub(in super::super) struct Looked {
    pub(super) plan: VolumePlan,
    pub(super) key: FileId,
    /// If it is one, or something in one.
    pub empty_dir: Option<EmptyDir>,
}

impl Looked {
    /// Takes as long as the source's file system does.
    pub fn at(policy: &ContainerPolicy, mount: &HostMount, found: &Admitted) -> Result<Self, SandboxError> {
        let look = || -> io::Result<Self> {
            let Admitted { source, names } = found;
            let metadata = source.metadata()?;
            let kind = match metadata.file_type() {
                kind if kind.is_dir() => Kind::Directory,
                kind if kind.is_file() => Kind::File,
                _ => Kind::Other,
            };
            let (pod, sandboxes) = (policy.pod.clone(), policy.sandboxes.clone());
            let (path, read_only) = (&source.path, mount.options.read_only);
            let plan = PodPaths { pod, sandboxes }.classify(Found { path, origins: names, kind, read_only });
            let empty_dir = match &plan {
                VolumePlan::EmptyDir(path) => EmptyDir::find(path, &metadata)?,
                _ => None,
            };
            Ok(Self { plan, key: FileId::of(&metadata), empty_dir })
        };
        look().map_err(SandboxError::host("look at", &mount.source.display()))
    }

    /// Whether the file server has to show it.
    pub fn is_shared(&self) -> bool {
        self.plan == VolumePlan::Shared
    }
}
