//! The pod's file share: one virtio-fs mount, made when the first container needs it.

use crate::error::Error;
use crate::id::ContainerId;
use crate::pci::PciBus;
use agent_protocol::{SHARE_MOUNT, SHARE_TAG};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::Mutex;

const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Between two looks at what should be gone. Longer than the file server lets a name stand unquestioned.
const LOOK: Duration = Duration::from_secs(2);
const LOOKS: usize = 15;

#[derive(Debug)]
pub struct Share {
    pci: PciBus,
    mounted: Mutex<bool>,
}

impl Share {
    pub fn new(pci: PciBus) -> Self {
        Self { pci, mounted: Mutex::new(false) }
    }

    /// For tests, which put a directory where the share would be.
    pub fn already_mounted(pci: PciBus) -> Self {
        Self { pci, mounted: Mutex::new(true) }
    }

    pub fn pci(&self) -> &PciBus {
        &self.pci
    }

    /// The share is mounted when this returns.
    pub async fn ensure(&self) -> Result<(), Error> {
        let mut mounted = self.mounted.lock().await;
        if *mounted {
            return Ok(());
        }
        std::fs::create_dir_all(SHARE_MOUNT).map_err(Error::system("create", SHARE_MOUNT))?;
        self.pci.rescan().await?;
        let late =
            |_| Error::Deadline { operation: "mounting", object: SHARE_MOUNT.to_owned(), seconds: DEADLINE.as_secs() };
        tokio::time::timeout(DEADLINE, appear()).await.map_err(late)??;
        *mounted = true;
        crate::guest::remembered::watch();
        Ok(())
    }
}

/// Has the kernel forget the files of a container that the node is about to take off the share, in the background. Volumes
/// that other containers mount stay.
///
/// What a name led to is remembered until somebody looks the name up again, and nobody ever does for a container that
/// is gone. As long, the file server on the node keeps its files open, deleted ones with their space.
pub fn forget(container: &ContainerId, volumes: &[PathBuf]) {
    let directory = PathBuf::from(SHARE_MOUNT).join(container.to_string());
    for place in volumes.iter().cloned().chain([directory]) {
        tokio::spawn(look_until_gone(place, LOOK));
    }
}

async fn look_until_gone(directory: PathBuf, interval: Duration) {
    for _ in 0..LOOKS {
        tokio::time::sleep(interval).await;
        let directory = directory.clone();
        let look = tokio::task::spawn_blocking(move || std::fs::symlink_metadata(directory)).await;
        if look.is_ok_and(|look| look.is_err_and(|error| error.kind() == ErrorKind::NotFound)) {
            return;
        }
    }
}

async fn appear() -> Result<(), Error> {
    loop {
        let attempt = || mount(Some(SHARE_TAG), SHARE_MOUNT, Some("virtiofs"), MsFlags::empty(), None::<&str>);
        let result = tokio::task::spawn_blocking(attempt).await.map_err(Error::system("run", "a thread"))?;
        match result {
            Ok(()) => return Ok(()),
            // What the kernel answers when no device has the tag (yet).
            Err(Errno::EINVAL) => tokio::time::sleep(POLL).await,
            Err(errno) => return Err(Error::system("mount", SHARE_MOUNT)(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_container_is_looked_at_until_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let looking = tokio::spawn(look_until_gone(path, Duration::from_millis(20)));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!looking.is_finished());
        drop(directory);
        looking.await.unwrap();
    }
}
