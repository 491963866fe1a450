//! Directories and files of the node, mounted where the file server shows them to the guest.

use super::super::SandboxError;
use super::super::guest_spec::HostMount;
use super::super::policy::Policy;
use super::super::rootfs::RootfsPlan;
use super::super::share::ContainerShare;
use super::{SOURCES, blocking, until};
use tokio::time::Instant;

/// Returns where the guest sees each of the mounts. Sources may be on a network file system that hangs: each step is told when it was the last.
pub(super) async fn mount_files(
    policy: &Policy,
    files: &ContainerShare,
    root: RootfsPlan,
    mounts: Vec<HostMount>,
) -> Result<Vec<String>, SandboxError> {
    let end = Instant::now() + SOURCES;
    let share = files.clone();
    let step = format!("mounting the root filesystem of container {}", files.container());
    let mount_root = move || match &root {
        RootfsPlan::Overlay(overlay) => share.mount_overlay(overlay),
        RootfsPlan::Directory { source, options } => share.mount_root_directory(source, *options),
        RootfsPlan::Block { .. } => Ok(()),
    };
    until(end, step, blocking(mount_root)).await?;
    let mut places = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let (policy, share) = (policy.clone(), files.clone());
        let step = format!("sharing {} with container {}", mount.source.display(), files.container());
        let mount_volume = move || {
            let source = policy.admit(share.container(), &mount)?;
            share.mount_volume(&source, mount.options)
        };
        places.push(until(end, step, blocking(mount_volume)).await?);
    }
    Ok(places)
}
