//! Disks: hot-plugged, most of them for a container and gone with it.

use super::super::{Inner, SandboxError};
use super::{SOURCES, blocking, until};
use crate::identifier::Identifier;
use agent_protocol::agent::ReleaseDeviceRequest;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use vmm_protocol::{Device, DeviceId, FdSlot, PciAddress};

/// A disk of the guest.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Disk {
    pub(super) device: DeviceId,
    pub(super) address: PciAddress,
}

impl Inner {
    pub(super) async fn attach_disk(
        &self,
        container: &Identifier,
        image: &Path,
        read_only: bool,
    ) -> Result<Disk, SandboxError> {
        let path = image.to_owned();
        let open = move || open_image(&path, read_only).map_err(SandboxError::host("open", &path.display()));
        let step = format!("opening {} for container {container}", image.display());
        let file = until(Instant::now() + SOURCES, step, blocking(open)).await?;
        self.plug_for(container, &format!("disk {}", image.display()), &file, read_only).await
    }

    /// Plugs in a disk that goes with its container.
    pub(super) async fn plug_for(
        &self,
        container: &Identifier,
        what: &str,
        file: &File,
        read_only: bool,
    ) -> Result<Disk, SandboxError> {
        let disk = self.plug(&format!("{what} of container {container}"), file, read_only).await?;
        self.containers().entry(container.clone()).or_default().push(disk);
        Ok(disk)
    }

    /// Plugs in a disk; whoever asked takes it away again. `name` tells the operator which one it is.
    pub(super) async fn plug(&self, name: &str, file: &File, read_only: bool) -> Result<Disk, SandboxError> {
        let device = Device::Block { image: FdSlot(0), read_only, limit: self.disk_rate };
        let (device, address) = self.vmm.attach(name, device, file.as_fd()).await?;
        Ok(Disk { device, address })
    }

    /// Takes a disk away. A guest that still writes to it is waited for, by the caller for a while and then in the background: without the
    /// disk, it would wait for ever for what it has written, with its PCI bus locked.
    pub(super) async fn detach_disk(&self, disk: Disk) -> Result<(), SandboxError> {
        let (agent, vmm) = (self.agent.clone(), self.vmm.clone());
        let mut detaching = tokio::spawn(async move {
            // The guest lets go of it, and then looks for the disks of a container that is made meanwhile: it would find it again.
            let withdrawn = vmm.withdraw(disk.device).await;
            let pci_address = disk.address.to_string();
            let request = ReleaseDeviceRequest { pci_address, ..ReleaseDeviceRequest::default() };
            let released = agent.release_device(&request).await;
            if vmm.stopped().borrow().is_some() {
                return Ok(());
            }
            if let Err(error) = withdrawn.and(released.map_err(SandboxError::from)) {
                // The device goes anyway: a guest that does not let go loses it under its feet.
                tracing::warn!(address = %disk.address, %error, "the guest did not release the disk");
            }
            vmm.detach(disk.device).await
        });
        match timeout(RELEASE, &mut detaching).await {
            Ok(detached) => detached.map_err(io::Error::other).map_err(SandboxError::host("finish", &"a task"))?,
            Err(_) => {
                tracing::info!(address = %disk.address, "the guest still writes to a disk, which goes when that is done");
                Ok(())
            }
        }
    }
}

/// For a guest to let go of a disk while somebody waits for that.
const RELEASE: Duration = Duration::from_secs(5);

/// What a disk is read and written in.
const SECTOR: u64 = 512;

/// A regular file or a block device, of whole sectors. Only device names may be links, as udev makes them.
fn open_image(path: &Path, read_only: bool) -> io::Result<File> {
    let refused = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    let link = if path.starts_with("/dev") { 0 } else { libc::O_NOFOLLOW };
    let mut file = File::options().read(true).write(!read_only).custom_flags(link | libc::O_CLOEXEC).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return refused("it is neither a regular file nor a block device".to_owned());
    }
    // Tells the size of a block device as well.
    match file.seek(SeekFrom::End(0))? {
        0 => refused("it is empty, which no disk image is".to_owned()),
        length if !length.is_multiple_of(SECTOR) => {
            refused(format!("its length of {length} bytes is no multiple of {SECTOR}: it is cut, or no disk image"))
        }
        _ => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_behind_a_link_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let [image, link] = ["image", "link"].map(|name| root.path().join(name));
        std::fs::write(&image, [0; 512]).unwrap();
        std::os::unix::fs::symlink(&image, &link).unwrap();
        assert!(open_image(&image, false).is_ok());
        assert!(open_image(&link, false).is_err());
    }

    #[test]
    fn only_files_and_disks_are_images() {
        assert!(open_image(Path::new("/dev/null"), false).is_err());
        assert!(open_image(Path::new("/proc"), true).is_err());
        assert!(open_image(Path::new("/proc"), false).is_err());
    }

    #[test]
    fn an_image_of_no_or_half_a_sector_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("image");
        let refusal = |length: usize| {
            std::fs::write(&image, vec![0; length]).unwrap();
            let named = SandboxError::host("open", &image.display());
            open_image(&image, true).map_err(named).unwrap_err().to_string()
        };
        assert_eq!(refusal(0), format!("cannot open {}: it is empty, which no disk image is", image.display()));
        let cut = "its length of 1000 bytes is no multiple of 512: it is cut, or no disk image";
        assert_eq!(refusal(1000), format!("cannot open {}: {cut}", image.display()));
    }
}
