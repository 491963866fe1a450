//! Layers of images as disks or memory of the guest, each attached once for all containers of the pod.

use super::super::layers::{self, Blob, Key, Part, Pod, Stack, scratch};
use super::super::mount::Overlay;
use super::super::rootfs::{LayerStack, Upper};
use super::super::{Inner, SandboxError};
use super::disk::Disk;
use super::{SOURCES, blocking, until};
use crate::identifier::Identifier;
use agent_protocol::agent::{BlockVolume, Layer, LayeredRoot, ScratchDisk, layered_root};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use tokio::time::Instant;
use vmm_protocol::{Device, FdSlot, MAX_PARTS, part_offsets};

/// Layers that are mapped may be so many times what the guest has started with: their page structures, a 64th of them, are
/// there at once, before memory can come.
const MAPPED: u32 = 8;

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

    /// Attaches what a stack of mounts names. The node has mounted nothing of it.
    pub(super) async fn attach_layers(
        &self,
        container: &Identifier,
        stack: &LayerStack,
    ) -> Result<LayeredRoot, SandboxError> {
        let plan = stack.clone();
        let stack = look(container, move || Stack::open(&plan)).await?;
        self.attach_stack(container, stack).await?.ok_or_else(|| {
            let reason = "its directory has content that is in no image of this runtime's";
            SandboxError::host("use", "the snapshot's writable layer")(io::Error::other(reason))
        })
    }

    async fn attach_stack(&self, container: &Identifier, stack: Stack) -> Result<Option<LayeredRoot>, SandboxError> {
        let upper = match stack.upper {
            Upper::None => None,
            Upper::Directory(directory) => match self.attach_scratch(container, directory).await? {
                None => return Ok(None),
                disk => disk.map(layered_root::Upper::Scratch),
            },
            Upper::Image(image) => {
                let disk = self.attach_disk(container, &image, false).await?;
                Some(layered_root::Upper::Block(BlockVolume {
                    pci_address: disk.address.to_string(),
                    filesystem: "ext4".to_owned(),
                    options: vec!["discard".to_owned()],
                    ..BlockVolume::default()
                }))
            }
        };
        let lower = self.attach_blobs(container, stack.layers).await?;
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
        let disk = self.plug_for(container, &what, &scratch.file, false).await?;
        let (uid, gid) = scratch.owner;
        let pci_address = disk.address.to_string();
        Ok(Some(ScratchDisk { pci_address, mode: scratch.mode, uid, gid, ..ScratchDisk::default() }))
    }

    /// Those that the pod does not have yet become one disk or region, or a second one if they are too many for it.
    async fn attach_blobs(
        &self,
        container: &Identifier,
        layers: Vec<layers::Layer>,
    ) -> Result<Vec<Layer>, SandboxError> {
        // Held to the end: another container of the image waits for the disk instead of attaching a second one.
        let mut registry = self.layers.lock().await;
        let operation = format!("the layers of container {container}");
        let impossible = |reason: &str| SandboxError::host("attach", &operation)(io::Error::other(reason.to_owned()));
        let mut missing: Vec<(Key, &Blob)> = Vec::new();
        for (key, blob) in layers.iter().flat_map(parts) {
            if !registry.has(key) && !missing.iter().any(|(other, _)| *other == key) {
                missing.push((key, blob));
            }
        }
        let pod = Pod {
            memory: u64::from(self.memory_mib.min(self.memory.started_mib().saturating_mul(MAPPED))) << 20,
            mapped: registry.mapped(),
            rate: self.disk_rate,
            may_map: self.map_layers,
        };
        let bytes = missing.iter().fold(0, |bytes: u64, (_, blob)| bytes.saturating_add(blob.length));
        let access = pod.layer_access(bytes, missing.iter().all(|(_, blob)| blob.can_be_mapped));
        for missing in missing.chunks(MAX_PARTS) {
            let lengths: Vec<u64> = missing.iter().map(|(_, blob)| blob.length).collect();
            let places = part_offsets(&lengths).ok_or_else(|| impossible("they are too long"))?;
            let parts = (0..).take(missing.len()).map(FdSlot).collect();
            let files: Vec<_> = missing.iter().map(|(_, blob)| blob.file.as_fd()).collect();
            let (device, address) = self.vmm.attach_all(&operation, Device::Layers { parts, access }, &files).await?;
            registry.add((device, address), access, missing.iter().map(|(key, _)| *key).zip(places).collect());
        }
        let keys: Vec<Key> = layers.iter().flat_map(parts).map(|(key, _)| key).collect();
        let parts = registry.take(container, &keys).ok_or_else(|| impossible("one is not attached"))?;
        let mut parts = parts.iter().map(message);
        let layers = layers.iter().filter_map(|layer| {
            let devices = parts.by_ref().take(layer.devices.len()).collect();
            Some(Layer { devices, ..parts.next()? })
        });
        Ok(layers.collect())
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

/// A layer's devices and the layer itself.
fn parts(layer: &layers::Layer) -> impl Iterator<Item = (Key, &Blob)> {
    let part = |blob: &'_ Blob, is_device| Key { file: blob.id, is_device };
    let devices = layer.devices.iter().map(move |blob| (part(blob, true), blob));
    devices.chain([(part(&layer.blob, false), &layer.blob)])
}

fn message(part: &Part) -> Layer {
    Layer {
        pci_address: part.address.to_string(),
        part: part.number,
        offset: part.place.start,
        // What follows in the disk up to a multiple of 4096 reads as zeroes.
        length: (part.place.end - part.place.start).next_multiple_of(vmm_protocol::PART_ALIGNMENT),
        ..Layer::default()
    }
}
