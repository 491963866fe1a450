//! Attaching a container's files to the running microVM, and taking them back.

mod devices;
mod direct;
mod disk;
mod empty_dirs;
mod layers;
mod root;
mod server;
mod sockets;
mod volumes;

pub(super) use devices::BlockDevices;
pub(super) use direct::DirectVolumes;
pub(super) use disk::Disk;
pub(super) use empty_dirs::EmptyDirs;

use self::volumes::PlacedMount;
use super::devices::{BlockDevice, take_block};
use super::guest_spec::{HostMount, guest_spec, host_mounts};
use super::oci::Spec;
use super::rootfs::RootfsPlan;
use super::share::ContainerShare;
use super::shared::Shared;
use super::{Attached, Container, Inner, SandboxError, SpecError};
use crate::identifier::Identifier;
use crate::trace;
use agent_protocol::agent::create_container_request::Rootfs;
use std::io;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// For all sources of a container together.
const SOURCES: Duration = Duration::from_secs(30);

/// All that attaching a container takes. Made before there is a microVM, so that what can be refused is refused at once.
#[derive(Clone, Debug)]
pub struct ContainerPlan {
    pub(super) id: Identifier,
    rootfs: RootfsPlan,
    mounts: Vec<HostMount>,
    devices: Vec<BlockDevice>,
    /// Without them, and without what the pod's containers share.
    spec: Spec,
    shared: Shared,
}

impl ContainerPlan {
    pub fn new(container: &Container<'_>) -> Result<Self, SpecError> {
        let rootfs = RootfsPlan::new(container.rootfs, container.spec.root.as_ref(), container.bundle)?;
        let mut spec = container.spec.clone();
        let shared = Shared::take(&mut spec, container.pod)?;
        let mounts = host_mounts(&spec)?;
        let devices = spec.linux.as_mut().map(take_block).transpose()?.unwrap_or_default();
        guest_spec(&spec, &vec![String::new(); mounts.len()])?;
        Ok(Self { id: container.id.clone(), rootfs, mounts, devices, spec, shared })
    }
}

impl Inner {
    pub(super) async fn attach(&self, plan: &ContainerPlan) -> Result<Attached, SandboxError> {
        let ContainerPlan { id, rootfs, mounts, devices, spec, shared } = plan.clone();
        let placing = trace::container_span(id.as_str(), "place mounts");
        let (mounts, sockets) = self.place_mounts(&id, mounts).await?;
        drop(placing);
        let files = ContainerShare::new(&self.directory, &id, &self.volumes);

        let attaching = trace::container_span(id.as_str(), "disks of the root");
        let on_disks = self.attach_root(&id, &rootfs).await?;
        drop(attaching);
        if on_disks.is_none() || mounts.iter().any(PlacedMount::is_shared) {
            let _starting = trace::container_span(id.as_str(), "file server");
            self.file_server.get_or_try_init(|| self.start_file_server()).await?;
        }
        let shared_root = on_disks.is_none().then_some(rootfs);
        let answer = on_disks.unwrap_or_else(|| Rootfs::SharedPath(files.rootfs()));
        let devices = self.attach_devices(&id, devices).await?;
        let mounting = trace::container_span(id.as_str(), "mount files");
        let mounted = volumes::mount_files(&files, shared_root, mounts).await;
        drop(mounting);
        // A thread that is stuck with a source must not mount it when this container is gone.
        files.close();
        let mut spec = guest_spec(&spec, &mounted?)?;
        shared.give(&mut spec);
        sockets::cover(&mut spec, sockets);
        let spec = serde_json::to_vec(&spec).map_err(io::Error::from);
        let spec = spec.map_err(SandboxError::host("encode", "the specification"))?;
        Ok(Attached { rootfs: answer, spec, pids: shared.pids.to_request(), devices })
    }

    /// Goes on after an error, so that as little as possible stays; tells the first.
    pub(super) async fn detach(&self, container: &Identifier) -> Result<(), SandboxError> {
        self.configuration.detach(container);
        self.release_sockets(container);
        self.release_parts(container);
        let mut disks = self.containers().remove(container).unwrap_or_default();
        disks.extend(self.release_layers(container).await);
        let alive = self.vmm.stopped().borrow().is_none();
        let mut result = self.detach_direct(container, alive).await;
        result = result.and(self.detach_devices(container, alive).await);
        for disk in disks.into_iter().filter(|_| alive) {
            result = result.and(self.detach_disk(disk).await);
        }
        let files = ContainerShare::new(&self.directory, container, &self.volumes);
        result.and(apart(move || files.remove()).await)
    }

    pub(super) fn containers(&self) -> std::sync::MutexGuard<'_, super::Containers> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn until<T>(
    end: Instant,
    step: String,
    work: impl Future<Output = Result<T, SandboxError>>,
) -> Result<T, SandboxError> {
    timeout_at(end, work).await.unwrap_or_else(|_| Err(SandboxError::deadline(step, SOURCES)))
}

/// Runs what may block on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    let joined = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    joined.map_err(SandboxError::host("finish", "a thread's work"))?
}

/// The same for what ends a container or a pod: look-ups in a file system that hangs may have taken every thread that [`blocking`] has.
pub(super) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    let failed = || SandboxError::host("finish", "a thread's work");
    let (done, result) = oneshot::channel();
    let work = move || drop(done.send(work()));
    std::thread::Builder::new().spawn(work).map_err(failed())?;
    result.await.map_err(io::Error::other).map_err(failed())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_pod_does_not_wait_for_threads_that_hang() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || held.recv());
        assert_eq!(runtime.block_on(apart(|| Ok(1))).unwrap(), 1);
        drop(hold);
    }

    #[tokio::test]
    async fn a_source_that_hangs_is_named() {
        let hangs = std::future::pending::<Result<(), SandboxError>>();
        let error = until(Instant::now(), "sharing /nfs with container web".to_owned(), hangs).await.unwrap_err();
        assert_eq!(error.to_string(), "sharing /nfs with container web took longer than 30 s");
    }
}
