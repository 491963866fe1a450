//! Directories and files of the node: in the guest itself, or mounted where the file server shows them to it.

use super::super::guest_spec::HostMount;
use super::super::policy::{Admitted, ContainerPolicy, ListedSocket, Resolved};
use super::super::rootfs::RootfsPlan;
use super::super::share::ContainerShare;
use super::super::volumes::Looked;
use super::super::{Inner, SandboxError};
use super::direct::DirectMount;
use super::sockets::PlacedSocket;
use super::{SOURCES, blocking, until};
use crate::identifier::Identifier;
use std::path::Path;
use std::sync::Arc;
use tokio::time::Instant;

/// A mount of a container whose source was found.
#[derive(Debug)]
pub(super) struct PlacedMount {
    mount: HostMount,
    source: Resolved,
    /// Where the guest has it. `None`: the file server has to show it.
    place: Option<String>,
}

impl PlacedMount {
    pub fn is_shared(&self) -> bool {
        self.place.is_none()
    }
}

/// What the source of a mount is.
enum Found {
    Socket(Resolved),
    Direct(Box<DirectMount>),
    /// With the sockets in it that are listed, if it is a directory that has to be shared.
    Other(Looked, Vec<ListedSocket>),
}

impl Found {
    fn look(
        policy: &ContainerPolicy,
        records: &Path,
        mount: &HostMount,
        admitted: &Admitted,
    ) -> Result<Self, SandboxError> {
        let source = &admitted.source;
        if let Some(socket) = source.socket().map_err(SandboxError::host("look at", &source.path.display()))? {
            return Ok(Self::Socket(socket));
        }
        if let Some(direct) = DirectMount::find(records, admitted)? {
            return Ok(Self::Direct(Box::new(direct)));
        }
        let looked = Looked::at(policy, mount, admitted)?;
        let sockets = if looked.is_shared() { policy.sockets_below(&source.path) } else { Ok(Vec::new()) };
        let sockets = sockets.map_err(SandboxError::host("find the sockets of", &mount.source.display()))?;
        Ok(Self::Other(looked, sockets))
    }
}

impl Inner {
    /// Finds the sources of a container's mounts, and makes those volumes in the guest that need no file server.
    pub(super) async fn place_mounts(
        &self,
        container: &Identifier,
        mounts: Vec<HostMount>,
    ) -> Result<(Vec<PlacedMount>, Vec<PlacedSocket>), SandboxError> {
        let end = Instant::now() + SOURCES;
        let mut placed = Vec::with_capacity(mounts.len());
        let mut in_directories = Vec::new();
        let (policy, name) = (self.policy.clone(), container.clone());
        let step = format!("finding the directories of container {container}");
        let policy = Arc::new(until(end, step, blocking(move || Ok(policy.of_container(&name)))).await?);
        for mount in mounts {
            let step = format!("sharing {} with container {container}", mount.source.display());
            let (policy, asked) = (policy.clone(), mount.clone());
            let records = self.host.direct_volumes();
            let look = move || {
                let admitted = policy.admit(&asked)?;
                let found = Found::look(&policy, &records, &asked, &admitted)?;
                Ok((admitted.source, found))
            };
            let (source, found) = until(end, step, blocking(look)).await?;
            let place = match found {
                Found::Socket(socket) => Some(self.place_socket(container, socket).await?),
                Found::Direct(direct) => Some(self.place_direct(container, &direct).await?),
                Found::Other(Looked { empty_dir: Some(found), .. }, _) => {
                    self.place_empty_dir(container, &mount, found).await?
                }
                Found::Other(looked, sockets) => {
                    in_directories.extend(self.place_listed(container, &mount, sockets).await?);
                    self.configuration.place(container, &mount, &source, looked).await?
                }
            };
            placed.push(PlacedMount { mount, source, place });
        }
        Ok((placed, in_directories))
    }
}

/// Returns where the guest sees each of the mounts. Sources may be on a network file system that hangs: each step is
/// told when it was the last.
pub(super) async fn mount_files(
    files: &ContainerShare,
    root: Option<RootfsPlan>,
    mounts: Vec<PlacedMount>,
) -> Result<Vec<String>, SandboxError> {
    let end = Instant::now() + SOURCES;
    let share = files.clone();
    let step = format!("mounting the root filesystem of container {}", files.container());
    let mount_root = move || match &root {
        Some(RootfsPlan::Overlay(overlay)) => share.mount_overlay(overlay),
        Some(RootfsPlan::Directory { source, options }) => share.mount_root_directory(source, *options),
        Some(RootfsPlan::Block { .. } | RootfsPlan::Layers(_)) | None => Ok(()),
    };
    until(end, step, blocking(mount_root)).await?;
    let mut places = Vec::with_capacity(mounts.len());
    for PlacedMount { mount, source, place } in mounts {
        if let Some(place) = place {
            places.push(place);
            continue;
        }
        let share = files.clone();
        let step = format!("sharing {} with container {}", mount.source.display(), files.container());
        let mount_volume = move || share.mount_volume(&source, mount.options);
        places.push(until(end, step, blocking(mount_volume)).await?);
    }
    Ok(places)
}
