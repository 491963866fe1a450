//! A container's root filesystem, where it is disks of the guest.

use super::super::rootfs::RootfsPlan;
use super::super::{Inner, SandboxError};
use crate::identifier::Identifier;
use agent_protocol::agent::BlockVolume;
use agent_protocol::agent::create_container_request::Rootfs;

impl Inner {
    /// `None`: it is a directory of the node, or an overlay that the node has to mount.
    pub(super) async fn attach_root(
        &self,
        container: &Identifier,
        plan: &RootfsPlan,
    ) -> Result<Option<Rootfs>, SandboxError> {
        Ok(match plan {
            RootfsPlan::Directory { .. } => None,
            RootfsPlan::Overlay(overlay) => self.attach_overlay(container, overlay).await?.map(Rootfs::Layers),
            RootfsPlan::Layers(stack) => Some(Rootfs::Layers(self.attach_layers(container, stack).await?)),
            RootfsPlan::Block { image, read_only, filesystem, options } => {
                let disk = self.attach_disk(container, image, *read_only).await?;
                Some(Rootfs::Block(BlockVolume {
                    pci_address: disk.address.to_string(),
                    filesystem: filesystem.clone(),
                    options: options.clone(),
                    ..BlockVolume::default()
                }))
            }
        })
    }
}
