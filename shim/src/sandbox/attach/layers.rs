//! Layers of images as disks of the guest, each attached once for all containers of the pod.

use super::super::layers::{self, Blob, FileId, Part, Stack, scratch};
use super::super::mount::Overlay;
use super::super::{Inner, SandboxError};
use super::disk::Disk;
use super::{SOURCES, blocking, until};
use crate::identifier::Identifier;
use agent_protocol::agent::layered_root::Upper;
use agent_protocol::agent::{Layer, LayeredRoot, ScratchDisk};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use tokio::time::Instant;
use vmm_protocol::{Device, FdSlot, part_offsets};

impl Inner {
    /// Attaches what an overlay consists of. `None`: the node has to mount it.
    pub(super) async fn attach_overlay(
        &self,
        container: &Identifier,
        overlay: &Overlay,
    ) -> Result<Option<LayeredRoot>, SandboxError> {
        let overlay = overlay.clone();
        match look(container, move || layers::find(&overlay)).await? {
            Some(stack) => self.attach_stack(container, stack).await,
            None => Ok(None),
        }
    }

    /// Attaches one layer, to be read.
    pub(super) async fn attach_layer(&self, container: &Identifier, blob: &Path) -> Result<LayeredRoot, SandboxError> {
        let blob = blob.to_owned();
        let Stack { blobs, .. } = look(container, move || Stack::single(&blob)).await?;
        Ok(LayeredRoot { lower: self.attach_blobs(container, blobs).await?, ..LayeredRoot::default() })
    }

    async fn attach_stack(&self, container: &Identifier, stack: Stack) -> Result<Option<LayeredRoot>, SandboxError> {
        let upper = match stack.upper {
            None => None,
            Some(directory) => match self.attach_scratch(container, directory).await? {
                None => return Ok(None),
                disk => disk.map(Upper::Scratch),
            },
        };
        let lower = self.attach_blobs(container, stack.blobs).await?;
        Ok(Some(LayeredRoot { lower, upper, ..LayeredRoot::default() }))
    }

    /// `None` when the snapshot has content that is in no image of ours.
    async fn attach_scratch(
        &self,
        container: &Identifier,
        upper: PathBuf,
    ) -> Result<Option<ScratchDisk>, SandboxError> {
        let (template, limit) = (self.host.scratch_template(), self.limits.scratch);
        let what = format!("the writable layer in {}", upper.display());
        let named = what.clone();
        let open = move || scratch::open(&template, &upper, limit).map_err(SandboxError::host("make", &named));
        let Some(scratch) = look(container, open).await? else { return Ok(None) };
        let disk = self.plug_disk(container, &what, scratch.file, false).await?;
        let (uid, gid) = scratch.owner;
        let pci_address = disk.address.to_string();
        Ok(Some(ScratchDisk { pci_address, mode: scratch.mode, uid, gid, ..ScratchDisk::default() }))
    }

    /// Those that the pod does not have yet become one disk.
    async fn attach_blobs(&self, container: &Identifier, blobs: Vec<Blob>) -> Result<Vec<Layer>, SandboxError> {
        // Held to the end: another container of the image waits for the disk instead of attaching a second one.
        let mut registry = self.layers.lock().await;
        let missing: Vec<&Blob> = blobs.iter().filter(|blob| !registry.has(blob.id)).collect();
        let operation = format!("the layers of container {container}");
        let impossible = |reason: &str| SandboxError::host("attach", &operation)(io::Error::other(reason.to_owned()));
        if !missing.is_empty() {
            let lengths: Vec<u64> = missing.iter().map(|blob| blob.length).collect();
            let places = part_offsets(&lengths).ok_or_else(|| impossible("they are too many or too long"))?;
            let parts = (0..).take(missing.len()).map(FdSlot).collect();
            let files: Vec<_> = missing.iter().map(|blob| blob.file.as_fd()).collect();
            let (device, address) =
                self.vmm.attach_all(&operation, Device::Layers { parts, limit: self.disk_rate }, &files).await?;
            registry.add(device, address, missing.iter().map(|blob| blob.id).zip(places).collect());
        }
        let files: Vec<FileId> = blobs.iter().map(|blob| blob.id).collect();
        let parts = registry.take(container, &files).ok_or_else(|| impossible("one is not attached"))?;
        Ok(parts.iter().map(layer).collect())
    }

    /// The disks that nobody uses when a container is gone.
    pub(super) async fn release_layers(&self, container: &Identifier) -> Vec<Disk> {
        let disks = self.layers.lock().await.release(container);
        disks.into_iter().map(|(device, address)| Disk { device, address }).collect()
    }
}

async fn look<T: Send + 'static>(
    container: &Identifier,
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    let step = format!("looking at the layers of container {container}");
    until(Instant::now() + SOURCES, step, blocking(work)).await
}

fn layer(part: &Part) -> Layer {
    Layer {
        pci_address: part.address.to_string(),
        part: part.number,
        offset: part.place.start,
        // What follows in the disk up to a multiple of 4096 reads as zeroes.
        length: (part.place.end - part.place.start).next_multiple_of(vmm_protocol::PART_ALIGNMENT),
        ..Layer::default()
    }
}
