//! emptyDirs of the pod: memory of the guest, or a disk, for all containers until the pod ends.

use super::super::file_id::FileId;
use super::super::guest_spec::HostMount;
use super::super::volumes::{EmptyDir, Medium, Owner};
use super::super::{Inner, SandboxError, SpecError};
use super::{SOURCES, blocking, until};
use crate::identifier::Identifier;
use agent_protocol::VOLUMES;
use agent_protocol::agent::prepare_volume_request::Kind;
use agent_protocol::agent::{MemoryVolume, PartOfVolume, ScratchDisk};
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

/// Those that a container of the pod has mounted.
#[derive(Debug, Default)]
pub(in super::super) struct EmptyDirs {
    /// By the directory on the node. What was decided for the first container holds for all: the node may have written
    /// something since, or removed it.
    places: tokio::sync::Mutex<HashMap<FileId, Place>>,
    /// Volumes that are one container's view of a part.
    parts: Mutex<HashMap<Identifier, Vec<String>>>,
}

#[derive(Clone, Debug)]
enum Place {
    /// A volume of the guest.
    Guest(String),
    Shared(&'static str),
}

impl Inner {
    /// Where the guest has what a container is to see. `None`: the file server has to show it.
    pub(super) async fn place_empty_dir(
        &self,
        container: &Identifier,
        mount: &HostMount,
        found: EmptyDir,
    ) -> Result<Option<String>, SandboxError> {
        let found = Arc::new(found);
        let refused = |reason: String| {
            SandboxError::from(SpecError::Mount { destination: mount.destination.display().to_string(), reason })
        };
        let volume = match self.empty_dir(&found).await? {
            Place::Guest(volume) => volume,
            Place::Shared(reason) if self.limits.of_empty_dir(&found.name).is_some() => {
                return Err(refused(format!("emptyDir {} cannot have a limit of its own: {reason}", found.name)));
            }
            Place::Shared(_) => return Ok(None),
        };
        if found.below.as_os_str().is_empty() {
            return Ok(Some(format!("{VOLUMES}/{volume}")));
        }
        if !found.part_is_directory {
            let reason = format!("the node has made a file in emptyDir {}, which is in the microVM", found.name);
            return Err(refused(reason));
        }
        let part = self.configuration.next_id().await;
        // Before it is made: whoever detaches the container finds it.
        self.empty_dirs.parts().entry(container.clone()).or_default().push(part.clone());
        let Owner { mode, uid, gid } = found.part;
        let path = found.below.as_os_str().as_bytes().to_vec();
        let kind = Kind::Part(PartOfVolume { volume, path, mode, uid, gid, ..PartOfVolume::default() });
        self.agent.make_volume(&part, kind).await?;
        Ok(Some(format!("{VOLUMES}/{part}")))
    }

    /// Made for the first container that mounts it.
    async fn empty_dir(&self, found: &Arc<EmptyDir>) -> Result<Place, SandboxError> {
        // Held to the end: another container waits for the volume instead of making a second one.
        let mut places = self.empty_dirs.places.lock().await;
        if let Some(place) = places.get(&found.key) {
            return Ok(place.clone());
        }
        let what = format!("emptyDir {}", found.name);
        let (dir, named) = (found.clone(), what.clone());
        let look = move || dir.medium().map_err(SandboxError::host("look at", &named));
        let place = match until(Instant::now() + SOURCES, format!("looking at {what}"), blocking(look)).await? {
            Ok(Medium::Memory { bytes }) => self.make_memory(found, bytes).await?,
            Ok(Medium::Disk) => self.make_disk(found, &what).await?,
            Err(reason) => {
                tracing::info!(volume = found.name, reason, "an emptyDir is shared with the node");
                Place::Shared(reason)
            }
        };
        places.insert(found.key, place.clone());
        Ok(place)
    }

    /// What the node has no limit for ends at the microVM's memory.
    async fn make_memory(&self, found: &EmptyDir, bytes: u64) -> Result<Place, SandboxError> {
        let Owner { mode, uid, gid } = found.owner;
        let most = self.limits.of_empty_dir(&found.name).unwrap_or(u64::MAX).min(u64::from(self.memory_mib) << 20);
        let bytes = if bytes == 0 { most } else { bytes.min(most) };
        let volume = self.configuration.next_id().await;
        let kind = Kind::Memory(MemoryVolume { bytes, mode, uid, gid, ..MemoryVolume::default() });
        self.agent.make_volume(&volume, kind).await?;
        Ok(Place::Guest(volume))
    }

    async fn make_disk(&self, found: &Arc<EmptyDir>, what: &str) -> Result<Place, SandboxError> {
        let limit = self.limits.of_empty_dir(&found.name).unwrap_or(u64::MAX).min(self.limits.scratch);
        let (dir, template, named) = (found.clone(), self.host.scratch_template(), format!("the disk of {what}"));
        let make = move || dir.make_image(&template, limit).map_err(SandboxError::host("make", &named));
        let image = until(Instant::now() + SOURCES, format!("making the disk of {what}"), blocking(make)).await?;
        let disk = self.plug(what, &image, false).await?;
        let volume = self.configuration.next_id().await;
        let Owner { mode, uid, gid } = found.owner;
        let pci_address = disk.address.to_string();
        let kind = Kind::Scratch(ScratchDisk { pci_address, mode, uid, gid, ..ScratchDisk::default() });
        if let Err(error) = self.agent.make_volume(&volume, kind).await {
            // Another container that mounts it tries again.
            if let Err(error) = self.detach_disk(disk).await {
                tracing::warn!(%error, "a disk that the guest could not use stays");
            }
            return Err(error.into());
        }
        Ok(Place::Guest(volume))
    }

    /// Forgets what was a container's alone. Waits for nobody.
    pub(super) fn release_parts(&self, container: &Identifier) {
        let parts = self.empty_dirs.parts().remove(container).unwrap_or_default();
        if parts.is_empty() || self.vmm.stopped().borrow().is_some() {
            return;
        }
        self.agent.forget_volumes(parts);
    }
}

impl EmptyDirs {
    fn parts(&self) -> std::sync::MutexGuard<'_, HashMap<Identifier, Vec<String>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
