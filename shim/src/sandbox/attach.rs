//! Attaching a container's files to the running microVM, and taking them back.

use super::guest_spec::{HostMount, guest_spec, host_mounts};
use super::oci::Spec;
use super::rootfs::RootfsPlan;
use super::share::{self, ContainerShare};
use super::shared::{Pids, Shared};
use super::{Attached, Container, Inner, SandboxError, SpecError};
use crate::identifier::Identifier;
use agent_protocol::agent::create_container_request::Rootfs;
use agent_protocol::agent::{BlockVolume, ReleaseDeviceRequest};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use vmm_protocol::{Device, DeviceId, FdSlot, PciAddress};

/// For all sources of a container together.
const SOURCES: Duration = Duration::from_secs(30);

/// A disk of one container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    device: DeviceId,
    address: PciAddress,
}

/// All that attaching a container takes. Made before there is a microVM, so that what can be refused is refused at once.
#[derive(Clone, Debug)]
pub struct ContainerPlan {
    pub(super) id: Identifier,
    rootfs: RootfsPlan,
    mounts: Vec<HostMount>,
    /// As the guest is to see it.
    spec: Spec,
    pids: Pids,
}

impl ContainerPlan {
    pub fn new(container: &Container<'_>) -> Result<Self, SpecError> {
        let rootfs = RootfsPlan::new(container.rootfs, container.spec.root.as_ref(), container.bundle)?;
        let mut spec = container.spec.clone();
        let shared = Shared::take(&mut spec, container.pod)?;
        let mounts = host_mounts(&spec)?;
        let sources: Vec<_> = (0..mounts.len()).map(|number| share::guest_mount(container.id, number)).collect();
        let mut spec = guest_spec(&spec, &sources)?;
        shared.give(&mut spec);
        Ok(Self { id: container.id.clone(), rootfs, mounts, spec, pids: shared.pids })
    }
}

impl Inner {
    pub(super) async fn attach(&self, plan: &ContainerPlan) -> Result<Attached, SandboxError> {
        let ContainerPlan { id, rootfs, mounts, spec, pids } = plan.clone();
        let spec = serde_json::to_vec(&spec).map_err(io::Error::from);
        let spec = spec.map_err(SandboxError::host("encode", "the specification"))?;
        let files = ContainerShare::new(&self.directory, &id);

        if !matches!(rootfs, RootfsPlan::Block { .. }) || !mounts.is_empty() {
            self.file_server.get_or_try_init(|| self.start_file_server()).await?;
        }
        let disk = match &rootfs {
            RootfsPlan::Block { image, read_only, .. } => Some(self.attach_disk(&id, image, *read_only).await?),
            _ => None,
        };
        let answer = match (&rootfs, disk) {
            (RootfsPlan::Block { filesystem, options, .. }, Some(disk)) => Rootfs::Block(BlockVolume {
                pci_address: disk.address.to_string(),
                filesystem: filesystem.clone(),
                options: options.clone(),
                ..BlockVolume::default()
            }),
            _ => Rootfs::SharedPath(files.rootfs()),
        };
        let mounted = mount_files(&files, rootfs, mounts).await;
        // A thread that is stuck with a source must not mount it when this container is gone.
        files.close();
        mounted?;
        Ok(Attached { rootfs: answer, spec, pids: pids.to_request() })
    }

    /// A later container may try again: what a failed attempt made is removed.
    async fn start_file_server(&self) -> Result<super::Process, SandboxError> {
        let result = self.serve_share().await;
        let directory = self.directory.clone();
        if result.is_err()
            && let Err(error) = blocking(move || share::remove(&directory)).await
        {
            tracing::error!(%error, "the failed file server left something behind");
        }
        result
    }

    async fn serve_share(&self) -> Result<super::Process, SandboxError> {
        let directory = self.directory.clone();
        blocking(move || share::make(&directory)).await?;
        let (server, socket) = share::serve(&self.host, &self.directory, &self.cgroup, self.oom_score)?;
        let device = Device::Fs { tag: agent_protocol::SHARE_TAG.to_owned(), server: FdSlot(0) };
        if let Err(error) = self.vmm.attach("the file share", device, socket.as_fd()).await {
            server.kill();
            return Err(error);
        }
        self.end_with(&server);
        Ok(server)
    }

    async fn attach_disk(&self, container: &Identifier, image: &Path, read_only: bool) -> Result<Disk, SandboxError> {
        let path = image.to_owned();
        let open = move || open_image(&path, read_only).map_err(SandboxError::host("open", &path.display()));
        let step = format!("opening {} for container {container}", image.display());
        let file = until(Instant::now() + SOURCES, step, blocking(open)).await?;
        let name = format!("disk {} of container {container}", image.display());
        let device = Device::Block { image: FdSlot(0), read_only };
        let (device, address) = self.vmm.attach(&name, device, file.as_fd()).await?;
        let disk = Disk { device, address };
        self.containers().entry(container.clone()).or_default().push(disk);
        Ok(disk)
    }

    /// Goes on after an error, so that as little as possible stays; tells the first.
    pub(super) async fn detach(&self, container: &Identifier) -> Result<(), SandboxError> {
        let disks = self.containers().remove(container).unwrap_or_default();
        let alive = self.vmm.stopped().borrow().is_none();
        let mut result = Ok(());
        for disk in disks.into_iter().filter(|_| alive) {
            result = result.and(self.detach_disk(disk).await);
        }
        let files = ContainerShare::new(&self.directory, container);
        result.and(blocking(move || files.remove()).await)
    }

    async fn detach_disk(&self, disk: Disk) -> Result<(), SandboxError> {
        let request = ReleaseDeviceRequest { pci_address: disk.address.to_string(), ..ReleaseDeviceRequest::default() };
        if let Err(error) = self.agent.release_device(&request).await {
            // The device goes anyway: a guest that does not let go loses it under its feet.
            tracing::warn!(address = %disk.address, %error, "the guest did not release the disk");
        }
        self.vmm.detach(disk.device).await
    }

    pub(super) fn containers(&self) -> std::sync::MutexGuard<'_, super::Containers> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sources may be on a network file system that hangs: each step is told when it was the last.
async fn mount_files(files: &ContainerShare, root: RootfsPlan, mounts: Vec<HostMount>) -> Result<(), SandboxError> {
    let end = Instant::now() + SOURCES;
    let share = files.clone();
    let step = format!("mounting the root filesystem of container {}", files.container());
    let mount_root = move || match &root {
        RootfsPlan::Overlay(overlay) => share.mount_overlay(overlay),
        RootfsPlan::Directory { source, options } => share.mount_root_directory(source, *options),
        RootfsPlan::Block { .. } => Ok(()),
    };
    until(end, step, blocking(mount_root)).await?;
    for (number, mount) in mounts.into_iter().enumerate() {
        let share = files.clone();
        let step = format!("sharing {} with container {}", mount.source.display(), files.container());
        let mount_volume = move || share.mount_volume(number, &mount.source, mount.options);
        until(end, step, blocking(mount_volume)).await?;
    }
    Ok(())
}

async fn until<T>(
    end: Instant,
    step: String,
    work: impl Future<Output = Result<T, SandboxError>>,
) -> Result<T, SandboxError> {
    timeout_at(end, work).await.unwrap_or_else(|_| Err(SandboxError::deadline(step, SOURCES)))
}

/// A regular file or a block device. Only device names may be links, as udev makes them.
fn open_image(path: &Path, read_only: bool) -> io::Result<File> {
    let link = if path.starts_with("/dev") { 0 } else { libc::O_NOFOLLOW };
    let file = File::options().read(true).write(!read_only).custom_flags(link | libc::O_CLOEXEC).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a regular file nor a block device"))
    }
}

/// Runs what may block on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    let joined = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    joined.map_err(SandboxError::host("finish", "a thread's work"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_behind_a_link_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let [image, link] = ["image", "link"].map(|name| root.path().join(name));
        std::fs::write(&image, "x").unwrap();
        std::os::unix::fs::symlink(&image, &link).unwrap();
        assert!(open_image(&image, false).is_ok());
        assert!(open_image(&link, false).is_err());
    }

    #[tokio::test]
    async fn a_source_that_hangs_is_named() {
        let hangs = std::future::pending::<Result<(), SandboxError>>();
        let error = until(Instant::now(), "sharing /nfs with container web".to_owned(), hangs).await.unwrap_err();
        assert_eq!(error.to_string(), "sharing /nfs with container web took longer than 30 s");
    }

    #[test]
    fn only_files_and_disks_are_images() {
        assert!(open_image(Path::new("/dev/null"), false).is_err());
        assert!(open_image(Path::new("/proc"), true).is_err());
    }
}
